"""Layers of a frozen codec whose weights lie in the order of oneDNN's CPU kernels (see `onednn.py`).

PyTorch brings the weights of convolutions and LSTMs into that order at every call, which for a short block takes longer
than the product itself, and audio [B, D, N] into blocks of channels and back. Here the weights are reordered once, and
audio keeps its shape but lies in memory as [B, N, D] ("channels last"), which the kernels take without a copy. For
matrices PyTorch has MKL instead, which on some CPUs is half as fast.

A layer that can compute so is `Packable`. Its own weights stay, for saving and training, and must not change while it
is packed.
"""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen import onednn

# Frames that weights are packed for; oneDNN chooses the order by them. Any other number is computed as well.
TYPICAL_FRAMES = 250


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this number type on this device."""
    return device.type == "cpu" and onednn.has_packed_products(dtype)


@runtime_checkable
class Packable(Protocol):
    """A layer that computes with `packed` weights, what `pack` gives for a number type, where they are set."""

    packed: Any

    def pack(self, dtype: torch.dtype) -> Any: ...


def pack(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Switch all layers of a module to packed weights in `dtype`, or with None back to their own."""
    for layer in module.modules():
        if isinstance(layer, Packable):
            layer.packed = None if dtype is None else layer.pack(dtype)


class Linear(nn.Linear):
    """nn.Linear that can be packed: [B, T, D_in] -> [B, T, D_out]."""

    packed: "PackedLinear | None" = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.packed is None else self.packed(x)

    def pack(self, dtype: torch.dtype) -> "PackedLinear":
        return PackedLinear(self.weight, self.bias, dtype)


class PackedLinear:
    """F.linear: [B, T, D_in] -> [B, T, D_out] in the number type `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self.weight = onednn.pack_linear(weight.detach().to(dtype).contiguous(), TYPICAL_FRAMES)
        self.bias = bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return onednn.linear(x.contiguous(), self.weight, self.bias)


class PackedConv1d:
    """nn.Conv1d: [B, D_in, N] -> [B, D_out, T] in the number type `dtype`, channels last. One of three products:

    - A matrix where the kernel has one tap, for which oneDNN's convolution reorders some sizes at every call after
      all, or the input one channel, which has no order to lie in: the taps are then the columns.
    - A convolution of two taps over hops where the kernel is two strides long: channels last has the samples of a hop
      one after another. With strides and AMX, oneDNN 3.12 computes noise in bfloat16 for some lengths (8 to 16
      channels, 8 taps, stride 4: those that 4 does not divide).
    - Otherwise the convolution as it is.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        assert conv.bias is not None
        (kernel,), (self.stride,), (self.dilation,) = conv.kernel_size, conv.stride, conv.dilation
        self.taps = kernel if conv.in_channels == 1 and self.dilation == 1 else 0
        self.hop = self.stride if kernel == 2 * self.stride and not self.taps and self.dilation == 1 else 0
        self.bias = conv.bias.detach().to(dtype)
        self.matrix: PackedLinear | None = None
        if self.taps or kernel == self.stride == 1:
            self.matrix = PackedLinear(conv.weight.flatten(1), conv.bias, dtype)
            return
        weight = conv.weight.detach().to(dtype)  # [D_out, D_in, kernel]
        if self.hop:
            hops = weight.unflatten(2, (2, self.hop)).permute(0, 3, 1, 2)  # [D_out, stride, D_in, two hops]
            self.weight = onednn.pack_conv1d(hops.flatten(1, 2), 1, 1, TYPICAL_FRAMES)
        else:
            self.weight = onednn.pack_conv1d(weight, self.stride, self.dilation, TYPICAL_FRAMES)

    def __call__(self, x: Tensor, padding: int = 0) -> Tensor:
        """padding: zeros on both sides."""
        if self.hop:
            x = F.pad(x, (padding, padding))
            whole = x.shape[2] // self.hop * self.hop
            rows = x[:, :, :whole].mT.reshape(len(x), -1, self.hop * x.shape[1])  # [B, T + 1, stride * D_in]
            return onednn.conv1d(rows.mT, self.weight, self.bias, 0, 1, 1)
        if self.matrix is None:
            return onednn.conv1d(x, self.weight, self.bias, padding, self.stride, self.dilation)
        rows = x.mT  # [B, T, columns]
        if self.taps:
            rows = F.pad(x, (padding, padding)).unfold(2, self.taps, self.stride)[:, 0]
        return self.matrix(rows).mT


class PackedConvTranspose1d:
    """nn.ConvTranspose1d with kernel = 2 stride: [B, D_in, T] -> [B, D_out, (T + 1) * stride], channels last.

    A hop of the output depends on a frame and the one before: a convolution of two taps whose outputs are the samples
    of the hop one after another, which in channels last is the order of the signal.
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        assert conv.bias is not None and kernel == 2 * stride
        taps = conv.weight.detach().to(dtype).unflatten(2, (2, stride))  # [D_in, D_out, two hops, stride]
        # The frame before comes first; it makes the second hop: [stride * D_out, D_in, 2].
        taps = taps.flip(2).permute(3, 1, 0, 2).flatten(0, 1)
        self.weight = onednn.pack_conv1d(taps, 1, 1, TYPICAL_FRAMES)
        self.bias = conv.bias.detach().to(dtype).repeat(stride)
        self.out_dim = conv.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        # As an argument, padding on both sides of two taps would make oneDNN's rounding depend on the thread count.
        x = F.pad(x[:, :, None], (1, 1))[:, :, 0]
        hops = onednn.conv1d(x, self.weight, self.bias, 0, 1, 1)  # [B, stride * D_out, T + 1]
        return hops.mT.reshape(x.shape[0], -1, self.out_dim).mT


class PackedLSTM:
    """nn.LSTM, unidirectional: [T, B, D] -> [T, B, D] and (hidden, cell), each [layers, B, D]."""

    def __init__(self, lstm: nn.LSTM, dtype: torch.dtype) -> None:
        self.dim = lstm.hidden_size
        self.layers = onednn.pack_lstm(lstm, dtype, TYPICAL_FRAMES)

    def __call__(
        self, x: Tensor, cells: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if cells is None:
            zeros = x.new_zeros(len(self.layers), x.shape[1], self.dim)
            cells = (zeros, zeros)
        hidden, cell = [], []
        for layer, h, c in zip(self.layers, cells[0].split(1), cells[1].split(1), strict=True):
            x, h, c = onednn.lstm_layer(x, layer, h, c)
            hidden.append(h)
            cell.append(c)
        return x, (torch.cat(hidden), torch.cat(cell))
