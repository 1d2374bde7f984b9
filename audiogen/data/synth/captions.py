"""From a scene to sentences: several wordings, each true of the clip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from audiogen.config import read_table
from audiogen.data.synth.scene import KINDS, Scene, SynthEvent

T = TypeVar("T")
WORDS = read_table(Path(__file__).with_name("sentences.yaml"))


def write(scene: Scene, rng: np.random.Generator, most: int = 5) -> tuple[str, ...]:
    """Up to `most` different captions of the scene."""
    found: dict[str, None] = {}
    for _ in range(6 * most):
        found.setdefault(_sentence(scene, rng))
        if len(found) == most:
            break
    return tuple(found)


def _sentence(scene: Scene, rng: np.random.Generator) -> str:
    if scene.form in ("order", "overlap"):
        pattern = _one_of(rng, WORDS[scene.form])
        first, second = scene.events
        sentences = {"A": _phrase(first, rng, _clauses(first)), "B": _phrase(second, rng, _clauses(second))}
        phrases = {"a": _phrase(first, rng, _nouns(first)), "b": _phrase(second, rng, _nouns(second))}
        text = pattern.format(**sentences, **phrases)
    else:
        event = scene.events[0]
        nouns = _nouns(event)
        if rng.random() < 0.15:
            plain = [noun for noun in nouns if not noun.text.startswith("the ")]
            templates = [noun._replace(text=f"the sound of {noun.text}") for noun in plain]
        else:
            templates = _clauses(event) + nouns
        text = _phrase(event, rng, templates, scene.form == "emphasis")
    return text[0].upper() + text[1:]


def _one_of(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]


class Template(NamedTuple):
    """A phrase with its marks (see `Kind`; `{k}` a number with adjectives), and the attributes it has room for."""

    text: str
    room: set[str]
    clause: bool = False


def _numbered(event: SynthEvent) -> bool:
    return event.count in range(1, len(WORDS["numbers"]) + 1) and bool(KINDS[event.kind].counted)


def _apt(phrases: Sequence[str], event: SynthEvent) -> list[str]:
    """The phrases that are true of this many strikes: one marked {1} speaks of a single strike."""
    return [text.removeprefix("{1}") for text in phrases if event.count == 1 or not text.startswith("{1}")]


def _clauses(event: SynthEvent) -> list[Template]:
    """ "{a}bell rings{n}": adverbs always fit, pitch needs an adjective's place, a count its own."""
    found = []
    for text in _apt(KINDS[event.kind].clauses, event):
        marked = {fact for fact, mark in (("pitch", "{a}"), ("count", "{n}")) if mark in text}
        found.append(Template(text, {"loudness", "pace"} | marked, clause=True))
    return found


def _nouns(event: SynthEvent) -> list[Template]:
    """ "{a}ringing bell", and "{k}bell strikes" where it strikes a few times."""
    kind = KINDS[event.kind]
    found = []
    for text in _apt(kind.nouns, event):
        found.append(Template(text, {"loudness", "pitch"} if "{a}" in text or "{m}" in text else set()))
    if _numbered(event) and event.count != 1:
        found += [Template("{k}" + text, {"count", "loudness", "pace"}) for text in kind.counted]
    return found


def _phrase(
    event: SynthEvent, rng: np.random.Generator, templates: Sequence[Template], stress: bool = False
) -> str:
    """One of the templates with some of what is true of the event: at most two attributes, under stress some."""
    facts = {name for name in ("pitch", "loudness", "pace") if getattr(event, name)}
    facts |= {"count"} if _numbered(event) else set()
    if stress:
        templates = [template for template in templates if template.room & facts] or _clauses(event)
    template = _one_of(rng, templates)
    sayable = sorted(template.room & facts)
    said = [fact for fact in sayable if rng.random() < (0.7 if stress else 0.4)]
    if stress and sayable and not said:
        said = [_one_of(rng, sayable)]
    rng.shuffle(said)
    return _fill(template, event, set(said[:2]), rng)


def _fill(template: Template, event: SynthEvent, said: set[str], rng: np.random.Generator) -> str:
    """Put adjectives with their article, adverbs and number in their places."""
    kind, (text, _, clause) = KINDS[event.kind], template
    chosen = [
        _one_of(rng, words[getattr(event, fact)])
        for fact, words in WORDS["adverbs" if clause else "adjectives"].items()
        if fact in said
    ]
    adverbs, adjectives = (chosen, []) if clause else ([], chosen)
    if "pitch" in said:
        adjectives.append(_one_of(rng, kind.low if event.pitch == "low" else kind.high))
    before = "".join(f"{word} " for word in adjectives)
    following = before or text.partition("{a}")[2]
    article = "an " if following[:1] in "aeiou" else "a "
    text = text.replace("{a}", article + before).replace("{m}", before)
    ending = f" {' and '.join(adverbs)}" if adverbs else ""
    if _numbered(event):
        number, times = (WORDS[name][(event.count or 0) - 1] for name in ("numbers", "times"))
        text = text.replace("{k}", f"{number} {before}")
        ending += f" {times}" if "count" in said and clause else ""
    return text.replace("{n}", ending) if "{n}" in text else text + ending
