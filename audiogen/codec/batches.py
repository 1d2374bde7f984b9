"""Order in a flow of clips: what is read ahead by threads, and what waits for others of its length."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from audiogen.errors import InputError

T = TypeVar("T")
R = TypeVar("R")


def prefetch(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int
) -> Iterator[tuple[T, R | InputError]]:
    """(item, function(item)) in order, computed by threads up to `ahead` items early; an InputError is a result."""
    waiting: deque[tuple[T, Future[R]]] = deque()

    def first() -> tuple[T, R | InputError]:
        item, future = waiting.popleft()
        try:
            return item, future.result()
        except InputError as error:
            return item, error

    pool = ThreadPoolExecutor(workers)
    try:
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > ahead:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class Batches(Generic[T]):
    """Gathers items with equal keys into lists of `batch_size`, holding at most four batches back."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self._held: dict[Hashable, list[T]] = {}

    def add(self, key: Hashable, item: T) -> Iterator[list[T]]:
        """The batch that this item fills; or, with too many held back, the one that has waited longest."""
        self._held.setdefault(key, []).append(item)
        if len(self._held[key]) == self.batch_size:
            yield self._held.pop(key)
        elif sum(map(len, self._held.values())) >= 4 * self.batch_size:
            yield self._held.pop(next(iter(self._held)))

    def rest(self) -> Iterator[list[T]]:
        """What is still held, at the end."""
        yield from self._held.values()
        self._held = {}
