"""Batches in an order that is a function of (seed, epoch, step, rank), prefetched by worker processes.

Position p of the endless sequence is item `permutation(seed, p // n)[p % n]`; step s of rank r takes the positions
from `(s * world + r) * batch_size` on. So resuming needs the step alone, and workers change nothing but the time.
"""

import atexit
import itertools
import logging
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.interfaces import AudioBatch, Batch

log = logging.getLogger(__name__)

VALID_SEED = 0  # validation crops are the same in every run, so runs compare
GIVE_UP_AFTER = 100  # unreadable items in a row


class Dataset(Protocol):
    """Numbered items, each a pure function of its arguments; `item` raises InputError for one it cannot read."""

    def __len__(self) -> int: ...

    def item(self, index: int, epoch: int, seed: int) -> Any: ...


def collate_audio(items: Sequence[tuple[Tensor, str | None, str, int]]) -> AudioBatch:
    """Items (audio [C, N], caption, key, length) -> audio zero-padded to the longest [B, C, N]."""
    longest = max(item[0].shape[-1] for item in items)
    padded = [torch.nn.functional.pad(item[0], (0, longest - item[0].shape[-1])) for item in items]
    return AudioBatch(
        audio=torch.stack(padded),
        lengths=torch.tensor([item[3] for item in items]),
        captions=[item[1] for item in items],
        keys=[item[2] for item in items],
    )


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch -> int64 [count]."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_for("order", seed, epoch)))


class Loaded(NamedTuple):
    """A batch, and a message for each clip that could not be read for it; without a batch, the last says why."""

    batch: Batch | None
    problems: list[str]


class StepDataset:
    """Maps a step to its batch; each worker process holds one."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        rank: int,
        world: int,
        collate: Callable[[Sequence[Any]], Batch],
    ) -> None:
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.rank, self.world, self.collate = rank, world, collate

    def __getitem__(self, step: int) -> Loaded:
        first = (step * self.world + self.rank) * self.batch_size
        problems: list[str] = []
        try:
            items = [self._item(position, problems) for position in range(first, first + self.batch_size)]
        except InputError as error:
            return Loaded(None, [*problems, str(error)])
        return Loaded(self.collate(items), problems)

    def _item(self, position: int, problems: list[str]) -> Any:
        """The item at a position, or the next readable one of the sequence."""
        count = len(self.dataset)
        for at in range(position, position + GIVE_UP_AFTER):
            epoch, number = divmod(at, count)
            index = int(permutation(count, self.seed, epoch)[number])
            try:
                return self.dataset.item(index, epoch, self.seed)
            except InputError as error:
                problems.append(str(error))
        raise InputError(f"{GIVE_UP_AFTER} clips in a row cannot be read; the last: {problems[-1]}")


class AudioLoader:
    """Endless batches of a dataset. Items that cannot be read are skipped, named once in a warning, and counted.

    workers: processes that prefetch, one thread each; 0 reads in this process. `unreadable` maps each message
    to how often it occurred; `skipped` is their sum.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        collate: Callable[[Sequence[Any]], Batch] = collate_audio,
    ) -> None:
        if batch_size < 1 or workers < 0 or len(dataset) == 0:
            raise InputError(
                f"batch_size {batch_size}, workers {workers}, {len(dataset)} clips: expected at least 1, 0 and 1"
            )
        self.steps = StepDataset(dataset, batch_size, seed, rank, world, collate)
        self.workers = workers
        self.unreadable: dict[str, int] = {}

    @property
    def skipped(self) -> int:
        """How often an item was left out because it could not be read."""
        return sum(self.unreadable.values())

    def batches(self, start_step: int = 0) -> Generator[Any, None, None]:
        """Batches from a step on, without end. Closing the iterator, or leaving Python, ends the workers."""
        batches = self._batches(start_step)
        if self.workers:
            atexit.register(batches.close)  # before multiprocessing sends SIGTERM, which they delay
        return batches

    def _batches(self, start_step: int) -> Generator[Any, None, None]:
        steps = itertools.count(start_step)
        loaded: Iterator[Loaded]
        if self.workers == 0:
            loaded = map(self.steps.__getitem__, steps)
        else:
            loaded = iter(
                DataLoader(
                    self.steps,  # type: ignore[arg-type]  # a map from step to batch is all it needs
                    batch_size=None,
                    sampler=steps,
                    num_workers=self.workers,
                    collate_fn=_as_it_is,  # type: ignore[arg-type]
                    worker_init_fn=_outlive_signals,
                    prefetch_factor=4,
                    generator=torch.Generator(),  # else it draws from the global one
                )
            )
        try:
            for batch, problems in loaded:
                if batch is None:
                    raise InputError(problems[-1])
                self._note(problems)
                yield batch
        finally:
            del loaded  # ends the workers, also where a traceback keeps this frame alive

    def _note(self, problems: list[str]) -> None:
        for problem in problems:
            if problem not in self.unreadable:
                log.warning("left out: %s", problem)
            self.unreadable[problem] = self.unreadable.get(problem, 0) + 1


def _as_it_is(loaded: Loaded) -> Loaded:
    return loaded


GRACE_S = 30  # from a SIGTERM to the end of a worker that is not closed before


def _outlive_signals(worker: int) -> None:
    """Delay SIGTERM, ignore Ctrl-C: both reach the whole process group, but the parent needs batches to end its step.

    The parent closes workers that it no longer needs, and they end at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


def valid_batches(
    dataset: Dataset,
    batch_size: int,
    count: int | None = None,
    collate: Callable[[Sequence[Any]], Batch] = collate_audio,
) -> Iterator[Any]:
    """Up to `count` batches with the same items, crops and wordings at every call; None passes over all items once.

    Items come in one fixed shuffled order, so that few batches are a fair sample; the last batch may be
    smaller.
    """
    order = permutation(len(dataset), VALID_SEED, 0).tolist()
    if count is not None:
        order = order[: count * batch_size]
    for first in range(0, len(order), batch_size):
        items = []
        for index in order[first : first + batch_size]:
            try:
                items.append(dataset.item(index, 0, VALID_SEED))
            except InputError as error:
                log.warning("left out: %s", error)
        if items:
            yield collate(items)
