"""Opening a released latent-diffusion system, whatever the format it was published in."""

from __future__ import annotations

from pathlib import Path

from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.models import audioldm as public_audioldm
from audiogen.models import lafma as public_lafma
from audiogen.models import stable_audio as public_stable_audio
from audiogen.models import tango as public_tango
from audiogen.models.latent_files import Released
from audiogen.models.latent_pretrained import INDEX, load_diffusers

# What a repository of the hub may hold; the first that it has is fetched.
LAYOUTS = (
    hub.Layout(
        "diffusers",
        (INDEX,),
        (
            "*.json",
            "*.txt",
            "*/*.json",
            "*/*.txt",
            "*/*.model",
            "*/model*.safetensors",
            "*/diffusion*.safetensors",
        ),
    ),
    hub.Layout(
        "stable-audio-tools",
        (public_stable_audio.CONFIG, "model.safetensors"),
        (public_stable_audio.CONFIG, "model.safetensors"),
    ),
    hub.Layout("Tango", public_tango.TANGO, ("*.json", *public_tango.TANGO[:2])),
    hub.Layout("TangoFlux", public_tango.TANGOFLUX, public_tango.TANGOFLUX),
)


def load_released(
    name_or_directory: str | Path, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> Released:
    """Read a bundled system, a directory, or a hub id[@revision], of any of the formats; InputError where it has none.

    heads: attention heads of each level of an AudioLDM, AudioLDM 2 or LAFMA UNet, in place of those that its settings
    say. ema: whether to take the averaged UNet of the authors' AudioLDM and AudioLDM 2 checkpoints. The notes of what
    is returned say what was used.
    """
    directory = checkpoint.system_folder(name_or_directory)
    if hub.is_hub_id(str(name_or_directory)):
        directory = hub.fetch(str(name_or_directory), LAYOUTS)
    if not directory.is_dir():
        raise InputError(f"{directory} is no directory; give one with a released model, or a hub id")
    if ema is not None and not public_audioldm.is_audioldm(directory):
        raise InputError(
            f"{directory} holds one set of weights; ema is for checkpoints of AudioLDM: leave it out"
        )
    if (directory / INDEX).is_file():
        return load_diffusers(directory, heads)
    if public_audioldm.is_audioldm(directory):
        return public_audioldm.load_audioldm(directory, heads, ema)
    if public_lafma.is_lafma(directory):
        return public_lafma.load_lafma(directory, heads)
    if heads is not None:
        raise InputError(
            f"{directory} says how many heads it has; heads is for AudioLDM, AudioLDM 2 and LAFMA"
        )
    if public_stable_audio.is_stable_audio(directory):
        return public_stable_audio.load_stable_audio(directory)
    if public_tango.is_tango(directory):
        return public_tango.load_tango(directory)
    if public_tango.is_tangoflux(directory):
        return public_tango.load_tangoflux(directory)
    raise InputError(
        f"{directory} holds no released latent-diffusion system; what is read: a directory of diffusers ({INDEX}), "
        f"stable-audio-tools ({public_stable_audio.CONFIG}), AudioLDM (one .ckpt or .pth, {public_audioldm.CONFIG}), "
        f"LAFMA (settings, *.ckpt), Tango ({public_tango.TANGO[0]}), TangoFlux ({public_tango.TANGOFLUX[0]})"
    )
