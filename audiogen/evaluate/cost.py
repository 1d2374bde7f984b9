"""What a generator costs: parameters, model evaluations, wall time, memory; and how many steps a time budget buys."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Generator, Sampling

BATCH = 8  # the larger batch whose real-time factor is measured
MOST_STEPS = 1000  # that a budget may buy: the length of the usual training noise schedule

Clock = Callable[[], float]  # seconds, as time.perf_counter


class Job(NamedTuple):
    """What is timed: sounds of texts, repeated or cut to the batch (a language model takes longer for longer ones)."""

    generator: Generator
    texts: list[str]
    duration_s: float
    guidance: float
    clock: Clock = time.perf_counter

    def generate(self, texts: list[str], seed: int, steps: int | None) -> Tensor:
        """Sounds [B, C, N] on the CPU; row b has seed + b."""
        made = self.generator.generate(
            texts, self.duration_s, guidance=self.guidance, seed=seed, sampling=Sampling(steps=steps)
        )
        return made.cpu()

    def wall_s(self, batch: int, steps: int | None) -> float:
        """Seconds that one batch takes, its sound back on the CPU."""
        rows = [self.texts[row % len(self.texts)] for row in range(batch)]
        began = self.clock()
        sound = self.generate(rows, 0, steps)
        elapsed = self.clock() - began
        if not sound.isfinite().all():
            raise InputError("the model generates samples that are not finite (NaN or infinity)")
        return elapsed


def measure(job: Job, steps: int | None = None) -> dict[str, Any]:
    """What one clip costs on this machine, by one clip and then a batch of 8, after a clip that warms up.

    num_parameters: of all that runs from text to audio. num_evaluations: of the model for one clip; a guided step
    counts as two. clip_s: wall seconds for one clip alone. real_time_factor, real_time_factor_8: wall seconds for a
    second of sound, alone and in a batch of 8; below 1 is faster than real time. peak_memory_mb: 10^6 bytes while
    generating the batch: on a GPU those torch had allocated there, else those of the whole process; None where the
    system does not say.
    """
    job.wall_s(1, steps)
    reset_peak_memory()
    alone_s, together_s = job.wall_s(1, steps), job.wall_s(BATCH, steps)
    return {
        "num_parameters": job.generator.num_parameters,
        "num_evaluations": job.generator.num_evaluations(job.duration_s, job.guidance, steps),
        "clip_s": alone_s,
        "real_time_factor": alone_s / job.duration_s,
        "real_time_factor_8": together_s / (BATCH * job.duration_s),
        "peak_memory_mb": peak_memory_mb(),
    }


def fit_steps(job: Job, budget_s: float) -> int | None:
    """The largest number of steps with which one clip takes at most budget_s, by two timed runs; at least 1.

    The two runs, of 1 and of some steps more, come after one that warms up. None for a generator without steps.
    """
    default = job.generator.steps_at_most(None)
    if default is None:
        return None
    job.wall_s(1, 1)
    one_s = job.wall_s(1, 1)
    # Enough for the slope to stand out, yet no more than the budget allows: a step may be dear.
    few = max(2, min(default, round(budget_s / max(one_s, 1e-6))))
    few = max(2, job.generator.steps_at_most(few) or 0)
    within = steps_within(budget_s, (1, one_s), (few, job.wall_s(1, few)), default)
    return job.generator.steps_at_most(within)


def steps_within(budget_s: float, a: tuple[int, float], b: tuple[int, float], default: int) -> int:
    """Steps on the line through two points (steps, seconds) that reach the budget: 1 to 1000.

    A line that does not rise, as noise may make of runs too short to measure, gives the default.
    """
    slope = (b[1] - a[1]) / (b[0] - a[0])
    if slope <= 0:
        return default
    # Rounded, so that a budget that holds exactly n steps buys n.
    return min(MOST_STEPS, max(1, math.floor(round(a[0] + (budget_s - a[1]) / slope, 9))))


def machine() -> str:
    """Where torch computes: the GPU if one is in use, else the processor's architecture and the threads."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def reset_peak_memory() -> None:
    """Count the peak from here on, where the system allows it: on CUDA and on Linux."""
    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    with suppress(OSError):  # elsewhere the peak is that since the process began
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set, see proc(5)


def peak_memory_mb() -> float | None:
    """Peak since `reset_peak_memory`, 10^6 bytes: of torch on the GPU where one is in use, else of the process."""
    if torch.cuda.is_initialized():
        numbers = range(torch.cuda.device_count())  # a model may be on another one than the first
        if allocated := max(map(torch.cuda.max_memory_allocated, numbers), default=0):
            return allocated / 1e6
    with suppress(OSError, KeyError):
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
