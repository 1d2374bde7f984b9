"""The built-in corpus: synthesised sound events with captions that are true of them, for people without data.

Clip `index` of corpus `seed` is a pure function of the two (and of duration and sample rate): nothing is stored, and
any split is a range of indices. A clip has one event, two in order, or one over another; its captions say what is
heard, in which order, how many, how high and how loud, and its event list says the same to a program.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from audiogen.data.seeds import seed_for
from audiogen.data.synth.captions import write
from audiogen.data.synth.scene import KINDS, Scene, SynthEvent, compose
from audiogen.data.synth.signals import Signal
from audiogen.errors import InputError

__all__ = ["KINDS", "SynthClip", "SynthEvent", "captions", "render"]


@dataclass(frozen=True)
class SynthClip:
    """audio: float32 [1, N], peak at most 1. captions: several wordings. events: what they speak of."""

    audio: Tensor
    captions: tuple[str, ...]
    events: tuple[SynthEvent, ...]


def render(seed: int, index: int, sample_rate: int = 16000, duration_s: float = 5.0) -> SynthClip:
    """Clip `index` of corpus `seed` with N = round(duration_s * sample_rate) samples.

    The events and captions do not depend on the sample rate; their levels may be lower than composed, where the
    sum would have passed full scale.
    """
    _check(duration_s, sample_rate)
    scene = compose(seed, index, duration_s)
    n = round(duration_s * sample_rate)
    audio = np.zeros(n, dtype=np.float32)
    for number, event in enumerate(scene.events):
        at = min(n - 1, round(event.start_s * sample_rate))
        track = _track(event, _generator("sound", seed, index, number), sample_rate)[: n - at]
        audio[at : at + len(track)] += track
    peak = float(np.abs(audio).max())
    events = scene.events
    if peak > 0.99:
        audio *= np.float32(0.99 / peak)
        events = tuple(replace(e, gain_db=e.gain_db + 20 * float(np.log10(0.99 / peak))) for e in events)
    return SynthClip(torch.from_numpy(audio)[None], _captions(scene, seed, index), events)


def captions(seed: int, index: int, duration_s: float = 5.0) -> tuple[str, ...]:
    """The captions of `render(seed, index, duration_s=duration_s)`, without rendering audio."""
    _check(duration_s)
    return _captions(compose(seed, index, duration_s), seed, index)


def _captions(scene: Scene, seed: int, index: int) -> tuple[str, ...]:
    return write(scene, _generator("words", seed, index))


def _check(duration_s: float, sample_rate: int = 16000) -> None:
    if not 0.5 <= duration_s <= 30:
        raise InputError(f"the built-in corpus has clips of 0.5 to 30 s, got duration {duration_s} s")
    if not 8000 <= sample_rate <= 48000:
        raise InputError(f"the built-in corpus renders at 8000 to 48000 Hz, got {sample_rate} Hz")


def _generator(*parts: int | str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_for("synth", *parts)))


def _track(event: SynthEvent, rng: np.random.Generator, sample_rate: int) -> Signal:
    """The event alone, from its start to its end [N], at its level."""
    kind = KINDS[event.kind]
    n = max(16, round(event.sound_s * sample_rate))
    sound = kind.render(rng, n, sample_rate, event.pitch_hz or 0.0).astype(np.float32)
    if event.count is None:
        track = sound
        ends = min(n // 2, int(0.015 * sample_rate))
        track[:ends] *= np.linspace(0, 1, ends, dtype=np.float32)
        track[-ends:] *= np.linspace(1, 0, ends, dtype=np.float32)
    else:
        last = round((event.onsets_s[-1] - event.start_s) * sample_rate)
        track = np.zeros(last + n, dtype=np.float32)
        for onset in event.onsets_s:
            at = round((onset - event.start_s) * sample_rate)
            track[at : at + n] += _take(sound, rng, kind.vary)
    return track * np.float32(10 ** (event.gain_db / 20) / _level(track, sample_rate))


def _take(sound: Signal, rng: np.random.Generator, vary: float) -> Signal:
    """`sound` [N] once more: a little higher or lower, a little louder or softer, as a living source repeats."""
    if vary == 0:
        return sound
    n = len(sound)
    speed = 1 + vary * rng.uniform(-1, 1)
    moved = np.interp(np.arange(n) * speed, np.arange(n), sound, right=0.0).astype(np.float32)
    return moved * np.float32(10 ** (rng.uniform(-1.5, 1.5) / 20))


def _level(track: Signal, sample_rate: int) -> float:
    """The larger of the peak and of three times the RMS of the loudest 50 ms."""
    block = max(1, min(len(track), int(0.05 * sample_rate)))
    blocks = track[: len(track) // block * block].reshape(-1, block)
    loudest = float(np.sqrt(np.mean(blocks**2, axis=1).max()))
    return max(float(np.abs(track).max()), 3 * loudest, 1e-9)
