"""Encode and decode long signals block by block, in memory that does not grow with their length.

A causal codec carries its state from block to block and gives exactly what one call gives, with no look-ahead.
Any other codec runs over windows that see `codec.context_frames` beyond their body on both sides, its receptive
field, so that the joined result is that of one call too (to float rounding; with an LSTM, to what it still
remembers after four seconds). One that works on segments runs over a number of them at a time.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeGuard

import torch
from torch import Tensor

from audiogen.codec.conv import StreamState
from audiogen.codec.model import Codec as OwnCodec
from audiogen.interfaces import Codec, Segment

BODY_S = 20.0  # seconds of audio per window


@torch.no_grad()
def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], num_codebooks: int | None = None
) -> Iterator[Tensor]:
    """Audio blocks [1, C, n] of any lengths -> codes [1, K, t]; joined, those of the whole signal."""
    hop = codec.hop_length
    count = codec.num_codebooks if num_codebooks is None else num_codebooks
    body = max(1, round(BODY_S * codec.frame_rate)) * hop
    if _runs_live(codec):
        state: StreamState = {}
        for window, _, _ in _windows(blocks, body, 0):
            yield codec.quantizer.encode(codec.encoder(window, state), count)
        return
    for window, left, length in _windows(blocks, body, codec.context_frames * hop):
        codes = codec.encode(window, count)
        yield codes[..., left // hop : -(-(left + length) // hop)]


@torch.no_grad()
def decode_stream(codec: Codec, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Code blocks [1, K, t] of any lengths -> audio [1, C, t * hop_length]; joined, that of the whole."""
    hop = codec.hop_length
    body = max(1, round(BODY_S * codec.frame_rate))
    if _runs_live(codec):
        state: StreamState = {}
        for window, _, _ in _windows(blocks, body, 0):
            yield codec.decoder(codec.quantizer.decode(window), state)
        return
    done = 0
    for window, left, length in _windows(blocks, body, codec.context_frames):
        yield codec.decode(window, first_frame=done - left)[..., left * hop : (left + length) * hop]
        done += length


@torch.no_grad()
def encode_segment_stream(
    codec: Codec, blocks: Iterable[Tensor], num_codebooks: int | None = None
) -> Iterator[Segment]:
    """Audio blocks [1, C, n] of any lengths -> the segments of the whole signal, of a codec that works on them."""
    segment, stride = _segment_sizes(codec)
    count = _segments_at_a_time(codec)
    held: Tensor | None = None
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        # A segment that ends within what is held is whole. What is encoded ends with one, whose tail, where the
        # next begins, makes one more: that is left out.
        while held.shape[-1] >= (num_samples := (count - 1) * stride + segment):
            yield from codec.encode_segments(held[..., :num_samples], num_codebooks)[:count]
            held = held[..., count * stride :]
    if held is not None and held.shape[-1] > 0:
        yield from codec.encode_segments(held, num_codebooks)


@torch.no_grad()
def decode_segment_stream(codec: Codec, segments: Iterable[Segment], num_samples: int) -> Iterator[Tensor]:
    """The segments of a signal -> audio [1, C, n]; joined, `num_samples` of it, those of one call."""
    segment, stride = _segment_sizes(codec)
    count = _segments_at_a_time(codec)
    coming = iter(segments)
    held = list(islice(coming, count))
    left = done = 0  # how many of `held` were played already; samples that were played
    while held:
        following = list(islice(coming, 1))  # it fades into the last of these
        group = [*held, *following]
        start = done - left * stride  # of the group
        end = num_samples - start if not following else (len(group) - 1) * stride
        whole = min(num_samples - start, (len(group) - 1) * stride + segment)
        frames = codec.segment_frames(whole)
        if len(frames) > len(
            group
        ):  # what begins in the tail of the last one is not played: any codes will do
            group.append(Segment(group[-1].codes[..., : frames[-1]], group[-1].scale))
        audio = codec.decode_segments(group, whole)[..., left * stride : end]
        yield audio
        done += audio.shape[-1]
        # One that was played fades into the next; another, because the first of a group sets the shape of all fades
        # and must not be short, as the last two may be.
        kept = held[-2:]
        left, held = len(kept), [*kept, *following, *islice(coming, count - 1)] if following else []


def _segment_sizes(codec: Codec) -> tuple[int, int]:
    """Samples of a segment, and from the begin of one to that of the next."""
    assert codec.segment_samples is not None and codec.stride_samples is not None
    return codec.segment_samples, codec.stride_samples


def _segments_at_a_time(codec: Codec) -> int:
    return max(1, round(BODY_S * codec.sample_rate / _segment_sizes(codec)[1]))


def _runs_live(codec: Codec) -> TypeGuard[OwnCodec]:
    """Whether its encoder and decoder carry a state; one that codes each channel by itself does not."""
    return isinstance(codec, OwnCodec) and codec.causal and not codec.config.dual_mono


def _windows(blocks: Iterable[Tensor], body: int, context: int) -> Iterator[tuple[Tensor, int, int]]:
    """Regroup blocks along their last axis into (window, left, length).

    A window is `left` items of earlier context, `length` items of body (`body`, less at the end), then up to
    `context` items of what follows.
    """
    held: Tensor | None = None
    left = 0
    for block in blocks:
        held = block if held is None else torch.cat([held, block], -1)
        while held.shape[-1] - left >= body + context:
            yield held[..., : left + body + context], left, body
            keep = min(context, left + body)
            held, left = held[..., left + body - keep :], keep
    if held is not None and held.shape[-1] > left:
        yield held, left, held.shape[-1] - left
