"""Layers of the latent systems on a CPU: results that no number of threads changes, and packed weights.

PyTorch's choice of a kernel (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp) asks for the number of threads where
the kernel is 1 x 1, so that a system's sounds differed by it. As one product of matrices they do not, and two threads
take a quarter to a half of the time. Larger kernels over small pictures go to a product of MKL's, whose sums depend on
the threads where there is AVX-512: oneDNN's do not.

Each layer can be packed for inference (see `packed.py`): in bfloat16 a network then takes a half of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiogen.device import DTYPES, multiplies_faster_in_bfloat16
from audiogen.errors import InputError
from audiogen.onednn import has_int8_products
from audiogen.packed import Linear, PackedConv2d, use_conv1d


class _Conv2d(nn.Conv2d):
    """nn.Conv2d, [B, D_in, T, M] -> [B, D_out, T', M'], that can be packed; it trains as nn.Conv2d does."""

    packed: PackedConv2d | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(input)
        is_plain = input.device.type == "cpu" and input.dtype == torch.float32
        if not is_plain or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return self.product(input)

    def product(self, input: Tensor) -> Tensor:
        """The convolution of an input [B, D_in, T, M] in float32 on a CPU."""
        raise NotImplementedError

    def pack(self, dtype: torch.dtype) -> PackedConv2d:
        return PackedConv2d(self, dtype)


class PointwiseConv2d(_Conv2d):
    """A 1 x 1 convolution, [B, D_in, T, M] -> [B, D_out, T, M]."""

    def product(self, input: Tensor) -> Tensor:
        weight = self.weight[:, :, 0, 0].expand(len(input), -1, -1)  # [B, D_out, D_in]
        columns = input.flatten(2)  # [B, D_in, T * M]
        if self.bias is None:
            product = torch.bmm(weight, columns)
        else:
            product = torch.baddbmm(self.bias[:, None], weight, columns)
        return product.unflatten(2, input.shape[2:])


class DirectConv2d(_Conv2d):
    """A convolution by oneDNN of an input [B, D_in, T, M], however small."""

    def product(self, input: Tensor) -> Tensor:
        return torch.ops.aten.mkldnn_convolution(  # [B, D_out, T, M]
            input, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def use_products(module: nn.Module) -> None:
    """Layers become those of this file: 1 x 1 convolutions, others where there is oneDNN, and `packed.Linear`.

    Their weights stay where they are.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            continue
        if layer.weight.shape[2:] != (1, 1):
            layer.__class__ = DirectConv2d if torch.backends.mkldnn.is_available() else nn.Conv2d
        elif (layer.stride, layer.padding, layer.groups) == ((1, 1), (0, 0), 1):
            layer.__class__ = PointwiseConv2d
    use_conv1d(module)


def choose_dtypes(name: str, device: torch.device) -> tuple[torch.dtype, torch.dtype | None]:
    """What a latent system computes in on a device, and what its denoiser's linear layers do where that is int8.

    name: of `DTYPES`, "int8", or "auto". Raises InputError for others, and for what the device cannot do.
    """
    if name == "auto":
        return (torch.bfloat16 if device.type == "cuda" else torch.float32), None
    if name == "int8":
        if device.type != "cpu" or not has_int8_products():
            raise InputError(
                "dtype int8 of latent diffusion is for CPUs that multiply bytes exactly (x86 with VNNI or AMX), and "
                f"{'this is none' if device.type == 'cpu' else f'the device is {device}'}; choose bfloat16 or float32"
            )
        return (torch.bfloat16 if multiplies_faster_in_bfloat16(device) else torch.float32), torch.int8
    if name not in DTYPES:
        raise InputError(
            f"dtype is {name!r}; latent diffusion computes in {', '.join(DTYPES)}, int8, or auto"
        )
    if name == "float16" and device.type == "cpu":
        raise InputError("dtype float16 is for GPUs; on a CPU choose float32, bfloat16 or int8")
    return DTYPES[name], None
