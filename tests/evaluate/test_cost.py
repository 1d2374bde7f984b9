"""Cost: times by a clock that the generator itself moves, so that every figure has a closed form."""

from pathlib import Path

import pytest
import torch

from audiogen.errors import InputError
from audiogen.evaluate import cost
from audiogen.evaluate.cost import Job
from audiogen.generators import load as generators


def test_the_figures_are_those_of_the_clock(diffusion) -> None:
    model = diffusion()
    measured = cost.measure(Job(model, ["a", "b", "c"], 2.0, 3.0, model.clock), steps=4)
    assert model.calls == [(1, 4), (1, 4), (8, 4)]  # the first one warms up
    assert measured["num_parameters"] == 77 and measured["num_evaluations"] == 8
    assert measured["clip_s"] == 1.0 and measured["real_time_factor"] == 0.5
    assert measured["real_time_factor_8"] == (0.5 + 8 * 4 * 0.125) / 16
    assert measured["peak_memory_mb"] is not None and measured["peak_memory_mb"] > 10


def test_a_generator_without_steps_is_measured_as_it_is(tiny_model: Path) -> None:
    model = generators.load(tiny_model, "cpu")
    assert model.steps_at_most(None) is model.steps_at_most(7) is None
    job = Job(model, ["rain"], 0.1, 1.0)
    assert cost.fit_steps(job, 1.0) is None
    with pytest.raises(InputError, match="steps is not for a token language model"):
        cost.measure(job, steps=3)
    measured = cost.measure(job)
    assert measured["num_parameters"] == model.num_parameters
    assert measured["num_evaluations"] == model.num_evaluations(0.1, 1.0)
    assert measured["clip_s"] > 0 and measured["real_time_factor"] == pytest.approx(measured["clip_s"] / 0.1)


@pytest.mark.parametrize(
    ("budget_s", "steps"),
    [
        (3.0, 20),  # 0.5 s and 20 steps of 0.125 s, exactly
        (2.99, 19),
        (0.625, 1),
        (0.1, 1),  # not even one step fits; there is no system without one
        (1e6, cost.MOST_STEPS),
    ],
)
def test_a_budget_buys_the_most_steps_that_fit(budget_s: float, steps: int, diffusion) -> None:
    model = diffusion()
    assert cost.fit_steps(Job(model, ["a"], 1.0, 3.0, model.clock), budget_s) == steps
    assert len(model.calls) == 3  # one to warm up and two that are timed
    took_s = model.fixed_s + model.step_s * steps
    assert took_s <= budget_s or steps == 1
    assert took_s + model.step_s > budget_s or steps == cost.MOST_STEPS


def test_calibration_spends_about_the_budget_at_most(diffusion) -> None:
    model = diffusion(fixed_s=0.0, step_s=1.0)
    assert cost.fit_steps(Job(model, ["a"], 1.0, 3.0, model.clock), 5.0) == 5
    assert model.now_s <= 1 + 1 + 5


def test_times_that_do_not_rise_give_the_default() -> None:
    assert cost.steps_within(1.0, (1, 0.2), (10, 0.2), 25) == 25
    assert cost.steps_within(1.0, (1, 0.2), (10, 0.1), 25) == 25


def test_the_peak_is_that_since_the_reset() -> None:
    cost.reset_peak_memory()
    before = cost.peak_memory_mb()
    block = torch.ones(50_000_000)  # 200 MB
    during = cost.peak_memory_mb()
    assert before is not None and during is not None and during >= before + 150
    del block
    assert cost.peak_memory_mb() == pytest.approx(during, rel=0.05)  # the peak, not what is held now


def test_samples_that_are_not_finite_are_refused(diffusion) -> None:
    model = diffusion()
    model.generate = lambda texts, *_, **__: torch.full((len(texts), 1, 10), torch.nan)  # type: ignore[method-assign]
    with pytest.raises(InputError, match="not finite"):
        cost.measure(Job(model, ["a"], 1.0, 3.0), steps=2)
