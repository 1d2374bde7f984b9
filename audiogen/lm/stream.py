"""Generation without an end: codes frame by frame, in memory and time a step that do not grow.

A sequence of at most `max_frames` frames is as far as a language model was trained to hear. So a stream is a chain of
windows: while one decodes, the next, which begins `stride` frames later, hears what is decoded, some steps at a time,
and takes over when the first is full. No step waits for a context to be encoded, and every window sees what it would
see alone: positions from its own start, and special tokens where its frames before the first would be.

A cache whose oldest positions give way one by one needs no second window, but these models know positions absolutely:
whatever it is told of them, what it generates decays (docs/LOG.md has the figures).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.patterns import Rhythm
from audiogen.lm.sample import Decoder, TokenSampling, check, draw, guide
from audiogen.text.condition import null, stack

BLOCK = 16  # steps that the next window hears in one call
NOISE_FRAMES = 64  # whose random numbers are drawn at a time


def stream_tokens(
    decoder: Decoder,
    condition: Condition | None,
    num_frames: int | None = None,
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    seeds: Sequence[int],
    max_frames: int,
    guidance: float = 3.0,
    negative: Condition | None = None,
    prompt: Tensor | None = None,
    stride: int | None = None,
) -> Iterator[Tensor]:
    """Codes int64 [B, K, 1], a frame at a time, one row per seed; up to `max_frames` those of `generate_tokens`.

    num_frames: after which it ends, the prompt included; None goes on for ever. prompt: codes [B, K, P] to continue,
    which are given out first. stride: frames from one window to the next, by default half of max_frames. The other
    arguments are those of `generate_tokens`, as are the errors; the pattern must be one that needs no end.
    """
    stride = max(1, max_frames // 2) if stride is None else stride
    if not 1 <= stride <= max_frames:
        raise InputError(f"stride is {stride} frames; it must be from 1 to max_frames, {max_frames}")
    if prompt is None:
        prompt = torch.zeros(len(seeds), decoder.config.num_codebooks, 0, dtype=torch.long)
    length = prompt.shape[2] + 1 if num_frames is None else num_frames
    check(decoder, condition, negative, [length] * len(seeds), prompt, len(seeds))
    rhythm = decoder.config.rhythm()
    guided = guidance != 1.0 and (condition is not None or negative is not None)
    if guided:  # the model sees 2 B rows: with the text, then without
        nothing = null(len(seeds), decoder.config.dim, decoder.device)
        condition = stack([condition or nothing, negative or nothing])
    sheet = _Sheet(decoder, rhythm, seeds, prompt.to(decoder.device), num_frames)
    return _frames(decoder, condition, sheet, sampling, guidance if guided else None, max_frames, stride)


@torch.inference_mode()
def _frames(
    decoder: Decoder,
    condition: Condition | None,
    sheet: _Sheet,
    sampling: TokenSampling,
    guidance: float | None,
    max_frames: int,
    stride: int,
) -> Iterator[Tensor]:
    """The loop of `stream_tokens`; with guidance, condition and model have 2 B rows."""
    longest = decoder.config.pattern_of(max_frames).num_steps

    def window(begin: int) -> _Window:
        return _Window(decoder, condition, sheet, begin, longest, 1 if guidance is None else 2)

    known = sheet.prompt.shape[2]
    current = window(0 if known < max_frames else known - (max_frames - stride))
    following = window(current.begin + stride)
    for step in range(1, sheet.rhythm.step_before(known) + 1):
        sheet.write(step, None)
    for frame in range(known):
        yield sheet.prompt[..., frame : frame + 1]
    given = known
    for step in itertools.count(len(sheet.steps)):
        if step - current.start >= longest:
            current, following = following, window(following.begin + stride)
        logits = current.hear(step)
        if guidance is not None:
            logits = guide(logits, guidance)
        sheet.write(step, draw(logits, sampling, sheet.noise(step)))
        following.overhear(step)
        while given < sheet.rhythm.complete(step):
            yield sheet.take(given)
            given += 1
            if given == sheet.num_frames:
                return
        sheet.forget(min(following.heard, step - longest))


class _Window:
    """A sequence that begins at a frame of the stream, and how far the model has heard it."""

    def __init__(
        self,
        decoder: Decoder,
        condition: Condition | None,
        sheet: _Sheet,
        begin: int,
        longest: int,
        copies: int,
    ):
        """longest: steps of a full window. copies: rows of the model for each of the stream."""
        self.decoder, self.sheet, self.begin, self.copies = decoder, sheet, begin, copies
        self.start = begin * sheet.rhythm.steps_per_frame
        self.heard = self.start  # steps before this one are in the cache
        self.cache: Any = decoder.new_cache(condition, copies * len(sheet.prompt), longest)

    def hear(self, step: int) -> Tensor:
        """Everything before a step -> its logits [copies B, K, V]."""
        new = torch.stack([self._content(earlier) for earlier in range(self.heard, step)], -1)
        self.heard = step
        return self.decoder.step(new.repeat(self.copies, 1, 1), self.cache)

    def overhear(self, step: int) -> None:
        """What was written up to a step, once it makes more than a block; one block a call."""
        if step + 1 - self.heard > BLOCK:
            self.hear(self.heard + BLOCK)

    def _content(self, step: int) -> Tensor:
        """A step [B, K] without the frames before this window's first."""
        frames = self.sheet.rhythm.frames(step)
        if min(frames) >= self.begin:
            return self.sheet.steps[step]
        before = torch.tensor([frame < self.begin for frame in frames], device=self.decoder.device)
        return self.sheet.steps[step].masked_fill(before, self.decoder.special)


class _Sheet:
    """What is written so far, by steps; and the uniform numbers that codes are drawn with, by frames."""

    def __init__(
        self,
        decoder: Decoder,
        rhythm: Rhythm,
        seeds: Sequence[int],
        prompt: Tensor,
        num_frames: int | None,
    ):
        self.rhythm, self.prompt, self.num_frames = rhythm, prompt, num_frames
        self.device, self.special = decoder.device, decoder.special
        self.books = torch.arange(prompt.shape[1], device=self.device)
        self.steps = {0: torch.full(prompt.shape[:2], self.special, device=self.device)}  # of [B, K]
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.uniform = torch.zeros(
            *prompt.shape[:2], 0, device=self.device
        )  # of frames from `uniform_begin` on
        self.uniform_begin = 0

    def write(self, step: int, drawn: Tensor | None) -> None:
        """Codes [B, K] for a step, where they are neither known nor outside of the stream."""
        known = self.prompt.shape[2]
        frames = self.rhythm.frames(step)
        end = float("inf") if self.num_frames is None else self.num_frames
        if drawn is not None and known <= min(frames) and max(frames) < end:
            self.steps[step] = drawn
            return
        content = torch.full_like(self.steps[step - 1], self.special)
        for book, frame in enumerate(frames):
            if 0 <= frame < known:
                content[:, book] = self.prompt[:, book, frame]
            elif known <= frame < end:
                assert drawn is not None
                content[:, book] = drawn[:, book]
        self.steps[step] = content

    def noise(self, step: int) -> Tensor:
        """Uniform numbers [B, K] of a step: each row's generator gives them frame by frame, as for a whole sound."""
        frames = self.rhythm.frames(step)
        while max(frames) >= self.uniform_begin + self.uniform.shape[2]:
            shape = NOISE_FRAMES, len(self.books)
            more = torch.stack([torch.rand(shape, generator=generator).T for generator in self.generators])
            used = min(max(0, min(frames) - self.uniform_begin), self.uniform.shape[2])
            self.uniform = torch.cat([self.uniform[..., used:], more.to(self.device)], -1)
            self.uniform_begin += used
        at = torch.tensor([max(0, frame - self.uniform_begin) for frame in frames], device=self.device)
        return self.uniform[:, self.books, at]

    def take(self, frame: int) -> Tensor:
        """A complete frame's codes [B, K, 1]."""
        place = [first + frame * self.rhythm.steps_per_frame for first in self.rhythm.first]
        return torch.stack([self.steps[step][:, book] for book, step in enumerate(place)], 1)[..., None]

    def forget(self, step: int) -> None:
        """Steps before this one."""
        while (oldest := next(iter(self.steps))) < step:
            del self.steps[oldest]
