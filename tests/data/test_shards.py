"""Token shards: what goes in comes out, an interrupted writer continues, and the order is the sound loader's."""

import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audiogen.data import shards
from audiogen.data.dataset import DataConfig, SourceConfig
from audiogen.data.encoded import open_codes
from audiogen.data.loader import AudioLoader, collate, permutation, valid_batches
from audiogen.data.manifest import held_out, order_of
from audiogen.data.shards import (
    CodeClip,
    ShardReader,
    ShardWriter,
    TokenSpec,
    is_shard_directory,
    read_rows,
    write_shard,
)
from audiogen.errors import InputError

SPEC = TokenSpec("tiny", "0123456789abcdef", 16000, 1, 320, num_codebooks=3, codebook_size=1024)


def make_clips(count: int, first: int = 0) -> list[CodeClip]:
    """Clip i has 5 + i frames; entry (k, t) of it says where it belongs."""
    clips = []
    for i in range(first, first + count):
        codes = torch.arange(3)[:, None] * 300 + torch.arange(5 + i) + 7 * i
        captions = (f"sound {i}", f"noise {i}") if i % 3 else ()
        clips.append(CodeClip(f"a/{i}.wav", codes, (5 + i) * 320 - 100, captions, {"fold": i % 4}))
    return clips


def make_shards(directory: Path, spec: TokenSpec = SPEC) -> list[CodeClip]:
    clips = make_clips(11)
    writer = ShardWriter(directory, spec)
    for start in range(0, 11, 4):
        writer.write(clips[start : start + 4])
    return clips


def test_clips_come_back_whole_and_in_parts(tmp_path: Path) -> None:
    clips = make_shards(tmp_path)
    reader = ShardReader(tmp_path)
    assert is_shard_directory(tmp_path) and reader.spec == SPEC and len(reader) == 11
    for i, clip in enumerate(clips):
        codes = reader.codes(i)
        assert codes.dtype == torch.int64
        assert torch.equal(codes, clip.codes)
        assert torch.equal(reader.codes(i, 2, 3), clip.codes[:, 2:5])
        assert torch.equal(reader.codes(i, 2, 1000), clip.codes[:, 2:])
        stored = reader.clips[i]
        assert (stored.path, stored.captions, stored.fields) == (clip.key, clip.captions, clip.fields)
        assert (reader.num_frames[i], reader.num_samples[i]) == (5 + i, clip.num_samples)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["index.json", *(f"shard-0000{i}.safetensors" for i in range(3))]
    assert load_file(tmp_path / names[1])["codes"].dtype == torch.uint16


@pytest.mark.parametrize(("codebook_size", "dtype"), [(65536, torch.uint16), (65537, torch.int32)])
def test_the_largest_code_fits(tmp_path: Path, codebook_size: int, dtype: torch.dtype) -> None:
    spec = TokenSpec("tiny", "0", 16000, 1, 320, 1, codebook_size)
    ShardWriter(tmp_path, spec).write([CodeClip("a", torch.tensor([[codebook_size - 1, 0]]), 640)])
    assert ShardReader(tmp_path).codes(0).tolist() == [[codebook_size - 1, 0]]
    assert load_file(tmp_path / "shard-00000.safetensors")["codes"].dtype == dtype


def test_an_interrupted_writer_continues_to_the_same_bytes(tmp_path: Path) -> None:
    clips = make_shards(tmp_path / "whole")
    cut = tmp_path / "cut"
    ShardWriter(cut, SPEC).write(clips[:4])
    (cut / "shard-00001.safetensors").write_bytes(b"written when the power went")
    (cut / ".writing-1-index.json").write_bytes(b"{")
    writer = ShardWriter(cut, SPEC)
    assert writer.done == {clip.key for clip in clips[:4]}
    writer.write(clips[4:8])
    writer.write(clips[8:])
    for path in (tmp_path / "whole").iterdir():
        assert (cut / path.name).read_bytes() == path.read_bytes()
    assert len(list(cut.iterdir())) == 4


def test_unreadable_clips_are_remembered_until_they_are_stored(tmp_path: Path) -> None:
    clips = make_clips(3)
    ShardWriter(tmp_path, SPEC).write(clips[:1], {clips[1].key: "truncated", clips[2].key: "empty"})
    assert ShardReader(tmp_path).unreadable == {clips[1].key: "truncated", clips[2].key: "empty"}
    ShardWriter(tmp_path, SPEC).write([], {clips[2].key: "still empty"})
    assert len(list(tmp_path.glob("shard-*"))) == 1
    ShardWriter(tmp_path, SPEC).write(clips[1:2])
    assert ShardReader(tmp_path).unreadable == {clips[2].key: "still empty"}


def test_another_codec_and_repeated_keys_are_refused(tmp_path: Path) -> None:
    clips = make_shards(tmp_path)
    renamed = TokenSpec("copy of tiny", "0123456789abcdef", 16000, 1, 320, 3, 1024)
    assert len(ShardWriter(tmp_path, renamed).done) == 11  # the hash decides
    for other in (
        TokenSpec("tiny", "another", 16000, 1, 320, 3, 1024),
        TokenSpec("tiny", SPEC.identity, 16000, 1, 320, 2, 1024),
    ):
        with pytest.raises(InputError, match="holds tokens of codec tiny .* choose another folder"):
            ShardWriter(tmp_path, other)
    with pytest.raises(ValueError, match=r"again: a/0\.wav"):
        ShardWriter(tmp_path, SPEC).write(clips[:1])
    with pytest.raises(ValueError, match="within the shard"):
        ShardWriter(tmp_path / "new", SPEC).write(clips[:1] * 2)
    with pytest.raises(ValueError, match="got 2 codebooks; the shards have 3"):
        ShardWriter(tmp_path / "new", SPEC).write([CodeClip("x", torch.zeros(2, 5, dtype=torch.long), 1600)])


def test_damage_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    make_shards(tmp_path)
    shard, index = tmp_path / "shard-00001.safetensors", tmp_path / "index.json"
    data, text = shard.read_bytes(), index.read_text()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))  # in the codes: the file still opens
    reader = ShardReader(tmp_path)
    reader.codes(0)
    with pytest.raises(InputError, match="shard-00001.*damaged"):
        reader.codes(4)
    shard.write_bytes(data[:100])
    with pytest.raises(InputError, match="shard-00001.*damaged"):
        ShardReader(tmp_path)
    shard.unlink()
    with pytest.raises(InputError, match="shard-00001.*missing"):
        ShardReader(tmp_path)
    for broken, message in [
        (text[:50], "damaged"),
        ("[]", "damaged"),
        (json.dumps({**json.loads(text), "format": 2}), "format 2; this version reads 1"),
        (text.replace("hop_length", "stride"), "damaged"),
    ]:
        index.write_text(broken)
        with pytest.raises(InputError, match=message):
            ShardReader(tmp_path)
    with pytest.raises(InputError, match="not a folder of token shards"):
        ShardReader(tmp_path / "missing")


def config(*train: SourceConfig | str | Path, **changes: object) -> DataConfig:
    sources = tuple(s if isinstance(s, SourceConfig) else SourceConfig(str(s)) for s in train)
    return DataConfig(**{"train": sources, "segment_s": 0.16, "holdout": 0.0, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("shards",), None),
        (("shards", 0), {}),
        (("shards", 0, "file"), "../x.safetensors"),
        (("shards", 0, "crc32"), "x"),
        (("codec", "hop_length"), 0),
        (("codec", "num_codebooks"), 2),
        (("codec", "sample_rate"), [1]),
        (("codec", "codebook_size"), 5),
        (("unreadable",), [1]),
    ],
)
def test_an_index_that_was_forged_is_an_error_that_names_the_folder(
    tmp_path: Path, keys: tuple[str | int, ...], value: object
) -> None:
    make_shards(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    place = index
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"{tmp_path}.* is (missing or )?damaged"):
        ShardReader(tmp_path).codes(3)


@pytest.mark.parametrize(
    "change", [{"key": 3}, {"num_frames": -5}, {"num_frames": 6}, {"captions": "x"}, {"fields": []}]
)
def test_rows_that_were_forged_are_an_error_that_names_the_shard(
    tmp_path: Path, change: dict[str, object]
) -> None:
    make_shards(tmp_path)
    path = tmp_path / "shard-00000.safetensors"
    rows = read_rows(path)
    write_shard(path, load_file(path), [rows[0] | change, *rows[1:]])
    with pytest.raises(InputError, match=f"{path} is damaged"):
        ShardReader(tmp_path)


def test_items_are_crops_and_pure_functions_of_their_arguments(tmp_path: Path) -> None:
    clips = make_shards(tmp_path)
    dataset = open_codes(config(tmp_path)).train  # 0.16 s are 8 frames
    starts, wordings = set(), set()
    for epoch, index in itertools.product(range(40), range(11)):
        item = dataset.item(index, epoch, seed=3)
        clip = clips[index]
        length = min(8, 5 + index)
        assert (item.key, item.length, tuple(item.data.shape)) == (clip.key, length, (3, 8))
        assert not item.data[:, length:].any()
        start = int(item.data[0, 0]) - 7 * index
        assert torch.equal(item.data[:, :length], clip.codes[:, start : start + length])
        assert item.caption in (clip.captions or [None])
        assert tuple(dataset.captions(index)) == clip.captions
        if index == 10:
            starts.add(start)
            wordings.add(item.caption)
    assert starts == set(range(15 - 8 + 1))
    assert wordings == set(clips[10].captions)
    first, again = dataset.item(10, 5, seed=3), dataset.item(10, 5, seed=3)
    assert torch.equal(first.data, again.data)
    assert any(not torch.equal(first.data, dataset.item(10, 5, seed=s).data) for s in range(4, 12))


def test_loader_gives_batches_of_codes_in_the_order_of_the_seed(tmp_path: Path) -> None:
    make_shards(tmp_path)
    dataset = open_codes(config(tmp_path)).train
    loader = AudioLoader(dataset, batch_size=4, seed=1)
    batches = list(itertools.islice(loader.batches(), 6))
    order = [*permutation(11, 1, 0).tolist(), *permutation(11, 1, 1).tolist()]
    keys = [key for batch in batches for key in batch.keys]
    assert keys[:22] == [f"a/{i}.wav" for i in order]
    assert batches[0].codes.shape == (4, 3, 8)
    assert batches[0].lengths.tolist() == [min(8, 5 + i) for i in order[:4]]
    later = next(iter(loader.batches(start_step=4)))
    assert later.keys == batches[4].keys and torch.equal(later.codes, batches[4].codes)
    workers = AudioLoader(dataset, batch_size=4, seed=1, workers=1)
    assert torch.equal(next(iter(workers.batches(4))).codes, batches[4].codes)
    copy = pickle.loads(pickle.dumps(dataset))  # what a spawned worker gets
    assert torch.equal(copy.item(3, 0, 0).data, dataset.item(3, 0, 0).data)
    assert sum(len(batch.keys) for batch in valid_batches(dataset, 4)) == 11


def test_whole_clips_are_padded_to_the_longest(tmp_path: Path) -> None:
    clips = make_shards(tmp_path)
    dataset = open_codes(config(tmp_path, segment_s=1000.0)).train
    items = [dataset.item(i, 0, 0) for i in (2, 6)]
    items = [item._replace(data=item.data[:, : item.length]) for item in items]
    batch = collate(items, dataset.batch_type)
    assert batch.codes.shape == (2, 3, 11)
    assert torch.equal(batch.codes[1], clips[6].codes)
    assert torch.equal(batch.codes[0, :, :7], clips[2].codes) and not batch.codes[0, :, 7:].any()


def test_sources_are_selected_repeated_and_held_out(tmp_path: Path) -> None:
    clips = make_shards(tmp_path / "a")
    ShardWriter(tmp_path / "b", SPEC).write(make_clips(2, first=20))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    split = open_codes(config(SourceConfig(a, where={"fold": (1, 2)}), SourceConfig(b, repeat=3)))
    keys = [split.train.item(i, 0, 0).key for i in range(len(split.train))]
    assert (
        keys == [clip.key for clip in clips if clip.fields["fold"] in (1, 2)] + ["a/20.wav", "a/21.wav"] * 3
    )
    assert split.valid is None
    split = open_codes(config(a, holdout=0.3))
    expected = held_out(
        [order_of(clip.key) for clip in clips], 0.3
    )  # as for the sounds that they were made of
    assert split.valid is not None and len(split.valid) == sum(expected)
    assert [split.train.item(i, 0, 0).key for i in range(len(split.train))] == [
        clip.key for clip, out in zip(clips, expected, strict=True) if not out
    ]
    split = open_codes(config(a, valid=b))
    assert split.valid is not None and (len(split.train), len(split.valid)) == (11, 2)


def test_sources_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    make_shards(tmp_path / "a")
    make_shards(tmp_path / "b", TokenSpec("tiny", "another", 16000, 1, 320, 3, 1024))
    with pytest.raises(InputError, match="token shards of different codecs"):
        open_codes(config(tmp_path / "a", tmp_path / "b"))
    with pytest.warns(UserWarning, match="vary sound only"):
        open_codes(config(tmp_path / "a", mix_probability=0.5))
    with pytest.raises(InputError, match=r"a: where\.label"):
        open_codes(config(SourceConfig(str(tmp_path / "a"), where={"label": ("dog",)})))
    with pytest.raises(InputError, match="not a folder of token shards"):
        open_codes(config(tmp_path))


def test_a_fault_in_opening_a_shard_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch maps the file, and raises a RuntimeError."""
    writer = ShardWriter(tmp_path, TokenSpec("tiny", "abc", 8000, 1, 80, 2, 16))
    writer.write([CodeClip("a", torch.zeros(2, 5, dtype=torch.long), 400, ())])

    def fail(path: Path, framework: str) -> None:
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: Input/output error (5)")

    reader = ShardReader(tmp_path)
    monkeypatch.setattr(shards, "safe_open", fail)
    for read in (lambda: ShardReader(tmp_path), lambda: reader.codes(0)):
        with pytest.raises(
            InputError, match=r"shard-00000.safetensors is missing or damaged \(.*error \(5\)\)"
        ):
            read()
