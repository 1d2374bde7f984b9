"""Our T5 encoder is that of transformers: output, dropout, names and initial weights."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5Attention

from audiogen.errors import InputError
from audiogen.text.encoder import empty_stack, read_shape
from audiogen.text.t5_stack import T5Shape, T5Stack, buckets

FEED_FORWARDS = ("relu", "gated-gelu")
SHAPE = T5Shape(vocab_size=50, d_model=24, d_kv=5, d_ff=40, num_layers=3, num_heads=3)


def theirs(shape: T5Shape) -> nn.Module:
    return T5EncoderModel(T5Config.from_dict(shape.to_dict())).encoder


@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@pytest.mark.parametrize(
    "changes", [{}, {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}]
)
@torch.no_grad()
def test_output_equals_that_of_transformers(feed_forward: str, changes: dict[str, int]) -> None:
    shape = dataclasses.replace(SHAPE, feed_forward_proj=feed_forward, **changes)
    torch.manual_seed(0)
    model = theirs(shape).eval()
    for weight in model.parameters():
        weight.mul_(1.5).add_(0.1 * torch.randn_like(weight))  # norms and position biases that matter
    ours = T5Stack(shape).eval()
    ours.load_state_dict(model.state_dict())  # strict: the names are the same
    for length in (1, 7, 300):  # 128 is where the last bucket begins
        ids = torch.randint(0, 50, (2, length))
        expected = model(input_ids=ids).last_hidden_state
        torch.testing.assert_close(ours(ids), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(ours(ids.flip(1)).flip(1), expected, atol=1e-2) or length == 1
        mask = torch.arange(length) < torch.tensor([[length], [max(1, length // 3)]])
        padded = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(ours(ids, mask)[mask], padded[mask], atol=1e-5, rtol=1e-5)
        short = ids[1:, : max(1, length // 3)]
        torch.testing.assert_close(ours(ids, mask)[1:, : short.shape[1]], ours(short), atol=1e-5, rtol=1e-5)


def test_buckets_are_those_of_transformers_and_of_the_paper() -> None:
    offsets = torch.arange(-700, 701)
    for num_buckets, longest in ((32, 128), (8, 20), (64, 512)):
        expected = T5Attention._relative_position_bucket(
            offsets, num_buckets=num_buckets, max_distance=longest
        )
        assert torch.equal(buckets(offsets, num_buckets, longest), expected)
    # of 32, one distance each below 8; then they begin at 8 * 16^(k/8), and would end at 128
    edges = [*range(8), *(math.ceil(round(8 * 16 ** (k / 8), 6)) for k in range(8))]
    assert [edges.index(max(e for e in edges if e <= d)) for d in range(200)] == buckets(
        -torch.arange(200), 32, 128
    ).tolist()


def test_initial_weights_are_spread_as_those_of_transformers() -> None:
    shape = T5Shape(vocab_size=900, d_model=96, d_kv=16, d_ff=400, num_layers=2, num_heads=5)
    for feed_forward in FEED_FORWARDS:
        shape = dataclasses.replace(shape, feed_forward_proj=feed_forward)
        torch.manual_seed(0)
        expected, ours = theirs(shape).state_dict(), T5Stack(shape).state_dict()
        assert list(ours) == list(expected)
        for name, weight in ours.items():
            if "norm" in name:
                assert torch.equal(weight, expected[name])  # ones
                continue
            # of two estimates from n draws: five times sqrt(2) / sqrt(2 n)
            assert weight.std().item() == pytest.approx(
                expected[name].std().item(), rel=5 / weight.numel() ** 0.5
            )
            assert abs(weight.mean()) < 5 * weight.std() / weight.numel() ** 0.5


def test_dropout_is_where_transformers_has_it() -> None:
    shape = dataclasses.replace(SHAPE, dropout_rate=0.3)
    model, ours = theirs(shape).train(), T5Stack(shape).train()
    ours.load_state_dict(model.state_dict())
    ids = torch.randint(0, 50, (2, 7))
    assert [(n, m.p) for n, m in ours.named_modules() if isinstance(m, nn.Dropout)] == [
        (n, m.p) for n, m in model.named_modules() if isinstance(m, nn.Dropout)
    ]
    results = []
    for stack, call in ((model, lambda: model(input_ids=ids).last_hidden_state), (ours, lambda: ours(ids))):
        assert stack.training
        torch.manual_seed(3)  # the same draws in the same order fall on the same values
        results.append(call())
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(results[0], ours.eval()(ids), atol=1e-2)


def test_a_shape_is_read_as_transformers_writes_it() -> None:
    for shape in (SHAPE, dataclasses.replace(SHAPE, feed_forward_proj="gated-gelu", dropout_rate=0.0)):
        written = T5Config.from_dict(shape.to_dict()).to_dict()
        assert read_shape(written, "here") == shape
        assert {key: written[key] for key in shape.to_dict()} == shape.to_dict()
    assert T5Shape() == read_shape(T5Config().to_dict(), "here") == read_shape({"model_type": "t5"}, "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dropout_rate": 3}, "dropout_rate is 3.0; it must be in .0, 1"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"d_model": "x"}, "d_model: got 'x', expected a whole number"),
        (
            {"feed_forward_proj": "gated-silu"},
            "feed_forward_proj: got 'gated-silu'; did you mean 'gated-gelu'",
        ),
        ({"relative_attention_num_buckets": 5}, "relative_attention_num_buckets is 5; it must be even"),
        ({"relative_attention_max_distance": 8}, "relative_attention_max_distance is 8; it must be above 8"),
        ({"model_type": "umt5"}, "model_type 'umt5'; 't5' and 't5gemma' are read"),
    ],
)
def test_a_shape_that_is_not_a_t5s_is_one_line(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=f"^here: .*{said}"):
        read_shape(SHAPE.to_dict() | change, "here")


@pytest.mark.parametrize("size", [10**18, 10**30])
def test_a_size_that_no_memory_has_is_one_line(size: int) -> None:
    with pytest.raises(InputError, match="configuration: no network has the sizes|d_model is .* at most"):
        empty_stack(dataclasses.replace(SHAPE, d_model=size))
