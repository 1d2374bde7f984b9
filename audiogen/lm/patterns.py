"""Patterns: in which step of the language model's sequence each codebook of each frame is predicted.

A codec gives K codes per frame, a transformer predicts one step at a time. A pattern lays the K x T codes of a
clip out on S steps; the codes of a step are predicted independently, given the steps before. Step 0 holds the
special token in every codebook, so that the first codes too are predicted from something. A pattern is two index
maps, and interleave and deinterleave are one gather each. "Simple and Controllable Music Generation" (Copet et
al., 2023), section 2.2, compares the patterns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.errors import InputError

PatternName = Literal["delay", "parallel", "flatten", "coarse_first"]
PATTERNS: tuple[str, ...] = get_args(PatternName)


@dataclass(frozen=True)
class Pattern:
    """Where each code sits in the sequence; `stack` puts one for each row of a batch in front, [B, ...].

    frame: int64 [K, S], the frame whose code is at this step, -1 for the special token.
    step: int64 [K, T], the step at which this frame's code is predicted (its inverse; never 0).
    """

    frame: Tensor
    step: Tensor

    @property
    def num_steps(self) -> int:
        """S, the special step 0 included."""
        return self.frame.shape[-1]


def make_pattern(
    name: str, num_codebooks: int, num_frames: int, delays: Sequence[int] | None = None
) -> Pattern:
    """The pattern of this name; `delays` (one per codebook) belongs to "delay" only.

    delay: codebook k of frame t at step 1 + t + delays[k], by default k; S = T + max(delays) + 1.
    parallel: all codebooks of frame t at step 1 + t; S = T + 1.
    flatten: one code per step, codebooks in turn within each frame; S = K T + 1. Exact, and K times as long.
    coarse_first: codebook 0 of all frames, then the other codebooks in parallel; S = 2 T + 1 (T + 1 when K = 1). The
    only pattern in which the steps of the first frames depend on how many frames follow.
    """
    book = torch.arange(num_codebooks)[:, None]  # [K, 1]
    frame = torch.arange(num_frames)  # [T]
    steps = {
        "delay": frame + (book if delays is None else torch.tensor(list(delays))[:, None]),
        "parallel": frame.expand(num_codebooks, -1),
        "flatten": frame * num_codebooks + book,
        "coarse_first": frame + num_frames * (book > 0),
    }
    if name not in steps:
        raise InputError(f"pattern {name!r} is unknown; allowed: {', '.join(PATTERNS)}")
    step = 1 + steps[name]  # [K, T]; step 0 holds special tokens
    inverse = torch.full((num_codebooks, int(step.max()) + 1 if num_frames else 1), -1)
    inverse.scatter_(1, step, frame.expand_as(step))
    return Pattern(inverse, step)


class PatternSchedule(NamedTuple):
    """A pattern without an end: every frame lies as the one before it, some steps later.

    first: the step of frame 0 in each of the K codebooks. steps_per_frame: from one frame to the next.
    """

    first: tuple[int, ...]
    steps_per_frame: int

    def frames(self, step: int) -> list[int]:
        """The frame of each codebook whose code is at this step, below 0 where there is no code: [K]."""
        found = []
        for first in self.first:
            frame, rest = divmod(step - first, self.steps_per_frame)
            found.append(frame if rest == 0 else -1)
        return found

    def step_before(self, frame: int) -> int:
        """The last step before all those that hold a code of this frame or a later one."""
        return min(self.first) + frame * self.steps_per_frame - 1

    def first_from(self, step: int) -> int:
        """The lowest frame that has a code at this step or a later one."""
        return max(0, min(-((first - step) // self.steps_per_frame) for first in self.first))

    def num_steps(self, num_frames: int) -> int:
        """Of so many frames: the step after the last that holds a code of theirs."""
        return max(self.first) + (num_frames - 1) * self.steps_per_frame + 1

    def begins(self, step: int) -> int | None:
        """The frame whose first code is at this step; None where that of no frame is."""
        frame, rest = divmod(step - min(self.first), self.steps_per_frame)
        return frame if rest == 0 and frame >= 0 else None

    def complete(self, step: int) -> int:
        """How many frames have all of their codes after this step."""
        return max(0, (step - max(self.first)) // self.steps_per_frame + 1)


def schedule(name: str, num_codebooks: int, delays: Sequence[int] | None = None) -> PatternSchedule:
    """The schedule of the pattern of this name; arguments as in `make_pattern`. InputError for coarse_first."""
    if name == "coarse_first":
        raise InputError(
            "pattern coarse_first plans all frames at once and cannot be streamed; generate the sound whole"
        )
    step = make_pattern(name, num_codebooks, 2, delays).step
    return PatternSchedule(tuple(step[:, 0].tolist()), int(step[0, 1] - step[0, 0]))


def stack(each: Sequence[Pattern]) -> Pattern:
    """One pattern for a batch whose rows differ in length: frame [B, K, S], step [B, K, T], of the longest.

    Past the end of a shorter row come special tokens, and its missing frames point at step 0, which holds one.
    """

    def pad(maps: list[Tensor], value: int) -> Tensor:  # [K, n] each -> [B, K, S]
        length = max(m.shape[1] for m in maps)
        return torch.stack([F.pad(m, (0, length - m.shape[1]), value=value) for m in maps])

    return Pattern(pad([pattern.frame for pattern in each], -1), pad([pattern.step for pattern in each], 0))


def interleave(codes: Tensor, pattern: Pattern, pad: int) -> Tensor:
    """Lay codes [B, K, T] out as steps [B, K, S]; `pad` (the special token) where the pattern has no code."""
    frame = pattern.frame.to(codes.device).expand(codes.shape[0], -1, -1)
    if codes.shape[2] == 0:
        return codes.new_full(frame.shape, pad)
    return codes.gather(2, frame.clamp(min=0)).masked_fill(frame < 0, pad)


def deinterleave(x: Tensor, pattern: Pattern) -> Tensor:
    """Pick the codes' places out of x [B, K, S, ...] -> [B, K, T, ...]: the exact inverse of `interleave`.

    Logits at step s predict step s + 1: shift them (drop the last, prepend one) before deinterleaving.
    """
    row = torch.arange(x.shape[0], device=x.device)[:, None, None]
    codebook = torch.arange(x.shape[1], device=x.device)[:, None]
    return x[row, codebook, pattern.step.to(x.device)]
