"""A job of a worker's thread, as the event loop sees it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from audiogen.serve.engine import Job, Order

WATCH_S = 0.1  # between two looks at whether a client is still there
STALLED_S = 60.0  # in which a client takes nothing of its stream: it is gone


class Watched:
    """A job as the event loop sees it: `changed` waits for news of the worker's thread."""

    def __init__(self, order: Order):
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self.job = Job(order, self._notify)

    def _notify(self, job: Job) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits, and the worker's thread goes on
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

    async def begin(self, request: Request) -> Job:
        """Wait for the first block, or for the end where there is none; a client that leaves ends the job."""
        try:
            while not (self.job.blocks or self.job.is_over):
                await self.changed(WATCH_S)
                if await request.is_disconnected():
                    self.job.cancel()
        except BaseException:
            self.job.cancel()
            raise
        return self.job

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


class Stream(StreamingResponse):
    """An answer made of a job's blocks: the job ends with it, also where the client left before it began.

    A client that is slow to read delays nobody, as its blocks wait here; one that reads nothing for STALLED_S is cut
    off.
    """

    def __init__(
        self,
        watched: Watched,
        content: AsyncIterator[bytes],
        media_type: str,
        facts: dict[str, str],
        on_end: Callable[[str], None],
    ):
        super().__init__(content, media_type=media_type, headers=facts)
        self.job, self.on_end = watched.job, on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def patient(message: Message) -> None:
            try:
                await asyncio.wait_for(send(message), STALLED_S)
            except asyncio.TimeoutError:
                raise RuntimeError("the client reads nothing") from None

        try:
            await super().__call__(scope, receive, patient)
        finally:
            self.job.cancel()
            self.on_end(self.job.id)
