"""The log-mel spectrogram of the mel autoencoders (AudioLDM, LAFMA, Tango), and two ways back to a waveform.

HiFi-GAN is that of the released systems (transformers' SpeechT5HifiGan). Griffin-Lim has no weights: a small mel
autoencoder then needs no trained vocoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.speecht5.configuration_speecht5 import SpeechT5HifiGanConfig
from transformers.models.speecht5.modeling_speecht5 import SpeechT5HifiGan

from audiogen.config import Positive, PositiveFloat, check_ranges
from audiogen.errors import InputError
from audiogen.griffin_lim import add_frames, envelope, spectra
from audiogen.spectrogram import mel_filterbank

# Of Griffin-Lim. With twice as many phase steps the log-mel distance is 0.117 in place of 0.120.
MAGNITUDE_STEPS, PHASE_STEPS = 10, 16
MOMENTUM = 0.99  # fast Griffin-Lim (Perraudin et al., 2013)
LOUDEST = 8.0  # log-mel magnitude, above that of sound at full scale; a denoiser's outliers stay finite


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
        if self.hop_length > self.n_fft or (self.n_fft - self.hop_length) % 2:  # both ends are padded alike
            raise InputError(
                f"mel.hop_length is {self.hop_length}; n_fft, {self.n_fft}, less an even number is needed"
            )
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"mel bins from {self.f_min:g} to {self.f_max:g} Hz must ascend, up to half of {self.sample_rate} Hz"
            )

    def filters(self, device: torch.device) -> Tensor:
        """Slaney's [F, M]."""
        sizes = (self.sample_rate, self.n_fft, self.num_mels, self.f_min, self.f_max)
        return mel_filterbank(*sizes).to(device)


def log_mel(audio: Tensor, config: MelConfig) -> Tensor:
    """Natural log of the mel magnitudes of audio [B, 1, N] -> [B, 1, T, M], T = N // hop_length, float32.

    Hann window of n_fft, slaney filters; (n_fft - hop_length) / 2 samples are reflected beyond each end, so that frame
    t is centred on its own hop. Zeros follow audio that is too short to be reflected. Differentiable.
    """
    n_fft, hop_length = config.n_fft, config.hop_length
    frames = audio.shape[-1] // hop_length
    pad = (n_fft - hop_length) // 2
    flat = audio.float()[:, 0]  # [B, N]
    flat = F.pad(flat, (0, max(0, pad + 1 - flat.shape[-1])))
    flat = F.pad(flat, (pad, pad), mode="reflect")
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(
        flat, n_fft, hop_length, window=window, center=False, return_complex=True
    )  # [B, F, T]
    mel = spectrum.abs().transpose(1, 2) @ config.filters(audio.device)  # [B, T, M]
    return mel[:, None, :frames].clamp(min=config.floor).log()


@dataclass(frozen=True)
class VocoderConfig:
    """HiFi-GAN V1 as AudioLDM has it, for 64 bins at 16 kHz: 55 M parameters. Each stage halves `channels`."""

    channels: Positive = 1024
    rates: tuple[Positive, ...] = (5, 4, 2, 2, 2)
    kernels: tuple[Positive, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[Positive, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[Positive, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.rates) != len(self.kernels) or not self.rates:
            raise InputError(f"vocoder.rates {self.rates}, kernels {self.kernels}: a stage needs one of each")
        if any(kernel < rate for rate, kernel in zip(self.rates, self.kernels, strict=True)):
            raise InputError(f"vocoder.kernels {self.kernels}: each must be at least its rate {self.rates}")
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise InputError("vocoder.resblock_kernels and vocoder.resblock_dilations must be as many")
        if self.channels % 2 ** len(self.rates):
            raise InputError(f"vocoder.channels {self.channels} must be a multiple of {2 ** len(self.rates)}")

    @property
    def hop_length(self) -> int:
        """Samples for each mel frame."""
        return math.prod(self.rates)


def vocoder(config: VocoderConfig, num_mels: int, sample_rate: int) -> Any:
    """A SpeechT5HifiGan with new weights, without weight norm; its input is not standardised."""
    shape = SpeechT5HifiGanConfig(
        model_in_dim=num_mels,
        sampling_rate=sample_rate,
        upsample_initial_channel=config.channels,
        upsample_rates=list(config.rates),
        upsample_kernel_sizes=list(config.kernels),
        resblock_kernel_sizes=list(config.resblock_kernels),
        resblock_dilation_sizes=[list(dilations) for dilations in config.resblock_dilations],
        normalize_before=False,
    )
    return SpeechT5HifiGan(shape)


def magnitudes(mel: Tensor, config: MelConfig) -> Tensor:
    """Log-mel [B, T, M] -> magnitudes [B, F, T], none below 0, whose mel comes near.

    Every band's mean is spread over its bins, then corrected by multiplications that cannot change signs (Lee and
    Seung, 2001, equation 5: the update that lowers the KL divergence).
    """
    filters = config.filters(mel.device)  # [F, M]
    wanted = mel.float().clamp(max=LOUDEST).exp()  # [B, T, M]
    spread = filters / filters.sum(1, keepdim=True).clamp(min=1e-8)
    found = (wanted / filters.sum(0).clamp(min=1e-8)) @ spread.T  # [B, T, F]
    for _ in range(MAGNITUDE_STEPS):
        ratio = wanted / (found @ filters).clamp(min=1e-9)  # silence divides by no zero
        found = found * (ratio @ filters.T) / filters.sum(1).clamp(min=1e-9)
    return found.transpose(1, 2)


def griffin_lim(mel: Tensor, config: MelConfig, is_loop: bool = False) -> Tensor:
    """Log-mel [B, T, M], as `log_mel` frames it -> audio [B, T * hop_length], float32.

    Phases start from the same random numbers every time: the same spectrogram gives the same sound, in any batch.
    is_loop: the end continues into the beginning, magnitudes and phases alike.
    """
    n_fft, hop, num_frames = config.n_fft, config.hop_length, mel.shape[1]
    # One frame more at each end: torch's frames are centred on multiples of the hop, ours half a hop later. Of a loop
    # as many as overlap with one more frame, and what is computed for them is that of the frames that they repeat.
    sides = n_fft // hop + 2 if is_loop else 1
    place = torch.arange(-sides, num_frames + sides)
    place = (place % num_frames if is_loop else place.clamp(0, num_frames - 1)).to(mel.device)
    magnitude = magnitudes(mel, config)[..., place].transpose(1, 2).contiguous()  # [B, T + 2 sides, F]
    count, num_bins = magnitude.shape[1:]
    generator = torch.Generator().manual_seed(0)
    phase = 2 * math.pi * torch.rand(count, num_bins, generator=generator)
    phase = phase[place.cpu()] if is_loop else phase
    rotation = torch.polar(torch.ones_like(phase), phase).to(mel.device).expand(len(mel), -1, -1)
    inside = slice(
        n_fft // 2, (count - 1) * hop + n_fft - n_fft // 2
    )  # what lies between the middles of two windows
    weights = envelope(n_fft, hop, count, mel.device)[inside]
    nothing = magnitude.new_zeros(len(mel), n_fft - hop)

    def inverse(rotation: Tensor) -> Tensor:  # [B, T + 2 sides, F] -> [B, (T + 2 sides - 1) * hop]
        return add_frames(rotation, magnitude, nothing, n_fft, hop)[:, inside] / weights

    previous = torch.zeros_like(rotation)
    for _ in range(PHASE_STEPS):
        audio = F.pad(inverse(rotation), (n_fft // 2, n_fft - n_fft // 2))
        rotation, previous = spectra(audio, previous, n_fft, hop, MOMENTUM)
        if is_loop:
            rotation, previous = rotation[:, place + sides], previous[:, place + sides]
    begin = (sides - 1) * hop + hop // 2
    return inverse(rotation)[:, begin : begin + num_frames * hop]
