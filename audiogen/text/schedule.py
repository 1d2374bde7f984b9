"""Texts by time: "0:rain; 8:thunder; 15:rain, birds"."""

from __future__ import annotations

import math
from collections.abc import Sequence

from audiogen.errors import InputError, plain_text

Schedule = tuple[tuple[float, str], ...]  # seconds from which on a text holds, and the text


def read_schedule(text: str, what: str = "--schedule") -> Schedule:
    """Entries SECONDS:TEXT with semicolons between them. InputError names the one that is not read; what: in it."""
    entries = []
    for entry in text.split(";"):
        second, colon, words = entry.partition(":")
        try:
            begin = float(second) if colon and words.strip() else math.nan
        except ValueError:
            begin = math.nan
        if math.isnan(begin):
            raise InputError(
                f'{what} has {entry.strip()[:40]!r}; give SECONDS:TEXT with ; between, such as "0:rain; 8:thunder"'
            )
        entries.append((begin, words.strip()))
    return tuple(entries)


def check_schedule(
    schedule: Sequence[tuple[float, str]], durations_s: Sequence[float], what: str = "schedule"
) -> None:
    """InputError unless texts follow one another within every sound, after its beginning, whose text is given apart."""
    before = 0.0
    if not schedule:
        raise InputError(f"{what} is empty; give at least one pair of seconds and text")
    for number, (begin, text) in enumerate(schedule):
        if not text.strip():
            raise InputError(f"{what}: text {number} is empty; give words")
        plain_text(text, f"{what}: text {number}")
        if not before < begin < min(durations_s):
            raise InputError(
                f"{what}: {text[:40]!r} begins at {begin:g} s; it must come after {before:g} s and before the end of "
                f"the sound, {min(durations_s):g} s"
            )
        before = begin
