"""What `fuzz.py` tries: small valid files of every kind that is read, and how each is read."""

import functools
import io
import json
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import torch
from torch import Tensor

from audiogen import audio, provenance
from audiogen.codec import ecdc, info, tokens
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.config import to_yaml
from audiogen.data.manifest import find_captions, read_manifest
from audiogen.data.prompts import read_prompts
from audiogen.data.shards import CodeClip, ShardReader, ShardWriter, TokenSpec, read_rows
from audiogen.files import streams
from audiogen.files.checkpoint import load_state, read_tensors, save_state
from audiogen.files.pickles import named_tensors, read_pickle
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Segment
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.provenance import Provenance, parse
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import Vocabulary, train_vocabulary
from audiogen.train.run import open_recipe

RATE = 16000
TEXTS = ["a dog barks twice", "rain falls on a tin roof", "a clock ticks, then a bell"]


class Target(NamedTuple):
    """seeds: valid files by name. run: reads one. repair: makes checksums right again. words: pieces of the format."""

    seeds: Callable[[], dict[str, bytes]]
    run: Callable[[Path], object]
    repair: Callable[[bytes], bytes] = bytes
    words: Sequence[bytes] = ()


# ----------------------------------------------------------------------------------------------------- sounds


def noise(num_frames: int, channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (num_frames, channels)).astype(np.float32)
    samples[num_frames // 3 :] *= 1e-2  # so that frames of variable bitrates differ
    return samples


def written(
    format: str, subtype: str, channels: int = 1, frames: int = 1500, rate: int = RATE, **more: object
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(frames, channels), rate, format=format, subtype=subtype, **more)
    return file.getvalue()


def untagged(data: bytes) -> bytes:
    """An MP3 without the frame that has its length."""
    at, frame = next(streams.mpeg_frames(data))
    return data[:at] + data[at + frame.size :]


def read_sound(path: Path) -> None:
    header = audio.info(path)
    samples, rate = audio.load(path)
    assert (*samples.shape, rate) == (header.channels, header.num_frames, header.sample_rate)
    assert samples.isfinite().all()
    block_s = max(header.duration_s / 7, 100 / header.sample_rate)
    blocks = torch.cat(list(audio.stream(path, block_s=block_s)), dim=1)
    assert blocks.shape == samples.shape
    part = audio.load(path, start_s=header.duration_s / 2, duration_s=0.01)[0]
    start = round(header.duration_s / 2 * rate)
    exact = path.suffix not in (".mp3", ".mp2", ".opus") and b"\x55\0" not in path.read_bytes()[:64]
    if exact:
        assert torch.equal(blocks, samples) and torch.equal(part, samples[:, start : start + part.shape[1]])
    if header.duration_s * header.channels < 100:
        assert audio.load(path, 8000, 1)[0].isfinite().all()


def waves() -> dict[str, bytes]:
    found = {
        f"{name.lower()}.{name.lower()}": written(name, "PCM_16")
        for name in ("WAV", "RF64", "W64", "AIFF", "CAF", "AU")
    }
    found |= {"float.wav": written("WAV", "FLOAT", 2, 400), "adpcm.wav": written("WAV", "IMA_ADPCM", 1, 1500)}
    found |= {"ex.wav": written("WAVEX", "PCM_24", 3, 200), "alac.caf": written("CAF", "ALAC_16", 1, 400)}
    found |= {"gsm.wav": written("WAV", "GSM610", 1, 900), "ulaw.aiff": written("AIFF", "ULAW", 2, 300)}
    found |= {"ms.wav": written("WAV", "MS_ADPCM", 1, 900), "double.aiff": written("AIFF", "DOUBLE", 1, 300)}
    return found | {
        "nist.nist": written("NIST", "PCM_16"),
        "voc.voc": written("VOC", "PCM_16"),
        "svx.iff": written("SVX", "PCM_16"),
    }


WAVE_WORDS = b"RIFF RIFX RF64 ds64 WAVE fmt  data LIST fact FORM AIFC AIFF SSND COMM caff desc pakt kuki chan bext PEAK"
WAVE_WORDS += b" \xfe\xff \x50\0 \x55\0 \x11\0 \x02\0 \x31\0"


def flacs() -> dict[str, bytes]:
    plain = written("FLAC", "PCM_16", 1, 3000)
    endless = plain[:21] + bytes([plain[21] & 0xF0]) + bytes(4) + plain[26:]
    return {
        "a.flac": plain,
        "b.flac": written("FLAC", "PCM_24", 2, 500),
        "endless.flac": endless,
        "id3.flac": b"ID3\4\0\0\0\0\0\0" + plain,
    }


def oggs() -> dict[str, bytes]:
    vorbis, opus = written("OGG", "VORBIS", 1, 3000), written("OGG", "OPUS", 1, 3000)
    return {
        "a.ogg": vorbis,
        "two.ogg": vorbis + written("OGG", "VORBIS", 1, 2000),
        "three.ogg": vorbis + opus + vorbis,
        "refused.ogg": vorbis + written("OGG", "VORBIS", 2, 500),
        "a.opus": opus,
        "two.opus": opus + written("OGG", "OPUS", 1, 1000),
    }


@functools.cache
def _ogg_table() -> list[int]:
    table = []
    for value in range(256):
        value <<= 24
        for _ in range(8):
            value = value << 1 ^ (0x04C11DB7 if value >> 31 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


def repaired_ogg(data: bytes) -> bytes:
    """Every page with the checksum that its contents have (RFC 3533, section 6)."""
    result, at, table = bytearray(data), 0, _ogg_table()
    while (at := data.find(b"OggS", at)) >= 0:
        segments = data[at + 26 : at + 27]
        end = at + 27 + (segments[0] + sum(data[at + 27 : at + 27 + segments[0]]) if segments else 0)
        if end > len(data):
            break
        result[at + 22 : at + 26] = bytes(4)
        crc = 0
        for byte in result[at:end]:
            crc = (crc << 8 ^ table[crc >> 24 ^ byte]) & 0xFFFFFFFF
        result[at + 22 : at + 26] = crc.to_bytes(4, "little")
        at = end
    return bytes(result)


def mpegs() -> dict[str, bytes]:
    def mp3(mode: str, rate: int = 22050, frames: int = 6000, channels: int = 1) -> bytes:
        return written(
            "MP3", "MPEG_LAYER_III", channels, frames, rate, bitrate_mode=mode, compression_level=0.9
        )

    constant, variable = mp3("CONSTANT"), mp3("VARIABLE")
    id3 = b"ID3\4\0\0\0\0\0\x0a" + bytes(10)
    wave = b"RIFF" + (len(constant) + 38).to_bytes(4, "little") + b"WAVEfmt \x1e\0\0\0\x55\0\1\0"
    wave += (
        (22050).to_bytes(4, "little")
        + (4000).to_bytes(4, "little")
        + b"\1\0\0\0\x0c\0\1\0\2\0\0\0\x10\2\1\0\x71\5"
    )
    return {
        "constant.mp3": constant,
        "variable.mp3": variable,
        "untagged.mp3": untagged(variable),
        "untagged2.mp3": untagged(constant),
        "joined.mp3": constant + variable,
        "id3.mp3": id3 + untagged(constant) + b"TAG" + bytes(125),
        "middle.mp3": untagged(constant) + id3 + untagged(mp3("CONSTANT", frames=2000)),
        "stereo.mp3": mp3("AVERAGE", 44100, 4000, 2),
        "low.mp3": mp3("CONSTANT", 8000, 2500),
        "layer2.mp2": by_ffmpeg("mp2", "mp2", "s16"),
        "mpeg.wav": wave + b"data" + len(untagged(constant)).to_bytes(4, "little") + untagged(constant),
    }


def by_ffmpeg(format: str, codec: str, sample: str) -> bytes:
    """0.2 s as ffmpeg's libraries write them."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono", bit_rate=32000)
        samples = noise(3200)[:, 0]
        packed = (samples * 32767).astype(np.int16)[None] if sample == "s16" else samples[None]
        frame = av.AudioFrame.from_ndarray(packed, format=sample, layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()


def films() -> dict[str, bytes]:
    kinds = [
        ("m4a.m4a", "ipod", "aac", "fltp"),
        ("a.webm", "webm", "libopus", "s16"),
        ("a.wma", "asf", "wmav2", "fltp"),
    ]
    kinds += [
        ("a.wv", "wv", "wavpack", "fltp"),
        ("a.aac", "adts", "aac", "fltp"),
        ("a.tta", "tta", "tta", "s16"),
    ]
    return {name: by_ffmpeg(*rest) for name, *rest in kinds}


# ----------------------------------------------------------------------------------------------- token files


def token_files() -> dict[str, bytes]:
    draw = torch.Generator().manual_seed(0)

    def codes(num_codebooks: int, size: int, frames: int) -> Tensor:
        return torch.randint(size, (1, num_codebooks, frames), generator=draw)

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x")
        whole = tokens.TokenHeader("codec_tiny", "0123456789abcdef", RATE, 1, 1000, 3, 300, 80, RATE, 1000)
        tokens.write_tokens(path, whole, [Segment(codes(3, 300, 13), None)])
        found["whole.agtok"] = path.read_bytes()
        parts = tokens.TokenHeader("x", "", 8000, 2, 900, 2, 5, 40, None, None, 400, 390, True)
        segments = [Segment(codes(2, 5, n), torch.tensor([0.5])) for n in parts.segment_frames()]
        tokens.write_tokens(path, parts, segments)
        found["parts.agtok"] = path.read_bytes()
        for name, length in (("encodec_24khz", 5000), ("encodec_48khz", 60000)):
            header = ecdc.MODELS[name].__class__(
                **{**ecdc.MODELS[name].__dict__, "num_samples": length, "num_codebooks": 2}
            )
            scale = torch.tensor([0.5]) if header.normalised else None
            ecdc.write_ecdc(
                path, header, [Segment(codes(2, 1024, n), scale) for n in header.segment_frames()]
            )
            found[f"{name}.ecdc"] = path.read_bytes()
    return found


def repaired_tokens(data: bytes) -> bytes:
    if data[:4] != tokens.MAGIC or len(data) < 13:
        return data
    size = int.from_bytes(data[5:9], "little")
    start, rest = data[: 9 + size], data[9 + size : -4]
    return start + rest + tokens.CHECKSUM.pack(zlib.crc32(start, zlib.crc32(rest)))


def read_token_file(path: Path) -> None:
    form = ecdc if path.suffix == ".ecdc" else tokens
    header = form.read_header(path)
    info.describe_tokens(header)
    header, segments = (ecdc.read_ecdc if form is ecdc else tokens.read_tokens)(path)
    total = 0
    for codes, scale in segments:
        assert codes.dtype == torch.int64 and 0 <= codes.min() and codes.max() < 2**header.bits_per_code
        assert scale is None or (scale > 0).all()
        total += codes.shape[2]
    assert total == header.num_frames


# ---------------------------------------------------------------------------------------------------- shards


@functools.cache
def shard_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="fuzz-shards-"))
    writer = ShardWriter(folder, TokenSpec("c", "0123456789abcdef", 8000, 1, 40, 3, 11))
    for first in (0, 2):
        clips = [
            CodeClip(f"{first + n}.wav", torch.full((3, 5 + n), n), 200, ("a dog",), {"fold": 1})
            for n in range(2)
        ]
        writer.write(clips, {"bad.wav": "damaged"})
    return folder


def shards() -> dict[str, bytes]:
    return {name: (shard_folder() / name).read_bytes() for name in ("index.json", "shard-00000.safetensors")}


def read_shards(path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, name = Path(place), path.name.partition("-")[2]
        shutil.copytree(shard_folder(), folder, dirs_exist_ok=True)
        shutil.copy(path, folder / name)
        if name != "index.json":  # with the checksum of what was made
            index = json.loads((folder / "index.json").read_text())
            index["shards"][0]["crc32"] = zlib.crc32(path.read_bytes())
            (folder / "index.json").write_text(json.dumps(index))
        info.describe_shards(folder)
        reader = ShardReader(folder)
        for index in range(len(reader)):
            codes = reader.codes(index)
            assert codes.shape == (reader.spec.num_codebooks, reader.num_frames[index])
            assert codes.numel() == 0 or 0 <= codes.min() <= codes.max() < reader.spec.codebook_size
            reader.codes(index, 1, 2)
        ShardWriter(folder, reader.spec)
        read_rows(folder / "shard-00000.safetensors")


# --------------------------------------------------------------------------------------------------- weights


def pickle_files() -> dict[str, bytes]:
    state = {
        "a.weight": torch.ones(3, 2),
        "b": torch.zeros(4, dtype=torch.float16),
        "n": torch.tensor(3),
        "config": {"x": [1, 2.5, None, "y"]},
    }
    found = {}
    for name, options in (("new.pt", {}), ("old.bin", {"_use_new_zipfile_serialization": False})):
        file = io.BytesIO()
        torch.save({"best_state": state, "xp.cfg": "a: 1\n"}, file, **options)
        found[name] = file.getvalue()
    file = io.BytesIO()
    torch.save({"w": torch.ones(2, 3)}, file)
    return found | {"small.pt": file.getvalue()}


def repaired_zip(data: bytes) -> bytes:
    """The records as they are in a zip file around them that fits."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for entry in old.infolist():
                start = entry.header_offset
                begin = (
                    start
                    + 30
                    + sum(int.from_bytes(data[start + k : start + k + 2], "little") for k in (26, 28))
                )
                new.writestr(entry.filename, data[begin : begin + entry.compress_size])
    except Exception:  # of a file that is no zip any more
        return data
    return out.getvalue()


def read_weights_file(path: Path) -> None:
    contents = read_pickle(path)
    state = contents.get("best_state", contents) if isinstance(contents, dict) else contents
    for tensor in named_tensors(
        {k: v for k, v in state.items() if k != "config"} if isinstance(state, dict) else state, path
    ).values():
        if tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes() and tensor.numel():
            tensor.float().sum()


@functools.cache
def model_folder() -> Path:
    """A language model, its text encoder and codec, tiny and random, and a checkpoint."""
    torch.manual_seed(0)
    seanet = SeanetConfig(ratios=(4, 2), num_filters=2, lstm=0)
    codec = Codec(
        CodecConfig(8000, 1, "seanet", seanet, latent_dim=3, num_codebooks=2, codebook_size=5)
    ).eval()
    text = T5Conditioner(
        TextConfig(width=8, dim=8, num_layers=1, num_heads=2), train_vocabulary(TEXTS, 30)
    ).eval()
    lm = TokenLM(LMConfig(num_codebooks=2, codebook_size=5, dim=8, num_layers=1, num_heads=2)).eval()
    folder = Path(tempfile.mkdtemp(prefix="fuzz-model-"))
    AudioGen(lm, text, codec, max_frames=20, info={"steps": 0}).save_pretrained(folder)
    save_state(folder / "state", {"model": {"w": torch.ones(2, 3)}, "step": 3, "order": [1, (2.5, None)]})
    return folder


MODEL_FILES = {
    "lm.safetensors": "model.safetensors",
    "text.safetensors": "text/model.safetensors",
    "codec.safetensors": "codec/model.safetensors",
    "state.safetensors": "state/state.safetensors",
    "state.json": "state/state.json",
}


def model_files() -> dict[str, bytes]:
    return {name: (model_folder() / inner).read_bytes() for name, inner in MODEL_FILES.items()}


def read_model(path: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, name = Path(place), path.name.partition("-")[2]
        shutil.copytree(model_folder(), folder, dirs_exist_ok=True)
        shutil.copy(path, folder / MODEL_FILES[name])
        if name.startswith("state"):
            load_state(folder / "state")
            return
        read_tensors(path)
        AudioGen.from_pretrained(folder, device="cpu", packed=False)


def vocabularies() -> dict[str, bytes]:
    return {"vocabulary.model": (model_folder() / "text" / "vocabulary.model").read_bytes()}


def read_vocabulary(path: Path) -> None:
    vocabulary = Vocabulary(path.read_bytes())
    for text in (*TEXTS, "", "é漢🎵" * 50):
        assert all(0 <= token < len(vocabulary) for token in vocabulary.encode(text))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "text")
        shutil.copytree(model_folder() / "text", folder)
        shutil.copy(path, folder / "vocabulary.model")
        assert T5Conditioner.load(folder)([TEXTS[0], None, "é漢"]).tokens.isfinite().all()


# ------------------------------------------------------------------------------------------------------ lists


def lists() -> dict[str, bytes]:
    rows = [
        {"audio": "a.wav", "captions": ["a dog", "a bark"], "fold": 1},
        {"audio": "a.wav", "caption": "rain", "start": 0.5, "duration": 1},
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table = b'audio,caption,start,duration,fold\na.wav,a dog,,,1\na.wav,"a dog, far",0.5,2,2\n'
    return {
        "manifest.jsonl": lines,
        "manifest.csv": table,
        "prompts.txt": b"a dog barks\n\nrain\n",
        "prompts.csv": b'text,duration,seed\na dog,2.5,7\n"rain, far",,\n',
        "side.json": b'{"caption": ["a dog", "a bark"], "label": 3}',
        "side.txt": b"a dog\na bark\n",
        "prompts.jsonl": b'{"text": "a dog", "duration": 2.5, "seed": 7}\n{"prompt": "rain"}\n',
    }


def read_list(path: Path) -> None:
    (path.parent / "a.wav").touch()
    if "manifest" in path.name:
        assert all(Path(clip.path).is_file() for clip in read_manifest(path))
    elif "side" in path.name:
        captions, _ = find_captions(path.with_suffix(".wav"), path.parent)
        assert all(caption.strip() for caption in captions)
    else:
        assert all(prompt.text.strip() for prompt in read_prompts(path))


def records() -> dict[str, bytes]:
    """Generated sounds, each with the record of its making, and a sidecar."""
    made = Provenance("lm_tiny", "0" * 64, {"text": "a dog", "seed": 3, "duration": 0.1}, {"init": "1" * 64})
    with tempfile.TemporaryDirectory() as folder:
        samples = torch.from_numpy(noise(1500).T)
        found = {
            f"a.{kind}": audio.save(Path(folder, f"a.{kind}"), samples, RATE, tags=made.tags()).read_bytes()
            for kind in audio.SAVE_FORMATS
        }
    return found | {"beside.json": json.dumps(made.record()).encode()}


def read_record(path: Path) -> None:
    if path.suffix == ".json":
        found = parse(path.read_text(errors="replace"), path)
    else:
        found = provenance.read(path)
    if found is not None and (command := found.command("again.wav")) is not None:
        assert command.isprintable() and command.startswith("python -m audiogen.generate")
        assert found.tags().comment


def recipes() -> dict[str, bytes]:
    folder = Path(__file__).parent.parent / "recipes"
    return {
        f"{name}.yaml": (folder / f"{name}.yaml").read_bytes()
        for name in ("lm_tiny", "codec_tiny", "tagger_tiny")
    }


JSON_WORDS = [
    *b'{ } [ ] " : , null NaN Infinity \xff \xef\xbb\xbf "\\ud800" \0 1e999'.split(),
    b"[" * 3000,
    b'{"a":' * 2000,
    b"9" * 5000,
]
YAML_WORDS = [
    *b"? - : | > & * ! %  !!python/object:os.system ${fit.steps} ${oc.env:HOME} ??? &a *a << 1e9 .nan .inf ~".split()
]
YAML_WORDS += [b"\n", b"\n  ", b"\t", b"[" * 3000, b"{a: " * 1000, b"- " * 1000]
YAML_WORDS += [
    b"\na: &a [x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 108))
]

SOUND_WORDS = {
    "wave": WAVE_WORDS.split(b" "),
    "flac": [b"fLaC", b"\xff\xf8", b"\xff\xf9", b"\x84\0\0\4", b"ID3"],
    "ogg": [b"OggS\0\2", b"OggS\0\4", b"\1vorbis", b"OpusHead", b"\x7fFLAC", b"\xff"],
    "mpeg": [b"\xff\xfb\x90\0", b"\xff\xf3\x14\xc4", b"Xing", b"Info", b"VBRI", b"ID3", b"TAG"],
    "film": [b"moov", b"mdat", b"stsz", b"stts", b"\x1aE\xdf\xa3", b"\xff\xf1"],
}
PICKLE_WORDS = [b"cos\nsystem\n", b"ctorch\nzeros\n", b"R", b"(", b"\x85R", b"q\0", b"h\0", b"\x80\2", b"."]
TENSOR_WORDS = [b"F16", b"BF16", b"F64", b"I64", b"BOOL", b"F8_E4M3", b"U8", *JSON_WORDS]
PIECE_WORDS = [b"\x0a", b"\x12", b"\x1a", b"\xff\xff\xff\xff\x0f", b"\xe2\x96\x81"]
LIST_WORDS = [*JSON_WORDS, b'"', b",", b"\r", b"\xe2\x80\xa8", b"a.wav"]

TARGETS = {
    "wave": Target(waves, read_sound, words=SOUND_WORDS["wave"]),
    "flac": Target(flacs, read_sound, words=SOUND_WORDS["flac"]),
    "ogg": Target(oggs, read_sound, repaired_ogg, SOUND_WORDS["ogg"]),
    "mpeg": Target(mpegs, read_sound, words=SOUND_WORDS["mpeg"]),
    "film": Target(films, read_sound, words=SOUND_WORDS["film"]),
    "tokens": Target(token_files, read_token_file, repaired_tokens, JSON_WORDS),
    "shards": Target(shards, read_shards, words=JSON_WORDS),
    "pickles": Target(pickle_files, read_weights_file, repaired_zip, PICKLE_WORDS),
    "weights": Target(model_files, read_model, words=TENSOR_WORDS),
    "vocabulary": Target(vocabularies, read_vocabulary, words=PIECE_WORDS),
    "records": Target(records, read_record, words=[*JSON_WORDS, *SOUND_WORDS["wave"], b"LIST", b"ICMT"]),
    "lists": Target(lists, read_list, words=LIST_WORDS),
    "recipes": Target(recipes, lambda path: to_yaml(open_recipe(str(path))), words=YAML_WORDS),
}
