"""`python -m audiogen.info FILE`: whether a sound file says that it was generated, by what, and how to do it again."""

from __future__ import annotations

from pathlib import Path

from audiogen import credentials, provenance
from audiogen.errors import InputError, one_line
from audiogen.models.digest import digest
from audiogen.models.find import bundled, find
from audiogen.provenance import SOURCE_TYPE, Provenance

# A directory, or one of these, is a model.
MODEL_SUFFIXES = (".bin", ".th", ".pt", ".pth", ".ckpt", ".safetensors")
NOTHING = "not by its metadata, which say nothing; they may have been removed"


def is_sound(name: str) -> bool:
    """Whether an argument is a file that is no model."""
    path = Path(name)
    return path.is_file() and path.suffix.lower() not in MODEL_SUFFIXES


def describe(name: str, detect: bool = False) -> dict[str, str]:
    """The lines for a sound file; InputError where it cannot be read. detect: also look for a watermark."""
    path = Path(name)
    found = provenance.read(path)
    lines = {"file": name, "AI-generated": NOTHING} if found is None else _recorded(path, found)
    lines |= credentials.read(path)
    if detect:
        lines |= _watermark(path, found)
    command = lines.pop("command", "")
    # a file may hold anything, and this is a terminal; the command is quoted already
    lines = {key: one_line(value) for key, value in lines.items() if value}
    return lines | ({"command": command} if command else {})


def _recorded(path: Path, found: Provenance) -> dict[str, str]:
    """The lines for a record."""
    lines = {"file": str(path), "AI-generated": "yes, by its metadata", "source type": SOURCE_TYPE}
    lines |= {
        "program": found.program,
        "torch": found.torch,
        "model": found.model,
        "model hash": found.model_sha256,
    }
    settings = dict(found.settings or {})
    lines["model here"] = _here(found)
    lines |= {key: str(value) for key, value in settings.items() if key != "model"}
    lines |= {f"{key} hash": value for key, value in found.inputs.items()}
    again = path.with_name(f"{path.stem}_again{path.suffix}")
    lines["command"] = found.command(str(again)) or "text, seed and settings were left out of the file"
    if caveat := _caveat(settings):
        lines["caveat"] = caveat
    return lines


def _watermark(path: Path, found: Provenance | None) -> dict[str, str]:
    """The line for what a sound carries."""
    from audiogen import audio, watermark  # late: they import torch

    marked = watermark.detect(*audio.load(path))
    share = f"in {marked.share:.0%} of the sound"
    if marked.share < watermark.FOUND:
        return {"watermark": f"none found ({share})"}
    whose = ""
    if found is not None and found.model_sha256:
        same = marked.message == watermark.message_of(found.model_sha256)
        whose = ", that of the model's hash" if same else ", which is not that of the model's hash"
    return {"watermark": f"{share}, message {marked.message:04x}{whose}"}


def _here(found: Provenance) -> str:
    """Whether the model of that name on this machine is the one that made the sound."""
    name = str((found.settings or {}).get("model", found.model))
    if not (Path(name).is_dir() or name in bundled()):
        return ""
    try:
        same = digest(find(name)) == found.model_sha256
    except InputError:
        return "cannot be opened"
    return "the same files" if same else "other files than those that made the sound"


def _caveat(settings: dict[str, object]) -> str:
    """Why the command may give another sound."""
    if settings.get("peer_padding"):
        return "with --peer-padding a sound depends on the prompts beside it, which are not recorded"
    if settings.get("duration") == "inf":
        return "it was ended by hand: the command's sound begins as this one and goes on"
    return ""
