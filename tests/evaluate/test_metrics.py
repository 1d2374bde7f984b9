"""Metrics against closed forms, limits and slow independent code; intervals against repeated draws."""

import math

import numpy as np
import pytest
import scipy.linalg

from audiogen.errors import InputError
from audiogen.evaluate.metrics import (
    KL_FLOOR,
    Interval,
    accuracy,
    bootstrap,
    cosine,
    frechet_distance,
    frechet_infinity,
    inception_score,
    kernel_distance,
    label_kl,
    prdc,
    set_interval,
)


def normal(n, dim, seed=0):
    return np.random.default_rng(seed).standard_normal((n, dim))


def exact(mean, covariance, n, seed=0):
    """n samples whose own mean and covariance are the given ones, to rounding."""
    x = normal(n, len(mean), seed)
    x -= x.mean(0)
    white = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
    return white @ np.linalg.cholesky(covariance).T + np.asarray(mean)


def mean_interval(values, **options):
    values = np.asarray(values)
    return bootstrap(lambda index: float(values[index].mean()), len(values), **options)


def rotation(dim, seed=9):
    return np.linalg.qr(normal(dim, dim, seed))[0]


# ----------------------------------------------------------------------------------------------- Frechet distance


@pytest.mark.parametrize("scale", [1.0, 1e-3, 300.0])
def test_frechet_of_a_set_with_itself_is_zero(scale):
    x = scale * normal(40, 7) + 5
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-8)


def test_dimensions_without_variance_leave_no_rounding_behind():
    x = np.concatenate([normal(80, 5), np.zeros((80, 30)), normal(80, 5)[:, :1]], 1)  # rank 5 of 36
    y = x @ rotation(36)
    assert frechet_distance(y, y) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(y, 1.5 * y) == pytest.approx(0.25 * np.square(y).sum() / 79, rel=0.02)


def test_frechet_of_given_gaussians_is_the_closed_form():
    a, b = np.array([0.5, 2.0, 3.0]), np.array([1.5, 0.1, 3.0])
    reference = exact([0, 1, 0], np.diag(a), 20) @ rotation(3)
    generated = exact([2, 1, -1], np.diag(b), 30, seed=1) @ rotation(3)
    expected = 2**2 + 1**2 + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(reference, generated) == pytest.approx(expected, abs=1e-9)


def test_frechet_of_one_dimension_is_the_difference_of_means_and_deviations():
    reference, generated = exact([1.0], np.array([[4.0]]), 9), exact([4.0], np.array([[25.0]]), 12, seed=1)
    assert frechet_distance(reference, generated) == pytest.approx((4 - 1) ** 2 + (5 - 2) ** 2)


def test_frechet_agrees_with_a_matrix_square_root():
    x, y = normal(60, 6) @ normal(6, 6, 2), 1 + normal(45, 6, 1) @ normal(6, 6, 3)
    covariances = np.cov(x.T), np.cov(y.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_reads_shift_and_scale():
    x, shift = normal(30, 4) + 2, np.array([1.0, -2.0, 0.0, 0.5])
    assert frechet_distance(x, x + shift) == pytest.approx(np.square(shift).sum())
    power = np.var(x, axis=0, ddof=1).sum() + np.square(x.mean(0)).sum()
    assert frechet_distance(x, 3 * x) == pytest.approx((3 - 1) ** 2 * power)
    assert frechet_distance(3 * x, 3 * x[:20] + 1) == pytest.approx(9 * frechet_distance(x, x[:20] + 1 / 3))


def test_frechet_ignores_order_rotation_origin_and_which_set_is_first():
    x, y, turn = normal(30, 5), 0.5 + 2 * normal(40, 5, 1), rotation(5)
    expected = frechet_distance(x, y)
    assert frechet_distance(y[::-1], x) == pytest.approx(expected)
    assert frechet_distance(x @ turn + 7, y @ turn + 7) == pytest.approx(expected)


def test_frechet_takes_the_float32_of_embedders_without_losing_to_a_large_mean():
    x = (1000 + exact([0, 0], np.eye(2), 30)).astype(np.float32)
    y = (1000 + exact([3, 0], np.eye(2), 30, seed=1)).astype(np.float32)
    assert frechet_distance(x, y) == pytest.approx(9, abs=1e-3)


def test_frechet_needs_more_clips_than_dimensions():
    frechet_distance(normal(5, 4), normal(5, 4, 1))
    with pytest.raises(InputError, match="4 reference clips.*4 dimensions.*at least 5"):
        frechet_distance(normal(4, 4), normal(50, 4))
    with pytest.raises(InputError, match="3 generated clips"):
        frechet_distance(normal(50, 4), normal(3, 4))


def test_extrapolation_removes_the_bias_of_small_sets():
    dim, n = 8, 40
    true = dim * (0.3**2 + 0.5**2)
    plain, extrapolated = [], []
    for seed in range(20):
        x, y = normal(n, dim, 2 * seed), 0.3 + 1.5 * normal(n, dim, 2 * seed + 1)
        plain.append(frechet_distance(x, y))
        extrapolated.append(frechet_infinity(x, y, seed=seed))
    error = np.std(extrapolated) / math.sqrt(20)
    assert np.mean(plain) > true + 5 * error
    assert np.mean(extrapolated) == pytest.approx(true, abs=3 * error)


def test_extrapolation_is_near_the_distance_of_many_clips_and_repeats_with_its_seed():
    x, y = normal(3000, 2), 1 + 2 * normal(2000, 2, 1)
    assert frechet_infinity(x, y, seed=0) == pytest.approx(frechet_distance(x, y), rel=0.02)
    x, y = normal(40, 8), 0.3 + 1.5 * normal(60, 8, 1)
    values = [frechet_infinity(x, y, seed=seed) for seed in range(4)]
    assert values[3] == frechet_infinity(x, y, seed=3) != values[2]
    assert np.ptp(values) < 0.3 * (frechet_distance(x, y) - np.mean(values))  # the seed decides little


def test_extrapolation_refuses_sets_that_cannot_be_made_smaller():
    frechet_infinity(normal(23, 19), normal(40, 19, 1), seed=0)
    with pytest.raises(InputError, match="22 generated clips.*at least 23"):
        frechet_infinity(normal(40, 19), normal(22, 19, 1), seed=0)


# ------------------------------------------------------------------------------------------------ kernel distance


def test_kernel_distance_agrees_with_loops():
    x, y = normal(9, 3), 0.5 + normal(7, 3, 1)

    def kernel(a, b):
        return math.exp(-sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) / (2 * sigma**2))

    def within(rows):
        pairs = [kernel(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    sigma = np.median([math.dist(a, b) for i, a in enumerate(x) for b in x[:i]])
    between = sum(kernel(a, b) for a in x for b in y) / (9 * 7)
    assert kernel_distance(x, y) == pytest.approx(100 * (within(x) + within(y) - 2 * between))


def test_kernel_distance_has_no_bias_where_the_frechet_distance_has():
    values = [kernel_distance(normal(12, 4, 2 * i), normal(15, 4, 2 * i + 1)) for i in range(300)]
    assert np.mean(values) == pytest.approx(0, abs=4 * np.std(values) / math.sqrt(300))


def test_kernel_distance_ignores_scale_and_rotation_and_has_its_limits():
    x, y = normal(20, 4), 1 + normal(15, 4, 1)
    assert kernel_distance(5 * x @ rotation(4), 5 * y @ rotation(4)) == pytest.approx(kernel_distance(x, y))
    far = np.full((5, 4), 1e6)  # all equal within, nothing between
    within = kernel_distance(x, far) - 100
    assert 0 < within < 100 and kernel_distance(x, -far) == pytest.approx(100 + within)
    shifts = [kernel_distance(x, x + shift) for shift in (0.5, 1, 2)]
    assert shifts == sorted(shifts)


def test_kernel_distance_needs_a_reference_that_varies():
    with pytest.raises(InputError, match="median distance between reference clips is 0"):
        kernel_distance(np.ones((4, 2)), normal(4, 2))
    with pytest.raises(InputError, match="1 generated clips"):
        kernel_distance(normal(4, 2), normal(1, 2))


# ----------------------------------------------------------------------------------------------------- neighbours


def test_prdc_agrees_with_loops():
    x, y, k = normal(13, 2), 0.7 + 1.3 * normal(11, 2, 1), 3

    def radius(rows, i):
        return sorted(math.dist(rows[i], other) for j, other in enumerate(rows) if j != i)[k - 1]

    in_x = [[math.dist(a, b) < radius(x, i) for b in y] for i, a in enumerate(x)]
    in_y = [[math.dist(a, b) < radius(y, j) for j, b in enumerate(y)] for a in x]
    got = prdc(x, y, k)
    assert got.precision == pytest.approx(sum(any(row[j] for row in in_x) for j in range(11)) / 11)
    assert got.recall == pytest.approx(sum(any(row) for row in in_y) / 13)
    assert got.density == pytest.approx(sum(map(sum, in_x)) / (3 * 11))
    assert got.coverage == pytest.approx(sum(any(row) for row in in_x) / 13)
    assert 0 < got.recall < 1 and 0 < got.coverage < 1 and got.precision != got.recall


def test_prdc_of_equal_and_of_distant_sets():
    x = normal(30, 3)
    assert prdc(x, x[::-1]) == pytest.approx((1, 1, 1, 1))
    assert prdc(x, x + 100) == (0, 0, 0, 0)
    same = np.ones((9, 3))  # balls of no size
    assert prdc(same, same)[:2] == (1, 1) and prdc(same, same).coverage == 1


def test_one_good_sound_over_and_over_is_precise_and_covers_little():
    x = np.concatenate([normal(30, 2), 50 + normal(30, 2, 1)])
    got = prdc(x, 0.01 * normal(40, 2, 2))
    assert got.precision == 1 and got.density > 0.5
    assert got.recall < 0.1 and got.coverage < 0.5


def test_one_outlier_moves_precision_but_hardly_density():
    x, y = normal(100, 2), 8 + normal(100, 2, 1)
    with_outlier = np.concatenate([x, [[8.0, 8.0]]])  # its ball reaches back to the others, and over all of y
    assert prdc(x, y).precision == 0
    assert prdc(with_outlier, y).precision > 0.9 and prdc(with_outlier, y).density < 0.25


def test_prdc_needs_more_clips_than_neighbours():
    prdc(normal(6, 2), normal(6, 2, 1))
    with pytest.raises(InputError, match="5 reference clips are too few.*give at least 6"):
        prdc(normal(5, 2), normal(9, 2))


# --------------------------------------------------------------------------------------------- label probabilities


def test_inception_score_from_one_to_the_number_of_labels():
    assert inception_score(np.full((8, 5), 0.2)) == pytest.approx(1)
    assert inception_score(np.eye(5)) == pytest.approx(5)
    assert inception_score(np.eye(5)[[2, 2, 2]]) == pytest.approx(1)  # sure, but always of the same label
    assert inception_score(np.eye(5)[[0, 3, 0, 3]]) == pytest.approx(2)


def test_inception_score_of_two_labels_in_closed_form():
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert inception_score([[0.9, 0.1], [0.1, 0.9]]) == pytest.approx(2 * math.exp(-entropy))


def test_label_kl_in_closed_form_and_in_its_direction():
    p, q = np.array([[0.7, 0.3], [0.5, 0.5]]), np.array([[0.2, 0.8], [0.5, 0.5]])
    forwards = 0.7 * math.log(0.7 / 0.2) + 0.3 * math.log(0.3 / 0.8)
    backwards = 0.2 * math.log(0.2 / 0.7) + 0.8 * math.log(0.8 / 0.3)
    assert label_kl(p, q) == pytest.approx([forwards, 0], abs=1e-5)
    assert label_kl(q, p) == pytest.approx([backwards, 0], abs=1e-5)


def test_label_kl_of_certain_labels_is_zero_or_the_floor():
    certain = np.eye(4)
    assert (label_kl(certain, certain) == 0).all()
    assert label_kl(certain, certain[::-1]) == pytest.approx(-math.log(KL_FLOOR), rel=1e-3)
    assert label_kl(certain, np.full((4, 4), 0.25)) == pytest.approx(math.log(4), abs=1e-4)


def test_label_kl_is_never_negative():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.full(6, 0.05), 200), rng.dirichlet(np.full(6, 0.05), 200)
    assert (label_kl(p, q) >= 0).all()


def test_rows_that_are_no_distributions_are_named():
    p = np.full((3, 4), 0.25)
    for row, message in (([0.9, 0.8, 0.1, 0.1], "row 1 sums to 1.9"), ([1.5, -0.5, 0, 0], "least -0.5")):
        bad = p.copy()
        bad[1] = row
        with pytest.raises(InputError, match=message):
            inception_score(bad)
        with pytest.raises(InputError, match=f"generated label probabilities.*{message}"):
            label_kl(p, bad)
    # The sum of half-precision probabilities is not quite 1; that is no mistake, and does not show.
    assert inception_score(1.0009 * np.eye(5)) == pytest.approx(5, abs=1e-9)


def test_accuracy_counts_what_scores_above_all_others():
    scores = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [-3.0, -2.0, -1.0]]
    assert accuracy(scores, [1, 2, 0, 2]).tolist() == [1, 0, 0, 1]
    assert accuracy(np.zeros((3, 4)), [0, 1, 2]).sum() == 0  # a judge that says nothing is never right


def test_cosine_of_pairs():
    a = [[1, 0], [1, 0], [2, 2], [0, 3]]
    b = [[5, 0], [0, 2], [1, 0], [0, -1]]
    assert cosine(a, b) == pytest.approx([1, 0, math.sqrt(0.5), -1])
    assert (abs(cosine(normal(50, 3), normal(50, 3))) <= 1).all()
    with pytest.raises(InputError, match="pair 1 is all zeros"):
        cosine([[1, 0], [0, 0]], [[1, 0], [1, 0]])


# ------------------------------------------------------------------------------------------------------ intervals


def test_interval_of_a_mean_has_the_width_of_its_standard_error():
    x = 3 + 2 * exact([0.0], np.eye(1), 400)[:, 0]
    value, low, high = mean_interval(x)
    assert value == pytest.approx(3) and low < 3 < high
    assert high - low == pytest.approx(2 * 1.96 * 2 / math.sqrt(400), rel=0.1)


def test_bootstrap_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.exponential(size=60), rounds=100, seed=i) for i in range(200)]
    assert 0.87 < np.mean([low <= 1 <= high for _, low, high in intervals]) < 0.99


def test_bootstrap_takes_any_statistic_and_repeats_with_its_seed():
    x = np.arange(101.0)
    got = bootstrap(lambda index: float(np.median(x[index])), 101, seed=1)
    assert got.value == 50 and 30 < got.low < 50 < got.high < 70
    assert got == bootstrap(lambda index: float(np.median(x[index])), 101, seed=1)
    assert mean_interval(np.full(5, 0.25)) == Interval(0.25, 0.25, 0.25)


def coverage(statistic, draw, minimum=2, repeats=40):
    """Share of the intervals that hold the mean of the statistic over fresh sets."""
    expected = np.mean([statistic(*draw()) for _ in range(200)])
    held = []
    for seed in range(repeats):
        sets = draw()
        got = set_interval(
            lambda *indices, sets=sets: statistic(*(x[i] for x, i in zip(sets, indices, strict=True))),
            *map(len, sets),
            minimum=minimum,
            rounds=40,
            seed=seed,
        )
        held.append(got.low <= expected <= got.high)
    return np.mean(held)


def test_set_interval_of_frechet_distances_covers_what_fresh_sets_give():
    rng = np.random.default_rng(0)

    def draw():
        return rng.standard_normal((30, 3)), 0.5 + 1.3 * rng.standard_normal((50, 3))

    assert coverage(frechet_distance, draw, minimum=4) > 0.85
    assert coverage(frechet_distance, draw, minimum=24) > 0.85  # few left out, and the spread scaled up


def test_set_interval_of_kernel_distance_and_inception_score_covers():
    rng = np.random.default_rng(1)
    assert (
        coverage(kernel_distance, lambda: (rng.standard_normal((30, 2)), 0.7 + rng.standard_normal((40, 2))))
        > 0.85
    )
    assert coverage(inception_score, lambda: (rng.dirichlet(np.full(5, 0.3), 50),)) > 0.85


def test_set_interval_of_a_mean_is_that_of_the_bootstrap():
    x = normal(300, 1)[:, 0]
    for minimum in (2, 240):
        got = set_interval(lambda index: float(x[index].mean()), 300, minimum=minimum, rounds=2000)
        other = mean_interval(x, rounds=2000)
        assert got.value == other.value
        assert got.high - got.low == pytest.approx(other.high - other.low, rel=0.1)


def test_the_bootstrap_would_put_a_frechet_distance_outside_its_own_interval():
    x, y = normal(50, 20), 0.3 + normal(50, 20, 1)
    resampled = bootstrap(lambda index: frechet_distance(x[index], y[index]), 50, rounds=100)
    assert resampled.low > resampled.value
    halved = set_interval(lambda i, j: frechet_distance(x[i], y[j]), 50, 50, minimum=21, rounds=100)
    assert halved.low < halved.value < halved.high


def test_set_interval_needs_clips_to_leave_out():
    few = set_interval(lambda i, j: 0.0, 21, 50, minimum=21)
    assert few == pytest.approx((0.0, math.nan, math.nan), nan_ok=True)
    assert set_interval(lambda i: 1.0, 3) == (1, 1, 1)


def test_intervals_refuse_what_has_none():
    assert bootstrap(lambda index: 3.0, 1) == pytest.approx((3.0, math.nan, math.nan), nan_ok=True)
    with pytest.raises(InputError, match="not a number on some"):
        bootstrap(lambda index: float("nan"), 5)


# ------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "metric", [frechet_distance, kernel_distance, prdc, cosine, lambda a, b: frechet_infinity(a, b, seed=0)]
)
def test_bad_embeddings_are_one_line_that_says_which(metric):
    good, nan, infinite = normal(20, 3), normal(20, 3), normal(20, 3)
    nan[[4, 7]], infinite[2, 1] = np.nan, np.inf
    for a, b, message in (
        (good, nan, r"row 4 is not finite \(2 of 20 rows\)"),
        (infinite, good, "row 2 is not finite"),
        (good, good[:, :2], "dimensions|do not pair"),
        (good, good[0], r"shape is \[3\]"),
        (good, np.zeros((0, 3)), "0 generated clips are too few"),
        ([], good, r"shape is \[0\]"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            metric(a, b)
        assert "\n" not in str(caught.value)
