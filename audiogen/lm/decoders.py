"""Which of the ways to run a TokenLM's steps a machine takes, by device and number type.

On a CPU weights are packed: by C++ kernels where a compiler builds them (`native`), else by PyTorch's products
(`packed`). On CUDA a step can be compiled or recorded whole (`graph`). Everywhere else the PyTorch module itself runs.
"""

from __future__ import annotations

import torch

from audiogen.device import DTYPES, has_bfloat16
from audiogen.errors import InputError
from audiogen.lm.kernels import graph, native, packed
from audiogen.lm.model import Read, TokenLM
from audiogen.lm.sample import Decoder
from audiogen.native.library import library


def choose_dtype(name: str, device: torch.device, packs: bool = True) -> str:
    """The number type of a language model's weights; auto is bfloat16 where that is faster, else float32.

    On a CPU our kernels read half the bytes for it, whatever the processor computes in; PyTorch's want it native.
    packs: False for a model that no decoder here packs, which has a backbone.
    """
    if name in ("int8", "int4") and not packs:
        raise InputError(
            f"this model has a backbone, which runs in {', '.join(DTYPES)}; here dtype is {name}"
        )
    if name == "auto":
        has_kernels = packs and device.type == "cpu" and library() is not None
        return "bfloat16" if device.type == "cuda" or has_kernels or has_bfloat16(device) else "float32"
    if name not in (*DTYPES, "int8", "int4"):
        raise InputError(f"dtype is {name!r}; allowed: auto, {', '.join(DTYPES)}, int8, int4")
    if name == "int4" and (device.type != "cpu" or library() is None):
        raise InputError("int4 runs on a CPU by kernels that a C++ compiler builds; choose int8 or bfloat16")
    if name == "int8" and device.type not in ("cpu", "cuda"):
        raise InputError(f"int8 runs on a CPU or CUDA; here the device is {device}: choose cpu, or bfloat16")
    return name


def is_packed(dtype: str, device: torch.device) -> bool:
    """Whether `pack` serves this type on this device."""
    return dtype in {"cpu": native.DTYPES, "cuda": graph.DTYPES}.get(device.type, ())


def pack(lm: TokenLM, dtype: str, device: torch.device, read: Read | None = None) -> Decoder:
    """A TokenLM's weights packed for a device; read as in `native.NativeLM`."""
    if device.type == "cuda":
        return graph.GraphLM(lm, dtype, device, read)
    kernels = library()
    if kernels is None:
        return packed.PackedLM(lm, dtype, read)
    return native.NativeLM(lm, dtype, kernels, read)
