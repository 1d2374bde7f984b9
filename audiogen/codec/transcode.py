"""Many clips through a codec: read ahead by threads, equal lengths in one batch, long clips in a stream.

Both directions, `encode_clips` (sounds to codes) and `decode_clips` (codes to sounds), yield one result a clip. One
that cannot be read comes out as `Failed` and does not disturb the others. Clips wait for others of their length, so
the order may differ from the input's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import soxr
import torch
from torch import Tensor

from audiogen import audio
from audiogen.codec.container import TokenHeader
from audiogen.codec.model import Codec
from audiogen.codec.stream import decode_stream, encode_stream
from audiogen.errors import InputError

LONG_S = 30.0  # a longer clip goes through the codec as a stream: memory does not grow with its length
BLOCK_S = 10.0

T = TypeVar("T")
R = TypeVar("R")


class UnreadableError(InputError):
    """A clip that streams turned out to be damaged."""


@dataclass(frozen=True)
class Source:
    """A sound to encode: a file, a part of it (from `start_s` for `duration_s`), or what `render` makes.

    render: sample rate in Hz -> audio [C, N]; then `path` only names the sound.
    """

    key: str
    path: Path
    start_s: float = 0.0
    duration_s: float | None = None
    render: Callable[[int], Tensor] | None = None


@dataclass(frozen=True)
class Tokens:
    """Codes to decode: `read` gives their header and blocks [K, t], or raises InputError."""

    key: str
    read: Callable[[], tuple[TokenHeader, Iterable[Tensor]]]


class Encoded(NamedTuple):
    """Codes of a clip in blocks [K, t]. To iterate over a long clip is to read it: `UnreadableError` may come."""

    key: str
    header: TokenHeader
    codes: Iterable[Tensor]


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
    codec: Codec,
    sources: Iterable[Source],
    num_codebooks: int,
    batch_size: int | None = None,
    workers: int = 2,
) -> Iterator[Encoded | Failed]:
    """Encode sounds, resampled and mixed to the codec's rate and channels, with the first `num_codebooks`.

    batch_size: clips of equal length at a time; None is `default_batch_size`.
    """
    batch_size = batch_size or default_batch_size(codec)

    def read(source: Source) -> tuple[TokenHeader, Tensor | None]:
        return _read_sound(codec, num_codebooks, source)

    def encode(batch: list[tuple[Source, TokenHeader, Tensor]]) -> Iterator[Encoded]:
        stacked = torch.stack([samples for _, _, samples in batch]).to(_device(codec))  # [B, C, N]
        codes = codec.encode(stacked, num_codebooks).cpu()  # [B, K, T]
        return (
            Encoded(source.key, header, [row]) for (source, header, _), row in zip(batch, codes, strict=True)
        )

    batches: Batches[tuple[Source, TokenHeader, Tensor]] = Batches(batch_size)
    for source, result in prefetch(read, sources, workers, ahead=workers + batch_size):
        if isinstance(result, InputError):
            yield Failed(source.key, str(result))
            continue
        header, samples = result
        if header.duration_s > LONG_S:
            if samples is None:
                blocks: Iterable[Tensor] = audio.stream(
                    source.path, codec.sample_rate, codec.channels, BLOCK_S
                )
            else:
                blocks = samples.split(round(BLOCK_S * codec.sample_rate), dim=-1)
            yield Encoded(source.key, header, _encode_long(codec, blocks, num_codebooks))
        else:
            assert samples is not None
            for batch in batches.add(samples.shape[-1], (source, header, samples)):
                yield from encode(batch)
    for batch in batches.rest():
        yield from encode(batch)


def decode_clips(
    codec: Codec,
    clips: Iterable[Tokens],
    original_rate: bool = False,
    batch_size: int | None = None,
    workers: int = 2,
) -> Iterator[Decoded | Failed]:
    """Decode codes that this codec made, to its own sample rate or to that of the recording (`original_rate`).

    The length is that of the encoded clip, or with `original_rate` of the recording, to the sample.
    """
    batch_size = batch_size or default_batch_size(codec)

    def read(clip: Tokens) -> tuple[TokenHeader, Tensor | Iterable[Tensor]]:
        header, blocks = clip.read()
        check_codec(codec, header, clip.key)
        if original_rate and header.source_num_samples is None:
            raise InputError(
                f"{clip.key}: the rate of the recording is not known; decode to the codec's rate"
            )
        return header, blocks if header.duration_s > LONG_S else torch.cat(list(blocks), dim=1)

    def finish(key: str, header: TokenHeader, blocks: Iterable[Tensor]) -> Decoded:
        blocks, rate = _first(header.num_samples, blocks), codec.sample_rate
        if original_rate:
            assert header.source_sample_rate and header.source_num_samples
            resampled = _resample(blocks, rate, header.source_sample_rate)
            blocks, rate = _first(header.source_num_samples, resampled), header.source_sample_rate
        # A decoder overshoots on loud recordings; that is no news, so it is not left to `audio.save` to report.
        return Decoded(key, (block.clamp(-1, 1) for block in blocks), rate, header.duration_s)

    def decode(batch: list[tuple[Tokens, TokenHeader, Tensor]]) -> Iterator[Decoded]:
        stacked = torch.stack([codes for _, _, codes in batch]).to(_device(codec))  # [B, K, T]
        decoded = codec.decode(stacked).cpu()  # [B, C, T * hop_length]
        return (
            finish(clip.key, header, [row]) for (clip, header, _), row in zip(batch, decoded, strict=True)
        )

    batches: Batches[tuple[Tokens, TokenHeader, Tensor]] = Batches(batch_size)
    for clip, result in prefetch(read, clips, workers, ahead=workers + batch_size):
        if isinstance(result, InputError):
            yield Failed(clip.key, str(result))
            continue
        header, codes = result
        if isinstance(codes, Tensor):
            for batch in batches.add(tuple(codes.shape), (clip, header, codes)):
                yield from decode(batch)
        else:
            yield finish(clip.key, header, _decode_long(codec, codes))
    for batch in batches.rest():
        yield from decode(batch)


def default_batch_size(codec: Codec) -> int:
    """8 on a GPU; 1 on a CPU, where a batch was measured to be no faster and one by one is the same to the bit.

    In a batch, matrix products may round differently: latents moved by 3e-7, and 0 of 316,448 codes of ESC-10.
    """
    return 1 if _device(codec).type == "cpu" else 8


def check_codec(codec: Codec, header: TokenHeader, name: str) -> None:
    """Codes mean something only to the encoder and codebooks that made them; InputError for any other codec."""
    if header.identity != codec.identity:
        raise InputError(
            f"{name}: made by codec {header.codec} ({header.identity}); "
            f"this is {codec.name} ({codec.identity}): give the right one with --codec"
        )
    for field in ("sample_rate", "channels", "codebook_size", "hop_length"):
        if getattr(header, field) != getattr(codec, field):
            raise InputError(
                f"{name}: {field} is {getattr(header, field)}, the codec's is {getattr(codec, field)}"
            )
    if header.num_codebooks > codec.num_codebooks:
        raise InputError(f"{name}: {header.num_codebooks} codebooks, the codec has {codec.num_codebooks}")


def prefetch(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int
) -> Iterator[tuple[T, R | InputError]]:
    """(item, function(item)) in order, computed by threads up to `ahead` items early; an InputError is a result."""
    waiting: deque[tuple[T, Future[R]]] = deque()

    def first() -> tuple[T, R | InputError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except InputError as error:
            return item, error

    pool = ThreadPoolExecutor(workers)
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
    """Gathers items with equal keys into lists of `batch_size`, holding at most four batches back."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._held: dict[Hashable, list[T]] = {}

    def add(self, key: Hashable, item: T) -> Iterator[list[T]]:
        """The batch that this item fills; or, with too many held back, the one that has waited longest."""
        self._held.setdefault(key, []).append(item)
        if len(self._held[key]) == self.batch_size:
            yield self._held.pop(key)
        elif sum(map(len, self._held.values())) >= 4 * self.batch_size:
            yield self._held.pop(next(iter(self._held)))

    def rest(self) -> Iterator[list[T]]:
        """What is still held, at the end."""
        yield from self._held.values()
        self._held = {}


def _read_sound(codec: Codec, num_codebooks: int, source: Source) -> tuple[TokenHeader, Tensor | None]:
    """The header of the codes to come, and the samples [C, N]; None for a whole file that is to be streamed."""
    samples: Tensor | None = None
    if source.render is not None:
        samples = audio.convert_channels(source.render(codec.sample_rate), codec.channels)
        num_samples = source_num_samples = samples.shape[-1]
        source_rate = codec.sample_rate
    else:
        info = audio.info(source.path)
        source_rate, source_num_samples = info.sample_rate, info.num_frames
        num_samples = audio.resampled_length(info.num_frames, info.sample_rate, codec.sample_rate)
        is_part = source.start_s > 0 or source.duration_s is not None
        if is_part or info.duration_s <= LONG_S:
            samples, _ = audio.load(
                source.path, codec.sample_rate, codec.channels, source.start_s, source.duration_s
            )
        if is_part and samples is not None:
            num_samples = samples.shape[-1]
            source_num_samples = min(source_num_samples, num_samples * source_rate // codec.sample_rate)
    header = TokenHeader(
        codec=codec.name,
        identity=codec.identity,
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        num_samples=num_samples,
        num_codebooks=num_codebooks,
        codebook_size=codec.codebook_size,
        hop_length=codec.hop_length,
        source_sample_rate=source_rate,
        source_num_samples=source_num_samples,
    )
    return header, samples


def _encode_long(codec: Codec, blocks: Iterable[Tensor], num_codebooks: int) -> Iterator[Tensor]:
    """Audio blocks [C, n] -> code blocks [K, t]."""
    device = _device(codec)
    try:
        for codes in encode_stream(codec, (block[None].to(device) for block in blocks), num_codebooks):
            yield codes[0].cpu()
    except InputError as error:
        raise UnreadableError(str(error)) from error


def _decode_long(codec: Codec, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Code blocks [K, t] -> audio blocks [C, n]."""
    device = _device(codec)
    for samples in decode_stream(codec, (block[None].to(device) for block in blocks)):
        yield samples[0].cpu()


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


def _device(codec: Codec) -> torch.device:
    return next(codec.parameters()).device
