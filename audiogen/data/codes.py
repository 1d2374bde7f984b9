"""Token shards: a corpus tokenised once by `python -m audiogen.codec encode --shards`, read by LM training.

A directory with `index.json` (which codec, which shards) and `shard-00000.safetensors`, ...: the codes of many
clips side by side as one tensor [K, sum of T], with what is known of each clip in the file's metadata. A shard is
whole before the index names it, so an interrupted run loses at most the shard it was working on.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiogen.data.dataset import DataConfig, SourceConfig
from audiogen.data.manifest import Clip, group_of, held_out, select
from audiogen.data.mix import draw
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files.checkpoint import clean, write_json, write_tensors
from audiogen.interfaces import Batch

FORMAT = 1
INDEX = "index.json"
AGAIN = "delete the folder and encode the corpus again"


@dataclass(frozen=True)
class TokenSpec:
    """Whose tokens they are: the codec's name (a hint) and hash (which decides), and what its integers stand for."""

    codec: str = field(compare=False)
    identity: str
    sample_rate: int
    channels: int
    hop_length: int
    num_codebooks: int
    codebook_size: int

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length


@dataclass(frozen=True)
class CodeClip:
    """One tokenised clip: codes [K, T], T = ceil(num_samples / hop_length); `fields` are its manifest's other keys."""

    key: str
    codes: Tensor
    num_samples: int
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


class ShardWriter:
    """Adds shards to a directory; one that an earlier run of the same codec began is continued.

    done: keys of the clips that are stored already.
    unreadable: reason by key of the clips that could not be.
    """

    def __init__(self, directory: str | Path, spec: TokenSpec) -> None:
        self.directory, self.spec = Path(directory), spec
        self.done: set[str] = set()
        self.unreadable: dict[str, str] = {}
        self._shards: list[dict[str, Any]] = []
        if (self.directory / INDEX).exists():
            index = _read_index(self.directory)
            if (stored := TokenSpec(**index["codec"])) != spec:
                raise InputError(
                    f"{directory} holds tokens of {_describe(stored)}; these would be of {_describe(spec)}: "
                    "choose another folder"
                )
            self._shards, self.unreadable = index["shards"], index["unreadable"]
            self.done = {
                clip["key"] for shard in self._shards for clip in _read_rows(self.directory / shard["file"])
            }
            clean(self.directory)

    def write(self, clips: Sequence[CodeClip], unreadable: Mapping[str, str] | None = None) -> None:
        """Store clips as one more shard, and the clips that could not be read as such, in one step."""
        repeated = [clip.key for clip in clips if clip.key in self.done]
        if repeated or len({clip.key for clip in clips}) < len(clips):
            raise ValueError(
                f"each key can be stored once; again: {', '.join(repeated) or 'within the shard'}"
            )
        if clips:
            name = f"shard-{len(self._shards):05d}.safetensors"
            dtype = torch.uint16 if self.spec.codebook_size <= 1 << 16 else torch.int32
            codes = torch.cat([clip.codes.cpu() for clip in clips], dim=1).to(dtype)
            if codes.shape[0] != self.spec.num_codebooks:
                raise ValueError(f"got {codes.shape[0]} codebooks; the shards have {self.spec.num_codebooks}")
            rows = [
                {
                    "key": clip.key,
                    "num_frames": clip.codes.shape[1],
                    "num_samples": clip.num_samples,
                    "captions": clip.captions,
                    "fields": dict(clip.fields),
                }
                for clip in clips
            ]
            path = self.directory / name
            write_tensors(path, {"codes": codes}, {"clips": json.dumps(rows, ensure_ascii=False)})
            shard = {
                "file": name,
                "num_clips": len(clips),
                "num_frames": codes.shape[1],
                "crc32": _crc32(path),
            }
            self._shards.append(shard)
        self.done |= {clip.key for clip in clips}
        self.unreadable = {
            key: reason
            for key, reason in {**self.unreadable, **(unreadable or {})}.items()
            if key not in self.done
        }
        write_json(
            self.directory / INDEX,
            {
                "format": FORMAT,
                "codec": asdict(self.spec),
                "shards": self._shards,
                "unreadable": self.unreadable,
            },
        )


class ShardReader:
    """Random access to the clips of a shard directory; a shard's checksum is compared when it is first read.

    spec: whose tokens they are. clips: what is known of each, `path` being its key; no codes yet.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        index = _read_index(self.directory)
        self.spec = TokenSpec(**index["codec"])
        self.unreadable: dict[str, str] = index["unreadable"]
        self.clips: list[Clip] = []
        self.num_frames: list[int] = []
        self.num_samples: list[int] = []
        self._place: list[tuple[int, int]] = []  # number of the shard, first frame within it
        self._shards: list[dict[str, Any]] = index["shards"]
        self._open: dict[int, Any] = {}
        for number, shard in enumerate(self._shards):
            start = 0
            for row in _read_rows(self.directory / shard["file"]):
                self.clips.append(Clip(row["key"], tuple(row["captions"]), fields=row["fields"]))
                self.num_frames.append(row["num_frames"])
                self.num_samples.append(row["num_samples"])
                self._place.append((number, start))
                start += row["num_frames"]

    def __len__(self) -> int:
        return len(self.clips)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay with their process

    def codes(self, index: int, start: int = 0, num_frames: int | None = None) -> Tensor:
        """Codes [K, T] of a clip, or `num_frames` of it from `start`; only they are read from disk."""
        shard, offset = self._place[index]
        stop = self.num_frames[index] if num_frames is None else start + num_frames
        return self._shard(shard)[:, offset + start : offset + min(stop, self.num_frames[index])].long()

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            path = self.directory / self._shards[number]["file"]
            if _crc32(path) != self._shards[number]["crc32"]:
                raise InputError(f"{path} is damaged (wrong checksum); {AGAIN}")
            self._open[number] = safe_open(path, framework="pt").get_slice("codes")
        return self._open[number]


class CodeItem(NamedTuple):
    """codes [K, T], zero after `length` frames; caption None for a clip without text; key names the clip."""

    codes: Tensor
    caption: str | None
    key: str
    length: int


class CodeDataset:
    """Clips of shard directories, as segments of `segment_frames`; None gives whole clips. Made by `open_codes`.

    Crop and wording depend on the arguments of `item` alone, as in `AudioDataset`.
    """

    def __init__(self, clips: Sequence[tuple[ShardReader, int]], segment_frames: int | None = None) -> None:
        if not clips:
            raise InputError("the token shards hold no clips")
        self.clips, self.segment_frames = clips, segment_frames
        self.spec = clips[0][0].spec

    def __len__(self) -> int:
        return len(self.clips)

    def captions(self, index: int) -> tuple[str, ...]:
        """All wordings of a clip."""
        reader, number = self.clips[index]
        return reader.clips[number].captions

    def item(self, index: int, epoch: int, seed: int) -> CodeItem:
        """Segment of clip `index` with the crop and wording of (epoch, seed); InputError if its shard is damaged."""
        random = torch.Generator().manual_seed(seed_for("item", seed, epoch, index))
        place, wording = draw(random, 0, 1), draw(random, 0, 1)
        reader, number = self.clips[index]
        total, clip = reader.num_frames[number], reader.clips[number]
        segment = total if self.segment_frames is None else self.segment_frames
        length = min(total, segment)
        codes = reader.codes(number, int(place * (total - length + 1)), length)
        codes = torch.nn.functional.pad(codes, (0, segment - length))
        caption = clip.captions[int(wording * len(clip.captions))] if clip.captions else None
        return CodeItem(codes, caption, clip.path, length)


def collate_codes(items: Sequence[CodeItem]) -> Batch:
    """Items -> Batch with codes [B, K, T], zero-padded to the longest: the `collate` of `AudioLoader` for tokens."""
    longest = max(item.codes.shape[1] for item in items)
    return Batch(
        audio=None,
        codes=torch.stack([torch.nn.functional.pad(i.codes, (0, longest - i.codes.shape[1])) for i in items]),
        lengths=torch.tensor([item.length for item in items]),
        captions=[item.caption for item in items],
        keys=[item.key for item in items],
    )


class CodeSplit(NamedTuple):
    """Training and validation sets."""

    train: CodeDataset
    valid: CodeDataset | None


def open_codes(config: DataConfig) -> CodeSplit:
    """What `dataset.open_data` is for sound: the sets of a recipe whose sources are all shard directories.

    The same clips are held out as from the sound they were made of. Mixing, gain and speed vary sound, so they
    are left out, with a warning. InputError where the sources are of different codecs.
    """
    if config.mix_probability or config.gain_db != (0.0, 0.0) or config.speed != (1.0, 1.0):
        warnings.warn(
            "token shards are used as they are: data.mix_probability, gain_db and speed vary sound only",
            stacklevel=2,
        )
    train: list[tuple[ShardReader, int]] = []
    valid: list[tuple[ShardReader, int]] = []
    for source in config.valid:
        valid.extend(_read_source(source))
    for source in config.train:
        clips = _read_source(source)
        groups = [group_of(reader.clips[number]) for reader, number in clips]
        out = held_out(groups, 0.0 if config.valid else config.holdout)
        train.extend([clip for clip, held in zip(clips, out, strict=True) if not held] * source.repeat)
        valid.extend(clip for clip, held in zip(clips, out, strict=True) if held)
    specs = {reader.spec for reader, _ in train + valid}
    if len(specs) > 1:
        raise InputError(f"token shards of different codecs: {'; '.join(sorted(map(_describe, specs)))}")
    frames = max(1, round(config.segment_s * specs.pop().frame_rate)) if specs else None
    return CodeSplit(CodeDataset(train, frames), CodeDataset(valid, frames) if valid else None)


def is_shard_directory(path: str | Path) -> bool:
    """Whether the path is a directory of token shards."""
    return (Path(path) / INDEX).is_file()


def _read_source(source: SourceConfig) -> list[tuple[ShardReader, int]]:
    reader = ShardReader(source.source)
    try:
        chosen = {id(clip) for clip in select(reader.clips, source.where)}
    except InputError as error:
        raise InputError(f"{source.source}: {error}") from None
    return [(reader, number) for number, clip in enumerate(reader.clips) if id(clip) in chosen]


def _describe(spec: TokenSpec) -> str:
    return f"codec {spec.codec} ({spec.identity}) with {spec.num_codebooks} codebooks"


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise InputError(
                f"{path} has format {index['format']!r}; this version reads {FORMAT}: update audiogen"
            )
        TokenSpec(**index["codec"])
        return {key: index[key] for key in ("codec", "shards", "unreadable")}
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{directory}: not a folder of token shards ({INDEX}: {error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error}); {AGAIN}") from None


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """What is known of the clips of a shard."""
    try:
        with safe_open(path, framework="pt") as shard:
            return json.loads(shard.metadata()["clips"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is missing or damaged ({error}); {AGAIN}") from None


def _crc32(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum
