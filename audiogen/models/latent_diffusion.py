"""What AudioLDM, AudioLDM 2, LAFMA and Tango share in their authors' files: UNet, mel VAE and HiFi-GAN.

Settings to our configurations, and names of tensors: ours, which are those of diffusers and transformers, to theirs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.diffusion.autoencoders import MelAutoencoderConfig
from audiogen.diffusion.denoisers import AudioUNetConfig
from audiogen.diffusion.mel import MelConfig, VocoderConfig
from audiogen.files.tensors import Source, under
from audiogen.models.settings import Settings, source, table
from audiogen.models.systems import Component

# ------------------------------------------------------------------------------------------- configurations


TEXT_ENCODER = "google/flan-t5-large"


def vocoder_config(settings: Settings) -> VocoderConfig:
    """From HiFi-GAN's own settings."""
    settings.choice("resblock", ["1"], "1")
    return settings.build(VocoderConfig, "hifigan.vocoder")


def mel_and_vocoder(settings: Settings) -> tuple[MelConfig, VocoderConfig]:
    """From a file of HiFi-GAN's settings, which may describe the spectrogram; else that of the released models."""
    vocoder = vocoder_config(settings)
    mel = settings.build(MelConfig, "hifigan.mel", hop_length=vocoder.hop_length)
    settings.expect(win_size=mel.n_fft, hop_size=mel.hop_length)
    settings.done(table("hifigan.harmless"))
    return mel, vocoder


def autoencoder_config(
    settings: Settings, vae: Mapping[str, Tensor], mel: MelConfig, vocoder: VocoderConfig, scale_factor: float
) -> MelAutoencoderConfig:
    """From the settings of the VAE ("ddconfig"); whether it attends in its middle is seen from its weights."""
    width = settings.whole("ch")
    settings.expect(mel_bins=mel.num_mels, **table("ldm.expected_vae"))
    return MelAutoencoderConfig(
        channels=tuple(width * factor for factor in settings.wholes("ch_mult")),
        num_res_blocks=settings.whole("num_res_blocks"),
        latent_dim=settings.whole("z_channels"),
        mid_attention="encoder.mid.attn_1.q.weight" in vae,
        scale_factor=scale_factor,
        mel=mel,
        vocoder=vocoder,
    )


def check_around_vae(settings: Settings, config: MelAutoencoderConfig) -> None:
    """What stands around "ddconfig": shuffling of time and bands, and the width of the latents."""
    settings.expect(subband=1, time_shuffle=1, embed_dim=config.latent_dim)
    settings.expect(sampling_rate=config.mel.sample_rate)


def unet_config(
    settings: Settings, layers: tuple[int | None, ...], vector_dim: int | None
) -> AudioUNetConfig:
    """From the settings of the authors' UNetModel."""
    width, latent_dim = settings.whole("model_channels"), settings.whole("in_channels")
    channels = tuple(width * factor for factor in settings.wholes("channel_mult"))
    settings.expect(out_channels=latent_dim, **table("ldm.expected_unet"))
    if settings.take("num_head_channels", -1) == -1:
        heads = (settings.whole("num_heads"),) * len(channels)
    else:
        settings.take("num_heads", None)  # the channels of a head go before it
        per_head = settings.whole("num_head_channels")
        heads = tuple(max(1, channel // per_head) for channel in channels)
    strides = settings.wholes("attention_resolutions")
    return AudioUNetConfig(
        latent_dim=latent_dim,
        channels=channels,
        heads=heads,
        attention=tuple(2**level in strides for level in range(len(channels))),
        layers=layers,
        depth=settings.whole("transformer_depth", 1),
        num_res_blocks=settings.whole("num_res_blocks"),
        vector_dim=vector_dim,
    )


def attention_layers(values: Any, where: str | Path, key: str) -> tuple[int | None, ...]:
    """Widths of the tokens that the attention layers of one place attend to; null is a layer without text."""
    rows = dict(enumerate(values)) if isinstance(values, list) else values
    found = Settings(rows, where, key)
    return tuple(found.whole(index, None) for index in found.contents)


# ----------------------------------------------------------------------------------------------- components


def unet_component(
    config: AudioUNetConfig, tensors: Mapping[str, Tensor], where: Path, ema: bool = False
) -> Component:
    """The network's weights. ema: the names have lost their dots, as LitEma stores them."""

    def source(name: str) -> str:
        found = unet_name(name, config.num_res_blocks, len(config.layers), config.attention)
        return found.replace(".", "") if ema else found

    return Component("denoiser.network", tensors, where, source)


def autoencoder_components(
    config: MelAutoencoderConfig,
    vae: Mapping[str, Tensor],
    vocoder: Mapping[str, Tensor],
    where: Path,
    vocoder_where: Path | None = None,
) -> list[Component]:
    """The weights of VAE and vocoder; the vocoder's mean and scale are not in the files."""
    bins, levels = config.mel.num_mels, len(config.channels)
    loss = tuple(name for name in vae if name.startswith("loss."))
    return [
        Component("autoencoder.vae", vae, where, lambda name: vae_name(name, levels), ignore=loss),
        Component(
            "autoencoder.vocoder",
            vocoder,
            vocoder_where or where,
            lambda name: re.sub(r"^upsampler\.", "ups.", name),
            own={"mean": torch.zeros(bins), "scale": torch.ones(bins)},
        ),
    ]


def split_vocoder(tensors: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """VAE and vocoder of a file that has both, the vocoder under `vocoder.`."""
    vae = {name: tensor for name, tensor in tensors.items() if not name.startswith("vocoder.")}
    return vae, under(tensors, "vocoder.")


# ---------------------------------------------------------------------------------------------------- names


def unet_name(name: str, num_res_blocks: int, num_layers: int, attention: tuple[bool, ...]) -> str:
    """AudioUNet's `network` -> the UNetModel of the latent-diffusion family.

    num_layers: attention layers at each place. attention: which levels attend. Their blocks are numbered through, a
    down- or upsampler counted in.
    """
    found = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)\.(\w+)", name)
    if found is None:
        stem, _, leaf = name.rpartition(".")
        return f"{table('ldm.names_unet')[stem]}.{leaf}"
    side, kind, tail, leaf = found.group(1, 3, 5, 6)
    level = int(found[2] or 0)
    index = int(found[4])
    tail = table("ldm.names_resnet")[tail] if kind == "resnets" else "op" if kind == "downsamplers" else tail
    if side == "mid":
        place = index * (num_layers + 1) if kind == "resnets" else 1 + index
        return f"middle_block.{place}.{tail}.{leaf}"
    block, layer = {
        "resnets": (index, 0),
        "attentions": (index // num_layers, 1 + index % num_layers),
        "downsamplers": (num_res_blocks, 0),
        "upsamplers": (num_res_blocks, 1 + num_layers * attention[-1 - level]),
    }[kind]
    block += level * (num_res_blocks + 1) + (side == "down")  # after conv_in
    return f"{'input' if side == 'down' else 'output'}_blocks.{block}.{layer}.{tail}.{leaf}"


def vae_name(name: str, levels: int) -> Source:
    """AutoencoderKL -> the autoencoder of the latent-diffusion family, whose decoder counts levels from the end."""
    name = re.sub(r"(?<=up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)
    return source(name, "ldm.names_vae")
