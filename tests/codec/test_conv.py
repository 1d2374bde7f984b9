"""Padding, causality and block-by-block running of the codec's convolutions."""

import pytest
import torch

from audiogen.codec.conv import (
    PaddedConv1d,
    PaddedConvTranspose1d,
    add_weight_norm,
    pad,
    plain_weights,
)


def influences(layer: torch.nn.Module, x: torch.Tensor, position: int) -> list[int]:
    """Input positions that output `position` depends on, by gradient."""
    x = x.clone().requires_grad_()
    layer(x)[..., position].sum().backward()
    return x.grad.abs().sum((0, 1)).nonzero().flatten().tolist()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel,stride,dilation", [(7, 1, 1), (3, 1, 4), (4, 2, 1), (10, 5, 1), (16, 8, 1)])
@pytest.mark.parametrize("length", [40, 41, 47])
def test_a_convolution_gives_one_frame_per_started_stride(causal, kernel, stride, dilation, length):
    layer = PaddedConv1d(2, 3, kernel, stride, dilation, causal)
    assert layer(torch.randn(1, 2, length)).shape[-1] == -(-length // stride)


@pytest.mark.parametrize("kernel,stride,dilation", [(7, 1, 1), (3, 1, 3), (4, 2, 1), (10, 5, 1)])
def test_a_causal_convolution_sees_no_sample_after_its_frame(kernel, stride, dilation):
    seen = influences(PaddedConv1d(2, 3, kernel, stride, dilation, causal=True), torch.randn(1, 2, 60), 6)
    assert max(seen) == 7 * stride - 1  # the last sample of frame 6
    assert min(seen) == 7 * stride - 1 - (kernel - 1) * dilation


def test_a_centred_convolution_sees_both_sides():
    seen = influences(PaddedConv1d(2, 3, 7), torch.randn(1, 2, 60), 30)
    assert (min(seen), max(seen)) == (27, 33)


@pytest.mark.parametrize("causal", [True, False])
def test_a_transposed_convolution_gives_stride_samples_a_frame(causal):
    layer = PaddedConvTranspose1d(2, 3, 10, 5, causal)
    x = torch.randn(1, 2, 9)
    assert layer(x).shape[-1] == 45
    seen = influences(layer, x, 22)  # the middle of frame 4
    assert max(seen) == (4 if causal else 5) or seen == [4, 5] or seen == [4]
    if causal:
        assert max(influences(layer, x, 24)) == 4  # the last sample of frame 4 does not wait for frame 5
        assert min(influences(layer, x, 24)) == 3


def test_reflect_padding_of_a_short_signal_continues_with_zeros():
    x = torch.tensor([[[1.0, 2.0]]])
    assert pad(x, 3, 0, "reflect").tolist() == [[[0.0, 0.0, 2.0, 1.0, 2.0]]]
    long = torch.arange(1.0, 6.0)[None, None]
    assert pad(long, 2, 1, "reflect").tolist() == [[[3.0, 2.0, 1.0, 2.0, 3.0, 4.0, 5.0, 4.0]]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
@pytest.mark.parametrize("kernel,stride,dilation", [(7, 1, 1), (3, 1, 4), (4, 2, 1), (16, 8, 1), (3, 5, 1)])
def test_a_convolution_in_blocks_gives_what_one_call_gives(causal, mode, kernel, stride, dilation):
    torch.manual_seed(0)
    layer = PaddedConv1d(2, 3, kernel, stride, dilation, causal, mode)
    for length in range(1, 40):
        x = torch.randn(2, 2, length)
        for size in (1, 5, 23):
            state = {}
            parts = [layer(piece, state) for piece in x.split(size, -1)]
            parts.append(layer(x[..., :0], state, last=True))
            torch.testing.assert_close(torch.cat(parts, -1), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kernel,stride", [(10, 5), (4, 2), (2, 1), (12, 3)])
@pytest.mark.parametrize("causal,trim_right_ratio", [(True, 1.0), (True, 0.4), (False, 1.0)])
def test_a_transposed_convolution_in_blocks_gives_what_one_call_gives(
    kernel, stride, causal, trim_right_ratio
):
    torch.manual_seed(0)
    layer = PaddedConvTranspose1d(2, 3, kernel, stride, causal, trim_right_ratio)
    for length in range(1, 9):
        x = torch.randn(2, 2, length)
        for size in (1, 3):
            state = {}
            parts = [layer(piece, state) for piece in x.split(size, -1)]
            parts.append(layer(x[..., :0], state, last=True))
            torch.testing.assert_close(torch.cat(parts, -1), layer(x), atol=1e-5, rtol=1e-5)


def test_weight_norm_keeps_the_function():
    torch.manual_seed(0)
    layer = PaddedConvTranspose1d(3, 2, 4, 2)
    x = torch.randn(1, 3, 7)
    before = layer(x)
    add_weight_norm(layer)
    assert layer.convtr.parametrizations.weight.original0.shape == (3, 1, 1)  # per input channel, dim 0
    torch.testing.assert_close(layer(x), before)


def test_group_norm_is_over_channels_and_time_of_each_item():
    torch.manual_seed(0)
    layer = PaddedConv1d(2, 3, 5, norm="group")
    x = torch.randn(4, 2, 50) * torch.tensor([1.0, 10.0, 100.0, 1000.0])[:, None, None]
    y = layer(x)
    torch.testing.assert_close(y.mean((1, 2)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std((1, 2), correction=0), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(layer(x[1:2]), y[1:2])


def test_the_norm_of_a_transposed_convolution_hears_what_is_trimmed():
    torch.manual_seed(0)
    layer = PaddedConvTranspose1d(2, 3, 10, 5, norm="group")
    x = torch.randn(1, 2, 4)
    whole = torch.nn.functional.group_norm(layer.convtr(x), 1)
    torch.testing.assert_close(layer(x), whole[..., 3:-2])


def test_without_a_norm_a_layer_has_the_tensors_it_always_had():
    assert set(PaddedConv1d(1, 2, 3).state_dict()) == {"conv.weight", "conv.bias"}


def test_plain_weights_are_those_before_weight_norm():
    torch.manual_seed(0)
    stack = torch.nn.Sequential(PaddedConv1d(2, 3, 5, norm="group"), PaddedConvTranspose1d(3, 2, 4, 2))
    before = {name: tensor.clone() for name, tensor in stack.state_dict().items()}
    add_weight_norm(stack)
    torch.testing.assert_close(plain_weights(stack), before)
