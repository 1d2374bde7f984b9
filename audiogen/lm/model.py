"""TokenLM: the decoder over codec tokens, conditioned on text, and its training loss.

The architecture of AudioGen (Kreuk et al., 2022) and MusicGen (Copet et al., 2023) as they were released:
the embeddings of the K codes of a step are summed, K heads predict the K codes of the next step. Text enters through
cross-attention, or comes first in the sequence of a pretrained backbone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.config import Positive, PositiveFloat, Range, check_ranges
from audiogen.errors import InputError
from audiogen.files.tensors import unfilled
from audiogen.interfaces import Condition
from audiogen.lm import backbone
from audiogen.lm.backbone import BackboneBlock, BackboneConfig
from audiogen.lm.efficient import Recompute, cross_entropy, run_layer
from audiogen.lm.patterns import (
    Pattern,
    PatternName,
    PatternSchedule,
    interleave,
    make_pattern,
    schedule,
)
from audiogen.lm.transformer import Block, KeysValues, KVCache, sinusoidal_positions
from audiogen.text.condition import null

# What gives a weight, by its name in TokenLM, to those that pack it: float32, ROWS of its rows at a time.
Read = Callable[[str], Iterable[Tensor]]
ROWS = 64  # float32 of a bfloat16 weight never exists as a whole


@dataclass(frozen=True)
class LMConfig:
    """What a TokenLM is. AudioGen medium: 4, 2048, 1536, 48, 24, and the defaults.

    num_codebooks: K. codebook_size: V; id V is the special token. dim: D, also the width of the condition.
    ff_mult: width of the feed-forward layer in multiples of dim. dropout: on each residual update, in training.
    pattern: delay, parallel, flatten or coarse_first. delays: for delay, one per codebook; () is 0 .. K-1.
    embedding_scale: of the initial code embeddings, 1 as AudioGen. Their sum then has a standard deviation of
    sqrt(K / D), beside positions of 0.7, so at first codes weigh less than positions: short trainings want more.
    backbone: a Qwen3 of these sizes in place of AudioGen's layers; ff_mult is then not used.
    infills: it was trained to fill gaps too, see `lm.infill`.
    """

    num_codebooks: Positive
    codebook_size: Positive
    dim: int
    num_layers: Positive
    num_heads: Positive
    ff_mult: Positive = 4
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.0
    pattern: PatternName = "delay"
    delays: tuple[int, ...] = ()
    embedding_scale: PositiveFloat = 1.0
    backbone: BackboneConfig | None = None
    infills: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, "lm")
        if self.backbone is not None:
            if self.num_heads % self.backbone.num_kv_heads:
                raise InputError(
                    f"lm.num_heads is {self.num_heads}; it must be a multiple of lm.backbone.num_kv_heads "
                    f"({self.backbone.num_kv_heads})"
                )
        elif self.dim < 4 or self.dim % self.num_heads or self.dim % 2:
            raise InputError(
                f"lm.dim is {self.dim}; it must be even, at least 4, and a multiple of lm.num_heads "
                f"({self.num_heads})"
            )
        if self.delays and self.pattern != "delay":
            raise InputError(f"lm.delays is only for pattern delay, not {self.pattern}: leave it empty")
        if self.delays and (len(self.delays) != self.num_codebooks or min(self.delays) != 0):
            raise InputError(
                f"lm.delays is {list(self.delays)}; it needs {self.num_codebooks} delays, one per codebook, "
                "the smallest 0"
            )

    def pattern_of(self, num_frames: int) -> Pattern:
        """The interleaving of `num_frames` frames."""
        return make_pattern(self.pattern, self.num_codebooks, num_frames, self.delays or None)

    def schedule(self) -> PatternSchedule:
        """The interleaving without an end; InputError for a pattern that depends on the number of frames."""
        return schedule(self.pattern, self.num_codebooks, self.delays or None)


class TokenLM(nn.Module):
    """Causal transformer from interleaved codes to the logits of the next step; its only state is the cache."""

    independent_rows = False  # another number of rows may call other matrix kernels; see `sample.Decoder`

    def __init__(self, config: LMConfig):
        super().__init__()
        self.config = config
        self.special = config.codebook_size  # the input id of "no code here": start, delays, past the end
        # One table and one matrix for all codebooks, V + 1 and V rows for each in turn.
        self.embedding = nn.Embedding(config.num_codebooks * (config.codebook_size + 1), config.dim)
        sizes, qwen3 = (config.dim, config.num_heads), config.backbone
        layers = range(config.num_layers)
        self.out_norm: nn.Module
        if qwen3 is None:
            self.layers = nn.ModuleList(Block(*sizes, config.ff_mult, config.dropout) for _ in layers)
            self.out_norm = nn.LayerNorm(config.dim, eps=1e-5)
        else:
            self.layers = nn.ModuleList(BackboneBlock(*sizes, config.dropout, qwen3) for _ in layers)
            self.out_norm = nn.RMSNorm(config.dim, qwen3.norm_eps)
        self.heads = nn.Linear(config.dim, config.num_codebooks * config.codebook_size, bias=False)
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise as AudioGen was: audiocraft's `LMModel._init_weights`, "gaussian" with "current" depth."""

        def truncated_normal(weight: Tensor, scale: float = 1.0) -> None:  # [outputs, inputs]
            std = scale / math.sqrt(weight.shape[1])  # unit variance out of unit variance in
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std)

        truncated_normal(self.embedding.weight, self.config.embedding_scale)
        truncated_normal(self.heads.weight)
        for depth, block in enumerate(self.layers, start=1):
            if isinstance(
                block, BackboneBlock
            ):  # as below, and what is random in place of a pretrained one alike
                for linear in (block.self_attention.out_proj, block.ff_out):
                    truncated_normal(linear.weight, 1 / math.sqrt(2 * depth))
                for linear in (block.self_attention.in_proj, block.ff_in):
                    truncated_normal(linear.weight)
                continue
            assert isinstance(block, Block)
            own, cross = block.self_attention, block.cross_attention
            # Each update adds to the residual stream's variance: later layers add less, as 1 / sqrt(2 depth).
            for linear in (own.out_proj, cross.out_proj, block.ff_in, block.ff_out):
                truncated_normal(linear.weight, 1 / math.sqrt(2 * depth))
            # audiocraft's method does not reach these three, which keep PyTorch's default for linear layers,
            # a third of the variance: attention begins flat.
            for linear in (own.in_proj, cross.query_proj, cross.text_proj):
                bound = 1 / math.sqrt(linear.in_features)
                nn.init.uniform_(linear.weight, -bound, bound)
        # Norms stay at one and zero.

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    def blocks(self) -> list[Block]:
        """The layers, from the first to the last."""
        return cast("list[Block]", list(self.layers))

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> KVCache:
        """An empty cache for `max_steps` steps, with the condition's keys and values of every layer."""
        if self.config.backbone is not None:
            given = condition or null(batch_size, self.config.dim, self.device)
            like = self.embedding.weight
            return backbone.new_cache(self.config.backbone, self.layers, given, max_steps, like)
        text, text_mask = self._project_text(condition)
        heads = self.config.num_heads
        shape = (len(self.layers), batch_size, heads, max_steps, self.config.dim // heads)
        return KVCache(shape, text, text_mask, like=self.embedding.weight)

    def forward(
        self,
        steps: Tensor,
        condition: Condition | None = None,
        cache: KVCache | None = None,
        checkpoint_layers: Recompute = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, K, S, V] for steps [B, K, S]; those at step s are of the codes at step s + 1.

        condition: text with D-wide tokens; None is no text, which equals a condition of zeros. A cache from
        `new_cache` holds the condition; `steps` then continue those seen, and the cache advances by S.
        checkpoint_layers: recompute each layer in the backward pass instead of keeping its activations; "selective"
        keeps the products, see `efficient.run_layer`. positions: int64 [S] or [B, S] of the steps, without a cache,
        which has its own; None is 0, 1, 2 ...
        """
        return self.logits(self.features(steps, condition, cache, checkpoint_layers, positions))

    def features(
        self,
        steps: Tensor,
        condition: Condition | None = None,
        cache: KVCache | None = None,
        checkpoint_layers: Recompute = False,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Steps [B, K, S] -> what the heads see [B, S, D]; arguments as in `forward`."""
        num_steps = steps.shape[2]
        if condition is not None and cache is not None:
            raise ValueError("got a condition and a cache, which holds its own: pass only the cache")
        offsets = torch.arange(self.config.num_codebooks, device=steps.device)[:, None] * (self.special + 1)
        x = self.embedding(steps + offsets).sum(1)  # [B, S, D]
        if self.config.backbone is not None:
            given = cache or condition or null(len(x), self.config.dim, x.device)
            run = backbone.run(self.config.backbone, self.layers, x, given, checkpoint_layers, positions)
            return self.out_norm(run)
        if cache is None:
            positions = torch.arange(num_steps, device=steps.device) if positions is None else positions
            mask = None
            text: list[KeysValues] | list[Tensor] | None = None
            text_mask = None
            if condition is not None:  # each layer makes its keys and values
                text = [condition.tokens.to(self.embedding.weight.dtype)] * len(self.layers)
                text_mask = condition.mask[:, None, None]
        else:
            cache.check(num_steps)
            positions, mask = cache.positions(num_steps), cache.mask(num_steps)
            text, text_mask = cache.text, cache.text_mask
        x = x + sinusoidal_positions(positions, self.config.dim).to(x.dtype)
        for index, block in enumerate(self.blocks()):
            arguments = (x, text[index] if text else None, text_mask, cache, index, mask)
            x = run_layer(block, checkpoint_layers, *arguments)
        if cache is not None:
            cache.advance(num_steps)
        return self.out_norm(x)

    def logits(self, features: Tensor) -> Tensor:
        """Features [B, S, D] -> logits [B, K, S, V] (a view of memory laid out as B, S, K, V)."""
        return rearrange(self.heads(features), "b s (k v) -> b k s v", k=self.config.num_codebooks)

    def step(self, steps: Tensor, cache: KVCache) -> Tensor:
        """Steps [B, K, S] after those of the cache -> logits [B, K, V] of the step after the last."""
        return self.logits(self.features(steps, cache=cache)[:, -1:])[:, :, 0]

    def _project_text(self, condition: Condition | None) -> tuple[list[KeysValues] | None, Tensor | None]:
        """Keys and values of the condition in every layer, and its mask as [B, 1, 1, L]."""
        if condition is None:
            return None, None
        tokens = condition.tokens.to(self.embedding.weight.dtype)
        text = [block.cross_attention.project(tokens) for block in self.blocks()]
        return text, condition.mask[:, None, None]


def reader(lm: TokenLM) -> Read:
    """The weights of a model in memory."""
    return lambda name: (rows.float().cpu() for rows in lm.get_parameter(name).detach().split(ROWS))


def rebuild(
    config: LMConfig, read: Read, like: Tensor, matrix: Callable[[Tensor], nn.Module] | None = None
) -> TokenLM:
    """A TokenLM for inference with the weights that `read` gives, each converted as it comes.

    like: of their device and number type. matrix: makes the module of a product from its weight [outputs, inputs]
    instead, such as one that holds int8.
    """
    with unfilled():
        lm = TokenLM(config).eval()
    for name, module in list(lm.named_modules()):
        if matrix is not None and isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            lm.get_submodule(parent).add_module(child, matrix(torch.cat(list(read(f"{name}.weight")))))
            continue
        for which, _ in list(module.named_parameters(recurse=False)):
            weight = torch.cat([rows.to(like.device, like.dtype) for rows in read(f"{name}.{which}")])
            setattr(module, which, nn.Parameter(weight, requires_grad=False))
    return lm


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Weights float32 [rows, inputs] -> int8 values in float32, same shape, and scales [rows]: values x scales.

    Symmetric: the largest magnitude of every row becomes 127.
    """
    largest = rows.abs().amax(1)
    return (rows * (127 / largest.clamp(min=1e-30))[:, None]).round_(), largest / 127  # 1e-30: a row of zeros


def quantise_groups(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Weights float32 [rows, inputs], with zeros to whole groups -> values -8 .. 7, as many, and scales [rows, groups].

    Of a few scales of each group the one with the least squared error. Values are float32.
    """
    weights = F.pad(rows, (0, -rows.shape[1] % group)).unflatten(1, (-1, group))
    largest = weights.gather(2, weights.abs().argmax(2, keepdim=True))
    values, scales, least = weights, largest, torch.full_like(largest, torch.inf)
    for steps in (-7.0, -7.5, -8.0, -8.5, -9.0):  # the largest weight, by sign, is on the side that has 8
        scale = torch.where(largest == 0, 1.0, largest / steps)
        candidate = (weights / scale).round_().clamp_(-8, 7)
        error = (candidate * scale - weights).square_().sum(2, keepdim=True)
        better = error < least
        values, scales = torch.where(better, candidate, values), torch.where(better, scale, scales)
        least = torch.minimum(error, least)
    return values.flatten(1), scales[..., 0]


class TeacherForcing(NamedTuple):
    """One training example: the steps the model sees, those it predicts, and which of them are codes."""

    inputs: Tensor  # int64 [B, K, S - 1]
    targets: Tensor  # int64 [B, K, S - 1], the special token where the mask is False
    mask: Tensor  # bool [B, K, S - 1]


def teacher_forcing(
    lm: TokenLM, codes: Tensor, lengths: Tensor | None = None, pattern: Pattern | None = None
) -> TeacherForcing:
    """Interleave codes [B, K, T] for training; frames from `lengths` [B] on are neither seen nor predicted.

    pattern: in place of that of T frames.

    The whole pattern is trained. audiocraft drops its tail, the steps in which the first codebooks have ended,
    though generation runs through it; with the delay pattern the first T targets are theirs.
    """
    num_frames = codes.shape[2]
    if lengths is not None:
        past_end = torch.arange(num_frames, device=codes.device) >= lengths.to(codes.device)[:, None]
        codes = codes.masked_fill(past_end[:, None], lm.special)
    steps = interleave(codes, pattern or lm.config.pattern_of(num_frames), lm.special)
    targets = steps[..., 1:]
    return TeacherForcing(steps[..., :-1], targets, targets != lm.special)


def token_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats -> (mean over codebooks, per codebook [K]).

    logits [B, K, S, V], targets int64 [B, K, S], mask bool [B, K, S]: True where there is a code to predict.
    Each codebook is averaged over its own codes and weighs the same; one without codes counts 0. In float32,
    whatever the logits' type.
    """
    # [B, S, K, V] is how TokenLM's logits lie in memory: flattening them so copies nothing.
    flat = rearrange(logits, "b k s v -> (b s k) v")
    labels = rearrange(targets.masked_fill(~mask, -1), "b k s -> (b s k)")
    sums = rearrange(cross_entropy(flat, labels), "(bs k) -> bs k", k=targets.shape[1]).sum(0)
    per_codebook = sums / mask.sum((0, 2)).clamp(min=1)
    return per_codebook.mean(), per_codebook
