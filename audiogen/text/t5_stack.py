"""T5's encoder: its attention depends on the distance of two tokens, and on no absolute position.

Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.1; the gated feed-forward of T5 1.1 and
Flan-T5 is Shazeer 2020, "GLU Variants Improve Transformer". Weights have the names, and shapes the keys of config.json,
that transformers gives them, so that its files are read and written as they are.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, Range, check_ranges
from audiogen.errors import InputError
from audiogen.packed import Linear


@dataclass(frozen=True)
class T5Shape:
    """Sizes of an encoder, under the names and with the defaults of transformers' T5Config.

    d_kv: width of a head; num_heads of them need not be as wide as d_model.
    relative_attention_num_buckets: half of them for what comes before a token, half for what comes after; distances
        from relative_attention_max_distance share the last one.
    """

    vocab_size: Positive = 32128
    d_model: Positive = 512
    d_kv: Positive = 64
    d_ff: Positive = 2048
    num_layers: Positive = 6
    num_heads: Positive = 8
    relative_attention_num_buckets: Annotated[int, Range(4)] = 32
    relative_attention_max_distance: int = 128
    dropout_rate: Annotated[float, Range(0, 1, below=True)] = 0.1
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: Literal["relu", "gated-gelu"] = "relu"  # T5; T5 1.1 and Flan-T5

    architecture: ClassVar[str] = "T5EncoderModel"  # of transformers, with this encoder alone

    def __post_init__(self) -> None:
        check_ranges(self)
        buckets, longest = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if buckets % 2:
            raise InputError(f"relative_attention_num_buckets is {buckets}; it must be even")
        if longest <= buckets // 4:
            raise InputError(
                f"relative_attention_max_distance is {longest}; it must be above {buckets // 4}, 1/4 of the buckets"
            )

    def to_dict(self) -> dict[str, Any]:
        """What config.json of a T5EncoderModel holds."""
        kind = {"model_type": "t5", "is_encoder_decoder": False, "use_cache": False}
        return {**kind, **dataclasses.asdict(self), "pad_token_id": 0, "eos_token_id": 1}


class Attention(nn.Module):
    """Self-attention whose scores q k are not divided by sqrt(d_kv), plus a bias for each distance and head."""

    def __init__(self, shape: T5Shape, has_bias: bool):
        super().__init__()
        inner = shape.num_heads * shape.d_kv
        self.num_heads, self.dropout = shape.num_heads, shape.dropout_rate
        self.q = Linear(shape.d_model, inner, bias=False)
        self.k = Linear(shape.d_model, inner, bias=False)
        self.v = Linear(shape.d_model, inner, bias=False)
        self.o = Linear(inner, shape.d_model, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(shape.relative_attention_num_buckets, shape.num_heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, D] -> [B, L, D]; bias, added to the scores, broadcasts to [B, heads, L, L]."""
        q, k, v = (
            rearrange(project(x), "b l (h d) -> b h l d", h=self.num_heads)
            for project in (self.q, self.k, self.v)
        )
        dropout = self.dropout if self.training else 0.0
        # scale 1: T5 has the usual 1 / sqrt(d_kv) in its initial weights instead
        mixed = F.scaled_dot_product_attention(q, k, v, bias, dropout, scale=1.0)  # [B, heads, L, d_kv]
        return self.o(rearrange(mixed, "b h l d -> b l (h d)"))


class FeedForward(nn.Module):
    """wo(relu(wi x)); gated: wo(gelu(wi_0 x) * wi_1 x)."""

    def __init__(self, shape: T5Shape):
        super().__init__()
        self.gated = shape.feed_forward_proj == "gated-gelu"
        if self.gated:
            self.wi_0 = Linear(shape.d_model, shape.d_ff, bias=False)
            self.wi_1 = Linear(shape.d_model, shape.d_ff, bias=False)
        else:
            self.wi = Linear(shape.d_model, shape.d_ff, bias=False)
        self.wo = Linear(shape.d_ff, shape.d_model, bias=False)
        self.dropout = nn.Dropout(shape.dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        if self.gated:
            hidden = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        else:
            hidden = F.relu(self.wi(x))
        return self.wo(self.dropout(hidden))


class Block(nn.Module):
    """Self-attention, then the feed-forward: each of the normed input, and added to it."""

    def __init__(self, shape: T5Shape, has_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList()
        for name, part in (
            ("SelfAttention", Attention(shape, has_bias)),
            ("DenseReluDense", FeedForward(shape)),
        ):
            norm = nn.RMSNorm(shape.d_model, shape.layer_norm_epsilon)
            layer = {name: part, "layer_norm": norm, "dropout": nn.Dropout(shape.dropout_rate)}
            self.layer.append(nn.ModuleDict(layer))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[B, L, D] -> [B, L, D]."""
        (attend, norm, dropout), (feed, norm_2, dropout_2) = (layer.children() for layer in self.layer)
        x = x + dropout(attend(norm(x), bias))
        return x + dropout_2(feed(norm_2(x)))


class T5Stack(nn.Module):
    """Token ids to features; `config` is its shape. On any other device than "meta" its weights are random."""

    def __init__(self, shape: T5Shape):
        super().__init__()
        self.config = shape
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.d_model)
        self.block = nn.ModuleList([Block(shape, i == 0) for i in range(shape.num_layers)])
        self.final_layer_norm = nn.RMSNorm(shape.d_model, shape.layer_norm_epsilon)
        self.dropout = nn.Dropout(shape.dropout_rate)
        self._initialise()

    def _initialise(self) -> None:
        """Normal weights, 1 / sqrt(what goes in) wide; the norms stay at 1."""
        shape = self.config
        deviations = {
            "embed_tokens": 1.0,  # looked up, not summed
            "q": (shape.d_model * shape.d_kv) ** -0.5,  # with the 1 / sqrt(d_kv) of other attention's scores
            "k": shape.d_model**-0.5,
            "v": shape.d_model**-0.5,
            "o": (shape.num_heads * shape.d_kv) ** -0.5,
            "relative_attention_bias": shape.d_model**-0.5,  # small beside the scores, which begin around 1
            **dict.fromkeys(("wi", "wi_0", "wi_1"), shape.d_model**-0.5),
            "wo": shape.d_ff**-0.5,
        }
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=deviations[name.rpartition(".")[2]])

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """ids int64 [B, L] -> [B, L, D]; mask bool [B, L] is False for padding, which no token attends to."""
        shape, position = self.config, torch.arange(ids.shape[1], device=ids.device)
        sizes = shape.relative_attention_num_buckets, shape.relative_attention_max_distance
        which = buckets(position - position[:, None], *sizes)  # [L queries, L keys]
        # what every layer adds to the scores, by distance and head; its weights are in the first
        table = self.get_parameter("block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        bias = rearrange(F.embedding(which, table), "q k h -> 1 h q k")
        if mask is not None:
            bias = bias.masked_fill(~mask[:, None, None], torch.finfo(bias.dtype).min)  # [B, heads, L, L]
        x = self.dropout(self.embed_tokens(ids))
        for block in self.block:
            x = block(x, bias)
        return self.dropout(self.final_layer_norm(x))


def buckets(offset: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Position of a key minus its query's (int64, any shape) -> number of the bucket of such offsets.

    The first half is for keys before the query, or the query itself, the second for keys after it. Of a half, the
    first half has one distance a bucket, and the rest grow with the logarithm of the distance up to max_distance.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offset.abs()
    # float32 and in this order: distances such as 32 lie where one bucket ends, and T5 was trained with this rounding
    share = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (half - exact)).long()).clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)
