"""Models of stable-audio-tools: model_config.json and one file of weights (Stable Audio Open)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.diffusion.autoencoders import WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import DiTConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.models import latent_names as public_names
from audiogen.models.latent_files import Released, Settings, empty, fill, read_settings, read_weights, under
from audiogen.text.t5 import TextConfig

CONFIG = "model_config.json"
WEIGHTS = ("model.safetensors", "model.ckpt")
TEXT_WIDTHS = {"t5-small": 512, "t5-base": 768, "t5-large": 1024, "google/flan-t5-large": 1024}
PIECES = {"prompt": "text", "seconds_start": "seconds_start", "seconds_total": "seconds_total"}


def is_stable_audio(directory: Path) -> bool:
    """Whether these files are of stable-audio-tools."""
    return (directory / CONFIG).is_file()


def load_stable_audio(directory: Path) -> Released:
    """Read a text-conditioned diffusion transformer on Oobleck latents; other kinds are refused by name."""
    settings = read_settings(directory / CONFIG)
    weights = next((directory / name for name in WEIGHTS if (directory / name).is_file()), None)
    if weights is None:
        raise InputError(f"{directory} holds {CONFIG} but no weights ({' or '.join(WEIGHTS)}); copy it again")
    tensors = read_weights(weights, None if weights.suffix == ".safetensors" else "state_dict")
    config = SystemConfig(
        conditioner=_conditioner(settings),
        waveform_autoencoder=_autoencoder(settings),
        dit=_dit(settings, tensors),
    )
    system = empty(lambda: LatentSystem(config))
    autoencoder, denoiser = system.autoencoder, system.denoiser
    levels = len(config.autoencoder.strides)  # type: ignore[union-attr]
    vae = under(tensors, "pretransform.model.")
    fill(autoencoder.vae, vae, lambda name: public_names.oobleck(name, levels), weights)
    autoencoder.scale_factor = torch.tensor(config.autoencoder.scale_factor)
    fill(
        denoiser.network,
        under(tensors, "model.model."),
        public_names.dit,
        weights,
        ignore=("transformer.rotary_pos_emb.inv_freq",),  # follows from the head's width
    )
    numbers = under(tensors, "conditioner.conditioners.")
    text = [name for name in numbers if name.startswith("prompt.model.")]  # frozen: comes from the hub
    fill(system.conditioner.seconds, numbers, public_names.seconds, weights, ignore=text)
    return Released(system.eval(), "stable_audio", {})


def _conditioner(settings: Settings) -> ConditionerConfig:
    entries: dict[str, Settings] = {}
    for entry in settings.get("model.conditioning.configs", list):
        part = Settings(entry, settings.where)
        entries[part.get("id", str)] = part
    for key, part in entries.items():
        kind = part.get("type", str)
        if PIECES.get(key) is None or kind != ("t5" if key == "prompt" else "number"):
            raise InputError(
                f"{settings.where}: condition {key!r} of type {kind!r} is not implemented; what is: prompt (t5), "
                "seconds_start and seconds_total (number)"
            )
    if missing := [key for key in PIECES if key not in entries]:
        raise InputError(f"{settings.where} lacks the condition {missing[0]!r}; only models with it are read")
    prompt, total = entries["prompt"], entries["seconds_total"]
    name = prompt.get("config.t5_model_name", str, "t5-base")
    if name not in TEXT_WIDTHS:
        raise InputError(f"{settings.where}: t5_model_name is {name!r}; allowed: {', '.join(TEXT_WIDTHS)}")
    length = prompt.get("config.max_length", int, 128)
    cross, vector = (
        tuple(PIECES[key] for key in settings.get(f"model.diffusion.{kind}_cond_ids", list))
        for kind in ("cross_attention", "global")
    )
    return ConditionerConfig(
        cross=(cross,),
        vector=vector,
        unconditional="zeros",
        text=TextConfig(name, width=TEXT_WIDTHS[name], max_tokens=length),
        text_length=length,
        seconds=SecondsConfig(
            width=settings.get("model.conditioning.cond_dim", int),
            min_s=total.get("config.min_val", float),
            max_s=total.get("config.max_val", float),
        ),
    )


def _autoencoder(settings: Settings) -> WaveformAutoencoderConfig:
    both = settings.below("model.pretransform.config")
    kinds = (both.get("encoder.type", str), both.get("decoder.type", str), both.get("bottleneck.type", str))
    if kinds != ("oobleck", "oobleck", "vae"):
        raise InputError(
            f"{settings.where}: the pretransform is {kinds}; only Oobleck with a VAE bottleneck is read"
        )
    decoder = both.below("decoder.config")
    if decoder.get("final_tanh", bool, True) or not decoder.get("use_snake", bool, False):
        raise InputError(
            f"{settings.where}: only decoders with use_snake and without final_tanh are implemented"
        )
    return WaveformAutoencoderConfig(
        sample_rate=settings.get("sample_rate", int),
        channels=settings.get("audio_channels", int),
        latent_dim=both.get("latent_dim", int),
        width=decoder.get("channels", int),
        multiples=decoder.wholes("c_mults"),
        strides=decoder.wholes("strides"),
        # stable-audio-tools divides by its scale
        scale_factor=1 / settings.get("model.pretransform.scale", float, 1.0),
    )


def _dit(settings: Settings, tensors: Mapping[str, Tensor]) -> DiTConfig:
    kind = settings.get("model.diffusion.type", str)
    if kind != "dit":
        raise InputError(f"{settings.where}: model.diffusion.type is {kind!r}; only 'dit' is implemented")
    sizes = settings.below("model.diffusion.config")
    for key, allowed in _IMPLEMENTED.items():
        if (value := sizes.contents.get(key, allowed[0])) not in allowed:
            raise InputError(f"{settings.where}: {key} is {value!r}; implemented: {allowed}")
    width, heads = sizes.get("embed_dim", int), sizes.get("num_heads", int)
    cross = tensors.get("model.model.to_cond_embed.2.weight")
    if cross is None or width % heads:
        raise InputError(
            f"{settings.where}: embed_dim {width} with {heads} heads, or weights without model.model.to_cond_embed.2"
        )
    return DiTConfig(
        latent_dim=sizes.get("io_channels", int),
        num_layers=sizes.get("depth", int),
        num_heads=heads,
        head_dim=width // heads,
        kv_heads=len(cross) // (width // heads),
        cross_dim=sizes.get("cond_token_dim", int),
        cross_width=len(cross),
        vector_dim=sizes.get("global_cond_dim", int),
    )


_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "transformer_type": ("continuous_transformer",),
    "global_cond_type": ("prepend",),
    "prepend_cond_dim": (0, None),
    "input_concat_dim": (0, None),
}
