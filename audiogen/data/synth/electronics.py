"""Plain signals, electric noises and the sounds of games."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import (
    Signal,
    band,
    fade,
    harmonic,
    line,
    noise,
)


def tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A steady sine, sometimes with overtones."""
    overtones = rng.uniform(0, 0.3, 4) * rng.integers(0, 2)
    return fade(harmonic(pitch, [1, *overtones], n, rate), rate, 0.02)


def rising_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A glide up by one to two octaves."""
    start = np.exp(rng.uniform(np.log(150), np.log(700)))
    hz = start * 2 ** (line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


def falling_tone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A glide down by one to two octaves."""
    start = np.exp(rng.uniform(np.log(700), np.log(2800)))
    hz = start * 2 ** (-line([(0, 0), (1, rng.uniform(1.2, 2.2))], n))
    return fade(harmonic(hz, [1, *(rng.uniform(0, 0.25, 3))], n, rate), rate, 0.02)


def alarm(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A beep of odd harmonics."""
    return fade(harmonic(pitch, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate), rate, 0.005)


def buzzer(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A low pulse wave, rich in harmonics."""
    return fade(harmonic(rng.uniform(95, 160), 1 / np.arange(1, 41) ** 0.4, n, rate), rate, 0.01)


def hum(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Mains frequency and its harmonics."""
    amplitudes = np.array([0.5, 1, 0.3, 0.6, 0.15, 0.3, 0.1, 0.2, 0.05, 0.1]) * rng.uniform(0.5, 1.5, 10)
    mains = rng.choice([50.0, 60.0]) * rng.uniform(0.998, 1.002)
    return harmonic(mains, amplitudes, n, rate) + 0.004 * noise(rng, n, rate, band(60, 3000))


def static(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """White noise."""
    return fade(noise(rng, n, rate, [(20, 0), (24000, rng.uniform(-3, 0))]), rate)


def laser(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A fast glide down over several octaves."""
    hz = rng.uniform(1800, 3200) * 2 ** (-rng.uniform(2.5, 4) * line([(0, 0), (1, 1)], n))
    return fade(harmonic(hz, 1 / np.arange(1, 6), n, rate) * line([(0, 1), (1, 0.1)], n), rate, 0.003)


def game_coin(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two square-like notes, a fourth apart, the second dying away."""
    hz = np.where(np.arange(n) < 0.08 * rate, 1.0, 4 / 3) * rng.uniform(900, 1100)
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2], n, rate) * line([(0, 1), (0.2, 1), (1, 0)], n), rate, 0.003
    )


def game_jump(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A square-like glide up."""
    hz = rng.uniform(250, 400) * 2 ** (1.6 * line([(0, 0), (1, 1)], n))
    return fade(
        harmonic(hz, [1, 0, 0.33, 0, 0.2, 0, 0.14], n, rate) * line([(0, 1), (0.7, 0.8), (1, 0)], n), rate
    )
