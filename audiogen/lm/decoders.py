"""Which of the ways to run a TokenLM's steps a machine takes, by device and number type.

On a CPU weights are packed: by C++ kernels where a compiler builds them (`native`), else by PyTorch's products
(`packed`). On CUDA a step can be compiled or recorded whole (`graph`). Everywhere else the PyTorch module itself runs.
"""

from __future__ import annotations

from typing import cast

import torch

from audiogen.device import DTYPES, has_bfloat16
from audiogen.errors import InputError
from audiogen.lm.kernels import graph, native, packed
from audiogen.lm.kernels.library import library
from audiogen.lm.model import Read, TokenLM
from audiogen.lm.sample import Decoder


def choose_dtype(name: str, device: torch.device) -> str:
    """The number type of a language model's weights: auto is bfloat16 where it is native, else float32."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" or has_bfloat16(device) else "float32"
    if name not in DTYPES and name != "int8":
        raise InputError(f"dtype is {name!r}; allowed: auto, {', '.join(DTYPES)}, int8")
    if name == "int8" and device.type not in ("cpu", "cuda"):
        raise InputError(f"int8 runs on a CPU or CUDA; here the device is {device}: choose cpu, or bfloat16")
    return name


def torch_dtype(dtype: str) -> torch.dtype:
    """What a PyTorch module holds for a number type; int8 is one of packed weights only."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype} is for packed weights; choose {', '.join(DTYPES)}")
    return DTYPES[dtype]


def is_packed(dtype: str, device: torch.device) -> bool:
    """Whether `pack` serves this type on this device."""
    types: dict[str, tuple[str, ...]] = {"cpu": native.DTYPES, "cuda": graph.DTYPES}
    return dtype in types.get(device.type, ())


def pack(lm: TokenLM, dtype: str, device: torch.device, read: Read | None = None) -> Decoder:
    """A TokenLM's weights packed for a device; read as in `native.NativeLM`."""
    if device.type == "cuda":
        return graph.GraphLM(lm, dtype, device, read)
    kernels = library()
    if kernels is None:
        return packed.PackedLM(lm, dtype, read)
    return native.NativeLM(lm, cast("native.Dtype", dtype), kernels, read)
