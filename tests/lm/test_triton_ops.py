"""The fused kernels against plain PyTorch: on a GPU where there is one, else by Triton's interpreter."""

import importlib
import os
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from audiogen.interfaces import Condition
from audiogen.lm import ops
from audiogen.lm.matrices import Norm, Weight, quantise
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.ops import Place
from audiogen.lm.static import StaticLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = (
    [torch.float16, torch.bfloat16] if DEVICE == "cuda" else [torch.float16]
)  # no bfloat16 in its products
ROUNDING = {torch.float16: 2e-3, torch.bfloat16: 2e-2}

if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    pytest.importorskip("triton", reason="the fused kernels need triton")
    return importlib.import_module("audiogen.lm.triton_ops")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def assert_near(found: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert found.dtype == dtype and found.shape == exact.shape
    error = (found.double() - exact).abs().max() / exact.abs().max()
    assert error < ROUNDING[dtype], error


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed(fused: ModuleType, dtype: torch.dtype) -> None:
    for rows, num_codebooks, width, position in [(2, 4, 24, 0), (3, 2, 70, 1499), (1, 1, 4, 31)]:
        table = torch.randn(num_codebooks * 12, width, device=DEVICE).to(dtype)
        steps = torch.randint(0, 12, (rows, num_codebooks, 1), device=DEVICE)
        positions = torch.tensor([position], device=DEVICE)
        exact = ops.embed(steps, table.double(), positions)
        assert_near(fused.embed(steps, table, positions), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(2, 40, 24), (16, 17, 300), (3, 16, 4100), (64, 33, 70)]
)
@pytest.mark.parametrize("is_int8", [False, True])
def test_product(
    fused: ModuleType, is_int8: bool, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    """Every combination of what rides on it; the exact one is in float64, from the same rounded numbers."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE).to(dtype)

    x = random(rows, 1, inputs) * 2 + 1  # a mean that is not zero
    matrix, norm = random(outputs, inputs), Norm(random(inputs), random(inputs))
    weight = quantise(matrix) if is_int8 else Weight(matrix)
    double = weight.values.double() * (1 if weight.scales is None else weight.scales[:, None].double())
    for given_norm in (None, norm):
        for gelu in (False, True):
            for residual in (None, random(rows, 1, outputs)):
                exact = ops.product(
                    x.double(), Weight(double), given_norm and Norm(norm.weight.double(), norm.bias.double()),
                    gelu, None if residual is None else residual.double(),
                )  # fmt: skip
                assert_near(fused.product(x, weight, given_norm, gelu, residual), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "heads", "width", "slots"), [(2, 3, 5, 150), (1, 1, 64, 7), (3, 2, 20, 64)])
def test_self_attention_also_round_the_ring(
    fused: ModuleType, rows: int, heads: int, width: int, slots: int, dtype: torch.dtype
) -> None:
    for count in (0, 3, slots - 1, slots, slots + slots // 2):
        keys, values = torch.randn(2, rows, heads, slots, width, device=DEVICE).to(dtype)
        qkv = torch.randn(rows, 1, 3 * heads * width, device=DEVICE).to(dtype)
        at = torch.tensor([count], device=DEVICE)
        last = at.clamp(max=slots - 1)
        place = Place(at % slots, last, torch.arange(slots, device=DEVICE) <= last[:, None])
        exact_keys, exact_values = keys.double(), values.double()
        exact = ops.self_attention(qkv.double(), exact_keys, exact_values, place)
        assert_near(fused.self_attention(qkv, keys, values, place), exact, dtype)
        assert torch.equal(keys.double(), exact_keys) and torch.equal(values.double(), exact_values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_text_attention_under_any_mask(fused: ModuleType, dtype: torch.dtype) -> None:
    rows, heads, width, length = 3, 2, 20, 150
    keys, values = torch.randn(2, rows, heads, length, width, device=DEVICE).to(dtype)
    queries = torch.randn(rows, 1, heads * width, device=DEVICE).to(dtype)
    mask = torch.rand(rows, 1, 1, length, device=DEVICE) < 0.3
    mask[0, ..., :140] = False  # nothing in the first tiles
    mask[1] = False
    mask[..., 149] = True
    exact = ops.text_attention(queries.double(), keys.double(), values.double(), mask)
    assert_near(fused.text_attention(queries, keys, values, mask), exact, dtype)


@pytest.mark.parametrize("dtype", [None, "int8"])
@torch.inference_mode()
def test_a_whole_model(fused: Any, dtype: Any) -> None:
    """Prefill, steps across a block and round the ring, rows with text and without."""
    own = DTYPES[-1]
    lm = TokenLM(LMConfig(3, 21, 24, num_layers=2, num_heads=4)).eval().to(DEVICE, own)
    tokens = torch.randn(2, 5, 24, device=DEVICE) * torch.tensor([1.0, 0.0], device=DEVICE)[:, None, None]
    text = Condition(tokens, torch.ones(2, 5, dtype=torch.bool, device=DEVICE))
    steps = torch.randint(0, 21, (2, 3, 7), device=DEVICE)
    plain, fast = (StaticLM(lm, dtype, capture=False, kernels=kernels, block=4) for kernels in (ops, fused))
    caches = [static.new_cache(text, 2, 4) for static in (plain, fast)]
    for first, end in [(0, 3), *((s, s + 1) for s in range(3, 7))]:
        new = steps[..., first:end]
        expected, found = (
            static.step(new, cache) for static, cache in zip((plain, fast), caches, strict=True)
        )
        assert (found - expected).abs().max() < 4 * ROUNDING[own]


@pytest.mark.parametrize("dtype", [None, "int8"])
@torch.inference_mode()
def test_a_row_is_the_same_bits_alone_and_among_others(fused: Any, dtype: Any) -> None:
    lm = TokenLM(LMConfig(3, 21, 24, num_layers=1, num_heads=4)).eval().to(DEVICE, DTYPES[-1])
    static = StaticLM(lm, dtype, capture=False, kernels=fused, block=4)
    assert static.independent_rows
    mask = torch.arange(40, device=DEVICE) < torch.tensor([3, 40, 1, 7, 33], device=DEVICE)[:, None]
    tokens = torch.randn(5, 40, 24, device=DEVICE) * mask[..., None]
    steps = torch.randint(0, 21, (5, 3, 5), device=DEVICE)
    together = static.new_cache(Condition(tokens, mask), 5, 8)
    expected = [static.step(steps[..., :3], together), static.step(steps[..., 3:4], together)]
    for row, length in enumerate(mask.sum(1).tolist()):
        own = slice(row, row + 1)
        alone = static.new_cache(Condition(tokens[own, :length], mask[own, :length]), 1, 20)
        found = [static.step(steps[own, :, :3], alone), static.step(steps[own, :, 3:4], alone)]
        assert all(torch.equal(a, b[own]) for a, b in zip(found, expected, strict=True))
