"""Files that `torch.save` wrote, read as data: tensors in plain containers, and never code.

Other projects publish weights as .bin, .th, .pt or .pth. Each is a pickle, which could ask for any function to be
called; here it is read by torch's restricted reader, and what asks for more than data is refused by name.
"""

from __future__ import annotations

import re
import sys
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audiogen.errors import InputError

# What torch's reader says of a name that it will not look up or call; the name is the group.
_ASKS = re.compile(
    r"GLOBAL (\S+?) (?:was not|whose module)|unsupported GLOBAL (\S+)|class(?:es)? (\S+) which"
)
_SCALARS = (str, bytes, bool, int, float, complex, torch.dtype, torch.device)


def read_pickle(path: str | Path, also: Sequence[Any] = ()) -> Any:
    """The contents of a file written by `torch.save`: dicts, lists, tuples, numbers, strings and CPU tensors.

    Tensors of a zip file (torch 1.6 and later) are views of the mapped file: nothing is copied, and
    `tensors.release` gives their pages back. The older format, which has no checksums, is read into memory.

    also: further classes and functions that the file may name, as `torch.serialization.add_safe_globals` has them.

    Raises InputError, in one line that names the file, where it is missing, no such file, truncated, damaged (the
    checksums of a zip file are compared, so that one flipped bit is found; the tensor is named), or asks for more than
    data (what it asks for is named).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is {'a directory' if path.is_dir() else 'not there'}; give a weights file")
    with open(path, "rb") as file:
        records = _check_records(path) if file.read(4) == b"PK\x03\x04" else None
    mapped = records is not None and records.native
    try:
        with torch.serialization.safe_globals([*also]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # of its chances to read it
            contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # damage shows as any of a dozen errors of torch and its unpickler
        raise InputError(f"{path} {_reason(error)}") from None
    _check_plain(contents, path, tuple(kind for kind in also if isinstance(kind, type)))
    if records and records.damaged:
        name = _names(contents, records).get(records.damaged, records.damaged)
        raise InputError(f"{path} is damaged: {name} is not what was written; download it again")
    return contents


def named_tensors(state: Any, where: str | Path) -> dict[str, Tensor]:
    """A state dict, names to tensors, checked to be one. Others are an `InputError`."""
    if not isinstance(state, dict):
        raise InputError(f"{where} holds a {type(state).__name__}; names with tensors are needed")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"{where}: {name!r:.60} is a {type(value).__name__}; names with tensors are needed: a checkpoint of "
                "training must be exported first"
            )
    return state


class _Records(NamedTuple):
    """What the zip file says of itself: the tensors' records in file order, and the first that is damaged."""

    data: list[str]
    damaged: str | None
    native: bool  # bytes in this machine's order: they can be used in place


def _check_records(path: Path) -> _Records | None:
    """Compare every record with its checksum, which torch itself does not; None where the file was written without."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            if packed := [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]:
                raise InputError(
                    f"{path} is a compressed zip file ({packed[0]!r}); torch.save stores without, so unpack it"
                )
            if forged := [entry.filename for entry in entries if entry.file_size != entry.compress_size]:
                raise InputError(f"{path} is damaged: {forged[0]!r} has two sizes; download it again")
            if not any(entry.CRC for entry in entries):
                return None
            damaged = archive.testzip()
            orders = [archive.read(e) for e in entries if e.filename.endswith("/byteorder")]
    except InputError:
        raise
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download it again") from None
    data = [entry.filename for entry in entries if "/data/" in entry.filename and entry.file_size]
    if damaged and damaged not in data:
        raise InputError(f"{path} is damaged: {damaged!r} is not what was written; download it again")
    return _Records(data, damaged, all(order == sys.byteorder.encode() for order in orders))


def _check_plain(contents: Any, path: Path, kinds: tuple[type, ...]) -> None:
    """Refuse all but tensors with values in plain containers, at any depth."""
    for key, value in _walk(contents):
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise InputError(f"{path}: {key} is no plain tensor ({value.layout}, {value.device})")
        elif not (value is None or isinstance(value, (*_SCALARS, dict, list, tuple, set, *kinds))):
            raise InputError(
                f"{path}: {key} asks for {type(value).__module__}.{type(value).__qualname__}; only tensors, numbers "
                "and strings in plain containers are read"
            )


def _walk(contents: Any) -> Iterator[tuple[str, Any]]:
    """(path such as best_state.emb.0.weight, value) of everything inside; what appears twice is given once."""
    waiting, seen = [("", contents)], set()
    while waiting:
        key, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield key or "its contents", value
        below = f"{key}." if key else ""
        if isinstance(value, dict):
            waiting += [(f"{below}{name}", item) for name, item in value.items()]
        elif isinstance(value, (list, tuple, set)):
            waiting += [(f"{below}{index}", item) for index, item in enumerate(value)]


def _names(contents: Any, records: _Records) -> dict[str, str]:
    """Record -> name of its tensor: storages lie in memory in the order of their records in the file."""
    names: dict[int, str] = {}
    for key, value in _walk(contents):
        if isinstance(value, Tensor):
            names.setdefault(value.untyped_storage().data_ptr(), key)
    if len(names) != len(records.data) or not records.native:
        return {}
    return dict(zip(records.data, (names[address] for address in sorted(names)), strict=True))


def _reason(error: Exception) -> str:
    """What is wrong with a file, from torch's error, without its advice to programmers."""
    message = "".join(c if c.isprintable() else " " for c in " ".join(str(error).split()))
    if asked := _ASKS.search(message):
        name = next(group for group in asked.groups() if group)
        return f"asks for {name.strip('`')[:100]}, which is more than data; store it as safetensors"
    if type(error).__name__ == "UnpicklingError":
        return "is damaged or no file of torch.save; download it again"
    return f"is damaged or no file of torch.save ({message[:160] or type(error).__name__}); download it again"
