"""What a generated sound is made into before it is written: sample rate, length, width, fades, loudness, peak.

    result = Finish(loudness=-23, fade_out=0.5, sample_rate=48000).apply(sound, 16000)
    audio.save("rain.wav", result.sound, result.sample_rate)

All of it works on whole sounds [C, N]. The order is that of the fields' use in `Finish.apply`: loudness comes last but
for the peak, so that a measurement of the file gives the number that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from audiogen.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

QUIETEST_LUFS, LOUDEST_LUFS = -70.0, -5.0  # below the first is silence by BS.1770's absolute gate
PEAK_DB = -1.0  # true peak beside a loudness: EBU R 128's maximum
QUIETEST_PEAK_DB = -40.0
BLOCK_S = 0.4  # of BS.1770's gate: what is shorter is measured with silence after it
CLOSE_LU = 0.05  # of the loudness that was asked for: the gain is right
NOTED_LU = 0.2  # what is further off is said
MOST_ROUNDS = 20  # of turning up what the limiter turned down
LOOK_S = 0.005  # to either side of a peak, over which the limiter's gain moves
OVERSAMPLING = 4  # BS.1770-4, annex 2: peaks between the samples
TRIM_DB, TRIM_FRAME_S = -50.0, 0.01  # silence: frames so far below the loudest one
# Delays and gain of the all-pass filters that make the side of a mono sound. Delays without a common divisor: echoes
# do not fall together; all within 30 ms, below which they are not separate events.
ALL_PASS_S, ALL_PASS_GAIN = (0.0031, 0.0073, 0.0119), 0.6


class Finished(NamedTuple):
    """A sound [C, N] as it is written. turned_down_db: the whole of it, to full scale. notes: what could not be done.

    loudness: LUFS, None where none was asked for, or the sound is silent.
    """

    sound: Tensor
    sample_rate: int
    loudness: float | None = None
    turned_down_db: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finish:
    """Loudness and shape. None, or False, leaves a thing as it is. InputError for a value that cannot be.

    loudness: LUFS (integrated, ITU-R BS.1770-4), by one gain. peak: the largest true peak in dB of full scale (dBTP),
    kept by a limiter; -1 beside a loudness. fade_in, fade_out: seconds. trim_silence: drop what lies 50 dB below the
    loudest 10 ms at both ends. stereo_width: a mono sound becomes stereo, from 0 (both sides equal) to 1 (as much side
    as middle); the mean of both sides stays the mono sound. sample_rate: Hz.
    """

    loudness: float | None = None
    peak: float | None = None
    fade_in: float | None = None
    fade_out: float | None = None
    trim_silence: bool = False
    stereo_width: float | None = None
    sample_rate: int | None = None

    def __post_init__(self) -> None:
        for name, low, high, unit in (
            ("loudness", QUIETEST_LUFS, LOUDEST_LUFS, "LUFS"),
            ("peak", QUIETEST_PEAK_DB, 0.0, "dBTP"),
            ("fade_in", 0.0, math.inf, "s"),
            ("fade_out", 0.0, math.inf, "s"),
            ("stereo_width", 0.0, 1.0, "(both sides equal to widest)"),
            ("sample_rate", 1_000, 768_000, "Hz"),
        ):
            value = getattr(self, name)
            if value is not None and not (low <= value <= high and math.isfinite(value)):
                span = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
                raise InputError(f"{shown(name)} is {value}; it must be {span} {unit}")

    def given(self) -> dict[str, Any]:
        """The fields that ask for something, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}

    def check(self, duration_s: float, channels: int, format: str = "wav") -> None:
        """InputError where this cannot be done to sounds of a model, or not be written in a format."""
        fades_s = (self.fade_in or 0.0) + (self.fade_out or 0.0)
        if fades_s > duration_s:
            raise InputError(
                f"{shown('fade_in')} and {shown('fade_out')} take {fades_s:g} s together, and the sound has "
                f"{duration_s:g} s; give shorter fades"
            )
        if self.stereo_width is not None and channels != 1:
            raise InputError(
                f"{shown('stereo_width')} makes a mono sound stereo, and the model's sounds have {channels} channels; "
                f"drop {shown('stereo_width')}"
            )
        if self.sample_rate is not None:
            from audiogen import audio

            audio.check_writable(format, self.sample_rate)

    def apply(self, sound: Tensor, sample_rate: int, duration_s: float | None = None) -> Finished:
        """A sound [C, N] at a rate -> as it is written, within full scale.

        duration_s: that was asked for, for the exact length at another sample rate; None is that of the samples.
        """
        if not self.given():
            return Finished(sound, sample_rate)
        import torch

        from audiogen import audio

        rate = self.sample_rate or sample_rate
        if rate != sample_rate:
            exact = max(1, round((duration_s or sound.shape[-1] / sample_rate) * rate))
            sound = audio.resample(sound, sample_rate, rate)[:, :exact]
            sound = torch.nn.functional.pad(sound, (0, exact - sound.shape[-1]))  # at most a sample or two
        samples = sound.detach().to("cpu", torch.float64).numpy()
        if self.trim_silence:
            samples = trimmed(samples, rate)
        if self.stereo_width is not None:
            samples = widened(samples, rate, self.stereo_width)
        samples = faded(samples, round((self.fade_in or 0) * rate), round((self.fade_out or 0) * rate))
        reached: float | None = None
        notes: tuple[str, ...] = ()
        if self.loudness is not None:
            peak = PEAK_DB if self.peak is None else self.peak
            samples, reached, notes = at_loudness(samples, rate, self.loudness, peak)
        elif self.peak is not None:
            samples = limited(samples, rate, self.peak)
        result = torch.from_numpy(samples.astype("float32"))
        down_db = 20 * math.log10(max(1.0, float(result.abs().max())))
        return Finished(audio.below_full_scale(result), rate, reached, down_db, notes)


def shown(name: str) -> str:
    """A field as the option of the command line."""
    return f"--{name.replace('_', '-')}"


def trimmed(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """[C, N] without the silence at both ends; a silent sound as it is."""
    import numpy as np

    frame = max(1, round(TRIM_FRAME_S * rate))
    count = -(-samples.shape[1] // frame)
    padded = np.pad(samples, ((0, 0), (0, count * frame - samples.shape[1])))
    power = np.square(padded).reshape(len(samples), count, frame).mean((0, 2))  # [count]
    if not power.max() > 0:
        return samples
    (loud,) = np.nonzero(power > power.max() * 10 ** (TRIM_DB / 10))
    return samples[:, loud[0] * frame : (loud[-1] + 1) * frame]


def widened(mono: NDArray[np.float64], rate: int, width: float) -> NDArray[np.float64]:
    """[1, N] -> [2, N]: middle plus and minus a side, which is the middle through all-pass filters (Schroeder 1962).

    An all-pass filter changes phases and no level, so that neither side is coloured. The mean of both is the middle.
    """
    import numpy as np
    from scipy.signal import lfilter

    side = mono[0]
    for delay_s in ALL_PASS_S:  # y[n] = -g x[n] + x[n - D] + g y[n - D]
        delay = max(1, round(delay_s * rate))
        taps = np.zeros(delay + 1)
        taps[0], taps[-1] = -ALL_PASS_GAIN, 1.0
        poles = np.zeros(delay + 1)
        poles[0], poles[-1] = 1.0, -ALL_PASS_GAIN
        side = lfilter(taps, poles, side)
    return np.stack([mono[0] + width * side, mono[0] - width * side])


def faded(samples: NDArray[np.float64], fade_in: int, fade_out: int) -> NDArray[np.float64]:
    """[C, N] with a rise and a fall of so many samples, each half a cosine; shorter where the sound is."""
    import numpy as np

    room = samples.shape[1] / max(1, fade_in + fade_out)
    if room < 1:  # of a sound that was trimmed
        fade_in, fade_out = int(fade_in * room), int(fade_out * room)
    samples = samples.copy()
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(fade_in) + 0.5) / max(1, fade_in))
    fall = 0.5 + 0.5 * np.cos(np.pi * (np.arange(fade_out) + 0.5) / max(1, fade_out))
    samples[:, :fade_in] *= rise
    samples[:, samples.shape[1] - fade_out :] *= fall
    return samples


def loudness_of(samples: NDArray[np.float64], rate: int) -> float:
    """Integrated loudness of [C, N] in LUFS, -inf of silence. What is shorter than a block has silence after it."""
    import numpy as np
    import pyloudnorm

    missing = math.ceil(BLOCK_S * rate) - samples.shape[1]
    padded = np.pad(samples, ((0, 0), (0, max(0, missing))))
    # two channels count twice, so that a mono file is measured as BS.1770 does: as one channel
    return float(pyloudnorm.Meter(rate, block_size=BLOCK_S).integrated_loudness(padded.T))


def at_loudness(
    samples: NDArray[np.float64], rate: int, target: float, peak_db: float
) -> tuple[NDArray[np.float64], float | None, tuple[str, ...]]:
    """[C, N] at a loudness (LUFS), its peaks limited -> the samples, what was reached, and notes.

    The limiter takes loudness away, so the gain is raised by what is missing until nothing is.
    """
    first = loudness_of(samples, rate)
    if not math.isfinite(first):
        return samples, None, ("silent by BS.1770 (below -70 LUFS): its loudness was not changed",)
    gain_db, result, reached = target - first, samples, first
    for _ in range(MOST_ROUNDS):
        result = limited(samples * 10 ** (gain_db / 20), rate, peak_db)
        reached = loudness_of(result, rate)
        if abs(target - reached) <= CLOSE_LU:
            return result, reached, ()
        gain_db += target - reached
    if abs(target - reached) <= NOTED_LU:
        return result, reached, ()
    note = f"{reached:.1f} LUFS in place of {target:g}: more is not reached below a peak of {peak_db:g} dBTP"
    return result, reached, (note,)


def limited(samples: NDArray[np.float64], rate: int, peak_db: float) -> NDArray[np.float64]:
    """[C, N] whose true peaks stay below a limit (dBTP): turned down around each, all channels alike.

    The gain that each sample needs is held for `LOOK_S` to both sides and then smoothed by a window as long, whose
    weights sum to 1: no smoothed gain is above what any sample needs.
    """
    import numpy as np
    from scipy.ndimage import convolve1d, minimum_filter1d

    most = 10 ** (peak_db / 20)
    peaks = true_peaks(samples)
    if peaks.max() <= most:
        return samples
    needed = np.minimum(1.0, most / np.maximum(peaks, most))  # [N]
    size = 2 * max(1, round(LOOK_S * rate)) + 1
    window = np.hanning(size + 2)[1:-1]
    gain = convolve1d(minimum_filter1d(needed, size, mode="nearest"), window / window.sum(), mode="nearest")
    result = samples * gain
    return result * min(1.0, most / true_peaks(result).max())  # what a moving gain adds between samples


def true_peaks(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of [C, N], the largest magnitude at each sample and up to its neighbours, over all channels -> [N]."""
    import numpy as np
    from scipy.ndimage import maximum_filter1d
    from scipy.signal import resample_poly

    fine = np.abs(resample_poly(samples, OVERSAMPLING, 1, axis=1)).max(0)  # [4 N]
    around = maximum_filter1d(fine, 2 * OVERSAMPLING - 1, mode="nearest")[::OVERSAMPLING]
    return np.maximum(around, np.abs(samples).max(0))
