"""Rank, world size and reductions over the processes of torchrun; alone, those of a single process.

Every process writes twice a second, into the group's store, that it lives and how many times it was with the others: so
those that wait for one see whether it works, and those that lost one can name it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from audiogen.errors import InputError, one_line

T = TypeVar("T")
BEAT_S = 0.5
LOST_S = 8 * BEAT_S  # without a beat: the process is gone, or its machine is
KEPT: list[Any] = []  # groups that were left


def initialize(device: torch.device, timeout_s: float = 600.0) -> None:
    """Take this GPU, and join the process group torchrun describes in the environment, if any (nccl, gloo on a CPU).

    timeout_s: how long a process may wait for the others in a reduction.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not is_distributed():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        if world() > 1:
            Beats.own = Beats(timeout_s)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if Beats.own is not None:
        Beats.own.stop()
        Beats.own = None
    if is_distributed():
        # To the end of the process: Gloo's destructor waits for its threads, and where DDP's reducer drops the last
        # reference it does so with the interpreter's lock, which a thread needs to drop a tensor (torch 2.13).
        KEPT.extend(dist.distributed_c10d._world.pg_map)
        dist.destroy_process_group()


class Beats:
    """That this process lives, in the group's store, and what the others said last.

    A beat: how many there were, how often the process was with the others, its machine and process number.
    """

    own: Beats | None = None  # this process's

    def __init__(self, timeout_s: float):
        self.timeout_s = timeout_s
        store: Any = dist.distributed_c10d._get_default_store()
        self.store = store.clone()  # a connection of its own: another one may wait in its
        self.meetings = self.waits = 0
        self._stopped = threading.Event()
        self._count = 0
        self._say()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _say(self) -> None:
        beat = [self._count, self.meetings, platform.node(), os.getpid()]
        self.store.set(f"beat/{rank()}", json.dumps(beat))
        self._count += 1

    def _run(self) -> None:
        try:
            while not self._stopped.wait(BEAT_S):
                self._say()
        except RuntimeError:
            pass  # the store is gone, and with it the training

    def stop(self) -> None:
        """Say nothing more."""
        self._stopped.set()
        self._thread.join()

    def of(self, process: int) -> list[Any] | None:
        """The last beat of a process; None where there was none."""
        if not self.store.check([f"beat/{process}"]):
            return None
        beat: list[Any] = json.loads(self.store.get(f"beat/{process}"))
        return beat

    def lost(self) -> str:
        """Which processes the others wait for, and why, in words."""
        try:
            before = [self.of(process) for process in range(world())]
            time.sleep(LOST_S)
            after = [self.of(process) for process in range(world())]
        except RuntimeError:
            return "rank 0 is gone, and the group's store with it"
        most = max(beat[1] for beat in after if beat)
        found = []
        for process, (old, new) in enumerate(zip(before, after, strict=True)):
            where = f"rank {process}" + (f" (process {new[3]} on {new[2]})" if new else "")
            if new is None or old == new:
                found.append(f"{where} is gone, or stands still")
            elif new[1] < most:
                found.append(
                    f"{where} does not come: it waits for data or a disk, or works on something else"
                )
        return "; ".join(found) or "a connection broke, though all processes live"

    def wait(self, key: str, process: int = 0) -> str:
        """What a process sets `key` to; InputError where it gives no beat any more."""
        beat, since = self.of(process), time.monotonic()
        while not self.store.check([key]):
            time.sleep(BEAT_S / 5)
            if (now := self.of(process)) != beat:
                beat, since = now, time.monotonic()
            elif time.monotonic() - since > max(LOST_S, self.timeout_s):
                raise InputError(f"rank {rank()} waits for rank {process}, which is gone or stands still")
        return str(self.store.get(key).decode())


def first_only(work: Callable[[], T], otherwise: T) -> T:
    """What `work` gives in the first process; the others wait for its end, as long as that lives, and get `otherwise`.

    Where it fails there, it fails in all.
    """
    if Beats.own is None:
        return work()
    beats, key = Beats.own, f"first/{Beats.own.waits}"
    beats.waits += 1
    if rank() > 0:
        if beats.wait(key) != "done":
            raise Followed("rank 0 failed")
        return otherwise
    try:
        found = work()
    except BaseException:
        beats.store.set(key, "failed")
        raise
    beats.store.set(key, "done")
    return found


def everybody(work: Callable[[], None]) -> None:
    """`work` in each process, which then waits for the ends of all others, as long as those live.

    Where it fails in one, it fails in all.
    """
    if Beats.own is None:
        return work()
    beats, key = Beats.own, f"all/{Beats.own.waits}"
    beats.waits += 1
    try:
        work()
    except BaseException:
        beats.store.set(f"{key}/{rank()}", "failed")
        raise
    beats.store.set(f"{key}/{rank()}", "done")
    for process in range(world()):
        if beats.wait(f"{key}/{process}", process) != "done":
            raise Followed(f"rank {process} failed")


class Followed(InputError):
    """Another process failed, and says why itself."""


@contextmanager
def together() -> Iterator[None]:
    """Within: what a backend says of a process that is lost becomes an InputError that names it."""
    try:
        yield
    except RuntimeError as error:
        of_group = isinstance(error, dist.DistError) or re.search(
            "gloo|nccl|TCPStore", str(error), re.IGNORECASE
        )
        if Beats.own is None or not of_group:
            raise
        reason = one_line(error)[:120]
        raise InputError(
            f"the training lost a process: {Beats.own.lost()}; run the same command again, it goes on from the last "
            f"checkpoint ({reason})"
        ) from None


def agree(facts: Mapping[str, str]) -> None:
    """InputError where the processes differ in one of the facts, which names it and what each has."""
    if world() == 1:
        return
    gathered: list[Any] = [None] * world()
    _met()
    dist.all_gather_object(gathered, json.dumps(dict(facts)))
    everybody = [json.loads(each) for each in gathered]
    for name in facts:
        values = [each.get(name) for each in everybody]
        if len(set(values)) > 1:
            other = next(process for process, value in enumerate(values) if value != values[0])
            if rank() > 0:
                raise Followed("the processes differ")
            mine, theirs = (
                line_that_differs(values[0], values[other]),
                line_that_differs(values[other], values[0]),
            )
            raise InputError(
                f"{name} differs between the processes: {mine} on rank 0, {theirs} on rank {other}"
            )


def line_that_differs(text: str, other: str) -> str:
    """The first line of a text that the other has not."""
    return next((line.strip() for line in text.splitlines() if line not in other.splitlines()), text[:80])


def _met() -> None:
    """This process is about to be with the others."""
    if Beats.own is not None:
        Beats.own.meetings += 1


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over processes, in place; returns the tensor."""
    if is_distributed():
        _met()
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor, src: int = 0) -> Tensor:
    """Process `src`'s values for everybody, in place; returns the tensor."""
    if is_distributed():
        _met()
        dist.broadcast(tensor, src)
    return tensor


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        _met()
        dist.barrier()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Work on files that the first process makes, however long it takes, and the others find made."""
    if rank() > 0:
        first_only(lambda: None, None)
    try:
        yield
    except BaseException:
        if rank() == 0 and Beats.own is not None:
            Beats.own.store.set(f"first/{Beats.own.waits}", "failed")
        raise
    if rank() == 0:
        first_only(lambda: None, None)


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all leave a loop at the same step, or none does."""
    return average_scalars({"flag": float(flag)})["flag"] > 0


def average_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """The mean over processes of scalars that all of them have."""
    if world() == 1:
        return dict(scalars)
    values = torch.tensor(list(scalars.values()), dtype=torch.float32, device=_device())
    return dict(zip(scalars, (all_reduce_sum(values) / world()).tolist(), strict=True))


def _device() -> torch.device:
    """Where the backend reduces: nccl works on GPU memory only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
