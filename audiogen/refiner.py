"""A network that corrects what Griffin-Lim makes: phases that fit together, attacks that are not smeared.

Like Vocos (arXiv:2306.00814) ConvNeXt blocks over the frames of a short-time Fourier transform, but on a sound that is
already right in its magnitudes: from magnitudes alone a small network that has to find phases loses the harmonics
(docs/LOG.md). New weights change nothing, so training starts from Griffin-Lim's sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiogen.config import Positive, check_ranges
from audiogen.errors import InputError

FLOOR = 1e-4  # of a magnitude before the logarithm, -80 dB of a full-scale sine's
POWER = 0.3  # of the magnitudes of the complex input: quiet bins are seen as well


@dataclass(frozen=True)
class RefinerConfig:
    """Sizes; the defaults are for 16 kHz: windows of 32 ms every 8 ms, and 0.15 s of context on either side.

    n_fft: a multiple of hop_length, at least double. kernel_size: odd, in frames.
    """

    n_fft: Positive = 512
    hop_length: Positive = 128
    width: Positive = 192
    num_blocks: Positive = 6
    kernel_size: Positive = 7
    mlp_ratio: Positive = 3

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.n_fft % self.hop_length or self.n_fft < 2 * self.hop_length:
            raise InputError(
                f"n_fft is {self.n_fft}; it must be a multiple of hop_length={self.hop_length}, at least double"
            )
        if self.kernel_size % 2 == 0:
            raise InputError(f"kernel_size is {self.kernel_size}; it must be odd")

    @property
    def context(self) -> int:
        """Samples on either side that a sample of the output depends on, at most."""
        return self.num_blocks * (self.kernel_size // 2) * self.hop_length + 2 * self.n_fft


class Block(nn.Module):
    """Depthwise convolution over frames, then a perceptron per frame, residual (ConvNeXt): [B, T, D] -> [B, T, D]."""

    def __init__(self, config: RefinerConfig):
        super().__init__()
        width = config.width
        self.depthwise = nn.Conv1d(width, width, config.kernel_size, padding="same", groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.mlp_ratio * width)
        self.project = nn.Linear(config.mlp_ratio * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1.0 / config.num_blocks))  # near the identity

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.project(F.gelu(self.expand(self.norm(y))))


class Refiner(nn.Module):
    """Audio [B, C, N] -> audio [B, C, N], float32, channel by channel; with new weights the same sound."""

    window: Tensor

    def __init__(self, config: RefinerConfig):
        super().__init__()
        self.config = config
        bins = config.n_fft // 2 + 1
        self.register_buffer("window", torch.hann_window(config.n_fft, device="cpu"), persistent=False)
        self.embed = nn.Linear(3 * bins, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, 2 * bins)
        self.initialise()

    def initialise(self) -> None:
        """All weights: small, as in ConvNeXt; the input keeps its variance; nothing is corrected at first."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.normal_(self.embed.weight, std=self.embed.in_features**-0.5)
        nn.init.zeros_(self.out.weight)

    def forward(self, audio: Tensor) -> Tensor:
        flat, n_fft = rearrange(audio.float(), "b c n -> (b c) n"), self.config.n_fft
        frames: dict[str, Any] = {"n_fft": n_fft, "hop_length": self.config.hop_length, "window": self.window}
        with torch.autocast(audio.device.type, enabled=False):  # Fourier transforms need float32
            found = torch.stft(flat, **frames, pad_mode="constant", return_complex=True)
            spectrum = found * (4.0 / n_fft)  # [B * C, F, T]; a full-scale sine has 1 in its bin
            power = spectrum.real.square() + spectrum.imag.square()
            # A bin of magnitude 0 can be filled from its neighbours: the unit of a correction is their mean.
            unit = F.avg_pool2d(power[:, None], 3, stride=1, padding=1)[:, 0].clamp(min=1e-12).sqrt()
            compressed = spectrum * (power + 1e-8) ** ((POWER - 1) / 2)
            # Each about zero mean and unit variance, or less, over real recordings.
            inputs = ((torch.log(power.sqrt() + FLOOR) + 6.0) / 2.5, 3 * compressed.real, 3 * compressed.imag)
            x = rearrange(torch.cat(inputs, 1), "b f t -> b t f")  # [B * C, T, 3 * F]
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        with torch.autocast(audio.device.type, enabled=False):
            parts = rearrange(self.out(self.norm(x.float())), "b t (part f) -> part b f t", part=2)
            made = (spectrum + unit * torch.complex(parts[0], parts[1])) * (n_fft / 4.0)
            sound = torch.istft(made, **frames, length=flat.shape[-1])
        return sound.reshape(audio.shape)
