"""The decoder's parts: attention, the pre-norm block, the static key-value cache and sinusoidal positions.

Layers have no biases except LayerNorm's, so cross-attention to a condition of zeros adds exactly nothing.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.lm.efficient import Dropout

KeysValues = tuple[Tensor, Tensor]  # each [B, heads, positions, D / heads]


def sinusoidal_positions(positions: Tensor, width: int) -> Tensor:
    """Sinusoids [..., D] of integer positions [...]: cat(cos, sin) of position / 10000^(i / (D/2 - 1)).

    "Attention Is All You Need" (Vaswani et al., 2017), section 3.5, in the order and with the denominator of the
    public MusicGen and AudioGen weights. Always float32: in bfloat16 positions above 256 already collide.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1)
    phase = positions.float()[..., None] / 10000.0**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class KVCache:
    """Keys and values of the steps seen so far, in memory allocated once, and those of the text.

    self_keys, self_values: [layers, B, heads, S_max, D / heads], of which the first `length` steps are filled.
    text: keys and values of the condition for every layer, or None without a condition.
    text_mask: bool [B, 1, 1, L], or None. `kernels.graph.StaticCache` keeps its length on the device.
    places: int64 [S_max], the position of each step, or None where that is its number; see `place`.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int, int],
        text: list[KeysValues] | None,
        text_mask: Tensor | None,
        like: Tensor,
    ):
        self.self_keys = like.new_empty(shape)
        self.self_values = like.new_empty(shape)
        self.length = 0
        self.text = text
        self.text_mask = text_mask
        self.places: Tensor | None = None

    def place(self, places: Tensor) -> None:
        """Give the steps other positions than 0, 1, 2 ..., before the first of them: places int64 [S], S = S_max."""
        self.places = places.to(self.self_keys.device)

    @property
    def max_steps(self) -> int:
        """S_max, the number of steps there is room for."""
        return self.self_keys.shape[3]

    def check(self, num_new: int) -> None:
        """ValueError where there is no room for so many more steps."""
        if self.length + num_new > self.max_steps:
            raise ValueError(
                f"the cache is for {self.max_steps} steps; it holds {self.length} and {num_new} are new"
            )

    def positions(self, num_new: int) -> Tensor:
        """int64 [S] of the next steps."""
        if self.places is not None:
            return self.places[self.length : self.length + num_new]
        return torch.arange(self.length, self.length + num_new, device=self.self_keys.device)

    def mask(self, num_new: int) -> Tensor | None:
        """bool [S, S_all], what each of the next steps attends to; None where SDPA's own causal mask serves."""
        if num_new == 1 or not self.length:
            return None
        num_all = self.length + num_new  # SDPA would align the first query with the first key
        mask = torch.ones(num_new, num_all, dtype=torch.bool, device=self.self_keys.device)
        return mask.tril(self.length)

    def advance(self, num_new: int) -> None:
        """All layers have appended so many steps."""
        self.length += num_new

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Store a layer's new keys and values [B, heads, S, D / heads] and return all that may be attended to."""
        end = self.length + keys.shape[2]
        self.self_keys[layer, :, :, self.length : end] = keys
        self.self_values[layer, :, :, self.length : end] = values
        return self.self_keys[layer, :, :, :end], self.self_values[layer, :, :, :end]


class SelfAttention(nn.Module):
    """Causal multi-head attention; queries, keys and values come from one product."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cache: KVCache | None, layer: int, mask: Tensor | None) -> Tensor:
        """x [B, S, D] -> [B, S, D]; with a cache, x holds the steps after those cached, and mask is the cache's."""
        queries, keys, values = rearrange(
            self.in_proj(x), "b s (three h d) -> three b h s d", three=3, h=self.num_heads
        )
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        attended = F.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None and x.shape[1] > 1
        )
        return self.out_proj(rearrange(attended, "b h s d -> b s (h d)"))


class CrossAttention(nn.Module):
    """Multi-head attention from the steps to the condition's positions."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query_proj = nn.Linear(width, width, bias=False)
        self.text_proj = nn.Linear(width, 2 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def project(self, tokens: Tensor) -> KeysValues:
        """Keys and values of the condition's tokens [B, L, D]: once per prompt, whatever the number of steps."""
        both = rearrange(self.text_proj(tokens), "b l (two h d) -> two b h l d", two=2, h=self.num_heads)
        return both[0], both[1]

    def forward(self, x: Tensor, text: KeysValues, mask: Tensor) -> Tensor:
        """x [B, S, D], keys and values of the text, mask bool [B, 1, 1, L] -> [B, S, D]."""
        queries = rearrange(self.query_proj(x), "b s (h d) -> b h s d", h=self.num_heads)
        attended = F.scaled_dot_product_attention(queries, *text, attn_mask=mask)
        return self.out_proj(rearrange(attended, "b h s d -> b s (h d)"))


class Block(nn.Module):
    """Pre-norm layer: self-attention, cross-attention, feed-forward with the exact (erf) GELU.

    Dropout acts on each of the three updates (Vaswani et al., section 5.4), not inside them: masking attention
    weights would give up the fused kernels.
    """

    def __init__(self, width: int, num_heads: int, ff_mult: int, dropout: float):
        super().__init__()
        self.norm_self = nn.LayerNorm(width, eps=1e-5)
        self.self_attention = SelfAttention(width, num_heads)
        self.norm_cross = nn.LayerNorm(width, eps=1e-5)
        self.cross_attention = CrossAttention(width, num_heads)
        self.norm_ff = nn.LayerNorm(width, eps=1e-5)
        self.ff_in = nn.Linear(width, ff_mult * width, bias=False)
        self.ff_out = nn.Linear(ff_mult * width, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        text: KeysValues | Tensor | None,
        text_mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        mask: Tensor | None,
    ) -> Tensor:
        """x [B, S, D] -> [B, S, D]; without text no cross-attention, which equals a condition of zeros.

        text: keys and values, or the tokens [B, L, D] that make them: FSDP gathers weights for this call alone.
        """
        x = x + self.dropout(self.self_attention(self.norm_self(x), cache, layer, mask))
        if text is not None:
            assert text_mask is not None
            text = self.cross_attention.project(text) if isinstance(text, Tensor) else text
            x = x + self.dropout(self.cross_attention(self.norm_cross(x), text, text_mask))
        return x + self.dropout(self.ff_out(F.gelu(self.ff_in(self.norm_ff(x)))))
