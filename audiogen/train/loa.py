"""What AudioLDM 2's GPT-2 learns by itself: vectors found in the sound, its "language of audio" (2308.05734, III)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiogen.diffusion.audiomae import load_audiomae
from audiogen.diffusion.loa import LoaConfig, pool_latents
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.train.latents import Feature


@dataclass(frozen=True)
class LoaTraining:
    """How GPT-2 is trained on true vectors, beside the denoiser or before it.

    target: what they are of: `latents`, the autoencoder's, pooled; or, as the authors', `audiomae`, the features that a
    frozen encoder, `model` (directory or hub id), finds in the sound. loss: mse as in the paper, l1 as in their code;
    of each vector after the true ones before it. weight: of that loss, where the denoiser's is added. true_share:
    of the clips whose denoiser is given the true vectors, drawn per clip; the others' are generated. only: GPT-2's
    stage, which the denoiser sits out; the joint one starts from its run directory (init_from).
    """

    target: Literal["latents", "audiomae"] = "latents"
    model: str | None = None
    loss: Literal["mse", "l1"] = "mse"
    weight: float = 1.0
    true_share: float = 0.25
    only: bool = False

    def __post_init__(self) -> None:
        if (self.target == "audiomae") != (self.model is not None):
            raise InputError(
                f"loa.target={self.target} with loa.model={self.model}: audiomae needs a directory or hub id, such as "
                "gaunernst/vit_base_patch16_1024_128.audiomae_as2m, and latents need loa.model=null"
            )
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


def true_vectors(
    training: LoaTraining, loa: LoaConfig, latent_shape: tuple[int, ...], sample_rate: int
) -> Feature:
    """What makes the true vectors [B, length, width] of sounds at that rate, with latents (D, T) or (D, T, M).

    Raises InputError where the sounds have other vectors, and where AudioMAE cannot be opened.
    """
    made_by = {"target": training.target, "length": loa.length, "width": loa.width}
    if training.model is not None:
        encoder = load_audiomae(training.model)
        if (encoder.num_vectors, encoder.width) != (loa.length, loa.width):
            raise InputError(
                f"loa.model={training.model} finds {encoder.num_vectors} vectors of width {encoder.width}; "
                f"system.conditioner.loa has length {loa.length} and width {loa.width}; make them the same"
            )

        def found(audio: Tensor, latents: Tensor) -> Tensor:
            return encoder.to(audio.device).vectors(audio, sample_rate)

        return Feature({**made_by, "model": checkpoint.identity(encoder.state_dict())}, found)
    dim, num_frames, num_bins = (*latent_shape, 1)[:3]
    if loa.width % dim or num_bins % (loa.width // dim) or num_frames % loa.length:
        raise InputError(
            f"latents of a segment are {' x '.join(map(str, latent_shape))} (D, frames, bins), which do not pool to "
            f"{loa.length} vectors of width {loa.width}: system.conditioner.loa.length must divide {num_frames}, and "
            f"its width be {dim} times a number that divides {num_bins}"
        )

    def pooled(audio: Tensor, latents: Tensor) -> Tensor:
        return pool_latents(latents, loa.length, loa.width)

    return Feature(made_by, pooled)


def mixed_vectors(true: Tensor, generated: Tensor, is_true: Tensor) -> Tensor:
    """[B, length, width] twice, and bool [B] -> true ones where that says so, generated ones elsewhere."""
    return torch.where(is_true.to(true.device)[:, None, None], true, generated.to(true.dtype))
