"""Several generations at once over one language model, which joins their steps.

Weights are read once for all rows of a step, so a step of many requests costs less than theirs one by one. Each
request runs `generate_tokens` or `stream_tokens` in a thread of its own, on a decoder that looks like its own; its
steps wait for those of the others for a moment. So requests come and go between any two steps (continuous batching, as
in Orca, Yu et al., 2022), each with its own position, length, text, guidance and draws. A row's logits do not depend on
the other rows (`Decoder.independent_rows`), so a request's codes are, bit for bit, those that it has alone.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig
from audiogen.lm.sample import Draws, draw_all

MAX_ROWS = 64  # of the model in a joined step, which bounds its time and its memory


class Cancelled(Exception):
    """Nobody waits for this request any longer."""


class ManySteps(Protocol):
    """A `Decoder` with independent rows that steps several caches at once: `kernels.native.NativeLM`."""

    special: int
    config: LMConfig
    device: torch.device

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> Any: ...

    def check(self, steps: Tensor, cache: Any) -> None: ...  # [B, K, S]

    def step_all(
        self, calls: Sequence[tuple[Tensor, Any]]
    ) -> list[Tensor]: ...  # checked, [B, K, S] -> [B, K, V]


class _Call:
    """Steps int64 [R, K, S] that a request waits for -> their logits [R, K, V], or codes [B, K] where it draws."""

    def __init__(self, steps: Tensor, cache: Any, draws: Draws | None):
        self.steps, self.cache, self.draws = steps, cache, draws  # [R, K, S]
        self.result: Tensor | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


class JoinedSteps:
    """Joins the steps of the requests that run at the moment; there is no thread of its own.

    decoder: runs the steps. wait_s: how long a step waits for requests that are busy elsewhere, with their text or
    their codec. num_steps, num_joined: steps of requests so far, and the joined steps that they took.
    """

    def __init__(self, decoder: ManySteps, wait_s: float = 0.002, max_rows: int = MAX_ROWS):
        self.decoder, self.wait_s, self.max_rows = decoder, wait_s, max_rows
        self._change = threading.Condition()
        self._num_requests = 0
        self._waiting: list[_Call] = []
        self._running = False  # a joined step is under way
        self.num_steps, self.num_joined = 0, 0

    @contextmanager
    def request(self) -> "Iterator[RequestDecoder]":
        """A decoder for one request, to be used in one thread within the context."""
        with self._change:
            self._num_requests += 1
        try:
            yield RequestDecoder(self)
        finally:
            with self._change:
                self._num_requests -= 1
                self._change.notify_all()  # the others need not wait for it

    def average(self) -> float:
        """Steps of requests in a joined step so far."""
        return self.num_steps / max(1, self.num_joined)

    def step(self, call: _Call) -> None:
        """Wait until a joined step has done this one; the thread that finds all there, or waited enough, runs it."""
        with self._change:
            self._waiting.append(call)
            latest = time.monotonic() + self.wait_s
            while not call.is_done:
                left_s = latest - time.monotonic()
                if self._running or (len(self._waiting) < self._num_requests and left_s > 0):
                    self._change.wait(None if self._running else left_s)
                    continue
                calls = self._take()
                self._running = True
                self._change.release()
                try:
                    self._run(calls)
                finally:
                    self._change.acquire()
                    self._running = False
                    self._change.notify_all()

    def _take(self) -> list[_Call]:
        """The calls of the next joined step: those that waited longest, up to `max_rows`."""
        rows, count = 0, 0
        for call in self._waiting:
            rows += len(call.steps)
            if count and rows > self.max_rows:
                break
            count += 1
        calls, self._waiting = self._waiting[:count], self._waiting[count:]
        return calls

    def _run(self, calls: Sequence[_Call]) -> None:
        self.num_steps += len(calls)
        self.num_joined += 1
        try:
            logits = self.decoder.step_all([(call.steps, call.cache) for call in calls])
        except BaseException as error:
            for call in calls:
                call.error = error
            raise
        drawn = [(call, own) for call, own in zip(calls, logits, strict=True) if call.draws is not None]
        try:
            _draw(drawn)
        except InputError:  # of the logits of one of them
            for pair in drawn:
                try:
                    _draw([pair])
                except InputError as error:
                    pair[0].error = error
        for call, own in zip(calls, logits, strict=True):
            if not call.is_done:
                call.result = own


def _draw(calls: Sequence[tuple[_Call, Tensor]]) -> None:
    """The codes of calls that draw, from their logits [R, K, V]."""
    draws = [call.draws for call, _ in calls if call.draws is not None]
    for (call, _), codes in zip(calls, draw_all([logits for _, logits in calls], draws), strict=True):
        call.result = codes


class RequestDecoder:
    """A `sample.Decoder` whose steps run with those of other requests. `cancel` may be called from any thread."""

    independent_rows = True

    def __init__(self, joined: JoinedSteps):
        self._joined = joined
        self._cancelled = False
        self.config, self.special = joined.decoder.config, joined.decoder.special
        self.device = joined.decoder.device

    def cancel(self) -> None:
        """Its next step raises `Cancelled`."""
        self._cancelled = True

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> Any:
        """As the decoder's."""
        return self._joined.decoder.new_cache(condition, batch_size, max_steps)

    def step(self, steps: Tensor, cache: Any) -> Tensor:
        """As the decoder's: steps int64 [R, K, S] -> logits float32 [R, K, V]."""
        return self._wait(steps, cache, None)

    def next_codes(self, steps: Tensor, cache: Any, draws: Draws) -> Tensor:
        """As `sample.next_codes`, drawn for all requests of the joined step at once: [R, K, S] -> codes [B, K]."""
        return self._wait(steps, cache, draws)

    def _wait(self, steps: Tensor, cache: Any, draws: Draws | None) -> Tensor:
        """The result of a joined step with these [R, K, S]."""
        if self._cancelled:
            raise Cancelled
        self._joined.decoder.check(steps, cache)  # here, so that it is this request's error
        call = _Call(steps, cache, draws)
        self._joined.step(call)
        if call.error is not None:
            raise call.error
        assert call.result is not None
        return call.result
