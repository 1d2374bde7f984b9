"""Discriminators: of audio at several STFT resolutions, or of the log magnitudes of a codec that works on them.

Of audio: EnCodec's (arXiv:2210.13438, section 3.4, figure 2), one 2-D convolutional network per resolution with real
and imaginary parts as image channels. Of spectra: a score for each patch (PatchGAN, arXiv:1611.07004; on spectrograms
SpecVQGAN, arXiv:2110.08791); it needs no synthesis of audio, which is cheaper.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiogen.codec.conv import add_weight_norm
from audiogen.codec.spectral import FLOOR, normalised
from audiogen.config import Positive, check_ranges
from audiogen.errors import InputError
from audiogen.spectrogram import mel_filterbank


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Resolutions and size of the networks.

    sees: its input: audio, or spectra, the log magnitudes of a spectral codec, bin by bin and in mel bands. The other
    keys are for audio, num_filters for both. n_ffts: one network each, window = n_fft, hop = n_fft / 4. dilations:
    along time, one layer each; every such layer halves the frequencies. The defaults are EnCodec's (arXiv:2210.13438,
    section 3.4).
    """

    sees: Literal["audio", "spectra"] = "audio"
    n_ffts: tuple[int, ...] = (1024, 2048, 512, 256, 128)
    num_filters: Positive = 32
    dilations: tuple[Positive, ...] = (1, 2, 4)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.n_ffts or any(n < 16 or n % 4 for n in self.n_ffts):
            raise InputError(f"n_ffts is {self.n_ffts}; it must list multiples of 4 from 16 up")


class PatchDiscriminator(nn.Module):
    """A picture [B, channels, time, frequency] -> (logits [B, 1, time, frequency], feature maps of every layer).

    Strides in the layers shorten time and frequency.
    """

    def __init__(self, layers: list[nn.Conv2d]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.out = nn.Conv2d(layers[-1].out_channels, 1, (3, 3), padding=(1, 1))
        add_weight_norm(self)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            # In place, as nothing else reads a layer's output; 0.2 as EnCodec.
            x = F.leaky_relu(layer(x), 0.2, inplace=True)
            features.append(x)
        return self.out(x), features


class STFTDiscriminator(PatchDiscriminator):
    """Audio [B, C, N] -> as `PatchDiscriminator` of its spectrogram."""

    window: Tensor

    def __init__(self, n_fft: int, channels: int, num_filters: int, dilations: tuple[int, ...]) -> None:
        layers = [nn.Conv2d(2 * channels, num_filters, (3, 9), padding=(1, 4))]  # EnCodec's kernel
        layers += [
            nn.Conv2d(num_filters, num_filters, (3, 9), stride=(1, 2), dilation=(d, 1), padding=(d, 4))
            for d in dilations
        ]
        super().__init__([*layers, nn.Conv2d(num_filters, num_filters, (3, 3), padding=(1, 1))])
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

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
        with torch.autocast(audio.device.type, enabled=False):  # Fourier transforms need float32
            x = self.spectrogram(audio)
        return super().forward(x)


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


class SpectrumDiscriminator(PatchDiscriminator):
    """Log magnitudes [B, C, T, F] -> as `PatchDiscriminator`.

    strides: of (time, frequency), one layer each; the filters double from layer to layer up to four times as many.
    """

    def __init__(self, channels: int, num_filters: int, strides: tuple[tuple[int, int], ...]) -> None:
        widths = [channels, *(num_filters * min(4, 2**index) for index in range(len(strides)))]
        super().__init__(
            [
                nn.Conv2d(before, width, (3, 2 * stride[1] + 1), stride, padding=(1, stride[1]))
                for before, width, stride in zip(widths, widths[1:], strides, strict=False)
            ]
        )


class MultiViewSpectrumDiscriminator(nn.Module):
    """Log magnitudes [B, C, T, F] -> (logits, features), one entry for the bins and one for 80 mel bands of them.

    The bins show partials and the grain of noise; the bands weigh frequencies as hearing does.
    """

    basis: Tensor

    def __init__(
        self, config: DiscriminatorConfig, sample_rate: int, num_bins: int, channels: int = 1
    ) -> None:
        super().__init__()
        basis = mel_filterbank(sample_rate, 2 * (num_bins - 1), 80)  # [F, M]
        self.register_buffer("basis", basis / basis.sum(0).clamp(min=1e-8), persistent=False)
        self.bins = SpectrumDiscriminator(
            channels, config.num_filters, ((1, 4), (1, 2), (2, 2), (1, 2), (1, 1))
        )
        self.bands = SpectrumDiscriminator(channels, config.num_filters, ((1, 2), (2, 2), (1, 2), (1, 1)))

    def forward(self, spectra: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        with torch.autocast(spectra.device.type, enabled=False):
            spectra = spectra.float()
            bands = torch.log(torch.exp(spectra) @ self.basis + FLOOR)  # [B, C, T, M]
        results = [self.bins(normalised(spectra)), self.bands(normalised(bands))]
        return [logits for logits, _ in results], [features for _, features in results]
