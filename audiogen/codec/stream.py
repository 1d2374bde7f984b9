"""Encode and decode long signals block by block, in memory that does not grow with their length.

A causal codec carries its state from block to block and gives exactly what one call gives, with no look-ahead.
Any other codec runs over windows that see `codec.context_frames` beyond their body on both sides, its receptive
field, so that the joined result is that of one call too (to float rounding; with an LSTM, to what it still
remembers after four seconds).
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from audiogen.codec.conv import StreamState
from audiogen.codec.model import Codec

BODY_S = 20.0  # seconds of audio per window


@torch.no_grad()
def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], num_codebooks: int | None = None
) -> Iterator[Tensor]:
    """Audio blocks [1, C, n] of any lengths -> codes [1, K, t]; joined, those of the whole signal."""
    hop = codec.hop_length
    count = codec.num_codebooks if num_codebooks is None else num_codebooks
    body = max(1, round(BODY_S * codec.frame_rate)) * hop
    if codec.causal:
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
    if codec.causal:
        state: StreamState = {}
        for window, _, _ in _windows(blocks, body, 0):
            yield codec.decoder(codec.quantizer.decode(window), state)
        return
    done = 0
    for window, left, length in _windows(blocks, body, codec.context_frames):
        yield codec.decode(window, first_frame=done - left)[..., left * hop : (left + length) * hop]
        done += length


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
