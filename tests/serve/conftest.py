"""Small generators behind the server's app."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from audiogen.generators.load import load
from audiogen.interfaces import Generator
from audiogen.serve.engine import Worker

pytest.importorskip("fastapi", reason="needs the extra serve")

Start = Callable[..., Worker]


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
