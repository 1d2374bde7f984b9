"""Layers for inference whose weights lie in the order of oneDNN's CPU kernels (see `onednn.py`).

PyTorch brings the weights of convolutions and LSTMs into that order at every call, which for a short block takes longer
than the product itself, and audio [B, D, N] into blocks of channels and back. Here the weights are reordered once, and
audio keeps its shape but lies in memory as [B, N, D] ("channels last"), pictures [B, D, T, M] as [B, T, M, D], which
the kernels take without a copy. For matrices PyTorch has MKL instead, which on some CPUs is half as fast.

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
LEAST = 1e-30  # largest value of a row in int8, so that rows of zeros have a scale


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether oneDNN has kernels for this number type on this device."""
    return device.type == "cpu" and onednn.has_packed_products(dtype)


@runtime_checkable
class Packable(Protocol):
    """A layer that computes with `packed` weights, what `pack` gives for a number type, where they are set."""

    packed: Any

    def pack(self, dtype: torch.dtype) -> Any: ...


def pack(module: nn.Module, dtype: torch.dtype | None, matrices: torch.dtype | None = None) -> None:
    """Switch all layers of a module to packed weights in `dtype`, or with None back to their own.

    matrices: another number type for those of class Linear, which alone can be int8. Layers that are packed in theirs
    stay as they are: with None first, all are packed anew.
    """
    for layer in module.modules():
        if isinstance(layer, Packable):
            wanted = matrices if matrices is not None and isinstance(layer, Linear) else dtype
            if wanted is None:
                layer.packed = None
            elif layer.packed is None or layer.packed.dtype != wanted:
                layer.packed = layer.pack(wanted)


class Linear(nn.Linear):
    """nn.Linear, [..., D_in] -> [..., D_out], that can be packed; it trains as nn.Linear does.

    Without packed weights, too, its result on a CPU does not depend on the number of threads. That of PyTorch's own
    product, by MKL, does for some numbers of rows where there is AVX-512.
    """

    packed: "PackedLinear | PackedInt8Linear | None" = None

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(input)
        is_plain = input.device.type == "cpu" and input.dtype == self.weight.dtype == torch.float32
        is_other = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        if not is_plain or is_other or not onednn.has_packed_products(torch.float32):
            return super().forward(input)
        return onednn.linear(input, self.weight, self.bias)

    def pack(self, dtype: torch.dtype) -> "PackedLinear | PackedInt8Linear":
        if dtype == torch.int8:
            return PackedInt8Linear(self.weight, self.bias)
        return PackedLinear(self.weight, self.bias, dtype)


class PackedLinear:
    """F.linear: [..., D_in] -> [..., D_out] in the number type `dtype`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.weight = onednn.pack_linear(weight.detach().to(dtype).contiguous(), TYPICAL_FRAMES)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return onednn.linear(x.to(self.dtype).contiguous(), self.weight, self.bias)


class PackedInt8Linear:
    """F.linear, [..., D_in] -> [..., D_out], of weights and inputs in 8 bits; in float32, or as autocast has it.

    Each output has a scale, and so has each row of the input, when it comes. Sums are exact, so that a row does not
    depend on the others or on the number of threads.
    """

    dtype = torch.int8

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float()  # [D_out, D_in]
        self.scales = weight.abs().amax(1).clamp_(min=LEAST) / 127
        values = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.weight = onednn.pack_int8(values, TYPICAL_FRAMES)
        self.zeros = torch.zeros(len(weight), dtype=torch.int64)
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [N, D_in]
        scales = rows.abs().amax(1, keepdim=True).float().clamp_(min=LEAST) / 127  # [N, 1]
        # a conversion to bytes cuts the fraction off, so that adding a half rounds
        values = (rows * scales.reciprocal()).add_(onednn.INT8_ZERO + 0.5).to(torch.uint8)
        y = onednn.linear_int8(values, self.weight, self.scales, self.zeros)
        y = y.mul_(scales) if self.bias is None else torch.addcmul(self.bias, y, scales)
        if torch.is_autocast_enabled("cpu"):
            y = y.to(torch.get_autocast_dtype("cpu"))
        return y.view(*x.shape[:-1], y.shape[1])


class PackedConv2d:
    """nn.Conv2d: [B, D_in, T, M] -> [B, D_out, T', M'] in the number type `dtype`, channels last.

    Weights are packed anew where the input's shape is another than before: in the order for one shape, some others take
    fifty times as long.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype) -> None:
        assert not isinstance(conv.padding, str)
        self.dtype, self.groups, self.original = dtype, conv.groups, conv.weight.detach()
        self.padding, self.stride, self.dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.shape = torch.Size()

    def __call__(self, x: Tensor) -> Tensor:
        settings = (self.padding, self.stride, self.dilation, self.groups)
        if self.shape != x.shape:
            self.weight = onednn.pack_conv2d(self.original.to(self.dtype), *settings, x.shape)
            self.shape = x.shape
        return onednn.conv2d(x.to(self.dtype), self.weight, self.bias, *settings)


class PackedConv1d:
    """nn.Conv1d: [B, D_in, N] -> [B, D_out, T] in the number type `dtype`, channels last. One of three products:

    - A matrix where the kernel has one tap, for which oneDNN's convolution reorders some sizes at every call after
      all, or the input one channel, which has no order to lie in: the taps are then the columns.
    - A convolution of two taps over hops where the kernel is two strides long: channels last has the samples of a hop
      one after another.
    - Otherwise the convolution as it is, in float32 where oneDNN computes noise in bfloat16.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype) -> None:
        (kernel,), (self.stride,), (self.dilation,) = conv.kernel_size, conv.stride, conv.dilation
        self.dtype = self.compute = dtype
        self.taps = kernel if conv.in_channels == 1 and self.dilation == 1 else 0
        self.hop = self.stride if kernel == 2 * self.stride and not self.taps and self.dilation == 1 else 0
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.matrix: PackedLinear | None = None
        if self.taps or kernel == self.stride == 1:
            self.matrix = PackedLinear(conv.weight.flatten(1), conv.bias, dtype)
            return
        weight = conv.weight.detach().to(dtype)  # [D_out, D_in, kernel]
        if self.hop:
            hops = weight.unflatten(2, (2, self.hop)).permute(0, 3, 1, 2)  # [D_out, stride, D_in, two hops]
            self.weight = onednn.pack_conv1d(hops.flatten(1, 2), 1, 1, TYPICAL_FRAMES)
        else:
            if onednn.is_wrong_in_bfloat16(conv.in_channels, kernel, self.stride):
                self.compute, weight = torch.float32, conv.weight.detach()
                self.bias = None if conv.bias is None else conv.bias.detach()
            self.weight = onednn.pack_conv1d(weight, self.stride, self.dilation, TYPICAL_FRAMES)

    def __call__(self, x: Tensor, padding: int = 0) -> Tensor:
        """padding: zeros on both sides."""
        x = x.to(self.dtype)
        if self.hop:
            x = F.pad(x[:, :, None], (padding, padding))[:, :, 0]  # as a picture, whose layout PyTorch keeps
            whole = x.shape[2] // self.hop * self.hop
            rows = x[:, :, :whole].mT.reshape(len(x), -1, self.hop * x.shape[1])  # [B, T + 1, stride * D_in]
            return onednn.conv1d(rows.mT, self.weight, self.bias, 0, 1, 1)
        if self.matrix is None:
            x = x.to(self.compute)
            y = onednn.conv1d(x, self.weight, self.bias, padding, self.stride, self.dilation)
            return y.to(self.dtype)
        rows = x.mT  # [B, T, columns]
        if self.taps:
            rows = F.pad(x, (padding, padding)).unfold(2, self.taps, self.stride)[:, 0]
        return self.matrix(rows).mT


class PackedConvTranspose1d:
    """nn.ConvTranspose1d without padding: [B, D_in, T] -> [B, D_out, (T - 1) * stride + kernel], channels last.

    A hop of the output depends on a frame and those before it that a kernel reaches from: a convolution whose outputs
    are the samples of the hop one after another, which in channels last is the order of the signal.
    """

    def __init__(self, conv: nn.ConvTranspose1d, dtype: torch.dtype) -> None:
        (kernel,), (stride,) = conv.kernel_size, conv.stride
        self.dtype, self.out_dim = dtype, conv.out_channels
        self.taps = -(-kernel // stride)
        self.surplus = self.taps * stride - kernel  # zeros that complete the kernel's last hop
        whole = F.pad(conv.weight.detach(), (0, self.surplus)).to(dtype)
        hops = whole.unflatten(2, (self.taps, stride))  # [D_in, D_out, taps, stride]
        # The earliest frame comes first; it makes the last hop: [stride * D_out, D_in, taps].
        hops = hops.flip(2).permute(3, 1, 0, 2).flatten(0, 1)
        self.weight = onednn.pack_conv1d(hops, 1, 1, TYPICAL_FRAMES)
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype).repeat(stride)

    def __call__(self, x: Tensor) -> Tensor:
        # As an argument, padding on both sides of two taps would make oneDNN's rounding depend on the thread count.
        more = self.taps - 1
        x = F.pad(x.to(self.dtype)[:, :, None], (more, more))[:, :, 0]
        hops = onednn.conv1d(x, self.weight, self.bias, 0, 1, 1)  # [B, stride * D_out, T + taps - 1]
        y = hops.mT.reshape(x.shape[0], -1, self.out_dim).mT
        return y[..., : y.shape[-1] - self.surplus]


class PackedLSTM:
    """nn.LSTM, unidirectional: [T, B, D] -> [T, B, D] and (hidden, cell), each [layers, B, D]."""

    def __init__(self, lstm: nn.LSTM, dtype: torch.dtype) -> None:
        self.dtype, self.dim = dtype, lstm.hidden_size
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


class Conv1d(nn.Conv1d):
    """nn.Conv1d, [B, D_in, N] -> [B, D_out, T], that can be packed."""

    packed: "PackedConv1d | None" = None

    def __call__(
        self, input: Tensor
    ) -> Tensor:  # not `forward`: weight norm is in a hook, and in the packed weights
        if self.packed is not None:
            return self.packed(input, int(self.padding[0]))
        return onednn.convolve(self, super().__call__, input)

    def pack(self, dtype: torch.dtype) -> "PackedConv1d":
        _normalise(self)
        return PackedConv1d(self, dtype)


class ConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d, [B, D_in, T] -> [B, D_out, N], that can be packed."""

    packed: "PackedConvTranspose1d | None" = None

    def __call__(self, input: Tensor) -> Tensor:
        if self.packed is None:
            return onednn.convolve(self, super().__call__, input)
        made, cut = self.packed(input), int(self.padding[0])
        return made[..., cut : made.shape[-1] - cut + self.output_padding[0]]

    def pack(self, dtype: torch.dtype) -> "PackedConvTranspose1d":
        _normalise(self)
        return PackedConvTranspose1d(self, dtype)


def _normalise(layer: Any) -> None:
    """Compute the weight from what weight norm learns: diffusers has torch's older kind, a hook before each call."""
    for hook in layer._forward_pre_hooks.values():
        hook(layer, None)


def use_conv1d(module: nn.Module) -> None:
    """Convolutions over samples become those of this file; their weights stay where they are."""
    for layer in module.modules():
        if type(layer) not in (nn.Conv1d, nn.ConvTranspose1d):
            continue
        assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d)
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or layer.groups != 1:
            continue
        if isinstance(layer, nn.Conv1d):
            layer.__class__ = Conv1d
        elif layer.dilation == (1,) and layer.output_padding[0] <= layer.padding[0]:
            layer.__class__ = ConvTranspose1d
