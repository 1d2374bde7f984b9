"""Encode and decode long signals block by block, in memory that does not grow with their length.

A stateful codec (SEANet, causal or centred; the spectral decoder) carries its state from block to block and gives
exactly what one call gives, to float rounding. Any other runs over windows that see `codec.context_frames` beyond their
body on both sides, its receptive field, so that the joined result is that of one call, too. `decode_live` is for codes
that are still being made: audio comes out as soon as it is determined.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor

from audiogen.codec.conv import StreamState
from audiogen.codec.model import Codec as OwnCodec
from audiogen.errors import InputError
from audiogen.interfaces import Codec

BODY_S = 20.0  # seconds of audio per window
FADE_FRAMES = 1  # from one window into the next, where a window sees less than its context


class Window(NamedTuple):
    """A part [B, D, n] of a signal: `left` items of earlier context, `length` of body, then what follows."""

    x: Tensor
    left: int
    length: int
    last: bool


@torch.no_grad()
def encode_stream(
    codec: Codec, blocks: Iterable[Tensor], num_codebooks: int | None = None
) -> Iterator[Tensor]:
    """Audio blocks [1, C, n] of any lengths -> codes [1, K, t]; joined, those of the whole signal."""
    hop = codec.hop_length
    context = codec.context_frames * codec.hop_length
    body = _body_frames(codec) * hop
    state: StreamState = {}
    for window, left, length, last in _windows(blocks, [body], body, context, max(context, 1)):
        if _is_stateful(codec):
            codes = codec.encode(window, num_codebooks, state, last)
        else:
            codes = codec.encode(window, num_codebooks)[..., left // hop : -(-(left + length) // hop)]
        if codes.shape[-1] > 0:
            yield codes


def decode_stream(codec: Codec, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Code blocks [1, K, t] of any lengths -> audio [1, C, n]; joined, that of the whole, t * hop_length samples."""
    body = _body_frames(codec)
    if _decodes_in_blocks(codec):
        return _decode_blocks(codec, _windows(blocks, [body], body, 0, 1))
    context = codec.context_frames
    return _decode_windows(codec, _windows(blocks, [body], body, context, max(context, 1)))


def decode_live(
    codec: Codec,
    blocks: Iterable[Tensor],
    body_frames: int | Sequence[int] = 1,
    lookahead_frames: int | None = None,
) -> Iterator[Tensor]:
    """Code blocks [B, K, t], each as it comes -> audio [B, C, n] as soon as it is determined, joined that of all.

    Audio of a frame is determined `codec.lookahead_frames` after it; the rest comes when the blocks end.
    body_frames: the least number of frames that are decoded at a time, or of the first, the second ... time, the last
    number from there on. Windows of a codec without state cost their context each time, whatever their body.
    lookahead_frames: for such a codec, fewer than it has give audio sooner that
    is not quite that of the whole: the end of a window lacks what follows, and is faded into the next window.
    """
    least = [body_frames] if isinstance(body_frames, int) else list(body_frames)
    if not least or min(least) < 1 or (lookahead_frames is not None and lookahead_frames < 0):
        raise InputError(
            f"body_frames is {body_frames}, lookahead_frames {lookahead_frames}: from 1, and from 0 are allowed"
        )
    context = codec.context_frames
    ahead = context if lookahead_frames is None else min(lookahead_frames, context)
    if _decodes_in_blocks(codec) and ahead == context:
        return _decode_blocks(codec, _windows(blocks, least, sys.maxsize, 0, 0))
    fade = min(FADE_FRAMES, ahead) if ahead < context else 0
    windows = _windows(blocks, least, sys.maxsize, context, ahead)
    return _decode_windows(codec, windows, fade * codec.hop_length)


@torch.no_grad()
def _decode_blocks(codec: OwnCodec, windows: Iterable[Window]) -> Iterator[Tensor]:
    """The audio [B, C, n] that each block of codes determines, by a decoder with a state."""
    state: StreamState = {}
    for block, _, _, last in windows:
        audio = codec.decode(block, state=state, last=last)
        if audio.shape[-1] > 0:
            yield audio


@torch.no_grad()
def _decode_windows(codec: Codec, windows: Iterable[Window], fade: int = 0) -> Iterator[Tensor]:
    """The audio [B, C, n] of each window of codes; `fade` samples beyond its body are faded into the next one."""
    hop = codec.hop_length
    done = 0  # frames whose audio came out
    tail: Tensor | None = None  # [B, C, fade]: audio of the window before, from the end of its body on
    for window, left, length, _ in windows:
        audio = codec.decode(window, first_frame=done - left)
        audio = audio[..., left * hop : (left + length) * hop + fade]
        if tail is not None:
            rising = torch.linspace(0, 1, tail.shape[-1], device=audio.device)
            audio[..., : tail.shape[-1]] = torch.lerp(tail, audio[..., : tail.shape[-1]], rising)
        audio, tail = audio[..., : length * hop], audio[..., length * hop :]
        if audio.shape[-1] > 0:
            yield audio
        done += length


def _is_stateful(codec: Codec) -> TypeGuard[OwnCodec]:
    """Whether its encoder carries a state."""
    return isinstance(codec, OwnCodec) and codec.stateful


def _decodes_in_blocks(codec: Codec) -> TypeGuard[OwnCodec]:
    """Whether its decoder carries a state."""
    return isinstance(codec, OwnCodec) and codec.decodes_in_blocks


def _body_frames(codec: Codec) -> int:
    return max(1, round(BODY_S * codec.frame_rate))


def _windows(
    blocks: Iterable[Tensor], least: Sequence[int], most: int, context: int, ahead: int
) -> Iterator[Window]:
    """Regroup blocks [B, D, n] along their last axis into windows with bodies of `least` to `most` items.

    least: of the first body, the second ...; the last number from there on.

    A window has `context` items before its body, as far as there are, and up to so many after it; `ahead` items must
    follow the body before it comes. The last body is what is left, which may be nothing where there is no context.
    """
    buffer: Tensor | None = None
    left, sizes = 0, iter(least)
    size = next(sizes)
    for block in blocks:
        buffer = block if buffer is None else torch.cat([buffer, block], -1)
        while (length := min(buffer.shape[-1] - left - ahead, most)) >= size:
            yield Window(buffer[..., : left + length + context], left, length, False)
            size = next(sizes, size)
            keep = min(context, left + length)
            buffer = buffer[..., left + length - keep :]
            left = keep
    if buffer is not None and (buffer.shape[-1] > left or context == 0):
        yield Window(buffer, left, buffer.shape[-1] - left, True)
