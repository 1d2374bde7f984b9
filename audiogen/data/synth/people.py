"""People: voices, hands, feet and hearts."""

from __future__ import annotations

import numpy as np

from audiogen.data.synth.signals import (
    Signal,
    band,
    decay,
    fade,
    harmonic,
    line,
    lowpass,
    noise,
    partials,
    scatter,
    sine,
    vowel,
    wander,
)


def speech(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Syllables gliding between vowels, with hisses and pauses: the sound of a voice, without words."""
    out = np.zeros(n, dtype=np.float32)
    size = (pitch / 140) ** 0.25
    vowels = [(730, 1090), (270, 2290), (530, 1840), (570, 840), (300, 870), (660, 1720)]
    at = 0
    while at < n:
        m = min(int(rng.uniform(0.12, 0.28) * rate), n - at)
        if m < 32:
            break
        hz = pitch * rng.uniform(0.85, 1.2) * line([(0, 1.04), (1, rng.uniform(0.85, 1.08))], m)
        hz = hz * (1 + 0.01 * wander(rng, m, rate, 40))
        voices = []
        for first, second in rng.permutation(vowels)[:2]:
            formants = [(first * size, 90), (second * size, 130), (2700 * size, 250), (3500 * size, 350)]
            voices.append(harmonic(hz, vowel(pitch, formants, 0.9), m, rate))
        voice = voices[0] + (voices[1] - voices[0]) * line([(0, 0), (0.3, 0), (0.8, 1), (1, 1)], m)
        out[at : at + m] = voice * line([(0, 0), (0.2, 1), (0.7, 0.8), (1, 0.05)], m) * rng.uniform(0.5, 1)
        if rng.random() < 0.35:
            k = min(m, int(0.07 * rate))
            out[at : at + k] += 0.12 * fade(noise(rng, k, rate, band(2800, 6500)), rate, 0.02)
        at += m + (int(rng.uniform(0.15, 0.35) * rate) if rng.random() < 0.18 else 0)
    return out


def baby_cry(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A long arched wail, bright and trembling."""
    top = rng.uniform(400, 560)
    glide = (
        top * line([(0, 0.75), (0.2, 1.0), (0.6, 1.03), (1, 0.7)], n) * (1 + 0.02 * wander(rng, n, rate, 25))
    )
    voice = harmonic(glide, vowel(top, [(1100, 400), (1700, 500), (3300, 800)], 0.4), n, rate)
    return voice * line([(0, 0), (0.15, 1), (0.7, 0.9), (1, 0)], n) * (1 + 0.2 * wander(rng, n, rate, 20))


def sneeze(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """An indrawn breath, then a burst of noise over a short voice."""
    inhale = noise(rng, n, rate, band(700, 2500)) * line([(0, 0), (0.3, 0.12), (0.4, 0), (1, 0)], n)
    burst = noise(rng, n, rate, [(100, -20), (900, -4), (2500, 0), (6000, -4), (16000, -14)])
    burst = burst * line([(0, 0), (0.44, 0), (0.48, 1), (0.6, 0.5), (1, 0)], n)
    start = rng.uniform(220, 380)
    hz = start * line([(0, 1.2), (0.5, 1.2), (1, 0.7)], n)
    voice = harmonic(hz, vowel(start, [(700, 200), (1600, 300)], 0.8), n, rate)
    return inhale + burst + 0.6 * voice * line([(0, 0), (0.42, 0), (0.5, 1), (0.8, 0.4), (1, 0)], n)


def whistle(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A breathy, almost pure melody."""
    notes = max(1, round(n / rate / rng.uniform(0.28, 0.5)))
    steps = 2 ** (rng.choice([-5, -3, 0, 2, 4, 5], notes) / 12)
    index = np.minimum(np.arange(n) * notes // n, notes - 1)
    hz = lowpass((pitch * steps[index]).astype(np.float32) - pitch, 12, rate) + pitch
    hz = hz * (1 + 0.008 * sine(5.5, n, rate))
    place = (np.arange(n) * (notes / n)) % 1.0
    loud = np.minimum(1, np.minimum(place, 1 - place) * 8).astype(np.float32)
    return harmonic(hz, [1, 0.04], n, rate) * loud + 0.012 * noise(rng, n, rate, band(1000, 5000)) * loud


def clapping(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Hundreds of claps, each a short band of noise."""
    claps = scatter(rng, n, rate, rng.uniform(60, 140), 18)
    claps = lowpass(np.abs(claps), 60, rate) * noise(rng, n, rate, band(900, 2600, 12))
    return claps


def footstep(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A dull heel, then the scuff of the sole."""
    heel = noise(rng, n, rate, [(40, -8), (130, 0), (500, -12), (3000, -30)]) * decay(n, rate, 0.025, 0.004)
    scuff = noise(rng, n, rate, band(1200, 5000, 12)) * line([(0, 0), (0.3, 0.06), (0.5, 0.12), (1, 0)], n)
    return heel + scuff + 0.2 * sine(rng.uniform(70, 110), n, rate) * decay(n, rate, 0.03, 0.003)


def knock(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """A knuckle on wood: short low partials and a touch of noise."""
    hz = rng.uniform(110, 240)
    wood = partials(
        [hz, hz * 2.3, hz * 3.9, hz * 6.1], [1, 0.6, 0.35, 0.2], [0.03, 0.02, 0.012, 0.008], n, rate
    )
    return wood + 0.15 * noise(rng, n, rate, band(300, 3000, 12)) * decay(n, rate, 0.006)


def typing(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Uneven key strokes with pauses between words."""
    out = np.zeros(n, dtype=np.float32)
    m = min(n, int(0.05 * rate))
    at = 0.02 * rate
    while at < n - m:
        key = noise(rng, m, rate, band(rng.uniform(700, 1500), 5500, 12)) * decay(m, rate, 0.006, 0.0005)
        out[int(at) : int(at) + m] += key * rng.uniform(0.4, 1)
        at += rng.uniform(0.08, 0.2) * rate * (3 if rng.random() < 0.1 else 1)
    return out


def heartbeat(rng: np.random.Generator, n: int, rate: int, pitch: float) -> Signal:
    """Two soft low thumps, the second weaker."""
    out = np.zeros(n, dtype=np.float32)
    hz = rng.uniform(55, 80)
    for at, level in ((0.0, 1.0), (0.24, 0.7)):
        m = n - int(at * rate)
        if m > 0:
            beat = sine(hz * (1.1 if at else 1.0), m, rate) + 0.4 * sine(2 * hz, m, rate)
            out[n - m :] += level * beat * decay(m, rate, 0.05, 0.012)
    return out
