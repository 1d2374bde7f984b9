"""What happens in a clip, decided before any audio is rendered: which events, when, how many, how high, how loud."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from audiogen.config import read_table, short
from audiogen.data.synth import nature, things
from audiogen.data.synth.signals import Signal, Synth, random_numbers
from audiogen.errors import InputError

Form = Literal["one", "order", "overlap", "emphasis"]
SHARES: dict[Form, float] = {"one": 0.45, "order": 0.30, "overlap": 0.15, "emphasis": 0.10}
# Levels in dB re full scale. The gaps between them outlast the usual gain augmentation of a few dB.
QUIET_DB, NORMAL_DB, LOUD_DB = (-26.0, -20.0), (-12.0, -5.0), (-1.0, -0.2)
BACKDROP_DB, FOREGROUND_DB = (-22.0, -14.0), (-7.0, -1.0)


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
        return self.length_s[0] + (self.least - 1) * self.interval_s[0] * (1 + self.jitter)


def _read_kinds() -> dict[str, Kind]:
    """kinds.yaml in its order, which decides what each seed draws."""
    table = read_table(Path(__file__).with_name("kinds.yaml"))
    functions, kinds = vars(nature) | vars(things), {}
    for name, fields in table.items():
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        kinds[name] = Kind(name, **values | {"render": functions[fields["render"]]})
    return kinds


KINDS = _read_kinds()


@dataclass(frozen=True)
class SynthEvent:
    """One event of a clip: a texture, or `count` strikes of one sound source.

    start_s, end_s: where it sounds; onsets_s: the start of each strike (one value for a texture).
    count: number of strikes, None for a texture.
    sound_s: length of one strike, or of the texture.
    pitch_hz: its pitch, where the kind has one that words speak of.
    gain_db: level re full scale, the larger of its peak and of three times its loudest 50 ms RMS.
    pitch, loudness, pace: "low" or "high", "quiet" or "loud", "slow" or "fast"; None where no word would be true.
    """

    kind: str
    start_s: float
    end_s: float
    onsets_s: tuple[float, ...]
    count: int | None
    sound_s: float
    pitch_hz: float | None
    gain_db: float
    pitch: str | None = None
    loudness: str | None = None
    pace: str | None = None


@dataclass(frozen=True)
class Scene:
    """The events of a clip in order of their start; for "overlap" the backdrop comes first."""

    form: Form
    events: tuple[SynthEvent, ...]


def compose(seed: int, index: int, duration_s: float) -> Scene:
    """The scene of clip `index`: a pure function of its arguments, whatever the sample rate."""
    rng = random_numbers(seed, index)
    form = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if form == "order" and duration_s >= 1.2:
        return Scene("order", _in_order(rng, duration_s))
    if form == "overlap" and duration_s >= 1.5:
        return Scene("overlap", _overlapping(rng, duration_s))
    kind = _pick(rng, duration_s)
    if form != "emphasis":
        return Scene("one", (_place(rng, kind, 0.0, duration_s, _loudness(rng)),))
    for _ in range(20):  # draw until there is something to stress
        loudness = ("quiet", "loud", None, None)[rng.integers(4)]
        event = _place(rng, kind, 0.0, duration_s, loudness)
        counted = event.count is not None and 2 <= event.count <= 5 and kind.counted
        if counted or event.pitch or event.loudness or event.pace:
            return Scene("emphasis", (event,))
        kind = _pick(rng, duration_s)
    return Scene("one", (event,))


def select(
    seed: int, indices: Iterable[int], duration_s: float, where: Mapping[str, Sequence[Any]]
) -> list[int]:
    """The clips of which every event has one of where["kind"], and whose form is one of where["form"].

    InputError for other fields, for values that no clip can have, and where no clip is left.
    """
    allowed = {"kind": tuple(KINDS), "form": tuple(SHARES)}
    for field, values in where.items():
        if field not in allowed:
            raise InputError(f"where.{field}: clips of the built-in corpus have {' and '.join(allowed)}")
        if absent := [value for value in values if value not in allowed[field]]:
            raise InputError(f"where.{field}: no {short(absent[0])}; there are {', '.join(allowed[field])}")
    kinds, forms = (set(where.get(field, values)) for field, values in allowed.items())
    chosen = []
    for index in indices:
        scene = compose(seed, index, duration_s)
        if scene.form in forms and kinds.issuperset(event.kind for event in scene.events):
            chosen.append(index)
    if not chosen:
        raise InputError(f"where: no clip fulfils all of {dict(where)}; give more clips")
    return chosen


def _pick(
    rng: np.random.Generator, slot_s: float, avoid: Kind | None = None, backdrop: bool | None = None
) -> Kind:
    """A kind other than `avoid` whose shortest sound fits in `slot_s`, a backdrop or not where that is given."""
    kinds = [kind for kind in KINDS.values() if kind.shortest_s <= slot_s and kind is not avoid]
    kinds = [kind for kind in kinds if backdrop in (None, kind.backdrop)]
    return kinds[rng.integers(len(kinds))]


def _loudness(rng: np.random.Generator) -> str | None:
    draw = rng.random()
    return "quiet" if draw < 0.13 else "loud" if draw < 0.26 else None


def _in_order(rng: np.random.Generator, duration_s: float) -> tuple[SynthEvent, ...]:
    """Two events of different kinds, one after the other with a gap between."""
    middle = duration_s * rng.uniform(0.38, 0.62)
    gap = min(0.25, 0.06 * duration_s) * rng.uniform(0.5, 1.5)
    first = _pick(rng, middle - gap / 2)
    second = _pick(rng, duration_s - middle - gap / 2, avoid=first)
    early = _place(rng, first, 0.0, middle - gap / 2, _loudness(rng))
    late = _place(rng, second, middle + gap / 2, duration_s, _loudness(rng))
    return early, late


def _overlapping(rng: np.random.Generator, duration_s: float) -> tuple[SynthEvent, ...]:
    """A backdrop through the whole clip and a louder event that begins after it."""
    under = _pick(rng, duration_s, backdrop=True)
    delay = duration_s * rng.uniform(0.05, 0.25)
    over = _pick(rng, duration_s - delay, backdrop=False)
    backdrop = _place(rng, under, 0.0, duration_s, None, BACKDROP_DB)
    return backdrop, _place(rng, over, delay, duration_s, None, FOREGROUND_DB)


def _place(
    rng: np.random.Generator,
    kind: Kind,
    start_s: float,
    end_s: float,
    loudness: str | None,
    level_db: tuple[float, float] | None = None,
) -> SynthEvent:
    """An event of `kind` inside start_s .. end_s; `level_db` overrides what the loudness asks for."""
    pitch_hz, pitch = _draw(rng, kind.pitch_hz, ("low", "high")) if kind.pitch_hz else (None, None)
    gain_db = rng.uniform(*(level_db or {"quiet": QUIET_DB, "loud": LOUD_DB, None: NORMAL_DB}[loudness]))
    slot_s = end_s - start_s
    count, pace = None, None
    if kind.once:
        onsets, sound_s, pace = _strikes(rng, kind, slot_s)
        count, length_s = len(onsets), onsets[-1] + sound_s
        at = rng.uniform(0, 0.3 if count > kind.most else 1) * max(0.0, slot_s - length_s)
    else:
        longest = min(slot_s, kind.length_s[1])
        whole = level_db == BACKDROP_DB or rng.random() < 0.6
        sound_s = longest if whole else rng.uniform(max(kind.length_s[0], 0.45 * longest), longest)
        onsets, length_s = [0.0], sound_s
        at = rng.uniform(0, slot_s - length_s)
    return SynthEvent(
        kind=kind.name,
        start_s=start_s + at,
        end_s=start_s + at + length_s,
        onsets_s=tuple(start_s + at + onset for onset in onsets),
        count=count,
        sound_s=sound_s,
        pitch_hz=pitch_hz,
        gain_db=gain_db,
        pitch=pitch,
        loudness=loudness,
        pace=pace,
    )


def _strikes(rng: np.random.Generator, kind: Kind, slot_s: float) -> tuple[list[float], float, str | None]:
    """Onsets from 0 of as many strikes as were drawn and fit in `slot_s`, their length, the word for their pace."""
    interval_s, pace = _draw(rng, kind.interval_s, ("fast", "slow"))
    sound_s = rng.uniform(kind.length_s[0], min(kind.length_s[1], slot_s))
    if kind.least > 1:
        widest = (slot_s - kind.length_s[0]) / ((kind.least - 1) * (1 + kind.jitter))
        if widest < interval_s:  # only just room for the fewest: no word for that pace
            interval_s, pace, sound_s = widest, None, kind.length_s[0]
    room = int((slot_s - sound_s) / (interval_s * (1 + kind.jitter)) + 1e-6) + 1
    if kind.fills and room > kind.most and rng.random() < 0.5:
        count = room
    else:
        count = int(rng.integers(kind.least, max(kind.least, min(room, kind.most)) + 1))
    if count > 1 and not kind.rings:
        sound_s = max(kind.length_s[0], min(sound_s, 0.85 * interval_s))
    gaps = interval_s * (1 + kind.jitter * rng.uniform(-1, 1, count - 1))
    onsets = [0.0, *np.cumsum(gaps).tolist()]
    return onsets, sound_s, pace if kind.paced and count >= 3 else None


def _draw(
    rng: np.random.Generator, span: tuple[float, float], words: tuple[str, str]
) -> tuple[float, str | None]:
    """A value of `span` (even in its logarithm) and its word: the ends have one, the middle has none."""
    place, word = [((0.0, 0.3), words[0]), ((0.38, 0.62), None), ((0.7, 1.0), words[1])][rng.integers(3)]
    return float(span[0] * (span[1] / span[0]) ** rng.uniform(*place)), word
