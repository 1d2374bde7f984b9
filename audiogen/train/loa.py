"""What AudioLDM 2's GPT-2 learns by itself: vectors found in the sound, its "language of audio" (2308.05734, III)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiogen.diffusion.loa import LoaConfig, pool_latents
from audiogen.errors import InputError
from audiogen.train.latents import Feature


@dataclass(frozen=True)
class LoaTraining:
    """How GPT-2 is trained on true vectors, beside the denoiser or before it.

    target: what they are of: `latents`, the autoencoder's, pooled. loss: mse as in the paper, or l1 as in the authors'
    code; of each vector after the true ones before it. weight: of that loss, where the denoiser's is added. true_share:
    of the clips whose denoiser is given the true vectors, drawn per clip; the others' are generated. only: GPT-2's
    stage, which the denoiser sits out; the joint one starts from its run directory (init_from).
    """

    target: Literal["latents"] = "latents"
    loss: Literal["mse", "l1"] = "mse"
    weight: float = 1.0
    true_share: float = 0.25
    only: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.true_share <= 1:
            raise InputError(f"loa.true_share is {self.true_share}; it must be in [0, 1]")
        if not self.weight > 0:
            raise InputError(
                f"loa.weight is {self.weight}; it must be above 0: with loa=null GPT-2 learns from the denoiser alone"
            )

    def distance(self, found: Tensor, true: Tensor) -> Tensor:
        """Of vectors [B, length, width] from the true ones -> [B], float32."""
        difference = found.float() - true
        return (difference.square() if self.loss == "mse" else difference.abs()).flatten(1).mean(1)


def true_vectors(training: LoaTraining, loa: LoaConfig, latent_shape: tuple[int, ...]) -> Feature:
    """What makes the true vectors [B, length, width] of sounds with latents (D, T) or (D, T, M).

    Raises InputError where these do not divide into such vectors.
    """
    dim, num_frames, num_bins = (*latent_shape, 1)[:3]
    if loa.width % dim or num_bins % (loa.width // dim) or num_frames % loa.length:
        raise InputError(
            f"latents of a segment are {' x '.join(map(str, latent_shape))} (D, frames, bins), which do not pool to "
            f"{loa.length} vectors of width {loa.width}: system.conditioner.loa.length must divide {num_frames}, and "
            f"its width be {dim} times a number that divides {num_bins}"
        )

    def pooled(audio: Tensor, latents: Tensor) -> Tensor:
        return pool_latents(latents, loa.length, loa.width)

    return Feature({"target": training.target, "length": loa.length, "width": loa.width}, pooled)


def mixed_vectors(true: Tensor, generated: Tensor, is_true: Tensor) -> Tensor:
    """[B, length, width] twice, and bool [B] -> true ones where that says so, generated ones elsewhere."""
    return torch.where(is_true.to(true.device)[:, None, None], true, generated.to(true.dtype))
