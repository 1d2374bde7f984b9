"""The log-mel spectrogram that the mel autoencoders and their vocoder are trained on (AudioLDM, LAFMA, Tango)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.audio import mel_filterbank
from audiogen.config import Positive, PositiveFloat, check_ranges
from audiogen.errors import InputError


@dataclass(frozen=True)
class MelConfig:
    """Sizes of the released spectrogram. f_min, f_max: Hz. floor: smallest magnitude, before the logarithm."""

    sample_rate: Positive = 16000
    n_fft: Positive = 1024
    hop_length: Positive = 160
    num_mels: Positive = 64
    f_min: float = 0.0
    f_max: float = 8000.0
    floor: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.hop_length > self.n_fft or (self.n_fft - self.hop_length) % 2:
            raise InputError(
                f"mel.hop_length is {self.hop_length}; it must be between 1 and mel.n_fft ({self.n_fft}), and an even "
                "number below it, so that both ends are padded alike"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"mel bins are from {self.f_min:g} to {self.f_max:g} Hz; they must ascend, up to half of "
                f"{self.sample_rate} Hz"
            )


def log_mel(audio: Tensor, config: MelConfig) -> Tensor:
    """Natural log of the mel magnitudes of audio [B, 1, N] -> [B, 1, T, M], T = N // hop_length, float32.

    Hann window of n_fft, slaney filters; (n_fft - hop_length) / 2 samples are reflected beyond each end, so that frame
    t is centred on its own hop. Zeros follow audio that is too short to be reflected. Differentiable.
    """
    frames, pad = audio.shape[-1] // config.hop_length, (config.n_fft - config.hop_length) // 2
    flat = audio.float()[:, 0]  # [B, N]
    flat = F.pad(flat, (0, max(0, pad + 1 - flat.shape[-1])))
    flat = F.pad(flat, (pad, pad), mode="reflect")
    window = torch.hann_window(config.n_fft, device=audio.device)
    spectrum = torch.stft(
        flat, config.n_fft, config.hop_length, window=window, center=False, return_complex=True
    ).abs()  # [B, F, T]
    filters = mel_filterbank(config.sample_rate, config.n_fft, config.num_mels, config.f_min, config.f_max)
    mel = spectrum.transpose(1, 2) @ filters.to(audio.device)  # [B, T, M]
    return mel[:, None, :frames].clamp(min=config.floor).log()
