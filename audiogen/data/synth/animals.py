"""Animals, most of them a pitched source through moving resonances."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import (
    Signal,
    band,
    fade,
    harmonic,
    line,
    lowpass,
    noise,
    phase,
    pulse_train,
    resonate,
    sine,
    vowel,
    wander,
)


def bird_chirp(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A fast glide through four pitches with a trill."""
    shape = rng.permutation([0.85, 1.0, 1.2, 0.95])
    glide = pitch * line(list(zip((0, 0.3, 0.7, 1), shape, strict=True)), n)
    glide = glide * (1 + 0.05 * sine(rng.uniform(20, 45), n, rate))
    return fade(
        harmonic(glide, [1, 0.12, 0.04], n, rate) * line([(0, 0), (0.25, 1), (0.7, 0.8), (1, 0)], n), rate
    )


def crickets(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """One high pitch, cut into pulses and these into chirps."""
    hz = rng.uniform(2700, 4600)
    chirps = phase(rng.uniform(1.6, 3.2), n, rate) + rng.uniform(0, 1)
    pulses = phase(rng.uniform(26, 40), n, rate) % 1.0
    gate = (chirps % 1.0 < rng.uniform(0.4, 0.55)).astype(np.float32)
    gate = lowpass(gate * np.sin(np.pi * pulses).astype(np.float32) ** 2, 120, rate)
    return harmonic(hz, [1, 0.08], n, rate) * gate + 0.01 * noise(rng, n, rate, band(2000, 6000))


def dog_bark(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A rough voiced burst whose pitch jumps up and falls, with breath."""
    glide = pitch * line([(0, 0.7), (0.2, 1.1), (0.5, 1.0), (1, 0.6)], n)
    glide = glide * (1 + 0.04 * wander(rng, n, rate, 90))
    size = (pitch / 450) ** 0.7
    formants = [(650 * size, 300), (1300 * size, 350), (2500 * size, 700)]
    voice = harmonic(glide, vowel(pitch, formants, 0.7), n, rate)
    breath = noise(rng, n, rate, [(100, -30), (500, -3), (1100, 0), (2500, -10), (8000, -30)])
    loud = line([(0, 0), (0.08, 1), (0.45, 0.8), (1, 0)], n)
    return voice / (np.abs(voice).max() + 1e-6) * loud + 0.22 * breath * loud**2


def cat_meow(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A voice that opens from a closed to an open vowel and closes again."""
    glide = pitch * line([(0, 0.8), (0.3, 1.1), (0.7, 1.0), (1, 0.75)], n)
    glide = glide * (1 + 0.015 * sine(rng.uniform(5, 8), n, rate))
    size = (pitch / 650) ** 0.7
    closed = harmonic(glide, vowel(pitch, [(700 * size, 300), (2200 * size, 500)], 1.2), n, rate)
    opened = harmonic(
        glide, vowel(pitch, [(1100 * size, 400), (1800 * size, 400), (3200 * size, 700)], 0.5), n, rate
    )
    opening = line([(0, 0), (0.35, 1), (0.6, 0.8), (1, 0.1)], n)
    return (closed * (1 - opening) + opened * opening) * line([(0, 0), (0.15, 1), (0.6, 0.8), (1, 0)], n)


def rooster_crow(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Three short syllables and one long, hoarse and bright."""
    top = rng.uniform(650, 900)
    glide = top * line(
        [(0, 0.7), (0.1, 0.8), (0.14, 0.75), (0.24, 0.9), (0.3, 0.85), (0.4, 1.05), (0.8, 1), (1, 0.6)], n
    )
    glide = glide * (1 + 0.02 * wander(rng, n, rate, 40))
    loud = line(
        [
            (0, 0),
            (0.04, 0.7),
            (0.1, 0.1),
            (0.14, 0.8),
            (0.24, 0.1),
            (0.28, 0.8),
            (0.4, 1),
            (0.8, 0.8),
            (1, 0),
        ],
        n,
    )
    voice = harmonic(glide, vowel(top, [(1000, 500), (1900, 600), (3200, 900)], 0.3), n, rate)
    return voice * loud + 0.05 * np.abs(voice).max() * noise(rng, n, rate, band(800, 5000)) * loud


def owl_hoot(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A soft, almost pure tone with a slight arch."""
    glide = pitch * line([(0, 0.93), (0.3, 1.0), (1, 0.92)], n) * (1 + 0.01 * sine(6.0, n, rate))
    body = harmonic(glide, [1, 0.1, 0.05], n, rate) * line([(0, 0), (0.25, 1), (0.7, 0.9), (1, 0)], n)
    return body + 0.01 * noise(rng, n, rate, band(300, 900)) * line([(0, 0), (0.3, 1), (1, 0)], n)


def frog_croak(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A slow pulse train through two resonances."""
    pulses = pulse_train(rng, n, rate, rng.uniform(35, 60))
    body = resonate(pulses, rng.uniform(450, 700), 120, rate) + resonate(
        pulses, rng.uniform(1300, 1900), 250, rate
    )
    return body * line([(0, 0), (0.2, 0.8), (0.8, 1), (1, 0)], n)


def buzzing_bee(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Wing beats rich in harmonics, wandering in pitch and distance."""
    hz = rng.uniform(170, 260) * (1 + 0.06 * wander(rng, n, rate, 4))
    wings = harmonic(hz, 1 / np.arange(1, 25) ** 0.8, n, rate)
    return wings * (0.55 + 0.45 * wander(rng, n, rate, 1.5)) + 0.02 * noise(rng, n, rate, band(300, 4000))
