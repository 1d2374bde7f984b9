"""Struck, plucked and broken things."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import (
    Signal,
    band,
    decay,
    fade,
    noise,
    partials,
    sine,
)


def bell(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Inharmonic partials: hum, prime, minor third, fifth, nominal; the high ones die first."""
    ratios = np.array([0.5, 1.0, 1.19, 1.5, 2.0, 2.74, 3.0, 3.76, 4.07]) * rng.uniform(0.995, 1.005, 9)
    levels = np.array([0.4, 1.0, 0.6, 0.3, 0.7, 0.35, 0.25, 0.2, 0.15]) * rng.uniform(0.6, 1.2, 9)
    ring = n / rate / 3
    sounding = partials(pitch * ratios, levels, ring / ratios**0.7, n, rate)
    return fade(sounding * decay(n, rate, ring * 2, 0.002), rate, 0.005)


def drum(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """The modes of a skin, gliding down as its tension settles."""
    glide = pitch * (1 + 0.6 * decay(n, rate, 0.02, 1e-5))
    skin = sine(glide, n, rate) + 0.4 * sine(glide * 1.59, n, rate) + 0.2 * sine(glide * 2.14, n, rate)
    return skin * decay(n, rate, 0.11, 0.002) + 0.1 * noise(rng, n, rate, band(300, 3000)) * decay(
        n, rate, 0.01
    )


def hi_hat(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A short burst of high noise."""
    metal = noise(rng, n, rate, [(500, -50), (3000, -15), (6500, 0), (16000, -2)])
    return metal * decay(n, rate, rng.uniform(0.015, 0.05), 0.0005)


def plucked_string(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Slightly stretched harmonics, shaped by where the string is plucked."""
    order = np.arange(1, 25)
    where = rng.uniform(0.1, 0.35)
    levels = np.abs(np.sin(np.pi * order * where)) / order
    hz = pitch * order * np.sqrt(1 + 2e-4 * order**2)
    return fade(partials(hz, levels, 0.6 / order**0.6, n, rate), rate, 0.002)


def xylophone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """The 1 : 3 : 6 partials of a tuned wooden bar."""
    hz = pitch * np.array([1, 3.0, 6.1])
    bar = partials(hz, [1, 0.35, 0.12], np.array([0.16, 0.06, 0.03]) * (800 / pitch) ** 0.4, n, rate)
    return bar + 0.05 * noise(rng, n, rate, band(800, 5000)) * decay(n, rate, 0.004)


def clock_tick(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Tiny metallic partials and a click."""
    hz = rng.uniform(1800, 3400)
    body = partials([hz, hz * 0.63, 900], [1, 0.5, 0.3], [0.006, 0.005, 0.01], n, rate)
    return body + 0.25 * noise(rng, n, rate, band(1500, 7000)) * decay(n, rate, 0.003)


def click(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A few milliseconds of noise."""
    return noise(rng, n, rate, band(1200, 6000)) * decay(n, rate, rng.uniform(0.0015, 0.004), 0.0003)


def door_slam(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A low boom under a short broad smack."""
    boom = noise(rng, n, rate, [(30, -4), (90, 0), (250, -8), (1200, -28)]) * decay(n, rate, 0.09, 0.003)
    smack = noise(rng, n, rate, [(100, -10), (500, 0), (2500, -8), (9000, -24)]) * decay(
        n, rate, 0.025, 0.001
    )
    return boom + smack


def glass_breaking(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A bright crash, then shards ringing as they fall."""
    smash = noise(rng, n, rate, [(500, -20), (2500, -2), (6000, 0), (12000, -6)])
    out = smash * decay(n, rate, 0.05, 0.001)
    for _ in range(14):
        at = int(abs(rng.normal(0, 0.25)) * n * 0.8) % max(1, n - 16)
        hz = rng.uniform(2200, 7000) * np.array([1, 1.47, 2.09])
        out[at:] += partials(hz, [0.5, 0.3, 0.2], [0.06, 0.04, 0.03], n - at, rate) * rng.uniform(0.2, 1)
    return fade(out, rate, 0.001)
