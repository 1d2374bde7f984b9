"""Checkpoints of a training run: `checkpoints/step_00001000/`, each a `state.json` and a `state.safetensors`.

The first has structure and scalars, the second tensors. A checkpoint is whole or absent.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.files.checkpoint import (
    clean,
    publish,
    read_json,
    read_tensors,
    temporary_path,
    write_json,
    write_tensors,
)


def save_state(directory: str | Path, state: Any) -> None:
    """Write nested dicts, lists, tuples of tensors and plain scalars; the directory appears whole or never.

    Dict keys are str or int. The write goes to a temporary directory beside, which is renamed at the end; a
    `kill -9` leaves at most that, and the next `save_state` removes it.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    clean(directory.parent)
    tensors: dict[str, Tensor] = {}
    temporary = temporary_path(directory)
    temporary.mkdir()
    write_json(temporary / "state.json", _pack(state, "", tensors))
    write_tensors(temporary / "state.safetensors", tensors)
    if directory.exists():  # saved twice at one step: the old one may only go once the new one is whole
        old = temporary_path(directory.with_name(f"old-{directory.name}"))
        os.replace(directory, old)
        publish(temporary, directory)
        shutil.rmtree(old)
    else:
        publish(temporary, directory)


def load_state(directory: str | Path) -> Any:
    """What `save_state` wrote: equal values, dtypes, key types; tensors on the CPU."""
    directory = Path(directory)
    return _unpack(read_json(directory / "state.json"), read_tensors(directory / "state.safetensors"))


def _pack(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors go into `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"state{path}: keys must be str or int")
        return {"dict": [[key, _pack(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, f"{path}/{index}", tensors) for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state{path}: cannot be stored without pickle: {type(value).__name__}")


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(packed, dict):
        return packed
    ((tag, value),) = packed.items()
    if tag == "tensor":
        return tensors[value]
    if tag == "dict":
        return {key: _unpack(item, tensors) for key, item in value}
    items = [_unpack(item, tensors) for item in value]
    return tuple(items) if tag == "tuple" else items


def step_dir(run: str | Path, step: int) -> Path:
    """Where a run keeps its state after `step` optimiser steps."""
    return Path(run) / "checkpoints" / f"step_{step:08d}"


def step_dirs(run: str | Path) -> list[tuple[int, Path]]:
    """(step, directory) of every whole checkpoint of a run, oldest first."""
    folder = Path(run) / "checkpoints"
    if not folder.is_dir():
        return []
    found = [(re.fullmatch(r"step_(\d+)", path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in found if match)


def latest(run: str | Path) -> tuple[int, Path] | None:
    """(step, directory) of the newest checkpoint, or None."""
    found = step_dirs(run)
    return found[-1] if found else None


def prune(run: str | Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` checkpoints."""
    found = step_dirs(run)
    for _, path in found[: max(0, len(found) - keep_last)]:
        doomed = temporary_path(
            path
        )  # renamed first, so that a kill in the deletion leaves no half checkpoint
        os.replace(path, doomed)
        shutil.rmtree(doomed)
