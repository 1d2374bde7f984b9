"""How much memory a training takes in each process, by how processes share the model (fit.shard); nothing is allocated.

    python tools/memory_plan.py lm_medium lm_large --ranks 1,8,64

Of the language model or denoiser of each recipe, without text encoders and autoencoders: weights, gradients, Adam's two
moments and the average, where fit.ema_decay is set, all float32, of the first process, whose shards are the largest.
FSDP2 itself divides the weights, on the meta device, in a process group that only seems to be there. gathered: what a
step of fsdp holds for a while beside its shards: all that is in no layer, with gradients; two layers, one of them read
ahead; and the gradients of one, as computed and in float32. Activations come on top, and depend on the clips.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from audiogen.diffusion.denoisers import denoiser
from audiogen.errors import InputError, run_command
from audiogen.files.tensors import unfilled
from audiogen.lm.model import TokenLM
from audiogen.train.diffusion import DiffusionRecipe
from audiogen.train.lm import LMRecipe
from audiogen.train.parallel import blocks, mesh_of, shard_weights
from audiogen.train.run import open_recipe
from audiogen.train.task import product_dtype

FLOAT = 4  # bytes


class Plan(NamedTuple):
    """Bytes in one process."""

    weights: int
    gradients: int
    adam: int
    average: int
    gathered: int = 0


def network(recipe: Any) -> tuple[nn.Module, list[nn.Module]]:
    """The network of a recipe on the meta device, and its layers."""
    with unfilled():
        if isinstance(recipe, LMRecipe):
            lm = TokenLM(recipe.model)
            return lm, list(lm.layers)
        if isinstance(recipe, DiffusionRecipe):
            model = denoiser(recipe.system.denoiser)
            return model, [model] if recipe.system.flux else list(blocks(model))
    raise InputError(f"task={recipe.task} is not sharded; give recipes of language models or denoisers")


@contextmanager
def seeming_group(world: int) -> Iterator[None]:
    """Within, this process is the first of so many, which are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def plan(recipe: Any, shard: str, world: int) -> Plan:
    """What the first of so many processes holds; shard: whole or fsdp."""
    module, layers = network(recipe)
    count, gathered = sum(each.numel() for each in module.parameters()), 0
    if shard == "fsdp":
        dtype = product_dtype(torch.device("cuda"), recipe.fit.precision)
        sizes = [sum(each.numel() for each in layer.parameters()) for layer in layers]
        outside, largest = count - sum(sizes), max(sizes)
        gathered = 2 * outside * FLOAT + largest * (3 * dtype.itemsize + FLOAT)
        with seeming_group(world):
            shard_weights(module, mesh_of("fsdp", torch.device("cpu")), dtype, layers)
            local = [each.to_local() for each in module.parameters() if isinstance(each, DTensor)]
        count = sum(each.numel() for each in local)
    average = count * FLOAT if recipe.fit.ema_decay else 0
    return Plan(count * FLOAT, count * FLOAT, 2 * count * FLOAT, average, gathered)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each recipe, mode and number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", help="names, or paths of .yaml")
    parser.add_argument("--ranks", default="1,8,64", help="numbers of processes (default: 1,8,64)")
    arguments = parser.parse_args(argv)
    worlds = [int(each) if each.isdecimal() else 0 for each in arguments.ranks.split(",")]
    if min(worlds) < 1:
        raise InputError(f"--ranks {arguments.ranks}: give whole numbers from 1 on, such as 1,8,64")
    print(f"{'recipe':14}{'parameters':>12}  {'mode':5}{'ranks':>6}{'state GB':>10}{'gathered GB':>13}")
    for name in arguments.recipes:
        recipe = open_recipe(name)
        count = sum(each.numel() for each in network(recipe)[0].parameters())
        for shard, world in [("whole", 1)] + [("fsdp", world) for world in worlds if world > 1]:
            found = plan(recipe, shard, world)
            mode, ranks = ("fsdp", str(world)) if shard == "fsdp" else ("ddp", "any")
            state, gathered = sum(found[:4]) / 1e9, found.gathered / 1e9
            print(f"{name:14}{count / 1e6:10,.0f} M  {mode:5}{ranks:>6}{state:10.2f}{gathered:13.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
