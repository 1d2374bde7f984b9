"""SEANet encoder and decoder at the sample rate (SoundStream arXiv:2107.03312; EnCodec arXiv:2210.13438, 3.1).

Encoder: a convolution, then per stage residual units and a strided convolution that doubles the channels, an
LSTM, a projection to the latents. The decoder mirrors it. ELU throughout; receptive field and look-ahead are set
by `causal`. Both also run block by block, as `conv.py` has it.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from audiogen.codec.conv import (
    NORMS,
    PAD_MODES,
    Held,
    PaddedConv1d,
    PaddedConvTranspose1d,
    ResidualLSTM,
    StreamState,
    join,
)
from audiogen.errors import InputError


@dataclass(frozen=True)
class SeanetConfig:
    """Field names follow the public EnCodec configuration.

    ratios: upsampling factors of the decoder, deepest first; the encoder uses them reversed. Their product is
        the hop length.
    compress: the hidden width of a residual unit is its width divided by this.
    true_skip: identity shortcut; False puts a 1x1 convolution there.
    lstm: number of LSTM layers at the frame rate; 0 for none.
    trim_right_ratio: causal only, see `PaddedConvTranspose1d`.
    norm: after each convolution; "group" is that of EnCodec at 48 kHz. Weight norm is none: models hold what it gives.
    """

    num_filters: int = 64
    num_residual_layers: int = 1
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    kernel_size: int = 7
    residual_kernel_size: int = 3
    last_kernel_size: int = 7
    dilation_base: int = 2
    compress: int = 2
    true_skip: bool = True
    lstm: int = 2
    causal: bool = False
    pad_mode: Literal["constant", "reflect", "replicate"] = "constant"
    trim_right_ratio: float = 1.0
    norm: Literal["none", "group"] = "none"

    def __post_init__(self) -> None:
        kernels = ("kernel_size", "residual_kernel_size", "last_kernel_size")
        for name in (*kernels, "dilation_base", "num_residual_layers", "lstm"):
            least = 0 if name in ("num_residual_layers", "lstm") else 1
            if getattr(self, name) < least:
                raise InputError(
                    f"seanet.{name} is {getattr(self, name)}: whole numbers from {least} are allowed"
                )
        for name, allowed in (("pad_mode", PAD_MODES), ("norm", NORMS)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"seanet.{name} is {getattr(self, name)!r}: {', '.join(allowed)} are allowed"
                )
        if not 0 <= self.trim_right_ratio <= 1 or (self.trim_right_ratio != 1 and not self.causal):
            raise InputError(
                f"seanet.trim_right_ratio is {self.trim_right_ratio}: 1 is allowed, and for causal codecs 0 to 1"
            )
        if not self.ratios or min(self.ratios) < 1:
            raise InputError(
                f"seanet.ratios is {self.ratios}: positive integers are allowed, e.g. [8, 5, 4, 2]"
            )
        if self.num_filters < 1 or self.compress < 1 or self.num_filters % self.compress:
            raise InputError(
                f"seanet.num_filters is {self.num_filters}: a positive multiple of compress={self.compress} is allowed"
            )


class ResidualUnit(nn.Module):
    """x + conv1x1(elu(conv_dilated(elu(x)))): [B, D, N] -> [B, D, N]."""

    def __init__(self, dim: int, dilation: int, config: SeanetConfig) -> None:
        super().__init__()
        hidden, style = dim // config.compress, (config.causal, config.pad_mode, config.norm)
        self.wide = PaddedConv1d(dim, hidden, config.residual_kernel_size, 1, dilation, *style)
        self.point = PaddedConv1d(hidden, dim, 1, 1, 1, *style)
        self.shortcut = None if config.true_skip else PaddedConv1d(dim, dim, 1, 1, 1, *style)

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        y = self.wide(F.elu(x), state, last)
        y = self.point(F.elu(y, inplace=True), state, last)
        if state is not None:  # y is behind x by what `wide` holds back: so is the shortcut
            past = state.get(self)
            x = join(past.x, x) if isinstance(past, Held) else x
            state[self] = Held(x[..., y.shape[-1] :].clone(), begun=True)
            x = x[..., : y.shape[-1]]
        return y.add_(x if self.shortcut is None else self.shortcut(x, state, last))


class Activation(nn.Module):
    """ELU that accepts (and ignores) the streaming state, so that a stack is one loop."""

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        return F.elu(x, inplace=True)


def _residual_units(dim: int, config: SeanetConfig) -> list[nn.Module]:
    return [ResidualUnit(dim, config.dilation_base**j, config) for j in range(config.num_residual_layers)]


class SeanetEncoder(nn.Module):
    """Audio [B, C, N] -> latents [B, latent_dim, ceil(N / hop)]."""

    def __init__(self, config: SeanetConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        style = (config.causal, config.pad_mode, config.norm)
        dim = config.num_filters
        layers: list[nn.Module] = [PaddedConv1d(channels, dim, config.kernel_size, 1, 1, *style)]
        for ratio in reversed(config.ratios):
            layers += _residual_units(dim, config)
            layers += [Activation(), PaddedConv1d(dim, 2 * dim, 2 * ratio, ratio, 1, *style)]
            dim *= 2
        if config.lstm:
            layers.append(ResidualLSTM(dim, config.lstm))
        layers += [Activation(), PaddedConv1d(dim, latent_dim, config.last_kernel_size, 1, 1, *style)]
        self.layers = nn.ModuleList(layers)

    def forward(self, audio: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        for layer in self.layers:
            audio = layer(audio, state, last)
        return audio


class SeanetDecoder(nn.Module):
    """Latents [B, latent_dim, T] -> audio [B, C, T * hop]."""

    def __init__(self, config: SeanetConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        style = (config.causal, config.pad_mode, config.norm)
        dim = config.num_filters * 2 ** len(config.ratios)
        layers: list[nn.Module] = [PaddedConv1d(latent_dim, dim, config.kernel_size, 1, 1, *style)]
        if config.lstm:
            layers.append(ResidualLSTM(dim, config.lstm))
        for ratio in config.ratios:
            up = PaddedConvTranspose1d(
                dim, dim // 2, 2 * ratio, ratio, config.causal, config.trim_right_ratio, config.norm
            )
            layers += [Activation(), up]
            dim //= 2
            layers += _residual_units(dim, config)
        layers += [Activation(), PaddedConv1d(dim, channels, config.last_kernel_size, 1, 1, *style)]
        self.layers = nn.ModuleList(layers)

    def forward(self, latents: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        for layer in self.layers:
            latents = layer(latents, state, last)
        return latents


def reach(stack: nn.Module, step: int, hop: int) -> int:
    """Upper bound on one side of a stack's receptive field, in frames; its input is `step` samples apart.

    Of its convolutions: an LSTM has no bound.
    """
    samples = 0
    for layer in stack.modules():
        if isinstance(layer, PaddedConv1d):
            samples += (layer.span - 1) * step
            step *= layer.stride
        elif isinstance(layer, PaddedConvTranspose1d):
            samples += step * 2
            step //= layer.convtr.stride[0]
    return ceil(samples / hop) + 1


def held_samples(decoder: nn.Module) -> int:
    """By how many samples a decoder's output is behind the end of its input, block by block."""
    samples = 0
    for layer in decoder.modules():
        if isinstance(layer, PaddedConv1d):
            samples += layer.right
        elif isinstance(layer, PaddedConvTranspose1d):
            samples = samples * layer.convtr.stride[0] + layer.left
    return samples
