"""Files whose length libsndfile guesses, or that hold several sounds, are read to their end; others as before."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from audiogen import audio
from audiogen.errors import InputError
from audiogen.files import streams

RATE = 22050


def sound(seconds: float = 3.0, seed: int = 0) -> NDArray[np.float32]:
    """Loud noise, then near silence, so that frames of a variable bitrate differ much in size."""
    generator = np.random.default_rng(seed)
    samples = generator.uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    samples[len(samples) // 3 :] *= 1e-3
    return samples


def encoded(
    samples: NDArray[np.float32], format: str, subtype: str, rate: int = RATE, **options: object
) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype, **options)
    return file.getvalue()


def mp3(samples: NDArray[np.float32], tag: bool, **options: object) -> bytes:
    """An MP3 as LAME writes it, with the frame that has its length or, as `lame -t` and sox write it, without."""
    data = encoded(samples, "MP3", "MPEG_LAYER_III", **options)
    position, frame = next(streams.mpeg_frames(data))
    assert streams.tag_at(data, position) is not None
    return data if tag else data[position + frame.size :]


def loaded(path: Path, data: bytes) -> torch.Tensor:
    path.write_bytes(data)
    samples, _ = audio.load(path)
    assert audio.info(path).num_frames == samples.shape[-1]
    return samples


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end(tmp_path: Path, mode: str) -> None:
    with_tag = loaded(tmp_path / "a.mp3", mp3(sound(), True, bitrate_mode=mode))
    without = loaded(tmp_path / "b.mp3", mp3(sound(), False, bitrate_mode=mode))
    # The tag also says how much silence the encoder put before the sound and after it.
    delay = without.shape[-1] - with_tag.shape[-1]
    assert 0 < delay < 4 * 1152
    assert (
        min(
            float((without[:, lead : lead + with_tag.shape[-1]] - with_tag).abs().max())
            for lead in range(delay + 1)
        )
        < 1e-6
    )


@pytest.mark.parametrize("tag", [False, True])
def test_joined_mp3s_are_one_sound(tmp_path: Path, tag: bool) -> None:
    first, second = mp3(sound(seed=1), tag), mp3(sound(seed=2), tag)
    samples = loaded(tmp_path / "a.mp3", first + b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + second)
    frames = sum(
        frame.samples
        for data in (first, second)
        for position, frame in streams.mpeg_frames(data)
        if streams.tag_at(data, position) is None
    )
    assert samples.shape[-1] == frames > 2 * 3 * RATE
    assert samples[0, frames // 2 :][: RATE // 2].abs().max() > 0.4  # the second begins loudly, as the first


def test_parts_of_an_mp3_without_length_are_those_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    whole = loaded(path, mp3(sound(), False, bitrate_mode="VARIABLE"))
    for start_s in (2.9, 0.0, 0.05, 1.0, 2.0, 0.5):
        part, _ = audio.load(path, start_s=start_s, duration_s=0.1)
        start = round(start_s * RATE)
        torch.testing.assert_close(part, whole[:, start : start + part.shape[-1]], atol=1e-6, rtol=0)
    blocks = torch.cat(list(audio.stream(path, block_s=0.25)), 1)
    torch.testing.assert_close(blocks, whole, atol=1e-6, rtol=0)


def test_an_mp3_whose_tag_says_more_than_it_holds_is_truncated(tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(mp3(sound(), True)[:-3000])
    with pytest.raises(InputError, match=r"a\.mp3: truncated or damaged, \d+ of \d+ frames missing"):
        audio.load(tmp_path / "a.mp3")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_chained_ogg_files_are_one_sound(tmp_path: Path, subtype: str) -> None:
    rate = 48000 if subtype == "OPUS" else RATE
    files = [
        encoded(sound(seconds, seed), "OGG", subtype, rate) for seed, seconds in enumerate((2.0, 1.0, 3.0))
    ]
    parts = [loaded(tmp_path / "part.ogg", file) for file in files]
    samples = loaded(tmp_path / "a.ogg", b"".join(files))
    assert torch.equal(samples, torch.cat(parts, 1))
    part, found = audio.load(tmp_path / "a.ogg", start_s=1.9, duration_s=1.2)  # from the first into the third
    assert found == rate
    assert torch.equal(part, samples[:, round(1.9 * found) :][:, : part.shape[-1]])


def test_ogg_files_of_two_kinds_in_one_are_refused(tmp_path: Path) -> None:
    other = io.BytesIO()
    soundfile.write(other, sound(), 16000, format="OGG", subtype="VORBIS")
    (tmp_path / "a.ogg").write_bytes(encoded(sound(), "OGG", "VORBIS") + other.getvalue())
    with pytest.raises(
        InputError, match="a.ogg: sounds of several kinds joined, 16000 Hz with 1 channels and 22050 Hz"
    ):
        audio.load(tmp_path / "a.ogg")


def test_a_flac_stream_of_unknown_length_is_read(tmp_path: Path) -> None:
    sized = encoded(sound(), "FLAC", "PCM_16")
    unknown = bytearray(sized)
    unknown[21] &= 0xF0
    unknown[22:26] = bytes(4)
    expected = loaded(tmp_path / "a.flac", sized)
    assert torch.equal(loaded(tmp_path / "b.flac", bytes(unknown)), expected)
    part, _ = audio.load(tmp_path / "b.flac", start_s=2.0, duration_s=0.5)
    assert torch.equal(part, expected[:, 2 * RATE :][:, : part.shape[-1]])


def av_encoded(path: Path, codec: str, samples: NDArray[np.float32], rate: int = 44100) -> None:
    av = pytest.importorskip("av", reason="the package av is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = 128_000
        wanted = stream.codec_context.format.name
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.rate = rate
        resampler = av.AudioResampler(
            format=wanted, rate=rate, frame_size=stream.codec_context.frame_size or None
        )
        for each in [*resampler.resample(frame), *resampler.resample(None), None]:
            container.mux([packet for packet in stream.encode(each) if packet.size])


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.m4a", "aac"),
        ("b.m4a", "alac"),
        ("a.wma", "wmav2"),
        ("a.webm", "libopus"),
        ("a.mp2", "mp2"),
        ("a.ogg", "flac"),
    ],
)
def test_what_libsndfile_does_not_read_is_decoded_by_av(tmp_path: Path, name: str, codec: str) -> None:
    rate = 48000 if codec == "libopus" else 44100
    samples = (0.5 * np.sin(2 * np.pi * 440 / rate * np.arange(2 * rate))).astype(np.float32)
    av_encoded(tmp_path / name, codec, samples, rate)
    found, found_rate = audio.load(tmp_path / name)
    assert found_rate == rate and abs(found.shape[-1] / rate - 2) < 0.1
    middle = found[0, rate // 2 : rate // 2 + rate].double()
    spectrum = torch.fft.rfft(middle).abs()
    assert int(spectrum.argmax()) == 440 and 0.4 < float(middle.abs().max()) < 0.6
    part, _ = audio.load(tmp_path / name, start_s=0.5, duration_s=0.25)
    torch.testing.assert_close(part[0].double(), middle[: rate // 4], atol=1e-6, rtol=0)


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "secret.wav", sound(), RATE)
    for text in ("#EXTM3U\n#EXTINF:1,\nsecret.wav\n", "ffconcat version 1.0\nfile secret.wav\n"):
        (tmp_path / "list.m3u8").write_text(text)
        with pytest.raises(InputError, match="list.m3u8: not a sound file that can be read"):
            audio.load(tmp_path / "list.m3u8")


def test_without_av_the_refusal_says_what_would_read_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x1cftypM4A " + bytes(200))
    with pytest.raises(InputError, match=r"a.m4a: not a sound file .*\.\[av\]' in the checkout"):
        audio.load(tmp_path / "a.m4a")


def test_frames_of_every_kind_are_measured(tmp_path: Path) -> None:
    """The header's fields against the sizes that the standard's formula gives, computed by hand."""
    for head, size, samples in [
        (b"\xff\xfb\x90\x00", 417, 1152),  # MPEG 1 layer III, 128 kbit/s, 44.1 kHz: 144 * 128000 / 44100
        (b"\xff\xfb\x92\x00", 418, 1152),  # padded
        (b"\xff\xf3\x80\x00", 208, 576),  # MPEG 2 layer III, 64 kbit/s, 22.05 kHz: 72 * 64000 / 22050
        (b"\xff\xe3\x18\x00", 72, 576),  # MPEG 2.5, 8 kbit/s, 8 kHz
        (b"\xff\xfd\x84\x00", 384, 1152),  # MPEG 1 layer II, 128 kbit/s, 48 kHz
        (b"\xff\xff\xc4\x00", 384, 384),  # MPEG 1 layer I, 384 kbit/s, 48 kHz: 4 * (12 * 384000 / 48000)
    ]:
        frame = streams.frame_at(head, 0)
        assert frame is not None and (frame.size, frame.samples) == (size, samples)
    for head in (
        b"\xff\xfb\x00\x00",
        b"\xff\xfb\xf0\x00",
        b"\xff\xfb\x9c\x00",
        b"\xff\xeb\x90\x00",
        b"\xff\xf9\x90\x00",
    ):
        assert streams.frame_at(head, 0) is None


def test_a_format_that_cannot_seek_is_read_from_any_place(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    whole = loaded(path, encoded(sound(1.0), "WAV", "GSM610", 8000))
    for start in (4000, 100, 7000):
        part, _ = audio.load(path, start_s=start / 8000, duration_s=0.1)
        assert torch.equal(part, whole[:, start : start + 800])


def test_a_forged_length_is_refused_before_memory_is_taken_for_it(tmp_path: Path) -> None:
    data = bytearray(encoded(sound(0.1), "FLAC", "PCM_16"))
    data[22:26] = (900_000_000).to_bytes(4, "big")
    (tmp_path / "a.flac").write_bytes(data)
    with pytest.raises(
        InputError, match=r"damaged, \d+ bytes do not hold the 900000000 frames of its header"
    ):
        audio.info(tmp_path / "a.flac")


@pytest.mark.parametrize(
    ("value", "kind"), [(1e38, "beyond any sound"), (np.nan, "not finite"), (-np.inf, "not finite")]
)
def test_samples_beyond_any_sound_are_refused(tmp_path: Path, value: float, kind: str) -> None:
    samples = sound(0.1)
    samples[7] = value
    (tmp_path / "a.wav").write_bytes(encoded(samples, "WAV", "FLOAT"))
    with pytest.raises(InputError, match=f"holds samples .*{kind}"):
        audio.load(tmp_path / "a.wav", 16000)


def test_an_ogg_file_without_a_beginning_is_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(sound(), "OGG", "VORBIS"))
    data[5] = 0  # a page that begins no stream
    (tmp_path / "a.ogg").write_bytes(data)
    with pytest.raises(InputError, match="a.ogg: not a sound file that can be read"):
        audio.info(tmp_path / "a.ogg")
