"""Tensors of files -> a module: whether names, shapes and sizes fit, and filling it.

Nothing of a network's size is allocated before all names and shapes are found to fit. Modules are made by `empty`, on
the meta device; `fill` gives them one tensor after the other, so that a file that is mapped into memory is never there
as a whole beside the finished weights.
"""

from __future__ import annotations

import ctypes
import dataclasses
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from audiogen.errors import InputError

T = TypeVar("T")
WIDEST = 2**18  # of one size of a network; a product of three such sizes is below 2**63
MADE = 4  # the most tensors that making a network may take for each one of its file; measured are 1 to 2.1
RELEASED_BYTES = 2**20  # tensors of a file from which on their memory is given back
# Weight norm's length g and direction v in place of a name's last part, in torch's two spellings.
NORMED = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


class Source(NamedTuple):
    """Where a file has one of our tensors: in `names`, joined along dim 0, the parts first to last of `of` equal ones.

    Queries of a joined matrix are Source(("to_qkv",), 0, 1, 3), keys and values together Source(("to_qkv",), 1, 3, 3).
    order: of the parts of such a matrix, where it is another one in the file: the place there of each of ours.
    """

    names: tuple[str, ...]
    first: int = 0
    last: int = 1
    of: int = 1
    order: tuple[int, ...] = ()


class Match(NamedTuple):
    """Tensors of a file that make one of ours: joined along dim 0, or weight norm's g and v, if `normed`.

    They are views of the file's. names: those in the file, for messages. shape: of ours.
    """

    names: tuple[str, ...]
    tensors: list[Tensor]
    shape: torch.Size
    normed: bool = False

    def value(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor in memory of its own; in `dtype`, if it is of floats."""
        parts = [part.detach() for part in self.tensors]
        if self.normed:
            return fold(*(part.float() for part in parts)).to(dtype).reshape(self.shape)
        dtype = dtype if parts[0].is_floating_point() else parts[0].dtype
        if len(parts) > 1:
            return torch.cat(parts).to(dtype).reshape(self.shape)
        return parts[0].to(dtype, copy=True, memory_format=torch.contiguous_format).reshape(self.shape)

    def view(self) -> Tensor:
        """The same as a view of the file's where that is one tensor, in its dtype; else as `value`."""
        return self.tensors[0].detach().reshape(self.shape) if len(self.tensors) == 1 else self.value()

    def rows(self, num_rows: int, where: str | Path) -> Iterator[Tensor]:
        """The same as float32 copies of `num_rows` rows at a time; the last has the rest.

        No more than these rows is in memory, or one weight where several tensors are joined.
        """
        whole = self.view()
        _check_finite(whole, self.names[-1], where)
        for rows in whole.split(num_rows):
            yield rows.to(torch.float32, copy=True)
        self.release()

    def release(self) -> None:
        """Give back the mapped pages."""
        for part in self.tensors:
            release(part)


# ---------------------------------------------------------------------------------------------------- sizes


def check_sizes(where: str | Path, config: Any) -> None:
    """Refuse whole numbers, alone or anywhere in a dataclass, whose products could overflow, or take all memory."""
    if dataclasses.is_dataclass(config):
        names = [field.name for field in dataclasses.fields(config) if field.name != "sample_rate"]
        config = [getattr(config, name) for name in names]
    if isinstance(config, (tuple, list)):
        for item in config:
            check_sizes(where, item)
    elif type(config) is int and not 0 <= config <= WIDEST:
        raise InputError(f"{where}: its configuration asks for a size of {config:g}; {WIDEST} is the largest")


def empty(make: Callable[[], T], where: str | Path, num_tensors: int | None = None) -> T:
    """What `make` gives, without memory for its weights; InputError where its sizes make no network.

    num_tensors: of the file that is to fill it. More layers than these can be for would be made for minutes, only to be
    found not to fit.
    """
    try:
        with unfilled(num_tensors):
            return make()
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, OverflowError, ZeroDivisionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{where}: no network has the sizes of its configuration: {reason}") from None


@contextmanager
def unfilled(num_tensors: int | None = None) -> Iterator[None]:
    """Modules that are made inside have no memory for their weights (the meta device), for `assign` to fill."""
    with torch.device("meta"), _NoInitialValues(num_tensors):
        yield


class _NoInitialValues(TorchFunctionMode):
    """Leaves out what only draws values: on the meta device, torch imports its compiler for a `normal_`, a second.

    num_tensors: as in `empty`.
    """

    def __init__(self, num_tensors: int | None) -> None:
        super().__init__()
        self.num_tensors, self.num_made = num_tensors, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and self.num_tensors is not None:
            self.num_made += 1
            if self.num_made > MADE * (self.num_tensors + 1):
                raise ValueError(f"the {self.num_tensors} tensors that there are cannot fill its layers")
        return made


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
            matches[name] = Match(names, fitting, target.shape, normed)
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
        # g has one number for each row of v: a single one would be taken for all rows without a word
        g, v = parts
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
        if source.order:
            parts = [parts[0][rows * place : rows * (place + 1)] for place in source.order]
        else:
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
) -> None:
    """Give a module of `empty` the tensors of a file, checked by `match`; floats become float32.

    own: what the file has no tensor for, such as a vocoder's mean.
    """
    given = dict(own or {})
    wanted = {name: target for name, target in module.state_dict().items() if name not in given}
    assign(module, match(wanted, tensors, source, where, ignore), where, own=given)


def assign(
    module: nn.Module,
    matches: Mapping[str, Match],
    where: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    own: Mapping[str, Tensor] | None = None,
) -> None:
    """Give a module of `empty` what `match` found; at most the finished weights and one tensor are in memory.

    dtype: of the floating-point tensors. One at a time is copied, joined, or folded from weight norm, and its mapped
    pages are given back. A value that is not finite is an InputError.
    """
    filled, targets = dict(own or {}), module.state_dict()
    for name, found in matches.items():
        target = targets[name]
        value = found.value(dtype)
        # as the file has them: a smaller type could overflow, which says nothing of the file
        for part in [value] if found.normed else found.tensors:
            _check_finite(part, found.names[-1], where)
        if not target.is_floating_point():
            value = value.to(target.dtype)
        filled[name] = value.to(device)
        found.release()
    module.load_state_dict(filled, assign=True)
    assert not any(buffer.is_meta for buffer in module.buffers()), "a buffer outside of the state dict"
    for layer in module.modules():
        if isinstance(layer, nn.RNNBase):
            layer.flatten_parameters()  # cuDNN wants them in one piece


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
        # inode 0: anonymous memory, which would be zeroed, as it has no file to come back from
        if first <= start < beyond and inode != "0":
            page = start - start % mmap.PAGESIZE
            size = ctypes.c_size_t(min(end, beyond) - page)
            ctypes.CDLL(None).madvise(ctypes.c_void_p(page), size, mmap.MADV_DONTNEED)


def fold(g: Tensor, v: Tensor) -> Tensor:
    """Weight norm's length g [D, 1 ...] and direction v [D, ...], float32 -> the weight v g / |v|.

    In this order of operations, so that a weight that was written as g = |v|, v comes back bit for bit.
    """
    return v * (g / length(v))


def length(v: Tensor) -> Tensor:
    """|v| over all dimensions but the first, kept as 1: weight norm's g of a weight that is its own direction."""
    return torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)
