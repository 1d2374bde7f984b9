"""Stable Audio 3 as its authors publish it: model_config.json and one file of weights, T5Gemma in a folder beside them.

Written from the authors' code and from what others wrote of the released files, with no released weights at hand.
Beyond diffusers, which `convert` of their weights asks for: SAME-S attends within chunks and ends in a layer of three
taps, and the branch for inpainting gets zeros. As with diffusers, the length that is asked for is generated (the
authors' program makes 6 s more and cuts them off), and decoding adds no noise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from diffusers.pipelines.stable_audio_3.modeling_stable_audio_3 import StableAudio3DurationEmbedder
from torch import Tensor

from audiogen.config import Range
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.dit3 import DiT3Config
from audiogen.diffusion.same import SameAutoencoderConfig
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.files.tensors import WIDEST, Source, under
from audiogen.models.settings import Settings, source, table
from audiogen.models.systems import Component, SystemParts, conditioner_config
from audiogen.text.t5 import TextConfig

T5GEMMA, WIDTH = "google/t5gemma-b-b-ul2", 768
PROMPT = "conditioner.conditioners.prompt."
SECONDS = "conditioner.conditioners.seconds_total."
PADDING = "prompt.padding_embedding"
# of queries, keys, values, and queries and keys of the second pair, in which order diffusers has them
DIFFERENTIAL = (0, 3, 1, 4, 2)


def read(settings: Settings, directory: Path, path: Path, tensors: Mapping[str, Tensor]) -> SystemParts:
    """What model_config.json and the weights at `path` say; InputError for what is none of ours."""
    settings.choice("model_type", ["diffusion_cond", "diffusion_cond_inpaint"])
    model = settings.section("model")
    diffusion = model.section("diffusion")
    same, dit = _autoencoder(settings), _dit(diffusion)
    conditioner = _conditioner(model, directory)
    objective = diffusion.choice("diffusion_objective", ["rf_denoiser", "rectified_flow"])
    settings.take("sample_size", None)  # the longest sound of training
    model.choice("io_channels", [same.latent_dim], same.latent_dim)
    settings.done(table("stable_audio_3.harmless"))

    autoencoder = under(tensors, "pretransform.model.") or under(tensors, "pretransform.")
    without_use = [name for name in autoencoder if name.endswith((".rope.inv_freq", ".noise_scaling_factor"))]
    network = dict(under(tensors, "model.model."))
    if PROMPT + "padding_embedding" in tensors:
        network[PADDING] = tensors[PROMPT + "padding_embedding"]
    seconds = conditioner.seconds
    assert seconds is not None
    frequencies = StableAudio3DurationEmbedder(
        seconds.width, min_val=seconds.min_s, max_val=seconds.max_s
    ).state_dict()
    own = {name: tensor for name, tensor in frequencies.items() if not name.startswith("linear.")}
    levels = len(same.strides)
    components = [
        Component(
            "autoencoder.vae", autoencoder, path, partial(_same_name, levels, same.differential),
            ignore=tuple(without_use),
        ),
        Component("denoiser.network", network, path, partial(_dit_name, dit.differential)),
        Component(
            "conditioner.seconds",
            under(tensors, SECONDS),
            path,
            lambda name: name.replace("linear.", "embedder.embedding.1."),
            own=own,
        ),
    ]  # fmt: skip
    return SystemParts(
        SystemConfig(conditioner, same_autoencoder=same, dit3=dit),
        components,
        directory,
        "stable_audio_3",
        # what was not distilled samples without fresh noise, and in more steps
        sampling=Sampling("euler", 100, 1.0) if objective == "rectified_flow" else None,
    )


# ------------------------------------------------------------------------------------------- configurations


def _autoencoder(settings: Settings) -> SameAutoencoderConfig:
    pretransform = settings.section("model.pretransform")
    pretransform.expect(type="autoencoder")
    both = pretransform.section("config")
    channels = settings.whole("audio_channels", 2)
    both.expect(io_channels=channels, output_activation="none")
    patched, bottleneck = both.section("pretransform"), both.section("bottleneck")
    patched.choice("type", ["patched"])
    patched.section("config").expect(channels=channels)
    patch = patched.whole("config.patch_size")
    bottleneck.choice("type", ["softnorm"])
    bottleneck.section("config").expect(noise_augment_dim=0)
    bottleneck.choice("config.auto_scale", [True], False)
    encoder, decoder = (both.section(side) for side in ("encoder", "decoder"))
    encoder.choice("type", ["same"])
    decoder.choice("type", ["same"])
    encoder, decoder = encoder.section("config"), decoder.section("config")
    encoder.choice("in_channels", [channels * patch])
    decoder.choice("out_channels", [channels * patch])
    config = encoder.build(
        SameAutoencoderConfig,
        "stable_audio_3.same",
        sample_rate=settings.whole("sample_rate", within=Range(1, 768_000)),
        channels=channels,
        patch=patch,
        scale_factor=1 / pretransform.number("scale", 1.0, Range(0, above=True)),
        **_reach(encoder),
        kernel=3 if decoder.flag("conv_mapping", False) else 1,
        encoder_sines=_sines(encoder),
        decoder_sines=_sines(decoder),
    )
    encoder.expect(conv_mapping=False)
    # what both sides have must be equal
    decoder.expect(latent_dim=config.latent_dim, channels=config.width, c_mults=list(config.multiples))
    decoder.expect(strides=list(config.strides), transformer_depths=list(config.depths))
    for key, default in (("dim_heads", 128), ("differential", True)):
        decoder.choice(key, [encoder.take(key, default)], default)
    if _reach(decoder) != _reach(encoder):
        raise InputError(
            f"{settings.where}: the decoder attends to {_reach(decoder)}, the encoder to {_reach(encoder)}; "
            "only equal ones are implemented"
        )
    for side in (encoder, decoder):
        side.expect(**table("stable_audio_3.expected_side"))
        side.choice("variable_stride", [True], False)
    both.choice("latent_dim", [config.latent_dim], config.latent_dim)
    bottleneck.choice("config.dim", [config.latent_dim], 32)
    both.choice("downsampling_ratio", [config.hop_length], config.hop_length)
    return config


def _reach(side: Settings) -> dict[str, int]:
    """What a token attends to: fields of `SameAutoencoderConfig`."""
    window = side.take("sliding_window", None)
    size, moves = side.whole("chunk_size", 128), side.take("chunk_midpoint_shift", False)
    if window is not None:
        before, *after = side.wholes("sliding_window")
        side.choice("sliding_window", [[before, before]])
        return {"window": before}
    stride = side.wholes("strides")[0]
    if moves is not True or size % stride:
        raise InputError(
            f"{side.where}: attention within chunks of {size} needs chunk_midpoint_shift true and a multiple of the "
            f"stride {stride}; nothing else is implemented"
        )
    return {"chunk": size // stride}


def _sines(side: Settings) -> tuple[int, ...]:
    given: tuple[int, ...] = side.wholes(
        "sinusoidal_blocks", (0,) * len(side.wholes("strides")), Range(0, WIDEST)
    )
    return given


def _dit(diffusion: Settings) -> DiT3Config:
    diffusion.choice("type", ["dit"])
    sizes = diffusion.section("config")
    sizes.expect(**table("stable_audio_3.expected_dit"))
    for key, only in (
        ("global_cond_type", "adaLN"),
        ("timestep_features_type", "expo"),
        ("norm_type", "rms_norm"),
    ):
        sizes.choice(key, [only])
    sizes.choice("attn_kwargs.qk_norm", ["rms"])
    sizes.choice("attn_kwargs.qk_norm_eps", [1e-6], 1e-6)
    sizes.choice("ff_kwargs.no_bias", [False], False)
    if "diffusion_objective" in sizes:
        sizes.choice("diffusion_objective", [diffusion.take("diffusion_objective")])
    for kind in ("input_concat_ids", "prepend_cond_ids", "modular_local_cond_configs"):
        diffusion.choice(kind, [[], None], None)
    width, heads = sizes.whole("embed_dim"), sizes.whole("num_heads")
    if width % heads:
        raise InputError(f"{diffusion.where}: embed_dim {width} is not a multiple of num_heads {heads}")
    inpaints = diffusion.take("local_add_cond_ids", None) not in (None, [])
    if inpaints:
        diffusion.choice("local_add_cond_ids", [["inpaint_mask", "inpaint_masked_input"]])
    config = sizes.build(DiT3Config, "stable_audio_3.dit", head_dim=width // heads, inpaints=inpaints)
    # without that branch the file has no weights of it, and the check of weights says so
    sizes.choice("local_add_cond_dim", [config.latent_dim + 1, 0, None], 0)
    return config


def _conditioner(model: Settings, directory: Path) -> ConditionerConfig:
    entries: dict[str, Settings] = {}
    kinds = {"prompt": "t5gemma", "seconds_total": "number"}
    for entry in model.sections("conditioning.configs"):
        key, kind = entry.text("id"), entry.text("type")
        if kinds.get(key) != kind:
            raise InputError(
                f"{model.where}: condition {key!r} of type {kind!r} is not implemented; what is: prompt (t5gemma) and "
                "seconds_total (number)"
            )
        entries[key] = entry.section("config")
    if missing := [key for key in kinds if key not in entries]:
        raise InputError(f"{model.where} lacks the condition {missing[0]!r}; only models with it are read")
    prompt, seconds = entries["prompt"], entries["seconds_total"]
    prompt.choice("padding_mode", ["learned"], "zero")
    prompt.choice("model_name", [T5GEMMA], T5GEMMA)
    prompt.expect(project_out=False)
    for key in ("model_path", "repo_id"):
        prompt.take(key, None)  # the folder is here, or on the hub under `model_name`
    folder = directory / Path(prompt.text("subfolder", T5GEMMA.split("/")[1])).name
    length = prompt.whole("max_length", 128)
    seconds.choice("fourier_features_type", ["expo"], "learned")
    width = model.whole("conditioning.cond_dim")
    model.choice("diffusion.cross_attention_cond_ids", [list(kinds)])
    model.choice("diffusion.global_cond_ids", [["seconds_total"]])
    return conditioner_config(
        "stable_audio_3",
        text=TextConfig(str(folder) if folder.is_dir() else T5GEMMA, width=width, max_tokens=length),
        text_length=length,
        seconds=SecondsConfig(
            width, seconds.number("min_val", 0.0), seconds.number("max_val", 1.0), "exponential"
        ),
    )


# ---------------------------------------------------------------------------------------------------- names


def _same_name(levels: int, differential: bool, name: str) -> Source:
    """AutoencoderSAME -> the authors' autoencoder, whose layers are numbered."""
    if name == "bottleneck.scale":
        return Source(("bottleneck.scaling_factor",))
    if found := re.fullmatch(r"(encoder|decoder)\.proj\.(\w+)", name):
        return Source((f"{found[1]}.layers.{levels + 1 if found[1] == 'encoder' else 1}.{found[2]}",))
    found = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)\.(transformers\.\d+\.)?(.+)", name)
    if found is None:
        return Source((name,))
    stem = f"{found[1]}.layers.{int(found[2]) + (3 if found[1] == 'decoder' else 0)}.{found[3] or ''}"
    inner = source(found[4], "stable_audio_3.names_block") if found[3] else Source((found[4],))
    return _in_order(differential, stem + inner.names[0])


def _dit_name(differential: bool, name: str) -> Source:
    """StableAudio3DiTModel -> the authors' transformer."""
    return _in_order(differential, source(name, "stable_audio_3.names_dit").names[0])


def _in_order(differential: bool, name: str) -> Source:
    """A tensor of this name in the file, its parts in diffusers' order."""
    joined = differential and name.endswith("self_attn.to_qkv.weight")
    return Source((name,), 0, 1, 5, DIFFERENTIAL) if joined else Source((name,))
