"""Rank, world size and reductions over the processes of torchrun; alone, those of a single process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def initialize(device: torch.device) -> None:
    """Take this GPU, and join the process group torchrun describes in the environment, if any (nccl, gloo on a CPU)."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not is_distributed():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        dist.destroy_process_group()


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
    return average_scalars({"flag": float(flag)})["flag"] > 0


def average_scalars(scalars: Mapping[str, float]) -> dict[str, float]:
    """The mean over processes of scalars that all of them have."""
    if world() == 1:
        return dict(scalars)
    values = torch.tensor(list(scalars.values()), dtype=torch.float32, device=_device())
    return dict(zip(scalars, (all_reduce_sum(values) / world()).tolist(), strict=True))


def _device() -> torch.device:
    """Where the backend reduces: nccl works on GPU memory only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over processes, in one reduction; all are of one dtype.

    A parameter without a gradient counts as zero, for another process may have used it.
    """
    if world() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    vector_to_parameters(all_reduce_sum(parameters_to_vector(gradients)).div_(world()), gradients)
