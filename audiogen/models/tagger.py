"""Tagger model directories: load one ready for inference, save one.

A tagger's identity is the hash of its weights: figures of two taggers do not compare.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from audiogen import config
from audiogen.files import checkpoint
from audiogen.models.find import find
from audiogen.tagger.model import Tagger, TaggerConfig

KIND = "tagger"


def load_tagger(name_or_dir: str | Path = "tagger_tiny", device: str | torch.device = "cpu") -> Tagger:
    """A bundled name or a model directory -> a frozen tagger in eval mode, with `name` and `identity`.

    Raises InputError where the directory is missing, damaged, or of another kind.
    """
    path = find(name_or_dir).check(KIND).path
    tagger = Tagger(config.build(TaggerConfig, checkpoint.read_config(path, KIND)["config"], where="config"))
    checkpoint.load_into(tagger, checkpoint.load_tensors(path), path)
    tagger.name, tagger.identity = path.name, checkpoint.identity(tagger.state_dict())
    return tagger.eval().requires_grad_(False).to(device)


def save_tagger(
    directory: str | Path,
    tagger: Tagger,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory; `info` is a free record of how the tagger was trained.

    dtype: float16 halves the file; weights are float32 again once loaded.
    """
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tagger.state_dict().items()}
    checkpoint.save_model(Path(directory), KIND, config.to_plain(tagger.config), tensors, dict(info or {}))
