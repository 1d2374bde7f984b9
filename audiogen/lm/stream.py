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
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm import sample
from audiogen.lm.model import LMConfig
from audiogen.lm.patterns import PatternSchedule
from audiogen.lm.sample import (
    Callback,
    Decoder,
    Draws,
    Generation,
    Step,
    TokenRequest,
    TokenSampling,
    generate_tokens,
    run,
)

BLOCK = 16  # steps that the next window runs on in one call
NOISE_STEPS = 64  # whose random numbers are laid out at a time


def default_stride(max_frames: int) -> int:
    """Frames from one window to the next: two thirds of one."""
    return max(1, 2 * max_frames // 3)


# The text from a frame on, one row, or None where it stays; asked before every frame.
Changes = Callable[[int], Condition | None]


def stream_tokens(
    decoder: Decoder,
    request: TokenRequest,
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    max_frames: int,
    stride: int | None = None,
    changes: Changes | None = None,
    history: int = 0,
) -> Iterator[Tensor]:
    """Codes int64 [B, K, 1], a frame at a time, one row per seed; up to `max_frames` those of `generate_tokens`.

    request: all rows have one length, or no end; the prompt comes first. stride: frames from one window to the next,
    by default two thirds of max_frames. Errors are those of `generate_tokens`; the pattern must need no end.
    changes: gives B rows of another text. From its frame on a new window runs, which sees `history` frames before it,
    and at least those that are not complete: with all that was made under the old text, the model goes on with it.
    """
    stride = default_stride(max_frames) if stride is None else stride
    if not 1 <= stride <= max_frames:
        raise InputError(f"stride is {stride} frames; it must be from 1 to max_frames, {max_frames}")
    request.check(decoder)
    schedule = decoder.config.schedule()
    buffer = StepBuffer(decoder, schedule, request)
    frames = _frames(decoder, request, buffer, sampling, max_frames, stride, changes, history)
    return run(decoder, frames)


def in_turn(pattern: str, num_frames: int, max_frames: int) -> bool:
    """Whether a sound of so many frames is made by windows in turn: it is past one, and its pattern needs no end."""
    return num_frames > max_frames and pattern != "coarse_first"


def generate_any_length(
    decoder: Decoder,
    request: TokenRequest,
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    max_frames: int,
    changes: Changes | None = None,
    history: int = 0,
    callback: Callback | None = None,
) -> Tensor:
    """Codes int64 [B, K, T], whole: with changes, or past `max_frames` where its pattern allows, by `stream_tokens`.

    Else by `generate_tokens`; arguments and errors are theirs. Rows of the former have one length, T.
    """
    lengths = request.lengths(request.codes(decoder.config.num_codebooks).shape[2])
    if changes is None and not in_turn(decoder.config.pattern, max(lengths), max_frames):
        return generate_tokens(decoder, request, sampling, max_frames=max_frames, callback=callback)
    if len(set(lengths)) > 1:
        raise ValueError(
            f"rows of {min(lengths)} to {max(lengths)} frames; past {max_frames} all have one length"
        )
    made, count = [], 0
    frames = stream_tokens(
        decoder, request, sampling, max_frames=max_frames, changes=changes, history=history
    )
    for codes in frames:
        made.append(codes)
        count += codes.shape[2]
        if callback is not None:
            callback(count, lengths[0])
    return torch.cat(made, -1)


def num_decoded(config: LMConfig, num_frames: int, max_frames: int) -> int:
    """Runs of the model that `generate_any_length` takes for one clip without a prompt."""
    if not in_turn(config.pattern, num_frames, max_frames):
        return sample.num_decoded(config, num_frames, max_frames)
    steps, longest = config.schedule().num_steps(num_frames), config.pattern_of(max_frames).num_steps
    apart = default_stride(max_frames) * config.schedule().steps_per_frame
    windows = -(-(steps - longest) // apart)  # after the first; before its turn each runs on blocks
    return steps - 1 + windows * ((longest - apart - 1) // BLOCK)


def _frames(
    decoder: Decoder,
    request: TokenRequest,
    buffer: StepBuffer,
    sampling: TokenSampling,
    max_frames: int,
    stride: int,
    changes: Changes | None,
    history: int,
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
        begun = buffer.schedule.begins(step)
        if changes is not None and begun is not None and (text := changes(begun)) is not None:
            condition = replace(request, condition=text).model_condition(decoder)
            current = window(max(0, min(begun - history, buffer.schedule.complete(step - 1))))
            following = after(current)
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
        # float32 [B, K, frames], of the frames from `uniform_begin` on, and [B, K] of the next steps
        self.uniform = torch.zeros(*prompt.shape[:2], 0, device=self.device)
        self.uniform_begin = 0
        self.noises: dict[int, Tensor] = {}

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
        if step not in self.noises:
            frames = [self.schedule.frames(each) for each in range(step, step + NOISE_STEPS)]
            begin, end = self.schedule.first_from(step), max(map(max, frames)) + 1
            shape = end - self.uniform_begin - self.uniform.shape[2], len(self.books)
            more = torch.stack([torch.rand(shape, generator=generator).T for generator in self.generators])
            self.uniform = torch.cat([self.uniform, more.to(self.device)], -1)[
                ..., begin - self.uniform_begin :
            ]
            self.uniform_begin = begin
            at = torch.tensor(frames, device=self.device).clamp(min=begin) - begin  # [S, K]
            self.noises = dict(enumerate(self.uniform[:, self.books, at].unbind(1), step))
        return self.noises[step]

    def read(self, frame: int) -> Tensor:
        """A complete frame's codes [B, K, 1]."""
        steps = [first + frame * self.schedule.steps_per_frame for first in self.schedule.first]
        return torch.stack([self.steps[step][:, book] for book, step in enumerate(steps)], 1)[..., None]

    def drop_before(self, step: int) -> None:
        """Steps before this one are no longer needed."""
        while (oldest := next(iter(self.steps))) < step:
            del self.steps[oldest]
