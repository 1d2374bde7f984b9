"""What a model is, as far as its settings say without its weights: for lists, and before a download. Without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import constants

from audiogen.errors import InputError
from audiogen.files import cards, writing
from audiogen.models.find import (
    CODEC,
    LAYOUTS,
    LM,
    OWN,
    OWN_LAYOUT,
    SYSTEM,
    TAGGER,
    Found,
    find,
    weights_folder,
)

FAMILIES = {LM: "token LM", SYSTEM: "latent diffusion", CODEC: "codec", TAGGER: "tagger"}
FLOWS = ("flow", "lafma", "stable_audio_3", "tangoflux")  # processes, or systems whose process is one
# Where the files of a model say its sample rate: the first of these that is there.
RATES = (
    ("system.json", "config.mel_autoencoder.mel.sample_rate"),
    ("system.json", "config.waveform_autoencoder.sample_rate"),
    ("system.json", "config.same_autoencoder.sample_rate"),
    ("vocoder/config.json", "sampling_rate"),
    ("vae/config.json", "sampling_rate"),
    ("model_config.json", "sample_rate"),
    ("config.json", "audio_encoder.sampling_rate"),
    ("config.json", "sampling_rate"),
    ("config.json", "config.sample_rate"),
    ("config.json", "config.dac.sampling_rate"),
)


class Listed(NamedTuple):
    """A model. sample_rate: Hz; None where only the weights' own file says it. size: bytes on this machine."""

    name: str
    family: str
    sample_rate: int | None
    size: int
    licence: str


def models() -> Iterator[Listed]:
    """The bundled models, then those of the hub's cache, by revision; what is no whole model is left out."""
    for path in sorted(weights_folder().iterdir()):
        if path.is_dir():
            yield describe(find(path), path.name)
    for reference in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*/refs/**/*")):
        folder = next(parent for parent in reference.parents if parent.name.startswith("models--"))
        revision = reference.relative_to(folder / "refs").as_posix()
        if not reference.is_file():
            continue
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        try:
            found = find(folder / "snapshots" / reference.read_text().strip())
        except (InputError, OSError):
            continue  # of another kind
        files = [path.name for path in found.path.iterdir()]
        layouts = (layout for layout in (OWN_LAYOUT, *LAYOUTS) if layout.name == found.layout)
        if any(layout.fits(files) for layout in layouts):
            yield describe(found, name if revision == constants.DEFAULT_REVISION else f"{name}@{revision}")


def describe(found: Found, name: str = "") -> Listed:
    """What its settings say."""
    family = FAMILIES.get(found.kind, found.kind)
    if found.kind == SYSTEM:
        system, layout = found.path / "system.json", found.layout.lower()
        if (_value(system, "process.kind") or _value(system, "name") or layout) in FLOWS:
            family = "latent flow"
    files = found.path.rglob("*") if found.path.is_dir() else [found.path]
    size = sum(path.stat().st_size for path in files if path.is_file())
    return Listed(name or found.name, family, sample_rate(found), size, cards.licence(found.path))


def sample_rate(found: Found) -> int | None:
    """In Hz, from the files that hold no weights."""
    path = found.path
    if found.layout == OWN and found.kind == LM:
        location = _value(path / "config.json", "config.codec.location")
        inside = path / str(location)
        path = inside if inside.is_dir() else weights_folder() / str(location)
    for file, key in RATES:
        if isinstance(rate := _value(path / file, key), int):
            return rate
    return None


def _value(path: Path, key: str) -> Any:
    """The value at a dotted key of a JSON file; None where there is none."""
    try:
        value = writing.read_json(path)
    except (InputError, OSError):
        return None
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
