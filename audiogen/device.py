"""Which device a model runs on, what that device computes natively, and how attention trains on it."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from audiogen.errors import InputError

ALLOWED = "auto (a CUDA GPU if there is one), cpu, cuda, cuda:N, mps"
MOST_STEPS = 1024  # of attention as products: past it, the steps x steps weights no longer pay
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


@cache
def multiplies_faster_in_bfloat16(device: torch.device) -> bool:
    """Whether large products take less time in bfloat16 than in float32.

    Processors with AVX-512's instructions for bfloat16 and without AMX differ: an AMD Zen 5 gains, and a Xeon takes
    twice the time. There one product of each is timed, for some 50 ms once a process.
    """
    if device.type == "cuda" or not has_bfloat16(device):
        return has_bfloat16(device)
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", None)  # there is no public function
    if has_amx is not None and has_amx():
        return True
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(512, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(x, weight)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]


@contextmanager
def fast_attention(device: torch.device, num_steps: int) -> Iterator[None]:
    """Within the context attention trains by the fastest way there is for bfloat16 on a CPU; else nothing changes.

    PyTorch's fused kernel for CPUs is slow there, above all backwards and over few positions of text: two products
    and a softmax take a fifth to a half of the time (docs/LOG.md), and keep steps x steps weights.
    """
    slow = (
        device.type == "cpu"
        and num_steps <= MOST_STEPS
        and torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
    )
    if not slow:
        yield
        return
    # of all devices, in spite of its name
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
