"""Encode and decode long signals block by block, in memory that does not grow with their length.

A stateful codec (SEANet, causal or centred) carries its state from block to block and gives exactly what one call
gives, to float rounding. Any other runs over windows that see `codec.context_frames` beyond their body on both sides,
its receptive field, so that the joined result is that of one call, too. `decode_live` is for codes that are still being
made: audio comes out as soon as it is determined.
"""

from collections.abc import Iterable, Iterator
from typing import TypeGuard

import torch
from torch import Tensor

from audiogen.codec.conv import StreamState
from audiogen.codec.model import Codec as OwnCodec
from audiogen.errors import InputError
from audiogen.interfaces import Codec

BODY_S = 20.0  # seconds of audio per window
FADE_FRAMES = 1  # from one window into the next, where a window sees less than its context


@torch.no_grad()
def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], num_codebooks: int | None = None
) -> Iterator[Tensor]:
    """Audio blocks [1, C, n] of any lengths -> codes [1, K, t]; joined, those of the whole signal."""
    hop = codec.hop_length
    body, context = _body_and_context(codec)
    state: StreamState = {}
    for window, left, length, last in _windows(blocks, body * hop, context * hop):
        if _is_stateful(codec):
            codes = codec.encode_block(window, state, num_codebooks, last)
        else:
            codes = codec.encode(window, num_codebooks)[..., left // hop : -(-(left + length) // hop)]
        if codes.shape[-1] > 0:
            yield codes


@torch.no_grad()
def decode_stream(codec: Codec, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Code blocks [1, K, t] of any lengths -> audio [1, C, n]; joined, that of the whole, t * hop_length samples."""
    hop = codec.hop_length
    state: StreamState = {}
    done = 0  # frames whose audio came out
    for window, left, length, last in _windows(blocks, *_body_and_context(codec)):
        if _is_stateful(codec):
            audio = codec.decode_block(window, state, last)
        else:
            audio = codec.decode(window, first_frame=done - left)[..., left * hop : (left + length) * hop]
        if audio.shape[-1] > 0:
            yield audio
        done += length


@torch.no_grad()
def decode_live(
    codec: Codec, blocks: Iterable[Tensor], body_frames: int = 1, lookahead_frames: int | None = None
) -> Iterator[Tensor]:
    """Code blocks [B, K, t], each as it comes -> audio [B, C, n] as soon as it is determined, joined that of all.

    Audio of a frame is determined `codec.lookahead_frames` after it; the rest comes when the blocks end.
    body_frames: the least number of frames that are decoded at a time. Windows of a codec without state cost their
    context each time, whatever their body. lookahead_frames: for such a codec, fewer than it has give audio sooner that
    is not quite that of the whole: the end of a window lacks what follows, and is faded into the next window.
    """
    if body_frames < 1 or (lookahead_frames is not None and lookahead_frames < 0):
        raise InputError(
            f"body_frames is {body_frames}, lookahead_frames {lookahead_frames}: from 1, and from 0 are allowed"
        )
    if _is_stateful(codec):
        state: StreamState = {}
        for window, last in _append_empty(_at_least(blocks, body_frames)):
            if (audio := codec.decode_block(window, state, last)).shape[-1] > 0:
                yield audio
        return
    hop, context = codec.hop_length, codec.context_frames
    ahead = context if lookahead_frames is None else min(lookahead_frames, context)
    fade = min(FADE_FRAMES, ahead) * hop if ahead < context else 0  # samples
    buffer: Tensor | None = None  # [B, K, left + t]
    tail: Tensor | None = None  # [B, C, fade]: audio of the window before, from the end of its body on
    left = done = 0  # frames of `buffer` whose audio came out already; frames of the signal
    for block, last in _append_empty(blocks):
        buffer = block if buffer is None else torch.cat([buffer, block], -1)
        length = buffer.shape[-1] - left - (0 if last else ahead)  # of the body
        if length < (1 if last else body_frames):
            continue
        audio = codec.decode(buffer, first_frame=done - left)
        audio = audio[..., left * hop : (left + length) * hop + fade]
        if tail is not None:
            rising = torch.linspace(0, 1, tail.shape[-1], device=audio.device)
            audio[..., : tail.shape[-1]] = torch.lerp(tail, audio[..., : tail.shape[-1]], rising)
        yield audio[..., : length * hop]
        tail = audio[..., length * hop :]
        done += length
        keep = min(context, left + length)
        buffer, left = buffer[..., left + length - keep :], keep


def _is_stateful(codec: Codec) -> TypeGuard[OwnCodec]:
    """Whether its encoder and decoder carry a state."""
    return isinstance(codec, OwnCodec) and codec.stateful


def _body_and_context(codec: Codec) -> tuple[int, int]:
    """Frames of a window, and how many it sees beyond them on both sides."""
    return max(1, round(BODY_S * codec.frame_rate)), 0 if _is_stateful(codec) else codec.context_frames


def _append_empty(blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, bool]]:
    """Every block [B, D, n] as it comes, and after them all an empty one [B, D, 0], marked as the last."""
    block: Tensor | None = None
    for block in blocks:
        yield block, False
    if block is not None:
        yield block[..., :0], True


def _at_least(blocks: Iterable[Tensor], length: int) -> Iterator[Tensor]:
    """Blocks [B, D, n] joined until they are so long; the rest at the end."""
    buffer: Tensor | None = None
    for block in blocks:
        buffer = block if buffer is None else torch.cat([buffer, block], -1)
        if buffer.shape[-1] >= length:
            yield buffer
            buffer = None
    if buffer is not None and buffer.shape[-1] > 0:
        yield buffer


def _windows(blocks: Iterable[Tensor], body: int, context: int) -> Iterator[tuple[Tensor, int, int, bool]]:
    """Regroup blocks [B, D, n] along their last axis into (window, left, length, whether it is the last).

    A window is `left` items of earlier context, `length` items of body (`body`, at the end what is left), then up to
    `context` items of what follows.
    """
    buffer: Tensor | None = None
    left = 0
    for block in blocks:
        buffer = block if buffer is None else torch.cat([buffer, block], -1)
        while buffer.shape[-1] - left >= body + max(context, 1):  # so that something is left for the last one
            yield buffer[..., : left + body + context], left, body, False
            keep = min(context, left + body)
            buffer, left = buffer[..., left + body - keep :], keep
    if buffer is not None and buffer.shape[-1] > left:
        yield buffer, left, buffer.shape[-1] - left, True
