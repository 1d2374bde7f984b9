"""AdamW as all tasks use it: schedule, clipping, gradients averaged over processes, loss scaling for float16."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from audiogen import distributed
from audiogen.errors import InputError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019) and its learning rate.

    lr: the highest rate, reached after warmup_steps. schedule: what follows until the last step: constant; cosine
    or linear, down to min_lr_ratio * lr; or inverse_sqrt, lr * sqrt(warmup_steps / step), which needs no end.
    clip_norm: the gradient is scaled down to this norm; 0 leaves it as it is.
    """

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "cosine"
    warmup_steps: int = 100
    min_lr_ratio: float = 0.05
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.lr <= 0 or not math.isfinite(self.lr):
            raise InputError(f"lr is {self.lr}; it must be above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas are {self.betas}; both must be in [0, 1)")
        if min(self.warmup_steps, self.weight_decay, self.clip_norm, self.eps) < 0:
            raise InputError("warmup_steps, weight_decay, clip_norm and eps must not be negative")
        if not 0 <= self.min_lr_ratio <= 1:
            raise InputError(f"min_lr_ratio is {self.min_lr_ratio}; it must be in [0, 1]")


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of optimiser step `step`, counted from 0, in a run of `num_steps`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape)


class Optimizer:
    """`backward` as often as there are parts of a batch, then one `step`."""

    def __init__(
        self, modules: Iterable[nn.Module], config: OptimConfig, num_steps: int, scale_losses: bool = False
    ):
        """scale_losses: for float16, whose smallest gradients vanish (Micikevicius et al., 2018)."""
        self.config, self.num_steps = config, num_steps
        self.parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
        # Gains and biases are not decayed: pulling them towards zero is no regularisation.
        matrices = [p for p in self.parameters if p.dim() >= 2]
        vectors = [p for p in self.parameters if p.dim() < 2]
        self.adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.lr,
            betas=config.betas,
            eps=config.eps,
            fused=True,
        )
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scale_losses)

    def backward(self, loss: Tensor, shared: bool = False) -> None:
        """Add this loss's gradients to those of the step.

        shared: the graph leads on to what others train, and is theirs to use after: it is kept, and the parameters of
        this optimiser alone get gradients.
        """
        self.scaler.scale(loss).backward(retain_graph=shared, inputs=self.parameters if shared else None)

    def step(self, step: int) -> dict[str, float]:
        """Average over processes, clip, update, clear. -> {"grad_norm": before clipping, "lr"}.

        A gradient that is not finite changes no weight; the caller sees it in `grad_norm` (float16 leaves the
        step out by design, lowers its loss scale, and reports that instead).
        """
        lr = learning_rate(self.config, step, self.num_steps)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        distributed.average_gradients(self.parameters)
        self.scaler.unscale_(self.adamw)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = bool(torch.isfinite(norm))
        if self.config.clip_norm and finite:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        if self.scaler.is_enabled():
            self.scaler.step(self.adamw)
            self.scaler.update()
        elif finite:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        metrics = {"lr": lr}
        if self.scaler.is_enabled():
            metrics["loss_scale"] = self.scaler.get_scale()
        if finite or not self.scaler.is_enabled():
            metrics["grad_norm"] = norm.item()
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Moments, step counts and loss scale."""
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; the settings (rates, betas, decay) stay those of this run's recipe."""
        settings = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.adamw.param_groups
        ]
        self.adamw.load_state_dict(state["adamw"])
        for group, own in zip(self.adamw.param_groups, settings, strict=True):
            group.update(own)
        self.scaler.load_state_dict(state["scaler"])
