"""What Prometheus reads of a server."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from audiogen.serve.engine import Job, Worker

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server, apart from those of other servers in the process."""

    def __init__(self, workers: Mapping[str, Worker]):
        self._registry = CollectorRegistry()
        common: Any = {"labelnames": ["model"], "registry": self._registry}
        self._sounds = Counter("audiogen_sounds", "sounds that were made", **common)
        self._seconds = Counter("audiogen_sound_seconds", "seconds of sound that were made", **common)
        self._first = Histogram(
            "audiogen_first_sound_seconds", "from a request to its first sound", buckets=SECONDS, **common
        )
        self._whole = Histogram(
            "audiogen_request_seconds", "from a request to its end", buckets=SECONDS, **common
        )
        self._factor = Histogram(
            "audiogen_real_time_factor", "seconds of a request for a second of its sound",
            buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5), **common,
        )  # fmt: skip
        for model, worker in workers.items():
            worker.count = partial(self.count, model)
        for name, what in (("queued", "orders that wait"), ("running", "orders that run")):
            gauge = Gauge(f"audiogen_{name}", what, **common)
            for model, worker in workers.items():
                gauge.labels(model).set_function(partial(getattr, worker, name))
        steps = Gauge(
            "audiogen_rows_a_step", "requests in a joined step of a language model, on average", **common
        )
        for model, worker in workers.items():
            if (joined := worker.joined) is not None:
                steps.labels(model).set_function(joined.average)

    def count(self, model: str, job: Job) -> None:
        """A sound was made."""
        assert job.ended_s is not None
        spent_s = job.ended_s - job.created_s
        self._sounds.labels(model).inc()
        self._seconds.labels(model).inc(job.order.duration_s)
        self._first.labels(model).observe(spent_s if job.first_s is None else job.first_s)
        self._whole.labels(model).observe(spent_s)
        self._factor.labels(model).observe(spent_s / job.order.duration_s)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
