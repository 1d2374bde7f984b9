"""From a scene to sentences: several wordings, each true of the clip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiogen.data.synth.scene import KINDS, Scene, SynthEvent

LOUD_WORDS = {"loud": ("loud",), "quiet": ("quiet", "soft", "faint")}
LOUD_ADVERBS = {"loud": ("loudly",), "quiet": ("quietly", "softly", "faintly")}
PACE_WORDS = {"slow": ("slow",), "fast": ("quick", "rapid", "fast")}
PACE_ADVERBS = {"slow": ("slowly",), "fast": ("quickly", "rapidly", "fast")}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
TIMES = {1: "once", 2: "twice", 3: "three times", 4: "four times", 5: "five times"}

# {A}, {B} clauses; {a}, {b} noun phrases; first and second in time.
ORDER = (
    "{A}, then {B}",
    "{A} and then {B}",
    "{A} before {B}",
    "first {A}, then {B}",
    "{a}, then {b}",
    "{a} followed by {b}",
    "{a} and then {b}",
    "{b} after {a}",
    "after {a}, {B}",
)
# A, a the backdrop; B, b the sound in front of it.
OVERLAP = (
    "{A} while {B}",
    "{B} while {A}",
    "{B} with {a} in the background",
    "{b} over {a}",
    "{a} with {b}",
    "{a} and {b} at the same time",
)


def write(scene: Scene, rng: np.random.Generator, most: int = 5) -> tuple[str, ...]:
    """Up to `most` different captions of the scene, at least one."""
    found: dict[str, None] = {}
    for _ in range(4 * most):
        found.setdefault(_sentence(scene, rng))
        if len(found) == most:
            break
    return tuple(found)


def _sentence(scene: Scene, rng: np.random.Generator) -> str:
    if scene.form in ("order", "overlap"):
        first, second = scene.events
        text = _one_of(rng, ORDER if scene.form == "order" else OVERLAP).format(
            A=_clause(first, rng), B=_clause(second, rng), a=_noun(first, rng), b=_noun(second, rng)
        )
    else:
        stress = scene.form == "emphasis"
        write_one = _clause if rng.random() < 0.6 else _noun
        text = write_one(scene.events[0], rng, stress)
    return text[0].upper() + text[1:]


def _one_of(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _mentions(event: SynthEvent, rng: np.random.Generator, stress: bool) -> set[str]:
    """Which of the attributes that are true to speak of: each by chance, at most two; at least one under stress."""
    counted = event.count is not None and event.count in NUMBERS and KINDS[event.kind].counted
    facts = [n for n in ("pitch", "loudness", "pace") if getattr(event, n)] + (["count"] if counted else [])
    chosen = [fact for fact in facts if rng.random() < (0.7 if stress else 0.4)]
    if stress and not chosen and facts:
        chosen = [_one_of(rng, facts)]
    rng.shuffle(chosen)
    return set(chosen[:2])


def _fill(template: str, adjectives: list[str], ending: str) -> str:
    """Put adjectives, the right article and the adverbs into a phrase template."""
    words = "".join(f"{word} " for word in adjectives)
    following = words or template.partition("{a}")[2]
    article = "an " if following[:1] in "aeiou" else "a "
    text = template.replace("{a}", article + words).replace("{m}", words)
    return text.replace("{n}", ending) if "{n}" in text else text + ending


def _apt(phrases: Sequence[str], event: SynthEvent) -> list[str]:
    """The phrases that are true of this many strikes, without their mark."""
    return [text.removeprefix("{1}") for text in phrases if event.count == 1 or not text.startswith("{1}")]


def _clause(event: SynthEvent, rng: np.random.Generator, stress: bool = False) -> str:
    """ "a small bell rings loudly three times"."""
    kind, said = KINDS[event.kind], _mentions(event, rng, stress)
    templates = [
        text
        for text in _apt(kind.clauses, event)
        if ("count" not in said or "{n}" in text) and ("pitch" not in said or "{a}" in text)
    ]
    if not templates:
        return _noun(event, rng, stress)
    adjectives = _pitch_words(event, rng) if "pitch" in said else []
    ending = ""
    if "loudness" in said:
        ending += " " + _one_of(rng, LOUD_ADVERBS[str(event.loudness)])
    if "pace" in said:
        ending += (" and " if ending else " ") + _one_of(rng, PACE_ADVERBS[str(event.pace)])
    if "count" in said:
        ending += " " + TIMES[event.count or 0]
    return _fill(_one_of(rng, templates), adjectives, ending)


def _noun(event: SynthEvent, rng: np.random.Generator, stress: bool = False) -> str:
    """ "a loud small bell", or with a count "three slow knocks"."""
    kind, said = KINDS[event.kind], _mentions(event, rng, stress)
    adjectives = [_one_of(rng, LOUD_WORDS[str(event.loudness)])] if "loudness" in said else []
    if kind.counted and event.count in NUMBERS and event.count > 1 and ("count" in said or "pace" in said):
        if "pace" in said:
            adjectives.append(_one_of(rng, PACE_WORDS[str(event.pace)]))
        return " ".join([NUMBERS[event.count], *adjectives, _one_of(rng, kind.counted)])
    if "pitch" in said:
        adjectives += _pitch_words(event, rng)
    templates = [text for text in _apt(kind.nouns, event) if not adjectives or "{" in text]
    return _fill(_one_of(rng, templates), adjectives, "")


def _pitch_words(event: SynthEvent, rng: np.random.Generator) -> list[str]:
    kind = KINDS[event.kind]
    return [_one_of(rng, kind.low if event.pitch == "low" else kind.high)]
