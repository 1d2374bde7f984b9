"""Which adapters (LoRA) are laid on a model, with which weights; and what their directories say. Without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from audiogen.errors import InputError
from audiogen.files import writing

KINDS = ("lora", "latent_lora")  # in config.json: of a token language model, of a latent-diffusion system


class Adapter(NamedTuple):
    """A directory with a saved adapter (of a latent system also its file), and the weight that its update has."""

    path: Path
    weight: float = 1.0


Adapters = str | Path | Sequence[str | Path | Adapter] | None


def parse(given: Adapters) -> list[Adapter]:
    """One adapter or several, each a path or "PATH:WEIGHT", as "runs/rain/best:0.7"; without a weight it is 1.

    What follows the last colon and is no number is a part of the path. InputError for a weight that is not finite.
    """
    if given is None:
        return []
    several = [given] if isinstance(given, (str, Path)) else given
    found = [each if isinstance(each, Adapter) else _weighted(str(each)) for each in several]
    for path, weight in found:
        if not math.isfinite(weight):
            raise InputError(f"the adapter {path} has the weight {weight}; give a number such as 0.7")
    return found


def _weighted(text: str) -> Adapter:
    path, _, weight = text.rpartition(":")
    try:
        return Adapter(Path(path), float(weight)) if path else Adapter(Path(text))
    except ValueError:
        return Adapter(Path(text))


def stated(path: Path) -> tuple[str | None, str | None]:
    """The kind of an adapter, one of KINDS, and the model it was trained on; None where its directory says neither."""
    file = path / "config.json"
    contents = writing.read_json(file) if file.is_file() else None
    if not isinstance(contents, dict) or contents.get("kind") not in KINDS:
        return None, None
    config = contents.get("config")
    base = config.get("base") if isinstance(config, dict) else None
    return contents["kind"], base if isinstance(base, str) else None
