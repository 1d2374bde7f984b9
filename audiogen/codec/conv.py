"""Padded 1-D convolutions, causal or centred, that can also run block by block.

Padding follows EnCodec (arXiv:2210.13438, section 3.1): a convolution of stride s maps N samples to ceil(N / s)
frames, a transposed one T frames to exactly T * s samples. Causal layers pad on the left only. Every layer takes
an optional `state`; with it, feeding a signal in blocks gives what one call on the whole signal gives.
"""

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, cat, nn
from torch.nn.utils import parametrizations, parametrize

from audiogen.errors import InputError

PAD_MODES = ("constant", "reflect", "replicate")
NORMS = ("none", "group")

# What each streaming layer remembers between blocks: the tail of its input, the overlap of its output (a Tensor
# each), or an LSTM's pair of cells.
StreamState = dict[nn.Module, Any]


def pad(x: Tensor, left: int, right: int, mode: str) -> Tensor:
    """Pad the last axis; a signal too short to reflect is first extended with zeros (as EnCodec does)."""
    if mode != "reflect" or x.shape[-1] > max(left, right):
        return F.pad(x, (left, right), mode=mode)
    extra = max(left, right) - x.shape[-1] + 1
    padded = F.pad(F.pad(x, (0, extra)), (left, right), mode="reflect")
    return padded[..., : padded.shape[-1] - extra]


def normalisation(norm: str, dim: int) -> nn.Module:
    """What follows a convolution of EnCodec: nothing, or at 48 kHz a norm over channels and time [B, D, N]."""
    return nn.GroupNorm(1, dim) if norm == "group" else nn.Identity()


def _check_state(norm: nn.Module) -> None:
    if isinstance(norm, nn.GroupNorm):
        raise InputError(
            "a codec with group norm, which is over all of a sound, cannot run block by block with state"
        )


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
        self.norm = normalisation(norm, out_dim)
        self.stride, self.span = stride, (kernel_size - 1) * dilation + 1
        self.causal, self.pad_mode = causal, pad_mode
        self.padding = max(self.span - stride, 0)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        extra = -x.shape[-1] % self.stride  # completes the last frame
        if state is None:
            right = 0 if self.causal else self.padding // 2
            return self.norm(self.conv(pad(x, self.padding - right, right + extra, self.pad_mode)))
        _check_state(self.norm)
        if not self.causal:
            raise InputError("a centred codec cannot run block by block with state; use a causal one")
        past = state.get(self)
        left = self.padding if past is None else 0
        x = pad(x if past is None else cat([past, x], -1), left, extra, self.pad_mode)
        state[self] = x[..., x.shape[-1] - self.padding :]
        return self.conv(x)


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
        self.surplus = kernel_size - stride
        self.causal = causal
        self.right = math.ceil(self.surplus * trim_right_ratio) if causal else self.surplus // 2

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        if state is None:
            y = self.norm(self.convtr(x))
            return y[..., self.surplus - self.right : y.shape[-1] - self.right]
        _check_state(self.norm)
        if not self.causal or self.right != self.surplus:
            raise InputError("a codec with look-ahead cannot run block by block with state; use a causal one")
        y = F.conv_transpose1d(x, self.convtr.weight, None, self.convtr.stride)
        past = state.get(self)
        if past is not None:
            y = cat([y[..., : self.surplus] + past, y[..., self.surplus :]], -1)
        state[self] = y[..., y.shape[-1] - self.surplus :]
        bias = self.convtr.bias
        return y[..., : y.shape[-1] - self.surplus] + (0 if bias is None else bias[:, None])


class ResidualLSTM(nn.Module):
    """Unidirectional LSTM over frames with a skip connection: [B, D, T] -> [B, D, T]."""

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(dim, dim, num_layers)

    def forward(self, x: Tensor, state: StreamState | None = None) -> Tensor:
        frames = x.permute(2, 0, 1)  # [T, B, D]
        out, cells = self.lstm(frames, state.get(self) if state is not None else None)
        if state is not None:
            state[self] = cells
        return (out + frames).permute(1, 2, 0)


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
