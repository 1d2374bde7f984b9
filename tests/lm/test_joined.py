"""Requests that share a language model have the codes that each has alone, whatever the others do."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.joined import Cancelled, JoinedSteps, RequestDecoder
from audiogen.lm.kernels.native import NativeLM
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.sample import (
    Decoder,
    Draws,
    Generation,
    Step,
    TokenRequest,
    TokenSampling,
    generate_tokens,
)
from audiogen.lm.stream import stream_tokens
from audiogen.native import library

K, V, DIM = 3, 20, 24
Make = Callable[[Decoder], Tensor]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8"])
def fast(request: pytest.FixtureRequest) -> NativeLM:
    if library.library() is None:
        pytest.skip("no C++ compiler")
    torch.manual_seed(0)
    return NativeLM(TokenLM(LMConfig(K, V, DIM, 2, 4)).eval(), request.param)


def text(length: int) -> Condition:
    return Condition(torch.randn(1, length, DIM), torch.ones(1, length, dtype=torch.bool))


def requests() -> list[Make]:
    """Whole sounds and streams of many lengths, guided or not, with prompts, within a window and past it."""
    prompt = torch.randint(0, V, (1, K, 5))
    whole = [
        (TokenRequest(text(3), 30, [1]), TokenSampling()),
        (TokenRequest(text(9), 12, [2], guidance=1.0), TokenSampling(temperature=0.7, top_k=3)),
        (TokenRequest(None, 25, [3]), TokenSampling(top_p=0.8)),
        (TokenRequest(text(1), 40, [4], 2.0, text(4), prompt), TokenSampling()),
    ]
    streamed = [TokenRequest(text(5), 50, [5]), TokenRequest(text(2), 17, [6], prompt=prompt)]

    def run(given: TokenRequest, sampling: TokenSampling) -> Make:
        return lambda decoder: generate_tokens(decoder, given, sampling, max_frames=24)

    def stream(given: TokenRequest) -> Make:
        return lambda decoder: torch.cat(list(stream_tokens(decoder, given, max_frames=24)), -1)

    return [run(*each) for each in whole] + [stream(each) for each in streamed]


def at_once(joined: JoinedSteps, makes: Sequence[Make]) -> list[Any]:
    """The codes, or what was raised, of each request in a thread of its own; they begin a moment apart."""
    results: list[Any] = [None] * len(makes)

    def run(index: int) -> None:
        time.sleep(0.003 * (index % 5))
        try:
            results[index] = makes[index](joined.request(at_once=index % 3 + 1))
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(makes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return results


def test_codes_are_those_of_each_request_alone(fast: NativeLM) -> None:
    makes = requests()
    alone = [make(fast) for make in makes]
    joined = JoinedSteps(fast)
    for found, expected in zip(at_once(joined, makes * 3), alone * 3, strict=True):
        assert torch.equal(found, expected)
    assert joined.num_joined < 0.7 * joined.num_steps
    assert torch.equal(at_once(joined, makes[:1])[0], alone[0])  # after a pause


def test_a_joined_step_has_a_limit(fast: NativeLM) -> None:
    makes = requests()
    alone = [make(fast) for make in makes]
    joined = JoinedSteps(fast, max_rows=1)
    for make, expected in zip(makes, alone, strict=True):
        assert torch.equal(at_once(joined, [make])[0], expected)
    assert joined.num_joined == joined.num_steps
    for found, expected in zip(at_once(joined, makes), alone, strict=True):
        assert torch.equal(found, expected)
    assert joined.num_joined == joined.num_steps  # a request is at least a row


def test_a_request_that_fails_or_is_cancelled_fails_alone(fast: NativeLM) -> None:
    makes = requests()
    alone = [make(fast) for make in makes]

    def broken(decoder: Decoder) -> Tensor:
        cache = decoder.new_cache(None, 1, 4)
        decoder.step(torch.zeros(1, K, 3, dtype=torch.long), cache)
        return decoder.step(torch.full((1, K, 1), V + 1), cache)

    def cancelled(decoder: Decoder) -> Tensor:
        assert isinstance(decoder, RequestDecoder)
        frames = stream_tokens(decoder, TokenRequest(text(2), None, [0]), max_frames=24)
        for count, _ in enumerate(frames):
            if count == 4:
                decoder.cancel()
        raise AssertionError

    *whole, first, second = at_once(JoinedSteps(fast), [*makes, broken, cancelled])
    assert all(torch.equal(found, expected) for found, expected in zip(whole, alone, strict=True))
    assert isinstance(first, IndexError) and "codes from" in str(first)
    assert isinstance(second, Cancelled)


def test_an_error_of_the_model_reaches_all_and_ends_nothing_else(
    fast: NativeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined, makes = JoinedSteps(fast), requests()

    def fails(calls: Any) -> list[Tensor]:
        raise MemoryError("no memory")

    with monkeypatch.context() as broken:
        broken.setattr(fast, "step_all", fails)
        assert all(isinstance(result, MemoryError) for result in at_once(joined, makes))
    assert torch.equal(at_once(joined, makes)[0], makes[0](fast))


def test_logits_that_are_no_numbers_fail_their_request_alone(
    fast: NativeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two requests with one way to draw, in one joined step; the model gives the second's rows no numbers."""
    plain = fast.step_all

    def poisoned(calls: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
        logits = plain(calls)
        return [
            own * float("nan") if cache.max_steps == 20 else own
            for own, (_, cache) in zip(logits, calls, strict=True)
        ]

    monkeypatch.setattr(fast, "step_all", poisoned)
    joined, first_runs, both_there = JoinedSteps(fast), threading.Event(), threading.Event()
    sizes: list[int] = []
    monkeypatch.setattr(fast, "check", lambda steps, cache: sizes.append(cache.max_steps))

    def generation(max_steps: int) -> Generation:
        cache, draws = (
            fast.new_cache(None, 1, max_steps),
            Draws(None, TokenSampling(), torch.full((1, K), 0.5)),
        )
        steps = torch.full((1, K, 1), V)
        if max_steps == 19:
            first_runs.set()
            both_there.wait(60)
            yield Step(steps, cache)
        codes = yield Step(steps, cache, draws)
        assert codes is not None
        yield codes

    frames = [joined.request().run(generation(size)) for size in (19, 20)]
    found: list[Any] = [None, None]

    def run(index: int) -> None:
        try:
            (found[index],) = frames[index]
        except InputError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    threads[0].start()
    assert first_runs.wait(60)
    threads[1].start()
    while not joined._new:
        time.sleep(0.001)
    both_there.set()
    for thread in threads:
        thread.join(60)
    assert sizes == [19, 19, 20] and (joined.num_steps, joined.num_joined) == (3, 2)
    assert found[0].shape == (1, K) and "logits that are not finite" in str(found[1])


def test_a_step_leaves_half_of_the_cores_to_others_that_work(
    fast: NativeLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, counts, working = fast.step_all, [], [False]

    def counted(calls: Sequence[tuple[Tensor, Any]]) -> list[Tensor]:
        counts.append(torch.get_num_threads())
        return plain(calls)

    monkeypatch.setattr(fast, "step_all", counted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    joined = JoinedSteps(fast, others_work=lambda: working[0])
    torch.set_num_threads(before)
    frames = joined.request().run(_alternating(fast, working))
    assert len(list(frames)) == 1 and counts == [2, 1, 2]


def _alternating(fast: NativeLM, working: list[bool]) -> Generation:
    """Three steps; others work during the second."""
    cache = fast.new_cache(None, 1, 3)
    for value in (False, True, False):
        working[0] = value
        logits = yield Step(torch.full((1, K, 1), V), cache)
    assert logits is not None
    yield logits


def test_who_leaves_a_stream_ends_it_and_a_decoder_serves_several_generations(fast: NativeLM) -> None:
    joined = JoinedSteps(fast)
    decoder = joined.request()
    frames = stream_tokens(decoder, TokenRequest(text(2), None, [0]), max_frames=24)
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    for make in requests()[:2]:
        assert torch.equal(make(decoder), make(fast))
    latest = time.monotonic() + 60
    while joined._running and time.monotonic() < latest:
        time.sleep(0.001)
    assert not joined._running
