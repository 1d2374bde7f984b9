"""PyTorch's products of weights in oneDNN's own order: the private operators that `torch.compile` uses on CPUs.

Their names are no public interface and may change with PyTorch, so they stand in this file alone. Callers ask
`has_packed_products` first and fall back to the plain layer, which computes the same, slower.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

OPERATORS = (
    "_reorder_linear_weight",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_convolution_pointwise",
    "_reorder_mkldnn_rnn_layer_weight",
)
INT8_ZERO = 128  # the byte without a sign that means 0
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


def is_wrong_in_bfloat16(num_inputs: int, kernel_size: int, stride: int) -> bool:
    """Whether oneDNN may compute noise for a 1-D convolution in bfloat16.

    With AMX, oneDNN 3.12 does for 4 to 28 channels in, kernels of 16, or of a stride of 4 or more, and some lengths;
    never for more channels or without AMX (docs/performance.md has the map). The gradient of a transposed convolution
    is such a convolution, of its channels out.
    """
    return 2 < num_inputs < 32 and (stride > 1 or kernel_size > 7)


def convolve(layer: nn.Conv1d | nn.ConvTranspose1d, run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """run(x), the convolution of `layer` under autocast: in float32 on a CPU where bfloat16 may be wrong."""
    num_inputs = layer.out_channels if isinstance(layer, nn.ConvTranspose1d) else layer.in_channels
    is_lower = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not is_lower or not is_wrong_in_bfloat16(num_inputs, layer.kernel_size[0], layer.stride[0]):
        return run(x)
    with torch.autocast("cpu", enabled=False):
        return run(x.float())


def pack_linear(weight: Tensor, num_rows: int) -> Tensor:
    """A matrix [D_out, D_in] in the order that oneDNN chooses for products with `num_rows` rows; others run, too."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, num_rows)


def linear(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """[..., D_in] -> [..., D_out]."""
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


@functools.cache
def has_int8_products() -> bool:
    """Whether products of bytes are exact on this CPU, and this PyTorch has them.

    They are where one instruction multiplies bytes and adds in 32 bits (VNNI, AMX). Others add pairs in 16 bits, which
    the largest values exceed: those are multiplied here, so that a limit set by ONEDNN_MAX_CPU_ISA counts, too.
    """
    names = ("qlinear_prepack", "qlinear_pointwise")
    if not has_packed_products(torch.float32) or not all(hasattr(torch.ops.onednn, name) for name in names):
        return False
    weight = torch.full((16, 64), 127, dtype=torch.int8)
    x = torch.full((2, 64), 255, dtype=torch.uint8)
    product = linear_int8(x, pack_int8(weight, len(x)), torch.ones(16), torch.zeros(16, dtype=torch.int64))
    return bool((product == (255 - INT8_ZERO) * 127 * 64).all())


def pack_int8(weight: Tensor, num_rows: int) -> Tensor:
    """A matrix int8 [D_out, D_in] in the order that oneDNN chooses for products with `num_rows` rows."""
    return torch.ops.onednn.qlinear_prepack(weight, [num_rows, weight.shape[1]])


def linear_int8(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """Bytes uint8 [N, D_in], where INT8_ZERO means 0 -> float32 [N, D_out], the exact sums times `scales` [D_out].

    zeros: int64 [D_out], all 0. Bytes with a sign would do without INT8_ZERO, but have no kernels without AMX.
    """
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, INT8_ZERO, packed, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def pack_conv2d(
    weight: Tensor,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
    shape: Sequence[int],
) -> Tensor:
    """A kernel [D_out, D_in, H, W] in the order that oneDNN chooses for inputs of this shape; others run, too."""
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(), padding, stride, dilation, groups, list(shape)
    )


def conv2d(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """[B, D_in, T, M] -> [B, D_out, T', M'], both with the channels last in memory. padding: zeros on all sides."""
    return torch.ops.mkldnn._convolution_pointwise(
        x.contiguous(memory_format=torch.channels_last),
        packed,
        bias,
        padding,
        stride,
        dilation,
        groups,
        "none",
        [],
        "",
    )


def pack_conv1d(weight: Tensor, stride: int, dilation: int, num_frames: int) -> Tensor:
    """A kernel [D_out, D_in, taps] in the order that oneDNN chooses for `num_frames` frames out; others run, too."""
    wide = weight[:, :, None]  # as a picture of height 1: there are no 1-D kernels
    shape = (1, weight.shape[1], 1, stride * num_frames)
    return pack_conv2d(wide, [0, 0], [1, stride], [1, dilation], 1, shape)


def conv1d(
    x: Tensor, packed: Tensor, bias: Tensor | None, padding: int, stride: int, dilation: int
) -> Tensor:
    """[B, D_in, N] -> [B, D_out, T], both with the channels last in memory. padding: zeros on both sides."""
    wide = x[:, :, None]
    return conv2d(wide, packed, bias, [0, padding], [1, stride], [1, dilation], 1)[:, :, 0]


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
