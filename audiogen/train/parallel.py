"""How the processes of torchrun share a model: each has all of it (DDP), or a part of every weight (FSDP2).

Both reduce gradients while the backward pass still runs, and prepare for it when one module is called. `Parallel` makes
such a call of whatever a task computes: `loss = parallel(lambda: ...)`. All that leads to a loss is computed within.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from audiogen import distributed
from audiogen.errors import InputError
from audiogen.files.tensors import unfilled

Shard = Literal["auto", "none", "ddp", "fsdp", "hsdp"]
SHARDED = ("fsdp", "hsdp")
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
T = TypeVar("T")


class Computation(nn.Module):
    """Calls what computes with a module; the module is a part of it, so that its parameters are found."""

    def __init__(self, module: nn.Module, sharded: bool):
        super().__init__()
        self.module, self.sharded = module, sharded

    def forward(self, compute: Callable[[], T]) -> T:
        if not (self.sharded and torch.is_grad_enabled()):
            return compute()
        # FSDP reduces gradients that there are in one piece: of the same parameters in all processes, also where no
        # clip of one has a caption. Those of layers are still shards here, and always used.
        own = [
            each for each in self.module.parameters() if each.requires_grad and not isinstance(each, DTensor)
        ]
        nothing = 0.0 * sum(each.flatten()[0] for each in own)
        return tree_map_only(Tensor, lambda leaf: leaf + nothing if leaf.requires_grad else leaf, compute())


class Parallel:
    """A module on its device, as the processes share it; made before the optimiser of its parameters."""

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        shard: Shard = "auto",
        dtype: torch.dtype = torch.float32,
        layers: Iterable[nn.Module] = (),
    ):
        """dtype: of the products of the forward pass. layers: that are gathered one at a time where it is sharded.

        Where it is sharded, the module may be on the meta device in all processes but the first, which gives the
        others their shards. InputError for a mode that is not for the processes that there are.
        """
        self.module, self.sharded = module, shard in SHARDED
        self._call: Any = None
        world = distributed.world()
        if shard == "auto":
            shard = "ddp" if world > 1 else "none"
        if (shard == "none") != (world == 1):
            wanted = "one process" if shard == "none" else "several, started by torchrun --nproc-per-node N"
            raise InputError(f"fit.shard={shard} is for {wanted}; there are {world}: leave fit.shard=auto")
        if self.sharded:
            self._shard(mesh_of(shard, device), dtype, layers)
            return
        module.to(device)
        if shard == "ddp":
            # With find_unused_parameters, needed where no clip of a process has a caption, buckets also stay as they
            # are, and with them the order of sums.
            self._call = DistributedDataParallel(
                Computation(module, sharded=False), find_unused_parameters=True, gradient_as_bucket_view=True
            )
            self._call.broadcast_buffers = False  # codebooks are reduced where they change

    def _shard(self, mesh: DeviceMesh, dtype: torch.dtype, layers: Iterable[nn.Module]) -> None:
        on_meta = distributed.any_process(any(each.is_meta for each in self.module.parameters()))
        whole = self.module.state_dict() if on_meta and distributed.rank() == 0 else {}
        self._call = shard_weights(self.module, mesh, dtype, layers)
        if on_meta:
            for module in self.module.modules():
                if any(each.is_meta for each in module.parameters(recurse=False)):
                    module.to_empty(device=mesh.device_type, recurse=False)
            first_sends = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(self.module, whole, options=first_sends)

    def __call__(self, compute: Callable[[], T], learns: bool = True) -> T:
        """What `compute` returns, tensors in any nesting. learns: gradients of the module's parameters follow."""
        if self._call is None or not (self.sharded or (learns and torch.is_grad_enabled())):
            return compute()
        found: T = self._call(compute)
        return found

    def reduce_next(self, reduce: bool) -> None:
        """Whether the next call's gradients, and those gathered before, are reduced; else they are gathered here."""
        if self.sharded:
            self._call.set_requires_gradient_sync(reduce)
        elif self._call is not None:
            self._call.require_backward_grad_sync = reduce

    @cached_property
    def group(self) -> dist.ProcessGroup | None:
        """Where the model is sharded: the processes that save it, with connections of their own."""
        return dist.new_group(backend="gloo") if self.sharded else None

    def alone(self, work: Callable[[], T], otherwise: T) -> T:
        """What the first process does alone, see `first_only`; where none has the whole model, all do."""
        return work() if self.sharded else distributed.first_only(work, otherwise)

    def with_whole(self, work: Callable[[], None]) -> None:
        """Work of the process that calls this, or of the first of all, on whole weights, which the others give it."""
        if not self.sharded:
            return work()
        with self._gathered():
            distributed.first_only(work, None)

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        """Within: the module of the first process holds its whole weights, on the CPU; nothing is computed with it."""
        shards = []
        for module in self.module.modules():
            for name, shard in module.named_parameters(recurse=False):
                if isinstance(shard, DTensor):
                    whole = shard.full_tensor().detach()
                    if distributed.rank() == 0:
                        shards.append((module, name, shard))
                        module._parameters[name] = nn.Parameter(whole.cpu(), requires_grad=False)
        try:
            yield
        finally:
            for module, name, shard in shards:
                module._parameters[name] = shard


def shard_weights(
    module: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, layers: Iterable[nn.Module]
) -> Any:
    """Divide a module's weights by FSDP2, in place -> what computes with it.

    Layers are gathered in `dtype`, their products' under autocast; their norms and what is in no layer, such as a text
    encoder, compute in float32.
    """
    rest = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    products = (
        MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False) if dtype.itemsize < 4 else rest
    )
    for layer in layers:
        for part in layer.modules() if products is not rest else ():
            if isinstance(part, NORMS) and list(part.parameters()):
                fully_shard(part, mesh=mesh, mp_policy=rest)
        fully_shard(layer, mesh=mesh, mp_policy=products)
    # Gathered again for the backward pass, so that nothing stays gathered while `Average` exchanges the shards.
    computation: Any = fully_shard(
        Computation(module, sharded=True), mesh=mesh, mp_policy=rest, reshard_after_forward=True
    )
    return computation


def start_weights(shard: Shard) -> AbstractContextManager[None]:
    """Where to make a new model: if it is to be sharded, one on the meta device in all processes but the first."""
    return unfilled() if shard in SHARDED and distributed.rank() > 0 else nullcontext()


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The layers of a network: what its outermost lists hold."""
    for child in network.children():
        yield from child if isinstance(child, nn.ModuleList) else blocks(child)


def mesh_of(shard: str, device: torch.device) -> DeviceMesh:
    """All processes in a row; for hsdp in a row for each machine, replicas of one another."""
    world = distributed.world()
    if shard == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if world % local:
        raise InputError(
            f"fit.shard=hsdp wants as many processes on each machine; {world} are not {local} on each"
        )
    return init_device_mesh(device.type, (world // local, local), mesh_dim_names=("replicate", "shard"))
