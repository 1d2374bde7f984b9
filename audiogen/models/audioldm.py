"""AudioLDM, AudioLDM 2 and LAFMA as their authors publish them; the first two as one checkpoint with everything.

The sizes are in config.yaml beside it, or those of the released models, by the width of the UNet.

model.diffusion_model.*       UNet; model_ema.* its average, whose names have lost their dots
first_stage_model.*           VAE, with the vocoder under vocoder.
scale_factor                  of the latents
cond_stage_models.0.*         AudioLDM 2: GPT-2 and what joins its input
cond_stage_model.*, clap.*    CLAP and T5, which come from the hub here

LAFMA has the same parts in a file each, with two files of settings:

*.json with "model.audioldm"    settings of UNet and VAE, JSON with comments
*.ckpt with "model"             unet.*
*.ckpt with "autoencoder"       the VAE
hifigan*.json, hifigan*.ckpt    the vocoder of AudioLDM, weight norm apart
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.config import Range, short
from audiogen.diffusion.conditioners import ConditionerConfig
from audiogen.diffusion.loa import LoaConfig
from audiogen.diffusion.mel import MelConfig, VocoderConfig
from audiogen.diffusion.process import ProcessConfig
from audiogen.diffusion.sample import SAMPLINGS, Sampling
from audiogen.diffusion.systems import SystemConfig, released
from audiogen.errors import InputError
from audiogen.files.checkpoint import read_weights
from audiogen.files.tensors import is_whole, under
from audiogen.models import latent_diffusion as parts
from audiogen.models.settings import Settings, read_settings, source, table
from audiogen.models.systems import Component, SystemParts, conditioner_config
from audiogen.text.t5 import TextConfig

CONFIG = "config.yaml"
LOA = "crossattn_audiomae_generated"
LOA_PARTS = ("start_of_sequence_tokens.", "end_of_sequence_tokens.", "input_sequence_embed_linear.", "model.")
LAFMA_UNET = "model.audioldm"  # the key of its settings
_PARAMS, _LOA = "model.params", f"model.params.cond_stage_config.{LOA}.params"


def read_audioldm(directory: Path, ema: bool | None = None) -> SystemParts:
    """Read either. ema: take the averaged UNet; by default as its authors, who take it for AudioLDM alone."""
    checkpoints = (path for path in directory.iterdir() if path.suffix in (".ckpt", ".pth"))
    file = _only(directory, checkpoints, f"checkpoints (.ckpt, .pth) beside {CONFIG}")
    tensors = read_weights(file, "state_dict")
    vae, vocoder = parts.split_vocoder(under(tensors, "first_stage_model."))
    scale = tensors.get("scale_factor")
    if scale is None or not is_whole(scale) or scale.numel() != 1:
        lack = "lacks" if scale is None else f"has {list(scale.shape)} values for"
        raise InputError(f"{file} {lack} scale_factor; its latents cannot be scaled: copy it again")
    scale_factor, process, origin = float(scale), {}, "the authors'"
    if (directory / CONFIG).is_file():
        settings = read_settings(directory / CONFIG)
        config, process = _config(settings, vae, scale_factor), _process(settings.section(_PARAMS))
        settings.done(table("audioldm.harmless"))
        origin = f"channels / num_head_channels of {CONFIG}"
    else:
        config = standard_config(tensors, scale_factor, file)
    unet, codec, loa = config.audio_unet, config.mel_autoencoder, config.conditioner.loa
    assert unet is not None and codec is not None
    averaged = loa is None if ema is None else ema
    found = under(tensors, "model_ema.diffusion_model" if averaged else "model.diffusion_model.")
    if not found:
        which = "averaged " if averaged else ""
        raise InputError(f"{file} has no {which}UNet; set ema the other way, or copy it again")
    components = [
        parts.unet_component(unet, found, file, averaged),
        *parts.autoencoder_components(codec, vae, vocoder, file),
    ]
    if loa is not None:
        components.append(_loa_component(tensors, file))
    notes = (f"UNet weights: {'their average (model_ema)' if averaged else 'the last (model)'}",)
    name = "audioldm" if loa is None else "audioldm2"
    return SystemParts(config, components, directory, name, process, origin, notes)


def standard_config(tensors: Mapping[str, Tensor], scale_factor: float, where: Path) -> SystemConfig:
    """The released model that such weights are of, by the width of the UNet and whether there is a GPT-2."""
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    width = 0 if first is None or not first.dim() else len(first)
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


# ------------------------------------------------------------------------------------------- configurations


def _config(settings: Settings, vae: Mapping[str, Tensor], scale_factor: float) -> SystemConfig:
    params = settings.section(_PARAMS)
    second = f"cond_stage_config.{LOA}" in params
    _check_targets(settings, second)
    sound = settings.section("preprocessing")
    sound.expect(**{"stft.win_length": sound.whole("stft.filter_length")})
    mel = sound.build(MelConfig, "audioldm.mel")
    hifigan = VocoderConfig()
    if "vocoder_config" in params:  # else the authors' code has the sizes, and no setting for them
        section = params.section("vocoder_config.params")
        hifigan = parts.vocoder_config(section)
        section.expect(num_mels=mel.num_mels, sampling_rate=mel.sample_rate)
    first = params.section("first_stage_config.params")
    codec = parts.autoencoder_config(first.section("ddconfig"), vae, mel, hifigan, scale_factor)
    parts.check_around_vae(first, codec)
    params.expect(sampling_rate=mel.sample_rate, scale_by_std=True, channels=codec.latent_dim)
    params.expect(latent_f_size=mel.num_mels // codec.reduction, beta_schedule="linear")
    unet = params.section("unet_config.params")
    if second:
        unet.expect(extra_sa_layer=True)
        context = parts.attention_layers(unet.take("context_dim"), unet.where, "context_dim")
        conditioner, layers, vector_dim = _conditioner_2(settings, context), (None, *context), None
    else:
        params.expect(conditioning_key="film")
        unet.expect(extra_film_use_concat=True)
        vector_dim = unet.whole("extra_film_condition_dim")
        conditioner = conditioner_config("audioldm", clap_dim=vector_dim)
        layers = (None,)
    return SystemConfig(conditioner, codec, audio_unet=parts.unet_config(unet, layers, vector_dim))


def _check_targets(settings: Settings, second: bool) -> None:
    """Refuse what is not of one of the two releases."""
    stages = table("audioldm.stages_2" if second else "audioldm.stage")
    for key, (_, kind) in stages.items():
        if kind is not None:
            settings.choice(f"{key}.conditioning_key", [kind], kind)
    targets = table("audioldm.targets") | {key: name for key, (name, _) in stages.items()}
    for key, name in targets.items():
        found = settings.text(f"{key}.target", name)
        if found.rpartition(".")[2] != name:
            raise InputError(
                f"{settings.where}: {key}.target is {short(found)}; only {name} is implemented here"
            )


def _conditioner_2(settings: Settings, context: tuple[int | None, ...]) -> ConditionerConfig:
    loa = settings.section(_LOA)
    dims = loa.wholes("sequence_input_embed_dim")
    widths = [width for width in context if width is not None]
    if len(widths) != 2 or len(dims) != 2:
        raise InputError(
            f"{settings.where}: context_dim {list(context)} and sequence_input_embed_dim {list(dims)}; two widths of "
            "each are implemented, the language of audio and Flan-T5, from CLAP and Flan-T5"
        )
    # what GPT-2 begins from, in this order
    loa.expect(sequence_input_key=["film_clap_cond1", "crossattn_flan_t5"], always_output_audiomae_gt=False)
    gpt2 = settings.section(f"{_PARAMS}.gpt2_config", {})
    gpt2.expect(n_embd=widths[0], activation_function="gelu_new", layer_norm_epsilon=1e-5)
    given = {"width": widths[0], "clap_dim": dims[0], "text_dim": dims[1]}
    return conditioner_config(
        "audioldm2",
        text=TextConfig(parts.TEXT_ENCODER, width=widths[1]),
        clap_dim=dims[0],
        loa=gpt2.build(LoaConfig, "audioldm.gpt2", length=loa.whole("sequence_gen_length"), **given),
    )


def _process(params: Settings) -> dict[str, Any]:
    kind = params.choice("parameterization", ["eps", "v"], "eps")
    return params.values(ProcessConfig, table("audioldm.process")) | {
        "kind": "ddpm",
        "prediction": {"eps": "epsilon", "v": "v"}[kind],
        "beta_schedule": "scaled_linear",  # the authors' "linear" is so in the square root
    }


# -------------------------------------------------------------------------------------- AudioLDM 2's GPT-2


def _loa_component(tensors: Mapping[str, Tensor], where: Path) -> Component:
    stage = under(tensors, "cond_stage_models.0.")
    found = {name: tensor for name, tensor in stage.items() if name.startswith(LOA_PARTS)}
    masks = [name for name in found if name.endswith((".attn.bias", ".attn.masked_bias"))]  # of old GPT-2s
    rules = "audioldm.names_loa"
    return Component("conditioner.loa", found, where, lambda name: source(name, rules), ignore=tuple(masks))


# --------------------------------------------------------------------------------------------------- LAFMA


def read_lafma(directory: Path) -> SystemParts:
    """Read it."""
    found = [read_settings(path) for path in sorted(directory.glob("*.json"))]
    settings = next((settings for settings in found if LAFMA_UNET in settings), None)
    if settings is None:
        raise InputError(f"{directory} has no .json with {LAFMA_UNET}, the settings of LAFMA: copy it again")
    vocoder_file = _only(
        directory, directory.glob("hifigan*.ckpt"), "files like hifigan*.ckpt, LAFMA's vocoder"
    )
    vae_file = directory / settings.text("model.autoencoder_path", "vae.ckpt").rpartition("/")[2]
    others = (path for path in directory.glob("*.ckpt") if path not in (vae_file, vocoder_file))
    unet_file = _only(
        directory, others, f".ckpt files beside {vae_file.name} and {vocoder_file.name}, the UNet"
    )
    unet = under(read_weights(unet_file, "model"), "unet.")
    vae = read_weights(vae_file, "autoencoder")
    vocoder = read_weights(vocoder_file, "generator")
    config = _lafma_config(settings, read_settings(vocoder_file.with_suffix(".json")), vae)
    assert config.mel_autoencoder is not None and config.audio_unet is not None
    usual = SAMPLINGS["lafma"]
    sampling = Sampling(
        usual.sampler,
        settings.whole("num_steps", usual.steps),
        settings.number("guidance_scale", usual.guidance, Range(0)),
    )
    settings.done(table("lafma.harmless"))
    return SystemParts(
        config,
        [
            parts.unet_component(config.audio_unet, unet, unet_file),
            *parts.autoencoder_components(config.mel_autoencoder, vae, vocoder, vae_file, vocoder_file),
        ],
        directory,
        "lafma",
        heads_from=f"num_heads of {Path(settings.where).name}",
        sampling=None if sampling == usual else sampling,
    )


def _lafma_config(settings: Settings, hifigan: Settings, vae: dict[str, Tensor]) -> SystemConfig:
    mel, vocoder = parts.mel_and_vocoder(hifigan)
    spectrogram = settings.section("preprocess", {})
    spectrogram.expect(n_mel=mel.num_mels, hop_size=mel.hop_length, sample_rate=mel.sample_rate)
    spectrogram.expect(n_fft=mel.n_fft, win_size=mel.n_fft, filter_length=mel.n_fft)
    spectrogram.expect(fmin=mel.f_min, fmax=mel.f_max)
    unet = settings.section(LAFMA_UNET)
    unet.expect(extra_sa_layer=True)
    text_dim = unet.whole("context_dim")
    return SystemConfig(
        conditioner_config("lafma", text=TextConfig(parts.TEXT_ENCODER, width=text_dim)),
        mel_autoencoder=parts.autoencoder_config(
            settings.section("model.autoencoderkl"), vae, mel, vocoder, scale_factor=1.0
        ),
        audio_unet=parts.unet_config(unet, (text_dim, text_dim), None),
    )


def _only(directory: Path, files: Iterable[Path], what: str) -> Path:
    """The one of these files; InputError where there is another number of them."""
    found = sorted(files)
    if len(found) != 1:
        raise InputError(f"{directory} has {len(found)} {what}; one is needed: copy it again")
    return found[0]
