"""The parts of a decoding step on static memory, in plain PyTorch: the oracle of the fused ones in `triton_ops`.

No part looks at a value on the host or makes a shape out of one, so that a CUDA graph may record them. R rows are
those the model runs on: B, or 2 B with guidance.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiogen.lm.matrices import Norm, Weight
from audiogen.lm.transformer import sinusoidal_positions

NORM_EPS = 1e-5


class Place(NamedTuple):
    """Where S new steps go in the cache and what they see of it.

    slots: int64 [S]. last: int64 [S], the last slot that each sees. mask: bool [S, seen], slots up to that.
    """

    slots: Tensor
    last: Tensor
    mask: Tensor


class Ops(Protocol):
    """What this module and `triton_ops` both offer."""

    def embed(self, steps: Tensor, table: Tensor, positions: Tensor) -> Tensor: ...

    def product(
        self, x: Tensor, weight: Weight, norm: Norm | None = None, gelu: bool = False,
        residual: Tensor | None = None,
    ) -> Tensor: ...  # fmt: skip

    def self_attention(self, qkv: Tensor, keys: Tensor, values: Tensor, place: Place) -> Tensor: ...

    def text_attention(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor: ...


def embed(steps: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """Steps int64 [R, K, S] -> [R, S, D]: the sum of their rows in the table [K (V + 1), D], and positions [S]."""
    num_codebooks = steps.shape[1]
    offsets = torch.arange(num_codebooks, device=steps.device)[:, None] * (len(table) // num_codebooks)
    x = F.embedding(steps + offsets, table).sum(1)
    return x + sinusoidal_positions(positions, table.shape[1]).to(x.dtype)


def product(
    x: Tensor, weight: Weight, norm: Norm | None = None, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """x [R, S, inputs] -> [R, S, outputs]: norm(x) times the matrix, then the exact GELU, then added to `residual`.

    int8 is turned into x's type where it is used: its rounding is that of the weights alone.
    """
    if norm is not None:
        x = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, NORM_EPS)
    y = F.linear(x, weight.values.to(x.dtype))
    if weight.scales is not None:
        y = (y * weight.scales).to(x.dtype)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else residual + y


def self_attention(qkv: Tensor, keys: Tensor, values: Tensor, place: Place) -> Tensor:
    """Store the new keys and values, then attend: qkv [R, S, 3 D] -> [R, S, D].

    keys, values: a layer's cache [R, heads, slots, D / heads], written in place.
    """
    new = rearrange(qkv, "r s (three h d) -> three r h s d", three=3, h=keys.shape[1])
    keys.index_copy_(2, place.slots, new[1])
    values.index_copy_(2, place.slots, new[2])
    seen = place.mask.shape[1]
    attended = F.scaled_dot_product_attention(
        new[0], keys[:, :, :seen], values[:, :, :seen], attn_mask=place.mask
    )
    return rearrange(attended, "r h s d -> r s (h d)")


def text_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """queries [R, S, D], keys and values [R, heads, L, D / heads], mask bool [R, 1, 1, L] -> [R, S, D]."""
    split = rearrange(queries, "r s (h d) -> r h s d", h=keys.shape[1])
    attended = F.scaled_dot_product_attention(split, keys, values, attn_mask=mask)
    return rearrange(attended, "r h s d -> r s (h d)")
