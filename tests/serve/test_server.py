"""The server as a process: it says where it is, sounds come while they are made, clients leave, signals come."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Start  # noqa: F401 (skips without the extra)

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "audiogen.serve", "--no-page", *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


@pytest.fixture
def server(tiny_model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of one small language model, and its address."""
    process = serve("--model", str(tiny_model), "--port", "0", "--max-duration", "600", "--dtype", "float32")
    assert process.stdout is not None
    address = process.stdout.readline().strip().removesuffix("/docs")
    assert address.startswith("http://127.0.0.1:"), process.communicate()[1]
    yield process, address
    process.kill()
    process.communicate()


def running(address: str) -> float:
    lines = httpx.get(f"{address}/metrics", timeout=60).text.splitlines()
    return float(next(line for line in lines if line.startswith("audiogen_running{")).split()[-1])


def until(condition: Any) -> None:
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.02)


def test_a_stream_begins_before_it_ends_and_a_client_that_leaves_frees_its_place(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = server
    asked = {"input": "rain", "audio_length": 600, "stream_format": "audio", "response_format": "pcm"}
    with httpx.stream("POST", f"{address}/v1/audio/generate", json=asked, timeout=60) as answer:
        pieces = answer.iter_bytes()
        assert len(next(pieces)) > 100 and len(next(pieces)) > 100
        assert running(address) == 1
    until(lambda: running(address) == 0)
    with pytest.raises(httpx.ReadTimeout):  # a whole sound: the client leaves while it waits
        httpx.post(f"{address}/v1/audio/generate", json=asked | {"stream_format": None}, timeout=0.5)
    until(lambda: running(address) == 0)
    short = {"input": "rain", "audio_length": 0.5, "response_format": "pcm"}
    assert len(httpx.post(f"{address}/v1/audio/generate", json=short, timeout=60).content) == 8000
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in errors, errors


def test_a_signal_under_load_lets_what_is_ordered_end(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    asked = {"input": "rain", "audio_length": 10, "response_format": "pcm", "seed": 1}
    answers: list[httpx.Response] = []

    def ask(streams: bool) -> None:
        given = asked | ({"stream_format": "audio"} if streams else {})
        answers.append(httpx.post(f"{address}/v1/audio/generate", json=given, timeout=90))

    threads = [threading.Thread(target=ask, args=(number % 2 == 0,)) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: running(address) == 6)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(90)
    assert [(answer.status_code, len(answer.content)) for answer in answers] == [(200, 10 * 16000)] * 6
    _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors


def test_openapi_names_every_endpoint_and_the_commands_mistakes_are_one_line(tiny_model: Path) -> None:
    from audiogen.generators.load import load
    from audiogen.serve.api import Limits, create_app
    from audiogen.serve.engine import Worker

    worker = Worker("tokens", load(tiny_model, "cpu", "float32"), 1, 1)
    paths = json.loads(json.dumps(create_app({"tokens": worker}, Limits()).openapi()))["paths"]
    worker.stop(5)
    named = ("generate", "generate/batch", "edit", "speech")
    assert {
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        *(f"/v1/audio/{name}" for name in named),
    } <= paths.keys()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for options, message in (
            (["--max-batch", "0"], "--max-batch is 0; allowed: 1 and more"),
            (["--max-duration", "9999"], "--max-duration is 9999; allowed"),
            (["--model", "nosuch"], "nosuch"),
            (["--model", str(tiny_model), "--max-queue", "100000"], "lower --max-duration"),
            (
                ["--model", str(tiny_model), "--port", port],
                f"--port {port} of 127.0.0.1 cannot be listened at",
            ),
        ):
            process = serve(*options)
            _, errors = process.communicate(timeout=120)
            lines = [line for line in errors.splitlines() if line.startswith("error: ")]
            assert process.returncode == 2 and len(lines) == 1 and message in lines[0], errors
