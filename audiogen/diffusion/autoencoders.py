"""Autoencoders: audio [B, C, N] to latents at unit variance and back.

`MelAutoencoder` goes through a mel spectrogram and a vocoder (AudioLDM, AudioLDM 2, LAFMA, Tango), its latents are
[B, D, T, M]; `WaveformAutoencoder` works on samples (Stable Audio, TangoFlux), its latents are [B, D, T].
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck, Snake1d
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, Range, check_ranges
from audiogen.diffusion.circle import padded
from audiogen.diffusion.mdct import compress, expand, inverse_mdct, mdct, mdct_basis
from audiogen.diffusion.mel import MelConfig, VocoderConfig, griffin_lim, log_mel, vocoder
from audiogen.errors import InputError
from audiogen.packed import can_pack, pack
from audiogen.snake import use_snakes

Scale = Annotated[float, Range(0, math.inf, above=True, below=True)]  # a number above 0


@dataclass(frozen=True)
class MelAutoencoderConfig:
    """The VAE over log-mel spectrograms and its vocoder; the defaults are AudioLDM's, 55 M parameters each.

    channels: of each level; every level but the last halves time and mel. latent_dim: D. mid_attention: one attention
    layer in the middle of encoder and decoder, which LAFMA's lacks. norm_groups: into how many groups of channels each
    is normalised; a group of one channel loses its level. vocoder: null for Griffin-Lim, which has no weights and needs
    mel.hop_length to be at most half of mel.n_fft. scale_factor: what the encoder's latents are
    multiplied with to have unit variance; one over the standard deviation of a first batch (`fit_scale`).
    """

    channels: tuple[Positive, ...] = (128, 256, 512)
    num_res_blocks: Positive = 2
    latent_dim: Positive = 8
    mid_attention: bool = True
    norm_groups: Positive = 32
    scale_factor: Scale = 1.0
    mel: MelConfig = field(default_factory=MelConfig)
    vocoder: VocoderConfig | None = field(default_factory=VocoderConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.channels or any(width % self.norm_groups for width in self.channels):
            raise InputError(f"channels {self.channels} must be multiples of norm_groups, {self.norm_groups}")
        hop_length, num_mels = self.mel.hop_length, self.mel.num_mels
        made = None if self.vocoder is None else self.vocoder.hop_length
        if made is None and 2 * hop_length > self.mel.n_fft:
            raise InputError(
                f"mel.hop_length is {hop_length}; Griffin-Lim (vocoder: null) needs n_fft / 2 or less"
            )
        if made not in (None, hop_length):
            raise InputError(
                f"vocoder.rates make {made} samples of a frame, but mel.hop_length is {hop_length}"
            )
        if num_mels % self.reduction:
            raise InputError(f"mel.num_mels is {num_mels}; the levels need a multiple of {self.reduction}")

    @property
    def reduction(self) -> int:
        """Mel frames for each latent frame, and mel bins for each latent bin."""
        return 2 ** (len(self.channels) - 1)

    @property
    def bins(self) -> int:
        """M of the latents [B, D, T, M]."""
        return self.mel.num_mels // self.reduction


@dataclass(frozen=True)
class WaveformAutoencoderConfig:
    """Oobleck, a convolutional VAE on samples; the defaults are Stable Audio Open's, 156 M parameters.

    channels: of the audio. bands: 1 for a network on samples; more for one on that many bands of an MDCT, compressed,
    which is a tenth of the work; diffusers' pipelines cannot decode it. latent_dim: D, half the width of the encoder's
    first layer, which diffusers ties to it. width: of the decoder's last layer.
    """

    sample_rate: Positive = 44100
    channels: Positive = 2
    bands: Positive = 1
    latent_dim: Positive = 64
    width: Positive = 128
    multiples: tuple[Positive, ...] = (1, 2, 4, 8, 16)
    strides: tuple[Positive, ...] = (2, 4, 4, 8, 8)
    scale_factor: Scale = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)
        if len(self.multiples) != len(self.strides) or not self.strides:
            raise InputError(f"multiples {self.multiples}, strides {self.strides}: a level needs one of each")
        if self.bands != 1 and self.bands % 2:
            raise InputError(f"bands is {self.bands}; it must be 1 (samples) or an even number of MDCT bands")
        if any(stride % 2 for stride in self.strides):  # decoding would not give a multiple of their product
            raise InputError(f"strides is {self.strides}; each must be even")

    @property
    def hop_length(self) -> int:
        """Samples for each latent frame."""
        return self.bands * math.prod(self.strides)


LOOP_CONTEXT = 24  # latent frames of a loop that the decoders see beyond its ends; none reaches further

AutoencoderConfig = MelAutoencoderConfig | WaveformAutoencoderConfig


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

    def __init__(self, config: AutoencoderConfig, sample_rate: int, channels: int, hop_length: int):
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
        if can_pack(self.scale_factor.device, dtype) and (dtype != torch.float32 or self.packs_float32):
            self.dtype = dtype
            for part in self.decoders():
                pack(part, dtype)

    def decoders(self) -> list[Any]:
        """The networks that `freeze` packs."""
        return [self.vae.decoder]

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

    def _lower(self) -> torch.autocast:
        """Products in the number type of `freeze`."""
        device = self.scale_factor.device.type
        return torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32)

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


class MelAutoencoder(LatentAutoencoder):
    """AutoencoderKL on log-mel spectrograms, followed by HiFi-GAN, trained one by one, or by Griffin-Lim."""

    config: MelAutoencoderConfig

    def __init__(self, config: MelAutoencoderConfig):
        mel, levels = config.mel, len(config.channels)
        super().__init__(config, mel.sample_rate, 1, mel.hop_length * config.reduction)
        self.bins = (config.bins,)
        self.vae = AutoencoderKL(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=config.channels,
            layers_per_block=config.num_res_blocks,
            latent_channels=config.latent_dim,
            mid_block_add_attention=config.mid_attention,
            norm_num_groups=config.norm_groups,
            scaling_factor=config.scale_factor,
        )
        self.vocoder: Any = None
        if config.vocoder is not None:
            self.vocoder = vocoder(config.vocoder, mel.num_mels, mel.sample_rate)

    def features(self, audio: Tensor) -> Tensor:
        """Audio [B, 1, N] -> log-mel [B, 1, T, M], with `reduction` times the frames and bins of the latents."""
        return log_mel(self._whole_frames(audio), self.config.mel)

    def decode_loop(self, latents: Tensor) -> Tensor:
        """Latents [B, D, T, M] -> audio [B, 1, N]: without a vocoder the phases go on around the loop, too."""
        if self.vocoder is not None:
            return super().decode_loop(latents)
        cut = LOOP_CONTEXT * self.config.reduction
        mel = self.decode_features(padded(latents, LOOP_CONTEXT))[:, 0, cut:-cut]
        return griffin_lim(mel, self.config.mel, is_loop=True)[:, None]

    def synthesise(self, features: Tensor) -> Tensor:
        """Log-mel [B, 1, T, M] -> audio [B, 1, T * mel.hop_length]."""
        mel, hop_length = features[:, 0], self.config.mel.hop_length
        if self.vocoder is None:
            return griffin_lim(mel, self.config.mel)[:, None]
        # A stage whose kernel exceeds its rate by an odd number makes one sample more than rate times its input: the
        # end is cut (32 samples of the released vocoder).
        with self._lower():
            return self.vocoder(mel).float()[:, None, : mel.shape[1] * hop_length]

    def decoders(self) -> list[Any]:
        """The networks that `freeze` packs: the VAE's, and the vocoder where there is one."""
        return [self.vae.post_quant_conv, self.vae.decoder, *([] if self.vocoder is None else [self.vocoder])]


class WaveformAutoencoder(LatentAutoencoder):
    """AutoencoderOobleck on samples or on MDCT bands, its activations by `Snake`."""

    config: WaveformAutoencoderConfig
    packs_float32 = True

    def __init__(self, config: WaveformAutoencoderConfig):
        super().__init__(config, config.sample_rate, config.channels, config.hop_length)
        with warnings.catch_warnings():  # diffusers uses torch's older weight norm
            warnings.simplefilter("ignore", FutureWarning)
            self.vae = AutoencoderOobleck(
                encoder_hidden_size=2 * config.latent_dim,
                downsampling_ratios=list(config.strides),
                channel_multiples=list(config.multiples),
                decoder_channels=config.width,
                decoder_input_channels=config.latent_dim,
                audio_channels=config.channels * config.bands,
                sampling_rate=config.sample_rate,
            )
        use_snakes(self.vae, Snake1d)
        # New latents have a standard deviation of softplus(-3) = 0.05 in place of 0.7: with more noise the decoder
        # learns to do without them.
        self.vae.encoder.conv2.bias.data[config.latent_dim :].fill_(-3.0)

    def features(self, audio: Tensor) -> Tensor:
        """[B, C, N] -> [B, C * bands, N / bands]."""
        whole = self._whole_frames(audio)
        bands = self.config.bands
        return whole if bands == 1 else compress(mdct(whole, mdct_basis(bands, str(audio.device))))

    def synthesise(self, features: Tensor) -> Tensor:
        """[B, C * bands, N / bands] -> [B, C, N]."""
        bands = self.config.bands
        if bands == 1:
            return features
        return inverse_mdct(expand(features), mdct_basis(bands, str(features.device)))


def make_autoencoder(config: AutoencoderConfig) -> MelAutoencoder | WaveformAutoencoder:
    """A new one of this config."""
    return MelAutoencoder(config) if isinstance(config, MelAutoencoderConfig) else WaveformAutoencoder(config)
