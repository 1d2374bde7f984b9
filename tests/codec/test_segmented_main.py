"""`python -m audiogen.codec` with codecs that work on segments, and with `.ecdc` files."""

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.codec import ecdc, transcode
from audiogen.codec.__main__ import main
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.codec.segmented import SegmentedCodec, as_configured, in_segments
from audiogen.codec.tokens import CHECKSUM, PREFIX, read_header, read_tokens
from audiogen.errors import run_command
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec

RATE, HOP = 2000, 20
SEANET = SeanetConfig(num_filters=4, ratios=(5, 4), lstm=1, norm="group")
CONFIG = CodecConfig(
    RATE, 2, "seanet", SEANET, latent_dim=6, num_codebooks=3, codebook_size=50,
    segment_s=0.5, segment_overlap=0.05, normalise=True,
)  # fmt: skip
# The rates and hops of the released models, which `.ecdc` files stand for, with tiny networks.
TINY = SeanetConfig(num_filters=2, ratios=(8, 5, 4, 2), lstm=0)
MONO_24 = CodecConfig(24000, 1, "seanet", TINY, latent_dim=4, num_codebooks=32, codebook_size=1024)
STEREO_48 = CodecConfig(
    48000, 2, "seanet", TINY, latent_dim=4, num_codebooks=16, codebook_size=1024,
    segment_s=1.0, segment_overlap=0.01, normalise=True,
)  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


def make(directory: Path, config: CodecConfig) -> str:
    torch.manual_seed(0)
    save_codec(directory, Codec(config))
    return str(directory)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny codec with random weights that cuts sounds into normalised segments of 1000 samples."""
    return make(tmp_path_factory.mktemp("models") / "pieces", CONFIG)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command -> (exit status, stdout, stderr)."""

    def command(*argv: object) -> tuple[int, str, str]:
        status = run_command(main, [str(word) for word in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def write_sound(path: Path, num_frames: int, rate: int = RATE, channels: int = 2, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    level = 0.1 + 0.4 * np.linspace(0, 1, num_frames)[:, None]  # so that every segment has a scale of its own
    soundfile.write(path, level * random.uniform(-1, 1, (num_frames, channels)), rate)
    return path


def same(found: list[Segment], expected: list[Segment]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(torch.equal(a.codes, b.codes) for a, b in pairs) and all(
        (a.scale is None and b.scale is None) or torch.equal(a.scale, b.scale) for a, b in pairs
    )


LENGTHS = [1, 19, 949, 950, 951, 1000, 1001, 1900, 4321]


@pytest.mark.parametrize("batch_size", [1, 4])
def test_files_round_trip_at_exact_lengths(tmp_path: Path, codec: str, run: Run, batch_size: int) -> None:
    lengths = [*LENGTHS, 4321, 951]
    for number, length in enumerate(lengths):
        write_sound(tmp_path / "in" / f"{number}.wav", length, seed=number)
    options = ["--codec", codec, "--batch-size", batch_size]
    status, out, err = run("encode", tmp_path / "in", "-o", tmp_path / "tokens", *options)
    assert (status, err) == (0, "") and out.startswith(f"encoded {len(lengths)} clips")
    status, _, err = run("decode", tmp_path / "tokens", "-o", tmp_path / "back", *options)
    assert (status, err) == (0, "")
    model = load_codec(codec)
    for number, length in enumerate(lengths):
        samples, _ = audio.load(tmp_path / "in" / f"{number}.wav")
        header, segments = read_tokens(tmp_path / "tokens" / f"{number}.agtok")
        found = list(segments)
        assert (header.num_samples, header.segment_samples, header.stride_samples) == (length, 1000, 950)
        assert header.normalised and header.num_segments == -(-length // 950)
        assert same(found, expected := model.encode(samples[None]))
        assert [s.codes.shape[-1] for s in found] == list(header.segment_frames())
        decoded, _ = audio.load(tmp_path / "back" / f"{number}.wav")
        assert decoded.shape == (2, length)
        whole = model.decode(expected, length)[0].clamp(-1, 1)
        assert (decoded - whole).abs().max() < 2 / 32768  # 16 bits


@pytest.mark.parametrize("length", [*LENGTHS, 3849, 4750, 4800, 5749, 9500, 9550, 20011])
@pytest.mark.parametrize("overlap", [0.05, 0.0, 0.5])
def test_streaming_gives_what_one_call_gives(length: int, overlap: float) -> None:
    torch.manual_seed(0)
    model = as_configured(Codec(CodecConfig(**{**vars(CONFIG), "segment_overlap": overlap})).eval())
    assert isinstance(model, SegmentedCodec) and model.header.stride_samples
    stride = model.header.stride_samples
    sound = torch.rand(1, 2, length, generator=torch.Generator().manual_seed(1)) - 0.5
    whole = model.encode(sound)
    assert same(list(model.encode_stream(sound.split(700, -1))), whole)
    blocks = list(model.decode_stream(iter(whole), length))
    decoded = torch.cat(blocks, -1)
    assert decoded.shape == sound.shape
    assert torch.allclose(decoded, model.decode(whole, length), atol=1e-6)
    assert max(block.shape[-1] for block in blocks) <= 6 * stride  # not the whole at once


def test_a_long_file_is_never_held_whole(
    tmp_path: Path, codec: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither its samples nor its segments: what takes a whole sound gets at most the end of this one."""
    path = write_sound(tmp_path / "long.wav", 40 * RATE + 7)
    samples, _ = audio.load(path)
    expected = load_codec(codec).encode(samples[None])
    whole = load_codec(codec).decode(expected, samples.shape[-1])[0].clamp(-1, 1)
    encode = SegmentedCodec.encode

    def encode_short(self: SegmentedCodec, sound: torch.Tensor, *rest: int) -> list[Segment]:
        assert sound.shape[-1] <= 6000
        return encode(self, sound, *rest)

    def refuse(*given: object) -> None:
        raise AssertionError("a whole sound")

    with monkeypatch.context() as watched:
        watched.setattr(transcode, "LONG_S", 2.0)
        watched.setattr(SegmentedCodec, "encode", encode_short)
        watched.setattr(SegmentedCodec, "decode", refuse)
        watched.setattr(audio, "load", refuse)
        assert run("encode", path, "-o", tmp_path, "--codec", codec)[0] == 0
        assert run("decode", tmp_path / "long.agtok", "-o", tmp_path / "out", "--codec", codec)[0] == 0
    assert same(list(read_tokens(tmp_path / "long.agtok")[1]), expected)
    decoded, _ = audio.load(tmp_path / "out" / "long.wav")
    assert decoded.shape == samples.shape and (decoded - whole).abs().max() < 2 / 32768


@pytest.mark.parametrize("long_s", [0.1, 30.0])
def test_bad_tokens_are_skipped_whatever_their_length(
    tmp_path: Path, codec: str, run: Run, monkeypatch: pytest.MonkeyPatch, long_s: float
) -> None:
    """Also where they are found to be bad while the codec decodes what is before them."""
    monkeypatch.setattr(transcode, "LONG_S", long_s)
    write_sound(tmp_path / "in" / "c.wav", 4000)
    folder = tmp_path / "tokens"
    assert run("encode", tmp_path / "in", "-o", folder, "--codec", codec)[0] == 0
    data = (folder / "c.agtok").read_bytes()
    header = read_header(folder / "c.agtok")
    length = PREFIX.size + PREFIX.unpack_from(data)[2]
    start, payload = data[:length], bytearray(data[length : -CHECKSUM.size])
    scales = header.num_bytes
    for name, begin, end, value in (
        ("a", scales - 2, scales, b"\xff\xff"),
        ("b", scales, scales + 4, bytes(4)),
    ):
        spoilt = payload[:begin] + value + payload[end:]
        crc = CHECKSUM.pack(zlib.crc32(start, zlib.crc32(spoilt)))
        (folder / f"{name}.agtok").write_bytes(start + spoilt + crc)
    status, out, err = run("decode", folder, "-o", tmp_path / "out", "--codec", codec)
    assert status == 2 and out.startswith("decoded 1 clips")
    assert (
        "a.agtok: code 63 in a codebook of 50" in err and "b.agtok: a scale is not a positive number" in err
    )
    assert "2 of 3 clips could not be decoded" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c.wav"]


def test_original_rate_and_bandwidth(tmp_path: Path, codec: str, run: Run) -> None:
    write_sound(tmp_path / "a.wav", 6001, rate=3000, channels=1)
    options = ["--codec", codec]
    status, _, err = run("encode", tmp_path / "a.wav", "-o", tmp_path, *options, "--bandwidth", "1.2")
    assert (status, err) == (0, "")
    header = read_header(tmp_path / "a.agtok")
    assert (header.num_codebooks, header.num_samples) == (2, 4001)
    assert run("decode", tmp_path / "a.agtok", "-o", tmp_path / "b.wav", *options, "--original-rate")[0] == 0
    info = audio.info(tmp_path / "b.wav")
    assert (info.sample_rate, info.num_frames, info.channels) == (3000, 6001, 2)
    status, out, _ = run("info", tmp_path / "a.agtok")
    assert status == 0
    assert "segments: 5, of 1000 samples, one every 950, each divided by its loudness\n" in out
    assert "codebooks: 2 of 50 codes, 1.2 kbps\n" in out
    status, out, _ = run("info", codec)
    assert status == 0 and "segments: of 1000 samples, one every 950, each divided by its loudness\n" in out


def test_what_segments_cannot_do_is_one_line(tmp_path: Path, codec: str, run: Run) -> None:
    path = write_sound(tmp_path / "in" / "a.wav", 3000)
    out = tmp_path / "out"
    for arguments, message in [
        (["--shards", "2"], "pieces works on overlapping segments"),
        (["--format", "ecdc-v0"], "codec pieces"),
        (["--shards", "2", "--format", "ecdc-v0"], "--shards writes a folder"),
    ]:
        status, stdout, err = run("encode", path, "-o", out, "--codec", codec, *arguments)
        assert (status, stdout) == (2, "") and err.count("\n") == 1 and message in err, err
    assert not out.exists()
    other = make(tmp_path / "other", CodecConfig(**{**vars(CONFIG), "segment_s": 0.4}))
    assert run("encode", path, "-o", tmp_path / "a.agtok", "--codec", codec)[0] == 0
    status, _, err = run("decode", tmp_path / "a.agtok", "-o", tmp_path / "b.wav", "--codec", other)
    assert status == 2 and "segment_samples is 1000, the codec's is 800" in err
    assert not (tmp_path / "b.wav").exists()


@pytest.mark.parametrize("config", [MONO_24, STEREO_48], ids=["24khz", "48khz"])
@pytest.mark.parametrize("num_samples", [1, 5000, 48000 + 47520 + 3])
def test_ecdc_files_decode_as_our_own(
    tmp_path: Path, run: Run, config: CodecConfig, num_samples: int
) -> None:
    directory = make(tmp_path / "model", config)
    model = in_segments(load_codec(directory))
    write_sound(tmp_path / "in" / "a.wav", num_samples, config.sample_rate, config.channels)
    encode = ["encode", tmp_path / "in", "--codec", directory]
    assert run(*encode, "-o", tmp_path, "--format", "ecdc-v0")[::2] == (0, "")
    assert run(*encode, "-o", tmp_path / "own")[::2] == (0, "")
    samples, _ = audio.load(tmp_path / "in" / "a.wav")
    header, segments = ecdc.read_ecdc(tmp_path / "a.ecdc")
    assert header.num_samples == num_samples
    assert same(segments, model.encode(samples[None]))
    for name, source in (("theirs", tmp_path / "a.ecdc"), ("ours", tmp_path / "own" / "a.agtok")):
        decode = ["decode", source, "-o", tmp_path / f"{name}.wav", "--codec", directory]
        assert run(*decode)[::2] == (0, "")
    assert (tmp_path / "theirs.wav").read_bytes() == (tmp_path / "ours.wav").read_bytes()
    assert audio.info(tmp_path / "theirs.wav").num_frames == num_samples
    status, out, _ = run("info", tmp_path / "a.ecdc")
    assert status == 0 and f"codec: encodec_{config.sample_rate // 1000}khz\n" in out
    assert f"length: {num_samples} samples" in out


def test_ecdc_of_a_long_sound_and_what_is_there_already(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcode, "LONG_S", 0.5)
    directory = make(tmp_path / "model", MONO_24)
    path = write_sound(tmp_path / "a.wav", 60_000, 24000, 1)
    encode = ["encode", path, "-o", tmp_path / "a.ecdc", "--codec", directory, "--bandwidth", "1.5"]
    assert run(*encode)[::2] == (0, "")  # the name says the format
    assert ecdc.read_header(tmp_path / "a.ecdc").num_codebooks == 2
    assert run(*encode)[1].startswith("encoded 0 clips (0.0 s)")
    status, _, err = run(*encode[:-1], "3")
    assert status == 2 and "a.ecdc exists, of codec encodec_24khz" in err and err.count("\n") == 1
    assert run(*encode[:-1], "3", "--overwrite")[0] == 0
    assert run("decode", tmp_path / "a.ecdc", "-o", tmp_path / "b.wav", "--codec", directory)[::2] == (0, "")
    assert audio.info(tmp_path / "b.wav").num_frames == 60_000
    status, _, err = run(
        "decode", tmp_path / "a.ecdc", "-o", tmp_path / "c.wav", "--original-rate", "--codec", directory
    )
    assert status == 2 and "rate of the recording is not in the file" in err


def test_mistakes_with_ecdc_are_one_line(tmp_path: Path, codec: str, run: Run) -> None:
    mono, stereo = make(tmp_path / "mono", MONO_24), make(tmp_path / "stereo", STEREO_48)
    path = write_sound(tmp_path / "in" / "a.wav", 5000, 24000, 1)
    assert run("encode", path, "-o", tmp_path / "a.ecdc", "--codec", mono)[0] == 0
    data = (tmp_path / "a.ecdc").read_bytes()
    bad = tmp_path / "bad"
    bad.mkdir()
    header = json.dumps({"m": "encodec_24khz", "al": 10**15, "nc": 4, "lm": False}).encode()
    coded = data.replace(b'"lm": false', b'"lm": true ')
    (bad / "cut.ecdc").write_bytes(data[:-3])
    (bad / "magic.ecdc").write_bytes(b"RIFF" + data[4:])
    (bad / "absurd.ecdc").write_bytes(data[:5] + len(header).to_bytes(4, "big") + header)
    (bad / "coded.ecdc").write_bytes(coded)
    for name, message in (
        ("cut", ""),
        ("magic", ""),
        ("absurd", ""),
        ("coded", "encode the sound again without --lm"),
    ):
        status, _, err = run("decode", bad / f"{name}.ecdc", "-o", tmp_path / "x.wav", "--codec", mono)
        assert status == 2 and f"{name}.ecdc" in err and message in err and "Traceback" not in err, err
    assert not (tmp_path / "x.wav").exists()
    status, _, err = run("decode", bad, "-o", tmp_path / "out", "--codec", mono)
    assert status == 2 and "4 of 4 clips could not be decoded" in err and not (tmp_path / "out").exists()
    status, _, err = run("decode", tmp_path / "a.ecdc", "-o", tmp_path / "x.wav", "--codec", stereo)
    assert status == 2 and "sample_rate is 24000, the codec's is 48000" in err
    status, _, err = run("decode", tmp_path / "a.ecdc", "-o", tmp_path / "x.wav")
    assert status == 2 and "made by codec encodec_24khz" in err and "--codec" in err and err.count("\n") == 1
    status, _, err = run("encode", path, "-o", tmp_path / "b.agtok", "--format", "ecdc-v0", "--codec", mono)
    assert status == 2 and "make them agree" in err
    status, _, err = run("info", bad / "magic.ecdc")
    assert status == 2 and err.count("\n") == 1
