"""From (seed, index) to a clip: the scene's events rendered, placed, and put into a room."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from audiogen.data.synth.captions import write
from audiogen.data.synth.scene import KINDS, SynthEvent, compose
from audiogen.data.synth.signals import Signal, Synth, at_speed, random_numbers
from audiogen.errors import InputError
from audiogen.finish import widened

FARTHEST = 0.8  # of a quarter circle from the middle to a side: the far ear still gets -16 dB
EAR_DELAY_S = 0.6e-3  # by which a sound from the side comes later to the far ear


class Placement(NamedTuple):
    """Where an event stands in stereo. side: -1 is left, 1 right. width: 0 is a point, 1 as much side as middle."""

    side: float
    width: float


@dataclass(frozen=True)
class SynthClip:
    """audio: float32 [C, N], peak at most 0.99. captions: several wordings. events: what they speak of.

    places: of each event, in stereo; no caption speaks of them.
    """

    audio: Tensor
    captions: tuple[str, ...]
    events: tuple[SynthEvent, ...]
    places: tuple[Placement, ...]


def render(
    seed: int, index: int, sample_rate: int = 16000, duration_s: float = 5.0, channels: int = 1
) -> SynthClip:
    """Clip `index` of corpus `seed`, N = round(duration_s * sample_rate) samples at 8 to 48 kHz, 0.5 to 30 s.

    Events and captions are those of any other sample rate. A room may add a short tail after an event's end, and
    the levels are lower than composed where the sum would have passed full scale. channels: 2 gives each event a place
    by level and delay; textures are wide, and room and noise of the two channels are independent.
    """
    _check(duration_s, sample_rate)
    if channels not in (1, 2):
        raise InputError(f"the built-in corpus has 1 or 2 channels, got {channels}")
    scene = compose(seed, index, duration_s)
    n = round(duration_s * sample_rate)
    audio: Signal = np.zeros((channels, n), dtype=np.float32)
    places = []
    for number, event in enumerate(scene.events):
        at = min(n - 1, round(event.start_s * sample_rate))
        track = _track(event, random_numbers("sound", seed, index, number), sample_rate, duration_s)[: n - at]
        places.append(_place(event, random_numbers("stereo", seed, index, number)))
        sides = track[None] if channels == 1 else _in_stereo(track, places[-1], sample_rate)[:, : n - at]
        audio[:, at : at + sides.shape[1]] += sides
    uses = ("place", "place right")[:channels]
    audio = _place_around(audio, [Synth(random_numbers(use, seed, index), n, sample_rate) for use in uses])
    events, peak = scene.events, float(np.abs(audio).max())
    if peak > 0.99:
        audio = audio * np.float32(0.99 / peak)
        events = tuple(replace(e, gain_db=e.gain_db + 20 * float(np.log10(0.99 / peak))) for e in events)
    words = write(scene, random_numbers("words", seed, index))
    return SynthClip(torch.from_numpy(audio.astype(np.float32)), words, events, tuple(places))


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


def _place(event: SynthEvent, rng: np.random.Generator) -> Placement:
    """A texture is wide and near the middle, what strikes is a point anywhere."""
    if event.count is None:
        return Placement(0.3 * rng.uniform(-1, 1), rng.uniform(0.3, 0.9))
    return Placement(rng.uniform(-1, 1), 0.0)


def _in_stereo(track: Signal, place: Placement, sample_rate: int) -> Signal:
    """A track [N] -> [2, N + delay], the near side at the track's level."""
    angle = np.pi / 4 * (1 + FARTHEST * place.side)  # 0 would be left alone, pi / 2 right alone
    gains = np.array([np.cos(angle), np.sin(angle)])
    gains /= gains.max() * np.hypot(1, place.width)
    late = round(EAR_DELAY_S * abs(place.side) * sample_rate)
    delays = (late, 0) if place.side > 0 else (0, late)
    both = (
        widened(track[None].astype(np.float64), sample_rate, place.width) if place.width else (track, track)
    )
    padded = [np.pad(side, (delay, late - delay)) for side, delay in zip(both, delays, strict=True)]
    return (np.stack(padded) * gains[:, None]).astype(np.float32)


def _place_around(audio: Signal, channels: list[Synth]) -> Signal:
    """Some clips sound in a room, most have the faint noise of a recording, some are dry and clean: [C, N] -> [C, N].

    channels: draw the noise of each, and the first of them what there is.
    """
    s = channels[0]
    if s.rng.random() < 0.4:
        decay_s, wet_db = s.uniform(0.15, 0.5), s.uniform(-16, -7)
        audio = np.stack(
            [each.room(side, decay_s, wet_db) for each, side in zip(channels, audio, strict=True)]
        )
    if s.rng.random() < 0.6:
        curve = [(20, 0), (300, -3), (8000, s.uniform(-30, -6))]
        floor = np.stack([each.noise(curve) for each in channels])
        audio = audio + np.float32(10 ** (s.uniform(-78, -58) / 20)) * floor
    return audio
