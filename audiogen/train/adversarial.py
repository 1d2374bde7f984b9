"""A discriminator with its optimiser, and the losses that it gives a generator of audio or spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audiogen.codec.losses import (
    AdversarialKind,
    adversarial_discriminator,
    adversarial_generator,
    feature_matching,
)
from audiogen.config import NotNegative, Positive, check_ranges
from audiogen.train.optim import OptimConfig, Optimizer
from audiogen.train.parallel import Parallel
from audiogen.train.task import FitConfig, autocast


@dataclass(frozen=True)
class AdversarialConfig:
    """How and when the discriminator takes part.

    kind: hinge or lsgan (least squares). start: the step from which the discriminator learns and its losses count;
    until then reconstruction alone is cheaper and steadier. every: it learns on each `every`-th step from there on.
    """

    kind: AdversarialKind = "hinge"
    start: NotNegative = 0
    every: Positive = 1

    def __post_init__(self) -> None:
        check_ranges(self)


class Adversary:
    """A discriminator that learns: audio or spectra -> (logits of each scale, features of each scale and layer)."""

    def __init__(
        self, discriminator: nn.Module, config: AdversarialConfig, optim: OptimConfig, fit: FitConfig
    ):
        self.discriminator = discriminator
        self.parallel = Parallel(discriminator, next(discriminator.parameters()).device, fit.shard)
        self.config, self.precision = config, fit.precision
        self.optimizer = Optimizer(discriminator, optim, fit.steps)

    def learns(self, step: int) -> bool:
        """Whether the discriminator is updated at this step."""
        return step >= self.config.start and (step - self.config.start) % self.config.every == 0

    def losses(
        self, real: Tensor, fake: Tensor, step: int, scale: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of real and fake [B, ...] at `step`: the generator's, and the discriminator's where it learns.

        The gradients of the discriminator's loss times `scale` are added to its own; the generator gets none of them.
        One pass over the real and one over the fake serve both. Before `start` there are no losses.
        """
        if step < self.config.start:
            return {}, {}
        learns, kind = self.learns(step), self.config.kind

        def judge() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
            with autocast(real.device, self.precision):
                with torch.set_grad_enabled(learns):
                    real_logits, real_features = self.discriminator(real)
                fake_logits, fake_features = self.discriminator(fake)
            own = (
                {"discriminator": adversarial_discriminator(real_logits, fake_logits, kind)} if learns else {}
            )
            return {
                "adversarial": adversarial_generator(fake_logits, kind),
                "feature_matching": feature_matching(real_features, fake_features),
            }, own

        judged, own = self.parallel(judge, learns)
        if learns:
            self.optimizer.backward(own["discriminator"] * scale, shared=True)
        return judged, {name: loss.detach() for name, loss in own.items()}

    def step(self, step: int) -> dict[str, float]:
        """Update the discriminator, where it learns, with the gradients gathered -> `discriminator_...` scalars."""
        if not self.learns(step):
            return {}
        metrics = self.optimizer.step(step)
        return {f"discriminator_{name}": value for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Discriminator and optimiser."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
