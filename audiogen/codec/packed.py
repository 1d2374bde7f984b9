"""Layers of a frozen codec whose weights lie in the order that oneDNN's CPU kernels want.

PyTorch brings the weights of convolutions and LSTMs into that order at every call, which for a short block takes longer
than the product itself, and audio [B, D, N] into blocks of channels and back. Here the weights are put in order once,
and audio keeps its shape but lies in memory as [B, N, D] ("channels last"), which the kernels take as it is. For
matrices PyTorch has MKL instead, which on some CPUs is half as fast. The operators are those that `torch.compile` uses.

A layer that can compute so is `Packable`. Its own weights stay, for saving and training, and must not change while it
is packed.
"""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen.device import has_packed_products

# By their size at packing: oneDNN chooses the order for it. Others run, too.
TYPICAL_FRAMES = 250


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for it."""
    return device.type == "cpu" and has_packed_products(dtype)


@runtime_checkable
class Packable(Protocol):
    """A layer that computes by `packed` weights where it has them."""

    packed: Any

    def pack(self, dtype: torch.dtype) -> Any:
        """Packed weights of a number type, to be had."""
        ...


def pack(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Let a module's layers compute by packed weights in `dtype`, or with None by their own again."""
    layers = [layer for layer in module.modules() if isinstance(layer, Packable)]
    made = [None if dtype is None else layer.pack(dtype) for layer in layers]
    for layer, packed in zip(layers, made, strict=True):
        layer.packed = packed


class Linear(nn.Linear):
    """nn.Linear that can be packed."""

    packed: "PackedLinear | None" = None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.packed is None else self.packed(x)

    def pack(self, dtype: torch.dtype) -> "PackedLinear":
        """See `Packable`."""
        return PackedLinear(self.weight, self.bias, dtype)


class PackedLinear:
    """F.linear: [B, T, D_in] -> [B, T, D_out] in the number type `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        weight = weight.detach().to(dtype).contiguous()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_FRAMES)
        self.bias = bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x.contiguous(), self.weight, self.bias, "none", [], "")


class PackedConv1d:
    """nn.Conv1d: [B, D_in, N] -> [B, D_out, T] in the number type `dtype`, channels last.

    As a matrix where it can be one: of one tap, for which oneDNN's convolution reorders some sizes at every call after
    all, and of one channel, which has no order to lie in, so that its taps are the columns. A kernel of two strides is
    a convolution of two taps over hops, which channels last has lying one after another: with strides and AMX,
    oneDNN 3.12's bfloat16 is noise for some lengths (8 to 16 channels, 8 taps, stride 4: those that 4 does not divide).
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        assert conv.bias is not None
        (kernel,), (self.stride,), (self.dilation,) = conv.kernel_size, conv.stride, conv.dilation
        self.taps = kernel if conv.in_channels == 1 and self.dilation == 1 else 0
        self.hop = self.stride if kernel == 2 * self.stride and not self.taps and self.dilation == 1 else 0
        self.matrix = self.weight = None
        if self.taps or kernel == self.stride == 1:
            self.matrix = PackedLinear(conv.weight.flatten(1), conv.bias, dtype)
        elif self.hop:
            taps = (
                conv.weight.detach().to(dtype).unflatten(2, (2, self.hop))
            )  # [D_out, D_in, two hops, stride]
            self.weight = _pack(taps.permute(0, 3, 1, 2).flatten(1, 2), 1, 1)  # [D_out, stride * D_in, 2]
        else:
            self.weight = _pack(conv.weight.detach().to(dtype), self.stride, self.dilation)
        self.bias = conv.bias.detach().to(dtype)

    def __call__(self, x: Tensor, padding: int = 0) -> Tensor:
        """padding: zeros on both sides."""
        if self.hop:
            x = F.pad(x, (padding, padding))
            whole = x.shape[2] // self.hop * self.hop
            hops = (
                x[:, :, :whole].mT.reshape(len(x), -1, self.hop * x.shape[1]).mT
            )  # [B, stride * D_in, T + 1]
            return _convolve(hops, self.weight, self.bias, 0, 1, 1)
        if self.matrix is None:
            return _convolve(x, self.weight, self.bias, padding, self.stride, self.dilation)
        rows = x.mT  # [B, T, columns]
        if self.taps:
            rows = F.pad(x, (padding, padding)).unfold(2, self.taps, self.stride)[:, 0]
        return self.matrix(rows).mT


class PackedConvTranspose1d:
    """nn.ConvTranspose1d with kernel = 2 stride: [B, D_in, T] -> [B, D_out, (T + 1) * stride], channels last.

    A hop of the output is made of a frame and the one before: a convolution of two taps whose outputs are the hop's
    samples one after another, which channels last makes the samples of the signal as they lie.
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        assert conv.bias is not None and kernel == 2 * stride
        taps = (
            conv.weight.detach().to(dtype).unflatten(2, (2, stride))
        )  # [D_in, D_out, this and the next hop, stride]
        taps = (
            taps.flip(2).permute(3, 1, 0, 2).flatten(0, 1)
        )  # [stride * D_out, D_in, the frame before and this]
        self.weight, self.bias = _pack(taps, 1, 1), conv.bias.detach().to(dtype).repeat(stride)
        self.out_dim = conv.out_channels

    def __call__(self, x: Tensor) -> Tensor:
        # As an argument, padding on both sides of two taps would make oneDNN round by the number of threads.
        x = F.pad(x[:, :, None], (1, 1))[:, :, 0]
        hops = _convolve(x, self.weight, self.bias, 0, 1, 1)  # [B, stride * D_out, T + 1]
        return hops.mT.reshape(x.shape[0], -1, self.out_dim).mT


def _pack(weight: Tensor, stride: int, dilation: int) -> Tensor:
    """[D_out, D_in, kernel] in the order of oneDNN."""
    size = [1, weight.shape[1], 1, stride * TYPICAL_FRAMES]
    wide = weight[:, :, None].contiguous()
    return torch.ops.mkldnn._reorder_convolution_weight(wide, [0, 0], [1, stride], [1, dilation], 1, size)


def _convolve(
    x: Tensor, weight: Tensor | None, bias: Tensor, padding: int, stride: int, dilation: int
) -> Tensor:
    """[B, D_in, N] -> [B, D_out, T], both channels last."""
    wide = x[:, :, None].contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._convolution_pointwise(
        wide, weight, bias, [0, padding], [1, stride], [1, dilation], 1, "none", [], ""
    )[:, :, 0]


class PackedLSTM:
    """nn.LSTM, unidirectional: [T, B, D] -> [T, B, D] and its cells."""

    def __init__(self, lstm: nn.LSTM, dtype: torch.dtype) -> None:
        self.dim = lstm.hidden_size
        self.layers = []  # of each: packed input and recurrent weights, and both biases
        for layer in lstm.all_weights:
            w_in, w_hidden, b_in, b_hidden = (tensor.detach().to(dtype) for tensor in layer)
            size = [TYPICAL_FRAMES, 1, self.dim]
            packed = torch.ops.mkldnn._reorder_mkldnn_rnn_layer_weight(
                w_in, w_hidden, self.dim, False, True, False, size
            )
            self.layers.append((*packed, b_in, b_hidden))

    def __call__(
        self, x: Tensor, cells: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        x = x.contiguous()  # the operator takes any other order for this one
        if cells is None:
            zeros = x.new_zeros(len(self.layers), x.shape[1], self.dim)
            cells = (zeros, zeros)
        hidden, cell = [], []
        for layer, h, c in zip(self.layers, cells[0].split(1), cells[1].split(1), strict=True):
            x, h, c, _ = torch.ops.aten.mkldnn_rnn_layer(
                x, *layer, h, c, False, [], 2, self.dim, 1, True, False, False, False
            )
            hidden.append(h)
            cell.append(c)
        return x, (torch.cat(hidden), torch.cat(cell))
