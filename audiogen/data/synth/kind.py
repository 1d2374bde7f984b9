"""What a kind of sound is: its words, its ranges, and the function that renders one sound of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from audiogen.data.synth.signals import Signal

Render = Callable[[np.random.Generator, int, int, float], Signal]  # (rng, num_samples, sample_rate, pitch_hz)


@dataclass(frozen=True)
class Kind:
    """A kind of sound event.

    In the phrases `{a}` stands for an article with adjectives ("a loud"), `{m}` for adjectives alone (mass nouns),
    and `{n}` for the place of "three times" in a clause that can be counted.

    clauses: "{a}dog barks"; nouns: "{a}barking dog"; counted: plural nouns that take a number ("dog barks"),
        empty for what is not counted.
    once: True for a sound that happens in strikes of `length_s`, placed `interval_s` apart (onset to onset), at
        most `most` of them, or filling its slot where `fills`; False for a texture that lasts.
    length_s: shortest and longest sound; a texture may last longer than its longest.
    pitch_hz: range of the pitch or of the spectral centre that "low" and "high" speak of, None where they do not.
    low, high: adjectives for the lowest and highest thirds of that range.
    backdrop: may lie under another sound.
    vary: relative spread of pitch between the strikes of one event; jitter: of the time between them.
    rings: strikes may overlap, since each dies away by itself.
    """

    name: str
    clauses: tuple[str, ...]
    nouns: tuple[str, ...]
    render: Render
    counted: tuple[str, ...] = ()
    once: bool = False
    length_s: tuple[float, float] = (0.4, 30.0)
    interval_s: tuple[float, float] = (0.4, 0.9)
    most: int = 5
    fills: bool = False
    rings: bool = False
    pitch_hz: tuple[float, float] | None = None
    low: tuple[str, ...] = ("low", "low-pitched")
    high: tuple[str, ...] = ("high", "high-pitched")
    backdrop: bool = False
    vary: float = 0.0
    jitter: float = 0.06


@dataclass
class Registry:
    """Kinds by name, filled by the decorator `add`."""

    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(
        self, name: str, clauses: str, nouns: str, counted: str = "", **options
    ) -> Callable[[Render], Render]:
        """Register the decorated renderer; phrases are separated by "|"."""

        def register(render: Render) -> Render:
            words = tuple(counted.split("|")) if counted else ()
            phrases = (tuple(clauses.split("|")), tuple(nouns.split("|")))
            self.kinds[name] = Kind(name, *phrases, render, words, **options)
            return render

        return register
