"""A job of a worker's thread, as the event loop sees it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from audiogen.serve.engine import Job, Order

WATCH_S = 0.1  # between two looks at whether a client is still there


class Watched:
    """A job as the event loop sees it: `changed` waits for news of the worker's thread."""

    def __init__(self, order: Order):
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self.job = Job(order, self._notify)

    def _notify(self, job: Job) -> None:
        self._loop.call_soon_threadsafe(self._news.set)

    async def changed(self, timeout_s: float) -> None:
        """Return when something happened, or after so long."""
        try:
            await asyncio.wait_for(self._news.wait(), timeout_s)
            self._news.clear()
        except asyncio.TimeoutError:  # in Python 3.10 another one than the built-in
            pass

    async def blocks(self) -> AsyncIterator[Any]:
        """The blocks [C, n] as they come; the job ends with whoever reads them."""
        job = self.job
        try:
            while not job.is_over or job.blocks:
                while job.blocks:
                    yield job.blocks.popleft()
                if not job.is_over:
                    await self.changed(60.0)
        finally:
            job.cancel()

    async def finish(self, request: Request | None = None) -> Job:
        """Wait for the end; a client that leaves ends the job."""
        try:
            while not self.job.is_over:
                await self.changed(WATCH_S)
                if request is not None and await request.is_disconnected():
                    break
        finally:
            self.job.cancel()
        return self.job
