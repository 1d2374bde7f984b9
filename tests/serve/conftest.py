"""Small generators behind the server's app."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from audiogen.generators.load import load
from audiogen.interfaces import Generator
from audiogen.serve.engine import Worker

pytest.importorskip("fastapi", reason="needs the extra serve")

Start = Callable[..., Worker]


class Live(NamedTuple):
    """A server that listens, in this process: its address, and the worker of its language model."""

    url: str
    worker: Worker


@pytest.fixture(scope="session")
def models(tiny_model: Path, tiny_latent: Path) -> dict[str, Generator]:
    """A language model and a latent-diffusion system."""
    return {"tokens": load(tiny_model, "cpu", "float32"), "latent": load(tiny_latent, "cpu", "float32")}


@pytest.fixture
def start(models: dict[str, Generator]) -> Iterator[Start]:
    """Starts a worker for one of the models, which ends with the test."""
    workers = []

    def start(name: str, at_once: int = 4, max_queue: int = 16, generator: Generator | None = None) -> Worker:
        workers.append(Worker(name, generator or models[name], at_once, max_queue))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop(20)


@pytest.fixture
def live(start: Start) -> Iterator[Live]:
    """A server of the language model, 4 sounds at once, 64 waiting, of up to 600 s."""
    import uvicorn

    from audiogen.serve.api import Limits, create_app

    worker = start("tokens", at_once=4, max_queue=64)
    config = uvicorn.Config(create_app({"tokens": worker}, Limits(600.0)), port=0, log_level="critical")
    server, listener = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", worker)
    server.should_exit = True
    thread.join(30)
