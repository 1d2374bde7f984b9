"""`python -m audiogen.info FILE`: whether a sound file says that it was generated, by what, and how to do it again."""

from __future__ import annotations

from pathlib import Path

from audiogen import provenance
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


def describe(name: str) -> dict[str, str]:
    """The lines for a sound file; InputError where it cannot be read."""
    path = Path(name)
    found = provenance.read(path)
    if found is None:
        return {"file": name, "AI-generated": NOTHING}
    lines = {"file": name, "AI-generated": "yes, by its metadata", "source type": SOURCE_TYPE}
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
    # a file may hold anything, and this is a terminal; the command is quoted already
    return {key: value if key == "command" else one_line(value) for key, value in lines.items() if value}


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
