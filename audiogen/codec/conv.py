"""Padded 1-D convolutions, causal or centred, that can also run block by block.

Padding follows EnCodec (arXiv:2210.13438, section 3.1): a convolution of stride s maps N samples to ceil(N / s)
frames, a transposed one T frames to exactly T * s samples. Causal layers pad on the left only.

Every layer takes an optional `state`. With it, a signal passed in blocks of any lengths, the last of them (which may be
empty) with `last`, gives what one call on the whole signal gives. A layer returns samples as soon as they are
determined: a centred one waits for its right context, so a block may give fewer samples than went in, or none. With
`last` each layer pads its own input on the right, as it does for a whole signal, and returns the rest.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, cat, nn
from torch.nn.utils import parametrizations, parametrize

from audiogen.onednn import convolve
from audiogen.packed import PackedConv1d, PackedConvTranspose1d, PackedLSTM


class PastInput(NamedTuple):
    """Input [B, D, n] that later outputs of a layer need; `padded` where it has had its padding on the left."""

    x: Tensor
    padded: bool = False


class Overlap(NamedTuple):
    """Output [B, D, n] of a transposed convolution that the next frame adds to; `trim` samples are still to be cut."""

    y: Tensor
    trim: int


class Cells(NamedTuple):
    """Hidden and cell state of an LSTM, each [layers, B, D]."""

    hidden: Tensor
    cell: Tensor


# What each layer keeps from block to block, in a type of its own; {} at the start of a signal.
StreamState = dict[nn.Module, tuple[Any, ...]]


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """[B, D, N] -> [B, D, left + N + right]; a signal too short to reflect is first extended with zeros (EnCodec)."""
    wide = x[:, :, None]  # [B, D, 1, N]: as a picture, whose layout in memory PyTorch keeps
    if mode != "reflect" or x.shape[-1] > max(left, right):
        return F.pad(wide, (left, right, 0, 0), mode=mode)[:, :, 0]
    extra = max(left, right) - x.shape[-1] + 1
    padded = F.pad(F.pad(wide, (0, extra)), (left, right, 0, 0), mode="reflect")[:, :, 0]
    return padded[..., : padded.shape[-1] - extra]


def join(past: Tensor, x: Tensor) -> Tensor:
    """[B, D, n] before [B, D, N] -> [B, D, n + N], in the layout that they have in memory (see `pad`)."""
    return cat([past[:, :, None], x[:, :, None]], -1)[:, :, 0]


def normalisation(norm: str, dim: int) -> nn.Module:
    """What follows a convolution in EnCodec: nothing, or at 48 kHz a norm over channels and time of [B, D, N]."""
    return nn.GroupNorm(1, dim) if norm == "group" else nn.Identity()


class PaddedConv1d(nn.Module):
    """Convolution [B, D_in, N] -> [B, D_out, ceil(N / stride)], then its norm."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        causal: bool = False,
        pad_mode: str = "constant",
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_dim, out_dim, kernel_size, stride, dilation=dilation)
        self.packed: PackedConv1d | None = None
        self.norm = normalisation(norm, out_dim)
        self.stride, self.span = stride, (kernel_size - 1) * dilation + 1
        self.pad_mode = pad_mode
        padding = max(self.span - stride, 0)  # so that N samples give ceil(N / stride) frames
        self.right = 0 if causal else padding // 2
        self.left = padding - self.right
        # Samples that must be there before the first output: to reflect n of them takes n + 1.
        self.first = max(self.right + stride, self.left + 1 if pad_mode == "reflect" else 1)
        # Samples kept before the next frame's, so that there are enough to pad the right end from.
        self.behind = max(0, stride - self.left)

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        if state is not None:
            return self._block(x, state, last)
        extra = -x.shape[-1] % self.stride  # completes the last frame
        right = self.right + extra
        if self.pad_mode == "constant" and self.left == right:  # the convolution pads without a copy
            return self.norm(self._convolve(x, right))
        return self.norm(self._convolve(pad(x, self.left, right, self.pad_mode)))

    def _convolve(self, x: Tensor, padding: int = 0) -> Tensor:
        """[B, D_in, N] with `padding` zeros on both sides -> [B, D_out, frames]."""
        if self.packed is not None:
            return self.packed(x, padding)
        weight, bias, dilation = self.conv.weight, self.conv.bias, self.conv.dilation
        run = lambda x: F.conv1d(x, weight, bias, self.stride, padding, dilation)  # noqa: E731
        return convolve(self.conv, run, x)

    def pack(self, dtype: torch.dtype) -> PackedConv1d:
        return PackedConv1d(self.conv, dtype)

    def _block(self, x: Tensor, state: StreamState, last: bool) -> Tensor:
        """[B, D_in, n] -> the frames [B, D_out, t] that are determined now."""
        past = state.get(self)
        x = join(past.x, x) if isinstance(past, PastInput) else x
        start = self.behind  # where in x the next frame begins
        if not isinstance(past, PastInput) or not past.padded:
            if last:
                return self(x)  # the signal is shorter than any context
            if x.shape[-1] < self.first:
                state[self] = PastInput(x.clone())
                return x.new_empty(x.shape[0], self.conv.out_channels, 0)
            x, start = pad(x, self.left, 0, self.pad_mode), 0
        if last:
            extra = (self.left + start - x.shape[-1]) % self.stride
            x = pad(x, 0, self.right + extra, self.pad_mode)
        num_frames = (x.shape[-1] - start - self.left - self.right) // self.stride
        end = start + num_frames * self.stride
        state[self] = PastInput(x[..., end - self.behind :].clone(), padded=True)
        if num_frames == 0:
            return x.new_empty(x.shape[0], self.conv.out_channels, 0)
        return self._convolve(x[..., start : end + self.left + self.right])


class PaddedConvTranspose1d(nn.Module):
    """Transposed convolution [B, D_in, T] -> [B, D_out, T * stride]; the surplus kernel - stride is trimmed.

    The norm comes before that: its mean and variance are over the surplus, too, as in EnCodec.
    trim_right_ratio: share of the surplus trimmed on the right by a causal layer (1 = all, no look-ahead).
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        kernel_size: int,
        stride: int,
        causal: bool = False,
        trim_right_ratio: float = 1.0,
        norm: str = "none",
    ) -> None:
        super().__init__()
        self.convtr = nn.ConvTranspose1d(in_dim, out_dim, kernel_size, stride)
        self.norm = normalisation(norm, out_dim)
        self.packed: PackedConvTranspose1d | None = None
        self.surplus = kernel_size - stride
        self.right = math.ceil(self.surplus * trim_right_ratio) if causal else self.surplus // 2
        self.left = self.surplus - self.right

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        if state is not None:
            return self._block(x, state, last)
        y = self.norm(self._convolve(x))
        return y[..., self.left : y.shape[-1] - self.right]

    def _convolve(self, x: Tensor) -> Tensor:
        """[B, D_in, T] -> [B, D_out, (T - 1) * stride + kernel]."""
        return convolve(self.convtr, self.convtr, x) if self.packed is None else self.packed(x)

    def pack(self, dtype: torch.dtype) -> PackedConvTranspose1d:
        return PackedConvTranspose1d(self.convtr, dtype)

    def _block(self, x: Tensor, state: StreamState, last: bool) -> Tensor:
        """[B, D_in, t] -> the samples [B, D_out, n] that are determined now."""
        past = state.get(self)
        if not isinstance(past, Overlap):
            past = Overlap(x.new_zeros(x.shape[0], self.convtr.out_channels, self.surplus), self.left)
        assert self.convtr.bias is not None
        bias = self.convtr.bias[:, None].to(x.dtype)
        if x.shape[-1] > 0:
            y = self._convolve(x)
            y = join(y[..., : self.surplus] + past.y, y[..., self.surplus :])
        else:
            y = past.y + bias
        end = y.shape[-1] - (self.right if last else self.surplus)
        trim = min(past.trim, end)
        state[self] = Overlap(y[..., end:] - bias, past.trim - trim)  # the next block adds the bias again
        return y[..., trim:end]


class ResidualLSTM(nn.Module):
    """Unidirectional LSTM over frames with a skip connection: [B, D, T] -> [B, D, T]."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers)
        self.packed: PackedLSTM | None = None

    def forward(self, x: Tensor, state: StreamState | None = None, last: bool = False) -> Tensor:
        if x.shape[-1] == 0:
            return x
        frames = x.permute(2, 0, 1)  # [T, B, D]
        past = None if state is None else state.get(self)
        out, (hidden, cell) = (self.packed or self.lstm)(frames, past if isinstance(past, Cells) else None)
        if state is not None:
            state[self] = Cells(hidden, cell)
        return (out + frames).permute(1, 2, 0)

    def pack(self, dtype: torch.dtype) -> PackedLSTM:
        return PackedLSTM(self.lstm, dtype)


def add_weight_norm(module: nn.Module) -> None:
    """Reparametrise every convolution's weight as g * v / |v| over its dim 0, keeping its value.

    Weight norm speeds up training and is not a property of a trained codec: model files hold plain weights.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Conv2d):
            parametrizations.weight_norm(layer, dim=0)


def plain_weights(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors with weight norm folded in, as model files hold them; the module trains on as it was.

    Not by folding a deep copy: torch takes the parametrisation out of the class, which copies share.
    """
    tensors = {
        name: tensor for name, tensor in module.state_dict().items() if ".parametrizations." not in name
    }
    for name, layer in module.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            tensors[f"{name}.weight"] = layer.weight.detach()
    return tensors
