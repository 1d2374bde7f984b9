"""What a training step is spared, each against its plain form: the same numbers, for less memory or time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from audiogen.device import MOST_STEPS, fast_attention
from audiogen.interfaces import Condition
from audiogen.lm import efficient
from audiogen.lm.efficient import Dropout, Recompute, cross_entropy
from audiogen.lm.model import LMConfig, TokenLM

CONFIG = LMConfig(num_codebooks=3, codebook_size=11, dim=32, num_layers=3, num_heads=4, dropout=0.2)
STEPS = torch.randint(0, 12, (2, 3, 21), generator=torch.Generator().manual_seed(0))
CPU = torch.device("cpu")


def text() -> Condition:
    tokens = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))
    return Condition(tokens, torch.arange(5) < torch.tensor([[5], [3]]))


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 17])
def test_cross_entropy_in_chunks_is_the_plain_one(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(efficient.CHUNK, "cpu", chunk)
    random = torch.Generator().manual_seed(0)
    start = (5 * torch.randn(23, 7, generator=random)).to(dtype)
    start[0, 3] = 300.0  # no overflow
    labels = torch.randint(-1, 7, (23,), generator=random)
    weights = torch.rand(23, generator=random)
    found = []
    for function in (plain_cross_entropy, cross_entropy):
        logits = start.clone().requires_grad_()
        losses = function(logits, labels)
        (losses * weights).sum().backward()
        assert logits.grad is not None and losses.dtype == torch.float32
        found.append((losses.detach(), logits.grad))
    (losses, gradient), (ours, our_gradient) = found
    assert torch.equal(ours, losses) and not ours[labels < 0].any() and (labels < 0).any()
    # The softmax is made in another way than exp(log_softmax), and rounded once, as there.
    torch.testing.assert_close(
        our_gradient, gradient, atol=1e-7, rtol=1e-5 if dtype == torch.float32 else 8e-3
    )


def test_cross_entropy_keeps_nothing_but_the_logits() -> None:
    kept: dict[str, list[int]] = {"plain": [], "ours": []}
    for name, function in (("plain", plain_cross_entropy), ("ours", cross_entropy)):
        logits = torch.randn(64, 128).bfloat16().requires_grad_()

        def keep(x: Tensor, sizes: list[int] = kept[name], begin: int = logits.data_ptr()) -> Tensor:
            if x.data_ptr() != begin and x.is_floating_point():
                sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            function(logits, torch.zeros(64, dtype=torch.long))
    assert sum(kept["plain"]) >= 64 * 128 * 4 and sum(kept["ours"]) == 0


def test_no_logits_no_losses() -> None:
    assert cross_entropy(torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)).shape == (0,)


class Products(TorchDispatchMode):
    """Counts products with weights."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def held_bytes() -> Iterator[list[int]]:
    """Yields a list that is given, at the end, the bytes allocated within and not freed."""
    total: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        yield total
    events = found.profiler.kineto_results.events()  # type: ignore[union-attr]
    total.append(sum(event.nbytes() for event in events if event.name() == "[memory]"))


def train_once(recompute: Recompute, precision: torch.dtype) -> tuple[Tensor, dict[str, Tensor], int, int]:
    """Features, gradients, bytes held for the backward pass and products of the backward pass."""
    torch.manual_seed(0)
    lm = TokenLM(CONFIG).train()
    with torch.autocast("cpu", precision, enabled=precision != torch.float32), held_bytes() as held:
        features = lm.features(STEPS, text(), checkpoint_layers=recompute)
    with Products() as products:
        features.float().square().mean().backward()
    gradients = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert len(gradients) == len(list(lm.parameters())) - 1  # all but the heads'
    return features.detach(), gradients, held[0], products.counts["aten::mm"]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_recomputing_trades_memory_for_work_and_changes_nothing(precision: torch.dtype) -> None:
    """Dropout too: what is recomputed draws again what it drew."""
    kept = train_once(False, precision)
    selective = train_once("selective", precision)
    everything = train_once(True, precision)
    for other in (selective, everything):
        assert torch.equal(other[0], kept[0])
        for name, gradient in kept[1].items():
            assert torch.equal(other[1][name], gradient), name
    assert everything[2] < 0.8 * selective[2] < 0.8 * 0.8 * kept[2]
    assert selective[3] == kept[3]  # no product with weights is made twice
    assert (
        everything[3] == kept[3] + 3 * 7
    )  # all of three layers are: in, out, query, text, out and the perceptron's two


def test_fast_attention_is_attention() -> None:
    """Under bfloat16 products of matrices, with the error of bfloat16; else, and after it, PyTorch's own kernel."""
    random = torch.Generator().manual_seed(0)
    start = torch.randn(3, 2, 4, 9, 8, generator=random)  # queries, keys, values
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[1, ..., 6:] = False

    def run(dtype: torch.dtype, fast: bool, causal: bool) -> tuple[Tensor, Counter[str]]:
        leaf = start.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32), Products() as operators:
            parts = leaf.to(dtype).unbind()
            with fast_attention(CPU, 9 if fast else MOST_STEPS + 1):
                out = F.scaled_dot_product_attention(
                    *parts, attn_mask=None if causal else mask, is_causal=causal
                )
        out.float().square().sum().backward()
        assert leaf.grad is not None
        return torch.cat([out.detach().float().flatten(), leaf.grad.flatten()]), operators.counts

    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for causal in (True, False):
        exact, operators = run(torch.float32, True, causal)
        assert operators[fused] == 1
        slow, operators = run(torch.bfloat16, False, causal)
        assert operators[fused] == 1
        ours, operators = run(torch.bfloat16, True, causal)
        assert operators[fused] == 0
        error, slow_error = ((x - exact).norm() / exact.norm() for x in (ours, slow))
        assert error < 0.01 and error < 2.5 * slow_error
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_only_training_in_bfloat16_leaves_the_fused_kernel() -> None:
    lm = TokenLM(CONFIG)
    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    for training_mode, bfloat16, expected in ((True, True, 0), (False, True, 6), (True, False, 6)):
        lm.train(training_mode)
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), Products() as operators:
            lm(STEPS, text())
        assert operators.counts[fused] == expected


def test_dropout_drops_its_share_at_random_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout = Dropout(0.25).train()
    x = torch.ones(1000, 403, requires_grad=True)  # no multiple of four
    y = dropout(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    y.backward(torch.full_like(y, 2.0))
    assert x.grad is not None and torch.equal(x.grad, 2 * y.detach())
    kept = (y > 0).float()
    assert kept.mean().item() == pytest.approx(0.75, abs=4 * (0.25 * 0.75 / kept.numel()) ** 0.5)
    flat = kept.flatten() - 0.75
    for shift in (1, 2, 3, 4, 403):  # the four of a word, words, rows: independent
        correlation = (flat[shift:] * flat[:-shift]).mean().item() / (0.25 * 0.75)
        assert abs(correlation) < 4 / kept.numel() ** 0.5
    first = y.detach()
    assert not torch.equal(dropout(x), first)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), first)
    assert dropout.eval()(x) is x and Dropout(0.0)(x) is x
