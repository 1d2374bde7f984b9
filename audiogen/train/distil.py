"""Distillation of a latent system: few steps without guidance do the work of many steps with it.

Progressive distillation (2202.00512) in one stage, with guidance distilled along (2210.03142): from a state of the
process, one step of the student should lead where several guided steps of its teacher lead.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from audiogen.data.encoded import LatentBatch
from audiogen.data.loader import VALID_SEED
from audiogen.data.seeds import generator_for, seed_for
from audiogen.diffusion.conditioning import Conditioning, stack
from audiogen.diffusion.sample import Sampling, predict
from audiogen.diffusion.samplers import Sampler, make_sampler
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.models.released import load_released
from audiogen.train.diffusion import DiffusionRecipe, DiffusionTask, Drawn
from audiogen.train.task import means

DETERMINISTIC = ("euler", "ddim")  # whose steps are linear in the prediction: one of them can go anywhere


@dataclass(frozen=True, kw_only=True)
class DistilRecipe(DiffusionRecipe):
    """A run that makes `init_from` fast; `recipes/lafma_tiny_fast.yaml` is a complete example.

    sampling: of the student, in a few steps at guidance 1. teacher: how `init_from` is sampled, in a multiple of these
    steps. Only the denoiser is trained. student_from: a system, own or released, whose denoiser the student begins as,
    such as one that was distilled before; null: as its teacher.
    """

    task: Literal["distil"] = "distil"  # type: ignore[assignment]
    teacher: Sampling = field(default_factory=Sampling)
    student_from: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is None:
            raise InputError("init_from is null; name the system that is to become fast")
        self.teacher.check(self.process, "teacher")
        for name, each in (("sampling", self.sampling), ("teacher", self.teacher)):
            if each.sampler not in DETERMINISTIC or each.eta:
                raise InputError(
                    f"{name}.sampler is {each.sampler} with eta {each.eta:g}; steps are distilled of "
                    f"{' and '.join(DETERMINISTIC)} with eta 0"
                )
        if self.teacher.sampler != self.sampling.sampler or self.teacher.steps % self.sampling.steps:
            raise InputError(
                f"the teacher's {self.teacher.steps} steps of {self.teacher.sampler} are no multiple of "
                f"{self.sampling.steps} steps of {self.sampling.sampler}; set teacher.steps"
            )
        if self.sampling.guidance != 1.0:
            raise InputError(
                f"sampling.guidance is {self.sampling.guidance:g}; the student has 1, without guidance"
            )
        if self.loa is not None or self.clap_of != "text":
            raise InputError("the denoiser alone is distilled; set loa=null and clap_of=text")

    @staticmethod
    def new_task(*given: Any) -> DistilTask:
        """The task of this kind of run."""
        return DistilTask(*given)


class DistilTask(DiffusionTask):
    """The denoiser, which begins as its teacher or another's; the conditioner is frozen."""

    recipe: DistilRecipe

    def __init__(self, recipe: DistilRecipe, system: Any, *given: Any):
        system.conditioner.requires_grad_(False)
        # Before the weights of a checkpoint are read: the teacher is always that of init_from.
        self.teacher = copy.deepcopy(system.denoiser).eval().requires_grad_(False)
        if name := recipe.student_from:
            checkpoint.load_into(system.denoiser, load_released(name).system.denoiser.state_dict(), name)
        self.segment = 0
        super().__init__(recipe, system, *given)
        self.teacher.to(self.device)

    def train(self) -> None:
        """Training mode of the denoiser."""
        super().train()
        self.conditioner.eval()

    def step(self, batch: LatentBatch, step: int) -> dict[str, float]:
        """One update: `loss` is the squared error of the student's prediction for one of its steps."""
        self.segment = seed_for("segment", self.recipe.seed, step) % self.recipe.sampling.steps
        return super().step(batch, step)

    def losses(self, batch: LatentBatch, rows: slice, drawn: Drawn) -> dict[str, Tensor]:
        """`loss` of each of the rows [B], for the step that `segment` numbers."""
        with self.autocast():
            given, away = self.conditions(batch, batch.captions[rows], rows)
            return {"loss": self.distance(batch.latents[rows], drawn.noise[rows], self.segment, given, away)}

    @torch.no_grad()
    def conditions(
        self, batch: LatentBatch, captions: Any, rows: slice = slice(None)
    ) -> tuple[Conditioning, Conditioning]:
        """What the rows are conditioned on, and what guidance moves away from."""
        inputs = self.inputs(batch, captions, rows)
        return self.conditioner(inputs), self.conditioner.null(inputs)

    def distance(
        self, clean: Tensor, noise: Tensor, segment: int, given: Conditioning, away: Conditioning
    ) -> Tensor:
        """Squared error [B] of the student's prediction in its step number `segment`; clean, noise as in `errors`."""
        own = self.sampler(self.recipe.sampling, segment)
        clean, noise = clean.to(self.device), noise.to(self.device)
        state = own.alphas[segment] * clean + own.sigmas[segment] * noise
        with torch.no_grad():
            end = self.taught(state, segment, given, away)
            # A step is linear: from the state with the prediction 0, and what a prediction of 1 adds.
            ones, nothing = torch.ones_like(state), torch.zeros_like(state)
            rest = own.step(segment, nothing, state, [])
            share = self.sampler(self.recipe.sampling, segment).step(segment, ones, nothing, [])
            target = (end - rest) / share
        time = own.times[segment].to(self.device).expand(len(state))
        with self.attention():
            prediction = self.forward(state, time, given)
        return (prediction.float() - target).square().flatten(1).mean(1)

    def taught(self, state: Tensor, segment: int, given: Conditioning, away: Conditioning) -> Tensor:
        """Where the teacher's steps lead from a state [B, ...] before the student's step number `segment`."""
        teacher = self.recipe.teacher
        count = teacher.steps // self.recipe.sampling.steps
        sampler = self.sampler(teacher, segment * count)
        both = given if teacher.guidance == 1.0 else stack([given, away])
        for evaluation in range(segment * count, (segment + 1) * count):
            time = sampler.times[evaluation].to(self.device)
            data_step = None if sampler.data_steps is None else float(sampler.data_steps[evaluation])
            with self.attention():
                prediction = predict(self.teacher, state, time, both, teacher, data_step)
            state = sampler.step(evaluation, prediction, state, [])
        return state

    def sampler(self, sampling: Sampling, begin: int) -> Sampler:
        """A sampler whose next step is number `begin`."""
        sampler = make_sampler(self.process, sampling.sampler, sampling.steps)
        if hasattr(sampler.scheduler, "set_begin_index"):
            sampler.scheduler.set_begin_index(begin)
        return sampler

    @torch.no_grad()
    def evaluate(self, batches: Iterable[LatentBatch]) -> dict[str, float]:
        """`loss`: the mean of all steps' errors on unseen clips, with the same noise at every call.

        `endpoint`: the mean squared distance of the student's latents from its teacher's, both from the same noise
        alone, over the variance of the teacher's.
        """
        steps, values = self.recipe.sampling.steps, []
        with self.autocast():
            for number, batch in enumerate(map(self.cut, batches)):
                given, away = self.conditions(batch, batch.captions)
                noise = torch.randn(batch.latents.shape, generator=generator_for("valid", VALID_SEED, number))
                errors = [
                    self.distance(batch.latents, noise, segment, given, away) for segment in range(steps)
                ]
                own = taught = noise.to(self.device)
                for segment in range(steps):
                    taught = self.taught(taught, segment, given, away)
                    sampler = self.sampler(self.recipe.sampling, segment)
                    time = sampler.times[segment].to(self.device)
                    own = sampler.step(
                        segment, predict(self.forward, own, time, given, self.recipe.sampling, None), own, []
                    )
                distance = (own - taught).square().flatten(1).mean(1) / taught.var()
                values.append({"loss": torch.stack(errors).mean(0), "endpoint": distance})
        return means(values)
