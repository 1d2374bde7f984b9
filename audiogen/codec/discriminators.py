"""Multi-scale STFT discriminator (EnCodec, arXiv:2210.13438, section 3.4, figure 2).

One 2-D convolutional network per STFT resolution looks at real and imaginary parts as image channels.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from audiogen.codec.conv import add_weight_norm
from audiogen.errors import InputError


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Resolutions and size of the networks.

    n_ffts: one network each, window = n_fft, hop = n_fft / 4. dilations: along time, one layer each; every such
    layer halves the frequencies.
    """

    n_ffts: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    num_filters: int = 32
    dilations: tuple[int, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        if not self.n_ffts or any(n < 16 or n % 4 for n in self.n_ffts):
            raise InputError(f"discriminator.n_ffts is {self.n_ffts}: multiples of 4 from 16 up are allowed")


class STFTDiscriminator(nn.Module):
    """Audio [B, C, N] -> (logits [B, 1, time, frequency], feature maps of every layer)."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int, num_filters: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        layers = [nn.Conv2d(2 * channels, num_filters, (3, 9), padding=(1, 4))]
        for d in dilations:
            layers.append(
                nn.Conv2d(num_filters, num_filters, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4))
            )
        layers.append(nn.Conv2d(num_filters, num_filters, (3, 3), padding=(1, 1)))
        self.layers = nn.ModuleList(layers)
        self.out = nn.Conv2d(num_filters, 1, (3, 3), padding=(1, 1))
        self.activation = nn.LeakyReLU(0.2)
        add_weight_norm(self)

    def spectrogram(self, audio: Tensor) -> Tensor:
        """[B, C, N] -> real and imaginary parts [B, 2 * C, time, frequency], float32, scaled to unit-energy frames."""
        batch = audio.shape[0]
        spectrum = torch.stft(
            rearrange(audio.float(), "b c n -> (b c) n"),
            self.n_fft,
            self.n_fft // 4,
            window=self.window,
            center=audio.shape[-1] < self.n_fft,  # a clip shorter than one window still gives frames
            pad_mode="constant",
            normalized=True,
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum)  # [B * C, frequency, time, 2]
        return rearrange(parts, "(b c) f t part -> b (part c) t f", b=batch)

    def forward(self, audio: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(audio.device.type, enabled=False):
            x = self.spectrogram(audio)
        features = []
        for layer in self.layers:
            x = self.activation(layer(x))
            features.append(x)
        return self.out(x), features


class MultiScaleSTFTDiscriminator(nn.Module):
    """Audio [B, C, N] -> (logits, features), one entry per STFT resolution."""

    def __init__(self, config: DiscriminatorConfig, channels: int = 1) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            STFTDiscriminator(n, channels, config.num_filters, config.dilations) for n in config.n_ffts
        )

    def forward(self, audio: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        results = [scale(audio) for scale in self.scales]
        return [logits for logits, _ in results], [features for _, features in results]
