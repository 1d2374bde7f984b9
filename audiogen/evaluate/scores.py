"""The figures of sets of clips by an embedder: cells of a report, each with its interval.

Clips of one prompt, generated with several seeds, are not independent: intervals resample prompts, never clips. So
sounds come prompt by prompt, each with the same number of takes: take t of prompt p is row p * takes + t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from audiogen.data.manifest import Clip
from audiogen.errors import InputError
from audiogen.evaluate.clips import read
from audiogen.evaluate.embedders import Embedded, Embedder, embed_clips
from audiogen.evaluate.metrics import (
    MAX_SHARE,
    Interval,
    Manifold,
    accuracy,
    cosine,
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    label_kl,
    prdc,
    prompt_interval,
    set_interval,
)
from audiogen.evaluate.report import Cell, Column, Row

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Warn = Callable[[str], object]

ROUNDS = 200  # of the intervals of sets
FRECHET_WORK = 12_800  # rounds times D: wide embeddings take long, so they get fewer rounds
INFINITY_ROUNDS, INFINITY_WORK = 40, 2_560  # the same for the extrapolation: a round takes 41 distances
PAIR_WORK = 4e7  # rounds times the squared number of clips, for figures of all pairs
FEWEST_ROUNDS = 20  # fewer make no interval
RANGES = {  # of figures that have one; FAD∞ and KD are unbiased and may pass below 0
    "fad": (0.0, math.inf),
    "is": (1.0, math.inf),
    "density": (0.0, math.inf),
    **dict.fromkeys(("precision", "recall", "coverage"), (0.0, 1.0)),
}

# The columns of one embedder, in order. Precision and recall are in the JSON alone: density and coverage say the same
# and suffer less from single odd clips.
COLUMNS = (
    Column("fad", "FAD", "lower", 1),
    Column("fad_inf", "FAD∞", "lower", 1),
    Column("kd", "KD", "lower", 1),
    Column("kl", "KL", "lower", 2),
    Column("is", "IS", "higher", 1),
    Column("density", "Density", "higher", 2),
    Column("coverage", "Coverage", "higher", 2),
    Column("accuracy", "Label accuracy", "higher", 2),
    Column("clap", "CLAP score", "higher", 2),
)
SET_NOTES = (
    "FAD: Frechet distance of embeddings; it is biased upwards by 1/n, so compare sets of equal n, or FAD∞, which "
    "extrapolates to infinitely many clips and may pass below 0. KD: kernel distance (x 100), unbiased, so it may pass "
    "below 0 as well. KL: sum of p log(p / q) over labels, p of the clip's real partner, q of the clip, both raised to "
    "1e-6. IS: inception score. Density and coverage: by the 5 nearest neighbours.",
    "In brackets: 95 % intervals. Means over prompts: bootstrap over prompts. Figures of sets: half samples without "
    "replacement (bootstrap copies would bias them); none where clips are too few, or too many for the time. Where all "
    "n prompts are right, or all wrong, the bootstrap has nothing to vary and its interval no width: the true share "
    "may still be off by 3 / n.",
)


def key_of(embedder: Embedder, name: str) -> str:
    """The key of a figure: every one carries its embedder's name and hash."""
    return f"{name} {embedder.name} {embedder.identity}"


def describe(embedder: Embedder) -> str:
    """A note that names an embedder and its weights."""
    return f"Embedder `{embedder.name}`, weights {embedder.identity}, input at {embedder.sample_rate} Hz."


def embedder_columns(embedder: Embedder) -> list[Column]:
    """All columns that an embedder could fill; `filled` leaves out those it did not."""
    return [
        replace(column, key=key_of(embedder, column.key), title=f"{column.title} ({embedder.name})")
        for column in COLUMNS
    ]


def once(warn: Warn) -> tuple[list[str], Warn]:
    """(the warnings so far, for the report's notes; a `warn` that gives every message once)."""
    warnings: list[str] = []

    def warn_once(message: str) -> None:
        if message not in warnings:
            warnings.append(message)
            warn(message)

    return warnings, warn_once


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns in which some row has a cell."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


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
) -> dict[str, Cell]:
    """Distances and overlap of two sets of embeddings: FAD, FAD∞, KD, precision, recall, density, coverage.

    A figure that the sets are too small for is None, with a warning; one for all figures of one cause.
    """
    a, b = reference.embeddings.astype(np.float64), generated.embeddings.astype(np.float64)
    dim, num_prompts = a.shape[1], len(b) // takes

    def of_sets(distance: Callable[[Array, Array], float]) -> Callable[[Index, Index], float]:
        return lambda i, j: distance(a[i], b[take_rows(j, takes)])

    @cache  # the figures of one part come from one calculation
    def manifold(i: bytes, j: bytes) -> Manifold:
        of_reference, of_prompts = (np.frombuffer(index, dtype=np.int64) for index in (i, j))
        return prdc(a[of_reference], b[take_rows(of_prompts, takes)])

    def of_manifold(name: str) -> Callable[[Index, Index], float]:
        return lambda i, j: getattr(manifold(i.tobytes(), j.tobytes()), name)

    by_pairs = round(PAIR_WORK / (len(a) + len(b)) ** 2)
    figures: list[tuple[str, Callable[[Index, Index], float], int, int]] = [
        ("fad", of_sets(frechet_distance), dim + 1, frechet_rounds(dim)),
        (
            "fad_inf",
            of_sets(partial(frechet_infinity, seed=0)),
            math.ceil((dim + 1) / MAX_SHARE),
            min(INFINITY_ROUNDS, INFINITY_WORK // dim),
        ),
        ("kd", of_sets(kernel_distance), 2, max(FEWEST_ROUNDS, by_pairs)),
        *((name, of_manifold(name), 6, max(FEWEST_ROUNDS, by_pairs)) for name in Manifold._fields),
    ]
    cells: dict[str, Cell] = {}
    lacking: dict[str, list[str]] = {}  # figures by the reason why there are none
    for name, statistic, needs, rounds in figures:
        least = needs if num_prompts > needs else -(-needs // takes)
        # Half samples keep one share of both sets: with many takes the reference may be the smaller one.
        least = max(least, math.ceil(needs * min(len(a), num_prompts) / len(a)))
        try:
            cell = set_figure(statistic, (len(a), num_prompts), least, min(ROUNDS, rounds), RANGES.get(name))
        except InputError as error:
            cell = None
            if name != "fad_inf" or cells[key_of(embedder, "fad")] is not None:  # once is enough
                lacking.setdefault(str(error), []).append(name)
        cells[key_of(embedder, name)] = cell
    for reason, names in lacking.items():
        warn(f"no {', '.join(names)} by {embedder.name}: {reason}")
    return cells


def frechet_rounds(dim: int) -> int:
    """How many half samples an interval of a Frechet distance of that width takes, to take no longer than others."""
    return min(ROUNDS, FRECHET_WORK // dim)


def inception_cells(embedder: Embedder, generated: Embedded, takes: int = 1) -> dict[str, Cell]:
    """Inception score of a set; nothing from an embedder without labels."""
    p = generated.probabilities
    if p is None:
        return {}

    def score(of_prompts: Index) -> float:
        return inception_score(p[take_rows(of_prompts, takes)])

    return {key_of(embedder, "is"): set_figure(score, (len(p) // takes,), 2, ROUNDS, RANGES["is"])}


def paired_cells(embedder: Embedder, real: Embedded, generated: Embedded, takes: int = 1) -> dict[str, Cell]:
    """KL of the labels of generated clips from those of the real clips they were to resemble, real [prompts]."""
    if real.probabilities is None or generated.probabilities is None:
        return {}
    values = label_kl(np.repeat(real.probabilities, takes, 0), generated.probabilities)
    return {key_of(embedder, "kl"): prompt_interval(values, takes)}


def text_cells(
    embedder: Embedder,
    texts: Sequence[str],
    labels: Sequence[str | None],
    generated: Embedded,
    takes: int = 1,
) -> dict[str, Cell]:
    """How well clips follow their prompts: label accuracy, for labels that the embedder has, and CLAP score."""
    cells: dict[str, Cell] = {}
    labelled = np.flatnonzero([label in embedder.labels for label in labels])
    if len(labelled):
        right = label_accuracy(embedder, labels, labelled, generated, takes)
        cells[key_of(embedder, "accuracy")] = prompt_interval(right, takes)
    if embedder.reads_text:
        wanted = np.repeat(embedder.embed_text(texts), takes, 0)
        cells[key_of(embedder, "clap")] = prompt_interval(cosine(wanted, generated.embeddings), takes)
    return cells


def label_accuracy(
    embedder: Embedder, labels: Sequence[str | None], places: Index, embedded: Embedded, takes: int = 1
) -> Array:
    """Whether the takes at some places, all of labels that the embedder has, score their label highest: 1 or 0."""
    assert embedded.probabilities is not None
    wanted = [embedder.labels.index(str(labels[place])) for place in places.tolist()]
    return accuracy(embedded.probabilities[take_rows(places, takes)], np.repeat(wanted, takes))


def warn_of_labels(embedder: Embedder, labels: Sequence[str | None], what: str, warn: Warn) -> None:
    """Say of how many clips or prompts label accuracy is the share, where it is not of all."""
    shared = sum(label in embedder.labels for label in labels)
    if 0 < shared < len(labels):
        warn(
            f"label accuracy by {embedder.name}: {shared} of {len(labels)} {what} have a label it has as well"
        )


def take_rows(prompts: Index, takes: int) -> Index:
    """The rows of all takes of some prompts."""
    return (prompts[:, None] * takes + np.arange(takes)).ravel()


def set_figure(
    statistic: Callable[..., float],
    sizes: tuple[int, ...],
    least: int,
    rounds: int,
    allowed: tuple[float, float] | None = None,
) -> Interval:
    """The figure with its interval; without one where clips are too few, or too many for more than a few rounds.

    allowed: values the figure can take, to which the interval is cut: half samples of a few clips spread beyond them.
    """
    if rounds >= FEWEST_ROUNDS:
        try:
            found = set_interval(statistic, *sizes, minimum=least, rounds=rounds)
        except InputError:  # there may still be enough for the figure, which says so if not
            pass
        else:
            least_value, most = allowed or (-math.inf, math.inf)
            return found._replace(low=max(found.low, least_value), high=min(found.high, most))
    return Interval(float(statistic(*map(np.arange, sizes))), math.nan, math.nan)
