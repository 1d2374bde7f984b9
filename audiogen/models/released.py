"""Opening a latent-diffusion system, whatever the format it was published in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from audiogen.errors import InputError
from audiogen.models import audioldm, diffusers, stable_audio, tango
from audiogen.models.find import SYSTEM, Found, find
from audiogen.models.systems import Released, SystemParts, build_system

READERS: dict[str, Callable[[Path], SystemParts]] = {
    "diffusers": diffusers.read_diffusers,
    "LAFMA": audioldm.read_lafma,
    "stable-audio-tools": stable_audio.read_stable_audio,
    "Tango": tango.read_tango,
    "TangoFlux": tango.read_tangoflux,
}


def load_released(
    name: str | Path | Found, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> Released:
    """Read a bundled system, a directory, or a hub id[@revision], of any of the formats; InputError where it has none.

    heads: attention heads of each level of an AudioLDM, AudioLDM 2 or LAFMA UNet, in place of those that its settings
    say. Its authors' are channels / 32, and / 64 for AudioLDM-L; the converted models of the hub say 8 at every level,
    which gives other outputs from the same weights (15 % and 44 % of their size). ema: whether to take the averaged
    UNet of the authors' AudioLDM and AudioLDM 2 checkpoints. The notes of what is returned say what was used.
    """
    return build_system(read_released(name, heads, ema))


def read_released(
    name: str | Path | Found, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> SystemParts:
    """What the files of a system say, the weights still in them; the arguments are those of `load_released`."""
    found = find(name, SYSTEM).check(SYSTEM)
    if found.layout == "AudioLDM":
        parts = audioldm.read_audioldm(found.path, ema)
    elif ema is None:
        parts = READERS[found.layout](found.path)
    else:
        raise InputError(
            f"{found.name} holds one set of weights; ema is for checkpoints of AudioLDM: leave it out"
        )
    if heads is None:
        return parts
    unet = parts.config.audio_unet
    if unet is None:
        raise InputError(f"{found.name} holds no UNet of AudioLDM, AudioLDM 2 or LAFMA; leave heads out")
    config = replace(parts.config, audio_unet=replace(unet, heads=heads))
    return replace(parts, config=config, heads_from="as given")
