"""Many clips through a codec: read ahead by threads, equal lengths in one batch, long clips in a stream.

Both directions, `encode_clips` (sounds to codes) and `decode_clips` (codes to sounds), yield one result a clip. One
that cannot be read comes out as `Failed` and does not disturb the others. Clips wait for others of their length, so
the order may differ from the input's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, cast

import soxr
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.codec.segmented import SegmentedCodec
from audiogen.codec.tokens import TokenHeader
from audiogen.errors import InputError
from audiogen.interfaces import Segment

T = TypeVar("T")
R = TypeVar("R")
Part = TypeVar("Part")

WORKERS = 4  # threads that read files ahead
# A longer clip goes through the codec as a stream: memory does not grow with its length, but for the bytes of the token
# file that is decoded.
LONG_S = 30.0
BLOCK_S = 10.0
# What a codec and the header of its tokens have in common.
SIZES = (
    "sample_rate",
    "channels",
    "codebook_size",
    "hop_length",
    "segment_samples",
    "stride_samples",
    "normalised",
)


class UnreadableError(InputError):
    """A clip that streams turned out to be damaged."""


@dataclass(frozen=True)
class Sound:
    """A sound to encode: a file, a part of it (from `start_s` for `duration_s`), or what `render` makes.

    name: its path below the input, which the output keeps; `key` has the input's folder before it.
    render: sample rate in Hz -> audio [C, N]; then `path` only names the sound.
    """

    key: str
    name: Path
    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)
    render: Callable[[int], Tensor] | None = None


@dataclass(frozen=True)
class Tokens:
    """Codes to decode: `read` gives their header and segments as those of a `Clip`, or raises InputError."""

    key: str
    name: Path
    read: Callable[[], tuple[TokenHeader, Iterable[Segment]]]


class Clip(NamedTuple, Generic[Part]):
    """What became of a clip.

    parts: encoded, the codec's segments with B = 1, or blocks of any length of a codec that takes the clip as a whole;
    decoded, blocks of audio [C, n] in [-1, 1], joined exactly as long as what was encoded. To iterate over those of a
    long clip is to read it: `UnreadableError` may come.
    """

    key: str
    header: TokenHeader
    parts: Iterable[Part]


class Ready(NamedTuple):
    """A clip that was read: those of one `group` are converted together, one of group None is streamed."""

    key: str
    header: TokenHeader
    group: Hashable
    data: Any  # audio [C, N] or segments, of a long clip block by block


class Failed(NamedTuple):
    """A clip that could not be read, and why."""

    key: str
    reason: str


def encode_clips(
    codec: SegmentedCodec, sounds: Iterable[Sound], num_codebooks: int, batch_size: int | None = None
) -> Iterator[Clip[Segment] | Failed]:
    """Encode sounds, resampled and mixed to the codec's rate and channels, with the first `num_codebooks`.

    batch_size: clips of equal length at a time; None is 8 on a GPU and 1 on a CPU.
    """
    rate = codec.sample_rate

    def read(sound: Sound) -> Ready:
        header, samples = _read_sound(codec, num_codebooks, sound)
        num_samples = samples.shape[-1] if isinstance(samples, Tensor) else None
        return Ready(sound.key, header, num_samples, samples)

    def encode(clips: Sequence[Ready]) -> list[list[Segment]]:
        stacked = torch.stack([clip.data for clip in clips]).to(codec.device)  # [B, C, N]
        segments = codec.encode(stacked, num_codebooks)
        return [[_row(segment, row) for segment in segments] for row in range(len(clips))]

    def stream(header: TokenHeader, blocks: Iterable[Tensor]) -> Iterator[Segment]:
        """Audio blocks [C, n] -> segments, or blocks of codes."""
        moved = (block[None].to(codec.device) for block in _watch("encoded", blocks, rate, header.duration_s))
        return (_row(segment, 0) for segment in codec.encode_stream(moved, num_codebooks))

    return _transcode(sounds, read, encode, stream, batch_size or _default_batch(codec))


def decode_clips(
    codec: SegmentedCodec,
    clips: Iterable[Tokens],
    original_rate: bool = False,
    batch_size: int | None = None,
) -> Iterator[Clip[Tensor] | Failed]:
    """Decode codes that this codec made, to its own sample rate or to that of the recording (`original_rate`).

    The length is that of the encoded clip, or with `original_rate` of the recording, to the sample.
    """

    def read(clip: Tokens) -> Ready:
        header, segments = clip.read()
        check_codec(codec, header, clip.key)
        if original_rate and header.source_num_samples is None:
            raise InputError(
                f"{clip.key}: the sample rate of the recording is not in the file; decode to the codec's rate"
            )
        if header.duration_s > LONG_S:
            return Ready(clip.key, header, None, segments)
        length = header.num_frames if header.segment_samples is None else header.num_samples
        return Ready(clip.key, header, (header.num_codebooks, length), list(segments))

    def finish(header: TokenHeader, blocks: Iterable[Tensor]) -> Iterator[Tensor]:  # each [C, n]
        blocks = _first(header.num_samples, blocks)
        if original_rate:
            assert header.source_sample_rate and header.source_num_samples
            resampled = _resample(blocks, codec.sample_rate, header.source_sample_rate)
            blocks = _first(header.source_num_samples, resampled)
        # A decoder overshoots on loud recordings: expected, so `audio.save` must not warn of it.
        return (block.clamp(-1, 1) for block in blocks)

    def decode(clips: Sequence[Ready]) -> list[Iterator[Tensor]]:
        segments = [_stack(row, codec.device) for row in zip(*(clip.data for clip in clips), strict=True)]
        num_samples = max(clip.header.num_samples for clip in clips)  # of the same number of frames
        decoded = codec.decode(segments, num_samples).cpu()  # [B, C, N]
        return [finish(clip.header, [row]) for clip, row in zip(clips, decoded, strict=True)]

    def stream(header: TokenHeader, segments: Iterable[Segment]) -> Iterator[Tensor]:  # each [C, n]
        stacked = (_stack([segment], codec.device) for segment in segments)
        blocks = (block[0].cpu() for block in codec.decode_stream(stacked, header.num_samples))
        return finish(header, _watch("decoded", blocks, codec.sample_rate, header.duration_s))

    return _transcode(clips, read, decode, stream, batch_size or _default_batch(codec))


def _default_batch(codec: SegmentedCodec) -> int:
    # On a CPU a batch was measured to be no faster, and one by one is the same to the bit: in a batch matrix products
    # may round differently (latents moved by 3e-7, and 0 of 316,448 codes of ESC-10).
    return 1 if codec.device.type == "cpu" else 8


def _transcode(
    items: Iterable[Any],
    read: Callable[[Any], Ready],
    convert: Callable[[Sequence[Ready]], Sequence[Iterable[Part]]],
    stream: Callable[[TokenHeader, Any], Iterable[Part]],
    batch_size: int,
) -> Iterator[Clip[Part] | Failed]:
    """Sounds or tokens, read ahead, then converted in batches or streamed."""

    def read_item(item: Any) -> Ready | Failed:
        try:
            return read(item)
        except InputError as error:
            return Failed(item.key, str(error))

    def group(item: Ready | Failed) -> Hashable:
        return None if isinstance(item, Failed) else item.group

    for batch in batches(prefetch(read_item, items, WORKERS + batch_size), group, batch_size):
        first = batch[0]
        if isinstance(first, Failed):
            yield first
        elif first.group is None:
            yield Clip(first.key, first.header, _readable(stream(first.header, first.data)))
        else:
            ready = cast("list[Ready]", batch)  # what failed comes alone
            for clip, parts in zip(ready, convert(ready), strict=True):
                yield Clip(clip.key, clip.header, parts)


def _readable(parts: Iterable[Part]) -> Iterator[Part]:
    """The parts of a clip that is read while it is converted; an InputError is of this clip alone."""
    try:
        yield from parts
    except InputError as error:
        raise UnreadableError(str(error)) from error


def check_codec(codec: SegmentedCodec, header: TokenHeader, name: str) -> None:
    """Codes mean something only to the encoder and codebooks that made them; InputError for any other codec."""
    if header.identity and header.identity != codec.identity:  # formats of others do not carry one
        raise InputError(
            f"{name}: made by codec {header.codec} ({header.identity}); "
            f"this is {codec.name} ({codec.identity}): give the right one with --codec"
        )
    for size in SIZES:
        if getattr(header, size) != getattr(codec, size):
            raise InputError(
                f"{name}: {size} is {getattr(header, size)}, the codec's is {getattr(codec, size)}"
            )
    if header.num_codebooks > codec.num_codebooks:
        raise InputError(f"{name}: {header.num_codebooks} codebooks, the codec has {codec.num_codebooks}")


def header_for(
    codec: SegmentedCodec,
    num_codebooks: int,
    num_samples: int,
    source_sample_rate: int | None = None,
    source_num_samples: int | None = None,
) -> TokenHeader:
    """The header of codes that this codec makes of a clip."""
    return TokenHeader(
        codec=codec.name,
        identity=codec.identity,
        num_samples=num_samples,
        num_codebooks=num_codebooks,
        source_sample_rate=source_sample_rate,
        source_num_samples=source_num_samples,
        **{name: getattr(codec, name) for name in SIZES},
    )


def _read_sound(
    codec: SegmentedCodec, num_codebooks: int, sound: Sound
) -> tuple[TokenHeader, Tensor | Iterable[Tensor]]:
    """The header of the codes to come, and the samples [C, N] or, of a long sound, blocks of them [C, n]."""
    rate, channels, samples = codec.sample_rate, codec.channels, None
    if sound.render is not None:
        samples = audio.convert_channels(sound.render(rate), channels)
        source_rate, num_samples = rate, samples.shape[-1]
        source_num_samples = num_samples
    else:
        info = audio.info(sound.path)
        source_rate, source_num_samples = info.sample_rate, info.num_frames
        num_samples = audio.resampled_length(source_num_samples, source_rate, rate)
        is_part = sound.start_s > 0 or sound.duration_s is not None
        if is_part or info.duration_s <= LONG_S:
            samples, _ = audio.load(sound.path, rate, channels, sound.start_s, sound.duration_s)
            if is_part:
                num_samples = samples.shape[-1]
                source_num_samples = min(source_num_samples, num_samples * source_rate // rate)
    header = header_for(codec, num_codebooks, num_samples, source_rate, source_num_samples)
    if samples is None:
        return header, audio.stream(sound.path, rate, channels, BLOCK_S)
    return header, samples.split(round(BLOCK_S * rate), dim=-1) if header.duration_s > LONG_S else samples


def _watch(verb: str, blocks: Iterable[Tensor], sample_rate: int, duration_s: float) -> Iterator[Tensor]:
    """Pass on the audio blocks [C, n] of a long clip, which gets a bar of its own."""
    with tqdm(total=round(duration_s), unit="s", desc=verb, disable=None, leave=False) as bar:
        num_samples = 0
        for block in blocks:
            yield block
            num_samples += block.shape[-1]
            bar.update(round(num_samples / sample_rate) - bar.n)


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
