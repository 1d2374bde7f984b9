"""LoRA: a network is fine-tuned by small matrices beside its own, which stay as they are.

"LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., arXiv:2106.09685), section 4.1: W x becomes
W x + (alpha / r) B A x, with A [r, in] random and B [out, r] zero at first, so that training begins at the network
itself. `lm.lora` and `diffusion.lora` say which matrices are adapted, and how adapters are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, Range, check_ranges
from audiogen.errors import InputError
from audiogen.files.tensors import match, shaped

SAMPLES = 16  # of each tensor of the network, in its fingerprint


@dataclass(frozen=True)
class Rank:
    """How large adapters are, and how they learn.

    rank: r. alpha: the product's weight is alpha / rank, so that another rank needs no other learning rate.
    dropout: on the input of A, in training. targets: kinds of matrices, which each family names.
    """

    rank: Positive = 16
    alpha: Annotated[float, Range(0, math.inf, above=True, below=True)] = 16.0
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    targets: tuple[str, ...] = ()

    def check(self, allowed: Iterable[str]) -> None:
        """InputError for numbers out of range, and for targets that are not among those allowed, or none."""
        check_ranges(self, "lora")
        if not self.targets or not set(self.targets) <= set(allowed):
            raise InputError(
                f"lora.targets is {list(self.targets)}; give one or more of {', '.join(allowed)}"
            )


class Update(NamedTuple):
    """What an adapter adds to a matrix [out, in]: scale * up @ down, with down [r, in] and up [out, r]."""

    down: Tensor
    up: Tensor
    scale: float


class LoraLinear(nn.Module):
    """A linear layer and its adapter; the layer's weight and bias keep their names, dtype and place."""

    def __init__(self, linear: nn.Linear, config: Rank):
        """The adapter is float32, as what is trained should be, whatever the weight is."""
        super().__init__()
        out_features, in_features = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias
        self.down = nn.Parameter(linear.weight.new_empty(config.rank, in_features, dtype=torch.float32))
        self.up = nn.Parameter(linear.weight.new_empty(out_features, config.rank, dtype=torch.float32))
        self.scale, self.dropout = config.alpha / config.rank, config.dropout
        self._init_weights()

    def _init_weights(self) -> None:
        # Unit variance out of unit variance in.
        nn.init.normal_(self.down, std=1 / math.sqrt(self.down.shape[1]))
        nn.init.zeros_(self.up)  # the adapted layer is the layer

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type the layer itself computes in."""
        output = F.linear(x, self.weight, self.bias)
        dropped = F.dropout(x, self.dropout, self.training).to(self.down.dtype)
        update = F.linear(F.linear(dropped, self.down), self.up)
        return output + (self.scale * update).to(output.dtype)


def add(network: nn.Module, names: Iterable[str], config: Rank) -> None:
    """Put new adapters beside the linear layers of these names, in place; then only they require gradients."""
    if any(_layers(network)):
        raise ValueError("the network has adapters already")
    layers = _matrices(network, names, config.rank)
    network.requires_grad_(False)
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        network.get_submodule(parent).add_module(last, LoraLinear(layer, config).train(layer.training))


def _matrices(network: nn.Module, names: Iterable[str], rank: int) -> dict[str, Any]:
    """The linear layers of these names; InputError for a rank that none of them can have."""
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in names}
    largest = max((max(layer.weight.shape) for layer in layers.values()), default=rank)
    if rank > largest:
        raise InputError(
            f"lora.rank is {rank}; no matrix of this model has more than {largest} rows or columns"
        )
    return layers


def _layers(network: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in network.named_modules() if isinstance(layer, LoraLinear))


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by name: all that training changes."""
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in _layers(network)
        for part in ("down", "up")
    }


def load_adapter_state(network: nn.Module, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy tensors into the adapters of a network, all and nothing else; what does not fit is named."""
    own = adapter_state(network)
    for name, found in match(own, tensors, str, where).items():
        own[name].copy_(found.value())


def read_updates(
    network: nn.Module,
    names: Iterable[str],
    rank: int,
    scale: float,
    tensors: Mapping[str, Tensor],
    where: str,
) -> dict[str, Update]:
    """Tensors "NAME.down" and "NAME.up" as updates of a network's layers of these names; what does not fit is named."""
    shapes: dict[str, tuple[int, int]] = {}
    for name, layer in (layers := _matrices(network, names, rank)).items():
        out_features, in_features = layer.weight.shape
        shapes |= {f"{name}.down": (rank, in_features), f"{name}.up": (out_features, rank)}
    found = {name: each.value() for name, each in match(shaped(shapes), tensors, str, where).items()}
    return {name: Update(found[f"{name}.down"], found[f"{name}.up"], scale) for name in layers}


@torch.no_grad()
def add_updates(network: nn.Module, updates: Sequence[tuple[Mapping[str, Update], float]]) -> None:
    """Add several adapters to a network's weights, in place: W + sum of weight * scale * up @ down.

    The sum is float32 and rounded once; an adapter of weight 0 leaves every bit as it is.
    """
    for name in dict.fromkeys(name for each, _ in updates for name in each):
        layer = network.get_submodule(name)
        parts = [(each[name], weight) for each, weight in updates if name in each and weight]
        if parts:
            matrix: Any = layer.weight
            deltas = [weight * each.scale * each.up.float() @ each.down.float() for each, weight in parts]
            matrix.copy_(matrix.float() + sum(deltas[1:], deltas[0]).to(matrix.device))  # [out, in]


def fingerprint(network: nn.Module) -> Tensor:
    """float32 [n], n <= 16 a tensor: evenly spaced values of the network's own weights, adapters left out.

    Not a hash, because a model is the same in bfloat16 and in float32; see `same_model`.
    """
    skipped = adapter_state(network).keys()
    samples = []
    for name, tensor in network.state_dict().items():
        if name not in skipped:
            flat = tensor.flatten()
            samples.append(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float())
    return torch.cat(samples).cpu()


def same_model(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints [n] are of one model but for rounding to bfloat16 or float16."""
    # Each rounding moves a value by at most 2^-9 of it (bfloat16), or by 2^-25 (the smallest of float16).
    return one.shape == other.shape and torch.allclose(one, other, rtol=2.0**-8, atol=2.0**-24)


def check_model(stored: Tensor, network: nn.Module, where: str | Path, base: str) -> None:
    """InputError unless a fingerprint [n] that an adapter stores is this network's. base: the name of its model."""
    if not same_model(stored.float(), fingerprint(network)):
        raise InputError(
            f"the adapter {where} was trained on {base}, and the weights of this model are others; open it with that "
            "one"
        )


def checkpoint_state(network: nn.Module) -> dict[str, Any]:
    """What a checkpoint holds of a network whose adapters are trained."""
    return {"adapters": adapter_state(network), "fingerprint": fingerprint(network)}


def load_checkpoint_state(network: nn.Module, state: Mapping[str, Any], out: str, base: str) -> None:
    """Restore what `checkpoint_state` gave, of the run `out`; InputError where it began with another model."""
    if not same_model(state["fingerprint"], fingerprint(network)):
        raise InputError(f"init_from={base} is not the model that {out} began with; choose another out=")
    load_adapter_state(network, state["adapters"], "the checkpoint")
