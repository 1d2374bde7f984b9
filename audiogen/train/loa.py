"""What AudioLDM 2's GPT-2 learns by itself: vectors found in the sound, its "language of audio" (2308.05734, III)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from audiogen.config import PositiveFloat, Probability, check_ranges
from audiogen.diffusion.conditioners import Conditioner, ConditionerInputs
from audiogen.diffusion.loa import LoaConfig, load_audiomae, pool
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.train.cache import Feature


@dataclass(frozen=True)
class LoaTraining:
    """How GPT-2 is trained on true vectors, beside the denoiser or before it.

    target: source of the true vectors: `latents`, the autoencoder's, pooled; or, as the authors', `audiomae`, the
    features that a frozen encoder, `model` (directory or hub id), finds in the sound. loss: mse as in the paper, l1 as
    in their code; of each vector after the true ones before it. weight: of that loss, where the denoiser's is added.
    true_share: of the clips whose denoiser gets the true vectors, drawn per clip; the others get generated ones. only:
    GPT-2's stage, in which the denoiser is not trained; the joint one starts from its run directory (init_from).
    """

    target: Literal["latents", "audiomae"] = "latents"
    model: str | None = None
    loss: Literal["mse", "l1"] = "mse"
    weight: PositiveFloat = 1.0
    true_share: Probability = 0.25  # P_gt of AudioLDM 2 (arXiv:2308.05734)
    only: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if (self.target == "audiomae") != (self.model is not None):
            raise InputError(
                f"loa.target={self.target} with loa.model={self.model}: audiomae needs a directory or hub id, such as "
                "gaunernst/vit_base_patch16_1024_128.audiomae_as2m, and latents need loa.model=null"
            )

    def step(
        self, conditioner: Conditioner, inputs: ConditionerInputs, true: Tensor, is_true: Tensor
    ) -> tuple[Tensor, ConditionerInputs]:
        """GPT-2's loss [B], and the inputs with the vectors that the denoiser is conditioned on.

        true: [B, length, width]. is_true: bool [B], the rows that get true vectors; the others get generated ones,
        whose graph leads from the denoiser's loss into GPT-2. With `only` the inputs stay as they are.
        """
        loss = self.distance(conditioner.loa_vectors(inputs, true), true)
        if self.only:
            return loss, inputs
        generated = conditioner.loa_vectors(inputs)
        mixed = torch.where(is_true.to(true.device)[:, None, None], true, generated.to(true.dtype))
        return loss, replace(inputs, loa=mixed)

    def validate(
        self, conditioner: Conditioner, inputs: ConditionerInputs, true: Tensor, name: str
    ) -> tuple[dict[str, Tensor], ConditionerInputs]:
        """Distances [B] by name, and the inputs with generated vectors. name: loa, or that with other captions."""
        found = {name: self.distance(conditioner.loa_vectors(inputs, true), true)}
        generated = conditioner.loa_vectors(inputs)
        if name == "loa":
            found["loa_generated"] = self.distance(generated, true)
        return found, replace(inputs, loa=generated)

    def distance(self, found: Tensor, true: Tensor) -> Tensor:
        """Of vectors [B, length, width] from the true ones: mean over a row -> [B], float32."""
        difference = found.float() - true
        return (difference.square() if self.loss == "mse" else difference.abs()).flatten(1).mean(1)


def true_vectors(
    training: LoaTraining, loa: LoaConfig, latent_shape: tuple[int, ...], sample_rate: int
) -> Feature:
    """What makes the true vectors [B, length, width] of sounds at that rate, with latents (D, T) or (D, T, M).

    Raises InputError where the sounds have other vectors, and where AudioMAE cannot be opened.
    """
    made_by: dict[str, str | int] = {"target": training.target, "length": loa.length, "width": loa.width}
    if training.model is not None:
        encoder = load_audiomae(training.model)
        if (encoder.num_vectors, encoder.width) != (loa.length, loa.width):
            raise InputError(
                f"loa.model={training.model} finds {encoder.num_vectors} vectors of width {encoder.width}; "
                f"system.conditioner.loa has length {loa.length} and width {loa.width}; make them the same"
            )
        made_by["model"] = checkpoint.identity(encoder.state_dict())
        return Feature(made_by, lambda audio, _: encoder.to(audio.device).vectors(audio, sample_rate))
    dim, num_frames, num_bins = (*latent_shape, 1)[:3]
    if loa.width % dim or num_bins % (loa.width // dim) or num_frames % loa.length:
        raise InputError(
            f"latents of a segment are {' x '.join(map(str, latent_shape))} (D, frames, bins), which do not pool to "
            f"{loa.length} vectors of width {loa.width}: choose a data.segment_s whose frames {loa.length} divides, or "
            f"set system.conditioner.loa.length to {_divisors(num_frames)} and loa.width to {dim} times "
            f"{_divisors(num_bins)}"
        )
    return Feature(made_by, lambda _, latents: pool(latents, loa.length, loa.width))


def _divisors(number: int) -> str:
    """Of a number, for a message."""
    return " or ".join(str(n) for n in range(1, number + 1) if number % n == 0)
