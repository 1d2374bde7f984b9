"""Figures on embeddings and label probabilities, and their intervals: pure functions on numpy arrays, in float64.

n clips, D width of an embedding, L labels. Whatever has rows takes anything numpy reads as [n, D] or [n, L]. What
is not finite, too short or of unequal shape raises InputError with the row. Logarithms are natural.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist, pdist
from scipy.special import rel_entr

from audiogen.errors import InputError
from audiogen.report import Interval

Array = NDArray[np.float64]
Index = NDArray[np.int64]

LEVEL = 0.95  # of all intervals
FEWEST_ROUNDS = 20  # fewer half samples make no interval
KERNEL_SCALE = 100.0  # of the kernel distance, as published
KL_FLOOR = 1e-6  # the least probability of a label in label_kl: no clip can cost more than -log of it, 13.8
LARGEST = 1e75  # of a value: the fourth power of more, summed, is no float64; float32 ends at 3e38
SIZES, DRAWS = 5, 8  # of the extrapolation: subsample sizes below the full one, and draws of each
MAX_SHARE = 0.9  # of a set, for the smallest of these sizes: nearer ones say nothing of the slope

# --------------------------------------------------------------------------------------- sets of embeddings


def frechet_distance(reference: ArrayLike, generated: ArrayLike) -> float:
    """Frechet distance of the Gaussians fitted to two sets, [n, D] and [m, D] (FAD, arXiv:1812.08466, equation 1).

    |mean_r - mean_g|^2 + tr(R) + tr(G) - 2 tr(sqrt(R G)), covariances over n - 1, in the embedding's unit squared.
    Finite sets bias it upwards, the more the smaller n / D: compare only figures of equal n, or `frechet_infinity`.
    Raises InputError when a set has D clips or fewer: its covariance is then singular whatever the sounds are.
    """
    reference, generated = _pair(reference, generated, np.shape(reference)[-1] + 1)
    a, b = _root(reference), _root(generated)
    shift = np.square(reference.mean(0) - generated.mean(0)).sum()
    # With covariances A'A and B'B the eigenvalues of R G are the squared singular values of A B' [D, D]. Taking those
    # keeps a zero eigenvalue at rounding error; the square root of an eigenvalue would make it 1e-8 of the largest.
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    distance = shift + np.square(a).sum() + np.square(b).sum() - 2 * overlap
    return max(0.0, float(distance))  # equal sets may round to -1e-15


def _root(rows: Array) -> Array:
    """A triangular A [min(n, D), D] with A'A the covariance of rows [n, D]."""
    return np.linalg.qr((rows - rows.mean(0)) / math.sqrt(len(rows) - 1)).R


def frechet_infinity(reference: ArrayLike, generated: ArrayLike, *, seed: int) -> float:
    """Frechet distance extrapolated to infinitely many clips: a line against 1/n, read at 0.

    FID-infinity (arXiv:1911.07023) and FAD-infinity (arXiv:2311.01616) shrink the generated set only, with a
    reference of many thousands. Ours may be as small as the generated one and biases the distance as much, so both
    shrink by the same share, without replacement; the line goes through the distance of the full sets. On Gaussians
    the bias left is lost in the noise from n = 5 D on; at n = 2 D the figure is too low by a twentieth of what was
    taken off, at 1.25 D by a tenth. Around equal distributions it may be negative. Raises InputError when a set has
    fewer than about 1.1 D clips.
    """
    least = np.shape(reference)[-1] + 1
    reference, generated = _pair(reference, generated, math.ceil(least / MAX_SHARE))
    rng = np.random.default_rng(seed)
    largest_inverse = min(2.0, min(len(reference), len(generated)) / least)
    inverse_shares = np.linspace(1, largest_inverse, SIZES + 1)[1:]
    full = frechet_distance(reference, generated)
    rises = []
    for inverse in inverse_shares:
        draws = [_subsamples(rows, 1 / inverse, rng) for rows in (reference, generated)]
        rises.append(np.mean([frechet_distance(*draw) for draw in zip(*draws, strict=True)]) - full)
    slope = np.dot(inverse_shares - 1, rises) / np.square(inverse_shares - 1).sum()
    return float(full - slope)


def _subsamples(rows: Array, share: float, rng: np.random.Generator) -> list[Array]:
    """DRAWS subsamples of that share of the rows, windows around one shuffled circle.

    Together they use all clips alike, so that which clips were drawn does not tilt the line: with the line held to
    the full sets, the seed moves the result three to seven times less than with free draws.
    """
    size, order = round(share * len(rows)), rng.permutation(len(rows))
    return [rows[np.roll(order, draw * len(rows) // DRAWS)[:size]] for draw in range(DRAWS)]


def kernel_distance(reference: ArrayLike, generated: ArrayLike) -> float:
    """Kernel audio distance (arXiv:2502.15602): unbiased squared MMD with a Gaussian kernel, times 100.

    The kernel is exp(-d^2 / (2 sigma^2)), sigma the median distance within the reference. Unlike the Frechet distance
    it has no bias at small n and no limit by D; around equal distributions it may be negative. Memory grows as n * m.
    Raises InputError below 2 clips, or when most of the reference is one and the same.
    """
    reference, generated = _pair(reference, generated, least=2)
    sigma = float(np.median(pdist(reference)))
    if sigma == 0:
        raise InputError("the median distance between reference clips is 0; give clips that differ")

    def kernel(squared_distance: Array) -> Array:
        return np.exp(-squared_distance / (2 * sigma**2))

    within_r, within_g = (kernel(pdist(rows, "sqeuclidean")).mean() for rows in (reference, generated))
    between = kernel(cdist(reference, generated, "sqeuclidean")).mean()
    return KERNEL_SCALE * float(within_r + within_g - 2 * between)


def nearest(reference: ArrayLike, generated: ArrayLike) -> Array:
    """Distance [m] of each generated clip [m, D] to the nearest reference clip [n, D]."""
    reference, generated = _pair(reference, generated)
    return cdist(generated, reference).min(1)


class Manifold(NamedTuple):
    """What of the generated lies among the reference (precision, density), and the reverse (recall, coverage)."""

    precision: float
    recall: float
    density: float
    coverage: float


def prdc(reference: ArrayLike, generated: ArrayLike, k: int = 5) -> Manifold:
    """Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797), of [n, D] and [m, D].

    The ball of a clip reaches to the k-th nearest other clip of its own set, its surface left out as in the
    authors' code; a copy of the clip is inside however small the ball. All are 1 for a set and itself; density may
    exceed 1. Memory grows as n * m. Raises InputError when a set has no more than k clips.
    """
    reference, generated = _pair(reference, generated, least=k + 1)
    distance = cdist(reference, generated)  # [n, m]
    same = distance == 0
    # [n, m]: whether the generated clip is in the ball of the reference clip, and the other way round
    in_reference = (distance < _radius(reference, k)[:, None]) | same
    in_generated = (distance < _radius(generated, k)[None, :]) | same
    return Manifold(
        precision=float(in_reference.any(0).mean()),
        recall=float(in_generated.any(1).mean()),
        density=float(in_reference.sum(0).mean() / k),
        coverage=float(in_reference.any(1).mean()),
    )


def _radius(rows: Array, k: int) -> Array:
    """Distance [n] of every row to its k-th nearest other row."""
    return np.partition(cdist(rows, rows), k, axis=1)[:, k]  # place 0 is the row itself


# ------------------------------------------------------------------------------------------ label probabilities


def inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean KL(p of a clip || mean p), p [n, L] (arXiv:1606.03498), over all clips at once, not ten splits.

    From 1, all clips alike, to L, every clip sure of its label and all labels equally frequent.
    """
    p = _distributions("generated", probabilities)
    return float(np.exp(rel_entr(p, p.mean(0)).sum(1).mean()))


def label_kl(reference_p: ArrayLike, generated_p: ArrayLike) -> Array:
    """KL(reference || generated) [n] of the label distributions [n, L] of paired clips.

    Probabilities are raised to KL_FLOOR and normalised again on both sides: equal rows give exactly 0, and a label
    the generated clip rules out costs at most -log(KL_FLOOR).
    """
    p, q = _distributions("reference", reference_p), _distributions("generated", generated_p)
    p, q = (np.maximum(rows, KL_FLOOR) for rows in _pair(p, q, paired=True))
    return rel_entr(p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)).sum(1)


def accuracy(scores: ArrayLike, wanted: ArrayLike) -> Array:
    """1 where the wanted label [n] scores above all others of scores [n, L], else 0; a tie is 0."""
    scores, labels = _rows("scores", scores), np.asarray(wanted)
    clips = np.arange(len(scores))
    others = scores.copy()
    others[clips, labels] = -np.inf
    return (scores[clips, labels] > others.max(1)).astype(np.float64)


def cosine(a: ArrayLike, b: ArrayLike) -> Array:
    """Cosine [n] of paired embeddings [n, D]; of a CLAP model's text and sound it is the CLAP score, -1 to 1."""
    a, b = _pair(a, b, paired=True)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not lengths.all():
        raise InputError(f"an embedding of pair {np.argmin(lengths)} is all zeros; leave the pair out")
    return np.clip((a * b).sum(1) / lengths, -1, 1)


# ---------------------------------------------------------------------------------------------------- intervals


def bootstrap(statistic: Callable[[Index], float], n: int, *, rounds: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap: statistic(indices [n]) of clips drawn with replacement (Efron & Tibshirani 1993, 13.3).

    For means and the like; sets need `set_interval`. Clips that share a prompt are not independent: give their mean
    as one. Too narrow for few clips: at 10 an interval of a mean holds it about 90 % of the time. One clip has a value
    without an interval.
    """
    rng = np.random.default_rng(seed)
    ends = math.nan, math.nan
    if n > 1:
        ends = _ends(np.array([statistic(rng.integers(n, size=n)) for _ in range(rounds)]))
    return Interval(float(statistic(np.arange(n))), *ends)


def prompt_interval(values: ArrayLike, takes: int = 1) -> Interval:
    """Mean of values [prompts * takes], takes of a prompt side by side; the interval resamples prompts."""
    by_prompt = np.asarray(values, dtype=np.float64).reshape(-1, takes).mean(1)
    return bootstrap(lambda prompts: float(by_prompt[prompts].mean()), len(by_prompt))


def set_interval(
    statistic: Callable[..., float],
    *sizes: int,
    minimum: int = 2,
    rounds: int = 200,
    seed: int = 0,
    allowed: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """Interval of a figure of whole sets by half samples: statistic(indices of the first set, of the second, ...).

    The bootstrap draws clips twice and more, which a Frechet or kernel distance and the neighbours of `prdc` take for
    structure: at n = 2.5 D its Frechet distances lie half as high again as the figure they should surround. Here every
    round takes half of each set without replacement (delete-d jackknife: Shao & Wu 1989; Politis & Romano 1994). Around
    their own mean, half samples of a smooth figure spread as the figure does over new sets of full size; that spread is
    laid around the figure. So the interval is of what new clips would give at these sizes: the bias of small sets,
    which `frechet_infinity` removes, is in the figure and both ends. It held that in 92 % of trials or more (Gaussian
    sets; 30 to 200 clips; every figure above), nearly always around equal distributions, where it is too wide.

    sizes: clips of each set. minimum: clips that the statistic needs of each, D + 1 for `frechet_distance`; where that
    is above half, so many are kept and the spread is scaled up to match. What belongs together shares an index: a
    reconstruction and its original, several clips of one prompt. allowed: values the figure can take, to which the
    interval is cut. A figure has no interval where clips are too few, or too many for more than a few rounds.
    """
    value = float(statistic(*map(np.arange, sizes)))
    share = max(0.5, minimum / max(1, min(sizes)))
    kept = [round(share * size) for size in sizes]
    pairs = list(zip(sizes, kept, strict=True))
    if rounds < FEWEST_ROUNDS or any(size <= keep for size, keep in pairs):
        return Interval(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    halves = ([rng.permutation(size)[:keep] for size, keep in pairs] for _ in range(rounds))
    scale = math.sqrt(np.mean([keep / (size - keep) for size, keep in pairs]))
    try:
        values = np.array([statistic(*half) for half in halves])
        low, high = _ends(scale * (values - values.mean()))
    except InputError:  # half the clips may be too few for a figure of which all are not
        return Interval(value, math.nan, math.nan)
    return Interval(value, max(value + low, allowed[0]), min(value + high, allowed[1]))


def _ends(values: Array) -> tuple[float, float]:
    """The quantiles that hold `LEVEL` of the resampled values [rounds] between them."""
    if not np.isfinite(values).all():
        raise InputError("the figure is not a number on some of the resampled clips; give more clips")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


# ------------------------------------------------------------------------------------------------------- checks


def _rows(name: str, values: ArrayLike, least: int = 1) -> Array:
    """Values as float64 [n, D], checked: finite, n of at least `least`, D of at least 1."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] == 0:
        raise InputError(f"{name}: shape is {list(rows.shape)}; give one row a clip, [n, D]")
    if len(rows) < least:
        size = f"{len(rows)} {name} clips are too few for this figure of {rows.shape[1]} dimensions"
        raise InputError(f"{size}; give at least {least}")
    bad = np.flatnonzero(~(np.abs(rows) <= LARGEST).all(1))
    if len(bad):
        kind = "beyond 1e75" if np.isfinite(rows).all() else "not finite"
        raise InputError(f"{name}: row {bad[0]} is {kind} ({len(bad)} of {len(rows)} rows); leave it out")
    return rows


def _pair(
    reference: ArrayLike, generated: ArrayLike, least: int = 1, paired: bool = False
) -> tuple[Array, Array]:
    """Both sets, checked, of one width D and, if they are paired, of as many clips."""
    reference, generated = _rows("reference", reference, least), _rows("generated", generated, least)
    if reference.shape[1] != generated.shape[1]:
        widths = f"reference has {reference.shape[1]} dimensions, generated {generated.shape[1]}"
        raise InputError(f"{widths}; embed both with the same embedder")
    if paired and len(reference) != len(generated):
        raise InputError(f"{len(reference)} and {len(generated)} clips do not pair; give equal numbers")
    return reference, generated


def _distributions(name: str, probabilities: ArrayLike) -> Array:
    """Label probabilities [n, L], checked: none negative, every row summing to 1 but for rounding, which is removed."""
    p = _rows(f"{name} label probabilities", probabilities)
    sums = p.sum(1, keepdims=True)
    bad = np.flatnonzero((p < 0).any(1) | (abs(sums[:, 0] - 1) > 1e-3))
    if len(bad):
        row = f"{name} label probabilities: row {bad[0]} sums to {sums[bad[0], 0]:.4g}, least {p[bad[0]].min():.4g}"
        raise InputError(f"{row}; a distribution has none below 0 and the sum 1, as softmax gives")
    return p / sums
