"""Tensors of published files -> a module of ours: whether names, shapes and sizes fit, and filling it.

Nothing of a network's size is allocated before all names and shapes are found to fit. Modules are made by `empty`, on
the meta device; `fill` gives them one tensor after the other, so that a file that is mapped into memory is never there
as a whole beside the finished weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.pickles import read_pickle
from audiogen.models.settings import SIZE

T = TypeVar("T")
# Weight norm's length g and direction v in place of a name's last part, in torch's two spellings.
NORMED = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


class Source(NamedTuple):
    """Where a file has one of our tensors: in `names`, joined along dim 0, the parts first to last of `of` equal ones.

    Queries of a joined matrix are Source(("to_qkv",), 0, 1, 3), keys and values together Source(("to_qkv",), 1, 3, 3).
    """

    names: tuple[str, ...]
    first: int = 0
    last: int = 1
    of: int = 1


class Match(NamedTuple):
    """Tensors of a file that make one of ours: joined along dim 0, or weight norm's g and v, if `normed`.

    They are views of the file's. names: those in the file, for messages.
    """

    names: tuple[str, ...]
    tensors: list[Tensor]
    normed: bool = False

    def value(self) -> Tensor:
        """The tensor in memory of its own; in float32, if it is of floats."""
        parts = [
            part.detach().float() if part.is_floating_point() else part.detach() for part in self.tensors
        ]
        if self.normed:
            return fold(*parts)
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone(memory_format=torch.contiguous_format)


# ---------------------------------------------------------------------------------------------------- sizes


def check_sizes(where: str | Path, num_tensors: int, num_layers: int, sizes: Iterable[int]) -> None:
    """Refuse what would run for minutes, or take all memory, only to be found not to fit.

    num_layers: of the network, each of which has at least one tensor. sizes: of layers, products included.
    """
    wide, allowed = list(sizes), int(SIZE.high)
    if not 0 <= num_layers <= num_tensors or not all(0 <= size <= allowed for size in wide):
        raise InputError(
            f"{where}: its configuration asks for {num_layers} layers, {min(wide):g} to {max(wide):g} wide, but it "
            f"holds {num_tensors} tensors, and {allowed} is the widest; they do not belong together, copy it again"
        )


def whole_numbers(config: Any) -> Iterator[int]:
    """All whole numbers in a dataclass and what is nested in it, but for the sample rate: sizes to check."""
    if dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            if field.name != "sample_rate":
                yield from whole_numbers(getattr(config, field.name))
    elif isinstance(config, (tuple, list)):
        for item in config:
            yield from whole_numbers(item)
    elif type(config) is int:
        yield config


def empty(make: Callable[[], T], where: str | Path) -> T:
    """What `make` gives, without memory for its weights; InputError where its sizes make no network."""
    try:
        with checkpoint.unfilled():
            return make()
    except InputError:
        raise
    except (RuntimeError, ValueError, OverflowError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{where}: no network has the sizes of its configuration: {reason}") from None


# ---------------------------------------------------------------------------------------------------- files


def read_weights(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, its index, or a pickle, there those under `key` where it is given."""
    if ".safetensors" in path.name:
        return checkpoint.open_tensors(path)
    found = read_pickle(path)
    if key is not None:
        found = found.get(key) if isinstance(found, dict) else None
        if not isinstance(found, dict):
            raise InputError(f"{path} lacks {key!r}; it is no checkpoint of this kind")
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; names with tensors are needed")
    return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Those whose names begin with `prefix`, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


# ------------------------------------------------------------------------------------------------ the check


def match(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Any],
    source: Callable[[str], str | Source],
    where: str | Path,
    ignore: Iterable[str] = (),
) -> dict[str, Match]:
    """The tensors of a file for each of ours, checked: all of them, and nothing else; nothing is allocated.

    own: a state dict, on any device. source: our name -> the file's. ignore: names in the file that are no weights.
    Weight norm is accepted where we have a plain weight; dimensions of 1 may be there or not (a linear layer for a 1x1
    convolution). InputError names what is missing, left over, of another shape or kind, or without as many values as
    its shape says.
    """
    matches: dict[str, Match] = {}
    problems: list[str] = []
    used = set(ignore)
    for name, target in own.items():
        wanted = source(name)
        wanted = Source((wanted,)) if isinstance(wanted, str) else wanted
        names, normed = _names(wanted, tensors)
        used.update(names)
        if absent := [part for part in names if part not in tensors]:
            problems.append(f"missing {absent[0]}")
            continue
        parts = [tensors[part] for part in names]
        broken = [
            f"{part} is {describe(found)}, not a tensor of {_kind(target)}"
            for part, found in zip(names, parts, strict=True)
            if not is_whole(found) or _kind(target) not in (_kind(found), "flags")
        ]
        fitting = None if broken else _fitting(parts, wanted, normed, list(target.shape))
        if fitting is None:
            shapes = " and ".join(describe(part) for part in parts[:3])
            problems += broken or [f"{names[0]} is {shapes}, should make {list(target.shape)}"]
        else:
            matches[name] = Match(names, fitting, normed)
    problems += [f"unexpected {name}" for name in tensors if name not in used]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"weights of {where} do not fit their config: {'; '.join(problems[:4])}{more}")
    return matches


def shaped(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """What `match` takes as our tensors, from a table of names and shapes: floats without memory."""
    return {name: torch.empty(tuple(shape), device="meta") for name, shape in shapes.items()}


def _kind(tensor: Tensor) -> str:
    if tensor.dtype is torch.bool:
        return "flags"  # for which any numbers do: EnCodec's are floats in public files
    return "floats" if tensor.is_floating_point() else "whole numbers"


def _names(source: Source, tensors: Mapping[str, Any]) -> tuple[tuple[str, ...], bool]:
    """The names of a source as the file has them, and whether they are weight norm's two."""
    name = source.names[0]
    if name not in tensors and name.endswith(".weight"):
        stem = name.removesuffix(".weight")
        for g, v in NORMED:
            if stem + g in tensors or stem + v in tensors:
                return (stem + g, stem + v), True
    return source.names, False


def _fitting(parts: list[Tensor], source: Source, normed: bool, shape: list[int]) -> list[Tensor] | None:
    """Views of the parts that make a tensor of that shape, or None where they do not."""
    if normed:
        g, v = (
            parts  # g has one number for each row of v: a single one would be taken for all rows without a word
        )
        fits = v.dim() > 1 and list(g.shape) == [len(v)] + [1] * (v.dim() - 1)
        return parts if fits and _squeezed(v.shape) == _squeezed(shape) else None
    if len(parts) == 1 and source.of == 1:
        return parts if _squeezed(parts[0].shape) == _squeezed(shape) else None
    if any(not part.dim() or part.shape != parts[0].shape for part in parts):
        return None
    if source.of > 1:
        rows, rest = divmod(len(parts[0]), source.of)
        if rest or len(parts) > 1:
            return None
        parts = [parts[0][rows * source.first : rows * source.last]]
    made = [sum(len(part) for part in parts), *parts[0].shape[1:]]
    return parts if _squeezed(made) == _squeezed(shape) else None


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def is_whole(tensor: Any) -> bool:
    """Whether this is a plain tensor with its numbers in memory: a forged one may claim any size over a few bytes."""
    if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
        return False
    if tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def describe(tensor: Any) -> str:
    """A tensor's shape for a message, or what it is instead of a plain tensor of floats."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"{list(tensor.shape)}{kind}" + ("" if is_whole(tensor) else " without as many values")


# -------------------------------------------------------------------------------------------------- filling


def fill(
    module: nn.Module,
    tensors: Mapping[str, Any],
    source: Callable[[str], str | Source],
    where: str | Path,
    *,
    own: Mapping[str, Tensor] | None = None,
    ignore: Iterable[str] = (),
    device: str | torch.device = "cpu",
) -> None:
    """Give a module of `empty` the tensors of a published file, checked by `match`; floats become float32.

    own: what the file has no tensor for, such as a vocoder's mean. One tensor at a time is copied, or folded from
    weight norm, and its mapped pages are given back. A value that is not finite is an InputError.
    """
    targets, given = module.state_dict(), dict(own or {})
    wanted = {name: target for name, target in targets.items() if name not in given}
    filled = {name: tensor.to(device) for name, tensor in given.items()}
    for name, found in match(wanted, tensors, source, where, ignore).items():
        value = found.value().reshape(targets[name].shape)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{where} is damaged: {found.names[-1]} holds values that are not finite; copy it again"
            )
        if targets[name].dtype is torch.bool:
            value = value != 0
        filled[name] = value.to(device)
        for part in found.tensors:
            checkpoint.release(part)
    module.load_state_dict(filled, assign=True)
    assert not any(buffer.is_meta for buffer in module.buffers()), "a buffer outside of the state dict"
    module.eval()


def fold(g: Tensor, v: Tensor) -> Tensor:
    """Weight norm's length g [D, 1 ...] and direction v [D, ...], float32 -> the weight v g / |v|.

    In this order of operations, so that a weight that was written as g = |v|, v comes back bit for bit.
    """
    return v * (g / length(v))


def length(v: Tensor) -> Tensor:
    """|v| over all dimensions but the first, kept as 1: weight norm's g of a weight that is its own direction."""
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)
