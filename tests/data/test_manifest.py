"""Manifests and folders: what is read is what was meant, and every bad line or file is named."""

import json
import logging
import os
import threading
import unicodedata
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.data.__main__ import main
from audiogen.data.manifest import (
    Clip,
    caption_from_names,
    group_of,
    held_out,
    order_of,
    read_manifest,
    scan_folder,
    select,
    sound_files,
    write_manifest,
)
from audiogen.errors import InputError, run_command


def sound(path: Path, num: int = 800, sample_rate: int = 8000) -> Path:
    return audio.save(path, 0.1 * torch.ones(1, num), sample_rate)


def lines(path: Path, *rows: object) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def split(groups: list[str], share: float) -> list[bool]:
    return held_out([order_of(group) for group in groups], share).tolist()


# -------------------------------------------------------------------------------------------------- manifests


def test_jsonl(tmp_path: Path) -> None:
    for name in ("a.wav", "sub/b.wav"):
        sound(tmp_path / name)
    path = lines(
        tmp_path / "m.jsonl",
        {
            "audio": "a.wav",
            "captions": ["A dog barks", " A dog barks ", "", "Bark 🐕"],
            "fold": 1,
            "source": "x",
        },
        "",
        {"audio": "a.wav", "caption": "later", "start": 0.05, "duration": "0.02"},
        {"path": "sub/b.wav", "start": None, "duration": None},
    )
    first, second, third = read_manifest(path)
    assert first == Clip(
        str(tmp_path / "a.wav"), ("A dog barks", "Bark 🐕"), fields={"fold": 1, "source": "x"}
    )
    assert (second.captions, second.start_s, second.duration_s) == (("later",), 0.05, 0.02)
    assert (third.path, third.captions, third.duration_s) == (str(tmp_path / "sub/b.wav"), (), None)
    assert second.key.endswith("a.wav@0.05s") and first.key == first.path


def test_csv(tmp_path: Path) -> None:
    for name in ("a.wav", "b, c.wav"):
        sound(tmp_path / name)
    path = tmp_path / "m.csv"
    path.write_text(
        '\ufeffaudio,Caption,start,label\r\na.wav,"Rain, then ""thunder""\nfar off",,wet\r\n'
        '"b, c.wav",A bell,0.01,\r\na.wav,Rain falls,,wet\r\n',
        encoding="utf-8",
    )
    first, second = read_manifest(path)
    assert first.captions == (
        'Rain, then "thunder"\nfar off',
        "Rain falls",
    )  # rows of one clip are its wordings
    assert first.fields == {"label": "wet"}
    assert (second.path, second.captions, second.start_s) == (str(tmp_path / "b, c.wav"), ("A bell",), 0.01)


def test_write_then_read_gives_the_same_clips(tmp_path: Path) -> None:
    sound(tmp_path / "sounds" / "ä b.wav")
    clips = [
        Clip(str(tmp_path / "sounds" / "ä b.wav"), ("Ein Hund bellt",), 0.0, 0.1, {"fold": 3, "tags": ["a"]}),
        Clip(str(tmp_path / "sounds" / "ä b.wav"), (), 0.02, None),
    ]
    path = write_manifest(tmp_path / "lists" / "m.jsonl", clips)
    assert json.loads(path.read_text().splitlines()[0])["audio"] == "../sounds/ä b.wav"
    again = read_manifest(path)
    assert [Path(clip.path).resolve() for clip in again] == [Path(clip.path).resolve() for clip in clips]
    assert [clip.captions for clip in again] == [clip.captions for clip in clips]
    assert [clip.place[1:] + (clip.fields,) for clip in again] == [
        (0.0, 0.1, {"fold": 3, "tags": ["a"]}),
        (0.02, None, {}),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"audio": "a.wav"', "is not JSON"),
        ("a.wav,A dog", "is not JSON"),
        ("[1, 2]", "is list, expected an object"),
        ({"caption": "no file"}, "has no key audio"),
        ({"audio": 7}, "has no key audio"),
        ({"audio": "gone.wav"}, r"names .*gone\.wav, which is not a file"),
        ({"audio": "."}, "which is not a file"),
        ({"audio": "a.wav", "caption": "again"}, "repeats the clip of line 1"),
        ({"audio": "b.wav", "captions": {"en": "x"}}, "has captions"),
        ({"audio": "b.wav", "captions": ["x", 3]}, "has captions"),
        ({"audio": "b.wav", "start": -1}, "has start -1, expected a number of seconds"),
        ({"audio": "b.wav", "start": "soon"}, "has start 'soon'"),
        ({"audio": "b.wav", "duration": 0}, "has duration 0, expected a positive"),
        ('{"audio": "b.wav", "duration": NaN}', "has duration nan"),
        ({"audio": "b.wav", "duration": True}, "has duration True"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, reason: str) -> None:
    for name in ("a.wav", "b.wav"):
        sound(tmp_path / name)
    path = lines(tmp_path / "m.jsonl", {"audio": "a.wav", "caption": "first"}, "", row)
    with pytest.raises(InputError, match=rf"m\.jsonl line 3: .*{reason}") as caught:
        read_manifest(path)
    assert "\n" not in str(caught.value)


def test_the_first_bad_line_is_named_and_the_others_counted(tmp_path: Path) -> None:
    sound(tmp_path / "a.wav")
    path = lines(tmp_path / "m.jsonl", {"audio": "x.wav"}, {"audio": "a.wav"}, "broken", {"audio": "y.wav"})
    with pytest.raises(InputError, match=r"line 1: .*x\.wav.*\(2 more lines are bad\)"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("file,text\na.wav,x\n", "line 1: columns file, text; expected one of audio"),
        ("audio,caption\na.wav,rain, wind\n", "line 2: has not 2 columns; quote texts that hold commas"),
        ("audio,caption\na.wav\n", "line 2: has not 2 columns"),
        ("audio,caption\na.wav,x\na.wav,x\n", "line 3: repeats the clip of line 2"),
        ('audio,caption\na.wav,"never closed\n', "is not CSV"),
        ("audio,caption\n", "lists no clips"),
        ("", "line 1: columns none"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, reason: str) -> None:
    sound(tmp_path / "a.wav")
    path = tmp_path / "m.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=reason):
        read_manifest(path)


def test_what_is_no_manifest(tmp_path: Path) -> None:
    for name, content, reason in [
        ("m.txt", b"a.wav", "ends in .jsonl or .csv"),
        ("m.jsonl", b"\xff\xfe\x00broken", r"cannot be read \(not UTF-8 text"),
        ("empty.jsonl", b"\n\n", "lists no clips"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=reason):
            read_manifest(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        read_manifest(tmp_path / "gone.jsonl")


# -------------------------------------------------------------------------------------------------- selection


def test_select() -> None:
    clips = [Clip(f"{i}.wav", fields={"fold": i % 3, "kind": "ab"[i % 2]} if i else {}) for i in range(7)]
    assert [clip.path for clip in select(clips, {"fold": [1, 2], "kind": ["a"]})] == ["2.wav", "4.wav"]
    assert select(clips, {"fold": ("1",)}) == select(
        clips, {"fold": (1,)}
    )  # YAML and CSV spell numbers as they like
    assert select(clips, {}) == clips
    for where, reason in [
        ({"fold": [9]}, "where.fold: no clip has the value '9'; there are 0, 1, 2"),
        ({"form": [1]}, "where.form: no clip has this field; the manifest has fold, kind"),
        ({"fold": [0], "kind": ["a", "b"]}, None),
    ]:
        if reason:
            with pytest.raises(InputError, match=reason):
                select(clips, where)
        else:
            assert [clip.path for clip in select(clips, where)] == ["3.wav", "6.wav"]
    with pytest.raises(InputError, match="no clip fulfils all"):
        select([Clip("a", fields={"x": 1, "y": 1}), Clip("b", fields={"x": 2, "y": 2})], {"x": [1], "y": [2]})


def test_recordings_stay_on_one_side_of_the_split() -> None:
    groups = [f"recording {i // 3}" for i in range(300)]
    out = split(groups, 0.1)
    assert 30 <= sum(out) < 36
    assert all(len(set(out[i : i + 3])) == 1 for i in range(0, 300, 3))
    backwards = split(groups[::-1], 0.1)
    assert backwards[::-1] == out
    more = split(groups + ["another"] * 3, 0.1)  # a corpus that grows keeps nearly all of its split
    assert sum(a != b for a, b in zip(out, more, strict=False)) <= 3


def test_the_split_is_never_empty_nor_everything() -> None:
    assert split(["a", "b", "c"], 0.0) == [False] * 3
    assert sum(split(["a", "b", "c"], 0.01)) == 1
    assert sum(split(["a", "b", "c"], 0.99)) == 2
    assert split(["a", "a"], 0.5) == [False, False]
    assert split([], 0.5) == []


def test_few_clips_are_held_out_by_number_and_leave_enough_to_train_on() -> None:
    for count, expected in [
        (1, 0),
        (2, 1),
        (3, 1),
        (4, 1),
        (8, 2),
        (12, 3),
        (16, 4),
        (30, 4),
        (40, 4),
        (60, 6),
    ]:
        assert sum(split([f"recording {n}" for n in range(count)], 0.1)) == expected, count
        assert sum(split([f"recording {n}" for n in range(count)], 0.02)) == min(expected, 4), count


@pytest.mark.parametrize("large", [f"recording {n}" for n in range(10)])
def test_a_recording_of_most_clips_is_trained_on(large: str) -> None:
    small = [f"small {n}" for n in range(8)]
    out = split([large] * 22 + small, 0.1)
    assert sum(out[:22]) == 0 and sum(out[22:]) == 4
    assert split([large] * 29 + ["small"], 0.1) == [False] * 29 + [True]
    assert sum(split([large] * 15 + ["other"] * 15, 0.1)) == 15
    assert split([large] * 30, 0.1) == [False] * 30


def test_a_group_is_the_recording_or_the_file_wherever_it_lies() -> None:
    assert group_of(Clip("/x/audio/1-A.ogg", fields={"source": "http://s/1"})) == "http://s/1"
    assert group_of(Clip("/x/audio/1-A.ogg")) == group_of(Clip("../y/audio/1-A.ogg", start_s=3.0))
    assert group_of(Clip("/x/dog/1.ogg")) != group_of(Clip("/x/cat/1.ogg"))


# -------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    ("path", "caption"),
    [
        ("dog_bark/small-puppy_03.wav", "dog bark, small puppy"),
        ("dog_bark/001.wav", "dog bark"),
        ("dog_bark/Dog_bark_2.wav", "dog bark"),
        ("dog/a dog barks.wav", "a dog barks"),
        ("audio/1-100032-A.ogg", ""),
        ("HeavyRainOnRoof.flac", "heavy rain on roof"),
        ("sounds/Pluie d'été (2).wav", "pluie été"),
        ("x/8f3c9a7be.wav", ""),
        ("wav/IMG_0042.wav", ""),
        ("dogs/Track 01.wav", "dogs"),
        ("test/dog test recording.wav", "dog test recording"),
    ],
)
def test_captions_from_names(path: str, caption: str) -> None:
    assert caption_from_names(Path(path)) == caption


def test_scan_finds_sounds_captions_and_bad_files(tmp_path: Path) -> None:
    sound(tmp_path / "rain" / "1.wav", 4000)
    sound(tmp_path / "bell.flac", 800)
    (tmp_path / "bell.txt").write_text("A bell rings\n\nA bell rings\nRinging of a bell\n")
    sound(tmp_path / "horn.ogg", 800)
    (tmp_path / "horn.json").write_text('{"description": "A horn", "label": "horn", "duration": 9}')
    sound(tmp_path / "list.wav", 800)
    (tmp_path / "list.json").write_text('["One", "Two"]')
    sound(tmp_path / "odd.wav", 800)
    (tmp_path / "odd.json").write_text("{broken")
    sound(tmp_path / "null.wav", 800)
    (tmp_path / "null.json").write_text("null")
    (tmp_path / "text.mp3").write_text("no sound")
    (tmp_path / "notes.md").write_text("not looked at")
    sound(tmp_path / ".hidden" / "x.wav")
    whole = sound(tmp_path / "whole.flac", 80_000).read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    callers: list[threading.Thread] = []  # one of a progress bar, which is not for several threads
    clips, bad = scan_folder(tmp_path, progress=lambda: callers.append(threading.current_thread()))
    assert callers == [threading.main_thread()] * (len(clips) + len(bad))
    found = {Path(clip.path).relative_to(tmp_path).as_posix(): clip for clip in clips}
    assert list(found) == ["bell.flac", "horn.ogg", "list.wav", "rain/1.wav", "whole.flac"]
    assert found["bell.flac"].captions == ("A bell rings", "Ringing of a bell")
    assert found["horn.ogg"].captions == ("A horn",) and found["horn.ogg"].fields == {"label": "horn"}
    assert found["list.wav"].captions == ("One", "Two")
    assert found["rain/1.wav"].captions == ("rain",) and found["rain/1.wav"].duration_s == 0.5
    reasons = {Path(path).name: reason for path, reason in bad}
    assert set(reasons) == {"odd.wav", "null.wav", "text.mp3", "cut.flac"}
    assert "its sidecar cannot be read" in reasons["odd.wav"]
    assert reasons["null.wav"] == "its sidecar null.json holds no caption"
    assert reasons["text.mp3"].startswith("not a sound file")
    assert "damaged" in reasons["cut.flac"]


def test_folders_without_sounds(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        sound_files(tmp_path / "gone")
    with pytest.raises(InputError, match="no sound files in it"):
        sound_files(tmp_path)


def test_scan_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    sound(tmp_path / "rain" / "1.wav", 8000)
    (tmp_path / "bad.wav").write_text("")
    assert run_command(main, ["scan", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "1 clips, 0.00 h; 1 bad files, 0 clips without a caption, 1 captions made from file names\n" in out
    assert f"left out: {tmp_path}/bad.wav: the file is empty" in err
    [clip] = read_manifest(tmp_path / "manifest.jsonl")
    assert clip.captions == ("rain",) and clip.duration_s == 1.0

    before = (tmp_path / "manifest.jsonl").read_bytes()
    assert run_command(main, ["scan", str(tmp_path)]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    (tmp_path / "rain" / "1.txt").write_text("rain falls\n")
    assert run_command(main, ["scan", str(tmp_path), "-o", str(tmp_path / "other.jsonl")]) == 0
    assert "0 clips without a caption\n" in capsys.readouterr().out
    assert run_command(main, ["scan", str(tmp_path), "-o", str(tmp_path / "m.txt")]) == 2
    (tmp_path / "rain" / "1.wav").unlink()
    assert run_command(main, ["scan", str(tmp_path), "--overwrite"]) == 2
    assert "none of its 1 sound files can be read; nothing was written" in capsys.readouterr().err
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_the_recordings_manifest(shared: Path) -> None:
    clips = read_manifest(shared / "data" / "esc10" / "manifest.jsonl")
    assert len(clips) == 320
    assert len(select(clips, {"fold": (1, 2, 3), "license": ("CC0", "CC-BY")})) == 238
    assert all(len(clip.captions) >= 3 for clip in clips)


@pytest.mark.parametrize("written, stored", [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_manifest_of_another_system_finds_names_with_accents(
    tmp_path: Path, written: str, stored: str
) -> None:
    name = unicodedata.normalize("NFC", "crème/brûlée.wav")
    path = tmp_path / unicodedata.normalize(stored, name)
    path.parent.mkdir()
    path.touch()
    row = {"audio": unicodedata.normalize(written, name), "caption": unicodedata.normalize(written, "brûlée")}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (clip,) = read_manifest(tmp_path / "m.jsonl")
    assert os.path.samefile(clip.path, path)
    assert clip.captions == ("br\u00fbl\u00e9e",)
    assert group_of(clip) == name  # the split does not depend on the system


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"audio": "a.wav", "caption": "a \udcff dog"}, "which is no text"),
        ({"audio": "a.wav", "captions": ["rain", "a\0dog"]}, "which is no text"),
        ({"audio": "a.wav", "caption": "x" * 1_000_000}, "1000000 characters"),
        ({"audio": "a\0.wav"}, "which no file can be called"),
        ({"audio": "\ud800.wav"}, "which is not a file"),
    ],
)
def test_captions_and_names_that_are_no_text_are_one_line(
    tmp_path: Path, row: dict[str, object], reason: str
) -> None:
    (tmp_path / "a.wav").touch()
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"line 1: .*{reason}") as caught:
        read_manifest(tmp_path / "m.jsonl")
    assert len(str(caught.value)) < 300


def test_scan_leaves_out_a_name_that_is_not_utf_8(tmp_path: Path) -> None:
    sound(tmp_path / "b.wav")
    os.rename(sound(tmp_path / "a.wav"), os.fsencode(tmp_path) + b"/caf\xe9.wav")
    clips, [(bad, reason)] = scan_folder(tmp_path)
    assert [Path(clip.path).name for clip in clips] == ["b.wav"]
    assert bad.endswith("caf\udce9.wav") and reason == "its name is not UTF-8; rename it"
