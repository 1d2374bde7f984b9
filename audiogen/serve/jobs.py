"""Sounds that are ordered now and fetched later, for slow machines: kept in memory for a while, and nowhere else."""

import time
from dataclasses import dataclass
from typing import Any

from audiogen.serve.engine import Job, Worker
from audiogen.serve.refusals import Refused, failure

KEPT_S = 600.0  # after its end
STATES = {"queued": "queued", "running": "in_progress", "done": "completed", "failed": "failed"}


@dataclass(frozen=True)
class Kept:
    """A job, the model that has it and the format that it was ordered in."""

    worker: Worker
    job: Job
    form: str

    def status(self) -> dict[str, Any]:
        """As clients see it; place: how many come before it."""
        job = self.job
        shown: dict[str, Any] = {
            "id": job.id, "object": "audio.job", "model": self.worker.name, "seed": job.order.seed,
            "status": STATES[job.state], "progress": 1.0 if job.state == "done" else job.progress,
            "place": self.worker.place(job),
        }  # fmt: skip
        return shown if job.state != "failed" else shown | {"error": failure(job).body}


class Jobs:
    """Those that clients may still fetch, at most `most`: the sounds that ended first make place."""

    def __init__(self, most: int):
        self.most = most
        self._kept: dict[str, Kept] = {}

    def add(self, kept: Kept) -> None:
        """Keep a job that was submitted."""
        self._drop(1)
        self._kept[kept.job.id] = kept

    def __getitem__(self, key: str) -> Kept:
        self._drop()
        if key not in self._kept:
            minutes = KEPT_S / 60
            raise Refused(
                404, f"there is no such job; a sound is kept for {minutes:g} minutes after its end", "id"
            )
        return self._kept[key]

    def remove(self, key: str) -> None:
        """Cancel a job, or drop its sound."""
        self[key].job.cancel()
        del self._kept[key]

    def _drop(self, new: int = 0) -> None:
        """Those that ended long ago, and as many more as it takes for `new` ones to have a place."""
        latest = time.monotonic() - KEPT_S
        ended = sorted((kept.job.ended_s, key) for key, kept in self._kept.items() if kept.job.ended_s)
        excess = max(0, len(self._kept) + new - self.most)
        for place, (ended_s, key) in enumerate(ended):
            if place < excess or ended_s < latest:
                del self._kept[key]
