"""HiFi-GAN, mel spectrogram to waveform: transformers' SpeechT5HifiGan, from a config that a recipe can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.models.speecht5.configuration_speecht5 import SpeechT5HifiGanConfig
from transformers.models.speecht5.modeling_speecht5 import SpeechT5HifiGan

from audiogen.config import Positive, check_ranges
from audiogen.errors import InputError


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
            raise InputError(
                f"vocoder.rates {self.rates} and vocoder.kernels {self.kernels} must be as many, at least one"
            )
        if any(kernel < rate for rate, kernel in zip(self.rates, self.kernels, strict=True)):
            raise InputError(
                f"vocoder.kernels {self.kernels}: each must reach at least its rate {self.rates}"
            )
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise InputError("vocoder.resblock_kernels and vocoder.resblock_dilations must be as many")
        if self.channels % 2 ** len(self.rates):
            raise InputError(
                f"vocoder.channels is {self.channels}; it is halved {len(self.rates)} times, so it must be a multiple "
                f"of {2 ** len(self.rates)}"
            )

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


def vocode(network: Any, mel: Tensor, hop_length: int) -> Tensor:
    """Log-mel [B, 1, T, M] -> audio [B, 1, T * hop_length].

    A stage whose kernel exceeds its rate by an odd number makes one sample more than rate times its input: the end is
    cut (32 samples of the released vocoder).
    """
    return network(mel[:, 0])[:, None, : mel.shape[2] * hop_length]
