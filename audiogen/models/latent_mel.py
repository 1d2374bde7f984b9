"""The parts that AudioLDM, AudioLDM 2, LAFMA and Tango share in their authors' files: UNet, mel VAE and HiFi-GAN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from audiogen.diffusion.autoencoders import MelAutoencoder, MelAutoencoderConfig
from audiogen.diffusion.denoisers import AudioUNet, AudioUNetConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.vocoder import VocoderConfig
from audiogen.models import latent_names as public_names
from audiogen.models.latent_files import Settings, fill


def vocoder_config(settings: Settings) -> VocoderConfig:
    """From HiFi-GAN's own settings."""
    dilations = settings.get("resblock_dilation_sizes", list)
    return VocoderConfig(
        channels=settings.get("upsample_initial_channel", int),
        rates=settings.wholes("upsample_rates"),
        kernels=settings.wholes("upsample_kernel_sizes"),
        resblock_kernels=settings.wholes("resblock_kernel_sizes"),
        resblock_dilations=tuple(tuple(row) for row in dilations),
    )


def autoencoder_config(
    settings: Settings, vae: Mapping[str, Tensor], mel: MelConfig, vocoder: VocoderConfig, scale_factor: float
) -> MelAutoencoderConfig:
    """From the settings of the VAE ("ddconfig"); whether it attends in its middle is seen from its weights."""
    width = settings.get("ch", int)
    return MelAutoencoderConfig(
        channels=tuple(width * factor for factor in settings.wholes("ch_mult")),
        num_res_blocks=settings.get("num_res_blocks", int),
        latent_dim=settings.get("z_channels", int),
        mid_attention="encoder.mid.attn_1.q.weight" in vae,
        scale_factor=scale_factor,
        mel=mel,
        vocoder=vocoder,
    )


def unet_config(
    settings: Settings,
    layers: tuple[int | None, ...],
    vector_dim: int | None,
    heads: tuple[int, ...] | None = None,
) -> AudioUNetConfig:
    """From the settings of the authors' UNetModel. heads: in place of those that the settings say."""
    width, factors = settings.get("model_channels", int), settings.wholes("channel_mult")
    channels = tuple(width * factor for factor in factors)
    if heads is None:
        per_head = settings.get("num_head_channels", int, -1)
        heads = (
            tuple(max(1, channel // per_head) for channel in channels)
            if per_head > 0
            else (settings.get("num_heads", int),) * len(channels)
        )
    strides = settings.wholes("attention_resolutions")
    return AudioUNetConfig(
        latent_dim=settings.get("in_channels", int),
        channels=channels,
        heads=heads,
        attention=tuple(2**level in strides for level in range(len(channels))),
        layers=layers,
        depth=settings.get("transformer_depth", int, 1),
        num_res_blocks=settings.get("num_res_blocks", int),
        vector_dim=vector_dim,
    )


def fill_unet(unet: AudioUNet, tensors: Mapping[str, Tensor], where: Path, ema: bool = False) -> None:
    """Give the network its weights. ema: the names have lost their dots, as LitEma stores them."""
    config = unet.config

    def public(name: str) -> str:
        found = public_names.audio_unet(name, config.num_res_blocks, len(config.layers), config.attention)
        return found.replace(".", "") if ema else found

    fill(unet.network, tensors, public, where)


def fill_autoencoder(
    autoencoder: MelAutoencoder,
    vae: Mapping[str, Tensor],
    vocoder: Mapping[str, Tensor],
    where: Path,
    vocoder_where: Path | None = None,
) -> None:
    """Give VAE and vocoder their weights, and the scale its value."""
    config = autoencoder.config
    loss = [name for name in vae if name.startswith("loss.")]
    fill(
        autoencoder.vae,
        vae,
        lambda name: public_names.mel_vae(name, len(config.channels)),
        where,
        ignore=loss,
    )
    bins = config.mel.num_mels
    fill(
        autoencoder.vocoder,
        vocoder,
        public_names.vocoder,
        vocoder_where or where,
        own={"mean": torch.zeros(bins), "scale": torch.ones(bins)},
    )
    autoencoder.scale_factor = torch.tensor(config.scale_factor)
    autoencoder.eval()
