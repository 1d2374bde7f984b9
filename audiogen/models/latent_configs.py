"""Configurations of diffusers' components to ours, and the scheduler's from a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiogen.diffusion.autoencoders import MelAutoencoderConfig, WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import AudioUNetConfig, DiTConfig
from audiogen.diffusion.loa import LoaConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.models.latent_files import Settings, read_settings
from audiogen.models.latent_mel import vocoder_config
from audiogen.models.tango import scheduler_process
from audiogen.text.t5 import TextConfig

PIPELINES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableAudioPipeline": "stable_audio",
}


def denoiser_folder(config: SystemConfig) -> str:
    """Where diffusers puts such a network."""
    return "transformer" if config.waveform_autoencoder is not None else "unet"


def pipeline_of(config: SystemConfig) -> str:
    """The pipeline that opens such a system; where it has none of its own, the one that opens components."""
    if config.dit is not None:
        return "StableAudioPipeline"
    if config.audio_unet is not None and config.conditioner.clap is not None:
        return "AudioLDM2Pipeline" if config.conditioner.loa is not None else "AudioLDMPipeline"
    return "DiffusionPipeline"


def read_pipeline(directory: Path, index: Settings) -> tuple[SystemConfig, str, dict[str, Any]]:
    """Our configuration of a released pipeline, the name of its kind, and what its scheduler says of the process."""
    kind = index.get("_class_name", str)
    if kind == "DiffusionPipeline":  # what ours are to diffusers where it has no pipeline for them
        raise InputError(
            f"{directory} lacks system.json, without which its components say too little; copy it again"
        )
    if kind not in PIPELINES:
        raise InputError(
            f"{index.where}: _class_name is {kind!r}; read are {', '.join(PIPELINES)}, and our own"
        )
    name = PIPELINES[kind]
    if name == "stable_audio":
        return _stable_audio(directory), name, {}
    return _audioldm(directory, name), name, scheduler_process(_settings(directory, "scheduler"))


def _settings(directory: Path, component: str) -> Settings:
    """The configuration of a component; InputError naming it where it is missing."""
    file = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(
        component, "config.json"
    )
    path = directory / component / file
    if not path.is_file():
        raise InputError(
            f"{directory} lacks {component}/{file}, which this system needs; copy it again, as a whole"
        )
    return read_settings(path)


def _audioldm(directory: Path, name: str) -> SystemConfig:
    vae, vocoder, unet = (_settings(directory, component) for component in ("vae", "vocoder", "unet"))
    if vocoder.get("normalize_before", bool, True):
        raise InputError(
            f"{vocoder.where}: normalize_before is true; only vocoders of plain log-mel are implemented"
        )
    hifigan = vocoder_config(vocoder)
    autoencoder = MelAutoencoderConfig(
        channels=vae.wholes("block_out_channels"),
        num_res_blocks=vae.get("layers_per_block", int),
        latent_dim=vae.get("latent_channels", int),
        mid_attention=vae.get("mid_block_add_attention", bool, True),
        scale_factor=vae.get("scaling_factor", float),
        mel=MelConfig(
            sample_rate=vocoder.get("sampling_rate", int),
            hop_length=hifigan.hop_length,
            num_mels=vocoder.get("model_in_dim", int),
        ),
        vocoder=hifigan,
    )
    if name == "audioldm":
        dim = unet.get("projection_class_embeddings_input_dim", int)
        conditioner = ConditionerConfig(
            vector=("clap",), unconditional="empty", clap=str(directory / "text_encoder"), clap_dim=dim
        )
        return SystemConfig(conditioner, autoencoder, audio_unet=_audio_unet(unet, (None,), dim))
    projection, gpt2 = _settings(directory, "projection_model"), _settings(directory, "language_model")
    loa = LoaConfig(
        width=projection.get("langauge_model_dim", int),  # their spelling
        length=gpt2.get("max_new_tokens", int, 8),
        num_layers=gpt2.get("n_layer", int),
        num_heads=gpt2.get("n_head", int),
        max_positions=gpt2.get("n_positions", int),
        vocab_size=gpt2.get("vocab_size", int),
        clap_dim=projection.get("text_encoder_dim", int),
        text_dim=projection.get("text_encoder_1_dim", int),
    )
    conditioner = ConditionerConfig(
        cross=(("loa",), ("text",)),
        unconditional="empty",
        text=TextConfig(str(directory / "text_encoder_2"), width=loa.text_dim),
        clap=str(directory / "text_encoder"),
        clap_dim=loa.clap_dim,
        loa=loa,
    )
    levels = unet.get("cross_attention_dim", list)
    if any(level != levels[0] for level in levels) or not isinstance(levels[0], list):
        raise InputError(
            f"{unet.where}: cross_attention_dim is {levels}; one list for all levels is implemented"
        )
    return SystemConfig(conditioner, autoencoder, audio_unet=_audio_unet(unet, tuple(levels[0]), None))


def _audio_unet(unet: Settings, layers: tuple[int | None, ...], vector_dim: int | None) -> AudioUNetConfig:
    channels = unet.wholes("block_out_channels")
    heads = unet.contents.get("attention_head_dim", 8)  # diffusers' name for the number of heads
    for key, implemented in (
        ("use_linear_projection", False),
        ("class_embeddings_concat", vector_dim is not None),
    ):
        if unet.get(key, bool, False) is not implemented:
            raise InputError(f"{unet.where}: {key} is {not implemented}; only {implemented} is implemented")
    return AudioUNetConfig(
        latent_dim=unet.get("out_channels", int),
        channels=channels,
        heads=tuple(heads) if isinstance(heads, list) else (int(heads),) * len(channels),
        attention=tuple(kind.startswith("CrossAttn") for kind in unet.get("down_block_types", list)),
        layers=layers,
        depth=unet.get("transformer_layers_per_block", int, 1),
        num_res_blocks=unet.get("layers_per_block", int),
        vector_dim=vector_dim,
        extra_channels=unet.get("in_channels", int) - unet.get("out_channels", int),
    )


def _stable_audio(directory: Path) -> SystemConfig:
    vae, dit, projection = (_settings(directory, part) for part in ("vae", "transformer", "projection_model"))
    length = _settings(directory, "tokenizer").get("model_max_length", int, 128)
    width = projection.get("conditioning_dim", int)
    seconds = ("seconds_start", "seconds_total")
    return SystemConfig(
        ConditionerConfig(
            cross=(("text", *seconds),),
            vector=seconds,
            text=TextConfig(
                str(directory / "text_encoder"),
                width=projection.get("text_encoder_dim", int),
                max_tokens=length,
            ),
            text_length=length,
            seconds=SecondsConfig(
                width, projection.get("min_value", float), projection.get("max_value", float)
            ),
        ),
        waveform_autoencoder=WaveformAutoencoderConfig(
            sample_rate=vae.get("sampling_rate", int),
            channels=vae.get("audio_channels", int),
            latent_dim=vae.get("decoder_input_channels", int),
            width=vae.get("decoder_channels", int),
            multiples=vae.wholes("channel_multiples"),
            strides=vae.wholes("downsampling_ratios"),
        ),
        dit=DiTConfig(
            latent_dim=dit.get("out_channels", int),
            num_layers=dit.get("num_layers", int),
            num_heads=dit.get("num_attention_heads", int),
            head_dim=dit.get("attention_head_dim", int),
            kv_heads=dit.get("num_key_value_attention_heads", int),
            cross_dim=dit.get("cross_attention_input_dim", int),
            cross_width=dit.get("cross_attention_dim", int),
            vector_dim=dit.get("global_states_input_dim", int),
            extra_channels=dit.get("in_channels", int) - dit.get("out_channels", int),
        ),
    )


def scheduler_config(name: str, process: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of diffusers' scheduler for a system of this kind, as its release has it."""
    if name == "stable_audio":
        return {
            "_class_name": "CosineDPMSolverMultistepScheduler",
            "sigma_min": 0.3,
            "sigma_max": 500,
            "sigma_data": 1.0,
            "sigma_schedule": "exponential",
            "prediction_type": "v_prediction",
        }
    if name in ("lafma", "tangoflux"):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    if name == "tango":
        process = {"beta_start": 0.00085, "beta_end": 0.012, "prediction": "v", **process}
    return {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": process.get("num_train_steps", 1000),
        "beta_start": process.get("beta_start", 0.0015),
        "beta_end": process.get("beta_end", 0.0195),
        "beta_schedule": process.get("beta_schedule", "scaled_linear"),
        "prediction_type": {"v": "v_prediction"}.get(process.get("prediction", ""), "epsilon"),
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
