"""Manifests too long for memory: the same clips, splits and lines about faults as of those that are read whole."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen import audio
from audiogen.data import dataset, lines, manifest
from audiogen.data.dataset import DataConfig, SourceConfig, open_data, read_source
from audiogen.errors import InputError


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A manifest of 30 parts of sounds, of ten recordings and three folds, with odd texts and a blank line."""
    monkeypatch.setenv("AUDIOGEN_CACHE", str(tmp_path / "cache"))
    for name in ("a.wav", "b.wav"):
        audio.save(tmp_path / "sounds" / name, 0.1 * torch.randn(1, 30_000), 8000)
    rows = [
        {
            "audio": f"{'ab'[number % 2]}.wav", "captions": [f"a bell, {number}\u2028 \U0001f514"],
            "start": 0.1 * number, "duration": 0.1, "source": f"recording {number // 3}", "fold": number % 3,
        }
        for number in range(30)
    ]  # fmt: skip
    path = tmp_path / "sounds" / "manifest.jsonl"
    text = "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows[:7]) + "\n \n"
    path.write_text(text + "\n".join(json.dumps(row) for row in rows[7:]), encoding="utf-8")
    return path


@pytest.fixture
def large(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lines, "LARGE_BYTES", 1)
    return path


@pytest.mark.parametrize("where", [{}, {"fold": (0, "2")}])
def test_the_clips_are_those_of_a_manifest_read_whole(
    large: Path, where: dict[str, tuple[object, ...]]
) -> None:
    clips = read_source(SourceConfig(str(large), where=where))
    assert isinstance(clips, lines.Clips)
    expected = manifest.select(manifest.read_manifest(large.resolve()), where)
    assert list(clips) == expected and clips[-1] == expected[-1] and clips[2:4] == expected[2:4]
    assert clips.orders.tolist() == [manifest.order_of(manifest.group_of(clip)) for clip in expected]
    assert list(pickle.loads(pickle.dumps(clips))) == expected
    with pytest.raises(IndexError):
        clips[len(clips)]
    assert isinstance(read_source(SourceConfig(str(large.parent))), lines.Clips)  # a folder by its manifest


def test_the_split_and_the_items_are_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(
        (SourceConfig(str(path), repeat=2), SourceConfig("synth:3")), segment_s=0.05, holdout=0.2
    )
    whole = open_data(config, 8000)
    monkeypatch.setattr(lines, "LARGE_BYTES", 1)
    found = open_data(config, 8000)
    assert isinstance(found.train.clips, lines.Joined) and found.valid is not None and whole.valid is not None
    for one, other in ((found.train, whole.train), (found.valid, whole.valid)):
        assert [clip.place for clip in one.clips] == [clip.place for clip in other.clips]
        assert one.clips[-1].captions == other.clips[-1].captions and one.clips[1:3] == list(one.clips)[1:3]
    for index in (0, 5, len(found.train) - 1):
        assert torch.equal(found.train.item(index, 1, 2).data, whole.train.item(index, 1, 2).data)
    with pytest.raises(IndexError):
        found.train.clips[len(found.train)]


def test_an_index_serves_until_the_manifest_changes(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    index = lines._index
    monkeypatch.setattr(lines, "_index", lambda *given: made.append(given) or index(*given))
    cache = Path(os.environ["AUDIOGEN_CACHE"])
    for _ in range(2):
        assert len(lines.open_lines(large, {})) == 30
    assert len(made) == 1 and len(list(cache.glob("*.npy"))) == 1
    assert len(lines.open_lines(large, {"fold": [1]})) == 10
    assert len(made) == 2 and len(list(cache.glob("*.npy"))) == 2
    opened = lines.open_lines(large, {})
    large.write_text("\n".join(large.read_text("utf-8-sig").split("\n")[:3]))
    assert len(lines.open_lines(large, {})) == 3 and len(made) == 3
    assert len(list(cache.glob("*.npy"))) == 1  # those of the manifest as it was are gone
    with pytest.raises(InputError, match="has changed since it was opened"):
        opened[29]


@pytest.mark.parametrize("damage", [b"", b"no index", None])
def test_a_damaged_index_is_made_anew(large: Path, damage: bytes | None) -> None:
    lines.open_lines(large, {})
    (table,) = Path(os.environ["AUDIOGEN_CACHE"]).glob("*.npy")
    if damage is None:
        np.save(table, np.zeros(3))
    else:
        table.write_bytes(damage)
    assert len(lines.open_lines(large, {})) == 30


BAD = [
    ('{"audio": "none.wav"}', "line 32: names .*none.wav, which is not a file$"),
    (
        '{"audio": "a.wav", "start": 0, "duration": 0.1}',
        r"line 32: repeats the clip of line 1; remove one of them$",
    ),
    ("[1]", "line 32: is list, expected an object with the key audio$"),
    ("{", "line 32: is not JSON"),
    (
        '{"audio": 3}\n{"audio": "none.wav"}',
        r"line 32: has no key audio that names a file \(1 more lines are bad\)$",
    ),
]


@pytest.mark.parametrize(("added", "line"), BAD)
def test_a_bad_line_is_named_as_in_a_manifest_read_whole(large: Path, added: str, line: str) -> None:
    large.write_text(large.read_text("utf-8") + f"\n{added}\n", encoding="utf-8")
    for read in (manifest.read_manifest, lambda path: lines.open_lines(path, {})):
        with pytest.raises(InputError, match=f"manifest.jsonl {line}"):
            read(large)
    assert not list(Path(os.environ["AUDIOGEN_CACHE"]).glob("*.npy"))


def test_a_selection_of_nothing_is_one_line(large: Path) -> None:
    for where, line in {
        ("label", "x"): "where.label: no clip has this field; the manifest has fold, source",
        ("fold", 7): "where.fold: no clip has the value '7'; there are 0, 1, 2",
    }.items():
        with pytest.raises(InputError, match=line):
            lines.open_lines(large, {where[0]: (where[1],)})
    large.write_bytes(b"\n\n")
    with pytest.raises(InputError, match="the manifest lists no clips"):
        lines.open_lines(large, {})
    large.write_bytes(b'{"audio": "\xff.wav"}')
    with pytest.raises(InputError, match="line 1 is not UTF-8 text"):
        lines.open_lines(large, {})


def test_lengths_do_not_grow_without_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "MOST_LENGTHS", 4)
    data = open_data(DataConfig((SourceConfig(str(path)),), segment_s=0.05), 8000).train
    sounds = [data.item(index, 0, 0).data for index in range(len(data))]
    assert len(data.lengths) <= 4
    assert all(torch.equal(sound, data.item(index, 0, 0).data) for index, sound in enumerate(sounds))
