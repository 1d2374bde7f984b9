"""`python -m audiogen.codec`: exact round trips, continued runs, and one line for every mistake."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import in_segments
from audiogen.codec.tokens import TokenHeader, read_header, read_tokens
from audiogen.codec.transcode import Clip, Sound, batches, encode_clips
from audiogen.data.shards import ShardReader
from audiogen.models.build import load_codec
from audiogen.models.own import save_codec
from tests.codec.conftest import CONFIG, RATE, SPECTRAL, Run, tree, write_sound


def read_codes(path: Path) -> tuple[TokenHeader, torch.Tensor]:
    """The header of a file and its codes [K, T]."""
    header, segments = read_tokens(path)
    return header, torch.cat([segment.codes[0] for segment in segments], 1)


def expected_codes(codec: str, path: Path) -> torch.Tensor:
    samples, _ = audio.load(path, RATE, 1)
    return load_codec(codec).encode(samples[None])[0]


def test_a_folder_round_trips_at_exact_lengths(tmp_path: Path, codec: str, run: Run) -> None:
    lengths = {"a.wav": 4001, "deep/b.flac": 8000, "deep/er/c.d.ogg": 1, "deep/e.wav": 8000, "f.wav": 7}
    for seed, (name, length) in enumerate(lengths.items()):
        write_sound(tmp_path / "in" / name, length, channels=1 + seed % 2, seed=seed)
    (tmp_path / "in" / "notes.txt").write_text("not a sound")
    status, out, err = run("encode", tmp_path / "in", "-o", tmp_path / "tokens", "--codec", codec)
    assert (status, err) == (0, "")
    assert out.startswith("encoded 5 clips (2.5 s)") and "seconds of audio a second" in out
    names = ["a", "deep/b", "deep/e", "deep/er/c.d", "f"]
    assert tree(tmp_path / "tokens") == [f"{name}.agtok" for name in names]
    status, out, err = run("decode", tmp_path / "tokens", "-o", tmp_path / "back", "--codec", codec)
    assert (status, err) == (0, "")
    assert tree(tmp_path / "back") == [f"{name}.wav" for name in names]
    model = load_codec(codec)
    for name, length in lengths.items():
        tokens = (tmp_path / "tokens" / name).with_suffix(".agtok")
        header, codes = read_codes(tokens)
        assert torch.equal(codes, expected_codes(codec, tmp_path / "in" / name))
        assert (header.codec, header.identity) == ("tiny", model.identity)
        assert (header.source_sample_rate, header.source_num_samples) == (8000, length)
        decoded, rate = audio.load((tmp_path / "back" / name).with_suffix(".wav"))
        assert (rate, tuple(decoded.shape)) == (RATE, (1, -(-length // 2)))
        whole = model.decode(codes[None])[0, :, : header.num_samples].clamp(-1, 1)
        assert (decoded - whole).abs().max() < 2 / 32768  # 16 bits


def test_a_beam_search_gives_other_codes_that_are_nearer(tmp_path: Path, codec: str, run: Run) -> None:
    path = write_sound(tmp_path / "a.wav", 8000)
    samples, _ = audio.load(path, RATE, 1)
    model = load_codec(codec)
    latents = model.encoder(samples[None])

    def error(*options: str) -> float:
        out = tmp_path / f"{len(options)}.agtok"
        assert run("encode", path, "-o", out, "--codec", codec, *options)[0] == 0
        return float((model.quantizer.decode(read_codes(out)[1][None]) - latents).square().mean())

    assert error("--beam", "4") < 0.999 * error()
    searched = load_codec(codec, beam=4)
    assert torch.equal(searched.encode(samples[None])[0], read_codes(tmp_path / "2.agtok")[1])


@pytest.mark.parametrize("rate", [1000, 3999, 4000, 11025, 44100])
@pytest.mark.parametrize("length", [1, 39, 5000, 5001])
def test_original_rate_restores_every_frame(
    tmp_path: Path, codec: str, run: Run, rate: int, length: int
) -> None:
    write_sound(tmp_path / "a.wav", length, rate)
    tokens = tmp_path / "a.agtok"
    assert run("encode", tmp_path / "a.wav", "-o", tokens, "--codec", codec)[0] == 0
    assert run("decode", tokens, "-o", tmp_path / "b.wav", "--codec", codec, "--original-rate")[0] == 0
    info = audio.info(tmp_path / "b.wav")
    assert (info.sample_rate, info.num_frames) == (rate, length)
    assert run("decode", tokens, "-o", tmp_path / "c.wav", "--codec", codec)[0] == 0
    info = audio.info(tmp_path / "c.wav")
    assert (info.sample_rate, info.num_frames) == (RATE, -(-length * RATE // rate))
    if rate > RATE and length > 1000:  # the same sound: back at the codec's rate it is the other decoding
        again, _ = audio.load(tmp_path / "b.wav", RATE)
        there, _ = audio.load(tmp_path / "c.wav")
        middle = slice(200, there.shape[-1] - 200)
        error = (again[:, middle] - there[:, middle]).square().mean()
        assert error < 0.05 * there[:, middle].square().mean()  # soxr rolls off near the Nyquist frequency


@pytest.mark.parametrize("format", ["wav", "flac", "ogg", "mp3"])
def test_every_format_keeps_the_length(tmp_path: Path, run: Run, format: str) -> None:
    torch.manual_seed(0)
    config = CodecConfig(
        16000, 2, "spectral", spectral=SPECTRAL, latent_dim=6, num_codebooks=1, codebook_size=8
    )
    save_codec(tmp_path / "stereo", Codec(config))
    write_sound(tmp_path / "a.wav", 9001, 16000)
    options = ["--codec", tmp_path / "stereo"]
    assert run("encode", tmp_path / "a.wav", "-o", tmp_path, *options)[0] == 0
    assert run("decode", tmp_path / "a.agtok", "-o", tmp_path / "out", "--format", format, *options)[0] == 0
    info = audio.info(tmp_path / "out" / f"a.{format}")
    assert (info.num_frames, info.sample_rate, info.channels) == (9001, 16000, 2)
    assert run("decode", tmp_path / "a.agtok", "-o", tmp_path / f"b.{format}", *options)[0] == 0
    assert (tmp_path / f"b.{format}").read_bytes()[:4] == (tmp_path / "out" / f"a.{format}").read_bytes()[:4]


def test_a_long_file_streams_to_the_same_codes(tmp_path: Path, codec: str, run: Run) -> None:
    path = write_sound(tmp_path / "long.flac", 97 * 8000 + 3)
    assert run("encode", path, "-o", tmp_path, "--codec", codec)[0] == 0
    header, codes = read_codes(tmp_path / "long.agtok")
    assert header.num_samples == 97 * 4000 + 2
    assert (codes != expected_codes(codec, path)).float().mean() < 1e-4  # equal but for float rounding
    assert run("decode", tmp_path / "long.agtok", "-o", tmp_path, "--codec", codec, "--original-rate")[0] == 0
    assert audio.info(tmp_path / "long.wav").num_frames == 97 * 8000 + 3
    assert run("decode", tmp_path / "long.agtok", "-o", tmp_path / "at4k", "--codec", codec)[0] == 0
    decoded, _ = audio.load(tmp_path / "at4k" / "long.wav")
    whole = load_codec(codec).decode(codes[None])[0, :, : header.num_samples].clamp(-1, 1)
    assert (decoded - whole).abs().max() < 2 / 32768


def test_batches_give_the_codes_of_single_clips(tmp_path: Path, codec: str) -> None:
    lengths = [4000, 4000, 1234, 4000, 1234, 4000, 777]
    sources = [
        Sound(str(i), Path(str(i)), write_sound(tmp_path / f"{i}.wav", length, seed=i))
        for i, length in enumerate(lengths)
    ]
    model = in_segments(load_codec(codec))
    results = list(encode_clips(model, sources, 3, batch_size=3))
    assert sorted(result.key for result in results) == list("0123456")
    for result in results:
        assert isinstance(result, Clip)
        ((codes, scale),) = result.parts
        assert scale is None and torch.equal(codes[0], expected_codes(codec, sources[int(result.key)].path))


def test_batches_are_full_where_possible_and_hold_little_back() -> None:
    found = list(batches([10, 20, 11, 30, 40, 21, 50], lambda item: item // 10, 2))
    assert found == [[10, 11], [20, 21], [30], [40], [50]]
    given: list[int] = []
    many = batches((given.append(item) or item for item in range(10)), lambda item: item, 2)  # type: ignore[func-returns-value]
    assert [next(many) for _ in range(3)] == [[0], [1], [2]] and given == list(range(10))
    assert list(batches([10, 7, 11], lambda item: item // 10 or None, 2)) == [[7], [10, 11]]  # alone, at once


def test_overshoot_is_clipped_without_a_word(tmp_path: Path, run: Run) -> None:
    torch.manual_seed(0)
    loud = Codec(CONFIG)
    with torch.no_grad():
        for parameter in loud.decoder.parameters():
            parameter.mul_(20)
    save_codec(tmp_path / "loud", loud)
    write_sound(tmp_path / "a.wav", 8000)
    assert run("encode", tmp_path / "a.wav", "-o", tmp_path, "--codec", tmp_path / "loud")[0] == 0
    codes = read_codes(tmp_path / "a.agtok")[1]
    assert load_codec(tmp_path / "loud").decode(codes[None]).abs().max() > 1
    decode = ["decode", tmp_path / "a.agtok", "-o", tmp_path / "out", "--codec", tmp_path / "loud"]
    assert run(*decode, "--original-rate")[::2] == (0, "")
    assert audio.load(tmp_path / "out" / "a.wav")[0].abs().max() > 0.999


def test_bandwidth_is_a_prefix_of_the_codebooks(tmp_path: Path, codec: str, run: Run) -> None:
    path = write_sound(tmp_path / "a.wav", 8000)  # 100 frames a second of 6 bits: 0.6 kbps a codebook
    encode = ["encode", path, "--codec", codec, "-o"]
    assert run(*encode, tmp_path / "low.agtok", "--bandwidth", "1.2")[0] == 0
    header, codes = read_codes(tmp_path / "low.agtok")
    assert header.bandwidth_kbps == pytest.approx(1.2)
    assert torch.equal(codes, expected_codes(codec, path)[:2])
    assert run("decode", tmp_path / "low.agtok", "-o", tmp_path / "low.wav", "--codec", codec)[0] == 0
    status, _, err = run(*encode, tmp_path / "no.agtok", "--bandwidth", "1")
    assert (status, err) == (2, "error: --bandwidth 1: codec tiny has 0.6, 1.2, 1.8 kbps\n")
    status, _, err = run(*encode, tmp_path / "low.agtok")
    assert status == 2 and "low.agtok exists, of codec tiny" in err and "at 1.2 kbps" in err
    assert run(*encode, tmp_path / "low.agtok", "--overwrite")[0] == 0
    assert read_header(tmp_path / "low.agtok").num_codebooks == 3


def test_a_finished_run_is_a_no_op_and_a_changed_sound_is_encoded_again(
    tmp_path: Path, codec: str, run: Run
) -> None:
    for name in "abc":
        write_sound(tmp_path / "in" / f"{name}.wav", 800)
    encode = ["encode", tmp_path / "in", "-o", tmp_path / "out", "--codec", codec]
    run(*encode)
    (tmp_path / "out" / "b.agtok").unlink()  # as after an interruption
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    status, out, _ = run(*encode)
    assert status == 0 and out.startswith("encoded 1 clips") and "2 were there already" in out
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert run(*encode)[1].startswith("encoded 0 clips (0.0 s)")
    made_s = (tmp_path / "out" / "c.agtok").stat().st_mtime
    for seed, later_s in enumerate((10, -1e6, 0), 1):  # an older one, too, and clocks that differ
        sound = write_sound(tmp_path / "in" / "c.wav", 800, seed=seed)
        os.utime(sound, (made_s + later_s, made_s + later_s))
        assert run(*encode)[1].startswith("encoded 1 clips")
        assert torch.equal(read_codes(tmp_path / "out" / "c.agtok")[1], expected_codes(codec, sound))
    (tmp_path / "in").rename(tmp_path / "moved")
    encode[1] = tmp_path / "moved"
    assert "3 were there already" in run(*encode)[1]


def test_a_second_run_does_not_take_another_sound_of_the_name_for_its_own(
    tmp_path: Path, codec: str, run: Run
) -> None:
    for seed, name in enumerate(("in/a.ogg", "in/a.flac", "other/a.ogg")):  # of one length
        write_sound(tmp_path / name, 800, seed=seed)
    encode = ["encode", "-o", tmp_path / "out", "--codec", codec]
    assert run(*encode, tmp_path / "in/a.ogg")[0] == 0
    before = (tmp_path / "out" / "a.agtok").read_bytes()
    for other in ("in/a.flac", "other/a.ogg"):
        status, _, err = run(*encode, tmp_path / other)
        assert status == 2 and err.count("\n") == 1
        assert f"a.agtok exists, of the sound in/a.ogg, not of {other}; choose another --out" in err
        assert (tmp_path / "out" / "a.agtok").read_bytes() == before
    assert run(*encode, tmp_path / "other", "--overwrite")[0] == 0
    assert "encoded from: other/a.ogg" in run("info", tmp_path / "out" / "a.agtok")[1]
    manifest = tmp_path / "list.jsonl"  # a part that is another one since
    for duration in (0.02, 0.03):
        manifest.write_text(json.dumps({"audio": "in/a.ogg", "start": 0.01, "duration": duration}))
        assert run(*encode, manifest)[1].startswith("encoded 1 clips")


def spoil(folder: Path) -> dict[str, str]:
    """Write bad files of every kind -> what is said of each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is not a sound")
    soundfile.write(folder / "nothing.wav", np.zeros((0, 1)), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan]), 8000, subtype="FLOAT")
    data = write_sound(folder / "cut.flac", 8000).read_bytes()
    (folder / "cut.flac").write_bytes(data[: len(data) // 2])
    data = write_sound(folder / "long.flac", 40 * 8000).read_bytes()  # found out while it streams
    (folder / "long.flac").write_bytes(data[: len(data) // 2])
    return {
        "empty.wav": "empty",
        "text.wav": "not a sound file",
        "nothing.wav": "no samples",
        "nan.wav": "not finite",
        "cut.flac": "",
        "long.flac": "",
    }


@pytest.mark.parametrize("shards", [False, True])
def test_unreadable_files_are_named_counted_and_skipped(
    tmp_path: Path, codec: str, run: Run, shards: bool
) -> None:
    reasons = spoil(tmp_path / "in" / "bad")
    write_sound(tmp_path / "in" / "good.wav", 801)
    options = ["--shards", "2"] if shards else []
    encode = ["encode", tmp_path / "in", "-o", tmp_path / "out", "--codec", codec, *options]
    status, out, err = run(*encode)
    assert status == 2
    assert out.startswith("encoded 1 clips")
    *skipped, last = err.splitlines()
    assert last == "error: 6 of 7 clips could not be encoded: named above"
    assert len(skipped) == 6
    for name, reason in reasons.items():
        (line,) = [line for line in skipped if name in line]
        assert line.startswith("skipped: ") and reason in line
    if shards:
        assert tree(tmp_path / "out") == ["index.json", "shard-00000.safetensors"]
        assert set(ShardReader(tmp_path / "out").unreadable) == {f"in/bad/{name}" for name in reasons}
    else:
        assert tree(tmp_path / "out") == ["good.agtok"]
    write_sound(tmp_path / "in" / "bad" / "text.wav", 1600)  # repaired
    status, out, err = run(*encode)
    assert status == 2 and out.startswith("encoded 1 clips") and "1 were there already" in out
    assert "5 of 6 clips could not be encoded" in err


def test_shards_of_an_interrupted_run_are_those_of_a_whole_one(tmp_path: Path, codec: str, run: Run) -> None:
    lines = []
    for i in range(7):
        write_sound(tmp_path / "sounds" / f"{i}.wav", 800 * (1 + i % 3), seed=i)
        lines.append({"audio": f"sounds/{i}.wav", "captions": [f"noise {i}", "noise"], "fold": i})
    manifest = tmp_path / "list.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--codec", codec, "--shards", "3", "--batch-size", "2"]
    status, out, err = run("encode", manifest, "-o", tmp_path / "whole", *options)
    assert (status, err) == (0, "") and out.startswith("encoded 7 clips")
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 4

    cut = tmp_path / "cut"
    assert run("encode", manifest, "-o", cut, *options)[0] == 0
    index = json.loads((cut / "index.json").read_text())
    index["shards"] = index["shards"][:1]  # killed while the second shard was written
    (cut / "index.json").write_text(json.dumps(index))
    (cut / "shard-00001.safetensors").write_bytes(b"half")
    (cut / "shard-00002.safetensors").unlink()
    status, out, _ = run("encode", manifest, "-o", cut, *options)
    assert status == 0 and out.startswith("encoded 4 clips") and "3 were there already" in out
    assert {path.name: path.read_bytes() for path in cut.iterdir()} == whole
    times = {path: path.stat().st_mtime_ns for path in cut.iterdir()}
    assert run("encode", manifest, "-o", cut, *options)[1].startswith("encoded 0 clips")
    assert {path: path.stat().st_mtime_ns for path in cut.iterdir()} == times

    reader = ShardReader(cut)
    assert reader.spec.identity == load_codec(codec).identity
    for i, clip in enumerate(reader.clips):
        assert clip.captions == (f"noise {i}", "noise") and clip.fields == {"fold": i}
        assert torch.equal(reader.codes(i), expected_codes(codec, tmp_path / "sounds" / f"{i}.wav"))
    assert run("decode", cut, "-o", tmp_path / "back", "--codec", codec)[0] == 0
    folder = tmp_path / "back" / tmp_path.name / "sounds"
    assert [audio.info(folder / f"{i}.wav").num_frames for i in range(7)] == [
        400 * (1 + i % 3) for i in range(7)
    ]
    status, _, err = run("encode", manifest, "-o", cut, *options, "--bandwidth", "0.6")
    assert status == 2 and "choose another folder" in err
    status, _, err = run("encode", manifest, "-o", cut, *options, "--overwrite")
    assert status == 2 and "--overwrite does not go with --shards" in err
    status, _, err = run("decode", cut, "-o", tmp_path / "no", "--codec", codec, "--original-rate")
    assert status == 2 and "rate of the recording is not in the file" in err


def test_parts_of_a_file_become_files_of_their_own(tmp_path: Path, codec: str, run: Run) -> None:
    path = write_sound(tmp_path / "a.wav", 16000)
    manifest = tmp_path / "list.jsonl"
    rows = [{"start": 0.5, "duration": 0.25}, {"start": 1.25}, {}]
    manifest.write_text("".join(json.dumps({"audio": "a.wav", **row}) + "\n" for row in rows))
    assert run("encode", manifest, "-o", tmp_path / "out", "--codec", codec)[0] == 0
    assert tree(tmp_path / "out") == ["a.agtok", "a@0.5s.agtok", "a@1.25s.agtok"]
    header, codes = read_codes(tmp_path / "out" / "a@0.5s.agtok")
    assert (header.num_samples, header.source_num_samples) == (1000, 2000)
    samples, _ = audio.load(path, RATE, 1, 0.5, 0.25)
    assert torch.equal(codes, load_codec(codec).encode(samples[None])[0])
    assert run("encode", manifest, "-o", tmp_path / "s", "--codec", codec, "--shards", 9)[0] == 0
    assert run("decode", tmp_path / "s", "-o", tmp_path / "back", "--codec", codec)[0] == 0
    assert {path.name for path in tmp_path.glob("back/*/*")} == {"a.wav", "a@0.5s.wav", "a@1.25s.wav"}


def test_the_built_in_corpus_is_an_input(tmp_path: Path, codec: str, run: Run) -> None:
    save_codec(tmp_path / "8k", Codec(replace(CONFIG, sample_rate=8000)))  # the lowest rate of the corpus
    encode = ["encode", "--codec", tmp_path / "8k", "-o"]
    assert run(*encode, tmp_path / "s", "synth:2@5", "--shards", 9)[0] == 0
    reader = ShardReader(tmp_path / "s")
    assert reader.num_samples == [40000, 40000]
    assert all(clip.captions for clip in reader.clips)
    assert run(*encode, tmp_path / "files", "synth:1@5")[0] == 0
    codes = read_codes(tmp_path / "files" / "synth" / "000005.agtok")[1]
    assert torch.equal(codes, reader.codes(0))
    status, _, err = run(*encode, tmp_path / "files", "synth:1@5", "--codec", codec)
    assert status == 2 and err.count("\n") == 1


def test_sounds_of_one_name_keep_their_suffixes(tmp_path: Path, codec: str, run: Run) -> None:
    names = ["a.flac", "a.ogg", "a.ogg.wav", "b.wav"]  # a.ogg.agtok would be that of two, at second sight
    for seed, name in enumerate(names):
        write_sound(tmp_path / "in" / name, 800 + 40 * seed, seed=seed)
    tokens = ["a.flac.agtok", "a.ogg.agtok", "a.ogg.wav.agtok", "b.agtok"]
    for kept in ("", "4 were there already"):  # the second run is a continued one
        status, out, _ = run("encode", tmp_path / "in", "-o", tmp_path / "tokens", "--codec", codec)
        assert status == 0 and kept in out
        assert tree(tmp_path / "tokens") == tokens
    for name, file in zip(names, tokens, strict=True):
        codes = read_codes(tmp_path / "tokens" / file)[1]
        assert torch.equal(codes, expected_codes(codec, tmp_path / "in" / name))
    sounds = ["a.flac.wav", "a.ogg.wav", "a.ogg.wav.wav", "b.wav"]
    assert run("decode", tmp_path / "tokens", "-o", tmp_path / "back", "--codec", codec)[0] == 0
    assert tree(tmp_path / "back") == sounds
    shards = ["encode", tmp_path / "in", "-o", tmp_path / "shards", "--shards", 2, "--codec", codec]
    assert run(*shards)[0] == 0
    assert [clip.path for clip in ShardReader(tmp_path / "shards").clips] == [f"in/{name}" for name in names]
    assert run("decode", tmp_path / "shards", "-o", tmp_path / "again", "--codec", codec)[0] == 0
    # in a shard they have the sounds' own names
    assert tree(tmp_path / "again") == ["in/a.flac.wav", "in/a.ogg.wav", "in/a.ogg.wav.wav", "in/b.wav"]


def test_mistakes_of_encode_are_one_line(tmp_path: Path, codec: str, run: Run) -> None:
    wav = write_sound(tmp_path / "in" / "a.wav", 80)
    (tmp_path / "none").mkdir()
    out = tmp_path / "out"
    cases = [
        ([tmp_path / "missing.wav"], "missing.wav: no such file"),
        ([tmp_path / "none"], "no sound files"),
        ([tmp_path / "missing.jsonl"], "missing.jsonl: cannot be read (No such file"),
        ([wav, wav], "a.wav would both become"),
        ([wav, "--batch-size", "0"], "--batch-size is 0"),
        ([wav, "--shards", "-1"], "--shards is -1"),
        ([wav, "--beam", "0"], "--beam is 0"),
        ([wav, "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
        ([wav, "--device", "gpu"], "device 'gpu' cannot be used"),
        ([wav, "--codec", tmp_path / "none"], "none"),
        ([wav, "--codec", "codec_huge"], "codec_huge"),
    ]
    for arguments, message in cases:
        status, stdout, err = run("encode", "--codec", codec, *arguments, "-o", out)
        assert (status, stdout) == (2, ""), arguments
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    write_sound(tmp_path / "in" / "a.flac", 80)
    status, _, err = run("encode", tmp_path / "in", "-o", tmp_path / "x.agtok", "--codec", codec)
    assert status == 2 and "names one token file, for 2 clips" in err
    status, _, err = run("encode", wav, "-o", wav / "out", "--codec", codec)
    assert status == 2 and err.count("\n") == 1
    assert not out.exists() and tree(tmp_path) == ["in/a.flac", "in/a.wav"]


def test_mistakes_of_decode_are_one_line_and_never_noise(tmp_path: Path, codec: str, run: Run) -> None:
    for name in "ab":
        write_sound(tmp_path / "in" / f"{name}.wav", 800)
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    run("encode", tmp_path / "in", "-o", tokens, "--codec", codec)
    torch.manual_seed(1)
    save_codec(tmp_path / "other", Codec(CONFIG))
    status, _, err = run("decode", tokens, "-o", out, "--codec", tmp_path / "other")
    assert status == 2 and err.count("made by codec tiny") == 2 and "this is other" in err
    assert "2 of 2 clips could not be decoded" in err and not out.exists()
    (tokens / "c.agtok").write_text("not tokens")
    write_sound(tmp_path / "in" / "c.wav", 800)
    status, _, err = run("encode", tmp_path / "in", "-o", tokens, "--codec", codec)
    assert status == 2 and "c.agtok: not a token file" in err and "add --overwrite" in err
    (tokens / "c.agtok").unlink()
    status, _, err = run("decode", tokens, "-o", out)
    assert status == 2 and "made by codec tiny" in err and "give its directory with --codec" in err

    data = (tokens / "a.agtok").read_bytes()
    (tokens / "a.agtok").write_bytes(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
    status, stdout, err = run("decode", tokens, "-o", out, "--codec", codec)
    assert status == 2 and stdout.startswith("decoded 1 clips")
    assert "a.agtok: damaged" in err and tree(out) == ["b.wav"]
    status, _, err = run("decode", tokens / "b.agtok", "-o", out, "--codec", codec)
    assert status == 2 and "b.wav exists" in err and "--overwrite" in err
    assert run("decode", tokens / "b.agtok", "-o", out, "--codec", codec, "--overwrite")[0] == 0
    status, _, err = run("decode", tokens / "a.agtok", "-o", out)
    assert status == 2 and "none of the 1 token files can be read" in err
    for arguments, message in [
        ([tmp_path / "missing"], "no such file"),
        ([tmp_path / "in"], "no token files"),
        ([tokens, "-o", tmp_path / "x.wav"], "names one sound, for 2 clips"),
        ([tokens / "b.agtok", "-o", tmp_path / "x.wav", "--format", "ogg"], "make them agree"),
    ]:
        status, _, err = run("decode", "-o", out / "new", "--codec", codec, *arguments)
        assert status == 2 and message in err and err.count("\n") == 1
    assert tree(out) == ["b.wav"]


def test_what_an_encode_beside_is_writing_is_no_token_file(tmp_path: Path, codec: str, run: Run) -> None:
    tokens = tmp_path / "tokens"
    assert run("encode", write_sound(tmp_path / "a.wav", 800), "-o", tokens, "--codec", codec)[0] == 0
    data = (tokens / "a.agtok").read_bytes()
    (tokens / ".writing-1-b.agtok").write_bytes(data[:40])
    (tokens / ".half").mkdir()
    (tokens / ".half" / "c.agtok").write_bytes(data[:40])
    assert run("decode", tokens, "-o", tmp_path / "out", "--codec", codec)[::2] == (0, "")
    assert tree(tmp_path / "out") == ["a.wav"]


def test_the_codec_is_found_by_the_name_in_the_tokens(
    tmp_path: Path, codec: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sound(tmp_path / "a.wav", 800)
    run("encode", tmp_path / "a.wav", "-o", tmp_path / "a.agtok", "--codec", codec)
    monkeypatch.chdir(Path(codec).parent)
    assert run("decode", tmp_path / "a.agtok", "-o", tmp_path / "b.wav")[0] == 0
    assert audio.info(tmp_path / "b.wav").num_frames == 400


def test_info_describes_codec_tokens_and_shards(tmp_path: Path, codec: str, run: Run) -> None:
    wav = write_sound(tmp_path / "a.wav", 8001)
    identity = load_codec(codec).identity
    run("encode", wav, "-o", tmp_path / "a.agtok", "--codec", codec, "--bandwidth", "1.2")
    run("encode", wav, "-o", tmp_path / "shards", "--codec", codec, "--shards", "5")
    status, out, _ = run("info", codec)
    assert status == 0
    assert f"codec: tiny ({identity})\n" in out and "bandwidths: 0.6, 1.2, 1.8 kbps\n" in out
    assert "frames: 100 a second, of 40 samples\n" in out and "step: 7\n" in out and "recipe" not in out
    status, out, _ = run("info", tmp_path / "a.agtok")
    assert status == 0 and f"codec: tiny ({identity})\n" in out
    assert "length: 4001 samples, 1.000 s, 101 frames\n" in out
    assert "codebooks: 2 of 50 codes, 1.2 kbps\n" in out and "recording: 8001 samples at 8000 Hz\n" in out
    status, _, err = run("info", tmp_path)  # a folder of token files
    assert status == 2 and "holds 1 token files; give one of them, such as" in err and "a.agtok" in err
    status, out, _ = run("info", tmp_path / "shards")
    assert status == 0 and "clips: 1, 0.000 hours, 101 frames\n" in out and "1.8 kbps" in out
    status, _, err = run("info", tmp_path / "missing")
    assert status == 2 and err.count("\n") == 1
    status, _, err = run("info", wav)
    assert status == 2 and "not a token file" in err
