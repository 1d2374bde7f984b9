"""What is asked of a generator: texts, durations and seeds, one of each a row, and a sound to change; checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from audiogen.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[float], None]  # gets the share of the work that is done, in [0, 1]


@dataclass(frozen=True)
class Request:
    """Sounds to make, B of each list.

    texts: None is no text. guidance: weight of the text, None the model's own. negative: a text to move away from.
    peer_padding: texts are padded to the longest and their padding is attended to, as in audiocraft.
    """

    texts: list[str | None]
    durations_s: list[float]
    seeds: list[int]
    guidance: float | None = None
    negative: str | None = None
    peer_padding: bool = False


@dataclass(frozen=True)
class Edit:
    """A sound to make another of, and what of it is new.

    audio: [C, N], of any sample rate and channels. strength: how far it goes back to noise, 0 (it stays) to 1 (nothing
    of it is left, but for what is kept); None is 1. inpaint: from when to when, in seconds, it is made anew, and kept
    elsewhere. upsample: its highest frequencies are made anew, and the others kept.
    """

    audio: Tensor
    sample_rate: int
    strength: float | None = None
    inpaint: tuple[float, float] | None = None
    upsample: bool = False

    def __post_init__(self) -> None:
        if self.audio.dim() != 2 or 0 in self.audio.shape or not self.audio.isfinite().all():
            raise InputError(
                f"the sound to begin from has shape {list(self.audio.shape)}, or samples that are not finite; give "
                "[C, N], finite samples"
            )
        if self.sample_rate < 1:
            raise InputError(f"the sound to begin from has {self.sample_rate} Hz; at least 1 is needed")
        if self.strength is not None and not 0.0 <= self.strength <= 1.0:
            raise InputError(
                f"strength is {self.strength:g}; it must be from 0 (the sound stays) to 1 (all new)"
            )
        if self.inpaint is not None and self.upsample:
            raise InputError("inpaint and upsample keep different parts of a sound; choose one")
        if self.strength is None and self.inpaint is None and not self.upsample:
            raise InputError(
                "nothing is to become of the sound to begin from; give a strength (0.6, say), inpaint or upsample"
            )
        self._check_inpaint(self.duration_s)

    @property
    def duration_s(self) -> float:
        """Of the sound."""
        return self.audio.shape[-1] / self.sample_rate

    def check_duration(self, duration_s: float) -> None:
        """Raise InputError where a result that long needs more than there is, or ends before what is made anew."""
        if duration_s > self.duration_s + 1e-3:
            raise InputError(
                f"the sound to begin from has {self.duration_s:g} s and {duration_s:g} s are to be made; "
                "give a duration that is no longer, or none"
            )
        self._check_inpaint(duration_s)

    def _check_inpaint(self, duration_s: float) -> None:
        if self.inpaint is not None and not 0.0 <= self.inpaint[0] < self.inpaint[1] <= duration_s:
            raise InputError(
                f"the part to inpaint is {self.inpaint[0]:g} s to {self.inpaint[1]:g} s; it must ascend and lie "
                f"within the sound, 0 to {duration_s:g} s"
            )


def check(
    texts: Sequence[str | None],
    duration_s: float | Sequence[float],
    seed: int | Sequence[int],
    guidance: float | None = None,
    negative: str | None = None,
    peer_padding: bool = False,
) -> Request:
    """A request of one or more rows; what cannot be meant is an InputError that names the row.

    duration_s: one for all rows or one each. seed: row b has seed + b, or one each.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is the one string {texts[:40]!r}; give a list of strings")
    if not texts:
        raise InputError("no texts; give at least one, or None in its place for no text")
    for row, text in enumerate(texts):
        if text is not None and not text.strip():
            raise InputError(f"text {row} is empty; give words, or None for no text")
    if negative is not None and not negative.strip():
        raise InputError("the negative text is empty; give words, or None for no text")
    if guidance is not None and not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance}; it must be a number, 1 for none")
    count = len(texts)
    return Request(
        list(texts), _durations(duration_s, count), _seeds(seed, count), guidance, negative, peer_padding
    )


def _durations(value: float | Sequence[float], count: int) -> list[float]:
    """One duration a row."""
    durations = list(value) if isinstance(value, Sequence) else [value] * count
    if len(durations) != count:
        raise InputError(f"{len(durations)} durations for {count} texts; give one, or one a text")
    return durations


def _seeds(value: int | Sequence[int], count: int) -> list[int]:
    """One seed a row: those given, or counted up from the one given."""
    seeds = list(value) if isinstance(value, Sequence) else [value + row for row in range(count)]
    if len(seeds) != count:
        raise InputError(f"{len(seeds)} seeds for {count} texts; give one, or one a text")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise InputError(f"seed is {seed}; it must be from 0 to {2**63 - 1}")
    return seeds


def alike(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Indices with equal keys, in order, at most `size` at a time."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def part_of(progress: Progress | None, before: float, share: float) -> Callable[[int, int], None] | None:
    """A callback (steps done, steps in all) for a part of the work that `progress` is told of."""
    if progress is None:
        return None
    return lambda done, total: progress(before + share * done / total)
