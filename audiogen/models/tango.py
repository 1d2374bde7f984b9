"""Tango and TangoFlux as their authors publish them.

Tango      pytorch_model_main.bin (unet.*), pytorch_model_vae.bin (VAE and vocoder.*), main_config.json,
           vae_config.json, and diffusion_model_config.json, scheduler_config.json, vocoder_config.json where given:
           their values are otherwise those of the released models
TangoFlux  tangoflux.safetensors (transformer.*, fc.*, duration_emebdder.*), vae.safetensors, config.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.diffusion.autoencoders import WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import FluxConfig, TextUNetConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.diffusion.vocoder import VocoderConfig
from audiogen.errors import InputError
from audiogen.models.latent_files import Released, Settings, empty, fill, read_settings, read_weights, under
from audiogen.models.latent_mel import autoencoder_config, fill_autoencoder, vocoder_config
from audiogen.text.t5 import TextConfig

TANGO = ("pytorch_model_main.bin", "pytorch_model_vae.bin", "main_config.json", "vae_config.json")
TANGOFLUX = ("tangoflux.safetensors", "vae.safetensors", "config.json")


def is_tango(directory: Path) -> bool:
    """Whether these files are Tango's."""
    return (directory / TANGO[0]).is_file()


def is_tangoflux(directory: Path) -> bool:
    """Whether these files are TangoFlux's."""
    return (directory / TANGOFLUX[0]).is_file()


def load_tango(directory: Path) -> Released:
    """Read Tango."""
    _check_whole(directory, TANGO)
    main, settings = directory / TANGO[0], read_settings(directory / "vae_config.json")
    both = read_weights(directory / TANGO[1])
    vae = {name: tensor for name, tensor in both.items() if not name.startswith("vocoder.")}
    mel, vocoder = _mel_and_vocoder(directory)
    unet = _unet(directory)
    config = SystemConfig(
        conditioner=ConditionerConfig(
            cross=(("text",),),
            unconditional="empty",
            text=TextConfig(_text_encoder(directory / "main_config.json"), width=unet.cross_dim),
        ),
        mel_autoencoder=autoencoder_config(
            settings.below("ddconfig"), vae, mel, vocoder, settings.get("scale_factor", float)
        ),
        text_unet=unet,
    )
    system = empty(lambda: LatentSystem(config))
    tensors = under(read_weights(main), "unet.")
    fill(system.denoiser.network, tensors, lambda name: name, main)
    fill_autoencoder(system.autoencoder, vae, under(both, "vocoder."), directory / TANGO[1])  # type: ignore[arg-type]
    notes = (
        f"attention heads {unet.heads}: attention_head_dim of its settings, as diffusers calls their number",
    )
    return Released(system.eval(), "tango", _process(directory / "scheduler_config.json"), notes)


def load_tangoflux(directory: Path) -> Released:
    """Read TangoFlux."""
    _check_whole(directory, TANGOFLUX)
    path, settings = directory / TANGOFLUX[0], read_settings(directory / "config.json")
    tensors, vae = read_weights(path), read_weights(directory / "vae.safetensors")
    width = settings.get("joint_attention_dim", int)
    flux = FluxConfig(
        latent_dim=settings.get("in_channels", int),
        num_layers=settings.get("num_layers", int),
        num_single_layers=settings.get("num_single_layers", int),
        num_heads=settings.get("num_attention_heads", int),
        head_dim=settings.get("attention_head_dim", int),
        cross_dim=width,
        vector_dim=width,
    )
    config = SystemConfig(
        conditioner=ConditionerConfig(
            cross=(("text", "seconds_total"),),
            vector=("pooled",),
            unconditional="padded",
            text=TextConfig(_text_encoder(directory / "config.json"), width=width),
            pooled_dim=width,
            seconds=SecondsConfig(width=width, min_s=0.0, max_s=settings.get("max_duration", float)),
        ),
        waveform_autoencoder=oobleck_config(vae, directory / "vae.safetensors"),
        flux=flux,
    )
    system = empty(lambda: LatentSystem(config))
    conditioner, autoencoder = system.conditioner, system.autoencoder
    assert conditioner.pooled is not None
    same = str
    fill(system.denoiser.network, under(tensors, "transformer."), same, path)
    fill(conditioner.pooled, under(tensors, "fc.0."), same, path)
    fill(conditioner.seconds, under(tensors, "duration_emebdder."), same, path)  # their spelling
    fill(autoencoder.vae, vae, same, directory / "vae.safetensors")
    autoencoder.scale_factor = torch.tensor(config.autoencoder.scale_factor)
    return Released(system.eval(), "tangoflux", {})


def oobleck_config(
    tensors: Mapping[str, Tensor], where: Path, sample_rate: int = 44100
) -> WaveformAutoencoderConfig:
    """The sizes of an AutoencoderOobleck from its weights, which come without settings."""
    try:
        first, last = tensors["decoder.conv1.weight_v"], tensors["decoder.conv2.weight_v"]
        base = tensors["encoder.conv1.weight_v"].shape[0]
        blocks: list[torch.Size] = []
        while (block := tensors.get(f"encoder.block.{len(blocks)}.conv1.weight_v")) is not None:
            blocks.append(block.shape)
        return WaveformAutoencoderConfig(
            sample_rate=sample_rate,
            channels=last.shape[0],
            latent_dim=first.shape[1],
            width=last.shape[1],
            multiples=tuple(shape[0] // base for shape in blocks),
            strides=tuple(shape[2] // 2 for shape in blocks),
        )
    except (KeyError, IndexError):
        raise InputError(f"{where} holds no Oobleck autoencoder; copy it again") from None


def _check_whole(directory: Path, needed: tuple[str, ...]) -> None:
    for name in needed:
        if not (directory / name).is_file():
            raise InputError(f"{directory} lacks {name}; the release has {', '.join(needed)}: copy it again")


def _text_encoder(path: Path) -> str:
    return read_settings(path).get("text_encoder_name", str, "google/flan-t5-large")


def _mel_and_vocoder(directory: Path) -> tuple[MelConfig, VocoderConfig]:
    path = directory / "vocoder_config.json"
    if not path.is_file():
        return MelConfig(), VocoderConfig()
    settings = read_settings(path)
    vocoder = vocoder_config(settings)
    mel = MelConfig(
        sample_rate=settings.get("sampling_rate", int),
        hop_length=vocoder.hop_length,
        num_mels=settings.get("num_mels", int),
    )
    return mel, vocoder


def _unet(directory: Path) -> TextUNetConfig:
    path = directory / "diffusion_model_config.json"
    return text_unet_config(read_settings(path)) if path.is_file() else TextUNetConfig()


def text_unet_config(settings: Settings) -> TextUNetConfig:
    """From the settings of a UNet2DConditionModel."""
    for key, implemented in (("use_linear_projection", True), ("upcast_attention", True)):
        if settings.get(key, bool, False) is not implemented:
            raise InputError(
                f"{settings.where}: {key} must be {str(implemented).lower()}; else is not implemented"
            )
    return TextUNetConfig(
        latent_dim=settings.get("out_channels", int),
        channels=settings.wholes("block_out_channels"),
        heads=settings.wholes("attention_head_dim"),
        attention=tuple(kind.startswith("CrossAttn") for kind in settings.get("down_block_types", list)),
        cross_dim=settings.get("cross_attention_dim", int),
        num_res_blocks=settings.get("layers_per_block", int),
        extra_channels=settings.get("in_channels", int) - settings.get("out_channels", int),
    )


def _process(path: Path) -> dict[str, Any]:
    return scheduler_process(read_settings(path)) if path.is_file() else {}


def scheduler_process(settings: Settings) -> dict[str, Any]:
    """What a DDPM-like scheduler of diffusers says of the process."""
    kind = settings.get("prediction_type", str, "epsilon")
    if kind not in ("epsilon", "v_prediction"):
        raise InputError(
            f"{settings.where}: prediction_type is {kind!r}; 'epsilon' and 'v_prediction' are implemented"
        )
    return {
        "kind": "ddpm",
        "prediction": {"epsilon": "epsilon", "v_prediction": "v"}[kind],
        "num_train_steps": settings.get("num_train_timesteps", int),
        "beta_schedule": settings.get("beta_schedule", str),
        "beta_start": settings.get("beta_start", float),
        "beta_end": settings.get("beta_end", float),
    }
