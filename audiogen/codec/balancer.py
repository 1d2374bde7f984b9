"""Loss balancer (EnCodec, arXiv:2210.13438, section 3.4): weights become shares of the gradient at the output."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from audiogen import distributed
from audiogen.errors import InputError


class Balancer:
    """Backpropagates several losses of one model output so that each makes up its set share of the gradient.

    Loss i with weight w_i sends back g_i * R * (w_i / sum of w) / (moving average of |g_i|), where g_i is its
    gradient at the output: the natural size of a loss no longer matters. |g_i| is the mean over items of the norm
    per item. The average's bias at the start is corrected, so the first step is balanced too.
    """

    def __init__(
        self, weights: Mapping[str, float], ema_decay: float = 0.999, total_norm: float = 1.0
    ) -> None:
        if not weights or min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise InputError(f"loss weights are {dict(weights)}: numbers >= 0, not all 0, are allowed")
        self.weights, self.ema_decay, self.total_norm = dict(weights), ema_decay, total_norm
        # Decayed sums of norms and of ones: their ratio is the moving average, without bias at the start.
        self._sum: dict[str, float] = {}
        self._count: dict[str, float] = {}

    def backward(
        self, losses: Mapping[str, Tensor], output: Tensor, apart: Tensor | None = None
    ) -> dict[str, float]:
        """Backpropagate into the graph behind `output` [B, ...]; returns each loss's share of the gradient norm.

        `apart` is a loss of something before `output` (the commitment loss), added with weight 1 in the same pass.
        Losses without a weight, or with weight 0, take no part. A loss that does not depend on `output` is an error.
        """
        active = {name: loss for name, loss in losses.items() if self.weights.get(name, 0) > 0}
        grads = {
            name: torch.autograd.grad(loss, [output], retain_graph=True)[0] for name, loss in active.items()
        }
        # [number of losses]: the norm per item, its mean over the batch and over processes.
        norms = torch.stack([g.float().flatten(1).norm(dim=1).mean() for g in grads.values()])
        norms = distributed.all_reduce_sum(norms) / distributed.world()
        # A sum over items, in this process alone: what is averaged over processes is then that of the whole batch.
        total_norm = self.total_norm * distributed.world()
        total_weight = sum(self.weights[name] for name in active)
        total = torch.zeros_like(output)
        shares = {}
        for (name, grad), norm in zip(grads.items(), norms.tolist(), strict=True):
            self._sum[name] = self._sum.get(name, 0.0) * self.ema_decay + norm
            self._count[name] = self._count.get(name, 0.0) * self.ema_decay + 1.0
            average = self._sum[name] / self._count[name]
            # 1e-12: a loss whose gradient is zero is not divided by it
            scale = total_norm * self.weights[name] / total_weight / (average + 1e-12)
            total = total + scale * grad
            shares[name] = scale * norm
        if apart is None:
            output.backward(total)
        else:
            torch.autograd.backward([output, apart], [total, torch.ones_like(apart)])
        return {name: share / max(sum(shares.values()), 1e-12) for name, share in shares.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"sum": dict(self._sum), "count": dict(self._count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sum, self._count = dict(state["sum"]), dict(state["count"])
