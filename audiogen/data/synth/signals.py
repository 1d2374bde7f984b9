"""The raw material of the built-in corpus: oscillators, shaped noise, resonances and envelopes as numpy arrays [N].

Everything is vectorised, since training renders on the fly: a harmonic sound is one table lookup, coloured noise
one inverse FFT. Frequencies are clamped below the Nyquist frequency, so that any sample rate renders every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import lfilter

from audiogen.data.seeds import seed_for

Signal = NDArray[np.floating[Any]]  # float32 wherever speed counts
Numbers = Sequence[float] | Signal
Frequency = float | NDArray[np.floating[Any]]  # Hz, fixed or one value per sample
Curve = Sequence[tuple[float, float]]  # (Hz, dB) points of a spectrum, straight in log frequency

TABLE_SIZE = 4096  # one period; without interpolation its error stays near -70 dB for the harmonics used here


@dataclass(frozen=True)
class Synth:
    """What one sound is made with: its random numbers, its samples `n`, their rate and a pitch in Hz.

    The methods make or change signals [N]; random ones draw from `rng` in the order of the calls.
    """

    rng: np.random.Generator
    n: int
    rate: int
    pitch: float = 0.0

    def part(self, n: int) -> Synth:
        """The same for a part of `n` samples."""
        return replace(self, n=n)

    def uniform(self, low: float, high: float, count: int | None = None) -> Any:
        """A number between low and high, or `count` of them."""
        return self.rng.uniform(low, high, count)

    def seconds(self) -> Signal:
        """The time of each sample, float32 [N]."""
        return np.arange(self.n, dtype=np.float32) / np.float32(self.rate)

    def audible(self, hz: Frequency) -> Frequency:
        """`hz` kept in 1 Hz .. 0.45 rate."""
        return np.clip(hz, 1.0, 0.45 * self.rate)

    def phase(self, hz: Frequency) -> Signal:
        """Cycles since the start [N]; `hz` may vary per sample. float64: 30 s at 3 kHz is 90,000 cycles."""
        if isinstance(hz, np.ndarray):
            return np.cumsum(hz, dtype=np.float64) / self.rate
        return np.arange(self.n) * (hz / self.rate)

    def sine(self, hz: Frequency) -> Signal:
        """A sine of unit amplitude [N]."""
        cycles = self.phase(self.audible(hz))
        return np.sin((2 * np.pi * (cycles - np.floor(cycles))).astype(np.float32))

    def harmonic(self, hz: Frequency, amplitudes: Numbers) -> Signal:
        """A periodic tone [N] with the given amplitudes of harmonics 1, 2, ...; those past Nyquist are left out."""
        hz = self.audible(hz)
        limit = max(1, int(0.48 * self.rate / float(np.max(hz))))
        kept = np.asarray(amplitudes, dtype=np.float64)[: min(limit, TABLE_SIZE // 4)]
        spectrum = np.zeros(TABLE_SIZE // 2 + 1, dtype=np.complex128)
        spectrum[1 : len(kept) + 1] = -0.5j * TABLE_SIZE * kept
        table = fft.irfft(spectrum, TABLE_SIZE).astype(np.float32)
        index = (self.phase(hz) * TABLE_SIZE).astype(np.int64) & (TABLE_SIZE - 1)
        return table[index]

    def voice(
        self, hz: Frequency, pitch_hz: float, formants: Sequence[tuple[float, float]], tilt: float
    ) -> Signal:
        """A voice [N]: 60 harmonics, 1/h**tilt times resonances (centre, bandwidth in Hz) that `pitch_hz` has."""
        order = np.arange(1, 61)
        peaks = np.full(len(order), 0.01)
        for centre, width in formants:
            peaks += 1 / (1 + ((order * pitch_hz - centre) / (0.5 * width)) ** 2)
        return self.harmonic(hz, peaks / order**tilt)

    def partials(self, hz: Numbers, amplitudes: Numbers, decays_s: Numbers) -> Signal:
        """Inharmonic partials [N], each dying away with its own time constant, as a struck body does."""
        time, out = self.seconds(), np.zeros(self.n, dtype=np.float32)
        for f, amplitude, decay_s in zip(hz, amplitudes, decays_s, strict=True):
            if f < 0.45 * self.rate:
                out += np.float32(amplitude) * np.exp(-time / np.float32(decay_s)) * self.sine(f)
        return out

    def noise(self, curve: Curve) -> Signal:
        """Gaussian noise [N] of unit RMS whose spectrum follows `curve`."""
        size = fft.next_fast_len(max(self.n, 16), real=True)
        bins = size // 2 + 1
        hz = np.arange(bins, dtype=np.float32) * np.float32(self.rate / size)
        points, gains = zip(*curve, strict=True)
        gain_db = np.interp(np.log(np.maximum(hz, 1.0)), np.log(points), gains).astype(np.float32)
        shape = np.exp(gain_db * np.float32(np.log(10) / 20))
        shape[0] = 0
        draws = self.rng.standard_normal(2 * bins, dtype=np.float32).view(np.complex64)
        signal = fft.irfft(draws * shape, size)[: self.n]
        return signal / np.sqrt(np.mean(signal**2) + 1e-12)

    def wander(self, rate_hz: float) -> Signal:
        """A slow random curve [N] in -1 .. 1 with about `rate_hz` turns a second, smooth between its knots."""
        knots = self.rng.uniform(-1, 1, int(np.ceil(self.n / self.rate * rate_hz)) + 2)
        blend = np.linspace(0, 1, 16, endpoint=False)
        blend = blend * blend * (3 - 2 * blend)
        smooth = (knots[:-1, None] + np.diff(knots)[:, None] * blend).ravel()  # 16 points from knot to knot
        place = np.arange(self.n) * (16 * rate_hz / self.rate)
        return np.interp(place, np.arange(len(smooth)), smooth).astype(np.float32)

    def scatter(self, rate_hz: float, spread_db: float) -> Signal:
        """Random impulses [N] (Poisson in time, levels spread over `spread_db` below 1, either sign)."""
        out = np.zeros(self.n, dtype=np.float32)
        count = max(1, self.rng.poisson(rate_hz * self.n / self.rate))
        level = 10 ** (-self.rng.uniform(0, spread_db, count) / 20) * self.rng.choice([-1.0, 1.0], count)
        np.add.at(out, self.rng.integers(0, self.n, count), level.astype(np.float32))
        return out

    def pulse_train(self, rate_hz: float) -> Signal:
        """Unit impulses [N] at a steady `rate_hz` with a little jitter."""
        out = np.zeros(self.n, dtype=np.float32)
        jitter = 1 + 0.05 * self.rng.standard_normal(int(self.n / self.rate * rate_hz) + 2)
        at = np.cumsum(np.maximum(self.rate / rate_hz * jitter, 1)).astype(np.int64)
        out[at[at < self.n]] = 1.0
        return out

    def line(self, *points: tuple[float, float]) -> Signal:
        """Straight segments [N] through (fraction of the length, value) points."""
        x, y = zip(*points, strict=True)
        return np.interp(np.linspace(0, 1, self.n, dtype=np.float32), x, y).astype(np.float32)

    def decay(self, tau_s: float, attack_s: float = 0.001) -> Signal:
        """A percussive envelope [N]: linear attack, exponential decay."""
        time = self.seconds()
        return np.minimum(time / np.float32(attack_s), 1) * np.exp(-time / np.float32(tau_s))

    def fade(self, signal: Signal, seconds: float = 0.01) -> Signal:
        """`signal` with raised-cosine ends of `seconds` (at most half of it), so that nothing clicks."""
        m = min(int(seconds * self.rate), len(signal) // 2)
        if m > 0:
            ramp = (0.5 - 0.5 * np.cos(np.pi * (np.arange(m) + 0.5) / m)).astype(np.float32)
            signal[:m] *= ramp
            signal[-m:] *= ramp[::-1]
        return signal

    def resonate(self, signal: Signal, hz: float, width_hz: float) -> Signal:
        """A two-pole resonance [N] -> [N] with unit gain at its centre."""
        radius = np.exp(-np.pi * width_hz / self.rate)
        angle = 2 * np.pi * float(self.audible(hz)) / self.rate
        gain = (1 - radius) * np.sqrt(1 - 2 * radius * np.cos(2 * angle) + radius**2)
        poles = [1.0, -2 * radius * np.cos(angle), radius**2]
        return lfilter([gain], poles, signal).astype(np.float32)

    def lowpass(self, signal: Signal, hz: float) -> Signal:
        """One-pole low-pass [N] -> [N]."""
        keep = float(np.exp(-2 * np.pi * min(hz, 0.45 * self.rate) / self.rate))
        return lfilter([1 - keep], [1.0, -keep], signal).astype(np.float32)

    def room(self, signal: Signal, decay_s: float, wet_db: float) -> Signal:
        """`signal` [N] with the tail of a room: noise that falls by 60 dB in `decay_s`, its energy at `wet_db`."""
        n, m = len(signal), max(2, int(decay_s * self.rate))
        fall = np.exp(self.part(m).seconds() * np.float32(-6.9 / decay_s))  # ln 1000 = 6.9
        tail = self.lowpass(self.rng.standard_normal(m, dtype=np.float32) * fall, 4000)
        tail *= np.float32(10 ** (wet_db / 20) / np.sqrt(np.sum(tail**2)))
        size = fft.next_fast_len(n + m, real=True)
        return signal + fft.irfft(fft.rfft(signal, size) * fft.rfft(tail, size), size)[:n]


def random_numbers(*parts: int | str) -> np.random.Generator:
    """Of one use in the corpus: a function of `parts` alone."""
    return np.random.Generator(np.random.PCG64(seed_for("synth", *parts)))


def band(low_hz: float, high_hz: float, slope_db: float = 24.0) -> Curve:
    """A curve for `noise`: flat from low to high, falling by `slope_db` per octave outside."""
    high_hz = max(high_hz, low_hz * 1.01)
    return [(low_hz / 8, -3 * slope_db), (low_hz, 0.0), (high_hz, 0.0), (high_hz * 8, -3 * slope_db)]


def at_speed(signal: Signal, speed: float) -> Signal:
    """`signal` [N] played `speed` times as fast, still [N]: zeros past its end. Cubic (Catmull-Rom) interpolation."""
    padded = np.concatenate([np.zeros(1), signal, np.zeros(3)]).astype(np.float32)
    place = np.minimum(np.arange(len(signal)) * speed, len(signal))
    left = place.astype(np.int64)
    x = (place - left).astype(np.float32)
    before, here, after, later = (padded[left + k] for k in range(4))
    slope, bend = after - before, 2 * before - 5 * here + 4 * after - later
    return here + 0.5 * x * (slope + x * (bend + x * (3 * (here - after) + later - before)))
