"""The second opinion: statistics by which sounds differ, and labels from recordings other than the clip's own."""

import numpy as np
import pytest
import torch

from audiogen.errors import InputError
from audiogen.evaluate.embedders import embed_clips, load_embedder
from audiogen.evaluate.judge import BANDS, OCTAVES, RATE, fit_judge, statistics


def pulses(hz: float, seconds: float = 4.0) -> torch.Tensor:
    """Noise whose level swings at a rate, [1, N]."""
    time = torch.arange(round(seconds * RATE)) / RATE
    noise = torch.randn(len(time), generator=torch.Generator().manual_seed(0))
    return (0.1 * noise * (1.01 + torch.sin(2 * torch.pi * hz * time)))[None]


def test_statistics_show_pitch_level_and_modulation() -> None:
    time = torch.arange(RATE) / RATE
    low, high = (0.5 * torch.sin(2 * torch.pi * hz * time)[None] for hz in (200.0, 6000.0))
    means = statistics(torch.cat([low, high]))[:, :BANDS]
    assert means[0].argmax() < means[1].argmax()
    louder = statistics(2 * pulses(3.0)) - statistics(pulses(3.0))
    assert (louder[:, :BANDS] > 0).all()
    assert louder[:, BANDS:].abs().max() < 0.05  # spread, changes and modulation are of the logarithm
    for octave, low_hz in enumerate(OCTAVES[:5]):
        assert statistics(pulses(1.4 * low_hz))[0, -len(OCTAVES) :].argmax() == octave


@pytest.mark.parametrize("length", [1, 100, 5000])
def test_short_clips_and_silence_have_finite_statistics(length: int) -> None:
    assert statistics(torch.zeros(2, length)).isfinite().all()


def test_as_an_embedder_a_clip_does_not_depend_on_its_neighbours() -> None:
    embedder = load_embedder("logmel")
    clips = [pulses(2.0), pulses(9.0), pulses(9.0, 1.0)]
    together = embed_clips(embedder, clips, RATE)
    assert together.probabilities is None
    for row, clip in enumerate(clips):
        np.testing.assert_allclose(
            together.embeddings[row], embed_clips(embedder, [clip], RATE).embeddings[0], atol=1e-5
        )


def clusters(num: int, spread: float = 0.3) -> tuple[np.ndarray, list[str], list[str]]:
    """Embeddings [3 * num, 4] around three places, their labels and recordings, two clips each."""
    random = np.random.default_rng(0)
    places = 3 * np.eye(3, 4)
    rows = np.concatenate([place + spread * random.standard_normal((num, 4)) for place in places])
    labels = [label for label in "abc" for _ in range(num)]
    return rows, labels, [f"{label}{number // 2}" for label in "abc" for number in range(num)]


def test_labels_are_right_where_clusters_are() -> None:
    pytest.importorskip("sklearn")
    rows, labels, groups = clusters(12)
    judge = fit_judge(rows, labels, groups)
    assert judge.accuracy == 1 and judge.num == 36
    wanted = [*labels[:35], "z"]
    right = judge.right(rows, ["new"] * 36, wanted)
    assert right[:35].all() and np.isnan(right[35])  # no clip of the reference has that label
    assert not judge.right(rows, ["new"] * 36, labels[12:] + labels[:12]).any()


def test_no_clip_is_judged_by_a_machine_that_was_fitted_to_its_recording() -> None:
    pytest.importorskip("sklearn")
    rows, labels, groups = clusters(12)
    labels[:2] = ["c", "c"]  # a recording whose clips lie among those of another label
    judge = fit_judge(rows, labels, groups)
    assert judge.right(rows[:2], groups[:2], ["a", "a"]).all()
    assert judge.accuracy == pytest.approx(34 / 36)
    same = judge.right(rows, groups, labels)
    assert same.mean() == pytest.approx(judge.accuracy)


def test_too_few_recordings_or_labels_are_refused() -> None:
    pytest.importorskip("sklearn")
    rows, labels, groups = clusters(4)
    for given in (([None] * 12, groups), (["a"] * 12, groups), (labels, ["one"] * 12)):
        with pytest.raises(InputError, match="two labels at least"):
            fit_judge(rows, *given)


def test_without_scikit_learn_the_advice_is_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.svm", None)
    with pytest.raises(InputError, match=r"pip install '\.\[judge\]' in the checkout"):
        fit_judge(*clusters(4))
