"""The activation of Oobleck and DAC in few passes over memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

CACHED = 2**16  # numbers that it takes at a time: 256 kB, and two of its kind


class Snake(nn.Module):
    """x + sin(alpha x)^2 / beta (arXiv:2006.08195), with the weights of a Snake1d; DAC's beta is alpha.

    In few passes over memory: on a CPU it costs more than convolutions. With sin^2 written as (1 - cos(2 alpha x)) / 2,
    nothing but x is kept for the backward pass.
    """

    def __init__(self, original: Any):
        """original: of diffusers (alpha and beta, logarithms of them or not) or of transformers (alpha), [1, C, 1]."""
        super().__init__()
        self.alpha, self.logscale = original.alpha, getattr(original, "logscale", False)
        self.beta = getattr(original, "beta", None)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T] -> [B, C, T] in the input's number type; each channel has its own alpha and beta."""
        alpha = self.alpha.exp() if self.logscale else self.alpha
        beta = alpha if self.beta is None else self.beta.exp() if self.logscale else self.beta
        return SnakeFunction.apply(x, alpha, (beta + 1e-9).reciprocal())  # as Snake1d, no division by 0


class SnakeFunction(torch.autograd.Function):
    """(x [B, C, T], alpha [1, C, 1], scale [1, C, 1]) -> x + scale sin(alpha x)^2; sums are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, scale)
        made, twice, half = torch.empty_like(x), 2 * alpha, -0.5 * scale
        for part, out in zip(_parts(x), _parts(made), strict=True):
            part = part.to(alpha.dtype)
            wave = (part * twice).cos_().sub_(1.0)  # -2 sin(alpha x)^2
            out.copy_(torch.addcmul(part, wave, half, out=wave))
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, scale = ctx.saved_tensors  # [B, C, T], then [1, C, 1] each
        of_x = torch.empty_like(x)
        of_alpha, of_scale = torch.zeros_like(alpha), torch.zeros_like(scale)
        for part, gradient, out in zip(_parts(x), _parts(gradients[0]), _parts(of_x), strict=True):
            part, gradient = part.to(alpha.dtype), gradient.to(alpha.dtype)
            angle = part * (2 * alpha)
            through_sine = angle.sin().mul_(gradient)
            # d/dx = 1 + alpha scale sin(2 alpha x)
            out.copy_(torch.addcmul(gradient, through_sine, alpha * scale))
            of_alpha += through_sine.mul_(part).sum((0, 2), keepdim=True)  # d/dalpha = scale x sin(2 alpha x)
            # d/dscale = (1 - cos(2 alpha x)) / 2
            cosine = angle.cos_().mul_(gradient)
            of_scale += gradient.sum((0, 2), keepdim=True) - cosine.sum((0, 2), keepdim=True)
        return of_x, of_alpha * scale, 0.5 * of_scale


def use_snakes(network: nn.Module, kind: type[nn.Module]) -> None:
    """Put a `Snake` in the place of every activation of that kind inside a network; weights and their names stay."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, kind):
                setattr(parent, name, Snake(part))


def _parts(x: Tensor) -> list[Tensor]:
    """Pieces of [B, C, T] that fit each thread's cache on a CPU; all at once on a GPU."""
    if x.device.type != "cpu":
        return [x]
    frames = max(1, CACHED * torch.get_num_threads() // x.shape[1])
    return [piece for row in x.split(1) for piece in row.split(frames, dim=2)]
