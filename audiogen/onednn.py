"""PyTorch's products of weights in oneDNN's own order: the private operators that `torch.compile` uses on CPUs.

Their names are no public interface and may change with PyTorch, so they stand in this file alone. Callers ask
`has_packed_products` first and fall back to the plain layer, which computes the same, slower.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_mkldnn_rnn_layer_weight",
)
LSTM_MODE = 2  # of the operator: 0 and 1 are plain recurrent networks, 3 is a GRU


def has_packed_products(dtype: torch.dtype) -> bool:
    """Whether this PyTorch has the operators, and kernels for float32 or bfloat16 on this CPU.

    On x86, where they were tested: builds for other processors name the same operators and may lack the kernels.
    """
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in OPERATORS):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def pack_linear(weight: Tensor, num_rows: int) -> Tensor:
    """A matrix [D_out, D_in] in the order that oneDNN chooses for products with `num_rows` rows; others run, too."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., D_in] -> [..., D_out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class SteadyLinear(nn.Linear):
    """nn.Linear, [..., D_in] -> [..., D_out], whose result on a CPU does not depend on the number of threads.

    That of PyTorch's own product, by MKL, does for some numbers of rows where there is AVX-512. It trains as nn.Linear.
    """

    def forward(self, input: Tensor) -> Tensor:
        is_plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        if not is_plain or torch.is_grad_enabled() or not has_packed_products(torch.float32):
            return super().forward(input)
        return linear(input, self.weight, self.bias)


def pack_conv1d(weight: Tensor, stride: int, dilation: int, num_frames: int) -> Tensor:
    """A kernel [D_out, D_in, taps] in the order that oneDNN chooses for `num_frames` frames out; others run, too."""
    size = [1, weight.shape[1], 1, stride * num_frames]
    wide = weight[:, :, None].contiguous()  # as a picture of height 1: there are no 1-D kernels
    return torch.ops.mkldnn._reorder_convolution_weight(wide, [0, 0], [1, stride], [1, dilation], 1, size)


def conv1d(x: Tensor, packed: Tensor, bias: Tensor, padding: int, stride: int, dilation: int) -> Tensor:
    """[B, D_in, N] -> [B, D_out, T], both with the channels last in memory. padding: zeros on both sides."""
    wide = x[:, :, None].contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise(
        wide, packed, bias, [0, padding], [1, stride], [1, dilation], 1, "none", [], ""
    )[:, :, 0]


def pack_lstm(lstm: nn.LSTM, dtype: torch.dtype, num_frames: int) -> list[tuple[Tensor, ...]]:
    """For each layer: input and recurrent weights in oneDNN's order, and both biases."""
    layers = []
    for layer in lstm.all_weights:
        w_in, w_hidden, b_in, b_hidden = (tensor.detach().to(dtype) for tensor in layer)
        size = [num_frames, 1, lstm.hidden_size]
        packed = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
            w_in, w_hidden, lstm.hidden_size, False, True, False, size
        )
        layers.append((*packed, b_in, b_hidden))
    return layers


def lstm_layer(
    x: Tensor, layer: tuple[Tensor, ...], hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[T, B, D] -> [T, B, D], and the hidden and cell state [1, B, D] after the last frame."""
    dim = hidden.shape[-1]
    x = x.contiguous()  # the operator reads any other order as this one
    y, hidden, cell, _ = torch.ops.aten.mkldnn_rnn_layer(
        x, *layer, hidden, cell, False, [], LSTM_MODE, dim, 1, True, False, False, False
    )
    return y, hidden, cell
