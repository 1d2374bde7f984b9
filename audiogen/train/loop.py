"""`fit`: the one training loop. It owns order and cadence; what a step is, the task owns.

data -> step -> log -> validate -> sample -> save. Everything a resumed run needs is the task's state and one
integer: the order of the data and the random numbers of a step are functions of (seed, step, rank).
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from audiogen import distributed, interfaces
from audiogen.data.loader import Dataset
from audiogen.data.seeds import seed_for
from audiogen.device import has_bfloat16
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Batch
from audiogen.train.log import Log

Resume = Literal["auto", "must", "never"]


@dataclass(frozen=True)
class FitConfig:
    """Order and cadence of a run. Counts are optimiser steps; a cadence of 0 is never, any other includes the end.

    batch_size: clips a step and process. accumulate: into how many parts, run one after another, a batch is split
    to save memory. precision: of the forward passes; auto is bfloat16 where the device computes it natively, else
    float32. valid_batches: how many batches a validation reads at most. keep_last: checkpoints kept.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulate: int = 1
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    ema_decay: float = 0.0
    log_every: int = 10
    valid_every: int = 500
    valid_batches: int = 8
    sample_every: int = 0
    save_every: int = 500
    keep_last: int = 2
    workers: int = 0
    device: str = "auto"
    compile: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "valid_batches", "keep_last"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("log_every", "valid_every", "sample_every", "save_every", "workers"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size {self.batch_size} cannot be split into accumulate={self.accumulate} parts"
            )
        if not 0 <= self.ema_decay < 1:
            raise InputError(f"ema_decay is {self.ema_decay}; it must be in [0, 1), 0 for none")


class Task(interfaces.Task, Protocol):
    """What `fit` trains, and shows and saves on the way; `step` reports `train/loss` among others."""

    sample_rate: int

    def samples(self, batches: Iterable[Batch]) -> Mapping[str, Tensor]:
        """Sounds [C, N] by name, to listen to during training."""
        ...

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the model as it stands (its average where there is one) as a model directory."""
        ...


class Prepared(NamedTuple):
    """A task with its data: training and validation sets, and what makes a batch of their items."""

    task: Task
    train: Dataset
    valid: Dataset | None
    collate: Callable[[list[Any]], Batch]


def fit(
    task: Task,
    loader: interfaces.Loader,
    valid: Callable[[], Iterable[Batch]] | None,
    config: FitConfig,
    run: Path,
    seed: int = 0,
    resume: Resume = "auto",
    info: Mapping[str, Any] | None = None,
) -> None:
    """Train `task` on `loader` in the run directory `run`, from its newest checkpoint if it has one.

    valid: makes the validation batches anew, the same each time. info: stored with every model saved. On SIGTERM
    or SIGINT the step at hand is finished and saved, and `fit` returns. Raises InputError when a loss is not finite.
    """
    first = distributed.rank() == 0
    start, best, validated = restore(task, run, resume)
    if start >= config.steps:
        print(f"{run} is finished at step {start}; to go on, set fit.steps higher")
        return
    if first:
        checkpoint.clean(run)
    with (
        Log(run, start, config.steps, config.tensorboard, visible=first) as log,
        StopRequest() as stop,
        closing(loader.batches(start)) as batches,
    ):
        if first and valid and not validated and due(start, config.valid_every, False):
            best = validate(task, valid(), start, best, run, log, info)  # the stop came first
        for step in range(start, config.steps):
            torch.manual_seed(seed_for(seed, step, distributed.rank()))
            batch = next(batches)
            metrics = task.step(batch, step)
            require_finite(metrics, step, batch, run)

            done = step + 1
            final = done == config.steps
            stopping = stop.requested_anywhere() and not final
            log.advance(metrics)
            if due(done, config.log_every, final):
                log.record(done, distributed.average_scalars(metrics))
            if first and valid and not stopping:
                if due(done, config.valid_every, final):
                    best = validate(task, valid(), done, best, run, log, info)
                if due(done, config.sample_every, final):
                    log.sounds(done, task.samples(valid()), task.sample_rate)
            if first and (final or stopping or due(done, config.save_every, final)):
                save(task, done, best, not stopping, run, config.keep_last, info)
            if stopping:
                log.say(f"stopped on a signal at step {done}, saved; the same command goes on from here")
                break
        else:
            at_best = f"; at its best validation, step {best['step']}: {run / 'best'}" if best else ""
            log.say(f"the model: {run}{at_best}")


def due(done: int, every: int, final: bool) -> bool:
    """Whether something that happens `every` so many steps, and at the end, happens after step `done`."""
    return every > 0 and (final or done % every == 0)


def validate(
    task: Task,
    batches: Iterable[Batch],
    done: int,
    best: Mapping[str, Any] | None,
    run: Path,
    log: Log,
    info: Mapping[str, Any] | None,
) -> Mapping[str, Any] | None:
    """Log the validation scalars; write the model to `run/best` if none had a lower `valid/loss`."""
    metrics = dict(task.evaluate(batches))
    log.record(done, metrics)
    # Shown without those per codebook, which the log has.
    shown = [f"{name} {value:.4f}" for name, value in metrics.items() if not re.search(r"_q\d+$", name)]
    log.say(f"step {done}: {'  '.join(shown)}")
    if best is None or metrics["valid/loss"] < best["valid/loss"]:
        best = {"step": done, **metrics}
        task.export(run / "best", {**(info or {}), **best})
    return best


def save(
    task: Task,
    done: int,
    best: Mapping[str, Any] | None,
    validated: bool,
    run: Path,
    keep_last: int,
    info: Mapping[str, Any] | None,
) -> None:
    """Write the checkpoint, then the model; drop old checkpoints."""
    state = {"best": best, "validated": validated, "task": task.state_dict()}
    checkpoint.save_state(checkpoint.step_dir(run, done), state)
    task.export(run, {**(info or {}), "step": done})
    checkpoint.prune(run, keep_last)


def restore(task: Task, run: Path, resume: Resume) -> tuple[int, Mapping[str, Any] | None, bool]:
    """Load the newest checkpoint -> (steps done, best validation so far, whether a validation due then was made)."""
    found = checkpoint.latest(run)
    if resume == "must" and found is None:
        raise InputError(f"resume=must, but {run} holds no checkpoint; check out=, or use resume=auto")
    if resume == "never" and found is not None:
        raise InputError(f"resume=never, but {run} holds a run (step {found[0]}); choose another out=")
    if found is None:
        return 0, None, True
    step, directory = found
    state = checkpoint.load_state(directory)
    task.load_state_dict(state["task"])
    return step, state["best"], state["validated"]


def require_finite(metrics: Mapping[str, float], step: int, batch: Batch, run: Path) -> None:
    """Stop the run when a scalar is nan or infinite, before anything broken is saved."""
    broken = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    if broken:
        found = checkpoint.latest(run)
        raise InputError(
            f"training became unstable at step {step}: {', '.join(broken)}; clips of the batch: "
            f"{', '.join(batch.keys[:4])}{' ...' if len(batch.keys) > 4 else ''}; "
            f"{f'the checkpoint of step {found[0]} is whole' if found else 'nothing was saved yet'}: "
            "try a lower optim.lr, a longer optim.warmup_steps or fit.precision=float32"
        )


def row_slices(num_rows: int, parts: int) -> list[slice]:
    """The rows of a batch in at most `parts` parts, in order."""
    size = -(-num_rows // parts)
    return [slice(begin, begin + size) for begin in range(0, num_rows, size)]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a model's forward runs at `precision`; its weights stay float32."""
    if precision == "float16" and device.type == "cpu":
        raise InputError("fit.precision=float16 needs a GPU; on a CPU use bfloat16 or float32")
    if precision == "auto":
        precision = "bfloat16" if has_bfloat16(device) else "float32"
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


class StopRequest:
    """Within the context SIGTERM and SIGINT ask for a stop instead of ending the process; a second one ends it."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def requested_anywhere(self) -> bool:
        """Whether any process was asked: all stop at the same step."""
        return distributed.any_process(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(number, self._previous[number] or signal.SIG_DFL)

    def __enter__(self) -> StopRequest:
        for number in self.SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous or signal.SIG_DFL)
