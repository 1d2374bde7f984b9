"""Autoencoders as directories, and the check that one is fit for a denoiser to be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen import audio as audio_io
from audiogen.codec.losses import mel_distance
from audiogen.config import build, flatten, short, to_plain
from audiogen.diffusion.autoencoders import (
    Autoencoder,
    AutoencoderConfig,
    MelAutoencoderConfig,
    WaveformAutoencoderConfig,
    make_autoencoder,
)
from audiogen.diffusion.same import SameAutoencoderConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.interfaces import AudioBatch
from audiogen.models.find import SYSTEM, find
from audiogen.models.released import load_released
from audiogen.spectrogram import save_spectrogram

KINDS = {
    "mel_autoencoder": MelAutoencoderConfig,
    "waveform_autoencoder": WaveformAutoencoderConfig,
    "same_autoencoder": SameAutoencoderConfig,
}


def kind_of(config: AutoencoderConfig) -> str:
    """The key of such a config in a recipe, and the kind of its model directory."""
    return next(kind for kind, cls in KINDS.items() if isinstance(config, cls))


def differences(own: AutoencoderConfig, wanted: AutoencoderConfig) -> str:
    """In what an autoencoder differs from the one that a recipe describes, but for its scale: the first three."""
    if type(own) is not type(wanted):
        return f"it is a {kind_of(own)}"
    here = flatten(to_plain(wanted))
    there = flatten(to_plain(own))
    found = [
        f"{key} is {there.get(key)} there and {value} here"
        for key, value in here.items()
        if there.get(key) != value and key != "scale_factor"
    ]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")


def save_autoencoder(directory: Path, autoencoder: Autoencoder, info: Mapping[str, Any]) -> None:
    """Write a model directory of the autoencoder alone."""
    config = to_plain(autoencoder.config) | {"scale_factor": float(autoencoder.scale_factor)}
    tensors = {name: tensor for name, tensor in autoencoder.state_dict().items() if name != "scale_factor"}
    checkpoint.save_model(directory, kind_of(autoencoder.config), config, tensors, info)


def load_autoencoder(name_or_directory: str) -> Autoencoder:
    """What `save_autoencoder` wrote, bundled or in a directory, or the autoencoder of a whole system; frozen.

    A system: a directory of ours or a released one, or a hub id.
    """
    try:
        found = find(name_or_directory, SYSTEM)
    except InputError as error:
        raise InputError(
            f"autoencoder={name_or_directory}: {error}; train one first, as the recipe's header says"
        ) from None
    if found.kind == SYSTEM:
        return load_released(found).system.autoencoder.eval().requires_grad_(False)
    directory = found.path
    contents = checkpoint.read_config(directory)
    if contents["kind"] not in KINDS:
        raise InputError(
            f"autoencoder={name_or_directory} is a model of kind {short(contents['kind'])}; it must be one of "
            f"{', '.join(KINDS)}"
        )
    config: Any = build(KINDS[contents["kind"]], contents["config"], str(directory / "config.json"))
    autoencoder = make_autoencoder(config)
    tensors = checkpoint.load_tensors(directory) | {"scale_factor": autoencoder.scale_factor}
    checkpoint.load_into(autoencoder, tensors, directory)
    return autoencoder.eval().requires_grad_(False)


def identity(autoencoder: Autoencoder) -> str:
    """Changes with any of its weights."""
    return checkpoint.identity(autoencoder.state_dict())


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, audio: Tensor) -> Tensor:
    """Audio [B, C, N] through the autoencoder -> [B, C, N], finite and within the range of sound files."""
    return autoencoder.decode(autoencoder.encode(audio))[..., : audio.shape[-1]].clamp(-1, 1)


def check_reconstruction(autoencoder: Autoencoder, batch: AudioBatch, bound: float, folder: Path) -> float:
    """Log-mel distance of real clips from what the autoencoder makes of them; InputError where it is above `bound`.

    The figure and the clips, original and reconstructed, are left in `folder`, to be looked at and listened to.
    """
    device = next(autoencoder.parameters()).device
    real = batch.audio.to(device)
    fake = reconstruct(autoencoder, real)
    rate = autoencoder.sample_rate
    found = float(mel_distance(fake, real, rate).mean())
    folder.mkdir(parents=True, exist_ok=True)
    for row in range(min(4, len(real))):
        for name, sound in ((f"{row}_original", real[row]), (f"{row}_reconstructed", fake[row])):
            if torch.isfinite(sound).all():
                audio_io.save(folder / f"{name}.wav", sound.cpu(), rate)
    both = torch.cat([real[0], fake[0]], dim=-1).cpu()
    save_spectrogram(folder / "0.png", both, rate, "original, then reconstructed")
    contents = {"mel": found, "bound": bound, "clips": batch.keys, "autoencoder": identity(autoencoder)}
    writing.write_json(folder / "reconstruction.json", contents)  # last: with it the check is not made again
    if not found <= bound:  # also where it is not a number
        raise InputError(
            f"the autoencoder reconstructs {len(real)} real clips with a log-mel distance of {found:.3f}, above "
            f"max_reconstruction={bound:g}: a denoiser would learn noise. Train it longer, or give the right "
            f"autoencoder=; what it made of them is in {folder}"
        )
    return found
