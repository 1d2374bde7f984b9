"""Orders of many clients on a few models: a bounded queue, a place in it, a course that can be watched and ended.

A language model runs many orders at once, whose steps are joined (`lm.joined`); a latent-diffusion system makes orders
of equal settings in one batch. Either way a sound is, bit for bit, the one that its order has alone.
"""

import copy
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.finish import Finish
from audiogen.generators import request as requests
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Codec, Edit, Generator, Sampling
from audiogen.lm.joined import Cancelled, JoinedSteps, RequestDecoder

State = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("queued", "running")
# Of sound in a stream's first block and in those after it: short ones come soon, and cost the codec half as much again
# as long ones. While a block plays the next is made.
BLOCKS_S = 1.0, 2.0


class Full(Exception):
    """The queue has no place. own: orders of the client that wait, where these are too many; else 0."""

    def __init__(self, own: int = 0):
        super().__init__()
        self.own = own


@dataclass(frozen=True)
class Order:
    """A sound that a client wants.

    prompt: audio [C, N] to continue, and its sample rate. is_streamed: it comes in blocks while it is made. client:
    whoever asks; each client's turn comes once in a round. finish: what becomes of the sound before it is sent.
    prompt_metadata: whether its file says what was asked for. uploaded: SHA-256 of the file that it is made of.
    """

    text: str | None
    duration_s: float
    seed: int
    guidance: float | None = None
    sampling: Sampling = Sampling()  # noqa: RUF009 (frozen)
    prompt: tuple[Tensor, int] | None = None
    edit: Edit | None = None
    is_streamed: bool = False
    client: str = ""
    finish: Finish = Finish()  # noqa: RUF009 (frozen)
    prompt_metadata: bool = True
    uploaded: str = ""

    @property
    def batch(self) -> object:
        """Orders of a latent-diffusion system with equal values run in one batch."""
        return self.duration_s, self.guidance, self.sampling, id(self.edit) if self.edit else None


@dataclass
class Job:
    """An order and its course. blocks: audio [C, n] of a streamed one; sound: [C, N] of any other, at the end.

    notify: called after every change, from another thread; it should be quick.
    """

    order: Order
    notify: Callable[["Job"], None]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    state: State = "queued"
    progress: float = 0.0
    blocks: deque[Tensor] = field(default_factory=deque)
    sound: Tensor | None = None
    error: Exception | None = None
    created_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None  # from its creation to the first sound
    ended_s: float | None = None  # when it ended
    decoder: RequestDecoder | None = None
    _change: threading.Lock = field(
        default_factory=threading.Lock
    )  # of the state, by clients and by the worker

    @property
    def is_over(self) -> bool:
        return self.state not in OPEN

    def begin(self) -> bool:
        """It runs from now on; False where it was cancelled while it waited."""
        with self._change:
            if self.state == "queued":
                self.state = "running"
            return self.state == "running"

    def cancel(self) -> None:
        """End it where it is; its place is free after the step that runs."""
        with self._change:
            before = self.state
            if before in OPEN:
                self.state = "cancelled"
        if before == "queued":
            self.end("cancelled")
        elif before == "running" and self.decoder is not None:
            self.decoder.cancel()

    def proceed(self, share: float) -> None:
        """So much of it is done, 0 to 1; `Cancelled` where it was."""
        if self.state == "cancelled":
            raise Cancelled
        self.progress = share
        self.notify(self)

    def add(self, block: Tensor) -> None:
        """A block [C, n] of its sound came."""
        self.first_s = self.first_s or time.monotonic() - self.created_s
        self.blocks.append(block)
        self.notify(self)

    def end(self, state: State, error: Exception | None = None) -> None:
        """It is over; a job that was cancelled stays so."""
        self.error, self.ended_s = error, time.monotonic()  # before the state, which clients read first
        with self._change:
            if self.state != "cancelled":
                self.state = state
        self.notify(self)


class Worker:
    """A model, its queue, and the threads that take orders from it.

    at_once: orders that run together. max_queue: orders that wait; max_own: of one client. wait_s: how long a batch of
    a latent-diffusion system waits for more orders; a language model's may come at any step.
    running, queued: how many there are.
    """

    def __init__(self, name: str, generator: Generator, at_once: int, max_queue: int, wait_s: float = 0.0):
        self.name, self.generator, self.at_once, self.max_queue = name, generator, at_once, max_queue
        self.wait_s, self.num_threads = wait_s, torch.get_num_threads()
        self.max_own = max_queue
        self.joined: JoinedSteps | None = None
        self.codec: Codec | None = None  # of a language model whose requests are joined
        if isinstance(generator, AudioGen) and hasattr(generator.decoder, "step_all"):
            turns = Turns(generator.codec, max(1, self.num_threads // 2))
            self.joined = JoinedSteps(generator.decoder, others_work=lambda: turns.running > 0)  # type: ignore[arg-type]
            self.codec = turns.codec
        self.count: Callable[[Job], None] = lambda job: None  # called for every job that is done
        self._queues: dict[str, deque[Job]] = {}  # of each client, in the order of their turns
        self._change = threading.Condition()
        self._stopping = False
        self.running = 0
        count = at_once if self.joined else 1
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    @property
    def streams(self) -> bool:
        """Whether sounds come while they are made."""
        return isinstance(self.generator, AudioGen)

    @property
    def queued(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def is_full(self) -> bool:
        """Whether it takes no order now."""
        return self._stopping or self.queued >= self.max_queue

    def place(self, job: Job) -> int:
        """How many orders come before a queued one; 0 where it runs or is over."""
        with self._change:
            return next((place for place, each in enumerate(self._in_turn()) if each is job), 0)

    def _in_turn(self) -> list[Job]:
        """The queue: first the first of each client, then their second ones."""
        queues = [list(queue) for queue in self._queues.values()]
        rounds = range(max(map(len, queues), default=0))
        return [queue[turn] for turn in rounds for queue in queues if turn < len(queue)]

    def check(self, order: Order) -> None:
        """Raise InputError for an order that this model cannot carry out; nothing is generated."""
        requests.check(
            self.generator, [order.text], order.duration_s, order.seed, order.guidance, order.sampling
        )
        latent = not self.streams
        draws = requests.LM_DRAWS if latent else requests.LATENT_DRAWS
        requests.refuse(
            requests.given(order.sampling, draws)
            | ({"prompt": order.prompt, "stream": order.is_streamed} if latent else {}),
            requests.FAMILIES[latent],
        )
        if order.edit is not None:
            order.edit.check_duration(order.duration_s)
            if not latent:
                infills = isinstance(self.generator, AudioGen) and self.generator.config.infills
                requests.given_edit(order.edit, order.prompt, [order.duration_s], infills, order.sampling)
        requests.check_loop(order.sampling, prompt=order.prompt, edit=order.edit, stream=order.is_streamed)
        if order.prompt is not None:
            requests.check_prompt(order.prompt, [order.duration_s])
        if order.edit is None and order.text is None and order.prompt is None:
            raise InputError("text is missing; give words")

    def submit(self, job: Job) -> None:
        """Put a checked order into the queue; `Full` where there is no place, or none for this client."""
        with self._change:
            self._drop_cancelled()
            own = len(self._queues.get(job.order.client, ()))
            if own >= self.max_own and own and not self._stopping:
                raise Full(own)
            if self.is_full:
                raise Full
            self._queues.setdefault(job.order.client, deque()).append(job)
            self._change.notify()

    def stop(self, timeout_s: float) -> None:
        """Take no new orders, cancel those that wait, and let those that run end, for so long."""
        with self._change:
            self._stopping = True
            waiting, self._queues = self._in_turn(), {}
            self._change.notify_all()
        for job in waiting:
            job.cancel()
        latest = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, latest - time.monotonic()))

    def _take(self) -> list[Job]:
        """The next order, with others that fit into its batch; none when the server stops."""
        with self._change:
            while not (waiting := self._drop_cancelled()):
                if self._stopping:
                    return []
                self._change.wait()
            taken = waiting[:1]
            if not self.streams:
                if self.wait_s and len(waiting) < self.at_once:
                    self._change.wait_for(lambda: self.queued >= self.at_once, self.wait_s)
                    if not (waiting := self._drop_cancelled()):
                        return self._take()
                alike = [job for job in waiting if job.order.batch == waiting[0].order.batch]
                taken = alike[: self.at_once]
            for job in taken:
                self._remove(job)
            taken = [job for job in taken if job.begin()]
            self.running += len(taken)
            return taken or self._take()

    def _drop_cancelled(self) -> list[Job]:
        """Those that still wait, in turn."""
        for queue in self._queues.values():
            for job in [job for job in queue if job.is_over]:
                queue.remove(job)
        self._queues = {client: queue for client, queue in self._queues.items() if queue}
        return self._in_turn()

    def _remove(self, job: Job) -> None:
        """Take a job out of the queue; its client's next turn comes after all others'."""
        queue = self._queues.pop(job.order.client)
        queue.remove(job)
        if queue:
            self._queues[job.order.client] = queue

    def _serve(self) -> None:
        while jobs := self._take():
            error: Exception | None = None
            try:
                for job in jobs:
                    job.notify(job)
                self._run(jobs)
            except Cancelled:
                pass
            except Exception as raised:  # it fails alone: the thread goes on to the next order
                error = raised
            with self._change:
                self.running -= len(jobs)
            for job in jobs:
                job.end("done" if error is None else "failed", error)
                if job.state == "done":
                    self.count(job)

    def _run(self, jobs: Sequence[Job]) -> None:
        (first, *_), generator = jobs, self.generator
        order = first.order
        # Of this thread's own work. Many codecs at once are fastest with one each, and bits may depend on the number.
        torch.set_num_threads(1 if self.joined else self.num_threads)
        given: dict[str, Any] = {
            "guidance": order.guidance,
            "sampling": order.sampling,
            "prompt": order.prompt,
        }
        if not isinstance(generator, AudioGen):
            seeds = [job.order.seed for job in jobs]
            sounds = generator.generate(
                [job.order.text for job in jobs], order.duration_s, seed=seeds, edit=order.edit,
                progress=lambda share: proceed(jobs, share), **given,
            )  # fmt: skip
            for job, sound in zip(jobs, sounds, strict=True):
                job.sound = sound
            return
        if self.joined is None:
            self._speak(first, generator, given)
            return
        assert self.codec is not None
        own = copy.copy(generator)
        own.codec = self.codec
        own.decoder = first.decoder = self.joined.request(
            max(1, round(generator.frame_rate * BLOCKS_S[0] / 4))
        )
        first.proceed(0.0)  # it may have been cancelled before it had a decoder
        self._speak(first, own, given)

    def _speak(self, job: Job, generator: AudioGen, given: dict[str, Any]) -> None:
        """Make the sound of one order by a language model."""
        order = job.order
        if not order.is_streamed:
            (job.sound,) = generator.generate(
                [order.text],
                order.duration_s,
                seed=order.seed,
                edit=order.edit,
                progress=job.proceed,
                **given,
            )
            return
        done_s = 0.0
        with torch.inference_mode():
            blocks = generator.stream(
                order.text, order.duration_s, seed=order.seed, chunk_s=BLOCKS_S, **given
            )
            for block in blocks:
                done_s += block.shape[-1] / generator.sample_rate
                job.add(block)
                job.proceed(min(1.0, done_s / order.duration_s))


class Turns:
    """A copy of a codec, with its weights, that decodes for so many threads at a time; others wait.

    Python lets one thread run between two operations: a dozen that decode at once take twice the processor time.
    codec: the copy. running: how many threads decode at the moment.
    """

    def __init__(self, codec: Codec, at_once: int):
        self.codec, self.running = copy.copy(codec), 0
        free, change, decode = threading.Semaphore(at_once), threading.Lock(), codec.decode

        def wait_and_decode(*args: Any, **given: Any) -> Tensor:
            with free:
                with change:
                    self.running += 1
                try:
                    return decode(*args, **given)
                finally:
                    with change:
                        self.running -= 1

        self.codec.decode = wait_and_decode  # type: ignore[method-assign]


def proceed(jobs: Sequence[Job], share: float) -> None:
    """So much of a batch is done; `Cancelled` where nobody waits for any of it."""
    if all(job.state == "cancelled" for job in jobs):
        raise Cancelled
    for job in jobs:
        if job.state != "cancelled":
            job.proceed(share)
