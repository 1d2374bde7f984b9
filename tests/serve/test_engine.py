"""Orders of many clients: each has the sound that it has alone, in its turn, and fails or ends alone."""

import copy
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.generators.request import num_samples
from audiogen.interfaces import Generator, Sampling
from audiogen.serve.engine import BLOCKS_S, Full, Job, Order, Turns, Worker
from tests.serve.conftest import Start


class Slow:
    """A generator that makes silence in steps, and counts; `go` lets it begin."""

    family, notes = "slow", ()
    sample_rate, channels, guidance, max_duration_s, device = 8000, 1, 3.0, 60.0, torch.device("cpu")

    def __init__(self) -> None:
        self.go, self.batches, self.steps = threading.Event(), [], 0  # type: ignore[var-annotated]

    def num_frames(self, duration_s: float) -> int:
        return round(duration_s * 100)

    def generate(self, texts: Sequence[str], duration_s: float, *, progress: Any, **_: Any) -> Tensor:
        self.batches.append(list(texts))
        self.go.wait(20)
        for step in range(200):
            if "broken" in texts:
                raise ZeroDivisionError("in the model")
            if "slow" not in texts and step == 2:
                break
            time.sleep(0.01)
            self.steps += 1
            progress(step / 200)
        return torch.zeros(len(texts), 1, round(duration_s * self.sample_rate))


def submit(worker: Worker, *orders: Order) -> list[Job]:
    jobs = [Job(order, lambda job: None) for order in orders]
    for job in jobs:
        worker.check(job.order)
        worker.submit(job)
    return jobs


def wait(*jobs: Job) -> None:
    latest = time.monotonic() + 60
    while not all(job.ended_s for job in jobs):
        assert time.monotonic() < latest
        time.sleep(0.005)


@pytest.mark.parametrize("name", ["tokens", "latent"])
def test_a_sound_is_that_of_its_order_alone(start: Start, models: dict[str, Generator], name: str) -> None:
    worker, generator = start(name), models[name]
    sampling = Sampling(steps=2) if name == "latent" else Sampling()
    orders = [Order("a dog", 0.3 + 0.1 * (seed % 2), seed, 2.0 + seed % 3, sampling) for seed in range(6)]
    jobs = submit(worker, *orders)
    wait(*jobs)
    for job in jobs:
        order = job.order
        (alone,) = generator.generate(
            [order.text], order.duration_s, seed=order.seed, guidance=order.guidance, sampling=sampling
        )
        assert job.state == "done" and job.sound is not None and torch.equal(job.sound, alone)
    if worker.joined is not None:
        assert worker.joined.average() > 1.5


def test_a_stream_comes_in_blocks_and_is_that_of_its_order_alone(
    start: Start, models: dict[str, Any]
) -> None:
    worker = start("tokens")
    orders = [Order("rain", 2.8, seed, is_streamed=True) for seed in range(3)]
    jobs = submit(worker, *orders, Order("rain", 0.8, 0))
    wait(*jobs)
    for job in jobs[:3]:
        alone = list(models["tokens"].stream("rain", 2.8, seed=job.order.seed, chunk_s=BLOCKS_S))
        assert len(job.blocks) == len(alone) > 1 and job.first_s is not None
        assert all(torch.equal(one, other) for one, other in zip(job.blocks, alone, strict=True))


@pytest.mark.parametrize(
    ("duration_s", "prompt_samples"),
    [(0.0001, None), (0.14, 1), (1.2346, 999), (3.21987, 49_381), (3.21987, None), (1.00005, 44_101)],
)
def test_a_stream_has_the_length_of_its_order(
    models: dict[str, Any], duration_s: float, prompt_samples: int | None
) -> None:
    generator = models["tokens"]
    prompt = None if prompt_samples is None else (0.1 * torch.randn(1, prompt_samples), 44_100)
    blocks = generator.stream("rain", duration_s, prompt=prompt, chunk_s=BLOCKS_S)
    assert sum(block.shape[-1] for block in blocks) == num_samples(duration_s, generator.sample_rate)


def test_clients_take_turns_and_a_full_queue_says_so(start: Start) -> None:
    slow = Slow()
    worker = start("slow", at_once=1, max_queue=5, generator=slow)  # type: ignore[arg-type]
    first = submit(worker, Order("first", 1.0, 0, client="a"))
    while not slow.batches:
        time.sleep(0.005)
    greedy = submit(worker, *(Order(f"a{number}", 1.0, 0, client="a") for number in range(4)))
    late = submit(worker, Order("b0", 1.0, 0, client="b"))
    assert [worker.place(job) for job in (*greedy, *late)] == [0, 2, 3, 4, 1]
    with pytest.raises(Full):
        submit(worker, Order("c", 1.0, 0))
    greedy[3].cancel()  # which makes a place
    more = submit(worker, Order("b1", 1.0, 0, client="b"))
    slow.go.set()
    wait(*first, *greedy, *late, *more)
    assert [text for batch in slow.batches for text in batch] == ["first", "a0", "b0", "a1", "b1", "a2"]


def test_equal_settings_share_a_batch(start: Start) -> None:
    slow = Slow()
    worker = start("slow", at_once=3, generator=slow)  # type: ignore[arg-type]
    first = submit(worker, Order("first", 1.0, 0))
    while not slow.batches:
        time.sleep(0.005)
    jobs = submit(worker, *(Order(text, 1.0 + (text == "c"), 0) for text in "abcde"))
    slow.go.set()
    wait(*first, *jobs)
    assert slow.batches == [["first"], ["a", "b", "d"], ["c"], ["e"]]


def test_a_batch_waits_for_more_for_as_long_as_is_given(start: Start) -> None:
    slow = Slow()
    slow.go.set()
    worker = start("slow", at_once=3, generator=slow)  # type: ignore[arg-type]
    worker.wait_s = 60.0
    wait(*submit(worker, *(Order(text, 1.0, 0) for text in "abc")))  # a full batch waits no longer
    worker.wait_s = 0.01
    wait(*submit(worker, Order("d", 1.0, 0)))
    worker.wait_s = 60.0
    gone, *rest = submit(worker, *(Order(text, 1.0, 0) for text in "ef"))
    gone.cancel()
    wait(*rest, *submit(worker, *(Order(text, 1.0, 0) for text in "gh")))
    assert slow.batches == [["a", "b", "c"], ["d"], ["f", "g", "h"]]


def test_a_codec_decodes_for_so_many_threads_at_a_time(models: dict[str, Generator]) -> None:
    codec = models["tokens"].codec  # type: ignore[attr-defined]
    own, running, most = copy.copy(codec), [0], [0]

    def decode(codes: Tensor) -> Tensor:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert 0 < turns.running <= 2
        time.sleep(0.02)
        running[0] -= 1
        return codes

    own.decode = decode
    turns = Turns(own, 2)
    threads = [threading.Thread(target=turns.codec.decode, args=(torch.zeros(1, 1, 1),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert most == [2] and turns.running == 0 and turns.codec.name == codec.name


def test_a_job_that_raises_fails_alone_and_a_cancelled_one_frees_its_place(start: Start) -> None:
    slow = Slow()
    slow.go.set()
    worker = start("slow", at_once=1, generator=slow)  # type: ignore[arg-type]
    broken, left, next_one = submit(worker, *(Order(text, 1.0, 0) for text in ("broken", "slow", "b")))
    while left.state != "running":
        time.sleep(0.005)
    began, before = time.monotonic(), slow.steps
    left.cancel()
    wait(next_one)
    assert slow.steps - before < 20 and time.monotonic() - began < 1.5
    assert [job.state for job in (broken, left, next_one)] == ["failed", "cancelled", "done"]
    assert isinstance(broken.error, ZeroDivisionError)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_cancelled_order_of_a_language_model_ends_at_the_next_step(
    start: Start, models: dict[str, Any], is_streamed: bool
) -> None:
    worker = start("tokens")
    left, stays = submit(
        worker, Order("rain", 600.0, 0, is_streamed=is_streamed), Order("a dog", 0.5, 1, 1.0, Sampling())
    )
    while left.decoder is None or left.state != "running":
        time.sleep(0.005)
    left.cancel()
    wait(left, stays)
    assert (left.state, stays.state, worker.running) == ("cancelled", "done", 0)
    assert stays.sound is not None
    assert torch.equal(stays.sound, models["tokens"].generate(["a dog"], 0.5, seed=1, guidance=1.0)[0])


def test_what_a_model_cannot_do_is_refused_before_it_waits(start: Start) -> None:
    tokens, latent = start("tokens"), start("latent")
    for worker, order, message in (
        (
            tokens,
            Order("rain", 1.0, 0, sampling=Sampling(steps=3)),
            "steps is not for a token language model",
        ),
        (latent, Order("rain", 1.0, 0, sampling=Sampling(top_k=3)), "top_k is not for a latent"),
        (latent, Order("rain", 1.0, 0, is_streamed=True), "stream is not for a latent"),
        (tokens, Order(" ", 1.0, 0), "text 0 is empty"),
        (tokens, Order(None, 1.0, 0), "text is missing"),
        (tokens, Order("rain", 1.0, 0, prompt=(torch.zeros(1, 16000), 8000)), "longer duration"),
    ):
        with pytest.raises(InputError, match=message):
            worker.check(order)


def test_a_worker_that_stops_ends_what_runs_and_takes_nothing_more(start: Start) -> None:
    slow = Slow()
    worker = start("slow", at_once=1, generator=slow)  # type: ignore[arg-type]
    runs, waits = submit(worker, Order("a", 1.0, 0), Order("b", 1.0, 0))
    while not slow.batches:
        time.sleep(0.005)
    slow.go.set()
    worker.stop(20)
    assert (runs.state, waits.state, slow.batches) == ("done", "cancelled", [["a"]])
    with pytest.raises(Full):
        submit(worker, Order("c", 1.0, 0))
