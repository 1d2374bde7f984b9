"""Log-mel spectrogram to waveform without a network: magnitudes that have that mel, phases by Griffin-Lim.

A small mel autoencoder then needs no trained vocoder. The released systems have HiFi-GAN in its place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio import mel_filterbank
from audiogen.diffusion.mel import MelConfig

MAGNITUDE_STEPS, PHASE_STEPS = 10, 16  # twice as many phase steps: log-mel distance 0.117 in place of 0.120
MOMENTUM = 0.99  # fast Griffin-Lim (Perraudin et al., 2013)
LOUDEST = 8.0  # log-mel magnitude, above that of sound at full scale; a denoiser's outliers stay finite


def magnitudes(mel: Tensor, config: MelConfig) -> Tensor:
    """Log-mel [B, T, M] -> magnitudes [B, F, T], none below 0, whose mel comes near.

    Every band's mean is spread over its bins, then corrected by multiplications that cannot change signs (Lee and
    Seung, 2001, equation 5: the update that lowers the KL divergence).
    """
    filters = mel_filterbank(config.sample_rate, config.n_fft, config.num_mels, config.f_min, config.f_max)
    filters = filters.to(mel.device)  # [F, M]
    wanted = mel.float().clamp(max=LOUDEST).exp()  # [B, T, M]
    found = (wanted / filters.sum(0).clamp(min=1e-8)) @ (
        filters / filters.sum(1, keepdim=True).clamp(min=1e-8)
    ).T
    for _ in range(MAGNITUDE_STEPS):
        ratio = wanted / (found @ filters).clamp(min=1e-9)
        found = found * (ratio @ filters.T) / filters.sum(1).clamp(min=1e-9)
    return found.transpose(1, 2)


def griffin_lim(mel: Tensor, config: MelConfig) -> Tensor:
    """Log-mel [B, T, M], as `mel.log_mel` frames it -> audio [B, T * hop_length], float32.

    Phases start from the same random numbers every time: the same spectrogram gives the same sound, in any batch.
    """
    # One frame more at each end: torch's frames are centred on multiples of the hop, ours half a hop later.
    magnitude = F.pad(magnitudes(mel, config), (1, 1), mode="replicate")  # [B, F, T + 2]
    window = torch.hann_window(config.n_fft, device=mel.device)
    generator = torch.Generator().manual_seed(0)
    phase = 2 * math.pi * torch.rand(magnitude.shape[2], magnitude.shape[1], generator=generator).T
    rotation = torch.polar(torch.ones_like(phase), phase).to(mel.device)  # [F, T + 2]

    def inverse(rotation: Tensor) -> Tensor:
        return torch.istft(magnitude * rotation, config.n_fft, config.hop_length, window=window)

    previous = torch.zeros_like(magnitude, dtype=rotation.dtype)
    for _ in range(PHASE_STEPS):
        spectrum = torch.stft(
            inverse(rotation),
            config.n_fft,
            config.hop_length,
            window=window,
            pad_mode="constant",  # one frame is too short to be reflected
            return_complex=True,
        )
        ahead = spectrum + MOMENTUM * (spectrum - previous)  # [B, F, T + 2]
        rotation = ahead / ahead.abs().clamp(min=1e-8)
        previous = spectrum
    half = config.hop_length // 2
    return inverse(rotation)[:, half : half + mel.shape[1] * config.hop_length]
