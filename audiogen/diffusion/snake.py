"""Oobleck's activation, x + sin(alpha x)^2 / beta, in few passes over memory: on a CPU it costs more than convolutions.

With sin^2 written as (1 - cos(2 alpha x)) / 2, nothing but x is kept for the backward pass. Snake: arXiv:2006.08195.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import Snake1d
from torch import Tensor, nn


class Snake(nn.Module):
    """The activation with the weights of a Snake1d of diffusers: [B, C, T] -> [B, C, T] in the input's number type."""

    def __init__(self, original: Snake1d):
        super().__init__()
        self.alpha, self.beta, self.logscale = original.alpha, original.beta, original.logscale  # [1, C, 1]

    def forward(self, x: Tensor) -> Tensor:
        """The activation of each channel, by its own alpha and beta."""
        alpha = self.alpha.exp() if self.logscale else self.alpha
        beta = self.beta.exp() if self.logscale else self.beta
        result: Tensor = SnakeFunction.apply(
            x, alpha, (beta + 1e-9).reciprocal()
        )  # as Snake1d, no division by 0
        return result


class SnakeFunction(torch.autograd.Function):
    """(x [B, C, T], alpha [1, C, 1], scale [1, C, 1]) -> x + scale sin(alpha x)^2; sums are float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, alpha, scale)
        made = torch.empty_like(x)
        for part, out in zip(_parts(x), _parts(made), strict=True):
            wave = (part.to(alpha.dtype) * (2 * alpha)).cos_().sub_(1.0)  # -2 sin(alpha x)^2
            out.copy_(torch.addcmul(part.to(alpha.dtype), wave, scale, value=-0.5))
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, scale = ctx.saved_tensors
        of_x = torch.empty_like(x)
        of_alpha, of_scale = torch.zeros_like(alpha), torch.zeros_like(scale)
        for part, gradient, out in zip(_parts(x), _parts(gradients[0]), _parts(of_x), strict=True):
            part, gradient = part.to(alpha.dtype), gradient.to(alpha.dtype)
            angle = part * (2 * alpha)
            through_sine = angle.sin().mul_(gradient)
            out.copy_(
                torch.addcmul(gradient, through_sine, alpha * scale)
            )  # d/dx = 1 + alpha scale sin(2 alpha x)
            of_alpha += through_sine.mul_(part).sum((0, 2), keepdim=True)  # d/dalpha = scale x sin(2 alpha x)
            # d/dscale = (1 - cos(2 alpha x)) / 2
            of_scale += gradient.sum((0, 2), keepdim=True) - angle.cos_().mul_(gradient).sum(
                (0, 2), keepdim=True
            )
        return of_x, of_alpha * scale, 0.5 * of_scale


def use_snakes(network: nn.Module) -> None:
    """Put a `Snake` in the place of every Snake1d inside a network; weights and their names stay."""
    for parent in list(network.modules()):
        for name, part in list(parent.named_children()):
            if isinstance(part, Snake1d):
                setattr(parent, name, Snake(part))


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    """Rows one by one on a CPU, where they fit its cache; all at once on a GPU."""
    return x.split(1) if x.device.type == "cpu" else (x,)
