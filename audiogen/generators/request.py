"""What both families of generators check and share: rows of texts, durations and seeds; options of one family."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from audiogen.errors import InputError
from audiogen.interfaces import Progress, Sampling

FAMILIES = ("a token language model", "a latent-diffusion system")


@dataclass(frozen=True)
class Request:
    """Sounds to make, B of each list. texts: None is no text."""

    texts: list[str | None]
    durations_s: list[float]
    seeds: list[int]


def check(
    texts: Sequence[str | None],
    duration_s: float | Sequence[float],
    seed: int | Sequence[int],
    guidance: float | None,
    sampling: Sampling,
) -> Request:
    """A request of one or more rows; InputError names the row or the option that cannot be.

    duration_s: one for all rows or one each. seed: row b has seed + b, or one each.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is the one string {texts[:40]!r}; give a list of strings")
    if not texts:
        raise InputError("no texts; give at least one, or None in its place for no text")
    for row, text in enumerate(texts):
        if text is not None and not text.strip():
            raise InputError(f"text {row} is empty; give words, or None for no text")
    if sampling.negative is not None and not sampling.negative.strip():
        raise InputError("the negative text is empty; give words, or None for no text")
    if guidance is not None and not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance}; it must be a number, 1 for none")
    durations = list(duration_s) if isinstance(duration_s, Sequence) else [duration_s] * len(texts)
    seeds = list(seed) if isinstance(seed, Sequence) else [seed + row for row in range(len(texts))]
    for name, values in (("durations", durations), ("seeds", seeds)):
        if len(values) != len(texts):
            raise InputError(f"{len(values)} {name} for {len(texts)} texts; give one, or one a text")
    for number in seeds:
        if not 0 <= number < 2**63:
            raise InputError(f"seed is {number}; it must be from 0 to {2**63 - 1}")
    return Request(list(texts), durations, seeds)


def refuse(options: Mapping[str, object], what: str) -> None:
    """InputError for the first of the options that is given: `what` lacks them all. options: values by their names."""
    for name, value in options.items():
        if value is not None and value is not False:  # 0 is given, and equals False
            raise InputError(f"{name} is not for {what}; drop {name}")


def alike(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Indices with equal keys, in order, at most `size` at a time."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    for indices in groups.values():
        yield from (indices[start : start + size] for start in range(0, len(indices), size))


def part_of(progress: Progress | None, before: float, share: float) -> Callable[[int, int], None] | None:
    """A callback (steps done, steps in all) that reports a part of the work to `progress`."""
    if progress is None:
        return None
    return lambda done, total: progress(before + share * done / total)
