"""SAME, the autoencoder of Stable Audio 3 (arXiv:2605.17991): transformers on patches of samples.

The weights are those of diffusers' AutoencoderSAME. The forward pass is our own: a token attends to its neighbours
alone, so attention is computed in blocks, where diffusers computes all pairs of tokens and masks most of them. Of 5 s
those are 918 tokens, of 60 s 10,982, whose mask alone would take 482 MB. Tests compare it with diffusers.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_same import AutoencoderSAME
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import NotNegative, Positive, check_ranges
from audiogen.diffusion.dit3 import attend, rotary, rotate
from audiogen.diffusion.latents import LatentAutoencoder, Scale
from audiogen.errors import InputError

# Standard deviation of the noise on latents in training, in place of a VAE's learned one: the decoder becomes smooth.
LATENT_NOISE = 0.05
WINDOWS = 4  # of `window` segments, in a block of queries: larger products, but more pairs that are masked


@dataclass(frozen=True)
class SameAutoencoderConfig:
    """SAME; the defaults are SAME-S, 108 M parameters, of the small release of Stable Audio 3, as diffusers has it.

    patch: samples of each channel that are one input. width times multiples, strides, depths: channels, reduction of
    time and layers of each level. window: a token attends to this many segments of stride + 1 tokens on each side.
    chunk: in place of a window, a token attends to all of a chunk of so many segments, in the second half of the layers
    of chunks that lie half a chunk later; 0 is a window. kernel: taps of the decoder's last layer. The authors' SAME-S
    has chunk 2 and kernel 3, for which diffusers has no setting. differential: attention is the difference of two.
    encoder_sines, decoder_sines: of each level; so many last layers, less one, have a sine as their gate (SAME-L: 0
    and 8).
    """

    sample_rate: Positive = 44100
    channels: Positive = 2
    patch: Positive = 256
    latent_dim: Positive = 256
    width: Positive = 128
    multiples: tuple[Positive, ...] = (6,)
    strides: tuple[Positive, ...] = (16,)
    depths: tuple[Positive, ...] = (6,)
    head_dim: Positive = 64
    ff_mult: Positive = 3
    window: Positive = 1
    chunk: NotNegative = 0
    kernel: Positive = 1
    differential: bool = True
    encoder_sines: tuple[NotNegative, ...] = (0,)
    decoder_sines: tuple[NotNegative, ...] = (0,)
    scale_factor: Scale = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)
        levels = len(self.strides)
        for name in ("multiples", "depths", "encoder_sines", "decoder_sines"):
            if len(found := getattr(self, name)) != levels or not levels:
                raise InputError(f"{name} {found}, strides {self.strides}: a level needs one of each")
        if self.chunk % 2 or not self.kernel % 2 or (self.chunk and levels > 1):
            raise InputError(
                f"chunk is {self.chunk} and kernel {self.kernel}; they must be even and odd, and chunk 0 with several "
                "levels"
            )
        widths = [self.width * multiple for multiple in self.multiples]
        if self.head_dim % 4 or any(width % self.head_dim for width in widths):
            raise InputError(
                f"levels are {widths} wide and heads {self.head_dim}, which must be a multiple of 4 that divides each"
            )

    @property
    def hop_length(self) -> int:
        """Samples for each latent frame."""
        return self.patch * math.prod(self.strides)


class SameAutoencoder(LatentAutoencoder):
    """Audio [B, C, N] -> latents [B, D, T], without a distribution: `posterior` has a small fixed one for training."""

    config: SameAutoencoderConfig

    def __init__(self, config: SameAutoencoderConfig):
        super().__init__(config, config.sample_rate, config.channels, config.hop_length)
        with warnings.catch_warnings():  # diffusers uses torch's older weight norm
            warnings.simplefilter("ignore", FutureWarning)
            self.vae = AutoencoderSAME(
                audio_channels=config.channels,
                patch_size=config.patch,
                encoder_channels=config.width,
                encoder_c_mults=list(config.multiples),
                encoder_strides=list(config.strides),
                encoder_transformer_depths=list(config.depths),
                latent_dim=config.latent_dim,
                use_differential_attention=config.differential,
                dim_heads=config.head_dim,
                ff_mult=config.ff_mult,
                sliding_window=config.window,
                encoder_sinusoidal_blocks=list(config.encoder_sines),
                decoder_sinusoidal_blocks=list(config.decoder_sines),
                sampling_rate=config.sample_rate,
            )
            for level in self.vae.decoder.blocks if config.kernel > 1 else ():
                old = level.mapping
                level.mapping = nn.utils.weight_norm(
                    nn.Conv1d(old.in_channels, old.out_channels, config.kernel, padding=config.kernel // 2)
                )
        self._start()

    def _start(self) -> None:
        """New weights that learn: of diffusers' own all layers add zero, and a KL pulls the latents to zero first."""
        for layer in self.vae.modules():
            if hasattr(layer, "rope"):
                layer.rope = nn.Identity()  # its buffer is in no file: `_run` computes the frequencies
            if hasattr(layer, "new_tokens"):
                nn.init.normal_(layer.new_tokens)
                for each in layer.transformers:
                    for last in (each.attn.to_out, each.ff.proj_out):
                        nn.init.normal_(
                            last.weight, std=(2 * len(layer.transformers) * last.in_features) ** -0.5
                        )

    def features(self, audio: Tensor) -> Tensor:
        """[B, C, N], its end padded to whole latent frames."""
        return self._whole_frames(audio)

    def synthesise(self, features: Tensor) -> Tensor:
        """As it is: [B, C, N]."""
        return features

    def posterior(self, features: Tensor) -> DiagonalGaussianDistribution:
        """Audio [B, C, N] of whole frames -> the normal distribution around its latents, `LATENT_NOISE` wide."""
        x = rearrange(features, "b c (t p) -> b t (c p)", p=self.config.patch)
        encoder, affine = self.vae.encoder, self.vae.bottleneck
        num_frames = features.shape[-1] // self.config.hop_length
        for level in encoder.blocks:
            x = _down(level, x, self.config.chunk)
        x = x[:, :num_frames]  # the last chunk may have more
        latents = encoder.proj(x).transpose(1, 2) * affine.scale + affine.bias  # [B, D, T]
        mean = latents / affine.running_std
        spread = torch.full_like(mean, 2 * math.log(LATENT_NOISE))
        return DiagonalGaussianDistribution(torch.cat([mean, spread], dim=1))

    def decode_features(self, latents: Tensor) -> Tensor:
        """Latents [B, D, T] -> audio [B, C, N]."""
        decoder, scaled = self.vae.decoder, latents / self.scale_factor * self.vae.bottleneck.running_std
        with self._lower():
            x = decoder.proj(scaled.transpose(1, 2))
            for level in decoder.blocks:
                x = _up(level, x, self.config.chunk)
        return rearrange(x.float(), "b t (c p) -> b c (t p)", p=self.config.patch)

    def fold_scale(self) -> None:
        """Move the scale into the weights, where diffusers' pipeline, which has no other, finds it."""
        self.vae.bottleneck.running_std.div_(self.scale_factor)
        self.scale_factor.fill_(1.0)


def _down(level: Any, x: Tensor, chunk: int) -> Tensor:
    """One level of the encoder: [B, T * stride, D_in] -> [B, T, D]. A learned token ends each segment."""
    x = F.pad(
        x, (0, 0, 0, -x.shape[1] % (level.stride * max(chunk, 1)))
    )  # zeros, as whole segments are needed
    x = rearrange(level.mapping(x.transpose(1, 2)), "b d (t s) -> b t s d", s=level.stride)
    x = torch.cat([x, level.new_tokens[:, None].expand(*x.shape[:2], 1, -1)], dim=2)
    return _run(level, x, chunk)[:, :, -1]


def _up(level: Any, x: Tensor, chunk: int) -> Tensor:
    """One level of the decoder: [B, T, D] -> [B, T * stride, D_out]. After each token come `stride` learned ones."""
    length = x.shape[1] * level.stride
    x = F.pad(x, (0, 0, 0, -x.shape[1] % max(chunk, 1)))
    x = torch.cat([x[:, :, None], level.new_tokens[:, None].expand(*x.shape[:2], level.stride, -1)], dim=2)
    x = rearrange(_run(level, x, chunk)[:, :, 1:], "b t s d -> b d (t s)")
    return level.mapping(x).transpose(1, 2)[:, :length]


def _run(level: Any, x: Tensor, chunk: int) -> Tensor:
    """The layers of a level over segments [B, T, stride + 1, D], all tokens of a sound in one row, or those of a chunk.

    T is a multiple of `chunk`, where that is not 0.
    """
    layers, half = list(level.transformers), chunk // 2
    if not chunk:
        return _layers(layers, x, level.sliding_window * x.shape[2])
    middle = len(layers) // 2
    x = _in_chunks(layers[:middle], x, chunk)
    x = torch.cat([x[:, :half], x, x[:, -half:]], dim=1)  # its ends once more, for chunks half a chunk later
    return _in_chunks(layers[middle:], x, chunk)[:, half:-half]


def _in_chunks(layers: list[Any], x: Tensor, chunk: int) -> Tensor:
    """Layers over segments [B, T, stride + 1, D], each chunk of them by itself."""
    made = _layers(layers, rearrange(x, "b (n t) s d -> (b n) t s d", t=chunk), None)
    return rearrange(made, "(b n) t s d -> b (n t) s d", b=len(x))


def _layers(layers: list[Any], x: Tensor, reach: int | None) -> Tensor:
    """Layers over segments [B, T, stride + 1, D], all tokens in one row; reach: how far a token sees; None is all."""
    if not layers:
        return x
    segments = x.shape[1]
    x = rearrange(x, "b t s d -> b (t s) d")
    rotated = layers[0].attn.dim_heads // 2
    steps = torch.arange(0, rotated, 2, device=x.device) / rotated
    waves = rotary(x.shape[1], 10000.0**-steps)
    mask = None if reach is None else _band(x.shape[1], reach, x.device)
    for layer in layers:
        attention = layer.attn
        parts = rearrange(
            attention.to_qkv(_squash(x, layer.norm_attn)),
            "b s (n h d) -> n b h s d",
            h=attention.heads,
            d=attention.dim_heads,
        ).unbind(0)
        half = len(parts) // 2  # two pairs of queries and keys where attention is differential, else one
        queries = [rotate(_squash(part, attention.q_norm), waves) for part in parts[:half]]
        keys = [rotate(_squash(part, attention.k_norm), waves) for part in parts[half:-1]]
        if mask is None:
            x = x + attention.to_out(attend(queries, keys, parts[-1]))
        else:
            x = x + attention.to_out(_attend_near(queries, keys, parts[-1], mask))
        value, gate = layer.ff.proj_in(_squash(x, layer.norm_ff)).chunk(2, dim=-1)
        opened = torch.sin(math.pi * gate) if layer.ff.sinusoidal else F.silu(gate)
        x = x + layer.ff.proj_out(value * opened)
    return rearrange(x, "b (t s) d -> b t s d", t=segments)


def _squash(x: Tensor, layer: Any) -> Tensor:
    """Dynamic tanh (arXiv:2503.10622), which this autoencoder has in place of norms: [..., D] -> [..., D]."""
    return torch.addcmul(layer.beta, layer.gamma, torch.tanh(layer.alpha * x)).to(x.dtype)


def _band(length: int, reach: int, device: torch.device) -> Tensor:
    """Which keys a query sees, for blocks of queries with `reach` keys more on both sides: bool [blocks, 1, Q, K]."""
    size = WINDOWS * reach
    first = torch.arange(0, length, size, device=device)[:, None, None]  # [blocks, 1, 1]
    query = first + torch.arange(size, device=device)[:, None]  # [blocks, Q, 1]
    key = first - reach + torch.arange(size + 2 * reach, device=device)  # [blocks, 1, K]
    sees = ((query - key).abs() <= reach) & (key >= 0) & (key < length)
    # Queries past the end see something, too, or their softmax would not be a number.
    return (sees | (query >= length))[:, None]


def _attend_near(queries: list[Tensor], keys: list[Tensor], values: Tensor, mask: Tensor) -> Tensor:
    """Attention within the band of `mask`, for [B, heads, S, D] -> [B, S, heads * D]."""
    batch, _, length, _ = values.shape
    blocks, _, size, seen = mask.shape
    reach, more = (seen - size) // 2, blocks * size - length

    def own(x: Tensor) -> Tensor:
        """[B, heads, S, D] -> [B, blocks, heads, Q, D]."""
        return rearrange(F.pad(x, (0, 0, 0, more)), "b h (n q) d -> b n h q d", q=size)

    def near(x: Tensor) -> Tensor:
        """[B, heads, S, D] -> [B * blocks, heads, K, D]: each block between the ends of its neighbours."""
        block = own(x)
        before = F.pad(block[:, :-1, :, -reach:], (0, 0, 0, 0, 0, 0, 1, 0))
        after = F.pad(block[:, 1:, :, :reach], (0, 0, 0, 0, 0, 0, 0, 1))
        return torch.cat([before, block, after], dim=3).flatten(0, 1)

    added = torch.zeros(mask.shape, dtype=values.dtype, device=mask.device).masked_fill(~mask, -torch.inf)
    made = attend(
        [own(each).flatten(0, 1) for each in queries],
        [near(each) for each in keys],
        near(values),
        added.repeat(batch, 1, 1, 1),
    )
    return rearrange(made, "(b n) q d -> b (n q) d", b=batch)[:, :length]
