"""The other player of adversarial training: a discriminator with its optimiser, and the losses it gives a generator.

For codecs now, and for any autoencoder whose output is audio.
"""

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
from audiogen.errors import InputError
from audiogen.train.loop import autocast
from audiogen.train.optim import OptimConfig, Optimizer


@dataclass(frozen=True)
class AdversarialConfig:
    """How and when the discriminator plays.

    kind: hinge or lsgan (least squares). start: the step from which the discriminator learns and teaches; until
    then reconstruction alone is cheaper and steadier. every: it learns on each `every`-th step from there on.
    """

    kind: AdversarialKind = "hinge"
    start: int = 0
    every: int = 1

    def __post_init__(self) -> None:
        if self.start < 0 or self.every < 1:
            raise InputError(f"start is {self.start} and every {self.every}; at least 0 and 1 are allowed")


class Adversary:
    """A discriminator, audio [B, C, N] -> (logits of each scale, features of each scale and layer), that learns."""

    def __init__(
        self,
        discriminator: nn.Module,
        config: AdversarialConfig,
        optim: OptimConfig,
        num_steps: int,
        precision: str,
    ):
        self.discriminator = discriminator
        self.config, self.precision = config, precision
        self.optimizer = Optimizer([discriminator], optim, num_steps)

    def plays(self, step: int) -> bool:
        """Whether the adversarial losses are on at this step."""
        return step >= self.config.start

    def learns(self, step: int) -> bool:
        """Whether the discriminator is updated at this step."""
        return self.plays(step) and (step - self.config.start) % self.config.every == 0

    def backward(self, real: Tensor, fake: Tensor, scale: float = 1.0) -> Tensor:
        """Gradients for telling real from fake audio [B, C, N], times `scale` -> the loss. `fake` gets none."""
        with autocast(real.device, self.precision):
            real_logits, _ = self.discriminator(real)
            fake_logits, _ = self.discriminator(fake.detach())
        loss = adversarial_discriminator(real_logits, fake_logits, self.config.kind)
        self.optimizer.backward(loss * scale)
        return loss.detach()

    def losses(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """What the generator of `fake` minimises: to be taken for real, with the features of the real."""
        with autocast(real.device, self.precision):
            with torch.no_grad():
                _, real_features = self.discriminator(real)
            fake_logits, fake_features = self.discriminator(fake)
        return {
            "adversarial": adversarial_generator(fake_logits, self.config.kind),
            "feature_matching": feature_matching(real_features, fake_features),
        }

    def step(self, step: int) -> dict[str, float]:
        """Update the discriminator with the gradients gathered."""
        return self.optimizer.step(step)

    def state_dict(self) -> dict[str, Any]:
        """Discriminator and optimiser."""
        return {"discriminator": self.discriminator.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
