"""Sources of sound as one numbered set of items, each item a pure function of (index, epoch, seed)."""

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiogen import audio
from audiogen.config import (
    NotNegative,
    Positive,
    PositiveFloat,
    Probability,
    Range,
    build,
    check_ranges,
    short,
)
from audiogen.data import synth
from audiogen.data.captions import choose
from audiogen.data.lines import Clips, Joined, is_large, open_lines
from audiogen.data.loader import Item
from audiogen.data.manifest import (
    Clip,
    ClipPart,
    group_of,
    held_out,
    order_of,
    read_manifest,
    scan_folder,
    select,
)
from audiogen.data.mix import mix
from audiogen.data.seeds import draw, generator_for
from audiogen.errors import InputError
from audiogen.files import remote
from audiogen.interfaces import AudioBatch, Batch

log = logging.getLogger(__name__)

SYNTH_SEED = 0  # the built-in corpus is one corpus: "synth:7" names the same sound in every run
SYNTH_DURATION_S, SYNTH_LONGEST_S = 5.0, 30.0
CACHED_CLIP_S = 60  # longer clips are read from disk crop by crop
MOST_LENGTHS = 200_000  # kept in memory; of more clips a header is read again now and then
NEARLY_FULL = 0.9  # of a segment: clips of about its length are meant to fill it
SYNTH_SOURCE = re.compile(r"synth:(0*[1-9]\d*)(?:@(\d+))?")


@dataclass(frozen=True)
class SourceConfig:
    """One source of clips.

    source: a manifest, a folder (by its manifest.jsonl, or else by the sounds in it), "synth:COUNT" or
    "synth:COUNT@START" (the built-in corpus), or a folder of token shards; a manifest, a folder with one and token
    shards also by a URL. repeat: how often an epoch passes
    over it. where: allowed values of manifest fields, a tuple for each; one value may be given alone. Of the built-in
    corpus there are kind (of all events of a clip) and form ("one", "order", "overlap" or "emphasis").
    duration_s: length of the clips of the built-in corpus, 0.5 to 30 s; null: the segment's, at least 5 s.
    """

    source: str
    repeat: Positive = 1
    where: dict[str, Any] = field(default_factory=dict)
    duration_s: Annotated[float, Range(0.5, SYNTH_LONGEST_S)] | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.duration_s is not None and not self.source.startswith("synth"):
            raise InputError(f"duration_s is of clips of the built-in corpus, not of {self.source}; drop it")
        values = {k: tuple(v) if isinstance(v, (list, tuple)) else (v,) for k, v in self.where.items()}
        object.__setattr__(self, "where", values)


def parse_sources(value: Any) -> tuple[SourceConfig, ...]:
    """`"a.jsonl"`, `{"source": .., "where": ..}`, a SourceConfig, or a list of these -> SourceConfigs."""
    if value is None:
        return ()
    if isinstance(value, SourceConfig):
        return (value,)
    if isinstance(value, (str, os.PathLike)):
        return (SourceConfig(os.fspath(value)),)
    if isinstance(value, Mapping):
        return (build(SourceConfig, value, "source"),)
    if isinstance(value, Iterable):
        return tuple(source for part in value for source in parse_sources(part))
    raise InputError(f"source {short(value)}: expected a manifest, a folder, synth:COUNT or a list of these")


Pair = tuple[float, float]  # low, high
Speed = Annotated[float, Range(0.25, 4)]


@dataclass(frozen=True)
class Variation:
    """How clips are mixed and changed, by default not at all; see `DataConfig`."""

    mix_probability: float = 0.0
    mix_snr_db: Pair = (-5.0, 5.0)
    gain_db: Pair = (0.0, 0.0)
    speed: Pair = (1.0, 1.0)


@dataclass(frozen=True)
class DataConfig:
    """What to train and validate on, and how clips are cut and varied.

    segment_s: longer clips are cropped at a random place, shorter ones padded with zeros at the end.
    mix_probability, mix_snr_db: AudioGen's mixing of two clips. gain_db: range of a random gain. speed: range of
    a random playback speed, which moves pitch and tempo together; a clip that fills a segment still does.
    holdout: share of each source's clips kept for validation when `valid` is empty; of few clips more, see `held_out`.
    cache_mb: decoded clips kept in memory, per worker process; 0 turns it off. It changes no result.
    """

    train: tuple[SourceConfig, ...]
    valid: tuple[SourceConfig, ...] = ()
    segment_s: PositiveFloat = 1.0
    mix_probability: Probability = 0.0
    mix_snr_db: Pair = (-5.0, 5.0)
    gain_db: Pair = (0.0, 0.0)
    speed: tuple[Speed, Speed] = (1.0, 1.0)
    holdout: Annotated[float, Range(0, 1, below=True)] = 0.05
    cache_mb: NotNegative = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "train", parse_sources(self.train))
        object.__setattr__(self, "valid", parse_sources(self.valid))
        if not self.train:
            raise InputError("train: names no source; give a manifest, a folder or synth:COUNT")
        check_ranges(self)
        for name in ("mix_snr_db", "gain_db", "speed"):
            low, high = getattr(self, name)
            if low > high:
                raise InputError(f"{name}: [{low}, {high}], expected [low, high]")


class BuiltInClip(Clip):
    """Clip `number` of the built-in corpus; its path is its name as a source of one clip.

    duration_s: its length; None: that of the segment it is for, at least 5 s.
    """

    def __init__(self, number: int, duration_s: float | None = None) -> None:
        super().__init__(f"synth:1@{number}", duration_s=duration_s)

    @property
    def number(self) -> int:
        return int(self.path.rpartition("@")[2])


def read_source(source: SourceConfig) -> Sequence[Clip]:
    """The clips of a source, its `where` applied, without repeats. Raises InputError for what is not a source."""
    name = source.source
    if name.startswith("synth"):
        match = SYNTH_SOURCE.fullmatch(name)
        if not match:
            raise InputError(f"{name}: expected synth:COUNT or synth:COUNT@START, COUNT above 0")
        start = int(match[2] or 0)
        numbers: Sequence[int] = range(start, start + int(match[1]))
        if source.where:
            duration_s = source.duration_s or SYNTH_DURATION_S
            numbers = synth.select(SYNTH_SEED, numbers, duration_s, source.where)
        return [BuiltInClip(number, source.duration_s) for number in numbers]
    if remote.is_remote(name):
        return _read_remote(source)
    listed = os.path.join(name, "manifest.jsonl")
    manifest = listed if os.path.isfile(listed) else name
    if os.path.isfile(manifest) and is_large(manifest):
        return open_lines(manifest, source.where)
    if os.path.isfile(listed):
        clips = read_manifest(listed)
    elif os.path.isdir(name):
        clips, bad = scan_folder(name, decode=False)
        for path, reason in bad:
            log.warning("left out: %s: %s", path, reason)
        if not clips:
            raise InputError(f"{name}: none of its {len(bad)} sounds can be read; the first: {bad[0][1]}")
    elif os.path.exists(name):
        clips = read_manifest(name)
    else:
        raise InputError(f"{name}: no such manifest or folder (synth:COUNT is the built-in corpus)")
    try:
        return select(clips, source.where)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def _read_remote(source: SourceConfig) -> Sequence[Clip]:
    """The clips of a manifest at a URL, or of that in the folder at one."""
    is_manifest = source.source.lower().endswith((".jsonl", ".csv"))
    url = source.source if is_manifest else remote.joined(source.source, "manifest.jsonl")
    copy, folder = remote.fetch(url), url.rpartition("/")[0]
    if is_large(copy):
        return open_lines(copy, source.where, folder)
    try:
        return select(read_manifest(copy, folder), source.where)
    except InputError as error:
        raise InputError(f"{url}: {error}") from None


@dataclass(eq=False)
class AudioDataset:
    """Clips as segments of `segment_s` at one rate and channel count; `segment_s=None` gives whole clips.

    `item` depends on its arguments alone, so workers, resume and the cache change nothing. The cache holds
    whole decoded, resampled clips up to `cache_mb`, the first ones that fit: in a random order no other choice
    is better.
    """

    clips: Sequence[Clip]
    sample_rate: int
    channels: int = 1
    segment_s: float | None = None
    vary: Variation = Variation()
    cache_mb: int = 0
    cache: dict[ClipPart, Tensor] = field(default_factory=dict, init=False)
    cache_bytes: int = field(default=0, init=False)
    # samples at sample_rate, from the files' headers
    lengths: dict[ClipPart, int] = field(default_factory=dict, init=False)
    batch_type: ClassVar[type[Batch]] = AudioBatch
    groups: ClassVar[None] = None

    def __post_init__(self) -> None:
        if not self.clips:
            raise InputError("the data holds no clips")
        self.segment = None if self.segment_s is None else max(1, round(self.segment_s * self.sample_rate))
        # What is played slower has its highest frequencies from above those of the rate of what comes out.
        self.read_rate = math.ceil(self.sample_rate / min(1.0, self.vary.speed[0]))

    def __len__(self) -> int:
        return len(self.clips)

    def item(self, index: int, epoch: int, seed: int) -> Item:
        """Segment of clip `index` with the crop, wording, gain and mixing of (epoch, seed).

        Raises InputError that names the file when it, or the clip mixed into it, cannot be read.
        """
        random = generator_for("item", seed, epoch, index)
        item, vary = self._segment(index, random), self.vary
        if vary.mix_probability and len(self) > 1 and draw(random, 0, 1) < vary.mix_probability:
            partner = int(torch.randint(len(self) - 1, (), generator=random))
            other = self._segment(partner + (partner >= index), random)
            item = mix(item, other, draw(random, *vary.mix_snr_db), draw(random, 0, 1))
        if vary.gain_db != (0.0, 0.0):
            gain = 10 ** (draw(random, *vary.gain_db) / 20)
            peak = float(item.data.abs().max())
            # A gain above 1 stops where the peak reaches full scale.
            item = item._replace(data=item.data * min(gain, max(1.0, 1.0 / max(peak, 1e-9))))
        return item

    def _segment(self, index: int, random: torch.Generator) -> Item:
        """One clip's crop, zero-padded to the segment; draws from `random` as often whatever the clip is."""
        clip, segment, rate = self.clips[index], self.segment, self.read_rate
        place, wording = draw(random, 0, 1), draw(random, 0, 1)
        total, captions = self._length(clip), self.captions(index)
        if self.vary.speed != (1.0, 1.0):
            speed = draw(random, *self.vary.speed)
            if segment is not None:
                filled = total * self.sample_rate / (segment * self.read_rate)  # at its own speed
                if filled > NEARLY_FULL:  # not played so fast that silence follows it
                    speed = min(speed, max(filled, 1.0))
            rate = round(rate * speed)
        wanted = total if segment is None else audio.resampled_length(segment, self.sample_rate, rate)
        length = min(total, wanted)
        start = int(place * (total - length + 1))
        # Played at `rate` instead of the rate it was recorded at: faster and higher, or slower and lower.
        part = audio.resample(self._read(clip, start, length), rate, self.sample_rate)[:, :segment]
        padding = 0 if segment is None else segment - part.shape[-1]
        padded = torch.nn.functional.pad(part, (0, padding)) if padding else part
        return Item(padded, choose(captions, wording), clip.key, part.shape[-1])

    def _length(self, clip: Clip) -> int:
        if isinstance(clip, BuiltInClip):
            return round(self._built_in_s(clip) * self.read_rate)
        if clip.place not in self.lengths:
            if len(self.lengths) >= MOST_LENGTHS:
                self.lengths.clear()
            header = audio.info(clip.path)
            rate = self.read_rate
            length = audio.resampled_length(header.num_frames, header.sample_rate, rate)
            length -= round(clip.start_s * rate)
            wanted = length if clip.duration_s is None else max(1, round(clip.duration_s * rate))
            if length <= 0 or wanted > length + rate // 10:
                part = "some" if clip.duration_s is None else f"{clip.duration_s:g} s"
                raise InputError(
                    f"{clip.path}: lasts {header.duration_s:g} s, the manifest has {part} of it from {clip.start_s:g} "
                    "s on; the file is truncated, or another file"
                )
            self.lengths[clip.place] = min(length, wanted)
        return self.lengths[clip.place]

    def captions(self, index: int) -> Sequence[str]:
        """All wordings of a clip, without reading its sound."""
        clip = self.clips[index]
        if isinstance(clip, BuiltInClip):
            return synth.captions(SYNTH_SEED, clip.number, self._built_in_s(clip))
        return clip.captions

    def _built_in_s(self, clip: BuiltInClip) -> float:
        """Built-in clips last as long as the segment, or as asked: their captions are of the whole clip, not a crop."""
        if clip.duration_s is not None:
            return clip.duration_s
        return min(SYNTH_LONGEST_S, max(SYNTH_DURATION_S, (self.segment or 0) / self.sample_rate))

    def _read(self, clip: Clip, start: int, length: int) -> Tensor:
        """Samples [start, start + length) of a clip -> [C, length]: from the cache, or only this part from disk."""
        whole = self.cache.get(clip.place)
        if whole is None:
            total = self._length(clip)
            size = 4 * self.channels * total
            fits = self.cache_bytes + size <= self.cache_mb * 1_000_000
            if total > CACHED_CLIP_S * self.read_rate or not fits:
                return self._decode(clip, start, length)
            whole = self._decode(clip, 0, total)
            self.cache[clip.place] = whole
            self.cache_bytes += size
        return whole[:, start : start + length].clone()

    def _decode(self, clip: Clip, start: int, length: int) -> Tensor:
        if isinstance(clip, BuiltInClip):
            sound = synth.render(
                SYNTH_SEED, clip.number, self.read_rate, self._built_in_s(clip), min(2, self.channels)
            ).audio
            return audio.convert_channels(sound, self.channels)[:, start : start + length]
        rate = self.read_rate
        start += round(clip.start_s * rate)
        part, _ = audio.load(clip.path, rate, self.channels, start / rate, length / rate)
        if part.shape[-1] != length:
            raise InputError(f"{clip.key}: the file has become shorter since it was first read")
        return part


D = TypeVar("D")


@dataclass(frozen=True)
class Split(Generic[D]):
    """A training set and, if anything is left for it, a validation set.

    No NamedTuple, which cannot be generic in Python 3.10.
    """

    train: D
    valid: D | None

    def __iter__(self) -> Iterator[D | None]:
        return iter((self.train, self.valid))


C = TypeVar("C")


def split_sources(
    config: DataConfig, read: Callable[[SourceConfig], Sequence[C]], group: Callable[[C], str]
) -> tuple[Sequence[C], Sequence[C]]:
    """The clips to train on, as often as their sources repeat them, and those to validate on.

    group: what a clip stays together with on one side of the split.
    """
    train: list[tuple[Sequence[C], NDArray[np.int64]]] = []
    valid = [(clips, np.arange(len(clips))) for clips in map(read, config.valid)]
    for source in config.train:
        clips = read(source)
        orders = clips.orders if isinstance(clips, Clips) else [order_of(group(clip)) for clip in clips]
        out = held_out(orders, 0.0 if config.valid else config.holdout)
        train += [(clips, np.flatnonzero(~out))] * source.repeat
        valid.append((clips, np.flatnonzero(out)))
    return _joined(train), _joined(valid)


def _joined(parts: Sequence[tuple[Sequence[C], NDArray[np.int64]]]) -> Sequence[C]:
    """Places of sequences as a list, or as `Joined` where one is too long for that."""
    if any(isinstance(clips, Clips) for clips, _ in parts):
        return Joined(parts)
    return [clips[place] for clips, places in parts for place in places.tolist()]


def open_data(config: DataConfig, sample_rate: int, channels: int = 1) -> Split[AudioDataset]:
    """The training and validation sets of a recipe; validation is neither mixed nor changed in gain.

    Without `valid`, the share `holdout` of every training source is held out, recordings kept together.
    """
    train, valid = split_sources(config, read_source, group_of)
    segment_s, cache_mb = config.segment_s, config.cache_mb
    vary = Variation(config.mix_probability, config.mix_snr_db, config.gain_db, config.speed)
    return Split(
        AudioDataset(train, sample_rate, channels, segment_s, vary, cache_mb),
        AudioDataset(valid, sample_rate, channels, segment_s, cache_mb=cache_mb) if valid else None,
    )
