"""Sounds in and out of files: exact parts of files, honest lengths, and a clear refusal of every broken file."""

import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from audiogen import audio, errors
from audiogen.errors import InputError
from audiogen.files.writing import StorageError


def noise(channels: int, num: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(channels, num, generator=torch.Generator().manual_seed(seed))


def sine(frequency: float, sample_rate: int, duration_s: float) -> Tensor:
    time = torch.arange(round(duration_s * sample_rate), dtype=torch.float64) / sample_rate
    return torch.sin(2 * math.pi * frequency * time).float()[None]


def write(path: Path, sound: Tensor, sample_rate: int, **options: str) -> Path:
    soundfile.write(path, sound.T.numpy(), sample_rate, **options)
    return path


# ------------------------------------------------------------------------------------------------ parts of files


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("file_rate", "rate"), [(44100, 16000), (16000, 44100), (32000, 32000)])
def test_any_part_of_a_file_equals_that_part_of_the_whole(
    tmp_path: Path, suffix: str, file_rate: int, rate: int
) -> None:
    path = write(tmp_path / f"x.{suffix}", noise(2, 3 * file_rate + 123), file_rate)
    whole, got_rate = audio.load(path, rate)
    assert got_rate == rate and whole.shape == (2, math.ceil((3 * file_rate + 123) * rate / file_rate))
    tolerance = 1e-6 if suffix == "mp3" else 0.0
    for start, num in [(0, 10), (1, rate), (777, 2 * rate), (2 * rate + 1, rate), (whole.shape[1] - 5, 99)]:
        part, _ = audio.load(path, rate, start_s=start / rate, duration_s=num / rate)
        torch.testing.assert_close(part, whole[:, start : start + num], rtol=0, atol=tolerance)
    for block_s in (0.31, 1.0, 10.0):
        joined = torch.cat(list(audio.stream(path, rate, block_s=block_s)), dim=1)
        assert torch.equal(joined, whole)


def test_seeking_in_vorbis_is_exact_to_the_last_sample(tmp_path: Path) -> None:
    """libsndfile alone fails this at the end of the file (its issue 885)."""
    rate = 44100
    path = audio.save(tmp_path / "long.ogg", noise(1, 30 * rate + 77), rate)
    whole, _ = audio.load(path)
    for back in (1, 100, 2000, 10_000, 40_000, 100_000, 300_000, 900_000):
        start = whole.shape[1] - back
        part, _ = audio.load(path, start_s=start / rate, duration_s=0.1)
        assert torch.equal(part, whole[:, start : start + rate // 10]), back


def test_a_part_reads_only_its_own_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.wav", noise(1, 60 * 16000), 16000)
    frames = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, count: int, **options: object) -> np.ndarray:
        frames.append(count)
        return read(self, count, **options)

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    audio.load(path, 8000, start_s=30, duration_s=1.0)
    assert sum(frames) < 3 * 16000


def test_parts_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", noise(1, 16000), 16000)
    assert audio.load(path, start_s=0.75, duration_s=9)[0].shape == (1, 4000)  # over the end: what is there
    for start_s, duration_s in [(1.0, None), (5.0, 1.0), (-0.1, 0.5), (0.0, 0.0), (0.0, -1.0)]:
        with pytest.raises(InputError, match=r"x\.wav: a part.* is not in a file of 1 s"):
            audio.load(path, start_s=start_s, duration_s=duration_s)


def test_info_agrees_with_what_is_decoded(tmp_path: Path) -> None:
    path = write(tmp_path / "x.flac", noise(3, 4410), 44100)
    header = audio.info(path)
    assert header == (44100, 3, 4410, 0.1)
    assert audio.load(path)[0].shape == (3, 4410)


# -------------------------------------------------------------------------------------------------- bad and odd files


def test_files_that_are_no_sound_are_refused_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = write(tmp_path / "good.wav", noise(1, 44100), 44100).read_bytes()
    for name, content, reason in [
        ("empty.wav", b"", "the file is empty"),
        ("head.wav", good[:30], "not a sound file"),
        ("text.wav", b"no sound at all\n" * 99, "not a sound file"),
        ("text.mp3", b"no sound at all\n" * 99, "not a sound file"),
        ("random.ogg", rng.bytes(50_000), "not a sound file"),
        ("headless.raw", rng.bytes(50_000), "not a sound file"),
        ("none.wav", None, "cannot be opened: No such file"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        for read in (audio.info, audio.load, lambda p: list(audio.stream(p))):
            with pytest.raises(InputError, match=reason) as caught:
                read(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be opened: Is a directory"):
        audio.load(tmp_path)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "flac", "ogg", "opus", "mp3"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    options = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
    whole = write(tmp_path / f"whole.{suffix}", noise(1, 3 * 48000), 48000, **options)
    content = whole.read_bytes()
    for keep in (0.3, 0.6, 0.97):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(keep * len(content))])
        with pytest.raises(InputError, match="truncated|damaged"):
            audio.load(path, 16000)
    assert audio.load(whole)[0].shape == (1, 3 * 48000)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_damage_inside_is_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"x.{suffix}", noise(1, 3 * 44100), 44100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match="damaged"):
        audio.load(path)


@pytest.mark.parametrize("length", [0, 0xFFFFFFFF, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_is_no_truncated_wav(tmp_path: Path, length: int) -> None:
    """Recorders that cannot seek leave a placeholder where the length belongs."""
    path = write(tmp_path / "x.wav", noise(1, 5000), 16000)
    content = bytearray(path.read_bytes())
    assert content[36:40] == b"data"
    content[40:44] = length.to_bytes(4, "little")
    path.write_bytes(bytes(content))
    if length:
        assert audio.load(path)[0].shape == (1, 5000)
    else:
        with pytest.raises(InputError, match="no samples"):
            audio.load(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    sound = noise(2, 9000)
    sound[1, 8000] = value
    path = write(tmp_path / "x.wav", sound, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not finite"):
        audio.load(path, 8000, 1)
    assert audio.load(path, duration_s=0.4)[0].shape == (2, 6400)  # the part before it is whole


def test_limits_of_rate_channels_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="holds no samples"):
        audio.load(write(tmp_path / "zero.wav", noise(1, 0), 16000))
    with pytest.raises(InputError, match="sample rate 999 Hz, allowed are 1000 to 768000"):
        audio.load(write(tmp_path / "slow.wav", noise(1, 99), 999))
    with pytest.raises(InputError, match="65 channels, allowed are 1 to 64"):
        audio.load(write(tmp_path / "wide.wav", noise(65, 99), 16000))
    monkeypatch.setattr(audio, "MAX_LOAD_SAMPLES", 1000)
    path = write(tmp_path / "long.wav", noise(1, 2000), 1000)
    with pytest.raises(InputError, match="2 s are too much to load at once"):
        audio.load(path)
    assert audio.load(path, duration_s=0.5)[0].shape == (1, 500)


def test_odd_files_load(tmp_path: Path) -> None:
    one = write(tmp_path / "one.wav", torch.tensor([[0.5]]), 192000)
    assert audio.load(one, 16000)[0].shape == (1, 1)  # never zero samples
    eight = write(tmp_path / "eight.wav", noise(8, 4000), 16000, subtype="FLOAT")
    torch.testing.assert_close(audio.load(eight, channels=1)[0], noise(8, 4000).mean(0, keepdim=True))
    coarse = write(tmp_path / "coarse.wav", noise(1, 4000), 16000, subtype="PCM_U8")
    torch.testing.assert_close(audio.load(coarse)[0], noise(1, 4000), rtol=0, atol=1 / 128)
    fast = write(tmp_path / "fast.wav", noise(1, 192000), 192000)
    assert audio.load(fast, 16000)[0].shape == (1, 16000)
    misnamed = tmp_path / "really_flac.wav"
    misnamed.write_bytes(write(tmp_path / "x.flac", noise(1, 4000), 16000).read_bytes())
    torch.testing.assert_close(audio.load(misnamed)[0], noise(1, 4000), rtol=0, atol=1 / 32767)


# -------------------------------------------------------------------------------------------------- rate and channels


@pytest.mark.parametrize(
    ("from_rate", "to_rate"), [(44100, 16000), (16000, 44100), (48000, 16000), (22050, 22051)]
)
def test_resampling_keeps_a_tone_and_leaves_no_seams(from_rate: int, to_rate: int) -> None:
    duration_s = 2.0
    result = audio.resample(sine(1000, from_rate, duration_s), from_rate, to_rate)
    wanted = sine(1000, to_rate, duration_s)
    inner = slice(to_rate // 20, -to_rate // 20)  # the ends ring: the tone begins and stops at once
    torch.testing.assert_close(result[:, inner], wanted[:, inner], rtol=0, atol=2e-5)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    result = audio.resample(sine(10_000, 44100, 1.0), 44100, 16000)
    assert result[:, 800:-800].abs().max() < 1e-5


def test_resampling_shapes_and_limits() -> None:
    sound = noise(6, 4410).reshape(2, 3, 4410)
    result = audio.resample(sound, 44100, 16000)
    assert result.shape == (2, 3, 1600)
    assert torch.equal(result[1, 2], audio.resample(sound[1, 2], 44100, 16000))  # rows do not mix
    assert audio.resample(sound, 16000, 16000) is sound
    assert audio.resample(torch.zeros(1, 0), 44100, 16000).shape == (1, 0)
    with pytest.raises(InputError, match="sample rate 10 Hz"):
        audio.resample(sound, 44100, 10)


def test_channels() -> None:
    sound = noise(2, 7)
    torch.testing.assert_close(audio.convert_channels(sound, 1), (sound[:1] + sound[1:]) / 2)
    stereo = audio.convert_channels(sound[:1], 2)
    assert torch.equal(stereo[0], sound[0]) and torch.equal(stereo[1], sound[0])
    assert audio.convert_channels(sound, 2) is sound
    with pytest.raises(InputError, match="8 channels cannot be made 2"):
        audio.convert_channels(noise(8, 7), 2)


def test_a_file_with_other_channels_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", noise(3, 700), 8000)
    for read in (lambda: audio.load(path, channels=2), lambda: list(audio.stream(path, channels=2))):
        with pytest.raises(InputError, match=r"x\.wav: 3 channels cannot be made 2"):
            read()


# -------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize(("suffix", "error"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.1), ("mp3", 0.1)])
def test_what_is_saved_loads(tmp_path: Path, suffix: str, error: float) -> None:
    sound = torch.cat([0.5 * sine(440, 16000, 1.3), 0.4 * sine(660, 16000, 1.3)])
    path = audio.save(tmp_path / "new" / f"x.{suffix}", sound, 16000)
    loaded, rate = audio.load(path)
    assert rate == 16000
    torch.testing.assert_close(loaded, sound, rtol=0, atol=error)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_blocks_make_the_same_file(tmp_path: Path) -> None:
    sound = noise(2, 200_000)
    one = audio.save(tmp_path / "one.flac", sound, 16000)
    blocks = audio.save(tmp_path / "blocks.flac", iter(sound.split(33_333, dim=1)), 16000)
    assert torch.equal(audio.load(one)[0], audio.load(blocks)[0])


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    path = audio.save(tmp_path / "sound.FLAC", noise(1, 100), 16000)
    assert (soundfile.info(path).format, soundfile.info(path).subtype) == ("FLAC", "PCM_16")
    with pytest.raises(InputError, match="format 'xyz', allowed are wav, flac, ogg, mp3"):
        audio.save(tmp_path / "sound.xyz", noise(1, 100), 16000)


def test_over_range_is_clipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = audio.save(tmp_path / "x.wav", torch.tensor([[0.5, 1.5, -3.0, 1.0]]), 16000)
    torch.testing.assert_close(audio.load(path)[0], torch.tensor([[0.5, 1.0, -1.0, 1.0]]), rtol=0, atol=1e-4)
    assert "2 of 4 samples beyond full scale were clipped" in caplog.text


def test_a_refused_sound_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = audio.save(tmp_path / "x.wav", noise(1, 100), 16000)
    before = path.read_bytes()
    bad = noise(1, 100)
    bad[0, 50] = math.nan
    for sound, rate, reason in [
        (bad, 16000, "not finite"),
        ((block for block in (noise(1, 100), bad)), 16000, "not finite"),
        (noise(1, 0), 16000, r"shape \[1, 0\]"),
        (noise(1, 100)[0], 16000, r"shape \[100\]"),
        ([], 16000, "nothing"),
    ]:
        with pytest.raises(InputError, match=reason):
            audio.save(path, sound, rate)
    with pytest.raises(InputError, match="3 channels at 16000 Hz cannot be written as mp3"):
        audio.save(tmp_path / "x.mp3", noise(3, 100), 16000)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StorageError, match="x.wav cannot be written: No space left"):
        audio.save(path, noise(1, 200), 16000)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.wav"]


def no_space(descriptor: int) -> None:
    raise OSError("No space left on device")


# ------------------------------------------------------------------------------------------------ mel, pictures


def test_a_signal_while_the_encoder_calls_us_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seek = audio._Sink.seek

    def interrupted(sink: audio._Sink, *place: int) -> int:
        monkeypatch.setattr(audio._Sink, "seek", seek)  # the first time only
        os.kill(os.getpid(), signal.SIGTERM)
        return seek(sink, *place)

    def main(argv: Sequence[str] | None) -> None:
        audio.save(tmp_path / "a.wav", torch.zeros(1, 99), 16_000)

    monkeypatch.setattr(audio._Sink, "seek", interrupted)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        assert errors.run_command(main) == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert not list(tmp_path.iterdir())
    audio.save(tmp_path / "b.wav", torch.zeros(1, 99), 16_000)  # comes after the command: not interrupted
