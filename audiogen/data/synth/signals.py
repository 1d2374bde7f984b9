"""The raw material of the built-in corpus: oscillators, shaped noise, resonances and envelopes as numpy arrays [N].

Everything is vectorised, since training renders on the fly: a harmonic sound is one table lookup, coloured noise
one inverse FFT. Frequencies are clamped below the Nyquist frequency, so that any sample rate renders every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter

Signal = NDArray[np.floating[Any]]  # float32 wherever speed counts
Frequency = float | NDArray[np.floating[Any]]  # Hz, fixed or one value per sample

TABLE_SIZE = 4096  # one period; without interpolation its error stays near -70 dB for the harmonics used here


def audible(hz: Frequency, sample_rate: int) -> Frequency:
    """`hz` kept in 1 Hz .. 0.45 sample_rate."""
    if isinstance(hz, np.ndarray):
        return np.clip(hz, 1.0, 0.45 * sample_rate)
    return min(max(float(hz), 1.0), 0.45 * sample_rate)


def phase(hz: Frequency, n: int, sample_rate: int) -> Signal:
    """Cycles since the start, [N]; `hz` may vary per sample. float64: 30 s at 3 kHz is 90,000 cycles."""
    if isinstance(hz, np.ndarray):
        return np.cumsum(hz, dtype=np.float64) / sample_rate
    return np.arange(n) * (hz / sample_rate)


def sine(hz: Frequency, n: int, sample_rate: int) -> Signal:
    """A sine of unit amplitude [N]."""
    cycles = phase(audible(hz, sample_rate), n, sample_rate)
    return np.sin((2 * np.pi * (cycles - np.floor(cycles))).astype(np.float32))


def harmonic(hz: Frequency, amplitudes: Sequence[float] | Signal, n: int, sample_rate: int) -> Signal:
    """A periodic tone [N] with the given amplitudes of harmonics 1, 2, ...; those past Nyquist are left out."""
    hz = audible(hz, sample_rate)
    limit = max(1, int(0.48 * sample_rate / float(np.max(hz))))
    kept = np.asarray(amplitudes, dtype=np.float64)[: min(limit, TABLE_SIZE // 4)]
    spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
    spectrum[1 : len(kept) + 1] = -0.5j * TABLE_SIZE * kept
    table = fft.irfft(spectrum, TABLE_SIZE).astype(np.float32)
    index = (phase(hz, n, sample_rate) * TABLE_SIZE).astype(np.int64) & (TABLE_SIZE - 1)
    return table[index]


def vowel(pitch_hz: float, formants: Sequence[tuple[float, float]], tilt: float = 1.0) -> Signal:
    """Amplitudes of 60 harmonics of a voice: a 1/h**tilt source times resonances (centre Hz, bandwidth Hz)."""
    order = np.arange(1, 61)
    hz = order * pitch_hz
    peaks = np.full(len(hz), 0.01)
    for centre, width in formants:
        peaks += 1 / (1 + ((hz - centre) / (0.5 * width)) ** 2)
    return peaks / order**tilt


def noise(rng: np.random.Generator, n: int, sample_rate: int, curve: Sequence[tuple[float, float]]) -> Signal:
    """Gaussian noise [N] of unit RMS whose spectrum follows `curve`: (Hz, dB) points, straight in log frequency."""
    size = fft.next_fast_len(max(n, 16), real=True)
    bins = size // 2 + 1
    hz = np.arange(bins, dtype=np.float32) * np.float32(sample_rate / size)
    points, gains = zip(*curve, strict=True)
    gain_db = np.interp(np.log(np.maximum(hz, 1.0)), np.log(points), gains).astype(np.float32)
    shape = np.exp(gain_db * np.float32(np.log(10) / 20))
    shape[0] = 0
    draws = rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
    signal = fft.irfft(draws * shape, size)[:n]
    return signal / np.sqrt(np.mean(signal**2) + 1e-12)


def band(low_hz: float, high_hz: float, slope_db: float = 24.0) -> list[tuple[float, float]]:
    """A `noise` curve: flat from low to high, falling by `slope_db` per octave outside."""
    return [
        (low_hz / 8, -3 * slope_db),
        (low_hz, 0.0),
        (max(high_hz, low_hz * 1.01), 0.0),
        (max(high_hz, low_hz * 1.01) * 8, -3 * slope_db),
    ]


def resonate(signal: Signal, hz: float, width_hz: float, sample_rate: int) -> Signal:
    """A two-pole resonance [N] -> [N] with unit gain at its centre."""
    hz = float(audible(hz, sample_rate))
    radius = np.exp(-np.pi * width_hz / sample_rate)
    angle = 2 * np.pi * hz / sample_rate
    gain = (1 - radius) * np.sqrt(1 - 2 * radius * np.cos(2 * angle) + radius**2)
    poles = [1.0, -2 * radius * np.cos(angle), radius**2]
    return lfilter([gain], poles, signal).astype(np.float32)


def lowpass(signal: Signal, hz: float, sample_rate: int) -> Signal:
    """One-pole low-pass [N] -> [N]."""
    keep = float(np.exp(-2 * np.pi * min(hz, 0.45 * sample_rate) / sample_rate))
    return lfilter([1 - keep], [1.0, -keep], signal).astype(np.float32)


def partials(
    hz: Sequence[float] | Signal,
    amplitudes: Sequence[float] | Signal,
    decays_s: Sequence[float] | Signal,
    n: int,
    sample_rate: int,
) -> Signal:
    """Inharmonic partials [N], each dying away with its own time constant, as a struck body does."""
    time = np.arange(n, dtype=np.float32) / np.float32(sample_rate)
    out = np.zeros(n, dtype=np.float32)
    for f, amplitude, decay_s in zip(hz, amplitudes, decays_s, strict=True):
        if f < 0.45 * sample_rate:
            out += np.float32(amplitude) * np.exp(-time / np.float32(decay_s)) * sine(f, n, sample_rate)
    return out


def line(points: Sequence[tuple[float, float]], n: int) -> Signal:
    """Straight segments [N] through (fraction of the length, value) points."""
    x, y = zip(*points, strict=True)
    return np.interp(np.linspace(0, 1, n, dtype=np.float32), x, y).astype(np.float32)


def decay(n: int, sample_rate: int, tau_s: float, attack_s: float = 0.001) -> Signal:
    """A percussive envelope [N]: linear attack, exponential decay."""
    time = np.arange(n, dtype=np.float32) / np.float32(sample_rate)
    return np.minimum(time / np.float32(attack_s), 1) * np.exp(-time / np.float32(tau_s))


def fade(signal: Signal, sample_rate: int, seconds: float = 0.01) -> Signal:
    """`signal` with raised-cosine ends of `seconds` (at most half of it), so that nothing clicks."""
    m = min(int(seconds * sample_rate), len(signal) // 2)
    if m > 0:
        ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(m) + 0.5) / m)).astype(np.float32)
        signal[:m] *= ramp
        signal[-m:] *= ramp[::-1]
    return signal


def wander(rng: np.random.Generator, n: int, sample_rate: int, rate_hz: float) -> Signal:
    """A slow random curve [N] in -1 .. 1 with about `rate_hz` turns a second, smooth between its knots."""
    count = int(np.ceil(n / sample_rate * rate_hz)) + 2
    knots = rng.uniform(-1, 1, count)
    blend = np.linspace(0, 1, 16, endpoint=False)
    blend = blend * blend * (3 - 2 * blend)
    smooth = (knots[:-1, None] + np.diff(knots)[:, None] * blend).ravel()  # 16 points from knot to knot
    place = np.arange(n) * (16 * rate_hz / sample_rate)
    return np.interp(place, np.arange(len(smooth)), smooth).astype(np.float32)


def scatter(rng: np.random.Generator, n: int, sample_rate: int, rate_hz: float, spread_db: float) -> Signal:
    """Random impulses [N] (Poisson in time, levels spread over `spread_db` below 1, either sign)."""
    out = np.zeros(n, dtype=np.float32)
    count = max(1, rng.poisson(rate_hz * n / sample_rate))
    level = 10 ** (-rng.uniform(0, spread_db, count) / 20) * rng.choice([-1.0, 1.0], count)
    np.add.at(out, rng.integers(0, n, count), level.astype(np.float32))
    return out


def pulse_train(rng: np.random.Generator, n: int, sample_rate: int, rate_hz: float) -> Signal:
    """Unit impulses [N] at a steady `rate_hz` with a little jitter."""
    out = np.zeros(n, dtype=np.float32)
    gaps = sample_rate / rate_hz * (1 + 0.05 * rng.standard_normal(int(n / sample_rate * rate_hz) + 2))
    at = np.cumsum(np.maximum(gaps, 1)).astype(np.int64)
    out[at[at < n]] = 1.0
    return out


def at_speed(signal: Signal, speed: float) -> Signal:
    """`signal` [N] played `speed` times as fast, still [N]: zeros past its end. Cubic (Catmull-Rom) interpolation."""
    padded = np.concatenate([np.zeros(1), signal, np.zeros(3)]).astype(np.float32)
    place = np.minimum(np.arange(len(signal)) * speed, len(signal))
    left = place.astype(np.int64)
    x = (place - left).astype(np.float32)
    before, here, after, later = (padded[left + k] for k in range(4))
    slope, bend = after - before, 2 * before - 5 * here + 4 * after - later
    return here + 0.5 * x * (slope + x * (bend + x * (3 * (here - after) + later - before)))


def room(signal: Signal, rng: np.random.Generator, sample_rate: int, decay_s: float, wet_db: float) -> Signal:
    """`signal` [N] with the tail of a room: noise that falls by 60 dB in `decay_s`, its energy at `wet_db`."""
    n, m = len(signal), max(2, int(decay_s * sample_rate))
    time = np.arange(m, dtype=np.float32) / np.float32(sample_rate)
    tail = rng.standard_normal(m, dtype=np.float32) * np.exp(time * np.float32(-6.9 / decay_s))
    tail = lowpass(tail, 4000, sample_rate)
    tail *= np.float32(10 ** (wet_db / 20) / np.sqrt(np.sum(tail**2)))
    size = fft.next_fast_len(n + m, real=True)
    return signal + fft.irfft(fft.rfft(signal, size) * fft.rfft(tail, size), size)[:n]
