"""Generation without an end: codes frame by frame, in memory and time a step that do not grow.

A language model was trained on at most `max_frames` frames. So a stream is a chain of windows: while one decodes, the
next, which begins `stride` frames later, runs on what is decoded, some steps at a time, and takes over when the first
is full. No step waits for a context to be encoded, and every window sees what it would see alone: positions from its
own start, and special tokens in place of the frames before its first.

A cache that drops its oldest steps one by one would need no second window. But the positions of these models are
absolute: with any numbering of them, what such a cache generates decays (docs/LOG.md has the figures).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.patterns import PatternSchedule
from audiogen.lm.sample import Decoder, Draws, Generation, Step, TokenRequest, TokenSampling, run

BLOCK = 16  # steps that the next window runs on in one call
NOISE_FRAMES = 64  # whose random numbers are drawn at a time


def stream_tokens(
    decoder: Decoder,
    request: TokenRequest,
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    max_frames: int,
    stride: int | None = None,
) -> Iterator[Tensor]:
    """Codes int64 [B, K, 1], a frame at a time, one row per seed; up to `max_frames` those of `generate_tokens`.

    request: all rows have one length, or no end; the prompt comes first. stride: frames from one window to the next,
    by default half of max_frames. Errors are those of `generate_tokens`; the pattern must be one that needs no end.
    """
    stride = max(1, max_frames // 2) if stride is None else stride
    if not 1 <= stride <= max_frames:
        raise InputError(f"stride is {stride} frames; it must be from 1 to max_frames, {max_frames}")
    request.check(decoder)
    schedule = decoder.config.schedule()
    buffer = StepBuffer(decoder, schedule, request)
    return run(decoder, _frames(decoder, request, buffer, sampling, max_frames, stride))


def _frames(
    decoder: Decoder,
    request: TokenRequest,
    buffer: StepBuffer,
    sampling: TokenSampling,
    max_frames: int,
    stride: int,
) -> Generation:
    """The loop of `stream_tokens`: frames [B, K, 1]; with guidance, condition and model have 2 B rows."""
    longest = decoder.config.pattern_of(max_frames).num_steps
    condition, guidance = request.model_condition(decoder), request.guidance if request.is_guided else None
    copies = 1 if guidance is None else 2

    def window(begin: int) -> StreamWindow:
        return StreamWindow(decoder, condition, buffer, begin, longest, copies)

    def after(before: StreamWindow) -> StreamWindow | None:
        """The next one, where the stream goes on past the end of this."""
        goes_on = buffer.num_steps is None or buffer.num_steps > before.start + longest
        return window(before.begin + stride) if goes_on else None

    num_given = buffer.prompt.shape[2]
    current = window(0 if num_given < max_frames else num_given - (max_frames - stride))
    following = after(current)
    for step in range(1, buffer.schedule.step_before(num_given) + 1):
        buffer.write(step, None)
    for frame in range(num_given):
        yield buffer.prompt[..., frame : frame + 1]
    num_out = num_given
    for step in itertools.count(len(buffer.steps)):
        if step - current.start >= longest:
            assert following is not None
            current = following
            following = after(current)
        drawn = yield current.step(step, Draws(guidance, sampling, buffer.noise(step)))
        buffer.write(step, drawn)
        if following is not None and step + 1 - following.num_cached > BLOCK:
            yield following.step(following.num_cached + BLOCK)
        while num_out < buffer.schedule.complete(step):
            yield buffer.read(num_out)
            num_out += 1
            if num_out == buffer.num_frames:
                return
        buffer.drop_before(min(step - longest, step if following is None else following.num_cached))


class StreamWindow:
    """A sequence that begins at a frame of the stream, and the model's cache of it."""

    def __init__(
        self,
        decoder: Decoder,
        condition: Condition | None,
        buffer: StepBuffer,
        begin: int,
        longest: int,
        copies: int,
    ):
        """longest: steps of a full window. copies: rows of the model for each of the stream."""
        self.decoder, self.buffer, self.begin, self.copies = decoder, buffer, begin, copies
        self.start = begin * buffer.schedule.steps_per_frame
        self.num_cached = self.start  # steps of the stream: those before this one are in the cache
        self.cache: Any = decoder.new_cache(condition, copies * len(buffer.prompt), longest)

    def step(self, step: int, draws: Draws | None = None) -> Step:
        """What runs the model on everything before a step that is not in the cache."""
        new = torch.stack([self._content(earlier) for earlier in range(self.num_cached, step)], -1)
        self.num_cached = step
        return Step(new.repeat(self.copies, 1, 1), self.cache, draws)

    def _content(self, step: int) -> Tensor:
        """A step [B, K] without the frames before this window's first."""
        frames = self.buffer.schedule.frames(step)
        if min(frames) >= self.begin:
            return self.buffer.steps[step]
        before = torch.tensor([frame < self.begin for frame in frames], device=self.decoder.device)
        return self.buffer.steps[step].masked_fill(before, self.decoder.special)


class StepBuffer:
    """The last steps of the stream, and the uniform numbers that codes are drawn with, by frames."""

    def __init__(self, decoder: Decoder, schedule: PatternSchedule, request: TokenRequest):
        prompt = request.codes(decoder.config.num_codebooks).to(decoder.device)
        self.schedule, self.prompt = schedule, prompt
        self.num_frames = None if request.num_frames is None else max(request.lengths(prompt.shape[2]))
        self.num_steps = None if self.num_frames is None else schedule.num_steps(self.num_frames)
        self.device, self.special = decoder.device, decoder.special
        self.books = torch.arange(prompt.shape[1], device=self.device)
        self.steps = {0: torch.full(prompt.shape[:2], self.special, device=self.device)}  # of [B, K]
        self.generators = [torch.Generator().manual_seed(seed) for seed in request.seeds]
        # float32 [B, K, frames], of the frames from `uniform_begin` on
        self.uniform = torch.zeros(*prompt.shape[:2], 0, device=self.device)
        self.uniform_begin = 0

    def write(self, step: int, drawn: Tensor | None) -> None:
        """Fill a step: drawn codes [B, K] where they are neither in the prompt nor outside of the stream."""
        num_given = self.prompt.shape[2]
        frames = self.schedule.frames(step)
        end = float("inf") if self.num_frames is None else self.num_frames
        if drawn is not None and num_given <= min(frames) and max(frames) < end:
            self.steps[step] = drawn
            return
        content = torch.full_like(self.steps[step - 1], self.special)
        for book, frame in enumerate(frames):
            if 0 <= frame < num_given:
                content[:, book] = self.prompt[:, book, frame]
            elif num_given <= frame < end:
                assert drawn is not None
                content[:, book] = drawn[:, book]
        self.steps[step] = content

    def noise(self, step: int) -> Tensor:
        """Uniform numbers [B, K] of a step: each row's generator gives them frame by frame, as for a whole sound."""
        frames = self.schedule.frames(step)
        while max(frames) >= self.uniform_begin + self.uniform.shape[2]:
            shape = NOISE_FRAMES, len(self.books)
            more = torch.stack([torch.rand(shape, generator=generator).T for generator in self.generators])
            used = min(max(0, min(frames) - self.uniform_begin), self.uniform.shape[2])
            self.uniform = torch.cat([self.uniform[..., used:], more.to(self.device)], -1)
            self.uniform_begin += used
        at = torch.tensor([max(0, frame - self.uniform_begin) for frame in frames], device=self.device)
        return self.uniform[:, self.books, at]

    def read(self, frame: int) -> Tensor:
        """A complete frame's codes [B, K, 1]."""
        steps = [first + frame * self.schedule.steps_per_frame for first in self.schedule.first]
        return torch.stack([self.steps[step][:, book] for book, step in enumerate(steps)], 1)[..., None]

    def drop_before(self, step: int) -> None:
        """Steps before this one are no longer needed."""
        while (oldest := next(iter(self.steps))) < step:
            del self.steps[oldest]
