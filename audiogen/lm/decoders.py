"""Which of the ways to run a TokenLM's steps a machine takes, by device and number type.

On a CPU weights are packed, by kernels of ours where a C++ compiler builds them (`native`), else by PyTorch's own
(`packed`). On CUDA the whole step can be one graph (`static`). Everywhere else the PyTorch module itself runs.
"""

from __future__ import annotations

from typing import cast

import torch

from audiogen.device import has_bfloat16
from audiogen.errors import InputError
from audiogen.lm import native, packed, static
from audiogen.lm.model import Read, TokenLM
from audiogen.lm.sample import Decoder

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_dtype(name: str, device: torch.device) -> str:
    """The number type of a language model's weights: auto is bfloat16 where it is native, else float32."""
    if name == "auto":
        return "bfloat16" if device.type == "cuda" or has_bfloat16(device) else "float32"
    if name not in TYPES and name != "int8":
        raise InputError(f"dtype is {name!r}; allowed: auto, {', '.join(TYPES)}, int8")
    if name == "int8" and device.type not in ("cpu", "cuda"):
        raise InputError(f"int8 runs on a CPU or CUDA; here the device is {device}: choose cpu, or bfloat16")
    return name


def torch_dtype(dtype: str) -> torch.dtype:
    """What a PyTorch module holds for a number type; int8 is one of packed weights only."""
    if dtype not in TYPES:
        raise InputError(f"dtype {dtype} is for packed weights; choose {', '.join(TYPES)}")
    return TYPES[dtype]


def is_packed(dtype: str, device: torch.device) -> bool:
    """Whether `pack` serves this type on this device."""
    types = {"cpu": native.DTYPES, "cuda": static.DTYPES}
    return dtype in types.get(device.type, ())


def pack(lm: TokenLM, dtype: str, device: torch.device, read: Read | None = None) -> Decoder:
    """A TokenLM's weights packed for a device; read as in `native.NativeLM`."""
    if device.type == "cuda":
        return static.StaticLM(lm, cast("static.Dtype", dtype), device, read)
    kernels = native.library()
    if kernels is None:
        return packed.PackedLM(lm, dtype, read)
    return native.NativeLM(lm, cast("native.Dtype", dtype), kernels, read)
