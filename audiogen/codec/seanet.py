"""SEANet encoder and decoder at the sample rate (SoundStream arXiv:2107.03312; EnCodec arXiv:2210.13438, 3.1).

Encoder: a convolution, then per stage residual units and a strided convolution that doubles the channels, an
LSTM, a projection to the latents. The decoder mirrors it. ELU throughout; receptive field and look-ahead are set
by `causal`. Both also run block by block, see `conv.py`.
"""

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from audiogen.codec.conv import (
    PaddedConv1d,
    PaddedConvTranspose1d,
    PastInput,
    ResidualLSTM,
    StreamState,
    join,
)
from audiogen.config import NotNegative, Positive, Probability, check_ranges
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
    norm: after each convolution; "group" is that of EnCodec at 48 kHz. Weight norm is not one of them: models hold the
        weights that it gives.
    """

    num_filters: Positive = 64
    num_residual_layers: NotNegative = 1
    ratios: tuple[Positive, ...] = (8, 5, 4, 2)
    kernel_size: Positive = 7
    residual_kernel_size: Positive = 3
    last_kernel_size: Positive = 7
    dilation_base: Positive = 2
    compress: Positive = 2
    true_skip: bool = True
    lstm: NotNegative = 2
    causal: bool = False
    pad_mode: Literal["constant", "reflect", "replicate"] = "constant"
    trim_right_ratio: Probability = 1.0
    norm: Literal["none", "group"] = "none"

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.trim_right_ratio != 1 and not self.causal:
            raise InputError(
                f"trim_right_ratio is {self.trim_right_ratio}; it must be 1 where causal is false, as here"
            )
        if not self.ratios:
            raise InputError("ratios is (); it must list at least one factor, e.g. [8, 5, 4, 2]")
        if self.num_filters % self.compress:
            raise InputError(
                f"num_filters is {self.num_filters}; it must be a multiple of compress={self.compress}"
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
        if state is not None:
            # y is as far behind x as `wide` waits for its right context; the shortcut must be, too.
            past = state.get(self)
            x = join(past.x, x) if isinstance(past, PastInput) else x
            state[self] = PastInput(x[..., y.shape[-1] :].clone(), padded=True)
            x = x[..., : y.shape[-1]]
        return y.add_(x if self.shortcut is None else self.shortcut(x, state, last))


class Activation(nn.Module):
    """ELU of [B, D, N] that accepts (and ignores) the streaming state, so that a stack is one loop."""

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        return F.elu(x, inplace=True)


def _residual_units(dim: int, config: SeanetConfig) -> list[nn.Module]:
    return [ResidualUnit(dim, config.dilation_base**j, config) for j in range(config.num_residual_layers)]


class Seanet(nn.Module):
    """Encoder or decoder: layers one after another, each of which takes the streaming state."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        for layer in self.layers:  # x: [B, D, N or T]
            x = layer(x, state, last)
        return x


def seanet_encoder(config: SeanetConfig, channels: int, latent_dim: int) -> Seanet:
    """Audio [B, C, N] -> latents [B, latent_dim, ceil(N / hop)]."""
    style = (config.causal, config.pad_mode, config.norm)
    dim = config.num_filters
    layers: list[nn.Module] = [PaddedConv1d(channels, dim, config.kernel_size, 1, 1, *style)]
    for ratio in reversed(config.ratios):
        layers += _residual_units(dim, config)
        layers += [Activation(), PaddedConv1d(dim, 2 * dim, 2 * ratio, ratio, 1, *style)]
        dim *= 2
    if config.lstm:
        layers.append(ResidualLSTM(dim, config.lstm))
    return Seanet(
        [*layers, Activation(), PaddedConv1d(dim, latent_dim, config.last_kernel_size, 1, 1, *style)]
    )


def seanet_decoder(config: SeanetConfig, channels: int, latent_dim: int) -> Seanet:
    """Latents [B, latent_dim, T] -> audio [B, C, T * hop]."""
    style = (config.causal, config.pad_mode, config.norm)
    dim = config.num_filters * 2 ** len(config.ratios)
    layers: list[nn.Module] = [PaddedConv1d(latent_dim, dim, config.kernel_size, 1, 1, *style)]
    if config.lstm:
        layers.append(ResidualLSTM(dim, config.lstm))
    for ratio in config.ratios:
        up = PaddedConvTranspose1d(
            dim, dim // 2, 2 * ratio, ratio, config.causal, config.trim_right_ratio, config.norm
        )
        dim //= 2
        layers += [Activation(), up, *_residual_units(dim, config)]
    return Seanet([*layers, Activation(), PaddedConv1d(dim, channels, config.last_kernel_size, 1, 1, *style)])


def lookahead_samples(decoder: nn.Module) -> int:
    """By how many samples a decoder's output is behind the end of its input, block by block."""
    samples = 0
    for layer in decoder.modules():
        if isinstance(layer, PaddedConv1d):
            samples += layer.right
        elif isinstance(layer, PaddedConvTranspose1d):
            samples = samples * layer.convtr.stride[0] + layer.left
    return samples
