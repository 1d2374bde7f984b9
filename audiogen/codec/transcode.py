"""Many clips through a codec: read ahead by threads, equal lengths in one batch, long clips in a stream.

Both directions, `encode_clips` (sounds to codes) and `decode_clips` (codes to sounds), yield one result a clip. For one
that cannot be read it is an `UnreadableError`, and the others go on. Clips wait for others of their length, so the
order may differ from the input's.
"""

from __future__ import annotations

import functools
import os
import zlib
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.codec.segmented import SegmentedCodec
from audiogen.codec.tokens import TokenHeader
from audiogen.errors import InputError
from audiogen.files import remote
from audiogen.interfaces import Segment

T = TypeVar("T")
R = TypeVar("R")
Part = TypeVar("Part")

WORKERS = min(
    4, max(1, (os.cpu_count() or 2) - 1)
)  # threads that read files ahead, beside the one that converts
# A longer clip goes through the codec as a stream: memory does not grow with its length, but for the bytes of the token
# file that is decoded.
LONG_S = 30.0
BLOCK_S = 10.0  # of it that are read at a time
# What differs between clips of one codec, or is checked by itself.
CLIP_KEYS = {"codec", "identity", "num_codebooks", "num_samples"}
CLIP_KEYS |= {"source_sample_rate", "source_num_samples", "source_key", "source_crc"}


class UnreadableError(InputError):
    """Why a clip cannot be read, which may come out only while it is converted."""

    def __init__(self, key: str, reason: InputError) -> None:
        super().__init__(str(reason))
        self.key = key


@dataclass(frozen=True)
class Sound:
    """A sound to encode: a file, a part of it (from `start_s` for `duration_s`), or what `render` makes.

    name: its path below the input, which the output keeps; `key` has the input's folder before it. path: a file's, or
    the URL of one, as text.
    render: sample rate in Hz and channels -> audio [C, N]; then `path` only names the sound.
    """

    key: str
    name: Path
    path: Path | str
    start_s: float = 0.0
    duration_s: float | None = None
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    render: Callable[[int, int], Tensor] | None = None

    @property
    def is_part(self) -> bool:
        """Of a file."""
        return self.start_s > 0 or self.duration_s is not None

    def file(self) -> Path:
        """The file, or the copy here of one at a URL. InputError where that cannot be fetched."""
        return remote.fetch(self.path) if isinstance(self.path, str) else self.path

    def checksum(self) -> int | None:
        """CRC-32 of the file, and of where in it a part is; None of what is rendered. InputError if unreadable."""
        if self.render is not None:
            return None
        try:
            path = self.file()
            facts = path.stat()
            crc = _file_checksum(path, facts.st_ino, facts.st_size, facts.st_mtime_ns)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        return zlib.crc32(f"{self.start_s} {self.duration_s}".encode(), crc) if self.is_part else crc


@functools.lru_cache(maxsize=1 << 14)
def _file_checksum(path: Path, *facts: int) -> int:
    """CRC-32 of a file that has these facts. A long recording is read once for it, however many parts are encoded."""
    crc = 0
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            crc = zlib.crc32(data, crc)
    return crc


@dataclass(frozen=True)
class Tokens:
    """Codes to decode: `read` gives their header and segments as those of a `Clip`, or raises InputError."""

    key: str
    name: Path
    read: Callable[[], tuple[TokenHeader, Iterable[Segment]]]


@dataclass(frozen=True)
class Clip(Generic[Part]):
    """A clip, read or converted.

    parts: of codes, the codec's segments with B = 1, or blocks of any length of a codec that takes the clip as a whole;
    of sound, blocks of audio [C, n], decoded in [-1, 1] and joined exactly as long as what was encoded. To iterate over
    those of a long clip is to read it: `UnreadableError` may come.
    """

    key: str
    header: TokenHeader
    parts: Iterable[Part]

    @property
    def is_long(self) -> bool:
        """Whether its parts are converted one by one, as they are asked for."""
        return self.header.duration_s > LONG_S


def encode_clips(
    codec: SegmentedCodec, sounds: Iterable[Sound], num_codebooks: int, batch_size: int | None = None
) -> Iterator[Clip[Segment] | UnreadableError]:
    """Encode sounds, resampled and mixed to the codec's rate and channels, with the first `num_codebooks`.

    batch_size: clips of equal length at a time; None is 8 on a GPU and 1 on a CPU.
    """

    def read(sound: Sound) -> Clip[Tensor]:  # of blocks [C, n]
        return _read_sound(replace(codec.header, num_codebooks=num_codebooks), sound)

    def encode(clips: Sequence[Clip[Tensor]]) -> list[list[Segment]]:
        samples = torch.stack([block for clip in clips for block in clip.parts])  # [B, C, N]
        segments = codec.encode(samples.to(codec.device), num_codebooks)
        return [[_row(segment, row) for segment in segments] for row in range(len(clips))]

    def stream(clip: Clip[Tensor]) -> Iterator[Segment]:  # from blocks [C, n]
        moved = (block[None].to(codec.device) for block in _watch("encoded", clip.parts, clip.header))
        return (_row(segment, 0) for segment in codec.encode_stream(moved, num_codebooks))

    return _transcode(sounds, read, encode, stream, batch_size or _default_batch(codec))


def decode_clips(
    codec: SegmentedCodec,
    clips: Iterable[Tokens],
    original_rate: bool = False,
    batch_size: int | None = None,
) -> Iterator[Clip[Tensor] | UnreadableError]:
    """Decode codes that this codec made, to its own sample rate or to that of the recording (`original_rate`).

    The length is that of the encoded clip, or with `original_rate` of the recording, to the sample.
    """

    def read(clip: Tokens) -> Clip[Segment]:
        header, segments = clip.read()
        check_codec(codec, header, clip.key)
        if original_rate and header.source_num_samples is None:
            raise InputError(
                f"{clip.key}: the sample rate of the recording is not in the file; decode to the codec's rate"
            )
        return Clip(clip.key, header, segments if header.duration_s > LONG_S else list(segments))

    def finish(header: TokenHeader, blocks: Iterable[Tensor]) -> Iterator[Tensor]:  # each [C, n]
        blocks = _first(header.num_samples, blocks)
        if original_rate:
            assert header.source_sample_rate and header.source_num_samples
            resampled = _resample(blocks, header.sample_rate, header.source_sample_rate)
            blocks = _first(header.source_num_samples, resampled)
        # A decoder overshoots on loud recordings: expected, so `audio.save` must not warn of it.
        return (block.clamp(-1, 1) for block in blocks)

    def decode(clips: Sequence[Clip[Segment]]) -> list[Iterator[Tensor]]:
        segments = [_stack(row, codec.device) for row in zip(*(clip.parts for clip in clips), strict=True)]
        num_samples = max(clip.header.num_samples for clip in clips)  # of the same number of frames
        decoded = codec.decode(segments, num_samples).cpu()  # [B, C, N]
        return [finish(clip.header, [row]) for clip, row in zip(clips, decoded, strict=True)]

    def stream(clip: Clip[Segment]) -> Iterator[Tensor]:  # each [C, n]
        stacked = (_stack([segment], codec.device) for segment in clip.parts)
        blocks = (block[0].cpu() for block in codec.decode_stream(stacked, clip.header.num_samples))
        return finish(clip.header, _watch("decoded", blocks, clip.header))

    return _transcode(clips, read, decode, stream, batch_size or _default_batch(codec))


def _default_batch(codec: SegmentedCodec) -> int:
    # On a CPU a batch was measured to be no faster, and one by one is the same to the bit: in a batch matrix products
    # may round differently (latents moved by 3e-7, and 0 of 316,448 codes of ESC-10).
    return 1 if codec.device.type == "cpu" else 8


def _transcode(
    items: Iterable[Any],
    read: Callable[[Any], Clip[Any]],
    convert: Callable[[Sequence[Clip[Any]]], Sequence[Iterable[Part]]],
    stream: Callable[[Clip[Any]], Iterable[Part]],
    batch_size: int,
) -> Iterator[Clip[Part] | UnreadableError]:
    """Sounds or tokens, read ahead, then converted in batches of equal shapes or, long ones, streamed."""

    def read_item(item: Any) -> Clip[Any] | UnreadableError:
        try:
            return read(item)
        except InputError as error:
            return UnreadableError(item.key, error)

    def group(clip: Clip[Any] | UnreadableError) -> Hashable:
        if isinstance(clip, UnreadableError) or clip.is_long:
            return None
        return tuple((part.codes if isinstance(part, Segment) else part).shape for part in clip.parts)

    for batch in batches(prefetch(read_item, items, WORKERS + batch_size), group, batch_size):
        first = batch[0]
        if isinstance(first, UnreadableError):  # it comes alone, and so does a long clip
            yield first
        elif first.is_long:
            yield replace(first, parts=_readable(first.key, stream(first)))
        else:
            clips = [clip for clip in batch if isinstance(clip, Clip)]
            for clip, parts in zip(clips, convert(clips), strict=True):
                yield replace(clip, parts=parts)


def _readable(key: str, parts: Iterable[Part]) -> Iterator[Part]:
    """The parts of a clip that is read while it is converted; an InputError is of this clip alone."""
    try:
        yield from parts
    except InputError as error:
        raise UnreadableError(key, error) from error


def check_codec(codec: SegmentedCodec, header: TokenHeader, name: str) -> None:
    """Codes mean something only to the encoder and codebooks that made them; InputError for any other codec."""
    ours = codec.header
    # Formats of others carry no identity.
    if header.identity and not codec.is_compatible(header.identity, header.num_codebooks):
        raise InputError(
            f"{name}: made by codec {header.named_codec}; this is {ours.named_codec}: give the right one with --codec"
        )
    for key, value in vars(ours).items():
        if key not in CLIP_KEYS and getattr(header, key) != value:
            raise InputError(f"{name}: {key} is {getattr(header, key)}, the codec's is {value}")
    if header.num_codebooks > ours.num_codebooks:
        raise InputError(f"{name}: {header.num_codebooks} codebooks, the codec has {ours.num_codebooks}")


def _read_sound(header: TokenHeader, sound: Sound) -> Clip[Tensor]:
    """Its samples [C, N] in one part or, of a long sound, in blocks [C, n]; header: the codec's."""
    rate, channels, samples = header.sample_rate, header.channels, None
    if sound.render is not None:
        samples = audio.convert_channels(sound.render(rate, channels), channels)
        source_rate = rate
        source_num_samples = samples.shape[-1]
    else:
        info = audio.info(sound.path)
        source_rate, source_num_samples = info.sample_rate, info.num_frames
        # before the samples: where the file is replaced meanwhile, the next run encodes it again
        header = replace(header, source_crc=sound.checksum())
        if sound.is_part or info.duration_s <= LONG_S:
            samples, _ = audio.load(sound.path, rate, channels, sound.start_s, sound.duration_s)
            source_num_samples = min(source_num_samples, samples.shape[-1] * source_rate // rate)  # of a part
    if samples is None:
        num_samples = audio.resampled_length(source_num_samples, source_rate, rate)
        parts: Iterable[Tensor] = audio.stream(sound.path, rate, channels, BLOCK_S)
    else:
        num_samples = samples.shape[-1]
        parts = samples.split(round(BLOCK_S * rate) if num_samples > LONG_S * rate else num_samples, dim=-1)
    header = replace(
        header,
        num_samples=num_samples,
        source_sample_rate=source_rate,
        source_num_samples=source_num_samples,
    )
    return Clip(sound.key, header, parts)


def _watch(verb: str, blocks: Iterable[Tensor], header: TokenHeader) -> Iterator[Tensor]:
    """Pass on the audio blocks [C, n] of a long clip, which gets a bar of its own."""
    with tqdm(total=round(header.duration_s), unit="s", desc=verb, disable=None, leave=False) as bar:
        num_samples = 0
        for block in blocks:
            yield block
            num_samples += block.shape[-1]
            bar.update(round(num_samples / header.sample_rate) - bar.n)


def _row(segment: Segment, row: int) -> Segment:
    """One clip's part of a segment of a batch, on the CPU."""
    scale = None if segment.scale is None else segment.scale[row : row + 1].cpu()
    return Segment(segment.codes[row : row + 1].cpu(), scale)


def _stack(rows: Sequence[Segment], device: torch.device) -> Segment:
    """The inverse: one segment of each clip as a batch on the codec's device."""
    scales = [segment.scale for segment in rows if segment.scale is not None]
    codes = torch.cat([segment.codes for segment in rows]).to(device)
    return Segment(codes, torch.cat(scales).to(device) if scales else None)


def _resample(blocks: Iterable[Tensor], from_rate: int, to_rate: int) -> Iterator[Tensor]:
    """Blocks [C, n] at one rate -> blocks at another; joined, at least ceil(N * to_rate / from_rate) samples."""
    resampler: soxr.ResampleStream | None = None
    for block in blocks:
        if resampler is None:
            resampler = soxr.ResampleStream(from_rate, to_rate, block.shape[0], dtype="float32", quality="HQ")
        yield torch.from_numpy(resampler.resample_chunk(block.T.contiguous().numpy()).T.copy())
    if resampler is not None:
        # The filter's tail; it can end one sample early, and zeros after the end of the clip bring that out.
        zeros = block.new_zeros(block.shape[0], from_rate // 100).T.contiguous().numpy()
        yield torch.from_numpy(resampler.resample_chunk(zeros, last=True).T.copy())


def _first(num_samples: int, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """The first `num_samples` of blocks [C, n]; there must be that many."""
    for block in blocks:
        if block.shape[-1] > 0:
            yield block[:, :num_samples]
        num_samples -= block.shape[-1]
        if num_samples <= 0:
            return
    assert num_samples <= 0, f"{num_samples} samples are missing at the end"


def prefetch(function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """function(item) in order, computed by threads up to `ahead` items early."""
    pool, coming = ThreadPoolExecutor(WORKERS), iter(items)
    waiting = deque(pool.submit(function, item) for item in islice(coming, ahead))
    try:
        while waiting:
            waiting.extend(pool.submit(function, item) for item in islice(coming, 1))
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batches(items: Iterable[T], key: Callable[[T], Hashable], size: int) -> Iterator[list[T]]:
    """Lists of `size` items with equal keys, the last ones shorter; items with key None come at once, each alone.

    At most four lists' worth of items wait; then those that have waited longest come.
    """
    waiting: dict[Hashable, list[T]] = {}
    for item in items:
        if (group := key(item)) is None:
            yield [item]
            continue
        waiting.setdefault(group, []).append(item)
        if len(waiting[group]) == size:
            yield waiting.pop(group)
        elif sum(map(len, waiting.values())) >= 4 * size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
