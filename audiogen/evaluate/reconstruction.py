"""How far a decoded sound is from the original, and how much its codes say. Shapes: `interfaces.py`.

The distances take (audio [B, C, N], target [B, C, N], sample rate in Hz) and give one value an item [B]. What a
definition leaves open is NaN, never a number made up: the target is silent and the distance relative to it, or a
package gives no value. `measure` checks the sounds and calls them by name.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from audiogen.audio import resample
from audiogen.codec import losses
from audiogen.codec.losses import mel_distance
from audiogen.errors import InputError

Distance: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]
Samples: TypeAlias = NDArray[np.float64]  # [N]

FLOOR = 1e-5  # spectral magnitudes below -100 dB of a full-scale sine count as that: the difference is not audible
STFT_WINDOWS = (512, 1024, 2048)  # samples, as in Parallel WaveGAN
LONGEST_WINDOW = STFT_WINDOWS[-1]
SI_SDR_LIMIT_DB = 100.0
CONSTANT_RMS = 1e-7  # about the mean; a sound below it is constant but for rounding


def mel_by_item(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """`multi_scale_mel` item by item -> [B]; 1e-4 for equal sounds, by the floor under its root."""
    pairs = zip(audio, target, strict=True)
    return torch.stack([losses.multi_scale_mel(a[None], t[None], sample_rate) for a, t in pairs])


def multi_resolution_stft(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Spectral convergence plus L1 of natural-log magnitudes, mean over windows of 512, 1024, 2048 samples -> [B].

    Parallel WaveGAN (arXiv:1910.11480), section 2.2, with hops of a quarter window. NaN where the target is digital
    silence, to which the convergence is relative. A gain g gives |1 - g| + |ln g|.
    """
    terms = []
    for n_fft in STFT_WINDOWS:
        a, t = _magnitude(audio, n_fft), _magnitude(target, n_fft)  # [B, C, F, T]
        size = t.square().sum((1, 2, 3)).sqrt()
        convergence = (a - t).square().sum((1, 2, 3)).sqrt() / torch.where(size > 0, size, math.nan)
        gap = a.clamp(min=FLOOR).log() - t.clamp(min=FLOOR).log()
        terms.append(convergence + gap.abs().mean((1, 2, 3)))
    return torch.stack(terms).mean(0)


def log_spectral_distance_db(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Root mean square over bins of the difference of spectra in dB, mean over frames -> [B].

    Windows of 2048 samples, hop 512. A gain of g dB gives |g|, as far as both stay above -100 dB.
    """
    a, t = (20 * _magnitude(sound, LONGEST_WINDOW).clamp(min=FLOOR).log10() for sound in (audio, target))
    return (a - t).square().mean(2).sqrt().mean((1, 2))


def si_sdr_db(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """`codec.losses.si_sdr` [B] in dB, within +-100: gain and DC change nothing.

    Constant audio holds nothing of the target and gets -100; against a constant target it is not defined, NaN.
    """
    a, t = _standardised(audio), _standardised(target)
    ratio = losses.si_sdr(a, t).clamp(-SI_SDR_LIMIT_DB, SI_SDR_LIMIT_DB)
    ratio = torch.where(a.any(2).any(1), ratio, -SI_SDR_LIMIT_DB)
    return torch.where(t.any(2).any(1), ratio, math.nan)


def _magnitude(audio: Tensor, n_fft: int) -> Tensor:
    """[B, C, N] -> magnitudes [B, C, F, T], 1 at the bin of a full-scale sine; hop n_fft / 4, zeros beyond the ends."""
    window = torch.hann_window(n_fft, device=audio.device)
    flat = rearrange(audio.float(), "b c n -> (b c) n")
    spectrum = torch.stft(flat, n_fft, n_fft // 4, window=window, pad_mode="constant", return_complex=True)
    return rearrange(spectrum.abs() * (2 / window.sum()), "(b c) f t -> b c f t", b=audio.shape[0])


def _standardised(audio: Tensor) -> Tensor:
    """Zero mean in each channel, then one rms for all [B, C, N]; what is constant becomes zeros."""
    centred = audio.double() - audio.double().mean(-1, keepdim=True)
    rms = centred.square().mean((1, 2), keepdim=True).sqrt()
    return torch.where(rms > CONSTANT_RMS, centred / rms, 0.0).float()


# ------------------------------------------------------------------------------------- of optional packages


def visqol(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """ViSQOL v3 in audio mode (arXiv:2004.09584): predicted opinion of quality [B], 1 to 4.73; mono at 48 kHz."""
    api = _visqol_api()

    def score(a: Samples, t: Samples) -> float:
        return api.measure_from_arrays(t, a, 48000).moslqo

    return _each(score, 1.0, audio, target, sample_rate, 48000)


@cache
def _visqol_api() -> Any:
    api = _package("visqol").VisqolApi()
    api.create(mode="audio")
    return api


def pesq(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """PESQ's predicted opinion of speech [B], 1.04 to 4.64 (ITU-T P.862.2), mixed to mono.

    Wide-band at 16 kHz; below that rate narrow-band at 8 kHz (P.862.1). NaN where there is no speech in it, or under a
    quarter of a second.
    """
    package = _package("pesq")
    rate, mode = (16000, "wb") if sample_rate >= 16000 else (8000, "nb")

    def score(a: Samples, t: Samples) -> float:
        with suppress(package.PesqError):
            return package.pesq(rate, t, a, mode)
        return math.nan

    return _each(score, 1.0, audio, target, sample_rate, rate)


def stoi(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Short-time intelligibility of speech [B], 0 to 1 (Taal et al., ICASSP 2010), mixed to mono.

    NaN where, after the silent frames are left out, less than 30 frames (0.4 s) remain.
    """
    package = _package("stoi")

    def score(a: Samples, t: Samples) -> float:
        with warnings.catch_warnings(), suppress(RuntimeWarning):
            warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)
            return package.stoi(t, a, sample_rate)
        return math.nan

    return _each(score, 0.0, audio, target, sample_rate, sample_rate)


def _each(
    score: Callable[[Samples, Samples], float],
    lowest: float,
    audio: Tensor,
    target: Tensor,
    sample_rate: int,
    rate: int,
) -> Tensor:
    """score(audio, target) of mono pairs at `rate`. Constant audio gets the lowest; a constant target gives NaN."""
    scores = []
    for pair in zip(audio, target, strict=True):
        a, t = (resample(sound.mean(0), sample_rate, rate).double().cpu().numpy() for sound in pair)
        constant = [float(sound.std()) < CONSTANT_RMS for sound in (a, t)]
        scores.append(math.nan if constant[1] else lowest if constant[0] else float(score(a, t)))
    return torch.tensor(scores, dtype=torch.float32, device=audio.device)


def _package(metric: str) -> Any:
    try:
        return importlib.import_module(PACKAGES[metric])
    except ImportError as error:
        advice = "pip install '.[metrics]' in the checkout, or leave the metric out"
        raise InputError(f"the metric {metric} needs a package ({error}): {advice}") from None


# ---------------------------------------------------------------------------------------------------- by name

DISTANCES: dict[str, Distance] = {
    "mel": mel_distance,
    "multi_scale_mel": mel_by_item,
    "multi_resolution_stft": multi_resolution_stft,
    "log_spectral_db": log_spectral_distance_db,
    "si_sdr_db": si_sdr_db,
}
OPTIONAL: dict[str, Distance] = {"visqol": visqol, "pesq": pesq, "stoi": stoi}
PACKAGES = {"visqol": "visqol", "pesq": "pesq", "stoi": "pystoi"}


def check_metrics(names: Sequence[str]) -> None:
    """InputError for the name of an optional metric that does not exist, or whose package is not installed."""
    for name in names:
        if name not in OPTIONAL:
            raise InputError(f"no metric is called {name!r}; allowed: {', '.join(OPTIONAL)}")
        _package(name)


def measure(
    audio: Tensor, target: Tensor, sample_rate: int, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """All distances of audio [B, C, N] to target [B, C, N] by name, [B] each; the optional ones that are asked for.

    The target is finite, and N at least `LONGEST_WINDOW`. InputError for audio that is not finite.
    """
    if not audio.isfinite().all():
        raise InputError("the audio holds samples that are not finite (NaN or infinity)")
    chosen = DISTANCES | {name: OPTIONAL[name] for name in optional}
    return {name: distance(audio, target, sample_rate) for name, distance in chosen.items()}


# ------------------------------------------------------------------------------------------------ use of codes


class CodeEntropy(NamedTuple):
    """What codes carry. bits_per_s: with the best code for each codebook by itself, without context.

    perplexity: 2^entropy of each codebook [K], from 1 to its size. used: codewords of each that occur [K].
    """

    bits_per_s: float
    perplexity: NDArray[np.float64]
    used: NDArray[np.int64]


def count_codes(codes: Tensor, codebook_size: int) -> NDArray[np.int64]:
    """How often each codeword occurs in codes [B, K, T] -> [K, V]. Counts of several clips add up."""
    rows = rearrange(codes, "b k t -> k (b t)")
    return np.stack([torch.bincount(row, minlength=codebook_size).cpu().numpy() for row in rows])


def code_entropy(counts: NDArray[Any], frame_rate: float) -> CodeEntropy:
    """Entropy of codes counted by `count_codes` [K, V], at frame_rate Hz.

    The plug-in estimate, which falls short of the true one by about (V - 1) / (2 n ln 2) bits a code for n frames:
    a few seconds of sound cannot show that a large codebook is used evenly.
    """
    share = counts / counts.sum(1, keepdims=True)
    bits = -(share * np.log2(np.where(share > 0, share, 1.0))).sum(1)  # [K]
    return CodeEntropy(float(bits.sum() * frame_rate), 2.0**bits, (counts > 0).sum(1))
