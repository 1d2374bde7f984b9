"""Released language models, AudioGen's and MusicGen's, in the two layouts that they come in."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from audiogen.files import checkpoint, hub
from audiogen.files.hub import Layout
from audiogen.models import audiocraft, musicgen
from audiogen.models.musicgen import transformers_parts
from audiogen.models.release import Release
from audiogen.text.encoder import TOKENIZER_PATTERNS

__all__ = ["LAYOUTS", "fetch", "layout_of", "read_release", "transformers_parts"]

# What a hub repository may hold, the first that it has is taken. Releases in both layouts of the last two carry their
# text encoder in the first of them. Some have a second copy in another precision, as model.fp32.safetensors.
TRANSFORMERS = Layout(
    "transformers",
    ("config.json", "model*.safetensors"),
    (
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-?????-of-?????.safetensors",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        *TOKENIZER_PATTERNS,
    ),
)
LAYOUTS = (
    Layout(
        "audiogen",
        ("config.json", "model.safetensors", "text/config.json"),
        ("config.json", "model.safetensors", "text/*", "codec/*"),
    ),
    TRANSFORMERS,
    Layout(
        "audiocraft",
        (audiocraft.WEIGHTS_FILE, audiocraft.CODEC_FILE),
        (audiocraft.WEIGHTS_FILE, audiocraft.CODEC_FILE),
    ),
)


def layout_of(directory: Path) -> Literal["transformers", "audiocraft"] | None:
    """The layout of a release in a directory; None where it is none, as a model directory of ours."""
    path = directory / "config.json"
    if path.is_file():
        config = checkpoint.read_json(path)
        if isinstance(config, dict) and "kind" in config:
            return None
        alone = not (directory / audiocraft.WEIGHTS_FILE).is_file() or any(
            directory.glob("model*.safetensors")
        )
        if isinstance(config, dict) and "model_type" in config and alone:
            return "transformers"
    return "audiocraft" if (directory / audiocraft.WEIGHTS_FILE).is_file() else None


def fetch(hub_id: str) -> Path:
    """The directory of a language model of the hub; one that is not run here is refused before its weights come."""
    first = [
        layout._replace(patterns=("config.json",)) if layout is TRANSFORMERS else layout for layout in LAYOUTS
    ]
    directory = hub.fetch(hub_id, first)
    if layout_of(directory) == "transformers":
        musicgen.read_config(directory)
        directory = hub.fetch(hub_id, LAYOUTS)
    return directory


def read_release(directory: Path, text_encoder: str | None = None) -> Release:
    """A release in either layout, its tensors still in the files; what this package does not run is an InputError.

    text_encoder: directory or hub id of the T5 to use in place of its own.
    """
    if layout_of(directory) == "transformers":
        return musicgen.read(directory, text_encoder)
    return audiocraft.read(directory, text_encoder)
