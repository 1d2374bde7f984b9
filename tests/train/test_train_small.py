"""Training on little sound: when a run ends by itself."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.train.loop import stalled
from audiogen.train.task import FitConfig
from tests.train.conftest import scalars

Train = Callable[..., Path]
# Nothing is learned, so that the first validation stays the best one.
STALLS = ("optim.lr=1e-30", "fit.steps=20", "fit.valid_every=2", "fit.patience=2", "fit.save_every=50")


def last_step(run: Path) -> int:
    found = checkpoint.latest(run)
    assert found
    return found[0]


def test_patience_counts_validations_since_the_best_one() -> None:
    config = FitConfig(valid_every=10, patience=3)
    best = {"step": 20, "valid/loss": 1.0}
    assert [stalled(done, best, config) for done in (20, 30, 40, 50)] == [False, False, False, True]
    assert not stalled(1000, None, config)
    assert not stalled(1000, best, FitConfig(valid_every=10))
    with pytest.raises(InputError, match="patience is 3, but valid_every is 0"):
        FitConfig(valid_every=0, patience=3)


def test_a_run_without_progress_ends_and_is_finished(
    lm_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lm_run("run", *STALLS, "fit.sample_every=50")
    assert last_step(run) == 6
    said = capsys.readouterr().err
    assert f"step 6: no better validation in 2, so the run ends; the model: {run}" in said
    assert checkpoint.read_config(run)["info"]["step"] == 6
    assert checkpoint.read_config(run / "best")["info"]["step"] == 2
    assert (run / "samples" / "step_00000006").is_dir()
    before = scalars(run)
    lm_run("run", *STALLS)
    assert "run is finished at step 6; to go on, set fit.patience higher" in capsys.readouterr().out
    assert scalars(run) == before
    lm_run("run", *STALLS, "fit.patience=3")
    assert last_step(run) == 8
    assert scalars(run) == scalars(lm_run("whole", *STALLS, "fit.patience=3"))


def test_a_signal_before_the_last_validation_changes_nothing(
    lm_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiogen.train.lm import LMTask

    whole = lm_run("whole", *STALLS)
    step = LMTask.step

    def terminated(self: LMTask, batch: Any, number: int) -> Any:
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(LMTask, "step", terminated)
    run = lm_run("run", *STALLS)
    assert scalars(run) != scalars(whole)
    lm_run("run", *STALLS)
    assert scalars(run) == scalars(whole) and last_step(run) == 6


def test_without_validation_patience_never_ends_a_run(
    lm_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    run = lm_run("run", *STALLS, "data.valid=[]", "data.holdout=0", "fit.steps=8")
    assert last_step(run) == 8 and not (run / "best").exists()
    assert "nothing is validated and best/ is not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (("fit.epochs=3",), 6),  # 8 clips, 4 a step
        (("fit.epochs=3", "fit.steps=4"), 4),
        (
            ("fit.epochs=3", "pretokenize_epochs=2"),
            6,
        ),  # passes over the sounds, however often they are encoded
        (("fit.epochs=3", "data.valid=[]", "data.holdout=0.1"), 5),  # six are trained on
        (("fit.epochs=1", "fit.batch_size=20"), 1),
    ],
)
def test_epochs_limit_the_steps(lm_run: Train, settings: tuple[str, ...], steps: int) -> None:
    once = ("fit.steps=20", "fit.valid_every=0", "fit.save_every=0")
    run = lm_run("run", *once, *settings)
    assert last_step(run) == steps
    rates = [record["train/lr"] for record in scalars(run)]
    assert len(rates) == steps and (steps < 4 or rates[-1] < 0.1 * max(rates))  # the schedule ends there, too
    assert f"steps: {steps}\n" in (run / "recipe.yaml").read_text()


def test_a_finished_run_says_what_limits_it(lm_run: Train, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        run = lm_run("run", "fit.epochs=1", "fit.valid_every=0")
    assert (
        f"{run} is finished at step 2; to go on, set fit.steps and fit.epochs higher"
        in capsys.readouterr().out
    )
    lm_run("run", "fit.epochs=2", "fit.valid_every=0")
    assert last_step(run) == 4


@pytest.mark.parametrize("count", [1, 2, 3])
def test_one_to_three_clips_train(lm_run: Train, manifest: Path, tmp_path: Path, count: int) -> None:
    """Two of three are trained on; one has none to be validated on. Each is shorter than a segment."""
    lines = manifest.read_text().splitlines()[:count]
    few = manifest.parent / f"{count}.jsonl"
    few.write_text("\n".join(lines))
    settings = (f"data={{train: {few}, segment_s: 1.5, holdout: 0.1}}", "fit.epochs=4", "fit.patience=2")
    run = lm_run("run", *settings, "pretokenize_epochs=2", "fit.steps=20", "fit.valid_every=1")
    assert last_step(run) >= 1
    assert (run / "best").exists() == (count > 1)


def test_epochs_limit_both_optimisers_of_a_codec(codec_run: Train) -> None:
    run = codec_run(
        "run", "fit.epochs=3", "fit.steps=20", "adversarial={start: 0, every: 1}", "fit.valid_every=0"
    )
    assert last_step(run) == 6
    assert "steps: 6\n" in (run / "recipe.yaml").read_text()


def test_stored_passes_over_a_folder_that_grew_are_not_used(
    lm_run: Train, manifest: Path, tmp_path: Path
) -> None:
    """Other clips would be held out: some of those whose tokens are stored for training."""
    lines = manifest.read_text().splitlines()
    grown = manifest.parent / "grown.jsonl"
    grown.write_text("\n".join(lines[:6]))
    settings = (
        f"data={{train: {grown}, holdout: 0.1}}",
        "pretokenize_epochs=1",
        "fit.steps=2",
        "fit.valid_every=0",
    )
    run = lm_run("run", *settings)
    lm_run("run", *settings, "fit.steps=3")
    grown.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"holds tokens made with other settings \(clips\); delete it"):
        lm_run("run", *settings, "fit.steps=4")
    written = run / "tokens" / "settings.json"
    before = json.loads(written.read_text())
    del before["clips"]  # as in runs of November 2026 and before
    assert list(before["data"]["train"][0]) == [
        "source",
        "repeat",
        "where",
    ]  # as in those: no key that is not set
    grown.write_text("\n".join(lines[:6]))
    written.write_text(json.dumps(before))
    lm_run("run", *settings, "fit.steps=4")
    written.write_text("[1]")
    with pytest.raises(InputError, match=r"made with other settings \(clips, codec, data, seed\)"):
        lm_run("run", *settings, "fit.steps=5")
