"""What goes wrong in servers: clients that leave, read slowly or send bombs, and models that raise."""

import asyncio
import copy
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.interfaces import Generator
from audiogen.serve.api import Limits, create_app
from audiogen.serve.engine import Job, Order, Worker
from tests.serve.conftest import Live, Start

LONG = {"input": "rain", "audio_length": 600, "stream_format": "audio", "response_format": "pcm"}
SHORT = {"input": "a dog", "audio_length": 0.2, "seed": 5, "response_format": "pcm"}


def until(condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.005)


def short_alone(models: dict[str, Generator]) -> bytes:
    return audio.pcm16(models["tokens"].generate(["a dog"], 0.2, seed=5)[0])


def call_app(app: Any, receive: Any, send: Any) -> Any:
    """An ASGI call of /v1/audio/generate, whose client is `receive` and `send`."""
    headers = [(b"content-type", b"application/json"), (b"host", b"test")]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/audio/generate", "raw_path": b"/v1/audio/generate", "query_string": b"", "root_path": "",
        "scheme": "http", "headers": headers, "client": ("127.0.0.1", 1), "server": ("test", 80),
    }  # fmt: skip
    return app(scope, receive, send)


def test_a_client_that_leaves_mid_stream_frees_its_row_within_a_few_steps(live: Live) -> None:
    joined = live.worker.joined
    assert joined is not None
    with httpx.stream("POST", f"{live.url}/v1/audio/generate", json=LONG, timeout=60) as answer:
        next(answer.iter_raw())
        before = joined.num_steps
    until(lambda: live.worker.running == 0)
    assert joined.num_steps - before < 3000  # of 60,000; a step here takes well below a millisecond


def test_a_client_that_left_before_its_stream_began_has_no_order(start: Start) -> None:
    worker = start("tokens")
    messages = [
        {"type": "http.request", "body": json.dumps(LONG).encode(), "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        """Nobody reads what is said to a client that left."""

    asyncio.run(call_app(create_app({"tokens": worker}, Limits(600.0)), receive, send))
    until(lambda: worker.running == worker.queued == 0)
    assert worker.joined is not None and worker.joined.num_steps < 3000


def test_a_client_that_does_not_read_delays_nobody_and_is_cut_off(
    start: Start, models: dict[str, Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start("tokens", at_once=2, max_queue=1)
    app = create_app({"tokens": worker}, Limits(600.0))
    monkeypatch.setattr("audiogen.serve.watched.STALLED_S", 1.5)
    stalled = threading.Event()

    async def use() -> None:
        body = [{"type": "http.request", "body": json.dumps(LONG).encode(), "more_body": False}]

        async def receive() -> dict[str, Any]:
            return body.pop() if body else await asyncio.sleep(60, {})

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                stalled.set()
                await asyncio.sleep(60)

        slow = asyncio.create_task(call_app(app, receive, send))
        while not stalled.is_set():
            await asyncio.sleep(0.01)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            assert (await client.post("/v1/audio/generate", json=SHORT)).content == short_alone(models)
            app.state.api.most_streams = 1  # the sound of a stream that is not read is in memory
            refused = await client.post("/v1/audio/generate", json=SHORT | {"stream_format": "audio"})
            assert refused.status_code == 503 and "1 streams are read" in refused.json()["error"]["message"]
            with pytest.raises(RuntimeError, match="reads nothing"):
                await slow
            again = await client.post("/v1/audio/generate", json=SHORT | {"stream_format": "audio"})
            assert again.content == short_alone(models)

    asyncio.run(use())
    until(lambda: worker.running == 0)


def test_clients_that_leave_at_any_time_change_no_sound_of_others(
    live: Live, models: dict[str, Generator]
) -> None:
    async def ask(client: httpx.AsyncClient, number: int) -> bytes | None:
        leaves = number % 2
        asked = LONG | {"stream_format": [None, "audio"][number % 3 > 0]} if leaves else SHORT
        call = client.post(f"{live.url}/v1/audio/generate", json=asked)
        try:
            return (await asyncio.wait_for(call, 0.04 * number if leaves else 60)).content
        except asyncio.TimeoutError:
            return None

    async def all_at_once() -> list[bytes | None]:
        async with httpx.AsyncClient(timeout=60) as client:
            return await asyncio.gather(*(ask(client, number) for number in range(12)))

    answers = asyncio.run(all_at_once())
    assert answers[1::2] == [None] * 6 and answers[::2] == [short_alone(models)] * 6
    until(lambda: live.worker.running == live.worker.queued == 0)


@pytest.fixture
def broken(start: Start, models: dict[str, Generator]) -> Worker:
    """A model that raises after a block of 0.1 s where the seed is 13, and before it where that is 14."""
    generator: Any = copy.copy(models["tokens"])

    def stream(text: str, duration_s: float, *, seed: int, **given: Any) -> Iterator[torch.Tensor]:
        if seed == 14:
            raise MemoryError("inside")
        for block in type(generator).stream(
            generator, text, duration_s, seed=seed, **given | {"chunk_s": 0.1}
        ):
            yield block
            if seed == 13:
                raise MemoryError("inside")

    generator.stream = stream
    return start("tokens", generator=generator)


def test_a_model_that_raises_midway_ends_that_stream_alone(broken: Worker) -> None:
    app = create_app({"tokens": broken}, Limits())

    async def use() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            bad, good = SHORT | {"seed": 13, "stream_format": "sse"}, SHORT | {"stream_format": "audio"}
            answers = await asyncio.gather(
                *(client.post("/v1/audio/generate", json=asked, timeout=60) for asked in (bad, good, good))
            )
            events = [
                json.loads(line.removeprefix("data: ")) for line in answers[0].text.split("\n\n") if line
            ]
            assert [event["type"] for event in events] == ["speech.audio.delta", "speech.audio.error"]
            error = events[1]["error"]
            assert error["type"] == "server_error" and "inside" not in error["message"]
            assert [len(answer.content) for answer in answers[1:]] == [3200, 3200]
            with pytest.raises(RuntimeError, match="ended early"):  # before its Content-Length
                await client.post("/v1/audio/generate", json=bad | {"stream_format": "audio"}, timeout=60)

    asyncio.run(use())


@pytest.mark.parametrize("form", ["audio", "sse"])
def test_a_stream_that_fails_before_its_first_block_has_the_status_of_an_error(
    broken: Worker, form: str
) -> None:
    app = create_app({"tokens": broken}, Limits())

    async def use() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asked = SHORT | {"seed": 14, "stream_format": form}
            answer = await client.post("/v1/audio/generate", json=asked, timeout=60)
            assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
            good = await client.post("/v1/audio/generate", json=asked | {"seed": 0}, timeout=60)
            assert good.status_code == 200

    asyncio.run(use())
    assert broken.running == broken.queued == 0


def test_a_client_may_have_so_many_waiting_orders_and_others_go_on(
    live: Live, models: dict[str, Generator]
) -> None:
    live.worker.max_own = 1
    ordered = []
    with httpx.Client(base_url=f"{live.url}/v1/audio", timeout=60) as client:
        while (answer := client.post("/jobs", json=LONG | {"stream_format": None})).status_code == 202:
            ordered.append(answer.json()["id"])
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        other = Job(Order("a dog", 0.2, 5, client="elsewhere"), lambda job: None)
        live.worker.submit(other)
        for each in ordered:
            assert client.delete(f"/jobs/{each}").status_code == 204
    until(lambda: other.is_over)
    assert other.sound is not None and audio.pcm16(other.sound) == short_alone(models)


def silence(seconds: int, rate: int = 8000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, channels, "PCM_16", format="FLAC") as sound:
        for _ in range(seconds):
            sound.write(torch.zeros(rate, channels).numpy())
    return file.getvalue()


def test_a_small_file_that_unpacks_to_much_is_refused(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    longest, read = [0], soundfile.SoundFile.read

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        samples = read(self, *given, **more)
        longest[0] = max(longest[0], samples.size)
        return samples

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    hours, wide = silence(7200, 4000), silence(2, 655_350, 8)
    assert len(hours) < 200_000 and len(wide) < 100_000
    for path in ("edit", "encode"):
        for data, message in ((hours, "more than 600 s"), (wide, "5242800 samples a second")):
            answer = httpx.post(f"{live.url}/v1/audio/{path}", files={"file": data}, timeout=60)
            assert answer.status_code == 400 and message in answer.json()["error"]["message"], answer.text
    assert longest[0] <= 600 * 4000 + 1


def test_long_prompts_and_names_like_paths_do_no_harm(live: Live) -> None:
    asked = {"audio_length": 0.1, "response_format": "pcm"}
    answer = httpx.post(f"{live.url}/v1/audio/generate", json=asked | {"input": "rain " * 2000}, timeout=60)
    assert answer.status_code == 200 and len(answer.content) == 1600
    for name in ("../../../etc/passwd", "/etc/passwd", "tokens/../tokens", "tokens\0"):
        answer = httpx.post(f"{live.url}/v1/audio/generate", json={"input": "rain", "model": name})
        assert answer.status_code == 404 and answer.json()["error"]["param"] == "model"
    for path in (
        "/v1/audio/jobs/..%2f..%2fetc%2fpasswd",
        "/v1/audio/jobs/%2e%2e/content",
        "/..%2f..%2fetc/passwd",
    ):
        answer = httpx.get(f"{live.url}{path}")
        assert answer.status_code == 404 and answer.json()["error"]["type"] == "invalid_request_error"
