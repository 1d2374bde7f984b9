"""AdamW as all tasks use it, and a moving average of weights.

A step of a task is: forward, `backward` for each part of the batch, `step`, then `Average.update`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from audiogen.config import NotNegative, NotNegativeFloat, Probability, Range, check_ranges

Beta = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class OptimConfig:
    """AdamW ("Decoupled Weight Decay Regularization", Loshchilov and Hutter, 2019) and its learning rate.

    lr: the highest rate, reached after warmup_steps. schedule: what follows until the last step: constant; cosine
    or linear, down to min_lr_ratio * lr; or inverse_sqrt, lr * sqrt(warmup_steps / step), which needs no end.
    betas, weight_decay: those of GPT-3 (arXiv:2005.14165, appendix B). clip_norm: the gradient is scaled down to this
    norm; 0 turns that off.
    """

    lr: Annotated[float, Range(0, math.inf, above=True, below=True)] = 3e-4
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    eps: NotNegativeFloat = 1e-8
    weight_decay: NotNegativeFloat = 0.1
    schedule: Literal["constant", "cosine", "linear", "inverse_sqrt"] = "cosine"
    warmup_steps: NotNegative = 100
    min_lr_ratio: Probability = 0.05
    clip_norm: NotNegativeFloat = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)


def learning_rate(config: OptimConfig, step: int, num_steps: int) -> float:
    """The rate of optimiser step `step`, counted from 0, in a run of `num_steps`."""
    if step < config.warmup_steps:  # linear, from lr / warmup_steps on: no step has the rate 0
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "inverse_sqrt":
        return config.lr * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    # 0 after the warm-up, 1 at the last step.
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - 1 - config.warmup_steps))
    shape = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        # "SGDR", arXiv:1608.03983, equation 5, no restart
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    return config.lr * (config.min_lr_ratio + (1.0 - config.min_lr_ratio) * shape)


class Optimizer:
    """AdamW with its schedule: `backward` for each part of a batch, then `step` once."""

    def __init__(self, module: nn.Module, config: OptimConfig, num_steps: int, scale_losses: bool = False):
        """scale_losses: for float16, whose smallest gradients vanish (Micikevicius et al., 2018)."""
        self.config, self.num_steps = config, num_steps
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        # Gains and biases are not decayed: pulling them towards zero is no regularisation.
        matrices = [p for p in self.parameters if p.dim() >= 2]
        vectors = [p for p in self.parameters if p.dim() < 2]
        decayed = {"params": matrices, "weight_decay": config.weight_decay}
        groups = [decayed, {"params": vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, config.lr, config.betas, config.eps, fused=True)
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scale_losses)
        if any(isinstance(each, DTensor) for each in self.parameters):
            self._make_moments()

    def _make_moments(self) -> None:
        """The moments of no step, which AdamW makes with its first one, for a sharded checkpoint to be read into."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        for group in self.adamw.param_groups:
            group["lr"] = 0.0
        self.adamw.step()
        self.adamw.zero_grad()
        for state in self.adamw.state.values():
            state["step"].zero_()

    def backward(self, loss: Tensor, shared: bool = False) -> None:
        """Add this scalar loss's gradients to those of the step.

        shared: the graph goes on into another optimiser's parameters, which use it afterwards: it is kept, and only
        the parameters of this optimiser get gradients.
        """
        self.scaler.scale(loss).backward(retain_graph=shared, inputs=self.parameters if shared else None)

    def step(self, step: int) -> dict[str, float]:
        """Update the weights at the rate of `step`, clear the gradients -> {"lr", "grad_norm": before it is clipped}.

        Gradients whose norm is not finite change no weight; the caller sees it in `grad_norm` (float16 skips the step
        by design, lowers its loss scale, and reports that instead).
        """
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of all shards
        finite = bool(torch.isfinite(norm))
        if self.config.clip_norm and finite:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_norm, norm)
        lr = learning_rate(self.config, step, self.num_steps)
        for group in self.adamw.param_groups:
            group["lr"] = lr
        if finite or self.scaler.is_enabled():  # which leaves a step out by itself
            self.scaler.step(self.adamw)
            self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        metrics = {"lr": lr}
        if self.scaler.is_enabled():
            metrics["loss_scale"] = self.scaler.get_scale()
        if finite or not self.scaler.is_enabled():
            metrics["grad_norm"] = float(norm)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Moments, step counts and loss scale."""
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; the settings (rates, betas, decay) stay those of this run's recipe."""
        groups = zip(self.adamw.state_dict()["param_groups"], state["adamw"]["param_groups"], strict=True)
        merged = [{**own, "params": saved["params"]} for own, saved in groups]
        self.adamw.load_state_dict({**state["adamw"], "param_groups": merged})
        self.scaler.load_state_dict(state["scaler"])


class Average:
    """Exponential moving average, in float32, of a module's trainable parameters; decay 0 is off.

    Where it is on, the averages are validated, sampled from and saved as the model. Buffers (a codec's codebooks) are
    not averaged: they are averages already, or counts.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        averaged = self.parameters if decay else {}
        self.averages = {name: p.detach().float().clone() for name, p in averaged.items()}

    @torch.no_grad()
    def update(self) -> None:
        """average = d * average + (1 - d) * parameter, after an optimiser step.

        d = min(decay, (1 + n) / (10 + n)) after n updates, as in TensorFlow's ExponentialMovingAverage(num_updates):
        the first steps are averaged over a shorter past, so that little of the random start remains.
        """
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        if self.averages:
            latest = [self.parameters[name].float() for name in self.averages]
            torch._foreach_lerp_(list(self.averages.values()), latest, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module holds the averages; after it the parameters as they were, bit for bit."""
        parameters = [self.parameters[name].detach() for name in self.averages]  # the same memory
        trained = [parameter.clone() for parameter in parameters]
        for parameter, average in zip(parameters, self.averages.values(), strict=True):
            parameter.copy_(average)
        try:
            yield
        finally:
            for parameter, before in zip(parameters, trained, strict=True):
                parameter.copy_(before)

    def state_dict(self) -> dict[str, Any]:
        """The averages and the number of their updates."""
        return {"averages": dict(self.averages), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; a run that only now turns averaging on starts it from its parameters."""
        self.num_updates = state["num_updates"] if state["averages"] or not self.averages else 0
        for name, average in self.averages.items():
            average.copy_(state["averages"].get(name, self.parameters[name].detach()))
