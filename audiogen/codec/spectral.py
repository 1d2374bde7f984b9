"""Encoder and decoder at the frame rate: STFT in, ConvNeXt blocks, inverse STFT out (after Vocos, arXiv:2306.00814).

Nothing runs at the sample rate but the Fourier transforms, so on a CPU it trains and runs an order of magnitude
faster than SEANet for the same number of parameters. Centred: it looks ahead; it is not for live streaming, though
it runs through files block by block (finite receptive field, see `context_frames`).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from audiogen.errors import InputError


@dataclass(frozen=True)
class SpectralConfig:
    """Sizes; n_fft is a multiple of hop_length, `mlp_ratio` widens the two-layer perceptron of each block."""

    n_fft: int = 1280
    hop_length: int = 320
    width: int = 256
    num_encoder_blocks: int = 8
    num_decoder_blocks: int = 8
    kernel_size: int = 7
    mlp_ratio: int = 3

    def __post_init__(self) -> None:
        if self.hop_length < 1 or self.n_fft % self.hop_length or self.n_fft // self.hop_length < 2:
            raise InputError(
                f"spectral.n_fft is {self.n_fft}: a multiple, at least double, of "
                f"hop_length={self.hop_length} is allowed"
            )
        if (self.n_fft - self.hop_length) % 2:
            raise InputError(
                f"spectral.n_fft - hop_length is {self.n_fft - self.hop_length}: it must be even"
            )
        if self.kernel_size % 2 == 0:
            raise InputError(f"spectral.kernel_size is {self.kernel_size}: odd numbers are allowed")


class ConvNextBlock(nn.Module):
    """Depthwise convolution over frames, then a perceptron per frame, residual: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: SpectralConfig, num_blocks: int) -> None:
        super().__init__()
        width = config.width
        self.depthwise = nn.Conv1d(width, width, config.kernel_size, padding="same", groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, config.mlp_ratio * width)
        self.project = nn.Linear(config.mlp_ratio * width, width)
        # Starts every block near the identity, so that a deep stack trains from the first step (ConvNeXt).
        self.scale = nn.Parameter(torch.full((width,), 1.0 / num_blocks))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x.transpose(1, 2)).transpose(1, 2)
        y = self.project(F.gelu(self.expand(self.norm(y))))
        return x + self.scale * y


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            nn.init.trunc_normal_(layer.weight, std=0.02)  # as ConvNeXt and Vocos
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SpectralEncoder(nn.Module):
    """Audio [B, C, N] -> latents [B, latent_dim, ceil(N / hop)].

    A frame's input is its log magnitude and its complex spectrum with the magnitude compressed to the power 0.3,
    which keeps phase without letting loud bins rule.
    """

    window: Tensor

    def __init__(self, config: SpectralConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.embed = nn.Linear(channels * 3 * (config.n_fft // 2 + 1), config.width)
        self.embed_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            ConvNextBlock(config, config.num_encoder_blocks) for _ in range(config.num_encoder_blocks)
        )
        self.out_norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, latent_dim)
        _initialise(self)

    def features(self, audio: Tensor) -> Tensor:
        """[B, C, N] -> [B, T, C * 3 * (n_fft / 2 + 1)], in float32."""
        n_fft, hop = self.config.n_fft, self.config.hop_length
        side = (n_fft - hop) // 2  # frame t is centred on samples [t * hop, (t + 1) * hop)
        padded = F.pad(audio.float(), (side, side + -audio.shape[-1] % hop))
        frames = padded.unfold(-1, n_fft, hop) * self.window  # [B, C, T, n_fft]
        spectrum = torch.fft.rfft(frames) * (2.0 / n_fft)
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-10)
        compressed = spectrum * magnitude.pow(-0.7)
        log_magnitude = torch.log(magnitude) / 4.0 + 1.5  # about -1..1 for the range of real recordings
        parts = torch.cat([log_magnitude, 4.0 * compressed.real, 4.0 * compressed.imag], -1)
        return rearrange(parts, "b c t f -> b t (c f)")

    def forward(self, audio: Tensor) -> Tensor:
        with torch.autocast(audio.device.type, enabled=False):
            features = self.features(audio)
        x = self.embed_norm(self.embed(features))
        for block in self.blocks:
            x = block(x)
        return self.out(self.out_norm(x)).transpose(1, 2)


class SpectralDecoder(nn.Module):
    """Latents [B, latent_dim, T] -> audio [B, C, T * hop].

    The head gives each bin a complex number and a log gain that multiplies it. Vocos' magnitude and angle span the
    same values, but an angle wraps: in early training the product form is far ahead (docs/LOG.md).
    """

    window: Tensor

    def __init__(self, config: SpectralConfig, channels: int, latent_dim: int) -> None:
        super().__init__()
        self.config, self.channels = config, channels
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.embed = nn.Conv1d(latent_dim, config.width, config.kernel_size, padding="same")
        self.embed_norm = nn.LayerNorm(config.width)
        self.blocks = nn.ModuleList(
            ConvNextBlock(config, config.num_decoder_blocks) for _ in range(config.num_decoder_blocks)
        )
        self.out_norm = nn.LayerNorm(config.width)
        self.out = nn.Linear(config.width, channels * 3 * (config.n_fft // 2 + 1))
        _initialise(self)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.embed_norm(self.embed(latents).transpose(1, 2))  # [B, T, D]
        for block in self.blocks:
            x = block(x)
        x = self.out(self.out_norm(x))
        with torch.autocast(x.device.type, enabled=False):
            return self.synthesise(x.float())

    def synthesise(self, x: Tensor) -> Tensor:
        """Gains and complex bins [B, T, C * 3 * F] -> audio [B, C, T * hop] by weighted overlap-add, float32."""
        n_fft, hop = self.config.n_fft, self.config.hop_length
        log_gain, real, imag = rearrange(x, "b t (part c f) -> part b c t f", c=self.channels, part=3)
        gain = torch.exp(log_gain.clamp(max=7.0))  # e^7 is past a full-scale sine in every bin
        spectrum = torch.complex(gain * real, gain * imag)
        frames = torch.fft.irfft(spectrum, n_fft) * self.window  # [B, C, T, n_fft]
        audio = _overlap_add(frames, hop)
        envelope = _overlap_add(self.window.square().expand(1, 1, x.shape[1], n_fft), hop)
        side = (n_fft - hop) // 2
        return audio[..., side : audio.shape[-1] - side] / envelope[..., side : audio.shape[-1] - side]


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """[B, C, T, n_fft] -> [B, C, (T - 1) * hop + n_fft], n_fft a multiple of hop."""
    num_hops = frames.shape[-1] // hop
    pieces = rearrange(frames, "b c t (j h) -> j b c t h", h=hop)
    shifted = [F.pad(pieces[j], (0, 0, j, num_hops - 1 - j)) for j in range(num_hops)]
    return rearrange(torch.stack(shifted).sum(0), "b c t h -> b c (t h)")


def context_frames(kernel_size: int, num_blocks: int, n_fft: int, hop_length: int) -> int:
    """Frames on either side that a spectral encoder or decoder can see: the exact receptive field, one-sided."""
    return (kernel_size // 2) * (num_blocks + 1) + -(-(n_fft - hop_length) // (2 * hop_length))
