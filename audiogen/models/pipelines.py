"""Configurations of diffusers' components -> ours, and that of the scheduler from a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from audiogen.diffusion.autoencoders import MelAutoencoderConfig, WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import ConditionerConfig, SecondsConfig
from audiogen.diffusion.denoisers import AudioUNetConfig, DiTConfig, TextUNetConfig
from audiogen.diffusion.loa import LoaConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.models import latent_diffusion as parts
from audiogen.models.settings import RATE, Settings, read_settings, short
from audiogen.text.t5 import TextConfig

PIPELINES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableAudioPipeline": "stable_audio",
}
# What a scheduler does in a way of its own: which way back it goes is ours to choose, and the process is the same.
SAMPLERS = (
    *("_*", "solver_*", "rho", "lower_order_final", "euler_at_final", "final_sigmas_type", "sigma_schedule"),
    *(
        "skip_prk_steps",
        "variance_type",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "clip_sample_range",
    ),
)


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
    kind = index.text("_class_name")
    if kind == "DiffusionPipeline":  # what ours are to diffusers where it has no pipeline for them
        raise InputError(
            f"{directory} lacks system.json, without which its components say too little; copy it again"
        )
    if kind not in PIPELINES:
        raise InputError(
            f"{index.where}: _class_name is {kind!r}; read are {', '.join(PIPELINES)}, and our own"
        )
    name = PIPELINES[kind]
    scheduler = component_settings(directory, "scheduler")
    if name == "stable_audio":
        return _stable_audio(directory), name, _cosine_process(scheduler)
    return _audioldm(directory, name), name, scheduler_process(scheduler)


def component_settings(directory: Path, component: str) -> Settings:
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
    vae, vocoder, unet = (component_settings(directory, part) for part in ("vae", "vocoder", "unet"))
    hifigan = parts.vocoder_config(vocoder)
    autoencoder = MelAutoencoderConfig(
        channels=vae.wholes("block_out_channels"),
        num_res_blocks=vae.whole("layers_per_block"),
        latent_dim=vae.whole("latent_channels"),
        mid_attention=vae.flag("mid_block_add_attention", True),
        norm_groups=vae.whole("norm_num_groups", 32),
        scale_factor=vae.number("scaling_factor"),
        mel=MelConfig(
            sample_rate=vocoder.whole("sampling_rate", within=RATE),
            hop_length=hifigan.hop_length,
            num_mels=vocoder.whole("model_in_dim"),
        ),
        vocoder=hifigan,
    )
    if name == "audioldm":
        dim = unet.whole("projection_class_embeddings_input_dim")
        conditioner = ConditionerConfig(
            vector=("clap",), unconditional="empty", clap=str(directory / "text_encoder"), clap_dim=dim
        )
        return SystemConfig(conditioner, autoencoder, audio_unet=_audio_unet(unet, (None,), dim))
    projection = component_settings(directory, "projection_model")
    gpt2 = component_settings(directory, "language_model")
    loa = LoaConfig(
        width=projection.whole("langauge_model_dim"),  # their spelling
        length=gpt2.whole("max_new_tokens", 8),
        num_layers=gpt2.whole("n_layer"),
        num_heads=gpt2.whole("n_head"),
        max_positions=gpt2.whole("n_positions"),
        vocab_size=gpt2.whole("vocab_size"),
        clap_dim=projection.whole("text_encoder_dim"),
        text_dim=projection.whole("text_encoder_1_dim"),
    )
    conditioner = ConditionerConfig(
        cross=(("loa",), ("text",)),
        unconditional="empty",
        text=TextConfig(str(directory / "text_encoder_2"), width=loa.text_dim),
        clap=str(directory / "text_encoder"),
        clap_dim=loa.clap_dim,
        loa=loa,
    )
    levels = unet.take("cross_attention_dim")
    if not isinstance(levels, list) or not levels or not isinstance(levels[0], list):
        raise InputError(
            f"{unet.where}: cross_attention_dim is {short(levels)}; a list for each level is needed"
        )
    layers = parts.attention_layers(levels[0], unet.where, "cross_attention_dim.0")
    return SystemConfig(conditioner, autoencoder, audio_unet=_audio_unet(unet, layers, None))


def _audio_unet(unet: Settings, layers: tuple[int | None, ...], vector_dim: int | None) -> AudioUNetConfig:
    channels, heads, attention = unet_levels(unet)
    return AudioUNetConfig(
        latent_dim=unet.whole("out_channels"),
        channels=channels,
        heads=heads,
        attention=attention,
        layers=layers,
        depth=unet.whole("transformer_layers_per_block", 1),
        num_res_blocks=unet.whole("layers_per_block"),
        vector_dim=vector_dim,
        norm_groups=unet.whole("norm_num_groups", 32),
    )


def text_unet(settings: Settings) -> TextUNetConfig:
    """From the settings of a UNet2DConditionModel."""
    channels, heads, attention = unet_levels(settings)
    return TextUNetConfig(
        latent_dim=settings.whole("out_channels"),
        channels=channels,
        heads=heads,
        attention=attention,
        cross_dim=settings.whole("cross_attention_dim"),
        num_res_blocks=settings.whole("layers_per_block"),
        norm_groups=settings.whole("norm_num_groups", 32),
    )


def unet_levels(unet: Settings) -> tuple[tuple[int, ...], tuple[int, ...], tuple[bool, ...]]:
    """Channels, heads and whether there is attention, of each level of a UNet of diffusers."""
    channels = unet.wholes("block_out_channels")
    key = "attention_head_dim"  # diffusers' name for the number of heads
    if isinstance(unet.take(key, 8), list):
        heads = unet.wholes(key)
    else:
        heads = (unet.whole(key, 8),) * len(channels)
    return channels, heads, tuple(kind.startswith("CrossAttn") for kind in unet.texts("down_block_types"))


def _stable_audio(directory: Path) -> SystemConfig:
    vae, dit, projection = (
        component_settings(directory, part) for part in ("vae", "transformer", "projection_model")
    )
    length = component_settings(directory, "tokenizer").whole("model_max_length", 128)
    width = projection.whole("conditioning_dim")
    seconds = ("seconds_start", "seconds_total")
    return SystemConfig(
        ConditionerConfig(
            cross=(("text", *seconds),),
            vector=seconds,
            text=TextConfig(
                str(directory / "text_encoder"), width=projection.whole("text_encoder_dim"), max_tokens=length
            ),
            text_length=length,
            seconds=SecondsConfig(width, projection.number("min_value"), projection.number("max_value")),
        ),
        waveform_autoencoder=WaveformAutoencoderConfig(
            sample_rate=vae.whole("sampling_rate", within=RATE),
            channels=vae.whole("audio_channels"),
            latent_dim=vae.whole("decoder_input_channels"),
            width=vae.whole("decoder_channels"),
            multiples=vae.wholes("channel_multiples"),
            strides=vae.wholes("downsampling_ratios"),
        ),
        dit=DiTConfig(
            latent_dim=dit.whole("out_channels"),
            num_layers=dit.whole("num_layers"),
            num_heads=dit.whole("num_attention_heads"),
            head_dim=dit.whole("attention_head_dim"),
            kv_heads=dit.whole("num_key_value_attention_heads"),
            cross_dim=dit.whole("cross_attention_input_dim"),
            cross_width=dit.whole("cross_attention_dim"),
            vector_dim=dit.whole("global_states_input_dim"),
        ),
    )


# ----------------------------------------------------------------------------------------------- schedulers


def scheduler_process(settings: Settings) -> dict[str, Any]:
    """What a DDPM-like scheduler of diffusers says of the process."""
    settings.expect(trained_betas=None, thresholding=False, rescale_betas_zero_snr=False)
    settings.expect(clip_sample=False, set_alpha_to_one=False, steps_offset=1, timestep_spacing="leading")
    kind = settings.choice("prediction_type", ["epsilon", "v_prediction"], "epsilon")
    process = {
        "kind": "ddpm",
        "prediction": {"epsilon": "epsilon", "v_prediction": "v"}[kind],
        "num_train_steps": settings.whole("num_train_timesteps"),
        "beta_schedule": settings.text("beta_schedule"),
        "beta_start": settings.number("beta_start"),
        "beta_end": settings.number("beta_end"),
    }
    settings.done(SAMPLERS)
    return process


def _cosine_process(settings: Settings) -> dict[str, Any]:
    """What Stable Audio's scheduler says: the ends of its grid."""
    settings.expect(prediction_type="v_prediction", sigma_data=1.0)
    process = {
        "lowest_sigma": settings.number("sigma_min", 0.3),
        "highest_sigma": settings.number("sigma_max", 500.0),
    }
    settings.done((*SAMPLERS, "num_train_timesteps"))
    return process


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
