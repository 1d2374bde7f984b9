"""One sampling loop for all diffusion systems: guidance, style transfer, inpainting and super-resolution.

A network is any `denoise(x_t, t, conditioning) -> prediction`; the process defines what it predicts and its times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audiogen.config import Probability, check_ranges
from audiogen.diffusion.conditioning import Conditioning, stack
from audiogen.diffusion.process import Process, ProcessConfig
from audiogen.diffusion.samplers import Sampler, make_sampler
from audiogen.errors import InputError

# (x_t [B, D, T] or [B, D, T, M], t [B] as the network wants it, conditioning of B rows) -> prediction in x_t's shape
Denoise = Callable[[Tensor, Tensor, Conditioning], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn. sampler, steps, eta: see `samplers.py`. guidance: 1 turns it off and halves the work.

    guidance_rescale: how much of the change of level by guidance is undone, 0 (as published) to 1, see `rescaled`.
    in_order: whether a text that says what comes after what is made part by part, see `generators.in_order`.
    """

    sampler: str = "ddim"
    steps: int = 200
    guidance: float = 3.5
    eta: float = 0.0
    guidance_rescale: Probability = 0.0
    in_order: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if not math.isfinite(self.guidance):
            raise InputError(f"guidance is {self.guidance}; it must be a number, 1 for none")

    def check(self, process: ProcessConfig, where: str) -> None:
        """Raise InputError naming `where` unless latents of that process can be drawn so."""
        try:
            make_sampler(Process(process), self.sampler, self.steps, self.eta)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


REPEATABLE = ("ddim", "ddpm", "euler", "ping_pong")  # samplers whose steps depend on no step before

# As the authors of each system sample; Stable Audio's is of third order there.
SAMPLINGS = {
    "audioldm": Sampling("ddim", 200, 2.5, eta=1.0),
    "audioldm2": Sampling("ddim", 200, 3.5),
    "tango": Sampling("ddpm", 200, 3.0),
    "stable_audio": Sampling("dpm++sde", 100, 7.0),
    "stable_audio_3": Sampling("ping_pong", 8, 1.0),
    "lafma": Sampling("euler", 200, 3.0),
    "tangoflux": Sampling("euler", 50, 4.5),
}


@dataclass(frozen=True)
class Reference:
    """Latents to begin from, or to keep in part.

    latents: [B, D, T] or [B, D, T, M]. strength: how far to go back to noise, in the process's time, which for all
        samplers but the solvers of cosine_v is the share of the steps: 0 returns the latents, 1 begins from noise
        alone; between, style transfer (audio to audio).
    mask: bool, of the latents' shape or broadcast to it, True where something new is wanted; the rest comes out
        as it is in `latents`. None is all.
    resample: how often each step is made, each time again from its noise (RePaint, 2201.09865, section 4.2): what is
        new then sees the kept part in every repetition. For samplers whose steps depend on no step before.
    """

    latents: Tensor
    strength: Probability = 1.0
    mask: Tensor | None = None
    resample: int = 1

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise ValueError(f"the mask is {self.mask.dtype}; it must be bool, True where something is new")


def together(references: Sequence[Reference]) -> Reference:
    """References of one row each, made by one edit, as one of several rows."""
    masks = [reference.mask for reference in references if reference.mask is not None]
    latents = torch.cat([reference.latents for reference in references])
    return replace(references[0], latents=latents, mask=torch.stack(masks) if masks else None)


def inpaint_mask(shape: Sequence[int], duration_s: float, begin_s: float, end_s: float) -> Tensor:
    """A `Reference` mask for inpainting: new from begin_s to end_s of a sound of duration_s.

    bool [1, T] or [1, T, 1], for latents (D, T) or (D, T, M). Frames that the span touches in part are new as a whole.
    """
    num_frames = shape[1]
    frame = torch.arange(num_frames) * (duration_s / num_frames)
    inside = (frame + duration_s / num_frames > begin_s) & (frame < end_s)
    return inside.reshape(1, num_frames, *[1] * (len(shape) - 2))


def super_resolution_mask(shape: Sequence[int]) -> Tensor:
    """A `Reference` mask, new in the highest mel bands: bool [1, 1, M], for mel latents (D, T, M)."""
    num_kept = round(0.75 * shape[2])  # as AudioLDM
    if not 0 < num_kept < shape[2]:
        raise InputError(f"{num_kept} of {shape[2]} bands are kept; some must be, and some new")
    return (torch.arange(shape[2]) >= num_kept).reshape(1, 1, -1)


@dataclass(frozen=True)
class Noise:
    """The noise of B rows, one for each seed: N(0, 1) of [B, *shape], by torch's CPU generators, moved to the device.

    shape: of one item, (D, T) or (D, T, M). start: [B, *shape] to begin from instead of the seeds' first.
    """

    shape: Sequence[int]
    seeds: Sequence[int]
    device: torch.device | str = "cpu"
    start: Tensor | None = None


@torch.inference_mode()
def sample(
    denoise: Denoise,
    process: Process,
    sampling: Sampling,
    conditioning: Conditioning,
    noise: Noise,
    *,
    negative: Conditioning | None = None,
    reference: Reference | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Latents float32 [B, *shape], one row for each seed.

    A row's noise, also that of stochastic samplers and of the kept part of a reference, depends on its seed only: it
    is the same alone or in a batch, and on every device.

    conditioning: B rows on the device. negative: what guidance moves away from, B rows; no text for most systems, but
        some keep a part of the condition in it (`Conditioner.null`).
    callback: (evaluations done, evaluations in all), after each.
    """
    device = noise.device
    _check(conditioning, negative, reference, noise)
    if sampling.guidance != 1.0:  # the network gets 2 B rows: with the condition, then without
        if negative is None:
            raise ValueError(
                "guidance needs a negative conditioning: of no text, or of what to move away from"
            )
        conditioning = stack([conditioning, negative])
    sampler = make_sampler(process, sampling.sampler, sampling.steps, sampling.eta)
    generators = [torch.Generator().manual_seed(seed) for seed in noise.seeds]
    drawn = _draw(generators, noise)  # even if not used: what is drawn later stays that of the seed
    start = drawn if noise.start is None else noise.start.to(device, torch.float32)
    first, total = sampler.begin_at(1.0 if reference is None else reference.strength), len(sampler.times)
    state = start * sampler.start_scale  # [B, *shape]
    if reference is not None:
        given = reference.latents.to(device, torch.float32)
        mask = None if reference.mask is None else reference.mask.to(device)
        if first == total:
            return given.clone()
        if reference.strength < 1.0:
            state = _noised(sampler, first, given, start)

    repeats = 1 if reference is None else reference.resample
    if repeats > 1 and sampling.sampler not in REPEATABLE:
        raise InputError(
            f"steps of the sampler {sampling.sampler} cannot be repeated (inpaint_resample); use "
            f"{' or '.join(REPEATABLE)}"
        )
    runs = [(evaluation, again) for evaluation in range(first, total) for again in range(repeats)]
    for done, (evaluation, again) in enumerate(runs, start=1):
        if again:
            state = sampler.back(evaluation, state, _draw(generators, noise))
        if reference is not None and mask is not None:
            # the kept part follows the forward process, with fresh noise each time (RePaint, 2201.09865, equation 8)
            state = torch.where(mask, state, _noised(sampler, evaluation, given, _draw(generators, noise)))
        x_t = state if sampler.input_scale is None else state * sampler.input_scale[evaluation]
        time = sampler.times[evaluation].to(device)
        data_step = None if sampler.data_steps is None else float(sampler.data_steps[evaluation])
        prediction = predict(denoise, x_t, time, conditioning, sampling, data_step)
        state = sampler.step(evaluation, prediction, state, generators)
        if callback is not None:
            callback(done, len(runs))
    if reference is not None and mask is not None:
        state = torch.where(mask, state, given)
    return state


def best_of(candidates: Tensor, scores: Tensor) -> Tensor:
    """The one of R candidates [R, ...] with the highest score [R] -> [...]; one that is not a number never wins."""
    return candidates[scores.nan_to_num(nan=-torch.inf).argmax()]


def _draw(generators: list[torch.Generator], noise: Noise) -> Tensor:
    """N(0, 1) of [B, *shape], each row from its own generator, drawn on the CPU."""
    rows = [torch.randn(*noise.shape, generator=generator) for generator in generators]
    return torch.stack(rows).to(noise.device)


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """Guided [B, ...] with a share of each row's standard deviation brought back to that of the conditional.

    2305.08891, equations 15 and 16: guidance is an extrapolation, which widens what it is applied to.
    """
    rows = tuple(range(1, guided.dim()))
    ratio = conditional.std(rows, keepdim=True) / guided.std(rows, keepdim=True).clamp(min=1e-12)
    return guided * (share * ratio + (1.0 - share))


def predict(
    denoise: Denoise,
    x_t: Tensor,
    time: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    data_step: float | None,
) -> Tensor:
    """The network's prediction [B, ...], float32; with guidance the conditioning has 2 B rows.

    data_step: of a flow, the factor of the velocity on the way from x_t to the data.
    """
    guidance, share = sampling.guidance, sampling.guidance_rescale
    if guidance == 1.0:
        return denoise(x_t, time.expand(len(x_t)), conditioning).float()
    both = denoise(torch.cat([x_t, x_t]), time.expand(2 * len(x_t)), conditioning).float()
    wanted, unwanted = both.chunk(2)
    guided = unwanted + guidance * (wanted - unwanted)  # 2207.12598, equation 6, where w is guidance - 1
    if not share:
        return guided
    if data_step is None:
        return rescaled(guided, wanted, share)
    # A velocity is data minus noise: with a smaller one, noise would stay. So the data that it leads to is rescaled.
    data = rescaled(x_t + data_step * guided, x_t + data_step * wanted, share)
    return (data - x_t) / data_step


def _noised(sampler: Sampler, evaluation: int, clean: Tensor, noise: Tensor) -> Tensor:
    """The state before that evaluation that these latents [B, D, T] would have: alpha x + sigma n."""
    return sampler.alphas[evaluation] * clean + sampler.sigmas[evaluation] * noise


def _check(
    conditioning: Conditioning, negative: Conditioning | None, reference: Reference | None, noise: Noise
) -> None:
    """Refuse arguments of `sample` that do not fit one another."""
    shape = (len(noise.seeds), *noise.shape)
    for name, given in {"conditioning": conditioning, "negative conditioning": negative}.items():
        if given is not None and given.num_rows not in (None, shape[0]):
            raise ValueError(f"the {name} has {given.num_rows} rows for {shape[0]} seeds; give one a row")
    latents = {"reference": None if reference is None else reference.latents, "noise": noise.start}
    for name, tensor in latents.items():
        if tensor is not None and tensor.shape != shape:
            raise InputError(f"the {name} is {tuple(tensor.shape)}; it must be {shape}")
