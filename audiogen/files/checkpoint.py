"""Weights, model directories and the checkpoints of a run: safetensors and JSON, never pickle; whole or absent.

A model directory is `config.json` ({"kind", "format", "config", "info"}) with `model.safetensors`, plus
folders its owner names (`text/`, `codec/`). A checkpoint is `checkpoints/step_00001000/` of its run: `state.json` has
the structure and scalars, `state.safetensors` the tensors.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audiogen.config import short
from audiogen.errors import InputError
from audiogen.files.hub import PICKLES, pinned
from audiogen.files.pickles import read_pickle
from audiogen.files.tensors import match
from audiogen.files.writing import (
    StorageError,
    clean,
    publish,
    read_json,
    replacing,
    storing,
    temporary_path,
    write_bytes_atomic,
    write_json,
)

FORMAT = 1
STATE, TENSORS = "state.json", "state.safetensors"
CHECKSUMS = "checksums.json"  # CRC-32 of the two, beside them
EXPORTED = "exported"  # an empty file beside them, once the model of that step is written


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    stored = _storable(tensors)
    with replacing(path, sum(tensor.nbytes for tensor in stored.values())) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask allows; save_file's own are for their owner only
        save_file(stored, temporary, metadata)
        temporary.chmod(mode)


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two sharing memory (tied weights are stored twice, and load the same)."""
    stored: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    return stored


# ------------------------------------------------------------------------------------------ model directories


def save_model(
    directory: str | Path,
    kind: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model directory: tensors first, `config.json` last, so that a new one is whole or no model.

    Hub ids in config and info are written with their commits (`hub.pinned`).
    info: a free record of how it was made. dtype: that floats are stored in; float16 halves the file.
    """
    directory = Path(directory)
    if dtype is not None:
        tensors = {k: v.to("cpu", dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    write_tensors(directory / "model.safetensors", tensors)
    save_config(directory, kind, config, info)


def save_config(
    directory: str | Path, kind: str, config: Mapping[str, Any], info: Mapping[str, Any] | None = None
) -> None:
    """Write `config.json` as in `save_model`, after the weights, for a kind that keeps them in other files."""
    contents = pinned({"kind": kind, "format": FORMAT, "config": dict(config), "info": dict(info or {})})
    write_json(Path(directory) / "config.json", contents)


def copy_model(source: str | Path, target: str | Path) -> None:
    """Copy weights and config of a model directory, each file whole or not at all; the same files again do nothing."""
    for name in ("model.safetensors", "config.json"):
        data = (Path(source) / name).read_bytes()
        copy = Path(target) / name
        if not copy.is_file() or copy.read_bytes() != data:
            write_bytes_atomic(copy, data)


def read_config(
    directory: str | Path, kind: str | None = None, weights: str = "model.safetensors"
) -> dict[str, Any]:
    """`config.json` of a model directory, checked: {"kind", "format", "config", "info"}.

    `kind`, if given, is the one that is wanted ("codec", "token_lm"). weights: its file, which must be there.
    Everything that can be wrong with the directory is an `InputError` that names it.
    """
    directory, path = Path(directory), Path(directory) / "config.json"
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {what}; a model is a directory with config.json and model.safetensors")
    there = sorted(entry.name for entry in directory.iterdir() if entry.is_file())
    pickles = [name for name in there if name.endswith(PICKLES)]
    if pickles and weights not in there:
        raise InputError(
            f"{directory} holds a pickle ({pickles[0]}), which could run code when opened; only safetensors weights "
            "are read, so convert it first"
        )
    if lacking := [name for name in (weights, "config.json") if name not in there]:
        raise InputError(f"{directory} is not a model directory or was half-written: {lacking[0]} is missing")
    contents = read_json(path)
    if not isinstance(contents, dict) or not {"kind", "format", "config"} <= contents.keys():
        raise InputError(f"{path} is not audiogen's: it lacks the keys kind, format, config")
    if contents["format"] != FORMAT:
        stated = contents["format"]
        raise InputError(f"{path} has format {short(stated)}; this version reads {FORMAT}: update audiogen")
    if not isinstance(contents["kind"], str) or not isinstance(contents["config"], dict):
        raise InputError(f"{path} is damaged: kind should be a text and config a mapping; copy it again")
    if kind is not None and contents["kind"] != kind:
        raise InputError(
            f"{directory} holds a model of kind {short(contents['kind'])}; {kind!r} is needed here"
        )
    if not isinstance(contents.setdefault("info", {}), dict):
        raise InputError(f"{path} is damaged: info should be a mapping; copy it again")
    return contents


def load_tensors(directory: str | Path) -> dict[str, Tensor]:
    """The weights of a model directory, on the CPU."""
    return read_tensors(Path(directory) / "model.safetensors")


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A safetensors file, on the CPU; a missing or damaged one is an `InputError`."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: the directory is not whole") from None
    except (SafetensorError, OSError, RuntimeError) as error:  # the last one is torch's, which maps the file
        raise InputError(f"{path} is damaged or half-written ({error}); copy or train it again") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy tensors into a module, all of them and nothing else; what does not fit is named."""
    matches = match(module.state_dict(), tensors, str, where)
    module.load_state_dict({name: found.view() for name, found in matches.items()})


# ----------------------------------------------------------------------------------------- foreign weights


def _read_indexed(path: Path) -> dict[str, Tensor]:
    """The tensors of all files that a .safetensors.index.json names; InputError for one that is not where it says."""
    contents = read_json(path)
    index = contents.get("weight_map") if isinstance(contents, dict) else None
    if not isinstance(index, dict) or not all(
        isinstance(name, str) and name == Path(name).name for name in index.values()
    ):
        raise InputError(f"{path} is not an index: weight_map should give a file beside it for each tensor")
    files = {name: read_tensors(path.with_name(name)) for name in sorted(set(index.values()))}
    for name, file in index.items():
        if name not in files[file]:
            raise InputError(f"{path.with_name(file)} lacks {name}, which {path.name} says is there")
    return {name: files[file][name] for name, file in index.items()}


def weights_file(directory: Path, *names: str) -> Path:
    """The first of these files that a directory has; InputError where it has none."""
    for name in names:
        if (directory / name).is_file():
            return directory / name
    raise InputError(
        f"{directory} holds no weights: none of {', '.join(names)} is there; copy it again, or save the model again as "
        "safetensors"
    )


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, its index, or a pickle, there those under `key` where it is given.

    They are views of the mapped files: a page is read from the disk when it is first looked at, and `tensors.release`
    gives it back.
    """
    if ".safetensors" in path.name:
        return _read_indexed(path) if path.suffix == ".json" else read_tensors(path)
    found = read_pickle(path)
    if key is not None:
        found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise InputError(f"{path} lacks {key!r}; it is no checkpoint of this kind")
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; names with tensors are needed")
    return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def identity(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change with any name, dtype, shape or value of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------------------- checkpoints of a run


def save_state(directory: str | Path, state: Any) -> None:
    """Write nested dicts, lists, tuples of tensors and plain scalars; the directory appears whole or never.

    Dict keys are str or int. The write goes to a temporary directory beside, which is renamed at the end; a
    `kill -9` leaves at most that, and the next `save_state` removes it. Faults of the file system: `StorageError`.
    """
    directory = Path(directory)
    tensors: dict[str, Tensor] = {}
    temporary, old = temporary_path(directory), temporary_path(directory)
    with storing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        clean(directory.parent)
        try:
            temporary.mkdir()
            write_json(temporary / STATE, pack(state, tensors))
            write_tensors(temporary / TENSORS, tensors)
            write_json(temporary / CHECKSUMS, {name: crc32(temporary / name) for name in (STATE, TENSORS)})
            if (
                directory.exists()
            ):  # saved twice at one step: the old one may only go once the new one is whole
                os.replace(directory, old)
            publish(temporary, directory)
        except StorageError as error:
            raise StorageError(str(error).replace(temporary.name, directory.name)) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def load_state(directory: str | Path) -> Any:
    """What `save_state` wrote: equal values, dtypes, key types; tensors on the CPU.

    InputError where a file is missing or has not the checksum of its writing.
    """
    directory = Path(directory)
    if (directory / CHECKSUMS).exists():  # not in checkpoints of November 2026 and before
        checksums = read_json(directory / CHECKSUMS)
        for name in (STATE, TENSORS):
            if not isinstance(checksums, dict) or crc32(directory / name) != checksums.get(name):
                raise InputError(f"{directory / name} is damaged (wrong checksum)")
    structure, tensors = read_json(directory / STATE), read_tensors(directory / TENSORS)
    try:
        return unpack(structure, tensors)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{directory} is damaged: state.json and state.safetensors do not fit ({error})"
        ) from None


def crc32(path: Path) -> int:
    """The checksum of a file; InputError where it cannot be read."""
    checksum = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                checksum = zlib.crc32(block, checksum)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return checksum


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """JSON for a state; its tensors go into `tensors` under their path."""
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, Mapping):
        if not all(isinstance(key, (str, int)) for key in value):
            raise TypeError(f"state{path}: keys must be str or int")
        return {"dict": [[key, pack(item, tensors, f"{path}/{key}")] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{path}/{index}") for index, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state{path}: cannot be stored without pickle: {type(value).__name__}")


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state of which `pack` made this."""
    if not isinstance(packed, dict):
        return packed
    ((tag, value),) = packed.items()
    if tag == "tensor":
        return tensors[value]
    if tag == "dict":
        return {key: unpack(item, tensors) for key, item in value}
    items = [unpack(item, tensors) for item in value]
    return tuple(items) if tag == "tuple" else items


def step_dir(run: str | Path, step: int) -> Path:
    """Where a run keeps its state after `step` optimiser steps."""
    return Path(run) / "checkpoints" / f"step_{step:08d}"


def step_dirs(run: str | Path) -> list[tuple[int, Path]]:
    """(step, directory) of every whole checkpoint of a run, oldest first."""
    found = Path(run).glob("checkpoints/step_*")
    return sorted((int(path.name[5:]), path) for path in found if path.name[5:].isdecimal())


def latest(run: str | Path) -> tuple[int, Path] | None:
    """(step, directory) of the newest checkpoint, or None."""
    found = step_dirs(run)
    return found[-1] if found else None


def prune(run: str | Path, step: int, keep_last: int) -> None:
    """Delete all checkpoints but `keep_last`, at least one, up to `step`: later ones were damaged, and are undone."""
    found = step_dirs(run)
    kept = [path for number, path in found if number <= step][-keep_last:]
    for _, path in found:
        if path not in kept:
            doomed = temporary_path(path)
            with storing(path):
                os.replace(path, doomed)  # first, so that a kill in the deletion leaves no half checkpoint
            shutil.rmtree(doomed, ignore_errors=True)
