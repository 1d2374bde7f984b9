"""The figures of sets of clips by an embedder: cells of a report, each with its interval.

Clips of one prompt, generated with several seeds, are not independent: intervals resample prompts, never clips. So
sounds come prompt by prompt, each with the same number of takes: take t of prompt p is row p * takes + t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from audiogen.data.manifest import Clip
from audiogen.errors import InputError
from audiogen.evaluate import metrics
from audiogen.evaluate.clips import read
from audiogen.evaluate.embedders import Embedded, Embedder, embed_clips
from audiogen.evaluate.metrics import Array, Index, Interval
from audiogen.evaluate.texts import columns_of
from audiogen.report import Cell, Column

T = TypeVar("T")
Cells = dict[str, Cell]
Warn = Callable[[str], object]
Statistic = Callable[[Index, Index], float]  # of some clips of the one set and some prompts of the other

ROUNDS = 200  # of the intervals of sets
FRECHET_WORK = 12_800  # rounds times D: wide embeddings take long, so they get fewer rounds
INFINITY_ROUNDS, INFINITY_WORK = 40, 2_560  # the same for the extrapolation: a round takes 41 distances
PAIR_WORK = 4e7  # rounds times the squared number of clips, for figures of all pairs
ANY = (-math.inf, math.inf)
RANGES = {  # of figures that have one; FAD∞ and KD are unbiased and may pass below 0
    "fad": (0.0, math.inf),
    "is": (1.0, math.inf),
    "density": (0.0, math.inf),
    **dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0)),
}


def key_of(embedder: Embedder, name: str) -> str:
    """The key of a figure: every one carries its embedder's name and hash."""
    return f"{name} {embedder.name} {embedder.identity}"


def by_key(embedder: Embedder, cells: Mapping[str, T]) -> dict[str, T]:
    """Cells, or what they are made of, by the keys of an embedder."""
    return {key_of(embedder, name): cell for name, cell in cells.items()}


def embedder_columns(embedder: Embedder) -> list[Column]:
    """All columns that an embedder could fill; `filled` leaves out those it did not."""
    return [
        replace(column, key=key_of(embedder, column.key), title=f"{column.title} ({embedder.name})")
        for column in columns_of("embedder")
    ]


def once(warn: Warn) -> tuple[list[str], Warn]:
    """(the warnings so far, as notes of the report; a `warn` that gives every message once)."""
    notes: list[str] = []

    def warn_once(message: str) -> None:
        if (note := f"Warning: {message}") not in notes:
            notes.append(note)
            warn(message)

    return notes, warn_once


def embed_files(embedder: Embedder, clips: Sequence[Clip], duration_s: float | None, warn: Warn) -> Embedded:
    """Embed clips, at most the first duration_s of each, whatever their rates and channels.

    Clips that are silent or constant are embedded as they are, and warned of.
    """
    constant: list[str] = []

    def loaded() -> Iterator[Tensor]:
        for clip in clips:
            sound = read(clip, embedder.sample_rate, None, duration_s)
            if bool((sound == sound[:, :1]).all()):
                constant.append(clip.key)
            yield sound

    embedded = embed_clips(embedder, loaded(), embedder.sample_rate)
    if constant:
        warn(f"{len(constant)} of {len(clips)} clips are silent or constant, the first is {constant[0]}")
    return embedded


def take(embedded: Embedded, places: Sequence[int] | Index) -> Embedded:
    """Some clips of a set, in that order."""
    index = np.asarray(places, dtype=np.int64)
    probabilities = None if embedded.probabilities is None else embedded.probabilities[index]
    return Embedded(embedded.embeddings[index], probabilities)


def set_cells(
    embedder: Embedder, reference: Embedded, generated: Embedded, warn: Warn, takes: int = 1
) -> Cells:
    """Distances and overlap of two sets of embeddings: FAD, FAD∞, KD, precision, recall, density, coverage.

    A figure that the sets are too small for is None, with a warning; one for all figures of one cause.
    """
    a, b = reference.embeddings.astype(np.float64), generated.embeddings.astype(np.float64)
    dim, num_prompts = a.shape[1], len(b) // takes

    def of_sets(distance: Callable[[Array, Array], float]) -> Statistic:
        return lambda i, j: distance(a[i], b[take_rows(j, takes)])

    @cache  # the figures of one part come from one calculation
    def manifold(i: bytes, j: bytes) -> metrics.Manifold:
        of_reference, of_prompts = (np.frombuffer(index, dtype=np.int64) for index in (i, j))
        return metrics.prdc(a[of_reference], b[take_rows(of_prompts, takes)])

    def of_manifold(name: str) -> Statistic:
        return lambda i, j: getattr(manifold(i.tobytes(), j.tobytes()), name)

    by_pairs = max(metrics.FEWEST_ROUNDS, round(PAIR_WORK / (len(a) + len(b)) ** 2))
    at_infinity = of_sets(partial(metrics.frechet_infinity, seed=0))
    by_extrapolations = min(INFINITY_ROUNDS, INFINITY_WORK // dim)
    figures: dict[str, tuple[Statistic, int, int]] = {  # each with the clips it needs, and its rounds
        "fad": (of_sets(metrics.frechet_distance), dim + 1, frechet_rounds(dim)),
        "fad_inf": (at_infinity, math.ceil((dim + 1) / metrics.MAX_SHARE), by_extrapolations),
        "kd": (of_sets(metrics.kernel_distance), 2, by_pairs),
        **{name: (of_manifold(name), 6, by_pairs) for name in metrics.Manifold._fields},
    }
    cells: Cells = {}
    lacking: dict[str, list[str]] = {}  # figures by the reason why there are none
    for name, (statistic, needs, rounds) in figures.items():
        least = needs if num_prompts > needs else -(-needs // takes)
        # Half samples keep one share of both sets: with many takes the reference may be the smaller one.
        least = max(least, math.ceil(needs * min(len(a), num_prompts) / len(a)))
        options: Any = {"minimum": least, "rounds": min(ROUNDS, rounds), "allowed": RANGES.get(name, ANY)}
        try:
            cells[name] = metrics.set_interval(statistic, len(a), num_prompts, **options)
        except InputError as error:
            cells[name] = None
            if name != "fad_inf" or cells["fad"] is not None:  # once is enough
                lacking.setdefault(str(error), []).append(name)
    for reason, names in lacking.items():
        warn(f"no {', '.join(names)} by {embedder.name}: {reason}")
    return by_key(embedder, cells)


def frechet_rounds(dim: int) -> int:
    """How many half samples an interval of a Frechet distance of that width takes, to take no longer than others."""
    return min(ROUNDS, FRECHET_WORK // dim)


def inception_cells(embedder: Embedder, generated: Embedded, takes: int = 1) -> Cells:
    """Inception score of a set; nothing from an embedder without labels."""
    p = generated.probabilities
    if p is None:
        return {}

    def score(prompts: Index) -> float:
        return metrics.inception_score(p[take_rows(prompts, takes)])

    cell = metrics.set_interval(score, len(p) // takes, rounds=ROUNDS, allowed=RANGES["is"])
    return {key_of(embedder, "is"): cell}


def clip_values(
    embedder: Embedder,
    generated: Embedded,
    takes: int = 1,
    real: Embedded | None = None,
    labels: Sequence[str | None] = (),
    texts: Sequence[str] = (),
) -> dict[str, Array]:
    """What can be measured of each generated clip [prompts * takes], by the keys of the figures.

    KL of its labels from those of the real clip of its prompt, label accuracy (1 or 0; NaN for a label that the
    embedder does not have), and CLAP score with the text of its prompt. real, labels, texts: one a prompt.
    """
    values: dict[str, Array] = {}
    p = generated.probabilities
    if p is not None and len(places := np.flatnonzero([label in embedder.labels for label in labels])):
        wanted = [embedder.labels.index(str(labels[place])) for place in places.tolist()]
        values["accuracy"] = np.full(len(p), math.nan)
        rows = take_rows(places, takes)
        values["accuracy"][rows] = metrics.accuracy(p[rows], np.repeat(wanted, takes))
    if p is not None and real is not None and real.probabilities is not None:
        values["kl"] = metrics.label_kl(np.repeat(real.probabilities, takes, 0), p)
    if texts and embedder.text is not None:
        values["clap"] = metrics.cosine(np.repeat(embedder.embed_text(texts), takes, 0), generated.embeddings)
    return by_key(embedder, values)


def mean_of_defined(values: ArrayLike, takes: int = 1) -> Interval | None:
    """Mean of values [prompts * takes] over the prompts that have no NaN, with its interval; None where all have."""
    by_prompt = np.asarray(values, dtype=np.float64).reshape(-1, takes)
    defined = by_prompt[~np.isnan(by_prompt).any(1)]
    return metrics.prompt_interval(defined, takes) if len(defined) else None


def warn_of_labels(embedder: Embedder, labels: Sequence[str | None], what: str, warn: Warn) -> None:
    """Say of how many clips or prompts label accuracy is the share, where it is not of all."""
    shared = sum(label in embedder.labels for label in labels)
    if 0 < shared < len(labels):
        share = f"{shared} of {len(labels)} {what}"
        warn(f"label accuracy by {embedder.name}: {share} have a label it has as well")


def take_rows(prompts: Index, takes: int) -> Index:
    """The rows of all takes of some prompts."""
    return (prompts[:, None] * takes + np.arange(takes)).ravel()
