"""What a generator costs: parameters, model evaluations, wall time, memory; and how many steps a time budget buys."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.interfaces import Generator

BATCH = 8  # the larger batch whose real-time factor is measured
MOST_STEPS = 1000  # that a budget may buy: the length of the usual training noise schedule

Clock = Callable[[], float]  # seconds, as time.perf_counter


@runtime_checkable
class SteppedGenerator(Protocol):
    """A generator whose quality and time depend on a number of steps, as a diffusion sampler's do."""

    default_steps: int

    def generate(
        self, texts: Sequence[str | None], duration_s: float, *, guidance: float, seed: int, steps: int
    ) -> Tensor: ...

    def num_evaluations(self, duration_s: float, guidance: float, steps: int) -> int: ...

    def steps_at_most(self, steps: int) -> int:
        """The largest number up to `steps` that it can run: some samplers' grids leave gaps."""
        ...


class Cost(NamedTuple):
    """What one clip costs, measured on the machine at hand.

    num_parameters: of all that runs from text to audio. num_evaluations: of the model for one clip; a guided step
    counts as two. clip_s: wall seconds for one clip alone. real_time_factor, real_time_factor_8: wall seconds for a
    second of sound, alone and in a batch of 8; below 1 is faster than real time. peak_memory_mb: 10^6 bytes while
    generating the batch: on a GPU those torch had allocated there, else those of the whole process; None where the
    system does not say.
    """

    num_parameters: int
    num_evaluations: int
    clip_s: float
    real_time_factor: float
    real_time_factor_8: float
    peak_memory_mb: float | None


def generate(
    generator: Generator,
    texts: Sequence[str | None],
    duration_s: float,
    guidance: float,
    seed: int,
    steps: int | None = None,
) -> Tensor:
    """Audio [B, C, N] on the CPU; row b has seed + b. steps: None for a generator without that knob."""
    if steps is None:
        return generator.generate(texts, duration_s, guidance=guidance, seed=seed).cpu()
    assert isinstance(generator, SteppedGenerator)
    return generator.generate(texts, duration_s, guidance=guidance, seed=seed, steps=steps).cpu()


def num_evaluations(
    generator: Generator, duration_s: float, guidance: float, steps: int | None = None
) -> int:
    """Model evaluations for one clip; steps as in `generate`."""
    if steps is None:
        return generator.num_evaluations(duration_s, guidance)
    assert isinstance(generator, SteppedGenerator)
    return generator.num_evaluations(duration_s, guidance, steps)


def measure(
    generator: Generator,
    texts: Sequence[str | None],
    duration_s: float,
    guidance: float,
    steps: int | None = None,
    clock: Clock = time.perf_counter,
) -> Cost:
    """Generate one clip and then a batch of 8 of them, after a clip that warms up and is not counted.

    texts are repeated or cut to the batch: a language model takes longer for a longer text.
    """

    def wall_s(batch: int) -> float:
        rows = [texts[row % len(texts)] for row in range(batch)]
        return _wall_s(generator, rows, duration_s, guidance, steps, clock)

    wall_s(1)
    reset_peak_memory()
    alone_s, together_s = wall_s(1), wall_s(BATCH)
    return Cost(
        generator.num_parameters,
        num_evaluations(generator, duration_s, guidance, steps),
        alone_s,
        alone_s / duration_s,
        together_s / (BATCH * duration_s),
        peak_memory_mb(),
    )


def fit_steps(
    generator: Generator,
    text: str | None,
    duration_s: float,
    guidance: float,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> int:
    """The largest number of steps with which one clip takes at most budget_s, by two timed runs; at least 1.

    The two runs, of 1 and of some steps more, come after one that warms up.
    """
    assert isinstance(generator, SteppedGenerator)

    def wall_s(steps: int) -> float:
        return _wall_s(generator, [text], duration_s, guidance, steps, clock)

    wall_s(1)
    one_s = wall_s(1)
    # Enough for the slope to stand out, yet no more than the budget allows: a step is not known to be cheap.
    few = max(2, min(generator.default_steps, round(budget_s / max(one_s, 1e-6))))
    few = max(2, generator.steps_at_most(few))
    within = steps_within(budget_s, (1, one_s), (few, wall_s(few)), generator.default_steps)
    return generator.steps_at_most(within)


def steps_within(budget_s: float, a: tuple[int, float], b: tuple[int, float], default: int) -> int:
    """Steps on the line through two points (steps, seconds) that reach the budget: 1 to 1000.

    A line that does not rise, as noise may make of runs too short to measure, gives the default.
    """
    slope = (b[1] - a[1]) / (b[0] - a[0])
    if slope <= 0:
        return default
    # Rounded, so that a budget that holds exactly n steps buys n.
    return min(MOST_STEPS, max(1, math.floor(round(a[0] + (budget_s - a[1]) / slope, 9))))


def _wall_s(
    generator: Generator,
    texts: Sequence[str | None],
    duration_s: float,
    guidance: float,
    steps: int | None,
    clock: Clock,
) -> float:
    """Seconds that one call takes, its sound back on the CPU."""
    began = clock()
    sound = generate(generator, texts, duration_s, guidance, 0, steps)
    elapsed = clock() - began
    if not sound.isfinite().all():
        raise InputError("the model generates samples that are not finite (NaN or infinity)")
    return elapsed


def machine() -> str:
    """Where torch computes: the GPU if one is in use, else the processor's architecture and the threads."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def reset_peak_memory() -> None:
    """Forget earlier peaks, where the system allows it: on CUDA and on Linux."""
    if torch.cuda.is_initialized():
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak of the resident set, see proc(5)
    except OSError:
        pass  # elsewhere the peak is that since the process began


def peak_memory_mb() -> float | None:
    """Peak since `reset_peak_memory`, 10^6 bytes: of torch on the GPU where one is in use, else of the process."""
    if torch.cuda.is_initialized():
        numbers = range(torch.cuda.device_count())  # a model may be on another one than the first
        if allocated := max(map(torch.cuda.max_memory_allocated, numbers), default=0):
            return allocated / 1e6
    try:
        with open("/proc/self/status") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) * 1024 / 1e6
    except (OSError, KeyError):
        pass
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
