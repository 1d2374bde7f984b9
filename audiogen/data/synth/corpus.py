"""From (seed, index) to a clip: the scene's events rendered, placed, and put into a room."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from audiogen.data.synth.captions import write
from audiogen.data.synth.scene import KINDS, SynthEvent, compose
from audiogen.data.synth.signals import Signal, Synth, at_speed, random_numbers
from audiogen.errors import InputError


@dataclass(frozen=True)
class SynthClip:
    """audio: float32 [1, N], peak at most 0.99. captions: several wordings. events: what they speak of."""

    audio: Tensor
    captions: tuple[str, ...]
    events: tuple[SynthEvent, ...]


def render(seed: int, index: int, sample_rate: int = 16000, duration_s: float = 5.0) -> SynthClip:
    """Clip `index` of corpus `seed`, N = round(duration_s * sample_rate) samples at 8 to 48 kHz, 0.5 to 30 s.

    Events and captions are those of any other sample rate. A room may add a short tail after an event's end, and
    the levels are lower than composed where the sum would have passed full scale.
    """
    _check(duration_s, sample_rate)
    scene = compose(seed, index, duration_s)
    n = round(duration_s * sample_rate)
    audio: Signal = np.zeros(n, dtype=np.float32)
    for number, event in enumerate(scene.events):
        at = min(n - 1, round(event.start_s * sample_rate))
        track = _track(event, random_numbers("sound", seed, index, number), sample_rate, duration_s)[: n - at]
        audio[at : at + len(track)] += track
    audio = _place_around(audio, Synth(random_numbers("place", seed, index), n, sample_rate))
    events, peak = scene.events, float(np.abs(audio).max())
    if peak > 0.99:
        audio = audio * np.float32(0.99 / peak)
        events = tuple(replace(e, gain_db=e.gain_db + 20 * float(np.log10(0.99 / peak))) for e in events)
    words = write(scene, random_numbers("words", seed, index))
    return SynthClip(torch.from_numpy(audio.astype(np.float32))[None], words, events)


def captions(seed: int, index: int, duration_s: float = 5.0) -> tuple[str, ...]:
    """The captions of `render(seed, index, duration_s=duration_s)`, without rendering audio."""
    _check(duration_s)
    return write(compose(seed, index, duration_s), random_numbers("words", seed, index))


def _check(duration_s: float, sample_rate: int = 16000) -> None:
    if not 0.5 <= duration_s <= 30:
        raise InputError(f"the built-in corpus has clips of 0.5 to 30 s, got duration {duration_s} s")
    if not 8000 <= sample_rate <= 48000:
        raise InputError(f"the built-in corpus renders at 8000 to 48000 Hz, got {sample_rate} Hz")


def _track(event: SynthEvent, rng: np.random.Generator, sample_rate: int, duration_s: float) -> Signal:
    """The event alone [N], from its start to its end, at its level."""
    kind = KINDS[event.kind]
    n = max(16, round(event.sound_s * sample_rate))
    sound = kind.render(Synth(rng, n, sample_rate, event.pitch_hz or 0.0)).astype(np.float32)
    if event.count is None:
        track = sound
        ramp_s = rng.uniform(0.1, 0.4) if kind.backdrop else 0.02
        m = min(n // 4, int(ramp_s * sample_rate))
        ramp = np.linspace(0, 1, m, dtype=np.float32) ** 2
        if event.start_s > 0:  # at the clip's own ends the sound is cut, as a recording is
            track[:m] *= ramp
        if event.end_s < duration_s - 1e-6:
            track[n - m :] *= ramp[::-1]
    else:
        end = min(n // 4, int(0.01 * sample_rate))
        sound[n - end :] *= np.linspace(1, 0, end, dtype=np.float32)  # a decay cut short would click
        starts = [round((onset - event.start_s) * sample_rate) for onset in event.onsets_s]
        track = np.zeros(starts[-1] + n, dtype=np.float32)
        for at in starts:
            strike = sound
            if kind.vary:  # a little higher or lower, louder or softer, as a living source repeats itself
                strike = at_speed(sound, 1 + kind.vary * rng.uniform(-1, 1))
                strike = strike * np.float32(10 ** (rng.uniform(-1.5, 1.5) / 20))
            track[at : at + n] += strike
    return track * np.float32(10 ** (event.gain_db / 20) / _level(track, sample_rate))


def _level(track: Signal, sample_rate: int) -> float:
    """The larger of the peak and of three times the RMS of the loudest 50 ms."""
    block = max(1, min(len(track), int(0.05 * sample_rate)))
    blocks = track[: len(track) // block * block].reshape(-1, block)
    loudest = float(np.sqrt(np.mean(blocks**2, axis=1).max()))
    return max(float(np.abs(track).max()), 3 * loudest, 1e-9)


def _place_around(audio: Signal, s: Synth) -> Signal:
    """Some clips sound in a room, most have the faint noise of a recording, some are dry and clean."""
    if s.rng.random() < 0.4:
        audio = s.room(audio, s.uniform(0.15, 0.5), s.uniform(-16, -7))
    if s.rng.random() < 0.6:
        floor = s.noise([(20, 0), (300, -3), (8000, s.uniform(-30, -6))])
        audio = audio + np.float32(10 ** (s.uniform(-78, -58) / 20)) * floor
    return audio
