"""Opening a latent-diffusion system, whatever the format it was published in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from audiogen.errors import InputError
from audiogen.models import audioldm, diffusers, lafma, stable_audio, tango
from audiogen.models.find import SYSTEM, Found, find
from audiogen.models.systems import Released, SystemParts, build_system

READERS: dict[str, Callable[[Path], SystemParts]] = {
    "stable-audio-tools": stable_audio.read_stable_audio,
    "Tango": tango.read_tango,
    "TangoFlux": tango.read_tangoflux,
}


def load_released(
    name: str | Path | Found, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> Released:
    """Read a bundled system, a directory, or a hub id[@revision], of any of the formats; InputError where it has none.

    heads: attention heads of each level of an AudioLDM, AudioLDM 2 or LAFMA UNet, in place of those that its settings
    say. ema: whether to take the averaged UNet of the authors' AudioLDM and AudioLDM 2 checkpoints. The notes of what
    is returned say what was used.
    """
    return build_system(read_released(name, heads, ema))


def read_released(
    name: str | Path | Found, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> SystemParts:
    """What the files of a system say, the weights still in them; the arguments are those of `load_released`."""
    found = find(name, SYSTEM).check(SYSTEM)
    directory, lafmas = found.path, None
    if found.layout == "checkpoint" and not (directory / audioldm.CONFIG).is_file():
        lafmas = lafma.settings_of(directory)
    if found.layout == "checkpoint" and lafmas is None:
        return audioldm.read_audioldm(directory, heads, ema)
    if ema is not None:
        raise InputError(
            f"{directory} holds one set of weights; ema is for checkpoints of AudioLDM: leave it out"
        )
    if lafmas is not None:
        return lafma.read_lafma(directory, lafmas, heads)
    if found.layout == "diffusers":
        return diffusers.read_diffusers(directory, heads)
    if heads is not None:
        raise InputError(
            f"{directory} says how many heads it has; heads is for AudioLDM, AudioLDM 2 and LAFMA"
        )
    return READERS[found.layout](directory)
