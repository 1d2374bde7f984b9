"""LAFMA as its authors publish it: the UNet, the mel VAE and the vocoder in a file each, with two settings files.

*.json with "model.audioldm"    settings of UNet and VAE, JSON with comments
*.ckpt with "model"             unet.*
*.ckpt with "autoencoder"       the VAE
hifigan*.json, hifigan*.ckpt    the vocoder of AudioLDM, weight norm apart
"""

from __future__ import annotations

from pathlib import Path

from audiogen.diffusion.conditioners import ConditionerConfig
from audiogen.diffusion.mel import MelConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError
from audiogen.models.latent_files import Released, Settings, empty, read_settings, read_weights, under
from audiogen.models.latent_mel import (
    autoencoder_config,
    fill_autoencoder,
    fill_unet,
    unet_config,
    vocoder_config,
)
from audiogen.text.t5 import TextConfig

TEXT_ENCODER = "google/flan-t5-large"


def is_lafma(directory: Path) -> bool:
    """Whether these files are LAFMA's."""
    return _settings_file(directory) is not None and any(directory.glob("*.ckpt"))


def load_lafma(directory: Path, heads: tuple[int, ...] | None = None) -> Released:
    """Read it; heads: attention heads of each level, in place of those in the settings."""
    path = _settings_file(directory)
    if path is None:
        raise InputError(
            f"{directory} has no settings file with model.audioldm; copy exp_config_*.json again"
        )
    settings = read_settings(path)
    vocoder_file = _one(directory, "hifigan*.ckpt")
    vae_file = directory / settings.get("model.autoencoder_path", str, "vae.ckpt").rpartition("/")[2]
    unet_files = [file for file in directory.glob("*.ckpt") if file not in (vae_file, vocoder_file)]
    if len(unet_files) != 1:
        raise InputError(
            f"{directory} has {len(unet_files)} .ckpt files beside {vae_file.name} and {vocoder_file.name}; one, with "
            "the UNet, is needed"
        )
    unet = read_weights(unet_files[0], "model")
    vae, vocoder = read_weights(vae_file, "autoencoder"), read_weights(vocoder_file, "generator")
    vocoder_settings = read_settings(vocoder_file.with_suffix(".json"))
    text_dim = settings.get("model.audioldm.context_dim", int)
    config = SystemConfig(
        conditioner=ConditionerConfig(
            cross=(("text",),), unconditional="padded", text=TextConfig(TEXT_ENCODER, width=text_dim)
        ),
        mel_autoencoder=autoencoder_config(
            settings.below("model.autoencoderkl"),
            vae,
            _mel(vocoder_settings),
            vocoder_config(vocoder_settings),
            scale_factor=1.0,
        ),
        audio_unet=unet_config(
            settings.below("model.audioldm"), layers=(text_dim, text_dim), vector_dim=None, heads=heads
        ),
    )
    system = empty(lambda: LatentSystem(config))
    fill_unet(system.denoiser, under(unet, "unet."), unet_files[0])  # type: ignore[arg-type]
    fill_autoencoder(system.autoencoder, vae, vocoder, vae_file, vocoder_file)  # type: ignore[arg-type]
    origin = "as given" if heads else f"num_heads of {path.name}"
    assert config.audio_unet is not None
    return Released(system.eval(), "lafma", {}, (f"attention heads {config.audio_unet.heads}: {origin}",))


def _mel(vocoder: Settings) -> MelConfig:
    return MelConfig(
        sample_rate=vocoder.get("sampling_rate", int),
        n_fft=vocoder.get("n_fft", int, 1024),
        hop_length=vocoder.get("hop_size", int),
        num_mels=vocoder.get("num_mels", int),
        f_min=vocoder.get("fmin", float, 0.0),
        f_max=vocoder.get("fmax", float, 8000.0),
    )


def _settings_file(directory: Path) -> Path | None:
    for path in sorted(directory.glob("*.json")):
        if read_settings(path).get("model.audioldm", dict, None) is not None:
            return path
    return None


def _one(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise InputError(
            f"{directory} has {len(found)} files like {pattern}; LAFMA's vocoder is one: copy it again"
        )
    return found[0]
