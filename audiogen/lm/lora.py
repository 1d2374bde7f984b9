"""LoRA: a language model is fine-tuned by small matrices beside its own, which stay as they are, and saved alone.

"LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., arXiv:2106.09685), section 4.1: W x becomes
W x + (alpha / r) B A x, with A [r, in] random and B [out, r] zero at first, so that training begins at the model
itself. A fused projection (queries, keys and values in one matrix) has one A for all its parts.

config.json         kind lora; config: {"lora": LoraConfig, "base": the name the model was opened by}
model.safetensors   A and B of every adapted matrix, and `fingerprint`: samples of the base model's weights
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, Range, build, check_ranges, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.tensors import match
from audiogen.lm.model import TokenLM

KIND = "lora"
TARGETS = ("in_proj", "query_proj", "text_proj", "out_proj", "ff_in", "ff_out")
FINGERPRINT = "fingerprint"
SAMPLES = 16  # of each tensor of the base model, in its fingerprint


@dataclass(frozen=True)
class LoraConfig:
    """Which matrices are adapted, and how.

    rank: r. alpha: the product's weight is alpha / rank, so that another rank needs no other learning rate.
    dropout: on the input of A, in training. targets: in_proj (of self-attention), query_proj and text_proj (of
    cross-attention), out_proj (of both), ff_in, ff_out.
    """

    rank: Positive = 16
    alpha: Annotated[float, Range(0, math.inf, above=True, below=True)] = 16.0
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        check_ranges(self, "lora")
        unknown = [target for target in self.targets if target not in TARGETS]
        if unknown or not self.targets:
            raise InputError(
                f"lora.targets is {list(self.targets)}; give one or more of {', '.join(TARGETS)}"
            )


class LoraLinear(nn.Module):
    """A linear layer without bias and its adapter; the layer's weight keeps its name, dtype and place."""

    def __init__(self, linear: nn.Linear, config: LoraConfig):
        """The adapter is float32, as what is trained should be, whatever the weight is."""
        super().__init__()
        assert len(list(linear.parameters())) == 1  # no bias
        out_features, in_features = linear.weight.shape
        self.weight = linear.weight
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
        output = F.linear(x, self.weight)
        dropped = F.dropout(x, self.dropout, self.training).to(self.down.dtype)
        update = F.linear(F.linear(dropped, self.down), self.up)
        return output + (self.scale * update).to(output.dtype)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The weight [out, in] of one layer that computes the same; summed in float32 and rounded once."""
        return (self.weight.float() + self.scale * self.up @ self.down).to(self.weight.dtype)


def add(lm: TokenLM, config: LoraConfig) -> None:
    """Put new adapters beside the model's matrices, in place; from then on only they require gradients."""
    if any(_adapters(lm)):
        raise ValueError("the language model has adapters already; merge them first")
    if config.rank > (largest := lm.config.ff_mult * lm.config.dim):
        raise InputError(
            f"lora.rank is {config.rank}; no matrix of this model has more than {largest} rows or columns"
        )
    lm.requires_grad_(False)
    for block in lm.layers:
        for parent in (block, *block.children()):
            for name, layer in list(parent.named_children()):
                if name in config.targets and isinstance(layer, nn.Linear):
                    parent.add_module(name, LoraLinear(layer, config).train(layer.training))


def merge(lm: TokenLM) -> None:
    """Add the adapters to the weights, in place: a plain language model, as fast as before."""
    _take_off(lm, LoraLinear.merged)


def remove(lm: TokenLM) -> None:
    """Take the adapters off, in place: the weights as they were before `add`."""
    _take_off(lm, lambda layer: layer.weight)


def _take_off(lm: TokenLM, weight_of: Callable[[LoraLinear], Tensor]) -> None:  # [out, in]
    for parent in list(lm.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, LoraLinear):
                weight = weight_of(layer)
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
                linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
                parent.add_module(name, linear.train(layer.training))


def _adapters(lm: TokenLM) -> Iterator[tuple[str, LoraLinear]]:
    return ((name, layer) for name, layer in lm.named_modules() if isinstance(layer, LoraLinear))


def adapter_state(lm: TokenLM) -> dict[str, Tensor]:
    """The adapters' tensors by name: all that training changes."""
    return {
        f"{name}.{part}": getattr(layer, part).detach()
        for name, layer in _adapters(lm)
        for part in ("down", "up")
    }


def load_adapter_state(lm: TokenLM, tensors: Mapping[str, Tensor], where: str | Path) -> None:
    """Copy tensors into the adapters of a model that has them, all and nothing else; what does not fit is named."""
    own = adapter_state(lm)
    for name, found in match(own, tensors, str, where).items():
        own[name].copy_(found.value())


def fingerprint(lm: TokenLM) -> Tensor:
    """float32 [n], n <= 16 a tensor: evenly spaced values of the model's own weights, adapters left out.

    Not a hash, because a model is the same in bfloat16 and in float32; see `same_model`.
    """
    adapters = adapter_state(lm).keys()
    samples = []
    for name, tensor in lm.state_dict().items():
        if name not in adapters:
            flat = tensor.flatten()
            samples.append(flat[:: max(1, flat.numel() // SAMPLES)][:SAMPLES].float())
    return torch.cat(samples).cpu()


def same_model(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints [n] are of one model but for rounding to bfloat16 or float16."""
    # Each rounding moves a value by at most 2^-9 of it (bfloat16), or by 2^-25 (the smallest of float16).
    return one.shape == other.shape and torch.allclose(one, other, rtol=2.0**-8, atol=2.0**-24)


def save_adapter(
    directory: str | Path,
    lm: TokenLM,
    config: LoraConfig,
    base: str,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters alone. base: the name that the model was opened by, for messages."""
    tensors = {**adapter_state(lm), FINGERPRINT: fingerprint(lm)}
    checkpoint.save_model(directory, KIND, {"lora": to_plain(config), "base": base}, tensors, info)


def load_adapter(directory: str | Path, lm: TokenLM) -> dict[str, Any]:
    """Put saved adapters onto the model they were trained on, in place, for inference -> the directory's `info`.

    The model may be of any dtype. Raises InputError where it is not the one of the adapters, or they are damaged;
    the model is then as it was.
    """
    contents = checkpoint.read_config(directory, KIND)
    if not isinstance(contents["config"], dict) or not {"lora", "base"} <= contents["config"].keys():
        raise InputError(f"{Path(directory) / 'config.json'} lacks config.lora or config.base; copy it again")
    config = build(LoraConfig, contents["config"]["lora"], where="lora")
    tensors = checkpoint.load_tensors(directory)
    expected = tensors.pop(FINGERPRINT, None)
    if expected is None:
        raise InputError(f"{directory} lacks the tensor {FINGERPRINT!r}; copy or train the adapter again")
    if not same_model(expected.float(), fingerprint(lm)):
        raise InputError(
            f"the adapter {directory} was trained on {contents['config']['base']}, and the weights of this model "
            "are others; open it with that one"
        )
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    if config.rank > largest:  # before adapters of that size are made
        raise InputError(f"{directory}: lora.rank is {config.rank}, which no tensor there has; copy it again")
    training = lm.training
    add(lm, config)
    try:
        load_adapter_state(lm, tensors, f"the adapter {directory}")
    except InputError:
        remove(lm)
        raise
    lm.requires_grad_(False).train(training)
    return dict(contents["info"])
