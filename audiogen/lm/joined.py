"""Several generations at once over one language model, which joins their steps.

Weights are read once for all rows of a step, so a step of many requests costs less than theirs one by one. One thread
runs all of them: it takes every request's next step, runs these as one, and lets each go on to its next. So requests
come and go between any two steps (continuous batching, as in Orca, Yu et al., 2022), each with its own position,
length, text, guidance and draws. A row's logits do not depend on the other rows (`Decoder.independent_rows`), so a
request's codes are, bit for bit, those that it has alone.
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import LMConfig
from audiogen.lm.sample import Generation, Step, draw_all

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


class _Run:
    """A generation under way: the step that it waits for, and what it gave, until somebody takes that.

    at_once: codes [B, K, n] are given out when there are so many, or the last.
    """

    def __init__(self, generation: Generation, decoder: "RequestDecoder"):
        self.generation, self.decoder = generation, decoder
        self.step: Step | None = None
        self.is_left = False  # nobody takes what it gives
        self.made: list[Tensor] = []
        self.given: queue.SimpleQueue[list[Tensor] | BaseException | None] = queue.SimpleQueue()

    def proceed(self, answer: Tensor | None, model: ManySteps) -> bool:
        """From the result of its step, [B, K] or [R, K, V], to its next one; False where there is none."""
        self.step = None
        try:
            while self.step is None:
                if self.is_left or self.decoder.is_cancelled:
                    raise Cancelled
                event = self.generation.send(answer)
                answer = None
                if isinstance(event, Step):
                    model.check(event.steps, event.cache)
                    self.step = event
                    continue
                self.made.append(event)
                if len(self.made) >= self.decoder.at_once:
                    self.given.put(self.made)
                    self.made = []
        except StopIteration:
            self.given.put(self.made)
            self.given.put(None)
        except BaseException as error:
            self.fail(error)
        return self.step is not None

    def fail(self, error: BaseException) -> None:
        """It ends here; what it gave is still taken."""
        self.generation.close()
        self.given.put(self.made)
        self.given.put(error)


class JoinedSteps:
    """Joins the steps of the requests that run at the moment.

    decoder: runs the steps. others_work: whether other threads of this process need cores at the moment; a step then
    takes half of them, because its threads wait for the last of them. num_steps, num_joined: steps of requests so far,
    and the joined steps that they took.
    """

    def __init__(
        self,
        decoder: ManySteps,
        max_rows: int = MAX_ROWS,
        others_work: Callable[[], bool] = lambda: False,
    ):
        self.decoder, self.max_rows, self._others_work = decoder, max_rows, others_work
        self.num_steps, self.num_joined = 0, 0
        self._num_threads = torch.get_num_threads()  # which every thread has of its own
        self._change = threading.Condition()
        self._new: list[_Run] = []
        self._running = False

    def request(self, at_once: int = 1) -> "RequestDecoder":
        """A decoder for one request. at_once: frames of a stream that it takes at a time."""
        return RequestDecoder(self, at_once)

    def average(self) -> float:
        """Steps of requests in a joined step so far."""
        return self.num_steps / max(1, self.num_joined)

    def start(self, run: _Run) -> None:
        """Let it run with the others; the thread that does so lives as long as there are some."""
        with self._change:
            self._new.append(run)
            if not self._running:
                self._running = True
                threading.Thread(target=self._serve, daemon=True).start()

    @torch.inference_mode()
    def _serve(self) -> None:
        runs: deque[_Run] = deque()  # that wait for a step, the longest first
        while True:
            with self._change:
                new, self._new = self._new, []
                self._running = bool(runs or new)
            if not self._running:
                return
            runs += [run for run in new if run.proceed(None, self.decoder)]
            taken = [runs.popleft() for _ in range(self._fitting(runs))]
            torch.set_num_threads(max(1, self._num_threads // (1 + self._others_work())))
            for run, answer in zip(taken, self._answers(taken), strict=True):
                if isinstance(answer, BaseException):
                    run.fail(answer)
                elif run.proceed(answer, self.decoder):
                    runs.append(run)

    def _fitting(self, runs: deque[_Run]) -> int:
        """How many steps of those at the front fit into the next joined one; one always does."""
        rows = itertools.accumulate(len(run.step.steps) for run in runs if run.step is not None)
        return sum(count == 0 or total <= self.max_rows for count, total in enumerate(rows))

    def _answers(self, runs: Sequence[_Run]) -> Sequence[Tensor | BaseException]:
        """The results of their steps, each [B, K] or [R, K, V], or what went wrong: in the model for all."""
        if not runs:
            return []
        steps = [run.step for run in runs if run.step is not None]
        self.num_steps += len(steps)
        self.num_joined += 1
        try:
            logits = self.decoder.step_all([(step.steps, step.cache) for step in steps])
            try:
                return _draw([*zip(logits, steps, strict=True)])
            except InputError:  # of the logits of one of them
                return [each for pair in zip(logits, steps, strict=True) for each in _draw_alone(pair)]
        except BaseException as error:
            return [error] * len(runs)


def _draw(pairs: Sequence[tuple[Tensor, Step]]) -> list[Tensor]:
    """Codes [B, K] of steps with draws, from their logits [R, K, V], and the logits of those without."""
    results = [logits for logits, _ in pairs]
    places = [place for place, (_, step) in enumerate(pairs) if step.draws is not None]
    draws = [step.draws for _, step in pairs if step.draws is not None]
    for place, codes in zip(places, draw_all([results[place] for place in places], draws), strict=True):
        results[place] = codes
    return results


def _draw_alone(pair: tuple[Tensor, Step]) -> Sequence[Tensor | InputError]:
    """As `_draw`, of logits [R, K, V] of one request: its error where they are no numbers."""
    try:
        return _draw([pair])
    except InputError as error:
        return [error]


class RequestDecoder:
    """A `sample.Decoder` whose steps run with those of other requests. `cancel` may be called from any thread."""

    independent_rows = True

    def __init__(self, joined: JoinedSteps, at_once: int):
        self._joined, self.at_once = joined, at_once
        self.is_cancelled = False
        self.config, self.special = joined.decoder.config, joined.decoder.special
        self.device = joined.decoder.device

    def cancel(self) -> None:
        """What runs, or begins, ends by `Cancelled` after the step that is under way."""
        self.is_cancelled = True

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> Any:
        """As the decoder's."""
        return self._joined.decoder.new_cache(condition, batch_size, max_steps)

    def step(self, steps: Tensor, cache: Any) -> Tensor:
        """As the decoder's: steps int64 [R, K, S] -> logits float32 [R, K, V]."""

        def one() -> Generation:
            logits = yield Step(steps, cache)
            assert logits is not None
            yield logits

        (logits,) = self.run(one())
        return logits

    def run(self, generation: Generation) -> Iterator[Tensor]:
        """As `sample.run`, with the others; who leaves early ends it."""
        run = _Run(generation, self)
        self._joined.start(run)
        try:
            while (given := run.given.get()) is not None:
                if isinstance(given, BaseException):
                    raise given
                yield from given
        finally:
            run.is_left = True
