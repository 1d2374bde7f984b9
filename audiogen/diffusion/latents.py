"""What all autoencoders share: audio [B, C, N] to latents at unit variance and back."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Range
from audiogen.diffusion.circle import padded
from audiogen.errors import InputError
from audiogen.packed import can_pack, pack

Scale = Annotated[float, Range(0, math.inf, above=True, below=True)]  # a number above 0
LOOP_CONTEXT = 24  # latent frames of a loop that the decoders see beyond its ends; none reaches further


class LatentAutoencoder(nn.Module):
    """Audio [B, C, N] to latents at unit variance, [B, D, T] or [B, D, T, M] with T = ceil(N / hop_length), and back.

    sample_rate: Hz. channels: C. hop_length: samples for each latent frame. bins: (M,) or nothing.
    """

    config: Any
    vae: Any
    scale_factor: Tensor
    bins: tuple[int, ...] = ()
    dtype = torch.float32  # that decoders compute in, see `freeze`
    packs_float32 = False  # whether packed weights make them faster in float32, too

    def __init__(self, config: Any, sample_rate: int, channels: int, hop_length: int):
        super().__init__()
        self.config = config
        self.sample_rate, self.channels, self.hop_length = sample_rate, channels, hop_length
        self.register_buffer("scale_factor", torch.tensor(config.scale_factor))

    def encode(self, audio: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """[B, C, N] -> latents; the posterior's mean, or a sample of it where a generator is given."""
        posterior = self.posterior(self.features(audio))
        return self.scale_factor * (posterior.mode() if generator is None else posterior.sample(generator))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, D, T] or [B, D, T, M] -> audio [B, C, T * hop_length]."""
        return self.synthesise(self.decode_features(latents))

    def freeze(self, dtype: torch.dtype) -> None:
        """For inference only: decoders compute in `dtype`, float32 or bfloat16, by packed copies of their weights.

        Only where there are kernels for it, on CPUs; elsewhere they compute in float32. Encoders always do.
        """
        packs = can_pack(self.scale_factor.device, dtype) and (dtype != torch.float32 or self.packs_float32)
        self.dtype = dtype if packs else torch.float32
        for part in self.decoders():
            pack(part, dtype if packs else None)

    def decoders(self) -> list[Any]:
        """The networks that `freeze` packs."""
        return [self.vae.decoder]

    def _lower(self) -> AbstractContextManager[Any]:
        """Products in the number type of `freeze`; in float32, those of whoever calls."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.scale_factor.device.type, self.dtype)

    def decode_loop(self, latents: Tensor) -> Tensor:
        """As `decode`, to [B, C, T * hop_length], of a sound whose end continues into its beginning."""
        audio = self.decode(padded(latents, LOOP_CONTEXT))
        return audio[..., LOOP_CONTEXT * self.hop_length : -LOOP_CONTEXT * self.hop_length]

    def features(self, audio: Tensor) -> Tensor:
        """[B, C, N], its end padded to whole latent frames -> what the VAE works on; shapes as in the subclasses."""
        raise NotImplementedError

    def synthesise(self, features: Tensor) -> Tensor:
        """What the VAE works on -> audio [B, C, T * hop_length]."""
        raise NotImplementedError

    def posterior(self, features: Tensor) -> Any:
        """As `features` gives them -> the distribution of their latents, not scaled; has mean, logvar, sample, mode."""
        return self.vae.encode(features).latent_dist

    def decode_features(self, latents: Tensor) -> Tensor:
        """Latents [B, D, T] or [B, D, T, M] -> what `synthesise` takes."""
        with self._lower():
            return self.vae.decode(latents / self.scale_factor).sample.float()

    def fit_scale(self, latents: Tensor) -> float:
        """Set the scale so that these latents, as `encode` gave them, get unit variance; returns it."""
        spread = float(latents.float().std())
        if not (spread > 0 and math.isfinite(spread)):
            raise InputError(f"latents have a standard deviation of {spread:g}: check the sound")
        self.scale_factor.div_(spread)
        return float(self.scale_factor)

    def latent_shape(self, duration_s: float) -> tuple[int, ...]:
        """(D, T) or (D, T, M) of a sound of that length."""
        if not duration_s > 0:
            raise InputError(f"duration is {duration_s:g} s; it must be above 0")
        num_frames = max(1, math.ceil(round(duration_s * self.sample_rate) / self.hop_length))
        return (self.config.latent_dim, num_frames, *self.bins)

    def _whole_frames(self, audio: Tensor) -> Tensor:
        """[B, C, N] with zeros at the end up to a multiple of hop_length."""
        if audio.dim() != 3 or audio.shape[1] != self.channels or not audio.shape[2]:
            raise InputError(f"audio is {list(audio.shape)}; [B, {self.channels}, N], N above 0, is needed")
        return F.pad(audio, (0, -audio.shape[-1] % self.hop_length))
