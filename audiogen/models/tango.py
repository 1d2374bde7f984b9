"""Tango and TangoFlux as their authors publish them.

Tango      pytorch_model_main.bin (unet.*), pytorch_model_vae.bin (VAE and vocoder.*), main_config.json,
           vae_config.json, and diffusion_model_config.json, scheduler_config.json, vocoder_config.json where given:
           their values are otherwise those of the released models
TangoFlux  tangoflux.safetensors (transformer.*, fc.*, duration_emebdder.*), vae.safetensors, config.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from audiogen.config import Range
from audiogen.diffusion.autoencoders import WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import SecondsConfig
from audiogen.diffusion.denoisers import FluxConfig, TextUNetConfig
from audiogen.diffusion.mel import MelConfig, VocoderConfig
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.files.checkpoint import read_weights
from audiogen.files.tensors import under
from audiogen.models import latent_diffusion as parts
from audiogen.models.find import TANGO, TANGOFLUX
from audiogen.models.pipelines import required, scheduler_process, text_unet
from audiogen.models.settings import read_settings, table
from audiogen.models.systems import Component, SystemParts, conditioner_config
from audiogen.text.t5 import TextConfig

UNET_CONFIG, SCHEDULER = "diffusion_model_config.json", "stabilityai/stable-diffusion-2-1"
OOBLECK_RATE = 44100  # Hz; the files of an autoencoder alone do not say


def read_tango(directory: Path) -> SystemParts:
    """Read Tango."""
    for name in TANGO:
        required(directory, name)
    main, settings = read_settings(directory / TANGO[2]), read_settings(directory / TANGO[3])
    vae, vocoder = parts.split_vocoder(read_weights(directory / TANGO[1]))
    main.expect(scheduler_name=SCHEDULER, unet_model_name=None)
    unet_path = directory / main.text("unet_model_config_path", UNET_CONFIG).rpartition("/")[2]
    unet_settings = read_settings(unet_path) if unet_path.is_file() else None
    unet = TextUNetConfig() if unet_settings is None else text_unet(unet_settings)
    mel, hifigan = MelConfig(), VocoderConfig()
    if (path := directory / "vocoder_config.json").is_file():
        mel, hifigan = parts.mel_and_vocoder(read_settings(path))
    codec = parts.autoencoder_config(
        settings.section("ddconfig"), vae, mel, hifigan, settings.number("scale_factor")
    )
    parts.check_around_vae(settings, codec)
    config = SystemConfig(
        conditioner_config(
            "tango", text=TextConfig(main.text("text_encoder_name", parts.TEXT_ENCODER), width=unet.cross_dim)
        ),
        mel_autoencoder=codec,
        text_unet=unet,
    )
    main.done(table("tango.harmless"))
    settings.done(table("tango.harmless_vae"))
    scheduler = directory / "scheduler_config.json"
    denoiser = Component(
        "denoiser.network",
        under(read_weights(directory / TANGO[0]), "unet."),
        directory / TANGO[0],
        settings=unet_settings,
        free=("attention_head_dim",),
    )
    return SystemParts(
        config,
        [denoiser, *parts.autoencoder_components(codec, vae, vocoder, directory / TANGO[1])],
        directory,
        "tango",
        scheduler_process(read_settings(scheduler)) if scheduler.is_file() else {},
        "attention_head_dim of its settings, as diffusers calls their number",
    )


def read_tangoflux(directory: Path) -> SystemParts:
    """Read TangoFlux."""
    for name in TANGOFLUX:
        required(directory, name)
    path, settings = directory / TANGOFLUX[0], read_settings(directory / TANGOFLUX[2])
    tensors, vae = read_weights(path), read_weights(directory / TANGOFLUX[1])
    flux = settings.build(FluxConfig, "tango.flux")
    width = flux.cross_dim
    codec = oobleck_config(vae, directory / TANGOFLUX[1])
    config = SystemConfig(
        conditioner_config(
            "tangoflux",
            text=TextConfig(settings.text("text_encoder_name", parts.TEXT_ENCODER), width=width),
            pooled_dim=width,
            seconds=SecondsConfig(width, 0.0, settings.number("max_duration", within=Range(0, above=True))),
        ),
        waveform_autoencoder=codec,
        flux=flux,
    )
    window_s = settings.whole("audio_seq_len") * codec.hop_length / codec.sample_rate
    settings.done(table("tango.harmless"))
    components = [
        Component("denoiser.network", under(tensors, "transformer."), path),
        Component("conditioner.pooled", under(tensors, "fc.0."), path),
        Component("conditioner.seconds", under(tensors, "duration_emebdder."), path),  # their spelling
        Component("autoencoder.vae", vae, directory / TANGOFLUX[1]),
    ]
    return SystemParts(config, components, directory, "tangoflux", window_s=window_s)


def oobleck_config(tensors: Mapping[str, Tensor], where: Path) -> WaveformAutoencoderConfig:
    """The sizes of an AutoencoderOobleck from its weights, which come without settings."""
    try:
        first, last = tensors["decoder.conv1.weight_v"], tensors["decoder.conv2.weight_v"]
        base = tensors["encoder.conv1.weight_v"].shape[0]
        blocks: list[torch.Size] = []
        while (block := tensors.get(f"encoder.block.{len(blocks)}.conv1.weight_v")) is not None:
            blocks.append(block.shape)
        return WaveformAutoencoderConfig(
            sample_rate=OOBLECK_RATE,
            channels=last.shape[0],
            latent_dim=first.shape[1],
            width=last.shape[1],
            multiples=tuple(shape[0] // base for shape in blocks),
            strides=tuple(shape[2] // 2 for shape in blocks),  # kernels are twice as long
        )
    except (KeyError, IndexError, ZeroDivisionError):
        raise InputError(f"{where} holds no Oobleck autoencoder; copy it again") from None
