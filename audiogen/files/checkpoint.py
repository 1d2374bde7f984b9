"""Weights and model directories: safetensors and JSON, never pickle; whole or absent.

A model directory is `config.json` ({"kind", "format", "config", "info"}) with `model.safetensors`, plus
folders its owner names (`text/`, `codec/`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import mmap
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiogen.errors import InputError

FORMAT = 1
PICKLES = (".bin", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".pickle")
RELEASED_BYTES = 2**20  # tensors of a file from which on their memory is given back
TEMPORARY = ".writing-"  # prefix of names that a finished write never has


# ---------------------------------------------------------------------------------------------- atomic writes


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that readers, and we after a crash, see all of it or what was there before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    publish(temporary, path)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """A JSON file; a missing or damaged one is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a huge number
        raise InputError(f"{path} cannot be read: {error}; copy it or train again") from None


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    temporary.touch()
    mode = temporary.stat().st_mode  # what the umask allows; save_file's own files are for their owner only
    save_file(_storable(tensors), temporary, metadata)
    temporary.chmod(mode)
    _fsync(temporary)
    publish(temporary, path)


def clean(folder: str | Path) -> None:
    """Remove what interrupted writes left in a folder and the folders in it."""
    for path in list(Path(folder).rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where to write what `publish` then puts in the place of `path`."""
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its name, at once and for good."""
    os.replace(temporary, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
) -> None:
    """Write a model directory: tensors first, `config.json` last, so that a new one is whole or no model."""
    directory = Path(directory)
    write_tensors(directory / "model.safetensors", tensors)
    contents = {"kind": kind, "format": FORMAT, "config": dict(config), "info": dict(info or {})}
    write_json(directory / "config.json", contents)


def copy_model(source: str | Path, target: str | Path) -> None:
    """Copy weights and config of a model directory, each file whole or not at all; the same files again do nothing."""
    for name in ("model.safetensors", "config.json"):
        data = (Path(source) / name).read_bytes()
        copy = Path(target) / name
        if not copy.is_file() or copy.read_bytes() != data:
            write_bytes_atomic(copy, data)


def read_config(directory: str | Path, kind: str | None = None) -> dict[str, Any]:
    """`config.json` of a model directory, checked: {"kind", "format", "config", "info"}.

    `kind`, if given, is the one that is wanted ("codec", "token_lm"). Everything that can be wrong with the
    directory is an `InputError` that names it.
    """
    directory = Path(directory)
    if not directory.exists():
        raise InputError(f"model directory {directory} does not exist")
    if not directory.is_dir():
        raise InputError(
            f"{directory} is a file; a model is a directory with config.json and model.safetensors"
        )
    path = directory / "config.json"
    weights = directory / "model.safetensors"
    if not weights.is_file():
        pickles = sorted(entry.name for entry in directory.iterdir() if entry.suffix in PICKLES)
        if pickles:
            raise InputError(
                f"{directory} holds a pickle ({pickles[0]}), which could run code when opened; "
                "only safetensors weights are read, so convert it first"
            )
        raise InputError(
            f"{directory} is not a model directory or was half-written: model.safetensors is missing"
        )
    if not path.is_file():
        raise InputError(f"{directory} is not a model directory or was half-written: config.json is missing")
    contents = read_json(path)
    if not isinstance(contents, dict) or not {"kind", "format", "config"} <= contents.keys():
        raise InputError(f"{path} is not audiogen's: it lacks the keys kind, format, config")
    if contents["format"] != FORMAT:
        raise InputError(
            f"{path} has format {contents['format']!r}; this version reads {FORMAT}: update audiogen"
        )
    if kind is not None and contents["kind"] != kind:
        raise InputError(f"{directory} holds a model of kind {contents['kind']!r}; {kind!r} is needed here")
    contents.setdefault("info", {})
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
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is damaged or half-written ({error}); copy or train the model again"
        ) from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy tensors into a module, all of them and nothing else; what does not fit is named."""
    _check_fit(module, {name: list(tensor.shape) for name, tensor in tensors.items()}, where)
    module.load_state_dict(dict(tensors))


def _check_fit(module: nn.Module, shapes: Mapping[str, list[int]], where: str | Path) -> None:
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in shapes]
    problems += [f"unexpected {name}" for name in shapes if name not in own]
    problems += [
        f"{name} is {shapes[name]}, should be {list(own[name].shape)}"
        for name in own
        if name in shapes and shapes[name] != list(own[name].shape)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise InputError(f"weights of {where} do not fit their config: {'; '.join(problems[:5])}{more}")


# ------------------------------------------------------------------------------------------- lean loading


def open_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of all files that a .safetensors.index.json names; nothing is copied.

    They are views of the mapped files: a page is read from the disk when it is first looked at, and `release` gives
    it back. A missing or damaged file, or a tensor that is not where the index says, is an `InputError`.
    """
    path = Path(path)
    if path.suffix != ".json":
        return read_tensors(path)  # safetensors maps the file for the CPU
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


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules that are made inside have no memory for their weights (the meta device), for `assign` to fill."""
    with torch.device("meta"), _NoInitialValues():
        yield


class _NoInitialValues(TorchFunctionMode):
    """Leaves out what only draws values: on the meta device, torch imports its compiler for a `normal_`, a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def assign(
    module: nn.Module,
    parts: Mapping[str, Tensor | Sequence[Tensor]],
    where: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Fill a module that was made `unfilled`: at most the finished weights and one tensor are in memory.

    parts: for each name of the module's state dict its tensor, or several that are joined along dim 0 in their order;
        usually views of mapped files, whose pages are given back one tensor after the other.
    dtype: of the floating-point tensors; None keeps what each has in `parts`.

    The module gets tensors of its own even where device and dtype are the same already: mapped memory is a file's.
    Names, shapes and kinds (floating or not) are checked before anything is allocated; what does not fit, or holds
    values that are not finite, is an `InputError` that names it and `where`.
    """
    check_parts(module, parts, where)
    own = module.state_dict(keep_vars=True)
    filled: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors = _sequence(part)
        final = own[name].dtype
        if final.is_floating_point:
            final = dtype or functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
        filled[name] = _copied(tensors, name, where, torch.empty(own[name].shape, dtype=final, device=device))
        if isinstance(own[name], nn.Parameter):
            filled[name] = nn.Parameter(filled[name], own[name].requires_grad)
    module.load_state_dict(filled, assign=True)
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # cuDNN wants them in one piece


def check_parts(module: nn.Module, parts: Mapping[str, Tensor | Sequence[Tensor]], where: str | Path) -> None:
    """Raise InputError unless `parts`, as in `assign`, are exactly the tensors of a module on any device."""
    joined = {name: _sequence(part) for name, part in parts.items()}
    _check_fit(module, {name: _joined_shape(tensors) for name, tensors in joined.items()}, where)
    own = module.state_dict(keep_vars=True)
    for name, tensors in joined.items():
        for part in tensors:
            if part.is_floating_point() != own[name].is_floating_point():
                raise InputError(f"{name} of {where} is {part.dtype}, should be like {own[name].dtype}")


def read_rows(
    parts: Mapping[str, Tensor | Sequence[Tensor]], name: str, where: str | Path, num_rows: int
) -> Iterator[Tensor]:
    """One of the parts of `assign`, checked, as float32 copies of `num_rows` rows at a time; the last has the rest.

    No more than these rows is in memory, for mapped pages are given back.
    """
    held = torch.empty(0)  # less than a block, where one of several tensors ended
    for tensor in _sequence(parts[name]):
        _check_finite(tensor, name, where)
        first = 0
        while first < len(tensor):
            more = tensor.detach()[first : first + num_rows - len(held)].float()
            first += len(more)
            held = torch.cat([held, more]) if len(held) else more.clone()
            if len(held) == num_rows:
                yield held
                held = held[:0]
        release(tensor)
    if len(held):
        yield held


def _sequence(part: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [part] if isinstance(part, Tensor) else part


def _joined_shape(tensors: Sequence[Tensor]) -> list[int]:
    """The shape along dim 0, [0] where the others differ (no parameter has that shape)."""
    rest = {tuple(part.shape[1:]) for part in tensors}
    if len(tensors) == 1:
        return list(tensors[0].shape)
    if len(rest) != 1 or any(part.dim() == 0 for part in tensors):
        return [0]
    return [sum(part.shape[0] for part in tensors), *rest.pop()]


def _copied(tensors: Sequence[Tensor], name: str, where: str | Path, whole: Tensor) -> Tensor:
    """`whole`, filled with the tensors along dim 0; their mapped pages are given back."""
    targets = [whole] if len(tensors) == 1 else whole.split([len(part) for part in tensors])
    for target, part in zip(targets, tensors, strict=True):
        _check_finite(part, name, where)
        target.copy_(part.detach())
        release(part)
    return whole


def _check_finite(tensor: Tensor, name: str, where: str | Path) -> None:
    """By the smallest and the largest value, where not-a-number wins; unlike `isfinite`, that takes no memory."""
    if tensor.is_floating_point() and tensor.numel():
        low, high = tensor.detach().aminmax()
        if not low.isfinite() & high.isfinite():
            raise InputError(f"{where} is damaged: {name} holds values that are not finite; copy it again")


def release(tensor: Tensor) -> None:
    """Give back the memory behind a tensor that is a view of a mapped file; it is read again if it is looked at again.

    Only on Linux, and nothing happens to a tensor in memory of its own, or to a small one: looking for its file takes a
    millisecond, and a model's small ones come to little. What was written to the mapped tensor is lost.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu" or tensor.nbytes < RELEASED_BYTES:
        return
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    end = start + (last + 1) * tensor.element_size()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, _, _, inode = line.split(maxsplit=5)[:5]
        first, beyond = (int(address, 16) for address in addresses.split("-"))
        if first <= start < beyond:
            if inode != "0":  # anonymous memory would be zeroed: it has no file to come back from
                start -= start % mmap.PAGESIZE
                length = min(end, beyond) - start
                ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
            return


def identity(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that change with any name, dtype, shape or value of the tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]
