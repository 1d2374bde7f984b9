"""AudioLDM and AudioLDM 2 as their authors publish them: one checkpoint with everything.

The sizes are in config.yaml beside it, or those of the released models, by the width of the UNet.

model.diffusion_model.*       UNet; model_ema.* its average, whose names have lost their dots
first_stage_model.*           VAE, with the vocoder under vocoder.
scale_factor                  of the latents
cond_stage_models.0.*         AudioLDM 2: GPT-2 and what joins its input
cond_stage_model.*, clap.*    CLAP and T5, which come from the hub here
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.diffusion.conditioners import ConditionerConfig
from audiogen.diffusion.loa import LoaConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig, released
from audiogen.diffusion.vocoder import VocoderConfig
from audiogen.errors import InputError
from audiogen.models import latent_names as public_names
from audiogen.models.latent_files import Released, Settings, empty, fill, read_settings, read_weights, under
from audiogen.models.latent_mel import (
    autoencoder_config,
    fill_autoencoder,
    fill_unet,
    unet_config,
    vocoder_config,
)
from audiogen.text.t5 import TextConfig

CONFIG = "config.yaml"
CLAP = "laion/clap-htsat-unfused"
TEXT_ENCODER = "google/flan-t5-large"
LOA = "crossattn_audiomae_generated"
LOA_PARTS = ("start_of_sequence_tokens.", "end_of_sequence_tokens.", "input_sequence_embed_linear.", "model.")


def is_audioldm(directory: Path) -> bool:
    """Whether these files are AudioLDM's or AudioLDM 2's: one checkpoint, with settings in YAML or none at all."""
    settled = (directory / CONFIG).is_file() or not any(directory.glob("*.json"))
    return settled and len(_checkpoints(directory)) == 1


def load_audioldm(directory: Path, heads: tuple[int, ...] | None = None, ema: bool | None = None) -> Released:
    """Read either.

    heads: attention heads of each level; by default the authors', channels / num_head_channels. The converted models of
    the hub say 8 at every level, which gives other outputs from the same weights (15 % and 44 % of their size).
    ema: take the averaged UNet; by default what the authors generate with, which is the average for AudioLDM alone.
    """
    files = _checkpoints(directory)
    if len(files) != 1:
        raise InputError(
            f"{directory} has {len(files)} checkpoints (.ckpt, .pth); one is needed beside {CONFIG}"
        )
    tensors = read_weights(files[0], "state_dict")
    first = under(tensors, "first_stage_model.")
    vae = {name: tensor for name, tensor in first.items() if not name.startswith("vocoder.")}
    if "scale_factor" not in tensors:
        raise InputError(f"{files[0]} lacks scale_factor; its latents cannot be scaled: copy it again")
    scale_factor, process, origin = float(tensors["scale_factor"]), {}, "the authors'"
    if (directory / CONFIG).is_file():
        settings = read_settings(directory / CONFIG)
        config = _config(settings, vae, scale_factor)
        process = _process(settings.below("model.params"))
        origin = f"channels / num_head_channels of {CONFIG}"
    else:
        config = standard_config(tensors, scale_factor, files[0])
    assert config.audio_unet is not None
    if heads is not None:
        config = dataclasses.replace(config, audio_unet=dataclasses.replace(config.audio_unet, heads=heads))
        origin = "as given"
    second = config.conditioner.loa is not None
    system = empty(lambda: LatentSystem(config))
    averaged = (not second) if ema is None else ema
    fill_unet(system.denoiser, _unet(tensors, averaged, files[0]), files[0], averaged)  # type: ignore[arg-type]
    fill_autoencoder(system.autoencoder, vae, under(first, "vocoder."), files[0])  # type: ignore[arg-type]
    if system.conditioner.loa is not None:
        found = {
            name: tensor
            for name, tensor in under(tensors, "cond_stage_models.0.").items()
            if name.startswith(LOA_PARTS)
        }
        masks = [
            name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))
        ]  # of old GPT-2s
        fill(system.conditioner.loa, found, public_names.loa, files[0], ignore=masks)
    assert config.audio_unet is not None
    notes = (
        f"attention heads {config.audio_unet.heads}: {origin}",
        f"UNet weights: {'their average (model_ema)' if averaged else 'the last (model)'}",
    )
    return Released(system.eval(), "audioldm2" if second else "audioldm", process, notes)


def standard_config(tensors: Mapping[str, Tensor], scale_factor: float, where: Path) -> SystemConfig:
    """The released model that such weights are of, by the width of the UNet and whether there is a GPT-2."""
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    width = 0 if first is None else len(first)
    second = any(name.startswith("cond_stage_models.0.model.") for name in tensors)
    names = (
        {128: "audioldm2", 256: "audioldm2_large"}
        if second
        else {128: "audioldm_s", 192: "audioldm_m", 256: "audioldm_l"}
    )
    if width not in names:
        raise InputError(
            f"{where} has a UNet {width} wide, which no release has (they have {', '.join(map(str, names))}); "
            f"put its {CONFIG} beside it"
        )
    config = released()[names[width]]
    assert config.mel_autoencoder is not None
    autoencoder = dataclasses.replace(config.mel_autoencoder, scale_factor=scale_factor)
    return dataclasses.replace(config, mel_autoencoder=autoencoder)


def _config(settings: Settings, vae: Mapping[str, Tensor], scale_factor: float) -> SystemConfig:
    params = settings.below("model.params")
    second = params.get(f"cond_stage_config.{LOA}", dict, None) is not None
    unet = params.below("unet_config.params")
    context = unet.wholes("context_dim") if second else ()
    return SystemConfig(
        conditioner=_conditioner_2(params, context) if second else _conditioner(unet),
        mel_autoencoder=autoencoder_config(
            params.below("first_stage_config.params.ddconfig"),
            vae,
            _mel(settings),
            _vocoder(params),
            scale_factor,
        ),
        audio_unet=unet_config(
            unet, (None, *context), None if second else unet.get("extra_film_condition_dim", int)
        ),
    )


def _checkpoints(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if path.suffix in (".ckpt", ".pth"))


def _unet(tensors: Mapping[str, Tensor], averaged: bool, where: Path) -> dict[str, Tensor]:
    found = under(tensors, "model_ema.diffusion_model" if averaged else "model.diffusion_model.")
    if not found:
        raise InputError(
            f"{where} has no {'averaged ' if averaged else ''}UNet; set ema the other way, or copy it again"
        )
    return found


def _conditioner(unet: Settings) -> ConditionerConfig:
    if not unet.get("extra_film_use_concat", bool, True):
        raise InputError(f"{unet.where}: extra_film_use_concat false is not implemented")
    dim = unet.get("extra_film_condition_dim", int)
    return ConditionerConfig(vector=("clap",), unconditional="empty", clap=CLAP, clap_dim=dim)


def _conditioner_2(params: Settings, context: tuple[int, ...]) -> ConditionerConfig:
    key = f"cond_stage_config.{LOA}.params"
    dims = params.wholes(f"{key}.sequence_input_embed_dim")
    if len(context) != 2 or len(dims) != 2:
        raise InputError(
            f"{params.where}: context_dim {context} and sequence_input_embed_dim {dims}; two of each are implemented, "
            "the language of audio and Flan-T5, from CLAP and Flan-T5"
        )
    gpt2 = (
        params.below("gpt2_config") if params.get("gpt2_config", dict, None) else Settings({}, params.where)
    )
    standard = LoaConfig()
    return ConditionerConfig(
        cross=(("loa",), ("text",)),
        unconditional="empty",
        text=TextConfig(TEXT_ENCODER, width=context[1]),
        clap=CLAP,
        clap_dim=dims[0],
        loa=LoaConfig(
            width=context[0],
            length=params.get(f"{key}.sequence_gen_length", int),
            num_layers=gpt2.get("n_layer", int, standard.num_layers),
            num_heads=gpt2.get("n_head", int, standard.num_heads),
            max_positions=gpt2.get("n_positions", int, standard.max_positions),
            vocab_size=gpt2.get("vocab_size", int, standard.vocab_size),
            clap_dim=dims[0],
            text_dim=dims[1],
        ),
    )


def _mel(settings: Settings) -> MelConfig:
    return MelConfig(
        sample_rate=settings.get("preprocessing.audio.sampling_rate", int),
        n_fft=settings.get("preprocessing.stft.filter_length", int),
        hop_length=settings.get("preprocessing.stft.hop_length", int),
        num_mels=settings.get("preprocessing.mel.n_mel_channels", int),
        f_min=settings.get("preprocessing.mel.mel_fmin", float),
        f_max=settings.get("preprocessing.mel.mel_fmax", float),
    )


def _vocoder(params: Settings) -> VocoderConfig:
    """The authors' code has the sizes of its vocoder, and no setting for them."""
    if params.get("vocoder_config", dict, None) is None:
        return VocoderConfig()
    return vocoder_config(params.below("vocoder_config.params"))


def _process(params: Settings) -> dict[str, Any]:
    kind = params.get("parameterization", str, "eps")
    if kind not in ("eps", "v"):
        raise InputError(f"{params.where}: parameterization is {kind!r}; 'eps' and 'v' are implemented")
    return {
        "kind": "ddpm",
        "prediction": {"eps": "epsilon", "v": "v"}[kind],
        "num_train_steps": params.get("timesteps", int),
        "beta_schedule": "scaled_linear",  # the authors' "linear" is so in the square root
        "beta_start": params.get("linear_start", float),
        "beta_end": params.get("linear_end", float),
    }
