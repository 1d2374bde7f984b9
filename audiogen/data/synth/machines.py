"""Engines, and what calls from a distance: sirens, horns, bells of telephones."""

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
    sine,
    wander,
)


def engine(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Harmonics of the firing rate, uneven from cylinder to cylinder, and puffs of exhaust."""
    firing = rng.uniform(22, 55) * (1 + 0.05 * wander(rng, n, rate, 2.5))
    order = np.arange(1, 41)
    body = 1 / (1 + (order * float(firing[0]) / rng.uniform(150, 350)) ** 2)
    exhaust = harmonic(firing, body * (0.5 + rng.uniform(0, 1, 40)), n, rate)
    cycle = phase(firing, n, rate) % 1.0
    puff = np.exp(-5 * cycle).astype(np.float32)
    air = noise(rng, n, rate, [(40, -6), (200, 0), (900, -8), (4000, -26)])
    return exhaust / (exhaust.std() + 1e-6) + 0.5 * air * puff


def helicopter(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Low thumps at the rate of the blades, air noise and the whine of a turbine."""
    blades = rng.uniform(9, 16)
    cycle = (phase(blades, n, rate) + rng.uniform(0, 1)) % 1.0
    chop = np.exp(-6 * cycle).astype(np.float32)
    thump = noise(rng, n, rate, [(25, -4), (80, 0), (250, -6), (1000, -24), (6000, -48)])
    wash = noise(rng, n, rate, [(100, -12), (600, 0), (3000, -12), (10000, -30)])
    turbine = harmonic(rng.uniform(500, 900), [1, 0.3, 0.2], n, rate)
    distance = 0.75 + 0.25 * wander(rng, n, rate, 0.3)
    return (thump * (0.15 + chop) + 0.45 * wash * (0.3 + chop) + 0.02 * turbine) * distance


def chainsaw(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A rough high-revving buzz with the noise of the chain, overdriven."""
    revving = np.clip(wander(rng, n, rate, 0.9) * 1.5, -0.6, 1)
    hz = rng.uniform(80, 120) * (1 + 0.4 * revving) * (1 + 0.03 * wander(rng, n, rate, 60))
    buzz = harmonic(hz, (1 / np.arange(1, 41) ** 0.5) * rng.uniform(0.4, 1, 40), n, rate)
    chain = noise(rng, n, rate, [(200, -20), (1500, 0), (4000, -2), (12000, -16)])
    return np.tanh(0.4 * buzz + 0.35 * chain) * (0.75 + 0.25 * revving)


def vacuum_cleaner(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Rushing air and the whine of a motor that has just come up to speed."""
    hz = rng.uniform(180, 320)
    air = noise(rng, n, rate, [(80, -18), (400, -3), (1200, 0), (4000, -8), (12000, -20)])
    spin_up = line([(0, 0.7), (min(0.5, 0.4 * rate / n), 1), (1, 1)], n)
    return air + 0.7 * harmonic(hz * spin_up, [1, 0.5, 0.7, 0.3, 0.3, 0.2, 0.1], n, rate)


def siren(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A tone with overtones, swinging up and down by about an octave."""
    low, period = rng.uniform(450, 750), rng.uniform(0.8, 4.0)
    cycle = phase(1 / period, n, rate)
    octave = 0.5 - 0.5 * np.cos(2 * np.pi * cycle)
    hz = low * 2 ** (rng.uniform(0.7, 1.2) * octave)
    return fade(harmonic(hz, 1 / np.arange(1, 9) ** rng.uniform(0.9, 1.6), n, rate), rate, 0.05)


def two_tone_siren(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two notes about a third apart, in turn."""
    low, period = rng.uniform(420, 700), rng.uniform(0.7, 1.3)
    upper = (phase(1 / period, n, rate) % 1.0 < 0.5).astype(np.float32)
    hz = low * (1 + rng.uniform(0.25, 0.4) * lowpass(upper, 40, rate))
    return fade(harmonic(hz, 1 / np.arange(1, 9), n, rate), rate, 0.03)


def car_horn(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two reeds a third apart."""
    hz = rng.uniform(330, 460)
    reeds = 1 / np.arange(1, 21) ** 0.6
    return fade(
        harmonic(hz, reeds, n, rate) + harmonic(hz * rng.uniform(1.18, 1.27), reeds, n, rate), rate, 0.02
    )


def train_horn(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A chord of four reeds with breath."""
    root = rng.uniform(240, 330)
    reeds = 1 / np.arange(1, 13) ** 0.9
    chord = sum(harmonic(root * ratio, reeds, n, rate) for ratio in (1.0, 1.19, 1.5, 1.79))
    breath = 0.1 * noise(rng, n, rate, band(500, 4000))
    return (chord + breath) * line([(0, 0), (0.08, 1), (0.85, 0.9), (1, 0)], n)


def telephone(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two gongs struck by a fast hammer."""
    low = rng.uniform(1000, 1500)
    hammer = phase(rng.uniform(18, 26), n, rate) % 1.0
    strokes = np.exp(-3 * hammer).astype(np.float32)
    gongs = sine(low, n, rate) + 0.8 * sine(low * 1.26, n, rate) + 0.5 * sine(low * 2.1, n, rate)
    return fade(gongs * (0.25 + strokes), rate, 0.02)
