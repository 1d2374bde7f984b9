"""Opening a latent-diffusion system, whatever the format it was published in."""

from __future__ import annotations

from pathlib import Path

from audiogen.errors import InputError
from audiogen.models import audioldm, diffusers, lafma, stable_audio, tango
from audiogen.models.find import SYSTEM, find
from audiogen.models.systems import Released, SystemParts, build_system


def load_released(
    name_or_directory: str | Path, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> Released:
    """Read a bundled system, a directory, or a hub id[@revision], of any of the formats; InputError where it has none.

    heads: attention heads of each level of an AudioLDM, AudioLDM 2 or LAFMA UNet, in place of those that its settings
    say. ema: whether to take the averaged UNet of the authors' AudioLDM and AudioLDM 2 checkpoints. The notes of what
    is returned say what was used.
    """
    directory = Path(name_or_directory)
    if not directory.is_dir():
        directory = find(name_or_directory, SYSTEM).check(SYSTEM).path
    return build_system(read_released(directory, heads, ema))


def read_released(
    directory: Path, heads: tuple[int, ...] | None = None, ema: bool | None = None
) -> SystemParts:
    """What the files of a directory say, the weights still in them; the arguments are those of `load_released`."""
    if ema is not None and not audioldm.is_audioldm(directory):
        raise InputError(
            f"{directory} holds one set of weights; ema is for checkpoints of AudioLDM: leave it out"
        )
    if (directory / diffusers.INDEX).is_file():
        return diffusers.read_diffusers(directory, heads)
    if audioldm.is_audioldm(directory):
        return audioldm.read_audioldm(directory, heads, ema)
    if lafma.is_lafma(directory):
        return lafma.read_lafma(directory, heads)
    if heads is not None:
        raise InputError(
            f"{directory} says how many heads it has; heads is for AudioLDM, AudioLDM 2 and LAFMA"
        )
    if stable_audio.is_stable_audio(directory):
        return stable_audio.read_stable_audio(directory)
    if tango.is_tango(directory):
        return tango.read_tango(directory)
    if tango.is_tangoflux(directory):
        return tango.read_tangoflux(directory)
    raise InputError(
        f"{directory} holds no released latent-diffusion system; what is read: a directory of diffusers "
        f"({diffusers.INDEX}), stable-audio-tools ({stable_audio.CONFIG}), AudioLDM (one .ckpt or .pth, "
        f"{audioldm.CONFIG}), LAFMA (settings, *.ckpt), Tango ({tango.TANGO[0]}), TangoFlux ({tango.TANGOFLUX[0]})"
    )
