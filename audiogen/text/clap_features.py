"""CLAP's log-mel features of a batch, as transformers' ClapFeatureExtractor makes them of one sound at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FLOOR = 1e-10  # smallest power in a mel bin, -100 dB


def clap_features(audio: Tensor, lengths: Sequence[int], extractor: Any) -> Tensor:
    """Mono audio [B, N] at the extractor's rate -> decibels [B, 1, T, M], float32, of the first `lengths` samples.

    Of a longer sound the middle, as `Clap.embed_audio` cuts it; a shorter one is repeated as the extractor does, which
    works in float64: float32 comes within 0.001 dB of it on recordings, 0.3 dB in silent bins beside a loud pure tone.
    """
    pieces = [fit_length(row[:length], extractor) for row, length in zip(audio, lengths, strict=True)]
    sound = torch.stack(pieces).float()  # [B, samples the model hears]
    n_fft = extractor.fft_window_size
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(
        sound, n_fft, extractor.hop_length, window=window, pad_mode="reflect", return_complex=True
    )  # [B, F, T]
    power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
    filters = torch.from_numpy(extractor.mel_filters_slaney).float().to(audio.device)  # [F, M]
    mel = power.transpose(1, 2) @ filters  # [B, T, M]
    return 10.0 * mel.clamp(min=FLOOR).log10()[:, None]


def fit_length(sound: Tensor, extractor: Any) -> Tensor:
    """A sound [N] cut or repeated and padded to the samples that the model hears."""
    wanted, num_samples = extractor.nb_max_samples, len(sound)
    if num_samples >= wanted:
        start = (num_samples - wanted) // 2
        return sound[start : start + wanted]
    if extractor.padding == "repeatpad":
        sound = sound.repeat(wanted // num_samples)
    elif extractor.padding == "repeat":
        sound = sound.repeat(wanted // num_samples + 1)[:wanted]
    return F.pad(sound, (0, wanted - len(sound)))
