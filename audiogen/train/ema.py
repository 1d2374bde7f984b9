"""Moving average of weights: what is validated, sampled from and saved as the model when it is on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Average:
    """Exponential moving average, in float32, of a module's trainable parameters; decay 0 is off.

    Buffers (a codec's codebooks) are not averaged: they are averages already, or counts. The first steps are
    averaged over a shorter past, min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is
    forgotten soon.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.num_updates = 0
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        averaged = self.parameters if decay else {}
        self.averages = {name: p.detach().float().clone() for name, p in averaged.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after an optimiser step."""
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        self.num_updates += 1
        averages = list(self.averages.values())
        if averages:
            torch._foreach_lerp_(
                averages, [self.parameters[name].float() for name in self.averages], 1 - decay
            )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the module holds the averages; after it the parameters as they were, bit for bit."""
        trained = {name: self.parameters[name].detach().clone() for name in self.averages}
        self._copy_in(self.averages)
        try:
            yield
        finally:
            self._copy_in(trained)

    @torch.no_grad()
    def _copy_in(self, values: Mapping[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The averages and how many steps they have seen."""
        return {"averages": dict(self.averages), "num_updates": self.num_updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore; a run that only now turns averaging on starts it from its parameters."""
        self.num_updates = state["num_updates"] if state["averages"] else 0
        for name, average in self.averages.items():
            average.copy_(state["averages"].get(name, self.parameters[name].detach()))
