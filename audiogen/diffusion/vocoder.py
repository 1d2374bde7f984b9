"""HiFi-GAN, mel spectrogram to waveform: transformers' SpeechT5HifiGan, from a config that a recipe can hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.models.speecht5.configuration_speecht5 import SpeechT5HifiGanConfig
from transformers.models.speecht5.modeling_speecht5 import SpeechT5HifiGan

from audiogen.errors import InputError


@dataclass(frozen=True)
class VocoderConfig:
    """HiFi-GAN V1 as AudioLDM has it, for 64 bins at 16 kHz: 55 M parameters. Each stage halves `channels`."""

    channels: int = 1024
    rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.kernels) or not self.rates:
            raise InputError(
                f"vocoder.rates {self.rates} and vocoder.kernels {self.kernels} must be as many, at least one"
            )
        if any(kernel < rate or rate < 1 for rate, kernel in zip(self.rates, self.kernels, strict=True)):
            raise InputError(
                f"vocoder.kernels {self.kernels}: each must reach at least its rate {self.rates}"
            )
        if len(self.resblock_kernels) != len(self.resblock_dilations):
            raise InputError("vocoder.resblock_kernels and vocoder.resblock_dilations must be as many")
        if self.channels % 2 ** len(self.rates) or self.channels < 1:
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


def read_config(shape: Any) -> VocoderConfig:
    """The config of a SpeechT5HifiGan's own configuration."""
    return VocoderConfig(
        channels=shape.upsample_initial_channel,
        rates=tuple(shape.upsample_rates),
        kernels=tuple(shape.upsample_kernel_sizes),
        resblock_kernels=tuple(shape.resblock_kernel_sizes),
        resblock_dilations=tuple(tuple(dilations) for dilations in shape.resblock_dilation_sizes),
    )


def vocode(network: Any, mel: Tensor, hop_length: int) -> Tensor:
    """Log-mel [B, 1, T, M] -> audio [B, 1, T * hop_length].

    A stage whose kernel exceeds its rate by an odd number makes one sample more than rate times its input: the end is
    cut (32 samples of the released vocoder).
    """
    return network(mel[:, 0])[:, None, : mel.shape[2] * hop_length]


def remove_weight_norm(network: nn.Module) -> None:
    """Fold the weight norm that `apply_weight_norm` gave for training into plain weights.

    In place of transformers' `remove_weight_norm`, which looks for an older kind than its `apply_weight_norm` makes.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
