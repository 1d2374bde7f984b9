"""Autoencoders: audio [B, C, N] to latents at unit variance and back.

`MelAutoencoder` goes through a mel spectrogram and a vocoder (AudioLDM, AudioLDM 2, LAFMA, Tango), its latents are
[B, D, T, M]; `WaveformAutoencoder` works on samples (Stable Audio, TangoFlux), its latents are [B, D, T]. Stable Audio
3 has that of `same.py`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck, Snake1d
from torch import Tensor

from audiogen.config import Positive, check_ranges
from audiogen.diffusion.circle import padded
from audiogen.diffusion.latents import LOOP_CONTEXT, LatentAutoencoder, Scale
from audiogen.diffusion.mdct import compress, expand, inverse_mdct, mdct, mdct_basis
from audiogen.diffusion.mel import MelConfig, VocoderConfig, griffin_lim, log_mel, vocoder
from audiogen.diffusion.same import SameAutoencoder, SameAutoencoderConfig
from audiogen.errors import InputError
from audiogen.snake import use_snakes


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


AutoencoderConfig = MelAutoencoderConfig | WaveformAutoencoderConfig | SameAutoencoderConfig
Autoencoder = MelAutoencoder | WaveformAutoencoder | SameAutoencoder


def make_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """A new one of this config."""
    if isinstance(config, SameAutoencoderConfig):
        return SameAutoencoder(config)
    return MelAutoencoder(config) if isinstance(config, MelAutoencoderConfig) else WaveformAutoencoder(config)
