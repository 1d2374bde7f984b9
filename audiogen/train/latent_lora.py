"""LoRA of a latent system: small matrices beside those of its denoiser learn a few sounds, and are saved alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from audiogen import lora as low_rank
from audiogen.config import to_plain
from audiogen.data.seeds import seed_for
from audiogen.diffusion import lora
from audiogen.diffusion.lora import LatentLoraConfig
from audiogen.diffusion.sample import SAMPLINGS
from audiogen.errors import InputError
from audiogen.models.released import read_released
from audiogen.train.diffusion import DiffusionRecipe, DiffusionTask
from audiogen.train.parallel import SHARDED


@dataclass(frozen=True, kw_only=True)
class LatentLoraRecipe(DiffusionRecipe):
    """A run that trains adapters of `init_from`; `recipes/latent_lora.yaml` is a complete example.

    lora: which matrices of the denoiser get adapters. Nothing else is trained.
    """

    task: Literal["latent_lora"] = "latent_lora"  # type: ignore[assignment]
    lora: LatentLoraConfig = field(default_factory=LatentLoraConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None:
            raise InputError("init_from is null; name the system that is to get adapters")
        if self.loa is not None:
            raise InputError("adapters are of the denoiser alone; set loa=null")
        if self.fit.shard in SHARDED:
            raise InputError(f"fit.shard={self.fit.shard} is for whole models; adapters take fit.shard=ddp")

    @staticmethod
    def inherit(recipe: Mapping[str, Any]) -> dict[str, Any]:
        """As `DiffusionRecipe`, and how the system is sampled."""
        found = read_released(recipe["init_from"])
        sampling = to_plain(found.sampling or SAMPLINGS[found.name])
        return DiffusionRecipe.inherit(recipe) | {"sampling": sampling}

    @staticmethod
    def new_task(*given: Any) -> LatentLoraTask:
        """The task of this kind of run."""
        return LatentLoraTask(*given)


class LatentLoraTask(DiffusionTask):
    """Adapters of the denoiser, which begin as nothing; the conditioner is frozen."""

    recipe: LatentLoraRecipe

    def choose_trained(self, recipe: DiffusionRecipe) -> list[nn.Module]:
        """See `DiffusionTask`: the adapters, which are added here."""
        assert isinstance(recipe, LatentLoraRecipe)
        self.system.requires_grad_(False)
        torch.manual_seed(seed_for(recipe.seed, "weights"))
        lora.add(self.system.denoiser, recipe.lora)
        return []

    def train(self) -> None:
        """Training mode of the denoiser."""
        super().train()
        self.conditioner.eval()

    def export(self, directory: Path, info: Mapping[str, Any]) -> None:
        """Write the adapters alone."""
        lora.save_adapter(directory, self.system.denoiser, self.recipe.lora, str(self.recipe.init_from), info)

    def weights(self) -> dict[str, Any]:
        """The adapters and the fingerprint of their denoiser."""
        return low_rank.checkpoint_state(self.system.denoiser.network)

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Restore what `weights` gave; InputError where it is of another kind of run, or of another system."""
        if "adapters" not in state:
            raise InputError(f"the checkpoint in {self.recipe.out} is of a whole system; choose another out=")
        network = self.system.denoiser.network
        low_rank.load_checkpoint_state(network, state, self.recipe.out, str(self.recipe.init_from))
