"""Shards: arrays computed once for each clip of a corpus, tokens or latents, that training reads in its place.

A shard is a safetensors file with the arrays of many clips, and in its metadata one row of JSON per clip (key,
captions, length). Clips of any length stand side by side, clips of one length are stacked:

tokens: `codes` [K, sum of T]. `index.json` holds the codec, the shards with their checksums, and the clips that could
not be read. A shard is complete before the index names it, so an interrupted run loses at most one shard. Written by
`python -m audiogen.codec encode --shards` and by training with `pretokenize_epochs`.

latents: `latents` [clips, D, T] or [clips, D, T, M], beside them `clap` [clips, E] and `loa` [clips, length, width]. A
shard is complete if it exists; there is no index. Written by the training of denoisers.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiogen.config import NotNegative, Positive, build, check_ranges, short
from audiogen.data.manifest import Clip
from audiogen.errors import InputError
from audiogen.files import remote
from audiogen.files.checkpoint import write_tensors
from audiogen.files.writing import clean, storing, write_json
from audiogen.interfaces import Codec

FORMAT = 1
INDEX = "index.json"
AGAIN = "delete the folder and encode the corpus again"


def write_shard(path: Path, arrays: Mapping[str, Tensor], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the arrays of many clips and a row of JSON for each."""
    write_tensors(path, arrays, {"clips": json.dumps(rows, ensure_ascii=False)})


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a shard's clips, each with key, num_samples and captions."""
    try:
        with safe_open(path, framework="pt") as shard:
            rows = json.loads(shard.metadata()["clips"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); {AGAIN}") from None
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise InputError(f"{path} is damaged (a clip without key, length or captions); {AGAIN}")
    return rows


def _opened(path: Path) -> Any:
    """A shard's file, open; InputError where it is not there or cannot be read."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, RuntimeError) as error:  # the last one is torch's, which maps the file
        raise InputError(f"{path} is missing or damaged ({error}); {AGAIN}") from None


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("key"), str)
        and all(
            type(row.get(name, 0)) is int and row.get(name, 0) >= 0 for name in ("num_samples", "num_frames")
        )
        and isinstance(row.get("captions"), list)
        and all(isinstance(caption, str) for caption in row["captions"])
        and isinstance(row.get("fields", {}), dict)
    )


class OpenFiles(dict[Path, Any]):
    """safetensors files, opened at their first use; a checksum, where one is given, is compared then."""

    def __init__(self, checksums: Mapping[Path, int]):
        self.checksums = checksums

    def __missing__(self, path: Path) -> Any:
        if path in self.checksums and zlib.crc32(path.read_bytes()) != self.checksums[path]:
            raise InputError(f"{path} is damaged (wrong checksum); {AGAIN}")
        self[path] = _opened(path)
        return self[path]

    def __reduce__(self) -> tuple[type[OpenFiles], tuple[Mapping[Path, int]]]:
        return OpenFiles, (self.checksums,)  # each process opens the files for itself


@dataclass(frozen=True)
class TokenSpec:
    """The codec of the tokens, by name (a hint) and hash (which decides), and what its integers stand for."""

    codec: str = field(compare=False)
    identity: str
    sample_rate: Positive
    channels: Positive
    hop_length: Positive
    num_codebooks: Positive
    codebook_size: Positive

    def __post_init__(self) -> None:
        check_ranges(self)

    @classmethod
    def of(cls, codec: Codec) -> TokenSpec:
        """Of all codebooks of a codec."""
        return cls(codec.name, **{each.name: getattr(codec, each.name) for each in fields(cls)[1:]})

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    def __str__(self) -> str:
        return f"codec {self.codec} ({self.identity}) with {self.num_codebooks} codebooks"


@dataclass(frozen=True)
class CodeClip:
    """One tokenised clip: codes [K, T], T = ceil(num_samples / hop_length); `fields` are its manifest's other keys."""

    key: str
    codes: Tensor
    num_samples: int
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PartSpec:
    """That a directory is the `number`th of `of` parts of a whole.

    num_clips: that were to be encoded. digest: of the keys of the whole.
    """

    number: Positive
    of: Positive
    num_clips: NotNegative
    digest: str

    def __post_init__(self) -> None:
        check_ranges(self)


class ShardWriter:
    """Adds token shards to a directory; one that an earlier run with the same codec began is continued.

    Whoever uses it holds `files.locks.only_writer` of the directory: the index is written as a whole, so that of two
    writers the last would drop the shards of the other.

    done: keys of the clips that are stored already.
    unreadable: reason by key of the clips that could not be read.
    part: which part of a whole the directory is, if it is one.
    """

    def __init__(self, directory: str | Path, spec: TokenSpec, part: PartSpec | None = None) -> None:
        self.directory, self.spec, self.part = Path(directory), spec, part
        self.done: set[str] = set()
        self.unreadable: dict[str, str] = {}
        self._shards: list[dict[str, Any]] = []
        if (self.directory / INDEX).exists():
            stored, self._shards, self.unreadable, begun = _read_index(self.directory)
            if stored != spec:
                raise InputError(
                    f"{directory} holds tokens of {stored}, not of {spec}; choose another folder"
                )
            if begun != part:
                raise InputError(
                    f"{directory} was begun as a part of other sounds, or with other shards; {AGAIN}"
                )
            self.done = {row["key"] for shard in self._shards for row in read_rows(self._path(shard))}
            clean(self.directory)

    @classmethod
    def read(cls, directory: str | Path) -> ShardWriter:
        """One that continues a directory as it was begun."""
        spec, _, _, part = _read_index(Path(directory))
        return cls(directory, spec, part)

    @property
    def paths(self) -> list[Path]:
        """Of its shards, in their order."""
        return [self._path(shard) for shard in self._shards]

    def _path(self, shard: Mapping[str, Any]) -> Path:
        return self.directory / shard["file"]

    def write(
        self,
        clips: Sequence[CodeClip],
        unreadable: Mapping[str, str] | None = None,
        number: int | None = None,
    ) -> None:
        """Store clips as one more shard, and the reasons of those that could not be read, in one step.

        number: of the shard in the whole that the directory is a part of.
        """
        repeated = [clip.key for clip in clips if clip.key in self.done]
        if repeated or len({clip.key for clip in clips}) < len(clips):
            raise ValueError(f"a key is stored once; again: {', '.join(repeated) or 'within the shard'}")
        if clips:
            self._shards.append(self._write_shard(clips, len(self._shards) if number is None else number))
        self.done |= {clip.key for clip in clips}
        self._write_index(unreadable or {})

    def adopt(self, shards: Sequence[Path], unreadable: Mapping[str, str]) -> None:
        """Add the shards of other directories under names of its own; they lie there as well until they are deleted."""
        for path in shards:
            name = f"shard-{len(self._shards):05d}.safetensors"
            with storing(self.directory / name):
                (self.directory / name).unlink(
                    missing_ok=True
                )  # of an earlier try, which the index does not name
                try:
                    os.link(path, self.directory / name)
                except OSError:  # a file system without links
                    shutil.copyfile(path, self.directory / name)
            rows = read_rows(path)
            frames = sum(row["num_frames"] for row in rows)
            entry = {"file": name, "num_clips": len(rows), "num_frames": frames}
            self._shards.append(entry | {"crc32": zlib.crc32((self.directory / name).read_bytes())})
            self.done |= {row["key"] for row in rows}
        self._write_index(unreadable)

    def _write_index(self, unreadable: Mapping[str, str]) -> None:
        reasons = self.unreadable | dict(unreadable)
        self.unreadable = {key: reasons[key] for key in sorted(reasons) if key not in self.done}
        contents: dict[str, Any] = {"format": FORMAT, "codec": asdict(self.spec), "shards": self._shards}
        contents |= {"unreadable": self.unreadable} | ({"part": asdict(self.part)} if self.part else {})
        write_json(self.directory / INDEX, contents)

    def _write_shard(self, clips: Sequence[CodeClip], number: int) -> dict[str, Any]:
        """-> its entry in the index."""
        dtype = torch.uint16 if self.spec.codebook_size <= 1 << 16 else torch.int32
        codes = torch.cat([clip.codes.cpu() for clip in clips], dim=1).to(dtype)  # [K, sum of T]
        if codes.shape[0] != self.spec.num_codebooks:
            raise ValueError(f"got {codes.shape[0]} codebooks; the shards have {self.spec.num_codebooks}")
        rows = []
        for clip in clips:
            lengths = {"num_frames": clip.codes.shape[1], "num_samples": clip.num_samples}
            rows.append({"key": clip.key, **lengths, "captions": clip.captions, "fields": dict(clip.fields)})
        names = {shard["file"] for shard in self._shards}
        tries = (
            f"shard-{number:05d}{more}.safetensors"
            for more in ["", *(f"-{again}" for again in range(1, 1000))]
        )
        shard = {"file": next(name for name in tries if name not in names), "num_clips": len(clips)}
        write_shard(self._path(shard), {"codes": codes}, rows)
        return {**shard, "num_frames": codes.shape[1], "crc32": zlib.crc32(self._path(shard).read_bytes())}


class ShardReader:
    """Random access to the clips of a directory of token shards.

    clips: each clip's captions and fields, `path` being its key; no codes yet. num_frames, num_samples: of each clip.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = _fetched(str(directory)) if remote.is_remote(directory) else Path(directory)
        self.spec, shards, self.unreadable, _ = _read_index(self.directory)
        self._files = OpenFiles({self.directory / shard["file"]: shard["crc32"] for shard in shards})
        rows: list[dict[str, Any]] = []
        self._starts: list[tuple[Path, int]] = []  # shard, first frame within it
        for path in self._files.checksums:
            start = 0
            for row in read_rows(path):
                rows.append(row)
                self._starts.append((path, start))
                start += row.get("num_frames", 0)
            with _opened(path) as shard:
                stored = [shard.get_slice(name) for name in shard.keys() if name == "codes"]  # noqa: SIM118
                kinds = [(codes.get_shape(), codes.get_dtype()) for codes in stored]
                if kinds not in [[([self.spec.num_codebooks, start], dtype)] for dtype in ("U16", "I32")]:
                    raise InputError(f"{path} is damaged (its codes are not those of its clips); {AGAIN}")
        if lacking := [
            row["key"] for row in rows if not {"num_frames", "num_samples", "fields"} <= row.keys()
        ]:
            raise InputError(f"{directory} is damaged (no length of {lacking[0]!r}); {AGAIN}")
        self.clips = [Clip(row["key"], tuple(row["captions"]), fields=row["fields"]) for row in rows]
        self.num_frames: list[int] = [row["num_frames"] for row in rows]
        self.num_samples: list[int] = [row["num_samples"] for row in rows]

    def __len__(self) -> int:
        return len(self.clips)

    def codes(self, index: int, start: int = 0, num_frames: int | None = None) -> Tensor:
        """Codes [K, T] of a clip, or `num_frames` of it from `start`; only they are read from disk."""
        path, offset = self._starts[index]
        stop = self.num_frames[index] if num_frames is None else start + num_frames
        stored = self._files[path].get_slice("codes")
        codes = stored[:, offset + start : offset + min(stop, self.num_frames[index])].long()
        if codes.numel() and not 0 <= codes.min() <= codes.max() < self.spec.codebook_size:
            raise InputError(
                f"{path} is damaged (codes past the codebook's {self.spec.codebook_size}); {AGAIN}"
            )
        return codes


@dataclass(frozen=True)
class _Shard:
    file: str
    num_clips: NotNegative
    num_frames: NotNegative
    crc32: NotNegative

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.file != Path(self.file).name or not self.file.endswith(".safetensors"):
            raise InputError(f"file is {short(self.file)}; the shards lie beside the index")


@dataclass(frozen=True)
class _Index:
    codec: TokenSpec
    shards: tuple[_Shard, ...]
    unreadable: dict[str, str]
    part: PartSpec | None = None


def _read_index(directory: Path) -> tuple[TokenSpec, list[dict[str, Any]], dict[str, str], PartSpec | None]:
    """-> (spec, entries of the shards, reason by key of what could not be read, which part of a whole it is)."""
    path = directory / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] == FORMAT:
            contents = build(_Index, {key: value for key, value in index.items() if key != "format"})
            shards = [asdict(shard) for shard in contents.shards]
            return contents.codec, shards, contents.unreadable, contents.part
    except OSError as error:
        raise InputError(f"{directory}: not a folder of token shards ({INDEX}: {error.strerror})") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:  # InputError is a ValueError
        raise InputError(f"{path} is damaged ({error}); {AGAIN}") from None
    raise InputError(
        f"{path} has format {short(index['format'])}; this version reads {FORMAT}: update audiogen"
    )


def is_shard_directory(path: str | Path) -> bool:
    """Whether the path is a directory of token shards."""
    if remote.is_remote(path):
        return remote.exists(remote.joined(str(path), INDEX))
    return (Path(path) / INDEX).is_file()


def _fetched(url: str) -> Path:
    """The copy of a directory of token shards at a URL."""
    directory = remote.fetch(remote.joined(url, INDEX)).parent
    for shard in _read_index(directory)[1]:
        remote.fetch(remote.joined(url, shard["file"]))
    return directory
