"""What is asked of a generator: texts, durations and seeds, one of each a row, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audiogen.errors import InputError


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
