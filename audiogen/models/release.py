"""What a released language model is, whatever its layout: our config, and its tensors by our names, not yet loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.config import build
from audiogen.errors import InputError
from audiogen.lm.model import LMConfig
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Release:
    """A released language model; its tensors still lie in the file.

    tensors: TokenLM's names; several tensors of the file are one of ours, one after the other along dim 0.
    projection: weight [D, E] and bias [D] from the text encoder's width to the model's.
    dual_mono: the codebooks are those of two channels in turn. max_frames: what it generates in one piece.
    guidance: what it generates with by default; None where the release does not say.
    """

    lm: LMConfig
    text: TextConfig
    encoder: FrozenEncoder
    tensors: Mapping[str, Tensor | Sequence[Tensor]]
    projection: Mapping[str, Tensor]
    dual_mono: bool
    max_frames: int
    guidance: float | None


def lm_config(values: Mapping[str, Any], where: Path) -> LMConfig:
    """LMConfig from a release's values under our names; one that is impossible names the file."""
    return build(LMConfig, values, where=str(where))


def check_count(names: Mapping[str, Any], pattern: str, count: Any, key: str, where: Path) -> None:
    """Compare a count in the config with the numbers in the tensors' names, before anything of that size is made.

    pattern: regular expression whose group is the number, from 0.
    """
    found = {match[1] for name in names if (match := re.match(pattern, name))}
    if len(found) != count:
        raise InputError(
            f"{where}: {key} is {count!r}, but the tensors are those of {len(found)}; copy it again"
        )


def check_tensors(tensors: Mapping[str, Any], shapes: Shapes, where: Path) -> None:
    """Refuse a file whose tensors are not exactly those of its config; nothing is allocated for this."""
    problems = [f"missing {name}" for name in shapes if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in shapes]
    for name in shapes.keys() & tensors.keys():
        tensor = tensors[name]
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            problems.append(f"{name} is {kind}, should be a tensor of floats")
        elif tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name} is {list(tensor.shape)}, should be {list(shapes[name])}")
    if problems:
        problems.sort(key=lambda problem: problem.startswith("unexpected"))
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"{where}: tensors do not fit the config: {'; '.join(problems[:4])}{more}")


def whole(value: Any, key: str, where: Path, least: int = 1) -> int:
    """A whole number from a release's config."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1 or value < least:
        raise InputError(f"{where}: {key} is {value!r}; it must be a whole number of at least {least}")
    return int(value)


def identity_projection(width: int) -> dict[str, Tensor]:
    """The projection of a release whose text encoder is as wide as its language model, and which has none."""
    return {"weight": torch.eye(width), "bias": torch.zeros(width)}
