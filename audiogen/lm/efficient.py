"""What a training step of a language model need not spend: copies of logits, kept activations, slow attention.

Nothing here changes what is computed but for rounding; the plain form of each stands in the tests as its oracle.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from audiogen.device import fast_attention

Recompute = bool | Literal["selective"]

# logits taken at a time: half a core's cache; few launches of a GPU
CHUNK = {"cpu": 1 << 17, "cuda": 1 << 25}

aten = torch.ops.aten
KEPT = frozenset(
    (
        aten.mm.default,
        aten.addmm.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
    )
)


class _CrossEntropy(torch.autograd.Function):
    """Logits [n, V], labels int64 [n], -1 for none -> losses in float32 [n], 0 where there is no label.

    The logits are all that is kept, in their own type: their softmax is made a chunk at a time, in float32 and in
    the cache, once for the loss and once more for the gradient. `F.cross_entropy` keeps a copy of all in float32,
    and its backward pass makes another.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        losses = [
            F.cross_entropy(logits[rows].float(), labels[rows], ignore_index=-1, reduction="none")
            for rows in _chunks(logits)
        ]
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors  # [n, V], [n]
        gradient = gradient.float().masked_fill(labels < 0, 0)[:, None]
        labels = labels.clamp(min=0)[:, None]
        result = torch.empty_like(logits)
        for rows in _chunks(logits):
            chunk = logits[rows].float().softmax(1)
            chunk.mul_(gradient[rows]).scatter_add_(1, labels[rows], -gradient[rows])
            result[rows] = chunk
        return result, None


def _chunks(logits: Tensor) -> Iterator[slice]:  # [n, V]
    size = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // logits.shape[1])
    return (slice(begin, begin + size) for begin in range(0, max(1, len(logits)), size))


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [n, V], labels int64 [n], -1 for none -> losses in nats, float32 [n], 0 where there is no label."""
    losses: Tensor = _CrossEntropy.apply(logits, labels)
    return losses


class Dropout(nn.Dropout):
    """Dropout whose mask costs a CPU a fifth: PyTorch draws a double for each element, this 16 bits of an int64.

    p, below 1, is met to 2^-16. On a GPU, and where it is compiled, PyTorch's own is fused, and is taken.
    """

    def forward(self, x: Tensor) -> Tensor:  # any shape
        if not self.training or not self.p or x.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(x)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # 4 x 16 bits
        kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= round(self.p * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.p))


def run_layer(layer: nn.Module, recompute: Recompute, x: Tensor, *others: object) -> Tensor:
    """layer(x [B, S, D], ...), its activations recomputed in the backward pass: all, none or `selective`ly.

    Selective recomputation ("Reducing Activation Recomputation in Large Transformer Models", Korthikanti et al.,
    2022, section 5) keeps what is dear to compute, products with weights and fused attention, and makes what is
    cheap again: norms, GELU, dropout, sums and the weights of attention. No product with weights is computed twice.
    """
    run = partial(_run_fast, layer) if layer.training and not torch.compiler.is_compiling() else layer
    if not recompute:
        return run(x, *others)
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(run, x, *others, **options)


def _run_fast(layer: nn.Module, x: Tensor, *others: object) -> Any:  # x [B, S, D]
    with fast_attention(x.device, x.shape[1]):  # here, so that recomputing does as was done
        return layer(x, *others)


def _policy(context: object, operator: Any, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
