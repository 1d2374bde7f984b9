"""Padding, causality and block-by-block running of the codec's convolutions."""

import pytest
import torch

from audiogen.codec.conv import (
    PaddedConv1d,
    PaddedConvTranspose1d,
    ResidualLSTM,
    add_weight_norm,
    pad,
)
from audiogen.errors import InputError


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


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate"])
def test_blocks_with_state_give_what_one_call_gives(mode):
    torch.manual_seed(0)
    down = PaddedConv1d(2, 4, 10, 5, causal=True, pad_mode=mode)
    wide = PaddedConv1d(4, 4, 3, 1, 4, causal=True, pad_mode=mode)
    lstm = ResidualLSTM(4, 2)
    up = PaddedConvTranspose1d(4, 1, 10, 5, causal=True)

    def stack(x, state=None):
        for layer in (down, wide, lstm, up):
            x = layer(x, state)
        return x

    x = torch.randn(2, 2, 203)
    state = {}
    blocks = [stack(piece, state) for piece in x.split([60, 45, 5, 93], -1)]
    torch.testing.assert_close(torch.cat(blocks, -1), stack(x), atol=1e-5, rtol=1e-5)


def test_a_centred_layer_refuses_state():
    with pytest.raises(InputError, match="causal"):
        PaddedConv1d(1, 1, 3)(torch.randn(1, 1, 9), {})


def test_weight_norm_keeps_the_function():
    torch.manual_seed(0)
    layer = PaddedConvTranspose1d(3, 2, 4, 2)
    x = torch.randn(1, 3, 7)
    before = layer(x)
    add_weight_norm(layer)
    assert layer.convtr.parametrizations.weight.original0.shape == (3, 1, 1)  # per input channel, dim 0
    torch.testing.assert_close(layer(x), before)
