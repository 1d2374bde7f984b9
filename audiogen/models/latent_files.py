"""What the readers of public checkpoints share: files with tensors, settings, and filling a module by public names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from audiogen.config import load_recipe, plain
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.pickles import read_pickle
from audiogen.models.latent_names import Source

T = TypeVar("T")
_REQUIRED = object()


@dataclass(frozen=True)
class Released:
    """A system as its authors released it, in evaluation mode, float32.

    name: of its kind, as `process.PROCESSES` has them. process: what the files say of its process, by the names of
    `process.ProcessConfig`. notes: what was chosen where a file leaves a choice, a line each. sampling: how it is
    sampled unless told otherwise; None is as its authors do.
    """

    system: LatentSystem
    name: str
    process: dict[str, Any]
    notes: tuple[str, ...] = ()
    sampling: Sampling | None = None


class Settings:
    """Values of a configuration by dotted key; what is missing or of another type is an InputError that names it."""

    def __init__(self, contents: Any, where: Path):
        if not isinstance(contents, Mapping):
            raise InputError(f"{where} holds no settings; copy it again")
        self.contents, self.where = contents, where

    def get(self, key: str, kind: type[T], default: Any = _REQUIRED) -> T:
        """The value at `key` (a.b.c); an int passes as float."""
        value: Any = self.contents
        for part in key.split("."):
            value = value.get(part, _REQUIRED) if isinstance(value, Mapping) else _REQUIRED
            if value is _REQUIRED:
                if default is _REQUIRED:
                    raise InputError(f"{self.where} lacks {key}; copy it again")
                return default
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{self.where}: {key} is {value!r}; a {kind.__name__} is needed")
        return value

    def wholes(self, key: str, default: Any = _REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.get(key, list, default)
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in value):
            raise InputError(f"{self.where}: {key} is {value!r}; whole numbers are needed")
        return tuple(value)

    def below(self, key: str) -> Settings:
        """The settings under `key`."""
        return Settings(self.get(key, dict), self.where)


def read_settings(path: Path) -> Settings:
    """A YAML or JSON file; JSON may hold comments and trailing commas, as LAFMA's do."""
    if not path.is_file():
        raise InputError(f"{path} is missing: the released files are not whole; copy it again")
    if path.suffix in (".yaml", ".yml"):
        return Settings(plain(load_recipe(str(path))), path)
    try:
        text = path.read_text(encoding="utf-8")
        return Settings(json.loads(_strict(text)), path)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}; copy it again") from None


def _strict(text: str) -> str:
    """JSON without comments and trailing commas; strings stay."""
    string = r'"(?:\\.|[^"\\])*"'
    text = re.sub(rf"({string})|//[^\n]*|/\*.*?\*/", lambda m: m[1] or " ", text, flags=re.S)
    return re.sub(rf"({string})|,(?=\s*[}}\]])", lambda m: m[1] or "", text)


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file or a pickle, those under `key` where it is given."""
    if path.suffix == ".safetensors":
        return checkpoint.open_tensors(path)
    found = read_pickle(path)
    if key is not None:
        if not isinstance(found, dict) or not isinstance(found.get(key), dict):
            raise InputError(f"{path} lacks {key!r}; it is no checkpoint of this kind")
        found = found[key]
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; names with tensors are needed")
    return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def empty(make: Callable[[], T]) -> T:
    """What `make` gives, without memory for its weights; `fill` gives it some."""
    with checkpoint.unfilled():
        return make()


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    public: Callable[[str], Source],
    where: str | Path,
    own: Mapping[str, Tensor] | None = None,
    ignore: Iterable[str] = (),
) -> None:
    """Give a module of `empty` the tensors of a public file, float32, all of them and nothing else.

    public: our name -> the file's. own: what the file has no tensor for, such as a vocoder's mean. ignore: names in the
    file that are no weights. Weight norm is folded where we have a plain weight; a 1x1 convolution may be a linear
    layer. What is missing, left over or of another shape is an InputError that names it.
    """
    parts: dict[str, Tensor] = dict(own or {})
    used, missing = set(ignore), []
    for name, target in module.state_dict().items():
        if name in parts:
            continue
        source = public(name)
        stem = source if isinstance(source, str) else source[0]
        found = tensors.get(stem)
        if found is not None:
            used.add(stem)
        elif stem.endswith(".weight") and f"{stem}_v" in tensors and f"{stem}_g" in tensors:
            used |= {f"{stem}_v", f"{stem}_g"}
            found = _fold(tensors[f"{stem}_g"], tensors[f"{stem}_v"])
        else:
            missing.append(stem)
            continue
        if not isinstance(source, str):
            found = found.chunk(source[2])[source[1]] if len(found) % source[2] == 0 else found[:0]
        if found.dim() != target.dim() and found.numel() == target.numel():
            found = found.reshape(target.shape)  # [F, 1] for [F], [D, D, 1, 1] for [D, D], [1, D] for [D]
        parts[name] = found
    if unexpected := [name for name in tensors if name not in used]:
        missing += [f"nothing of ours for {name}" for name in unexpected]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise InputError(
            f"{where} does not fit its configuration: no {'; no '.join(missing[:3])}{more}".replace(
                "no nothing", "nothing"
            )
        )
    checkpoint.assign(module, parts, where, dtype=torch.float32)
    assert not any(buffer.is_meta for buffer in module.buffers()), "a buffer outside of the state dict"
    module.eval()


def _fold(g: Tensor, v: Tensor) -> Tensor:
    """Weight norm's length g and direction v -> the weight v g / |v|, in float32."""
    v = v.float()
    return v * (g.float() / torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True))
