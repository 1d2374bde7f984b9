"""The step on static memory against the module, on a CPU without recording; compiled; that nothing needs the host."""

import gc
import importlib.util
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.kernels import graph
from audiogen.lm.kernels.graph import GraphLM
from audiogen.lm.model import LMConfig, TokenLM, quantise
from audiogen.lm.patterns import PATTERNS
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.lm.stream import stream_tokens
from audiogen.native import library

K, V, D = 3, 21, 24


@pytest.fixture(autouse=True)
def short_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the sizes of short sequences are rounded up, too."""
    monkeypatch.setattr(graph, "STEPS_MULTIPLE", 8)
    monkeypatch.setattr(graph, "TEXT_MULTIPLE", 4)


def make_lm(pattern: str = "delay", dim: int = D, num_heads: int = 4, num_layers: int = 2) -> TokenLM:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(K, V, dim, num_layers, num_heads, ff_mult=3, pattern=pattern)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in lm.parameters():  # norms that are not one and zero
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
        for block in lm.blocks():  # the text matters more than at initialisation
            block.cross_attention.text_proj.weight *= 3
    return lm


def random_text(lengths: Sequence[int], dim: int = D) -> Condition:
    """Rows of so many tokens; 0 is no text, as `null` says it."""
    mask = torch.arange(max(max(lengths), 1)) < torch.tensor(lengths)[:, None]
    tokens = torch.randn(*mask.shape, dim, generator=torch.Generator().manual_seed(2)) * mask[..., None]
    mask[:, 0] = True
    return Condition(tokens, mask)


def random_codes(batch: int, num_frames: int) -> Tensor:
    return torch.randint(0, V, (batch, K, num_frames), generator=torch.Generator().manual_seed(3))


def assert_same(lm: TokenLM, fast: GraphLM, request: TokenRequest, **windows: int) -> Tensor:
    expected = generate_tokens(lm, request, TokenSampling(0.7), **windows)  # type: ignore[arg-type]
    assert torch.equal(generate_tokens(fast, request, TokenSampling(0.7), **windows), expected)  # type: ignore[arg-type]
    return expected


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_codes_are_those_of_the_module(pattern: str, guidance: float) -> None:
    """Lengths that differ, windows past the longest sequence, a prompt, memory of the batch before."""
    lm, text = make_lm(pattern), random_text([5, 0, 2])
    fast = GraphLM(lm)
    settings: dict[str, Any] = {"seeds": [4, 5, 6], "guidance": guidance}
    for lengths in (9, [7, 16, 5]):
        assert_same(lm, fast, TokenRequest(text, lengths, **settings))
    assert_same(lm, fast, TokenRequest(text, [7, 13, 5], **settings), max_frames=6, stride=2)
    assert_same(lm, fast, TokenRequest(text, [7, 16, 5], **settings, prompt=random_codes(3, 4)))
    assert_same(lm, fast, TokenRequest(None, 9, **settings, negative=text))
    assert_same(lm, fast, TokenRequest(None, 9, **settings))


@pytest.mark.parametrize(("dim", "num_heads"), [(70, 14), (130, 2), (6, 1)])
def test_odd_sizes_and_batches(dim: int, num_heads: int) -> None:
    lm = make_lm(dim=dim, num_heads=num_heads)
    fast = GraphLM(lm)
    for batch in (1, 2, 5):
        text, seeds = random_text(range(1, batch + 1), dim), list(range(batch))
        negative = Condition(-text.tokens, text.mask)
        codes = assert_same(lm, fast, TokenRequest(text, 7, seeds, negative=negative))
        assert not torch.equal(codes, generate_tokens(lm, TokenRequest(text, 7, seeds), TokenSampling(0.7)))


def test_logits_are_those_of_the_module_however_the_steps_come() -> None:
    lm, text, steps = make_lm(), random_text([5, 0]), random_codes(2, 20)
    fast = GraphLM(lm)
    cache = fast.new_cache(text, 2, 20)
    assert cache.max_steps == 24
    with torch.no_grad():
        expected = lm(steps, text)
    for first, end in [(0, 5), (5, 6), (6, 9), *((s, s + 1) for s in range(9, 20))]:
        logits = fast.step(steps[..., first:end], cache)
        torch.testing.assert_close(logits, expected[:, :, end - 1], atol=1e-4, rtol=1e-4)
        assert cache.length == cache.position.item() == end
    with pytest.raises(ValueError, match="the cache is for 24 steps; it holds 20 and 5 are new"):
        fast.step(steps[..., :5], cache)


def test_streamed_codes_are_those_of_the_module() -> None:
    lm, text = make_lm(), random_text([3, 1])
    frames = [
        list(stream_tokens(decoder, TokenRequest(text, 23, [1, 2]), max_frames=8))
        for decoder in (lm, GraphLM(lm))
    ]
    assert len(frames[0]) == 23 and all(map(torch.equal, *frames))


def test_memory_serves_again_but_never_two_at_once() -> None:
    """More text than before, then less; a cache that is still used is left alone."""
    lm = make_lm()
    fast, steps = GraphLM(lm), random_codes(1, 3)
    for length in (3, 9, 2):
        assert_same(lm, fast, TokenRequest(random_text([length]), 6, [length]))
    first = fast.new_cache(random_text([3]), 1, 7)
    second = fast.new_cache(random_text([2]), 1, 7)
    assert first.self_keys.data_ptr() != second.self_keys.data_ptr()
    expected = fast.step(steps, first)
    fast.step(steps.flip(-1), second)
    address = first.self_keys.data_ptr()
    del first
    gc.collect()
    again = fast.new_cache(random_text([3]), 1, 8)
    assert again.self_keys.data_ptr() == address and again.length == again.position.item() == 0
    assert torch.equal(fast.step(steps, again), expected)
    del again, second
    gc.collect()
    assert len(fast._free) == graph.KEPT_CACHES


# Nothing needs the host


class OnMeta(TorchDispatchMode):
    """Every tensor that an operation takes or gives is on the device without memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        assert all(tensor.is_meta for tensor in tensors), func
        return result


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@torch.inference_mode()
def test_a_step_needs_no_value_and_leaves_no_device(dtype: str) -> None:
    """A tensor on "meta" has none: what asks for one, or makes a shape of it, raises. So a CUDA graph may record it."""
    steps = torch.empty(4, K, 5, device="meta", dtype=torch.int64)
    with pytest.raises(RuntimeError, match="meta"):
        steps.sum().item()
    with pytest.raises(AssertionError), OnMeta():
        steps.sum() * torch.ones(1)
    text = random_text([5, 2, 1, 1])
    text = Condition(text.tokens.to("meta"), text.mask.to("meta"))
    fast = GraphLM(make_lm(num_layers=1), dtype, torch.device("meta"))
    for condition in (text, None):
        cache = fast.new_cache(condition, 4, 9)
        with OnMeta():
            assert fast.step(steps, cache).shape == fast.step(steps[..., :1], cache).shape == (4, K, V)


@torch.inference_mode()
def test_a_step_repeated_from_the_same_position_changes_nothing() -> None:
    """Recording runs the step to warm up: only the position is put back."""
    fast, codes = GraphLM(make_lm()), random_codes(2, 6)
    cache = fast.new_cache(None, 2, 6)
    fast.step(codes[..., :5], cache)
    logits, after = fast._lm.step(codes[..., 5:], cache), [part.clone() for part in cache.tensors()]
    cache.position.fill_(5)
    assert torch.equal(fast._lm.step(codes[..., 5:], cache), logits)
    assert all(map(torch.equal, after, cache.tensors()))


@pytest.mark.skipif(library.find_compiler() is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_torch_compile_takes_the_step_whole_and_once() -> None:
    """One graph without breaks for all steps, clips and memory of one size. Slow: half a minute."""
    from torch._dynamo.utils import counters  # seconds to import

    lm, text = make_lm(num_layers=1), random_text([2, 1])
    fast, plain = GraphLM(lm, "int8", mode="compile"), GraphLM(lm, "int8")
    before = counters["stats"]["unique_graphs"]
    for seed in (1, 2):
        codes = generate_tokens(plain, TokenRequest(text, 7, [seed, 5]))
        assert torch.equal(generate_tokens(fast, TokenRequest(text, 7, [seed, 5])), codes)
    frames = list(stream_tokens(plain, TokenRequest(text, 9, [1, 2]), max_frames=8))
    assert all(map(torch.equal, frames, stream_tokens(fast, TokenRequest(text, 9, [1, 2]), max_frames=8)))
    assert counters["stats"]["unique_graphs"] == before + 1


# Number types


def test_quantisation_is_within_half_a_step_and_of_any_row() -> None:
    matrix = torch.randn(5, 33) * torch.tensor([1.0, 1e-6, 1e4, 0.0, 1.0])[:, None]
    matrix[4] = 0.5  # all alike
    values, scales = quantise(matrix)
    restored = values * scales[:, None]
    assert ((restored - matrix).abs() <= matrix.abs().amax(1, keepdim=True) / 254 * 1.001).all()
    assert values.abs().amax(1).tolist() == [127, 127, 127, 0, 127]


@pytest.mark.parametrize("dtype", graph.DTYPES)
def test_number_types_are_as_near_as_they_can_be(dtype: str) -> None:
    """int8 equals the model with rounded weights; the others equal the model converted."""
    lm, text, steps = make_lm(), random_text([5, 2]), random_codes(2, 9)
    fast, other = GraphLM(lm, dtype), make_lm()
    with torch.no_grad():
        if dtype == "int8":
            for name, parameter in other.named_parameters():
                if parameter.ndim == 2 and "embedding" not in name:
                    values, scales = quantise(parameter)
                    parameter.copy_(values * scales[:, None])
        else:
            other = other.to(getattr(torch, dtype))
        cache, logits = fast.new_cache(text, 2, 9), []
        for step in range(9):
            logits.append(fast.step(steps[..., step : step + 1], cache).float())
        found, exact, expected = torch.stack(logits, 2), lm(steps, text), other(steps, text).float()
    rounding = {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.006, "int8": 1e-5}[dtype]
    torch.testing.assert_close(found, expected, atol=rounding, rtol=0)
    limit = {"float32": 1e-5, "bfloat16": 0.06, "float16": 0.006, "int8": 0.06}[dtype]
    assert (found - exact).abs().max() < limit
    codes = generate_tokens(fast, TokenRequest(text, 9, [1, 2]))
    assert codes.shape == (2, K, 9) and 0 <= codes.min() and codes.max() < V


def test_weights_come_by_their_names_and_the_model_may_have_none() -> None:
    lm, text = make_lm(), random_text([5, 2])
    weights = {name: weight.split(5) for name, weight in lm.state_dict().items()}
    expected = generate_tokens(GraphLM(lm, "bfloat16"), TokenRequest(text, 9, [1, 2]))
    fast = GraphLM(lm.to("meta"), "bfloat16", torch.device("cpu"), weights.__getitem__)
    assert torch.equal(generate_tokens(fast, TokenRequest(text, 9, [1, 2])), expected)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="dtype is 'float8'; allowed: float32, bfloat16, float16, int8"):
        GraphLM(make_lm(), "float8")
    with pytest.raises(InputError, match="a CUDA graph needs a model on CUDA; it is on cpu"):
        GraphLM(make_lm(), mode="graph")


# CUDA


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("mode", ["graph", "compile"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_on_cuda_the_recorded_step_gives_the_logits_of_the_step_itself(dtype: str, mode: graph.Mode) -> None:
    if mode == "compile" and importlib.util.find_spec("triton") is None:
        pytest.skip("torch.compile needs triton on CUDA")
    lm, steps = make_lm(dim=128, num_heads=2).cuda(), random_codes(2, 30).cuda()
    text = random_text([5, 2], 128)
    text = Condition(text.tokens.cuda(), text.mask.cuda())
    recorded, direct = GraphLM(lm, dtype, mode=mode), GraphLM(lm, dtype, mode="eager")
    for _ in range(2):  # the second replays what the first recorded
        caches = [(fast, fast.new_cache(text, 2, 30)) for fast in (recorded, direct)]
        for step in range(30):
            one, other = (fast.step(steps[..., step : step + 1], cache).float() for fast, cache in caches)
            limit = {"float32": 1e-4, "bfloat16": 0.06, "int8": 0.06}[dtype] if mode == "compile" else 0.0
            assert (one - other).abs().max() <= limit
