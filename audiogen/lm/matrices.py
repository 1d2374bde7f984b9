"""A TokenLM's weights as the static step takes them: plain tensors, matrices of a float type or int8."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from audiogen.lm.model import TokenLM
from audiogen.lm.transformer import Block


class Weight(NamedTuple):
    """A matrix [outputs, inputs] as numbers of a float type, or as int8 with a float32 scale for every output."""

    values: Tensor
    scales: Tensor | None = None


class Norm(NamedTuple):
    """A LayerNorm's weight and bias [D]."""

    weight: Tensor
    bias: Tensor


class Layer(NamedTuple):
    """A block's weights."""

    norm_self: Norm
    in_proj: Weight
    out_proj: Weight
    norm_cross: Norm
    query_proj: Weight
    text_proj: Weight
    cross_out_proj: Weight
    norm_ff: Norm
    ff_in: Weight
    ff_out: Weight


class Matrices(NamedTuple):
    """What a step needs of a TokenLM. embedding: [K (V + 1), D]."""

    embedding: Tensor
    layers: list[Layer]
    out_norm: Norm
    heads: Weight

    def step_bytes(self) -> int:
        """Bytes of the matrices that a step reads: all but the text's, which run once a prompt."""
        weights = [self.heads]
        for layer in self.layers:
            weights += [part for part in layer if isinstance(part, Weight) and part is not layer.text_proj]
        return sum(part.nbytes for weight in weights for part in weight if part is not None)


def quantise(matrix: Tensor) -> Weight:
    """[outputs, inputs] -> int8, symmetric: the largest of every output becomes 127."""
    exact = matrix.float()
    scales = exact.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return Weight((exact / scales[:, None]).round().to(torch.int8), scales)


def matrices_of(lm: TokenLM, read: Callable[[str], Tensor], dtype: torch.dtype, is_int8: bool) -> Matrices:
    """The weights that `read` gives by their names in `lm`, each as it comes.

    dtype: of all; is_int8: but the matrices of products. A tensor that is so already is shared.
    """
    names = {module: name for name, module in lm.named_modules()}

    def tensor(module: nn.Module, which: str = "weight") -> Tensor:
        return read(f"{names[module]}.{which}")

    def norm(module: nn.LayerNorm) -> Norm:
        return Norm(tensor(module).to(dtype), tensor(module, "bias").to(dtype))

    def weight(module: nn.Linear) -> Weight:
        return quantise(tensor(module)) if is_int8 else Weight(tensor(module).to(dtype))

    def layer(block: Block) -> Layer:
        own, cross = block.self_attention, block.cross_attention
        return Layer(
            norm(block.norm_self), weight(own.in_proj), weight(own.out_proj),
            norm(block.norm_cross), weight(cross.query_proj), weight(cross.text_proj), weight(cross.out_proj),
            norm(block.norm_ff), weight(block.ff_in), weight(block.ff_out),
        )  # fmt: skip

    layers = [layer(block) for block in lm._blocks()]
    return Matrices(tensor(lm.embedding).to(dtype), layers, norm(lm.out_norm), weight(lm.heads))
