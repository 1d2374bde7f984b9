"""Models of stable-audio-tools: model_config.json and one file of weights: Stable Audio Open, and 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from audiogen.config import Range
from audiogen.diffusion.autoencoders import WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import DiTConfig
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.files.checkpoint import read_weights, weights_file
from audiogen.files.tensors import under
from audiogen.models import stable_audio_3
from audiogen.models.settings import Settings, read_settings, source, table
from audiogen.models.systems import Component, SystemParts, conditioner_config
from audiogen.text.t5 import TextConfig

CONFIG = "model_config.json"
TEXT_WIDTHS = {"t5-small": 512, "t5-base": 768, "t5-large": 1024, "google/flan-t5-large": 1024}
PIECES = {"prompt": "text", "seconds_start": "seconds_start", "seconds_total": "seconds_total"}
COND_EMBED = "model.model.to_cond_embed.2.weight"


def read_stable_audio(directory: Path) -> SystemParts:
    """Read a text-conditioned diffusion transformer on latents of Oobleck or SAME; other kinds are refused by name."""
    settings = read_settings(directory / CONFIG)
    path = weights_file(directory, "model.safetensors", "model.ckpt")
    tensors = read_weights(path, None if path.suffix == ".safetensors" else "state_dict")
    if settings.section("model.pretransform", {}).take("config.encoder.type", None) == "same":
        return stable_audio_3.read(settings, directory, path, tensors)
    settings.expect(model_type="diffusion_cond")
    codec = _autoencoder(settings)
    config = SystemConfig(
        conditioner=_conditioner(settings.section("model")),
        waveform_autoencoder=codec,
        dit=_dit(settings.section("model.diffusion"), tensors),
    )
    window_s = settings.whole("sample_size", within=Range(1, 2**31)) / codec.sample_rate
    settings.choice("model.io_channels", [codec.latent_dim], codec.latent_dim)
    settings.done(table("stable_audio.harmless"))
    numbers, levels = under(tensors, "conditioner.conditioners."), len(codec.strides)
    components = [
        Component(
            "autoencoder.vae",
            under(tensors, "pretransform.model."),
            path,
            lambda name: _oobleck_name(name, levels),
        ),
        Component(
            "denoiser.network",
            under(tensors, "model.model."),
            path,
            lambda name: source(name, "stable_audio.names_dit"),
            ignore=("transformer.rotary_pos_emb.inv_freq",),  # follows from the head's width
        ),
        Component(
            "conditioner.seconds",
            numbers,
            path,
            lambda name: source(name, "stable_audio.names_seconds"),
            ignore=tuple(name for name in numbers if name.startswith("prompt.model.")),  # T5, from the hub
        ),
    ]
    return SystemParts(config, components, directory, "stable_audio", window_s=window_s)


# ------------------------------------------------------------------------------------------- configurations


def _conditioner(model: Settings) -> ConditionerConfig:
    entries: dict[str, Settings] = {}
    for entry in model.sections("conditioning.configs"):
        key, kind = entry.text("id"), entry.text("type")
        if key not in PIECES or kind != ("t5" if key == "prompt" else "number"):
            raise InputError(
                f"{model.where}: condition {key!r} of type {kind!r} is not implemented; what is: prompt (t5), "
                "seconds_start and seconds_total (number)"
            )
        entries[key] = entry
    if missing := [key for key in PIECES if key not in entries]:
        raise InputError(f"{model.where} lacks the condition {missing[0]!r}; only models with it are read")
    prompt, start, total = (entries[key] for key in PIECES)
    name = prompt.choice("config.t5_model_name", TEXT_WIDTHS, "t5-base")
    length = prompt.whole("config.max_length", 128)
    ends = tuple(total.number(f"config.{key}") for key in ("min_val", "max_val"))
    for key, value in zip(("min_val", "max_val"), ends, strict=True):
        start.choice(f"config.{key}", [value], value)  # our two embeddings share their range
    cross, vector = (
        tuple(PIECES.get(name, name) for name in model.texts(f"diffusion.{kind}_cond_ids"))
        for kind in ("cross_attention", "global")
    )
    return conditioner_config(
        "stable_audio",
        cross=(cross,),
        vector=vector,
        text=TextConfig(name, width=TEXT_WIDTHS[name], max_tokens=length),
        text_length=length,
        seconds=SecondsConfig(model.whole("conditioning.cond_dim"), *ends),
    )


def _autoencoder(settings: Settings) -> WaveformAutoencoderConfig:
    pretransform = settings.section("model.pretransform")
    pretransform.expect(type="autoencoder")
    both = pretransform.section("config")
    for part, kind in (("encoder", "oobleck"), ("decoder", "oobleck"), ("bottleneck", "vae")):
        both.choice(f"{part}.type", [kind])
    decoder, encoder = both.section("decoder.config"), both.section("encoder.config")
    # stable-audio-tools divides by its scale
    scale = 1 / pretransform.number("scale", 1.0, Range(0, above=True))
    config = settings.build(WaveformAutoencoderConfig, "stable_audio.codec", scale_factor=scale)
    both.expect(downsampling_ratio=math.prod(config.strides), io_channels=config.channels)
    decoder.choice("use_snake", [True], False)
    decoder.choice("final_tanh", [False], True)
    decoder.expect(out_channels=config.channels, latent_dim=config.latent_dim)
    decoder.expect(antialias_activation=False, use_nearest_upsample=False)
    encoder.choice("use_snake", [True], False)
    encoder.expect(in_channels=config.channels, channels=config.width, antialias_activation=False)
    encoder.expect(c_mults=list(config.multiples), strides=list(config.strides))
    encoder.expect(latent_dim=2 * config.latent_dim)  # mean and spread
    return config


def _dit(diffusion: Settings, tensors: Mapping[str, Tensor]) -> DiTConfig:
    diffusion.choice("type", ["dit"])
    diffusion.expect(diffusion_objective="v")
    sizes = diffusion.section("config")
    sizes.expect(**table("stable_audio.expected_dit"))
    for key in ("prepend_cond_dim", "input_concat_dim"):
        sizes.choice(key, [0, None], 0)
    width, heads = sizes.whole("embed_dim"), sizes.whole("num_heads")
    cross, cross_dim = tensors.get(COND_EMBED), sizes.whole("cond_token_dim")
    if cross is None or cross.dim() != 2 or width % heads:
        raise InputError(
            f"{diffusion.where}: embed_dim {width} with {heads} heads, or weights without a matrix {COND_EMBED}"
        )
    head_dim, cross_width = width // heads, width if sizes.flag("project_cond_tokens", True) else cross_dim
    if len(cross) != cross_width:
        raise InputError(
            f"{diffusion.where}: project_cond_tokens makes tokens {cross_width} wide, but {COND_EMBED} is "
            f"{list(cross.shape)}; they do not belong together"
        )
    if cross_width % head_dim:
        raise InputError(
            f"{diffusion.where}: tokens {cross_width} wide are not a multiple of a head's {head_dim}"
        )
    return DiTConfig(
        latent_dim=sizes.whole("io_channels"),
        num_layers=sizes.whole("depth"),
        num_heads=heads,
        head_dim=head_dim,
        kv_heads=cross_width // head_dim,
        cross_dim=cross_dim,
        cross_width=cross_width,
        vector_dim=sizes.whole("global_cond_dim"),
    )


# ---------------------------------------------------------------------------------------------------- names


def _oobleck_name(name: str, levels: int) -> str:
    """AutoencoderOobleck -> the autoencoder of stable-audio-tools, whose layers are numbered."""
    side, *rest = name.split(".")
    encoder = side == "encoder"
    if rest[0] != "block":  # the first layer, and the last two
        index = {"conv1": 0, "snake1": levels + 1, "conv2": levels + 2}[rest[0]]
        return f"{side}.layers.{index}.{rest[1]}"
    where, layer, tail = f"{side}.layers.{int(rest[1]) + 1}.layers", rest[2], rest[3:]
    if layer.startswith("res_unit"):
        unit = int(layer.removeprefix("res_unit")) - (1 if encoder else -1)
        inner = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}[tail[0]]
        return f"{where}.{unit}.layers.{inner}.{tail[1]}"
    index = {"snake1": 3 if encoder else 0, "conv1": 4, "conv_t1": 1}[layer]
    return f"{where}.{index}.{tail[0]}"
