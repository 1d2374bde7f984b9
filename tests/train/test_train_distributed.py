"""Two processes with half the batch each are one process with the whole batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import distributed
from audiogen.errors import InputError
from audiogen.files import checkpoint
from tests.train.conftest import scalars
from tests.train.processes import free_port, in_processes, start_processes

Train = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]


def test_reductions() -> None:
    def work(rank: int) -> dict[str, Any]:
        distributed.initialize(torch.device("cpu"))
        found = {
            "rank": (distributed.rank(), distributed.world()),
            "sum": distributed.all_reduce_sum(torch.tensor([1.0, rank])).tolist(),
            "broadcast": distributed.broadcast(torch.tensor(rank + 7)).item(),
            "any": (distributed.any_process(rank == 1), distributed.any_process(False)),
            "scalars": distributed.average_scalars({"a": float(rank), "b": 3.0}),
        }
        distributed.shutdown()
        return found

    both = in_processes(work)
    same = {"sum": [2.0, 1.0], "broadcast": 7, "any": (True, False), "scalars": {"a": 0.5, "b": 3.0}}
    assert both == [{"rank": (rank, 2), **same} for rank in range(2)]


def test_alone_nothing_is_reduced() -> None:
    value = torch.tensor([1.0, 2.0])
    assert distributed.all_reduce_sum(value) is value and distributed.broadcast(value) is value
    assert (distributed.rank(), distributed.world(), distributed.any_process(True)) == (0, 1, True)


def test_one_may_work_longer_than_the_others_wait_for_a_reduction() -> None:
    def work(rank: int) -> Any:
        distributed.initialize(torch.device("cpu"), timeout_s=1.0)
        began = time.monotonic()
        found = distributed.first_only(lambda: (time.sleep(3), "made")[1], "waited")
        with distributed.first_process_first():
            time.sleep(3 * (rank == 0))
        waited_s = time.monotonic() - began
        try:
            distributed.first_only(lambda: 1 / 0, None)
        except (ZeroDivisionError, distributed.Followed) as error:
            failed = type(error).__name__
        distributed.all_reduce_sum(torch.zeros(1))
        distributed.shutdown()
        return found, waited_s > 5.9, failed

    assert in_processes(work) == [("made", True, "ZeroDivisionError"), ("waited", True, "Followed")]


def test_everybody_waits_for_all_however_long_and_fails_with_one() -> None:
    def work(rank: int) -> Any:
        distributed.initialize(torch.device("cpu"), timeout_s=1.0)
        began = time.monotonic()
        distributed.everybody(lambda: time.sleep(3 * rank))
        waited_s = time.monotonic() - began
        try:
            distributed.everybody(lambda: None if rank == 0 else 1 / 0)  # type: ignore[arg-type, return-value]
        except (ZeroDivisionError, distributed.Followed) as error:
            failed = f"{type(error).__name__}: {error}"
        distributed.all_reduce_sum(torch.zeros(1))
        distributed.shutdown()
        return waited_s > 2.9, failed

    assert in_processes(work) == [
        (True, "Followed: rank 1 failed"),
        (True, "ZeroDivisionError: division by zero"),
    ]
    alone: list[int] = []
    distributed.everybody(lambda: alone.append(1))
    assert alone == [1]


def test_facts_that_differ_are_named_by_the_first() -> None:
    def work(rank: int) -> list[str]:
        distributed.initialize(torch.device("cpu"), timeout_s=20.0)
        distributed.agree({"version": "1", "recipe": "a: 1\nb: 2"})
        said = []
        for recipe in ("a: 1\nb: 2", f"a: 1\nb: {rank}"):
            try:
                distributed.agree({"version": "1", "the recipe": recipe})
            except InputError as error:
                said.append(str(error))
        distributed.shutdown()
        return said

    first, second = in_processes(work)
    assert first == ["the recipe differs between the processes: b: 0 on rank 0, b: 1 on rank 1"]
    assert second == ["the processes differ"]


@pytest.mark.parametrize("fault", ["killed", "stopped", "late"])
def test_a_process_that_is_lost_is_named_in_one_line(fault: str) -> None:
    def work(rank: int) -> str:
        distributed.initialize(torch.device("cpu"), timeout_s=2.0)
        distributed.all_reduce_sum(torch.zeros(1))
        if rank == 1:
            if fault == "late":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
        try:
            with distributed.together():
                distributed.all_reduce_sum(torch.zeros(1))
        except InputError as error:
            return str(error)
        return "nothing"

    processes, answers = start_processes(work)
    rank, line = answers.get(timeout=60)
    for process in processes:
        process.kill()
        process.join()
    assert rank == 0 and "the training lost a process: rank 1" in line
    assert ("does not come" if fault == "late" else "is gone, or stands still") in line


def test_torchrun_with_half_the_batch_is_one_process_with_the_whole(lm_run: Train, tmp_path: Path) -> None:
    settings = (
        "model.dropout=0",
        "text.dropout=0",
        "pretokenize_epochs=1",
        "fit.steps=4",
        "fit.save_every=2",
    )
    whole = lm_run("whole", *settings, "fit.batch_size=4")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "audiogen.train", f"recipe={tmp_path / 'lm.yaml'}", *settings]
    command += ["fit.batch_size=2", f"out={tmp_path / 'halves'}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    one, two = scalars(whole), scalars(tmp_path / "halves")
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        if "train/loss" in a:  # validation reads as many clips a process, so its batches differ
            assert a == pytest.approx(b, rel=1e-4)
    first, second = checkpoint.load_tensors(whole), checkpoint.load_tensors(tmp_path / "halves")
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)


def test_codebooks_stay_equal_in_all_processes(codec_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with one clip a process, where a codebook is often used in one process and not in the other."""
    from audiogen.train import loop

    kept: list[Any] = []
    restore = loop.restore
    monkeypatch.setattr(loop, "restore", lambda task, *rest: (kept.append(task), restore(task, *rest))[1])

    def work(rank: int) -> tuple[str, str]:
        codec_run("run", "fit.batch_size=1", "fit.steps=12", "codebook_dropout=1", "fit.ema_decay=0")
        codec, discriminator = kept[0].codec, kept[0].adversary.discriminator
        assert all(book.initialised for book in codec.quantizer.codebooks)
        return checkpoint.identity(codec.state_dict()), checkpoint.identity(discriminator.state_dict())

    first, second = in_processes(work)
    assert first == second


def test_sigterm_to_one_process_stops_all_at_one_step(
    codec_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from audiogen.train.codec import CodecTask

    step = CodecTask.step

    def terminated(self: CodecTask, batch: Any, number: int) -> Any:
        if number == 2 and distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
        return step(self, batch, number)

    monkeypatch.setattr(CodecTask, "step", terminated)
    in_processes(lambda rank: str(codec_run("run", "fit.batch_size=2")))
    found = checkpoint.latest(tmp_path / "run")
    assert found and found[0] == 3


def test_all_processes_end_where_the_first_has_no_patience_left(lm_run: Train, tmp_path: Path) -> None:
    """It alone validates; one that went on would wait for it without end."""
    stalls = ("optim.lr=1e-30", "fit.steps=20", "fit.valid_every=2", "fit.patience=1", "fit.batch_size=2")
    in_processes(lambda rank: str(lm_run("run", *stalls)))
    found = checkpoint.latest(tmp_path / "run")
    assert found and found[0] == 4
    in_processes(lambda rank: str(lm_run("run", *stalls)))
    found = checkpoint.latest(tmp_path / "run")
    assert found and found[0] == 4
