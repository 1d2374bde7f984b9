"""Batches in an order that is a function of (seed, epoch, step, rank), prefetched by worker processes.

Position p of the endless sequence is item `permutation(seed, p // n)[p % n]`; step s of rank r takes the positions
from `(s * world + r) * batch_size` on. So resuming needs the step alone, and workers change nothing but the time.
Where a dataset has groups, the items of a step are of one of them, and `by_group` is in the permutation's place.
"""

import atexit
import itertools
import logging
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from audiogen.data.seeds import generator_for
from audiogen.errors import InputError
from audiogen.interfaces import Batch

log = logging.getLogger(__name__)

VALID_SEED = 0  # validation crops are the same in every run, so runs compare
GIVE_UP_AFTER = 100  # unreadable items in a row


class Item(NamedTuple):
    """A clip as training sees it: caption None for a clip without text; key is its name in messages.

    data: audio [C, N], codes [K, T] or latents [D, T] or [D, T, M]; the first two are zero after `length` samples or
    frames. features: what else was made of the sound, by name.
    """

    data: Tensor
    caption: str | None
    key: str
    length: int
    features: dict[str, Tensor] = {}


class Dataset(Protocol):
    """Numbered items, each a pure function of its arguments; `item` raises InputError for one it cannot read.

    batch_type: of the batches that they make, a subclass of `Batch` with one more field, the data, and `features` where
    its items have some. groups: int64 [items], which of them may be in one batch: those of one number; None: all.
    """

    @property
    def batch_type(self) -> type[Batch]: ...

    @property
    def groups(self) -> Tensor | None: ...

    def __len__(self) -> int: ...

    def item(self, index: int, epoch: int, seed: int) -> Item: ...


def collate(items: Sequence[Item], batch_type: Any) -> Any:
    """Items -> their batch; data are zero-padded at their end to the longest, [B, ...]."""
    longest = max(item.data.shape[-1] for item in items)
    padded = [torch.nn.functional.pad(item.data, (0, longest - item.data.shape[-1])) for item in items]
    features = {name: torch.stack([item.features[name] for item in items]) for name in items[0].features}
    return batch_type(
        torch.tensor([item.length for item in items]),
        [item.caption for item in items],
        [item.key for item in items],
        torch.stack(padded),
        **({"features": features} if features else {}),
    )


@lru_cache(maxsize=4)
def permutation(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch -> int64 [count]."""
    return torch.randperm(count, generator=generator_for("order", seed, epoch))


def by_group(groups: Tensor, size: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch in which each `size` items are of one group, the batches of all groups by chance -> [n].

    groups: int64 [items]. n is the same in each epoch: a group's items that fill no batch are left out of it, other
    ones in each. InputError where no group has as many.
    """
    order = permutation(len(groups), seed, epoch)
    own = [order[groups[order] == group] for group in groups.unique()]
    batches = torch.cat([items[: len(items) // size * size].reshape(-1, size) for items in own])
    if not len(batches):
        raise InputError(
            f"no {size} clips are of one length; take a smaller fit.batch_size, or group_by_length=false"
        )
    chosen = torch.randperm(len(batches), generator=generator_for("batches", seed, epoch))
    return batches[chosen].flatten()


def prefetch(source: Any, keys: Iterable[Any], workers: int) -> Generator[Any, None, None]:
    """`source[key]` of each key in order, made ahead by worker processes, one thread each; 0 uses this process.

    Closing the generator, or leaving Python, ends the workers at once.
    """
    if workers == 0:
        return (source[key] for key in keys)
    made = _from_workers(source, keys, workers)
    atexit.register(made.close)  # before multiprocessing sends SIGTERM, which they delay
    return made


def _from_workers(source: Any, keys: Iterable[Any], workers: int) -> Generator[Any, None, None]:
    made = iter(
        DataLoader(
            source,
            batch_size=None,  # what the source gives is handed on as it is
            sampler=keys,
            num_workers=workers,
            worker_init_fn=_outlive_signals,
            prefetch_factor=4,
            generator=torch.Generator(),  # else it draws from the global one
        )
    )
    try:
        yield from made
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a worker that loads the data was ended from outside, by the system if memory was short; run the same "
            "command again, with fewer fit.workers if that happens again"
        ) from error
    finally:
        del made  # ends the workers, also where a traceback keeps this frame alive


GRACE_S = 30  # from a SIGTERM to the end of a worker that is not closed before


def _outlive_signals(worker: int) -> None:
    """Delay SIGTERM, ignore Ctrl-C: both reach the whole process group, but training needs batches to end its step.

    `prefetch` ends workers that are not needed any more; those of a parent that was killed notice it within seconds.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":  # which has no alarms, and no SIGTERM from outside
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE_S))


@dataclass(eq=False)
class AudioLoader:
    """Endless batches of a dataset. Items that cannot be read are skipped, named once in a warning, and counted.

    workers: see `prefetch`. unreadable: how often each message occurred.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    workers: int = 0
    unreadable: Counter[str] = field(default_factory=Counter, init=False)
    epoch: int = field(default=-1, init=False)  # of `order`
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), init=False)

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or len(self.dataset) == 0:
            got = f"batch_size {self.batch_size}, workers {self.workers}, {len(self.dataset)} clips"
            raise InputError(f"{got}: expected at least 1, 0 and 1")
        self._order(0)

    def __getitem__(self, step: int) -> tuple[Batch | None, list[str]]:
        """The batch of a step, and a message for each clip that could not be read for it; or None and why not."""
        first = (step * self.world + self.rank) * self.batch_size
        problems: list[str] = []
        try:
            items = [self._item(position, problems) for position in range(first, first + self.batch_size)]
        except InputError as error:
            return None, [*problems, str(error)]
        return collate(items, self.dataset.batch_type), problems

    def _item(self, position: int, problems: list[str]) -> Item:
        """The item at a position, or the next readable one of the sequence."""
        for at in range(position, position + GIVE_UP_AFTER):
            epoch, number = divmod(at, len(self.order))
            index = int(self._order(epoch)[number])
            try:
                return self.dataset.item(index, epoch, self.seed)
            except InputError as error:
                problems.append(str(error))
        raise InputError(f"{GIVE_UP_AFTER} clips in a row cannot be read; the last: {problems[-1]}")

    def _order(self, epoch: int) -> Tensor:
        """The items of an epoch, in their order; all epochs have as many."""
        if epoch != self.epoch:
            groups, size = self.dataset.groups, self.batch_size * self.world
            self.order = (
                permutation(len(self.dataset), self.seed, epoch)
                if groups is None
                else by_group(groups, size, self.seed, epoch)
            )
            self.epoch = epoch
        return self.order

    def batches(self, start_step: int = 0) -> Generator[Any, None, None]:
        """Batches from a step on, without end. Closing the generator, or leaving Python, ends the workers."""
        with closing(prefetch(self, itertools.count(start_step), self.workers)) as made:
            for batch, problems in made:
                if batch is None:
                    raise InputError(problems[-1])
                for problem in problems:
                    if problem not in self.unreadable:
                        log.warning("left out: %s", problem)
                    self.unreadable[problem] += 1
                yield batch


def valid_batches(dataset: Dataset, batch_size: int, count: int | None = None) -> Iterator[Any]:
    """Up to `count` batches with the same items, crops and wordings at every call; None passes over all items once.

    Items come in one fixed shuffled order, so that few batches are a fair sample; the last batch may be
    smaller.
    """
    order = permutation(len(dataset), VALID_SEED, 0).tolist()
    for first in range(0, len(order) if count is None else min(len(order), count * batch_size), batch_size):
        items = []
        for index in order[first : first + batch_size]:
            try:
                items.append(dataset.item(index, 0, VALID_SEED))
            except InputError as error:
                log.warning("left out: %s", error)
        if items:
            yield collate(items, dataset.batch_type)
