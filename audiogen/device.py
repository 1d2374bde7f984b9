"""Which device a model runs on, and what that device computes natively."""

from __future__ import annotations

import os
import re

import torch

from audiogen.errors import InputError

ALLOWED = "auto (a CUDA GPU if there is one), cpu, cuda, cuda:N, mps"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}  # by their names


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name; "auto" is this process's CUDA GPU where there is one, else the CPU.

    Raises InputError for what is no device, or is not there.
    """
    name = str(name)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(
        "cpu|cuda(:[0-9]+)?|mps", name
    ):  # torch has others, such as meta, that compute nothing here
        raise InputError(f"device {name[:60]!r} cannot be used; allowed: {ALLOWED}")
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))  # of torchrun
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(f"device {name!r} cannot be used ({reason}); allowed: {ALLOWED}") from None
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are native; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # there is no public function
    return device.type == "cpu" and supported is not None and bool(supported())
