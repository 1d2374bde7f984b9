"""The step on static memory against the plain path, code by code; the ring; that nothing in a step needs the host."""

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.matrices import quantise
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.patterns import PATTERNS
from audiogen.lm.sample import TokenSampling, generate_tokens
from audiogen.lm.static import Loop, StaticLM
from audiogen.lm.stream import stream_tokens
from audiogen.lm.transformer import Block, sinusoidal_positions

K, V, D = 3, 21, 24
BLOCK = 4  # so that short sequences cross its borders


def make_lm(pattern: str = "delay", dim: int = D, num_heads: int = 4, num_layers: int = 2) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(K, V, dim, num_layers, num_heads, ff_mult=3, pattern=pattern)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in lm.parameters():  # norms that are not one and zero
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        for block in lm.layers:  # the text matters more than at initialisation
            block.cross_attention.text_proj.weight *= 3  # type: ignore[union-attr, operator]
    return lm


def random_text(lengths: Sequence[int], dim: int = D) -> Condition:
    """Rows of so many tokens; 0 is no text, as `null` says it."""
    mask = torch.arange(max(max(lengths), 1)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(*mask.shape, dim, generator=torch.Generator().manual_seed(2)) * mask[..., None]
    mask[:, 0] = True
    return Condition(tokens, mask)


def random_codes(batch: int, num_frames: int) -> Tensor:
    return torch.randint(0, V, (batch, K, num_frames), generator=torch.Generator().manual_seed(3))


def assert_same(lm: TokenLM, static: StaticLM, text: Condition | None, *args: Any, **kwargs: Any) -> Tensor:
    expected = generate_tokens(lm, text, *args, **kwargs)
    assert torch.equal(generate_tokens(static, text, *args, **kwargs), expected)
    return expected


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_codes_are_those_of_the_plain_path(pattern: str, guidance: float) -> None:
    """Lengths that differ, windows past the longest sequence, a prompt, buffers of the batch before."""
    lm, text = make_lm(pattern), random_text([5, 0, 2])
    static = StaticLM(lm, block=BLOCK)
    settings: dict[str, Any] = {"seeds": [4, 5, 6], "guidance": guidance}
    for lengths in (9, [7, 16, 5]):
        assert_same(lm, static, text, lengths, **settings)
    assert_same(lm, static, text, [7, 13, 5], **settings, max_frames=6, stride=2)
    assert_same(lm, static, text, [7, 16, 5], **settings, prompt=random_codes(3, 4))
    assert_same(lm, static, None, 9, **settings, negative=text)
    assert_same(lm, static, None, 9, **settings)


@pytest.mark.parametrize(
    "sampling",
    [
        TokenSampling(temperature=0),
        TokenSampling(top_k=5),
        TokenSampling(0.7, top_k=0),
        TokenSampling(top_p=0.8),
    ],
)
def test_every_way_to_sample(sampling: TokenSampling) -> None:
    lm, text = make_lm(), random_text([3, 1])
    assert_same(lm, StaticLM(lm, block=BLOCK), text, 17, sampling, seeds=[1, 2])


@pytest.mark.parametrize(("dim", "num_heads"), [(70, 14), (130, 2), (6, 1)])
def test_odd_sizes_and_batches(dim: int, num_heads: int) -> None:
    lm = make_lm(dim=dim, num_heads=num_heads)
    static = StaticLM(lm, block=BLOCK)
    for batch in (1, 2, 5):
        text, seeds = random_text(range(1, batch + 1), dim), list(range(batch))
        negative = Condition(-text.tokens, text.mask)
        codes = assert_same(lm, static, text, 7, seeds=seeds, negative=negative)
        assert not torch.equal(codes, generate_tokens(lm, text, 7, seeds=seeds))


def test_more_text_than_before_and_then_less() -> None:
    lm = make_lm()
    static = StaticLM(lm, block=BLOCK)
    for length in (3, 31, 33, 2):
        assert_same(lm, static, random_text([length]), 6, seeds=[length])
    assert len(static._loops) == 2  # two sizes of text, each used twice


def test_progress_is_counted_like_the_plain_path() -> None:
    lm, calls = make_lm(), []
    for decoder in (lm, StaticLM(lm, block=BLOCK)):
        calls.append([])
        generate_tokens(
            decoder, None, [5, 13], seeds=[0, 1], max_frames=6, stride=3,
            callback=lambda done, total: calls[-1].append((done, total)),
        )  # fmt: skip
    assert calls[0] == calls[1] and calls[0][-1][0] == calls[0][-1][1]


def test_streamed_codes_are_those_of_the_plain_path() -> None:
    lm, text = make_lm(), random_text([3, 1])
    frames = [
        list(stream_tokens(decoder, text, 23, seeds=[1, 2], max_frames=8))
        for decoder in (lm, StaticLM(lm, block=BLOCK))
    ]
    assert len(frames[0]) == 23 and all(map(torch.equal, *frames))


def test_it_looks_at_one_two_four_blocks() -> None:
    static = StaticLM(make_lm(), block=4)
    assert [static.seen(length, 24) for length in (1, 4, 5, 8, 9, 16, 17, 24)] == [4, 4, 8, 8, 16, 16, 24, 24]


# As a `Decoder`, and the ring


@torch.no_grad()
def banded(lm: TokenLM, steps: Tensor, text: Condition, width: int, first: int = 0) -> Tensor:
    """Logits [R, K, S, V] where every step attends to itself and the width - 1 before: plain modules, no cache.

    first: position of the first step.
    """
    num_steps = steps.shape[2]
    mask = torch.ones(num_steps, num_steps, dtype=torch.bool).tril().triu(1 - width)
    x = lm.embedding(steps + torch.arange(K)[:, None] * (V + 1)).sum(1)
    x = x + sinusoidal_positions(first + torch.arange(num_steps), lm.config.dim)
    for block in lm.layers:
        assert isinstance(block, Block)
        own, cross = block.self_attention, block.cross_attention
        qkv = own.in_proj(block.norm_self(x))
        q, k, v = rearrange(qkv, "b s (three h d) -> three b h s d", three=3, h=own.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + own.out_proj(rearrange(attended, "b h s d -> b s (h d)"))
        x = x + cross(block.norm_cross(x), cross.project(text.tokens), text.mask[:, None, None])
        x = x + block.ff_out(F.gelu(block.ff_in(block.norm_ff(x))))
    return lm.logits(lm.out_norm(x))


def test_a_step_past_the_last_slot_sees_as_many_as_there_are_slots() -> None:
    lm, text = make_lm(), random_text([5, 2])
    steps = random_codes(2, 30)
    static = StaticLM(lm, block=BLOCK)
    cache = static.new_cache(text, 2, 7)
    assert cache.max_steps == 8
    expected = banded(lm, steps, text, 8)
    assert (expected - banded(lm, steps, text, 30))[:, :, 8:].abs().amax((0, 1, 3)).min() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(expected[:, :, :8], lm(steps[..., :8], text), atol=1e-5, rtol=1e-4)
    for first, end in [(0, 5), (5, 7), *((s, s + 1) for s in range(7, 30))]:
        logits = static.step(steps[..., first:end], cache)
        torch.testing.assert_close(logits, expected[:, :, end - 1], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="the cache is for 8 steps; it holds 30 and 2 are new"):
        static.step(steps[..., :2], cache)


@torch.inference_mode()
def test_a_loop_goes_round_its_buffers() -> None:
    lm, text = make_lm(), random_text([3])
    loop = Loop(
        StaticLM(lm, block=BLOCK), StaticLM(lm, block=BLOCK).new_cache(text, 1, 8), 1, TokenSampling(0), None
    )
    start = torch.full((1, K, 8), lm.special)
    loop.begin(start, torch.zeros(start.shape), torch.ones(start.shape, dtype=torch.bool), 1, text)
    decoded = start[..., :1]
    for step in range(1, 29):
        loop.advance()
        decoded = torch.cat([decoded, loop.steps[..., step % 8, None]], dim=2)
    expected = banded(lm, decoded, text, 8).argmax(-1)
    assert torch.equal(decoded[..., 1:], expected[..., :-1])


@torch.inference_mode()
def test_the_position_is_not_the_slot() -> None:
    lm, text = make_lm(), random_text([3])
    static, steps = StaticLM(lm, block=BLOCK), random_codes(1, 3)
    cache = static.new_cache(text, 1, 4)
    cache.position.fill_(100)
    for step in range(3):
        logits = static.step(steps[..., step : step + 1], cache)
    expected = banded(lm, steps, text, 4, first=100)[:, :, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert (banded(lm, steps, text, 4)[:, :, -1] - expected).abs().max() > 1e-3
    assert cache.position.item() == 103 and cache.count.item() == cache.length == 3


# Nothing needs the host


class OnMeta(TorchDispatchMode):
    """Every tensor that an operation takes or gives is on the device without memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), func
        return result


@pytest.mark.parametrize("dtype", [None, "int8"])
@torch.inference_mode()
def test_nothing_needs_a_value_or_leaves_the_device(dtype: Any) -> None:
    """A tensor on "meta" has none: what asks for one, or makes a shape of it, raises."""
    nothing = torch.empty(2, K, 5, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        nothing.sum().item()
    with pytest.raises(NotImplementedError, match="meta"):
        nothing[nothing > 0]
    with pytest.raises(AssertionError), OnMeta():
        nothing.sum() * torch.ones(1)
    text = random_text([5, 2, 1, 1])
    text = Condition(text.tokens.to("meta"), text.mask.to("meta"))
    static = StaticLM(make_lm(num_layers=1).to("meta"), dtype, block=BLOCK)
    steps, unknown = nothing.long(), nothing.bool()
    for sampling in (
        TokenSampling(temperature=0),
        TokenSampling(top_k=5),
        TokenSampling(top_k=0),
        TokenSampling(top_p=0.8),
    ):
        with OnMeta():
            static.complete(steps, nothing, unknown, 3, text, sampling, 3.0, lambda: None)
            static.complete(steps, nothing, unknown, 4, None, sampling, None, lambda: None)


def test_layers_share_what_torch_compile_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one size of everything: three graphs, whatever the number of layers and the length of the prompt."""
    from torch._dynamo.utils import counters  # seconds to import

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    graphs = counters["stats"]
    lm, text = make_lm(num_layers=3), random_text([2, 1])
    static = StaticLM(lm, compile=True, block=16)
    before = graphs["unique_graphs"]
    for prompt_frames in (1, 4, 6):
        assert_same(lm, static, text, 9, seeds=[1, 2], prompt=random_codes(2, prompt_frames))
    assert graphs["unique_graphs"] == before + 3


@torch.inference_mode()
def test_a_step_repeated_from_the_same_count_changes_nothing() -> None:
    """Recording runs the step to warm up: only the counters are put back."""
    static, codes = StaticLM(make_lm(), block=BLOCK), random_codes(2, 8)
    loop = Loop(static, static.new_cache(None, 2, 8), 2, TokenSampling(), None)
    unknown = torch.rand(codes.shape) < 0.7
    loop.begin(codes, torch.rand(codes.shape), unknown, 1, None)
    for _ in range(11):  # round the ring
        count = loop.cache.count.clone()
        before = loop.cache.keys.clone(), loop.cache.values.clone()
        loop.step(8)
        after = loop.steps.clone(), loop.cache.keys.clone(), loop.cache.values.clone()
        assert not torch.equal(before[0], after[1])
        loop.cache.count.copy_(count)
        loop.cache.position.copy_(count)
        loop.step(8)
        assert all(map(torch.equal, after, (loop.steps, loop.cache.keys, loop.cache.values)))


# Number types


def test_quantisation_is_within_half_a_step_and_of_any_row() -> None:
    matrix = torch.randn(5, 33) * torch.tensor([1.0, 1e-6, 1e4, 0.0, 1.0])[:, None]
    matrix[4] = 0.5  # all alike
    weight = quantise(matrix)
    assert weight.values.dtype == torch.int8 and weight.scales is not None
    restored = weight.values * weight.scales[:, None]
    assert ((restored - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 254 * 1.001).all()
    assert weight.values.abs().amax(1).tolist() == [127, 127, 127, 0, 127]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int8"])
def test_number_types_are_as_near_as_they_can_be(dtype: Any) -> None:
    """int8 equals the model with rounded weights; the others equal the model converted."""
    lm, text, steps = make_lm(), random_text([5, 2]), random_codes(2, 9)
    static = StaticLM(lm, dtype, block=BLOCK)
    other = make_lm()
    with torch.no_grad():
        if dtype == "int8":
            for name, parameter in other.named_parameters():
                if parameter.ndim == 2 and "embedding" not in name:
                    weight = quantise(parameter)
                    parameter.copy_(weight.values * weight.scales[:, None])  # type: ignore[index]
        else:
            other = other.to(getattr(torch, dtype))
        cache, logits = static.new_cache(text, 2, 9), []
        for step in range(9):
            logits.append(static.step(steps[..., step : step + 1], cache).float())
        found, exact, expected = torch.stack(logits, 2), lm(steps, text), other(steps, text).float()
    rounding = {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.006, "int8": 1e-5}[dtype]
    torch.testing.assert_close(found, expected, atol=rounding, rtol=0)
    assert (found - exact).abs().max() < {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.006, "int8": 0.06}[
        dtype
    ]
    codes = generate_tokens(static, text, 9, seeds=[1, 2])
    assert codes.shape == (2, K, 9) and 0 <= codes.min() and codes.max() < V


def test_weights_of_the_models_own_type_are_shared_and_counted() -> None:
    lm = make_lm(num_layers=1)
    static = StaticLM(lm)
    assert static.matrices.heads.values.data_ptr() == lm.heads.weight.data_ptr()
    num_weights = D * (3 * D + D + D + D + 3 * D + 3 * D) + D * K * V
    assert static.matrices.step_bytes() == 4 * num_weights
    outputs = 3 * D + D + D + D + 3 * D + D + K * V
    assert StaticLM(lm, "int8").matrices.step_bytes() == num_weights + 4 * outputs


def test_weights_come_by_their_names_and_the_model_may_have_none() -> None:
    lm, text = make_lm(), random_text([5, 2])
    weights = {name: weight.split(5) for name, weight in lm.state_dict().items()}
    expected = generate_tokens(StaticLM(lm, "bfloat16"), text, 9, seeds=[1, 2])
    static = StaticLM(lm.to("meta"), "bfloat16", torch.device("cpu"), weights.__getitem__)
    assert torch.equal(generate_tokens(static, text, 9, seeds=[1, 2]), expected)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="dtype is 'float8'; allowed: float32, bfloat16, float16, int8"):
        StaticLM(make_lm(), "float8")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a CUDA graph needs a model on CUDA; it is on cpu"):
        StaticLM(make_lm(), capture=True)


# CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_on_cuda_the_recorded_step_gives_the_codes_of_the_step_itself(dtype: Any) -> None:
    lm = make_lm(dim=128, num_heads=2).cuda()
    lm = lm.bfloat16() if dtype != "float32" else lm
    text = random_text([5, 2], 128)
    text = Condition(text.tokens.cuda(), text.mask.cuda())
    recorded, direct = (StaticLM(lm, dtype, capture=capture, block=16) for capture in (True, False))
    for lengths in ([60, 35], [60, 35], 20):  # the second replays what the first recorded
        settings: dict[str, Any] = {"seeds": [1, 2], "max_frames": 50}
        codes = generate_tokens(direct, text, lengths, **settings)
        assert torch.equal(generate_tokens(recorded, text, lengths, **settings), codes)
        if dtype == "float32":
            assert torch.equal(generate_tokens(lm, text, lengths, **settings), codes)
