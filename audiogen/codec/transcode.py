"""Many clips through a codec: read ahead by threads, equal lengths in one batch, long clips in a stream.

Both directions, `encode_clips` (sounds to codes) and `decode_clips` (codes to sounds), yield one result a clip. One
that cannot be read comes out as `Failed` and does not disturb the others. Clips wait for others of their length, so
the order may differ from the input's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import soxr
import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec import ecdc, tokens
from audiogen.codec.segmented import SegmentedCodec
from audiogen.codec.tokens import TokenHeader
from audiogen.errors import InputError
from audiogen.interfaces import Segment

T = TypeVar("T")
R = TypeVar("R")

WORKERS = 4  # threads that read files ahead
LONG_S = 30.0  # a longer clip goes through the codec as a stream: memory does not grow with its length
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


FORMATS = {"agtok": tokens.SUFFIX, "ecdc-v0": ecdc.SUFFIX}  # of token files: our own, the encodec package's


def is_ecdc(path: Path) -> bool:
    """By the name, so that the message about a damaged file speaks of the format it was meant to have."""
    return path.suffix.lower() == ecdc.SUFFIX


def read(path: Path) -> tuple[TokenHeader, Iterable[Segment]]:
    """A token file's header, and segments with B = 1, or blocks of a clip in one piece; InputError names a bad file."""
    return ecdc.read_ecdc(path) if is_ecdc(path) else tokens.read_tokens(path)


def read_header(path: Path) -> TokenHeader:
    """A token file's header; our own files are checked to the last byte."""
    return ecdc.read_header(path) if is_ecdc(path) else tokens.read_header(path)


class UnreadableError(InputError):
    """A clip that streams turned out to be damaged."""


@dataclass(frozen=True)
class Source:
    """A sound to encode: a file, a part of it (from `start_s` for `duration_s`), or what `render` makes.

    render: sample rate in Hz -> audio [C, N]; then `path` only names the sound. name: its path below the input, which
    the output keeps. captions, fields: from a manifest or from beside the sound.
    """

    key: str
    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    render: Callable[[int], Tensor] | None = None
    name: Path = Path()
    captions: tuple[str, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tokens:
    """Codes to decode: `read` gives their header and segments as those of `Encoded`, or raises InputError."""

    key: str
    read: Callable[[], tuple[TokenHeader, Iterable[Segment]]]


class Encoded(NamedTuple):
    """Codes of a clip, B = 1: the codec's segments, or blocks of any length of a codec that takes the clip as a whole.

    To iterate over a long clip is to read it: `UnreadableError` may come.
    """

    key: str
    header: TokenHeader
    segments: Iterable[Segment]


class Decoded(NamedTuple):
    """Audio of a clip in blocks [C, n], in [-1, 1]; joined, it is exactly as long as what was encoded."""

    key: str
    audio: Iterable[Tensor]
    sample_rate: int
    duration_s: float


class Failed(NamedTuple):
    """A clip that could not be read, and why."""

    key: str
    reason: str


def encode_clips(
    codec: SegmentedCodec, sources: Iterable[Source], num_codebooks: int, batch_size: int | None = None
) -> Iterator[Encoded | Failed]:
    """Encode sounds, resampled and mixed to the codec's rate and channels, with the first `num_codebooks`.

    batch_size: clips of equal length at a time; None is `default_batch_size`.
    """
    batch_size = batch_size or default_batch_size(codec)

    def read(source: Source) -> tuple[TokenHeader, Tensor | None]:  # [C, N]
        return _read_sound(codec, num_codebooks, source)

    def encode(batch: list[tuple[Source, TokenHeader, Tensor]]) -> Iterator[Encoded]:
        stacked = torch.stack([samples for _, _, samples in batch]).to(codec.device)  # [B, C, N]
        segments = codec.encode(stacked, num_codebooks)
        for row, (source, header, _) in enumerate(batch):
            yield Encoded(source.key, header, [_row(segment, row) for segment in segments])

    batches: Batches[tuple[Source, TokenHeader, Tensor]] = Batches(batch_size)
    for source, result in prefetch(read, sources, ahead=WORKERS + batch_size):
        if isinstance(result, InputError):
            yield Failed(source.key, str(result))
            continue
        header, samples = result
        if samples is None:
            blocks: Iterable[Tensor] = audio.stream(source.path, codec.sample_rate, codec.channels, BLOCK_S)
            yield Encoded(source.key, header, _encode_long(codec, blocks, num_codebooks))
        elif header.duration_s > LONG_S:
            blocks = samples.split(round(BLOCK_S * codec.sample_rate), dim=-1)
            yield Encoded(source.key, header, _encode_long(codec, blocks, num_codebooks))
        else:
            for batch in batches.add(samples.shape[-1], (source, header, samples)):
                yield from encode(batch)
    for batch in batches.rest():
        yield from encode(batch)


def decode_clips(
    codec: SegmentedCodec,
    clips: Iterable[Tokens],
    original_rate: bool = False,
    batch_size: int | None = None,
) -> Iterator[Decoded | Failed]:
    """Decode codes that this codec made, to its own sample rate or to that of the recording (`original_rate`).

    The length is that of the encoded clip, or with `original_rate` of the recording, to the sample.
    """
    batch_size = batch_size or default_batch_size(codec)

    def read(clip: Tokens) -> tuple[TokenHeader, Iterable[Segment]]:
        header, segments = clip.read()
        check_codec(codec, header, clip.key)
        if original_rate and header.source_num_samples is None:
            raise InputError(
                f"{clip.key}: the sample rate of the recording is not in the file; decode to the codec's rate"
            )
        return header, segments if header.duration_s > LONG_S else list(segments)

    def finish(key: str, header: TokenHeader, blocks: Iterable[Tensor]) -> Decoded:  # [C, n]
        blocks, rate = _first(header.num_samples, blocks), codec.sample_rate
        if original_rate:
            assert header.source_sample_rate and header.source_num_samples
            resampled = _resample(blocks, rate, header.source_sample_rate)
            blocks, rate = _first(header.source_num_samples, resampled), header.source_sample_rate
        # A decoder overshoots on loud recordings: expected, so `audio.save` must not warn of it.
        return Decoded(key, (block.clamp(-1, 1) for block in blocks), rate, header.duration_s)

    def decode(batch: list[tuple[Tokens, TokenHeader, list[Segment]]]) -> Iterator[Decoded]:
        rows = zip(*(segments for _, _, segments in batch), strict=True)
        segments = [_stack(row, codec.device) for row in rows]
        num_samples = max(header.num_samples for _, header, _ in batch)  # of the same number of frames
        decoded = codec.decode(segments, num_samples).cpu()  # [B, C, N]
        for (clip, header, _), row in zip(batch, decoded, strict=True):
            yield finish(clip.key, header, [row])

    batches: Batches[tuple[Tokens, TokenHeader, list[Segment]]] = Batches(batch_size)
    for clip, result in prefetch(read, clips, ahead=WORKERS + batch_size):
        if isinstance(result, InputError):
            yield Failed(clip.key, str(result))
            continue
        header, segments = result
        if isinstance(segments, list):
            length = header.num_frames if header.segment_samples is None else header.num_samples
            for batch in batches.add((header.num_codebooks, length), (clip, header, segments)):
                yield from decode(batch)
        else:
            stacked = (_stack([segment], codec.device) for segment in segments)
            decoded = codec.decode_stream(stacked, header.num_samples)
            yield finish(clip.key, header, (block[0].cpu() for block in decoded))
    for batch in batches.rest():
        yield from decode(batch)


def default_batch_size(codec: SegmentedCodec) -> int:
    """8 on a GPU; 1 on a CPU, where a batch was measured to be no faster and one by one is the same to the bit.

    In a batch, matrix products may round differently: latents moved by 3e-7, and 0 of 316,448 codes of ESC-10.
    """
    return 1 if codec.device.type == "cpu" else 8


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
    codec: SegmentedCodec, num_codebooks: int, source: Source
) -> tuple[TokenHeader, Tensor | None]:
    """The header of the codes to come, and the samples [C, N]; None for a whole file that is to be streamed."""
    rate, samples = codec.sample_rate, None
    if source.render is not None:
        samples = audio.convert_channels(source.render(rate), codec.channels)
        return header_for(codec, num_codebooks, samples.shape[-1], rate, samples.shape[-1]), samples
    info = audio.info(source.path)
    num_samples = audio.resampled_length(info.num_frames, info.sample_rate, rate)
    source_num_samples = info.num_frames
    is_part = source.start_s > 0 or source.duration_s is not None
    if is_part or info.duration_s <= LONG_S:
        samples, _ = audio.load(source.path, rate, codec.channels, source.start_s, source.duration_s)
        if is_part:
            num_samples = samples.shape[-1]
            source_num_samples = min(source_num_samples, num_samples * info.sample_rate // rate)
    header = header_for(codec, num_codebooks, num_samples, info.sample_rate, source_num_samples)
    return header, samples


def _encode_long(codec: SegmentedCodec, blocks: Iterable[Tensor], num_codebooks: int) -> Iterator[Segment]:
    """Audio blocks [C, n] -> segments, or blocks of codes."""
    moved = (block[None].to(codec.device) for block in blocks)
    try:
        for segment in codec.encode_stream(moved, num_codebooks):
            yield _row(segment, 0)
    except InputError as error:
        raise UnreadableError(str(error)) from error


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


def prefetch(
    function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[tuple[T, R | InputError]]:
    """(item, function(item)) in order, computed by threads up to `ahead` items early; an InputError is a result."""

    def first() -> tuple[T, R | InputError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except InputError as error:
            return item, error

    waiting: deque[tuple[T, Future[R]]] = deque()
    pool = ThreadPoolExecutor(WORKERS)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Batches(Generic[T]):
    """Gathers items with equal keys into lists of `batch_size`, with at most four batches waiting."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._waiting: dict[Hashable, list[T]] = {}

    def add(self, key: Hashable, item: T) -> Iterator[list[T]]:
        """The batch that this item fills; or, with too many waiting, the one that has waited longest."""
        self._waiting.setdefault(key, []).append(item)
        if len(self._waiting[key]) == self.batch_size:
            yield self._waiting.pop(key)
        elif sum(map(len, self._waiting.values())) >= 4 * self.batch_size:
            yield self._waiting.pop(next(iter(self._waiting)))

    def rest(self) -> Iterator[list[T]]:
        """What still waits, at the end."""
        yield from self._waiting.values()
        self._waiting = {}
