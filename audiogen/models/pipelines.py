"""Configurations of diffusers' components -> ours, and that of the scheduler from a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiogen.config import PositiveFloat, Range, check_ranges, short
from audiogen.diffusion.autoencoders import MelAutoencoderConfig, WaveformAutoencoderConfig
from audiogen.diffusion.conditioners import SecondsConfig
from audiogen.diffusion.denoisers import AudioUNetConfig, DiTConfig, TextUNetConfig
from audiogen.diffusion.dit3 import DiT3Config
from audiogen.diffusion.loa import LoaConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.process import ProcessConfig, process_of
from audiogen.diffusion.same import SameAutoencoderConfig
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.samplers import ALGORITHMS
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.files.tensors import WIDEST
from audiogen.models import latent_diffusion as parts
from audiogen.models.settings import RATE, Settings, read_settings, table, theirs
from audiogen.models.systems import conditioner_config
from audiogen.text.t5 import TextConfig

PIPELINES = {
    "AudioLDMPipeline": "audioldm",
    "AudioLDM2Pipeline": "audioldm2",
    "StableAudioPipeline": "stable_audio",
    "StableAudio3Pipeline": "stable_audio_3",
}


@dataclass(frozen=True)
class SystemFile:
    """system.json of ours, and what the files of a released pipeline say in its place: fields of `SystemParts`."""

    config: SystemConfig
    name: str
    process: dict[str, Any]
    sampling: Sampling | None = None
    window_s: PositiveFloat | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sampling is not None:
            self.sampling.check(process_of(self.name, self.process), "sampling")


def pipeline_of(config: SystemConfig) -> str:
    """The pipeline that opens such a system; where it has none of its own, the one that opens components."""
    wave = config.waveform_autoencoder
    if config.dit is not None and wave is not None and wave.bands == 1:
        return "StableAudioPipeline"
    same = config.same_autoencoder
    if config.dit3 is not None and same is not None and has_fixed_seconds(config):
        # not for the authors' own weights: diffusers has no such attention, and gives that branch nothing
        if not (same.chunk or same.kernel > 1 or config.dit3.inpaints):
            return "StableAudio3Pipeline"
    if config.audio_unet is not None and config.conditioner.clap is not None:
        return "AudioLDM2Pipeline" if config.conditioner.loa is not None else "AudioLDMPipeline"
    return "DiffusionPipeline"


def has_fixed_seconds(config: SystemConfig) -> bool:
    """Whether a StableAudio3DurationEmbedder embeds the seconds."""
    seconds = config.conditioner.seconds
    return seconds is not None and seconds.frequencies == "exponential"


def has_own_pipeline(config: SystemConfig) -> bool:
    """Whether diffusers has a pipeline for it, none of which reads text by an encoder of ours."""
    text = config.conditioner.text
    return pipeline_of(config) != "DiffusionPipeline" and not (text is not None and text.embedded)


def runs_in_code(config: SystemConfig, process: ProcessConfig) -> bool:
    """Whether `latent_pipeline` runs such a system: one stream of text, with seconds or without, or none.

    Its vector is the text's pooled mean, both seconds, or nothing. There is no SAME, and no transformer for it.
    """
    conditioner, unet = config.conditioner, config.audio_unet
    both = ("seconds_start", "seconds_total")
    allowed = {
        (): (("pooled",),),
        (("text",),): ((), ("pooled",)),
        (("text", "seconds_total"),): ((), ("pooled",)),
        (("text", *both),): (both,),
    }
    has_vector = conditioner.vector in allowed.get(conditioner.cross, ())
    is_plain = conditioner.padding == "zeros" and not has_fixed_seconds(config) and process.log_snr is None
    others = config.dit3 is not None or (unet is not None and unet.beyond_diffusers)
    return has_vector and is_plain and not others and config.same_autoencoder is None


def is_whole(config: SystemConfig, process: ProcessConfig) -> bool:
    """Whether a saved system opens in diffusers as it is."""
    return has_own_pipeline(config) or runs_in_code(config, process)


def read_pipeline(directory: Path, index: Settings) -> SystemFile:
    """What a released pipeline says."""
    kind = index.text("_class_name")
    if kind == "DiffusionPipeline":  # what ours are to diffusers where it has no pipeline for them
        raise InputError(
            f"{directory} lacks system.json, without which its components say too little; copy it again"
        )
    if kind not in PIPELINES:
        raise InputError(
            f"{index.where}: _class_name is {short(kind)}; read are {', '.join(PIPELINES)}, and our own"
        )
    name = PIPELINES[kind]
    scheduler = component_settings(directory, "scheduler")
    if name == "stable_audio_3":
        process, sampling = _flow_process(scheduler)
        return SystemFile(_stable_audio_3(directory), name, process, sampling)
    if name != "stable_audio":
        return SystemFile(_audioldm(directory, name), name, scheduler_process(scheduler))
    config = _stable_audio(directory)
    frames = component_settings(directory, "transformer").whole("sample_size")  # that are always generated
    codec = config.waveform_autoencoder
    assert codec is not None
    window_s = frames * codec.hop_length / codec.sample_rate
    return SystemFile(config, name, _cosine_process(scheduler), window_s=window_s)


def component_settings(directory: Path, component: str) -> Settings:
    """The configuration of a component; InputError naming it where it is missing."""
    file = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}.get(
        component, "config.json"
    )
    return read_settings(required(directory, component, file))


def required(directory: Path, *component: str) -> Path:
    """A part of a directory that is there; InputError naming it otherwise."""
    if not (path := directory.joinpath(*component)).exists():
        raise InputError(
            f"{directory} lacks {'/'.join(component)}, which this system needs; copy it again, as a whole"
        )
    return path


def _audioldm(directory: Path, name: str) -> SystemConfig:
    vae, vocoder, unet = (component_settings(directory, part) for part in ("vae", "vocoder", "unet"))
    hifigan = parts.vocoder_config(vocoder)
    mel = MelConfig(
        sample_rate=vocoder.whole("sampling_rate", within=RATE),
        hop_length=hifigan.hop_length,
        num_mels=vocoder.whole("model_in_dim"),
    )
    autoencoder = vae.build(MelAutoencoderConfig, "diffusers.vae", mel=mel, vocoder=hifigan)
    if name == "audioldm":
        dim = unet.whole("projection_class_embeddings_input_dim")
        conditioner = conditioner_config(name, clap=str(directory / "text_encoder"), clap_dim=dim)
        return SystemConfig(conditioner, autoencoder, audio_unet=_audio_unet(unet, (None,), dim))
    projection = component_settings(directory, "projection_model")
    gpt2 = component_settings(directory, "language_model")
    loa = gpt2.build(LoaConfig, "diffusers.gpt2", **projection.values(LoaConfig, table("diffusers.loa")))
    conditioner = conditioner_config(
        name,
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
    depth = unet.whole("transformer_layers_per_block", 1)
    more = {"layers": layers, "vector_dim": vector_dim, "depth": depth, **_levels(unet)}
    return unet.build(AudioUNetConfig, "diffusers.unet", **more)


def text_unet(unet: Settings) -> TextUNetConfig:
    """From the settings of a UNet2DConditionModel."""
    cross_dim = unet.whole("cross_attention_dim")
    return unet.build(TextUNetConfig, "diffusers.unet", cross_dim=cross_dim, **_levels(unet))


def _levels(unet: Settings) -> dict[str, Any]:
    """What each level of a UNet of diffusers has."""
    channels = unet.wholes("block_out_channels")
    key = "attention_head_dim"  # diffusers' name for the number of heads
    several = isinstance(unet.take(key, 8), list)
    return {
        "channels": channels,
        "heads": unet.wholes(key) if several else (unet.whole(key, 8),) * len(channels),
        "attention": [kind.startswith("CrossAttn") for kind in unet.texts("down_block_types")],
    }


def _stable_audio(directory: Path) -> SystemConfig:
    vae, dit, projection = (
        component_settings(directory, part) for part in ("vae", "transformer", "projection_model")
    )
    length = component_settings(directory, "tokenizer").whole("model_max_length", 128)
    return SystemConfig(
        conditioner_config(
            "stable_audio",
            text=TextConfig(
                str(directory / "text_encoder"), width=projection.whole("text_encoder_dim"), max_tokens=length
            ),
            text_length=length,
            seconds=projection.build(SecondsConfig, "diffusers.seconds"),
        ),
        waveform_autoencoder=vae.build(WaveformAutoencoderConfig, "diffusers.oobleck"),
        dit=dit.build(DiTConfig, "diffusers.dit"),
    )


def _stable_audio_3(directory: Path) -> SystemConfig:
    vae, dit, seconds, text = (
        component_settings(directory, part)
        for part in ("vae", "transformer", "duration_embedder", "text_encoder")
    )
    length = min(
        component_settings(directory, "tokenizer").number("model_max_length", 256), 256
    )  # as diffusers
    heads = dit.whole("num_heads")
    return SystemConfig(
        conditioner_config(
            "stable_audio_3",
            text=TextConfig(
                str(directory / "text_encoder"),
                width=text.whole("encoder.hidden_size"),
                max_tokens=int(length),
            ),
            text_length=int(length),
            seconds=seconds.build(SecondsConfig, "diffusers.seconds_3", frequencies="exponential"),
        ),
        same_autoencoder=vae.build(
            SameAutoencoderConfig,
            "diffusers.same",
            encoder_sines=vae.wholes("encoder_sinusoidal_blocks", within=Range(0, WIDEST)),
            decoder_sines=vae.wholes("decoder_sinusoidal_blocks", within=Range(0, WIDEST)),
        ),
        dit3=dit.build(DiT3Config, "diffusers.dit3", head_dim=dit.whole("embed_dim") // heads),
    )


# ----------------------------------------------------------------------------------------------- schedulers


def scheduler_process(settings: Settings) -> dict[str, Any]:
    """What a DDPM-like scheduler of diffusers says of the process."""
    settings.expect(trained_betas=None, thresholding=False, rescale_betas_zero_snr=False)
    settings.expect(timestep_spacing="leading", **table("diffusers.expected_ddim"))
    kind = settings.choice("prediction_type", ["epsilon", "v_prediction"], "epsilon")
    process = {"kind": "ddpm", "prediction": kind.removesuffix("_prediction")}
    process |= settings.values(ProcessConfig, table("diffusers.scheduler"))
    settings.done(table("diffusers.harmless_scheduler"))
    return process


def _cosine_process(settings: Settings) -> dict[str, Any]:
    """What Stable Audio's scheduler says: the ends of its grid."""
    settings.expect(prediction_type="v_prediction", sigma_data=1.0)
    process = {
        "lowest_sigma": settings.number("sigma_min", 0.3),
        "highest_sigma": settings.number("sigma_max", 500.0),
    }
    settings.done([*table("diffusers.harmless_scheduler"), "num_train_timesteps"])
    return process


def _flow_process(settings: Settings) -> tuple[dict[str, Any], Sampling | None]:
    """What the scheduler of Stable Audio 3 says: the scale of the network's time, and the sampler."""
    settings.expect(_class_name="FlowMatchEulerDiscreteScheduler", **table("diffusers.expected_flow"))
    process = {"time_scale": float(settings.whole("num_train_timesteps", 1000))}
    is_ping_pong = settings.flag("stochastic_sampling", False)
    settings.done(table("diffusers.harmless_flow"))
    # the release that was not distilled samples without fresh noise, and in more steps
    return process, None if is_ping_pong else Sampling("euler", 100, 1.0)


def scheduler_config(
    process: ProcessConfig, sampling: Sampling | None = None, in_code: bool = False
) -> dict[str, Any]:
    """The configuration of diffusers' scheduler for such a process, as the releases have it, or `latent_pipeline`."""
    found: dict[str, Any]
    if process.kind == "cosine_v":
        sigmas = {"sigma_min": process.lowest_sigma, "sigma_max": process.highest_sigma}
        found = table("diffusers.cosine") | sigmas
        if in_code:  # whose noise is a generator's, in place of a Brownian tree's
            algorithm = ALGORITHMS.get(
                "dpm++sde" if sampling is None else sampling.sampler, "sde-dpmsolver++"
            )
            found |= {"_class_name": "EDMDPMSolverMultistepScheduler", "algorithm_type": algorithm}
        return found
    if process.kind == "flow":
        found = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
        if (
            process.log_snr is not None
        ):  # of Stable Audio 3, whose pipeline gives the scheduler's time to the network
            stochastic = sampling is not None and sampling.sampler == "ping_pong"
            found |= {"num_train_timesteps": round(process.time_scale), "stochastic_sampling": stochastic}
        return found
    found = theirs(process, "diffusers.scheduler") | table("diffusers.expected_ddim")
    found["prediction_type"] = {"v": "v_prediction"}.get(process.prediction, "epsilon")
    if sampling is not None and sampling.sampler == "ddpm":
        del found["set_alpha_to_one"]  # which it always does
        return {"_class_name": "DDPMScheduler", **found}
    return {"_class_name": "DDIMScheduler", **found}
