"""Weather, water and fire."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import (
    Signal,
    band,
    decay,
    line,
    noise,
    phase,
    resonate,
    scatter,
    sine,
    wander,
)


def wind(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Low rumble and a narrow whistle that rises faster than the gusts that carry it."""
    gusts = 0.55 + 0.45 * wander(rng, n, rate, 0.7)
    body = noise(rng, n, rate, [(20, -12), (120, 0), (400, -8), (1500, -30), (8000, -55)])
    whistle = noise(rng, n, rate, band(rng.uniform(350, 600), rng.uniform(620, 900), 36))
    return body * gusts + 0.7 * whistle * gusts**3


def rain(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Steady bright hiss with single drops on top."""
    tilt = rng.uniform(-4, 4)
    hiss = noise(rng, n, rate, [(50, -25), (400, -8), (2000, 0), (6000, tilt), (20000, tilt - 8)])
    drops = resonate(scatter(rng, n, rate, rng.uniform(60, 300), 25), rng.uniform(1500, 3200), 900, rate)
    return hiss * (1 + 0.1 * wander(rng, n, rate, 2)) + drops * rng.uniform(10, 40)


def sea_waves(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Swells of deep noise, each followed by its brighter foam."""
    period = rng.uniform(2.2, 4.5)
    cycle = phase(1 / period, n, rate) + rng.uniform(0, 1) + 0.12 * wander(rng, n, rate, 0.5)
    turn = (2 * np.pi * cycle).astype(np.float32)
    swell = np.exp(2.2 * np.cos(turn) - 2.2)
    foam = np.exp(2.2 * np.cos(turn - np.float32(0.6)) - 2.2)
    deep = noise(rng, n, rate, [(30, -10), (150, 0), (600, -6), (3000, -30)])
    crest = noise(rng, n, rate, [(200, -30), (1500, -3), (4000, 0), (12000, -12)])
    return deep * (0.25 + swell) + 0.8 * crest * (0.08 + foam)


def thunder(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A crack, then a rumble that rolls and dies away."""
    rumble = noise(rng, n, rate, [(15, -8), (50, 0), (120, -6), (400, -24), (2000, -48)])
    crack = noise(rng, n, rate, [(40, -6), (200, 0), (1500, -10), (6000, -25)])
    rolling = np.clip(0.6 + 0.6 * wander(rng, n, rate, 3.0), 0.1, None)
    fall = line([(0, 0), (0.04, 1), (0.3, 0.7), (1, 0)], n)
    return rumble * rolling * fall + 0.6 * crack * decay(n, rate, rng.uniform(0.12, 0.35), 0.02)


def water_drop(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A short sine gliding up, the ring of a closing bubble."""
    start = rng.uniform(700, 1300)
    glide = start * (1 + rng.uniform(0.6, 1.2) * line([(0, 0), (0.4, 1), (1, 1.2)], n))
    return sine(glide, n, rate) * decay(n, rate, rng.uniform(0.02, 0.035), 0.004)


def bubbles(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Many small rising glides, scattered in time."""
    out = np.zeros(n, dtype=np.float32)
    for _ in range(max(4, rng.poisson(rng.uniform(9, 18) * n / rate))):
        m = min(n, int(rng.uniform(0.04, 0.12) * rate))
        hz = rng.uniform(250, 1100) * line([(0, 1), (1, rng.uniform(1.3, 2.2))], m)
        at = rng.integers(0, max(1, n - m))
        out[at : at + m] += sine(hz, m, rate) * decay(m, rate, m / rate / 4, 0.004) * rng.uniform(0.2, 1)
    return out


def crackling_fire(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Snaps and pops of all sizes over a faint low roar."""
    roar = noise(rng, n, rate, [(30, -6), (120, 0), (500, -14), (4000, -34)])
    roar *= 0.035 * (1 + 0.4 * wander(rng, n, rate, 3))
    snaps = scatter(rng, n, rate, rng.uniform(12, 30), 26)
    pops = resonate(scatter(rng, n, rate, rng.uniform(2, 5), 10), rng.uniform(700, 1500), 500, rate)
    bright = resonate(snaps, rng.uniform(2500, 3400), 2200, rate)
    return roar + 3.0 * bright + 12 * pops
