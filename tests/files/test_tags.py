"""Metadata in sound files: foreign readers find it, the samples are as without, the bytes the same each time."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.files import tags as files_tags
from audiogen.files.tags import OggPages, Tags, ogg_comment, wav_comment

SOURCE = "http://example.org/trainedAlgorithmicMedia"
XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
SOUND = torch.sin(torch.arange(12_345) / 7)[None].expand(2, -1) / 2


def made(comment: str = "AI-generated 犬 {}", title: str = "ein Hündchen, 犬 & <Katze>") -> Tags:
    return Tags(title, "audiogen 0.1.0", comment, SOURCE, XMP)


def ffprobe(path: Path) -> dict[str, str]:
    """What ffmpeg says of a file, by lower-case keys, of the file and of its stream."""
    av = pytest.importorskip("av")
    with av.open(str(path)) as file:
        found = {**file.streams.audio[0].metadata, **file.metadata}
    return {key.lower(): text for key, text in found.items()}


@pytest.mark.parametrize("kind", audio.SAVE_FORMATS)
@pytest.mark.parametrize("length", [0, 3, 40_000, 400_000])
def test_a_foreign_reader_finds_the_metadata_and_the_same_samples(
    tmp_path: Path, kind: str, length: int
) -> None:
    path, plain = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    tags = made(comment=f"AI-generated {'x' * length} 犬")
    audio.save(path, SOUND, 16_000, tags=tags)
    audio.save(plain, SOUND, 16_000)
    found = ffprobe(path)
    assert found["title"] == tags.title
    assert found["comment"] == tags.comment
    assert any("audiogen 0.1.0" in text for text in found.values())
    with soundfile.SoundFile(path) as file, soundfile.SoundFile(plain) as other:
        assert file.frames == other.frames and np.array_equal(file.read(), other.read())
    torch.testing.assert_close(audio.load(path)[0], audio.load(plain)[0], rtol=0, atol=0)
    assert audio.info(path) == audio.info(plain)


@pytest.mark.parametrize("kind", audio.SAVE_FORMATS)
def test_a_sound_without_a_title_is_whole(tmp_path: Path, kind: str) -> None:
    path = audio.save(tmp_path / f"a.{kind}", SOUND, 16_000, tags=made(title=""))
    found = ffprobe(path)
    assert "title" not in found and found["comment"] == made().comment
    assert audio.load(path)[0].shape == SOUND.shape


@pytest.mark.parametrize("kind", audio.SAVE_FORMATS)
@pytest.mark.parametrize("blocks", [1, 7])
def test_the_same_sound_is_the_same_bytes(tmp_path: Path, kind: str, blocks: int) -> None:
    """libsndfile gives each Ogg stream another serial number."""
    digests = set()
    for number in range(2):
        pieces = iter(SOUND.chunk(blocks, -1))
        path = audio.save(tmp_path / f"{number}.{kind}", pieces, 16_000, tags=made() if blocks > 1 else None)
        digests.add(path.read_bytes())
    assert len(digests) == 1


def test_opus_has_the_tags_as_well_and_long_ones() -> None:
    for length in (0, 100_000):
        data = io.BytesIO()
        tagged = files_tags.Tagged(data, "ogg", made("AI-generated " + length * "y"))
        with soundfile.SoundFile(tagged, "w", 16_000, 2, subtype="OPUS", format="OGG") as file:
            file.write(SOUND.T.numpy())
        tagged.finish()
        data.seek(0)
        assert ogg_comment(data) == "AI-generated " + length * "y"
        data.seek(0)
        samples, rate = soundfile.read(data, dtype="float32", always_2d=True)
        assert rate == 16_000 and samples.shape == (12_345, 2)
        assert np.abs(samples - SOUND.T.numpy())[2000:-2000].max() < 0.05


def test_the_checksum_is_that_of_libogg(tmp_path: Path) -> None:
    """Pages that libogg wrote carry it: bytes 22 to 26, computed with zero in their place."""
    data = io.BytesIO()
    soundfile.write(data, SOUND.T.numpy(), 16_000, format="OGG", subtype="VORBIS")
    content, place, pages = data.getvalue(), 0, 0
    while place < len(content):
        count = content[place + 26]
        size = 27 + count + sum(content[place + 27 : place + 27 + count])
        page = content[place : place + size]
        assert files_tags.checksum(page[:22] + bytes(4) + page[26:]) == int.from_bytes(page[22:26], "little")
        place, pages = place + size, pages + 1
    assert pages >= 3


def test_pages_are_the_same_however_the_bytes_come() -> None:
    data = io.BytesIO()
    soundfile.write(data, SOUND.T.numpy(), 16_000, format="OGG", subtype="VORBIS")
    content = data.getvalue()
    at_once = b"".join(OggPages(made()).feed(content))
    pages = OggPages(made())
    by_bytes = b"".join(
        page for place in range(len(content)) for page in pages.feed(content[place : place + 1])
    )
    assert at_once == by_bytes and len(at_once) > len(content)


def test_what_other_programs_wrote_is_read(tmp_path: Path) -> None:
    """A comment of sox's in WAV and of ffmpeg's in Ogg."""
    plain = tmp_path / "plain.wav"
    audio.save(plain, SOUND, 16_000)
    with plain.open("rb") as file:
        assert wav_comment(file) is None
    if (sox := shutil.which("sox")) is None or (ffmpeg := shutil.which("ffmpeg")) is None:
        pytest.skip("needs sox and ffmpeg")
    subprocess.run([sox, plain, "--comment", "by sox", tmp_path / "sox.ogg"], check=True)
    with (tmp_path / "sox.ogg").open("rb") as file:
        assert ogg_comment(file) == "by sox"
    words = ["-loglevel", "error", "-i", plain, "-metadata", "comment=by ffmpeg", tmp_path / "ffmpeg.wav"]
    subprocess.run([ffmpeg, *words], check=True)
    with (tmp_path / "ffmpeg.wav").open("rb") as file:
        assert wav_comment(file) == "by ffmpeg"


def test_the_header_of_a_wav_pipe_has_the_metadata_before_the_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = audio.pcm16(SOUND)
    path.write_bytes(audio.wav_header(16_000, 2, SOUND.shape[-1], made()) + data)
    assert ffprobe(path)["comment"] == made().comment
    samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert rate == 16_000 and samples.tobytes() == data
    path.write_bytes(audio.wav_header(16_000, 2, None, made()) + data)
    assert audio.info(path).num_frames == SOUND.shape[-1]


@pytest.mark.parametrize("read", [wav_comment, ogg_comment])
@pytest.mark.parametrize("kind", ["wav", "ogg"])
def test_damaged_metadata_are_no_error(tmp_path: Path, read, kind: str) -> None:
    content = audio.save(tmp_path / f"a.{kind}", SOUND, 16_000, tags=made()).read_bytes()
    generator = np.random.default_rng(0)
    for _ in range(300):
        cut = bytearray(content[: generator.integers(len(content))] if generator.random() < 0.5 else content)
        for place in generator.integers(0, max(1, len(cut)), 20):
            cut[place : place + 1] = bytes([generator.integers(256)])
        found = read(io.BytesIO(bytes(cut)))
        assert found is None or isinstance(found, str)


def test_xmp_and_ixml_are_well_formed(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    content = audio.save(tmp_path / "a.wav", SOUND, 16_000, tags=made()).read_bytes()
    chunks, place = {}, 12
    while place < len(content):
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        chunks[content[place : place + 4]] = content[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    assert place == len(content) == int.from_bytes(content[4:8], "little") + 8
    assert list(chunks) == [b"fmt ", b"data", b"LIST", b"iXML", b"_PMX"]
    assert ElementTree.fromstring(chunks[b"iXML"]).findtext("USER") == made().comment
    assert chunks[b"_PMX"].decode() == XMP
    assert json.loads(made().comment.rpartition(" ")[2]) == {}
