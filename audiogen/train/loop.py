"""`fit`: the one training loop. It owns order and cadence; what a step is, the task owns.

data -> step -> log -> validate -> sample -> save. Everything a resumed run needs is the task's state and one
integer: the order of the data and the random numbers of a step are functions of (seed, step, rank).
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from audiogen import distributed
from audiogen.config import to_plain
from audiogen.data.dataset import Split
from audiogen.data.loader import AudioLoader, valid_batches
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import Batch
from audiogen.signals import stop_signals
from audiogen.train.checkpoints import Saver, load
from audiogen.train.log import Log, Speed
from audiogen.train.task import FitConfig, Run, Task

Best = Mapping[str, Any] | None  # {"step", "valid/loss", ...} of the best validation so far


def fit(task: Task[Any], data: Split[Any], recipe: Run) -> None:
    """Train `task` on `data` in the run directory `recipe.out`, from its newest checkpoint if it has one.

    On SIGTERM or SIGINT the step that runs is finished and saved, and `fit` returns. Where `fit.patience` is used up,
    the run ends as after its last step. A checkpoint that finds no space is a warning, and the next one is tried; the
    last one is a `StorageError`. Raises InputError when a loss is not finite.
    """
    config = recipe.fit
    run = Path(recipe.out)
    rank = distributed.rank()
    loader = AudioLoader(
        data.train, config.batch_size, recipe.seed, rank, distributed.world(), config.workers
    )
    first = rank == 0
    valid_data = data.valid
    validates = first and valid_data is not None

    def valid() -> Iterator[Any]:  # the same batches each time
        assert valid_data is not None
        return valid_batches(valid_data, config.batch_size, config.valid_batches)

    def check(done: int, best: Best) -> tuple[Best, bool]:  # the first process alone validates, for all
        if valid_data is not None:
            best = task.parallel.alone(lambda: validate(task, valid(), done, best, recipe, log), best)
        stall = validates and stalled(done, best, config)
        return best, config.patience > 0 and distributed.any_process(stall)

    def samples(done: int) -> None:
        with task.averaged(), log.tolerating():
            log.sounds(done, task.samples(valid()), task.sample_rate)

    def store(done: int, final: bool, stopping: bool, best: Best) -> None:
        state = {"best": best, "validated": not stopping, "task": task.state_dict(), **clips(recipe)}
        with nullcontext() if final or stopping else log.tolerating():
            saver.save(done, state)
            if final or stopping or not task.parallel.sharded:  # whose whole weights take long to gather
                saver.wait()
                export(task, done, recipe)

    if first:
        writing.clean(run)
    start, best, validated = restore(task, recipe)
    distributed.agree({f"the step that {run} is at (is it one folder for all machines?)": str(start)})
    ended = validated and stalled(start, best, config)
    if start >= config.steps or ended:
        if distributed.any_process(not (checkpoint.step_dir(run, start) / checkpoint.EXPORTED).exists()):
            # the process was killed between its last checkpoint and the model
            task.parallel.alone(lambda: export(task, start, recipe), None)
        more = "fit.steps and fit.epochs" if config.epochs else "fit.steps"
        more = "fit.patience" if ended and start < config.steps else more
        print(f"{run} is finished at step {start}; to go on, set {more} higher")
        return
    with (
        closing(Log(run, start, config.steps, config.tensorboard, visible=first)) as log,
        closing(Saver(run, config.keep_last, task.parallel.group, log)) as saver,
        stop_signals() as received,
        closing(loader.batches(start)) as batches,
    ):
        if valid_data is None and config.valid_every:
            why = "no clip is held out (data.holdout is 0, or all are of one recording)"
            log.say(f"{why}: nothing is validated and best/ is not written; data.valid= names other clips")
        if not validated and due(start, config.valid_every, False):
            best, ended = check(start, best)  # the signal came before it
        done, stopping, speed = start, False, Speed(task.device)
        for step in range(start, start if ended else config.steps):
            torch.manual_seed(seed_for(recipe.seed, step, rank))
            began = time.monotonic()
            batch = next(batches)
            waited_s = time.monotonic() - began
            metrics = {f"train/{name}": value for name, value in task.step(batch, step).items()}
            speed.add(waited_s, time.monotonic() - began, task.amounts(batch))
            require_finite(metrics, step, batch, run)

            done = step + 1
            final = done == config.steps
            stopping = distributed.any_process(bool(received)) and not final  # all stop at the same step
            log.advance(metrics)
            if due(done, config.log_every, final):
                log.record(done, distributed.average_scalars(metrics | speed.take()))
            if not stopping and due(done, config.valid_every, final):
                best, ended = check(done, best)
                final = final or ended
            if valid_data is not None and not stopping and due(done, config.sample_every, final):
                distributed.first_only(partial(samples, done), None)
            if final or stopping or due(done, config.save_every, final):
                task.parallel.alone(partial(store, done, final, stopping, best), None)
            if stopping or ended:
                break
        if stopping:
            log.say(f"stopped on a signal at step {done}, saved; the same command goes on from here")
        else:
            stall = (
                f"step {done}: no better validation in {config.patience}, so the run ends; " if ended else ""
            )
            at_best = f"; at its best validation, step {best['step']}: {run / 'best'}" if best else ""
            log.say(f"{stall}the model: {run}{at_best}")
    if loader.unreadable:
        print(f"{len(loader.unreadable)} clips could not be read and were left out", file=sys.stderr)


def due(done: int, every: int, final: bool) -> bool:
    """Whether something that happens `every` so many steps, and at the end, happens after step `done`."""
    return every > 0 and (final or done % every == 0)


def stalled(done: int, best: Best, config: FitConfig) -> bool:
    """Whether the last `patience` validations up to step `done` had no lower `valid/loss` than the best one."""
    if best is None or not config.patience:
        return False
    return bool(done - best["step"] >= config.patience * config.valid_every)


def validate(
    task: Task[Any],
    batches: Iterable[Batch],
    done: int,
    best: Best,
    recipe: Run,
    log: Log,
) -> Best:
    """Log the validation scalars; write the model to `best/` if none had a lower `valid/loss`."""
    with task.averaged():
        found = task.parallel(lambda: task.evaluate(not_empty(batches)), learns=False)
        if task.parallel.sharded:  # all validate, and go on as one
            found = distributed.average_scalars(found)
        metrics = {f"valid/{name}": value for name, value in found.items()}
        log.record(done, metrics)
        # Shown without those per codebook, which the log has.
        shown = [f"{name} {value:.4f}" for name, value in metrics.items() if not re.search(r"_q\d+$", name)]
        log.say(f"step {done}: {'  '.join(shown)}")
        # NaN is never below
        if metrics["valid/loss"] < (math.inf if best is None else best["valid/loss"]):
            found_best = {"step": done, **metrics}
            with log.tolerating():
                info = {"recipe": to_plain(recipe), **found_best}
                task.parallel.with_whole(lambda: task.export(Path(recipe.out) / "best", info))
                best = found_best
    return best


def not_empty(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches, each made when the one before it was used; InputError where there is none."""
    empty = True
    for batch in batches:
        empty = False
        yield batch
    if empty:
        raise InputError("there is nothing to validate on; give data.valid, or fit.valid_every=0")


def clips(recipe: Run) -> dict[str, int]:
    """How many clips a step has, and by how many processes."""
    return {"clips": recipe.fit.batch_size * distributed.world(), "world": distributed.world()}


def export(task: Task[Any], done: int, recipe: Run) -> None:
    """Write the model as it is after `done` steps, and a mark beside their checkpoint."""
    run = Path(recipe.out)

    def write() -> None:
        task.export(run, {"recipe": to_plain(recipe), "step": done})
        writing.write_bytes_atomic(checkpoint.step_dir(run, done) / checkpoint.EXPORTED, b"")

    with task.averaged():
        task.parallel.with_whole(write)


def restore(task: Task[Any], recipe: Run) -> tuple[int, Best, bool]:
    """Load the newest checkpoint -> (steps done, best validation so far, whether a validation due then was made)."""
    run, resume = Path(recipe.out), recipe.resume
    found = checkpoint.latest(run)
    if resume == "must" and found is None:
        raise InputError(f"resume=must, but {run} holds no checkpoint; check out=, or use resume=auto")
    if resume == "never" and found is not None:
        raise InputError(f"resume=never, but {run} holds a run (step {found[0]}); choose another out=")
    if found is None:
        return 0, None, True
    for step, directory in reversed(checkpoint.step_dirs(run)):
        try:
            state = load(directory, {"task": task.state_dict()}, task.parallel.group)
        except InputError as error:
            damage = error
            print(f"warning: {error}; the checkpoint before it is tried", file=sys.stderr)
            continue
        require_same_clips(state, recipe)
        task.load_state_dict(state["task"])
        return step, state["best"], state["validated"]
    raise InputError(
        f"{damage}; no checkpoint of {run} is whole: choose another out=, or delete its checkpoints"
    )


def require_same_clips(state: Mapping[str, Any], recipe: Run) -> None:
    """InputError where as many steps of other processes stand at another place of the data."""
    now = clips(recipe)
    before = state.get("clips", now["clips"])
    if state.get("world", now["world"]) != now["world"] and before != now["clips"]:
        each, rest = divmod(before, now["world"])
        advice = "choose a number that divides them" if rest else f"set fit.batch_size={each}"
        raise InputError(
            f"{recipe.out} has {before} clips a step, and {now['world']} processes with fit.batch_size="
            f"{recipe.fit.batch_size} are {now['clips']}: {advice}, so that no clip is left out or repeated"
        )


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
