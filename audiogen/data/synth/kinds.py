"""The kinds of sound: their words and ranges, from kinds.yaml, and the functions that render one sound of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from audiogen.data.synth import nature, things
from audiogen.data.synth.signals import Signal, Synth


@dataclass(frozen=True)
class Kind:
    """A kind of sound event: a texture that lasts, or strikes that happen (`once`) and are repeated.

    Marks in the phrases: `{a}` an article with adjectives ("a loud"), `{m}` adjectives alone (mass nouns), `{n}` the
    place of "three times" in a clause that can be counted; a phrase that begins with `{1}` speaks of one strike only.

    clauses: "{a}dog barks{n}". nouns: "{a}barking dog".
    counted: plural nouns that take a number ("dog barks"); empty for what is not counted.
    length_s: shortest and longest strike; for a texture the shortest and longest whole.
    interval_s: onset to onset; where `paced`, its ends are called fast and slow. jitter: its relative spread.
    least, most: how many strikes; a kind that `fills` may also go on through its whole slot.
    rings: strikes may overlap, since each dies away by itself.
    vary: relative spread of the pitch from strike to strike.
    pitch_hz: range of the pitch that `low` and `high` speak of, None where they are not used.
    backdrop: may lie under another sound.
    """

    name: str
    clauses: tuple[str, ...]
    nouns: tuple[str, ...]
    render: Callable[[Synth], Signal]  # -> [N]
    counted: tuple[str, ...] = ()
    once: bool = False
    length_s: tuple[float, float] = (0.4, 30.0)
    interval_s: tuple[float, float] = (0.4, 0.9)
    paced: bool = False
    jitter: float = 0.06
    least: int = 1
    most: int = 5
    fills: bool = False
    rings: bool = False
    vary: float = 0.0
    pitch_hz: tuple[float, float] | None = None
    low: tuple[str, ...] = ("low", "low-pitched")
    high: tuple[str, ...] = ("high", "high-pitched")
    backdrop: bool = False

    @property
    def shortest_s(self) -> float:
        """The shortest event of this kind."""
        return self.length_s[0] + (self.least - 1) * self.interval_s[0] * (1 + self.jitter)


def _read_kinds() -> dict[str, Kind]:
    """kinds.yaml in its order, which decides what each seed draws."""
    table: Any = OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("kinds.yaml")))
    functions, kinds = vars(nature) | vars(things), {}
    for name, fields in table.items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        kinds[name] = Kind(name, **values | {"render": functions[fields["render"]]})
    return kinds


KINDS = _read_kinds()
