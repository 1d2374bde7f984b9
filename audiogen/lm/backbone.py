"""Qwen3 as the backbone of a TokenLM: text and sound are one causal sequence, the text's tokens first.

"Qwen3 Technical Report" (Yang et al., 2025), section 2: pre-norm layers with RMSNorm, attention with fewer keys and
values than queries, rotary positions, norms of queries and keys, and a gated feed-forward layer. Matrices that see the
same input are one product, under the names of `transformer.Block`, where LoRA looks for them. transformers' Qwen3Model
is the oracle in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, PositiveFloat, Range, check_ranges
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.efficient import Dropout, Recompute, run_layer
from audiogen.lm.transformer import KVCache

Turn = tuple[Tensor, Tensor]  # cosine and sine of each position's angles, each [B, 1, S, D / heads]


@dataclass(frozen=True)
class BackboneConfig:
    """What a Qwen3 has beside lm.dim, num_layers and num_heads. Qwen3-0.6B: 8, 128, 3072, 1e6, and 1024, 28, 16.

    num_kv_heads: heads of keys and values, of which each serves as many query heads. head_dim: width of a head, even.
    ff_dim: width of the feed-forward layer. rope_theta: the slowest position turns once in 2 pi rope_theta steps.
    pretrained: directory or hub id where weights and text tokens came from; None for random ones.
    """

    num_kv_heads: Positive
    head_dim: Annotated[int, Range(2)]
    ff_dim: Positive
    rope_theta: PositiveFloat = 1e6
    norm_eps: PositiveFloat = 1e-6
    pretrained: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, "backbone")
        if self.head_dim % 2:
            raise InputError(f"backbone.head_dim is {self.head_dim}; rotary positions need an even number")


class SelfAttention(nn.Module):
    """Causal attention whose query heads share keys and values in groups; see the file."""

    def __init__(self, width: int, num_heads: int, config: BackboneConfig):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, config.num_kv_heads, config.head_dim
        self.in_proj = nn.Linear(width, (num_heads + 2 * config.num_kv_heads) * config.head_dim, bias=False)
        self.query_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        self.key_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
        self.out_proj = nn.Linear(num_heads * config.head_dim, width, bias=False)

    def forward(self, x: Tensor, turn: Turn, cache: KVCache | None, layer: int, mask: Tensor) -> Tensor:
        """x [B, S, D], mask bool [B, 1, S, S_all] -> [B, S, D]; with a cache x holds the positions after its own."""
        heads = rearrange(self.in_proj(x), "b s (h d) -> b h s d", d=self.head_dim)
        queries, keys, values = heads.split((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        wide = self.key_norm.weight.dtype  # float32 under autocast, where products give bfloat16
        queries = _turned(self.query_norm(queries.to(wide)), turn).to(values.dtype)
        keys = _turned(self.key_norm(keys.to(wide)), turn).to(values.dtype)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
        return self.out_proj(rearrange(attended, "b h s d -> b s (h d)"))


class BackboneBlock(nn.Module):
    """Pre-norm layer: self-attention, then SiLU(gate) * value. Dropout acts on both updates, in training."""

    def __init__(self, width: int, num_heads: int, dropout: float, config: BackboneConfig):
        super().__init__()
        self.norm_self = nn.RMSNorm(width, config.norm_eps)
        self.self_attention = SelfAttention(width, num_heads, config)
        self.norm_ff = nn.RMSNorm(width, config.norm_eps)
        self.ff_in = nn.Linear(width, 2 * config.ff_dim, bias=False)  # gate and value
        self.ff_out = nn.Linear(config.ff_dim, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, turn: Turn, cache: KVCache | None, layer: int, mask: Tensor) -> Tensor:
        """x [B, S, D] -> [B, S, D]; arguments as in `SelfAttention.forward`."""
        x = x + self.dropout(self.self_attention(self.norm_self(x), turn, cache, layer, mask))
        gate, value = self.ff_in(self.norm_ff(x)).chunk(2, dim=-1)
        return x + self.dropout(self.ff_out(F.silu(gate) * value))


def turns(positions: Tensor, config: BackboneConfig) -> Turn:
    """Rotary angles of positions [B, S], in float32: position / theta^(2 i / D) for each pair i of a head's D.

    "RoFormer" (Su et al., 2021), equation 15, with the pairs (i, i + D / 2) of the public weights.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device).float() / config.head_dim
    angles = positions.float()[:, None, :, None] / config.rope_theta**exponents  # [B, 1, S, D / 2]
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def _turned(x: Tensor, turn: Turn) -> Tensor:  # [B, heads, S, D / heads]
    low, high = x.chunk(2, dim=-1)
    return x * turn[0] + torch.cat([-high, low], dim=-1) * turn[1]


class TextFirst:
    """Which positions the rows "text, then steps" have, and what each of them attends to.

    valid: bool [B, P], False for the padding of shorter texts: no position counts it, and none attends to it.
    """

    def __init__(self, text: Condition, num_steps: int):
        self.num_text = text.mask.shape[1]
        self.valid = torch.cat([text.mask, text.mask.new_ones(len(text.mask), num_steps)], dim=1)  # [B, P]
        self.positions = (self.valid.cumsum(1) - 1).clamp(min=0)

    def place(self, places: Tensor) -> None:
        """Give the steps other positions after the text than 0, 1, 2 ...: int64 [S] or [B, S]."""
        self.positions[:, self.num_text :] = self.valid[:, : self.num_text].sum(1, keepdim=True) + places

    def mask(self, begin: int, end: int) -> Tensor:
        """bool [B, 1, S, end]: each position from begin on attends to itself and to what is valid before it."""
        columns = torch.arange(end, device=self.valid.device)
        rows = columns[begin:, None]
        # Itself, though it be padding: a softmax over nothing is not a number.
        return ((columns <= rows) & self.valid[:, None, None, :end]) | (columns == rows)


class BackboneCache(KVCache):
    """Keys and values [layers, B, heads, L + S, D / heads] of the text and the steps after it; `length` counts both."""

    def __init__(self, shape: tuple[int, int, int, int, int], order: TextFirst, like: Tensor):
        """like: a tensor [...] of the device and number type."""
        super().__init__(shape, None, None, like)
        self.order = order

    def place(self, places: Tensor) -> None:
        """As `KVCache.place`, after the text: int64 [S_max]."""
        self.order.place(places.to(self.self_keys.device))


def new_cache(
    config: BackboneConfig, layers: nn.ModuleList, text: Condition, max_steps: int, like: Tensor
) -> BackboneCache:
    """A cache that has the text [B, L, D], which runs through the layers, and room for `max_steps` steps after it."""
    batch_size, length = text.mask.shape
    shape = (len(layers), batch_size, config.num_kv_heads, length + max_steps, config.head_dim)
    cache = BackboneCache(shape, TextFirst(text, max_steps), like)
    run(config, layers, text.tokens.to(like.dtype), cache)
    return cache


def run(
    config: BackboneConfig,
    layers: nn.ModuleList,
    x: Tensor,
    given: Condition | KVCache,
    checkpoint_layers: Recompute = False,
    positions: Tensor | None = None,
) -> Tensor:
    """Steps as vectors x [B, S, D] through all layers -> [B, S, D], before the last norm.

    given: the text before them, or the cache, which they then continue. positions: as in `TextFirst.place`, without a
    cache; None is 0, 1, 2 ...
    """
    num_steps = x.shape[1]
    if isinstance(given, KVCache):
        assert isinstance(given, BackboneCache)
        given.check(num_steps)
        cache, order, begin = given, given.order, given.length
    else:
        cache, order, begin = None, TextFirst(given, num_steps), 0
        if positions is not None:
            order.place(positions)
        x = torch.cat([given.tokens.to(x.dtype), x], dim=1)  # [B, L + S, D]
    end = begin + x.shape[1]
    turn, mask = turns(order.positions[:, begin:end], config), order.mask(begin, end)
    for index, layer in enumerate(layers):
        x = run_layer(layer, checkpoint_layers, x, turn, cache, index, mask)
    if cache is not None:
        cache.advance(num_steps)
    return x[:, -num_steps:]
