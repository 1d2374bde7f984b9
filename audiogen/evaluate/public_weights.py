"""Weights that other projects publish, read as plain tensors; no code in a file is ever run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.files import checkpoint, pickles

# What rebuilds NumPy's arrays and numbers from their bytes, and nothing else. Files of before 2023 name these by
# NumPy's old module; public CNN14 files need them, as they hold the sampler of the training beside the weights.
_ARRAY, _NUMBER = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_NUMPY: list[Any] = [np.ndarray, np.generic, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]
_NUMPY += [(_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
_NUMPY += [(_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A .safetensors or .npz file, or one written by `torch.save`, of any version -> its tensors by name, on the CPU.

    Of a training checkpoint `{"model": state_dict, ...}` only the model is returned. Raises InputError where the
    file is missing, damaged, or cannot be read without running code.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"{path} is {'a directory' if path.is_dir() else 'not there'}; give the weights file "
            "(.pth, .safetensors or .npz), downloaded beforehand"
        )
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path)
    contents = _read_arrays(path) if path.suffix == ".npz" else pickles.read_pickle(path, also=_NUMPY)
    for key in ("model", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict):
        raise InputError(
            f"{path} holds a {type(contents).__name__}; a state dict (names to tensors) is needed"
        )
    return {
        str(name): torch.as_tensor(value)
        for name, value in contents.items()
        if isinstance(value, (Tensor, np.ndarray))
    }


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except Exception as error:  # damage shows as any of a dozen errors of zip and NumPy
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read as arrays ({reason[:200]}); download it again") from None
