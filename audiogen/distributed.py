"""This process's device; rank, world size and reductions under torchrun, without it those of a single process."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from audiogen.errors import InputError


def initialize(device: torch.device) -> None:
    """Take this GPU, and join the process group torchrun describes in the environment, if any (nccl, gloo on a CPU)."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not is_distributed():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def has_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 are native; emulated ones are slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # no public function tells
    return device.type == "cpu" and supported is not None and bool(supported())


def has_packed_products(dtype: torch.dtype) -> bool:
    """Whether PyTorch's products of weights in oneDNN's order serve on this CPU, in float32 or bfloat16.

    On x86, where they were tried: builds for other processors name the same operators and may lack what is behind them.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


def local_rank() -> int:
    """Which GPU of its machine is this process's."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_distributed() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number, 0 when alone."""
    return dist.get_rank() if is_distributed() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum over processes, in place; returns the tensor."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def broadcast(tensor: Tensor, src: int = 0) -> Tensor:
    """Process `src`'s values for everybody, in place; returns the tensor."""
    if is_distributed():
        dist.broadcast(tensor, src)
    return tensor


def barrier() -> None:
    """Wait until every process is here."""
    if world() > 1:
        dist.barrier()


@contextmanager
def first_process_first() -> Iterator[None]:
    """Work on files that the first process makes and the others find made."""
    if rank() > 0:
        barrier()
    yield
    if rank() == 0:
        barrier()


def any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all leave a loop at the same step, or none does."""
    if world() == 1:
        return flag
    return bool(all_reduce_sum(torch.tensor(int(flag), device=_device())).item())


def average_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """The mean over processes of scalars that all of them have."""
    if world() == 1:
        return dict(scalars)
    values = torch.tensor(list(scalars.values()), dtype=torch.float32, device=_device())
    return dict(zip(scalars, (all_reduce_sum(values) / world()).tolist(), strict=True))


def _device() -> torch.device:
    """Where the backend reduces: nccl knows only GPU memory."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over processes, in one reduction per dtype.

    A parameter without a gradient counts as zero, for another process may have used it.
    """
    if world() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.grad.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world()
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is this process's CUDA GPU where there is one, else the CPU.

    Raises InputError for what is no device, or is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank())
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise InputError(
            f"device {name!r} cannot be used ({reason}); allowed: auto, cpu, cuda, cuda:1, mps"
        ) from None
    return device
