"""LAFMA as its authors publish it: the UNet, the mel VAE and the vocoder in a file each, with two settings files.

*.json with "model.audioldm"    settings of UNet and VAE, JSON with comments
*.ckpt with "model"             unet.*
*.ckpt with "autoencoder"       the VAE
hifigan*.json, hifigan*.ckpt    the vocoder of AudioLDM, weight norm apart
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from audiogen.config import Range
from audiogen.diffusion.sample import SAMPLINGS, Sampling
from audiogen.diffusion.systems import SystemConfig
from audiogen.errors import InputError
from audiogen.files.checkpoint import read_weights
from audiogen.files.tensors import under
from audiogen.models import latent_diffusion as parts
from audiogen.models.settings import Settings, read_settings, table
from audiogen.models.systems import SystemParts, conditioner_config
from audiogen.text.t5 import TextConfig

UNET = "model.audioldm"  # the key of its settings


def read_lafma(directory: Path) -> SystemParts:
    """Read it."""
    vocoder_file = _one(directory, "hifigan*.ckpt")
    found = [
        settings for settings in map(read_settings, sorted(directory.glob("*.json"))) if UNET in settings
    ]
    if not found:
        raise InputError(f"{directory} has no .json with {UNET}, the settings of LAFMA: copy it again")
    settings = found[0]
    vae_file = directory / settings.text("model.autoencoder_path", "vae.ckpt").rpartition("/")[2]
    unet_files = [file for file in directory.glob("*.ckpt") if file not in (vae_file, vocoder_file)]
    if len(unet_files) != 1:
        raise InputError(
            f"{directory} has {len(unet_files)} .ckpt files beside {vae_file.name} and {vocoder_file.name}; one, with "
            "the UNet, is needed"
        )
    unet = under(read_weights(unet_files[0], "model"), "unet.")
    vae, vocoder = read_weights(vae_file, "autoencoder"), read_weights(vocoder_file, "generator")
    config = _config(settings, read_settings(vocoder_file.with_suffix(".json")), vae)
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
            parts.unet_component(config.audio_unet, unet, unet_files[0]),
            *parts.autoencoder_components(config.mel_autoencoder, vae, vocoder, vae_file, vocoder_file),
        ],
        directory,
        "lafma",
        heads_from=f"num_heads of {Path(settings.where).name}",
        sampling=None if sampling == usual else sampling,
    )


def _config(settings: Settings, hifigan: Settings, vae: dict[str, Tensor]) -> SystemConfig:
    mel, vocoder = parts.mel_and_vocoder(hifigan)
    spectrogram = settings.section("preprocess", {})
    spectrogram.expect(n_mel=mel.num_mels, hop_size=mel.hop_length, sample_rate=mel.sample_rate)
    spectrogram.expect(n_fft=mel.n_fft, win_size=mel.n_fft, filter_length=mel.n_fft)
    spectrogram.expect(fmin=mel.f_min, fmax=mel.f_max)
    unet = settings.section(UNET)
    unet.expect(extra_sa_layer=True)
    text_dim = unet.whole("context_dim")
    return SystemConfig(
        conditioner_config("lafma", text=TextConfig(parts.TEXT_ENCODER, width=text_dim)),
        mel_autoencoder=parts.autoencoder_config(
            settings.section("model.autoencoderkl"), vae, mel, vocoder, scale_factor=1.0
        ),
        audio_unet=parts.unet_config(unet, (text_dim, text_dim), None),
    )


def _one(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"{directory} has {len(found)} files like {pattern}; LAFMA's vocoder is one: copy it again"
        )
    return found[0]
