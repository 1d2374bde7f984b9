"""A discriminator with its optimiser, and the losses that it gives a generator of audio or spectra."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Verdict(NamedTuple):
    """A discriminator's logits, one tensor a scale, and features, one a scale and layer."""

    real_logits: list[Tensor]
    real_features: list[list[Tensor]]
    fake_logits: list[Tensor]
    fake_features: list[list[Tensor]]


class Adversary:
    """A discriminator that learns: audio or spectra -> (logits of each scale, features of each scale and layer)."""

    def __init__(
        self, discriminator: nn.Module, config: AdversarialConfig, optim: OptimConfig, fit: FitConfig
    ):
        self.discriminator = discriminator
        self.config, self.precision = config, fit.precision
        self.optimizer = Optimizer([discriminator], optim, fit.steps)

    def learns(self, step: int) -> bool:
        """Whether the discriminator is updated at this step."""
        return step >= self.config.start and (step - self.config.start) % self.config.every == 0

    def play(
        self, real: Tensor, fake: Tensor, step: int, scale: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The generator's losses, and the discriminator's, whose gradients are added, times `scale`, where it learns.

        Both are empty before `start`.
        """
        if step < self.config.start:
            return {}, {}
        learns = self.learns(step)
        verdict = self.judge(real, fake, learns)
        own = {"discriminator": self.backward(verdict, scale)} if learns else {}
        return self.losses(verdict), own

    def judge(self, real: Tensor, fake: Tensor, learns: bool) -> Verdict:
        """The discriminator's output for real and fake [B, C, N]: one pass of each serves both players' losses.

        learns: whether `backward` follows.
        """
        with autocast(real.device, self.precision):
            with torch.set_grad_enabled(learns):
                real_logits, real_features = self.discriminator(real)
            return Verdict(real_logits, real_features, *self.discriminator(fake))

    def backward(self, verdict: Verdict, scale: float = 1.0) -> Tensor:
        """Gradients of the discriminator's loss, times `scale` -> the loss. The generator of the fake gets none."""
        loss = adversarial_discriminator(verdict.real_logits, verdict.fake_logits, self.config.kind)
        self.optimizer.backward(loss * scale, shared=True)
        return loss.detach()

    def losses(self, verdict: Verdict) -> dict[str, Tensor]:
        """The generator's losses: its fake should be judged real, with the features of the real."""
        return {
            "adversarial": adversarial_generator(verdict.fake_logits, self.config.kind),
            "feature_matching": feature_matching(verdict.real_features, verdict.fake_features),
        }

    def step(self, step: int) -> dict[str, float]:
        """Update the discriminator, where it learns, with the gradients gathered -> `discriminator_...` scalars."""
        if not self.learns(step):
            return {}
        metrics = self.optimizer.step(step, self.optimizer.clip())
        return {f"discriminator_{name}": value for name, value in metrics.items()}

    def state_dict(self) -> dict[str, Any]:
        """Discriminator and optimiser."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
