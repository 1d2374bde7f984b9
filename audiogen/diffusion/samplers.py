"""The way back from noise to data: schedulers of diffusers, set up from the process that the network was trained on.

`Sampler` hides their differences: time, sign and scale of the network's input and output.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor

from audiogen.diffusion.process import Process
from audiogen.errors import InputError

SAMPLERS = {
    "ddpm": ("ddim", "ddpm", "dpm++", "dpm++sde"),
    "cosine_v": ("ddim", "dpm++", "dpm++sde"),
    "flow": ("euler", "heun", "ping_pong"),
}

ALGORITHMS = {"dpm++": "dpmsolver++", "dpm++sde": "sde-dpmsolver++"}  # DPM-Solver++: 2211.01095

# Share of the training times at which a grid must begin: there 0.2 % (AudioLDM's betas) to 2.4 % (Tango's) of the
# variance is data, which sampling from noise alone lacks.
EARLIEST_START = 0.85


@dataclass(frozen=True)
class Sampler:
    """One run of a scheduler, of n network evaluations. The state before evaluation i is alphas[i] x + sigmas[i] n.

    times: [n], those that the network gets. positions: [n], where in the process's time, 1 being noise.
    alphas, sigmas: [n]. options: of the scheduler's steps. input_scale: [n], state to x_t of the process; None where it
    is x_t. sign: of the prediction, as the scheduler wants it. start_scale: of the noise that a run begins with.
    data_steps: [n], of a flow, the factors s with data = x_t + s velocity; None of other processes.
    """

    scheduler: Any
    times: Tensor
    positions: Tensor
    alphas: Tensor
    sigmas: Tensor
    options: Mapping[str, float] = field(default_factory=dict)
    input_scale: Tensor | None = None
    sign: float = 1.0
    start_scale: float = 1.0
    data_steps: Tensor | None = None

    def begin_at(self, position: float) -> int:
        """Skip the steps that begin beyond that position -> the first evaluation; n where that is all of them."""
        order = self.scheduler.order  # evaluations of a step
        skipped = int((self.positions[::order] > position + 1e-6).sum()) * order
        evaluation = min(skipped, len(self.times))  # the last step of Heun's is one evaluation
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(evaluation)
        return evaluation

    def step(
        self, evaluation: int, prediction: Tensor, state: Tensor, generators: list[torch.Generator]
    ) -> Tensor:
        """The state [B, ...] before the next evaluation. Rows draw from their own generators."""
        given = self.sign * prediction, self.scheduler.timesteps[evaluation], state
        return self.scheduler.step(*given, generator=generators, **self.options).prev_sample

    def back(self, evaluation: int, state: Tensor, noise: Tensor) -> Tensor:
        """From the state [B, ...] after an evaluation to one before it, by the forward process with that noise."""
        last = evaluation + 1 == len(self.times)
        alpha, sigma = self.alphas[evaluation], self.sigmas[evaluation]
        ratio = alpha if last else alpha / self.alphas[evaluation + 1]
        left = ratio * (0.0 if last else self.sigmas[evaluation + 1])  # of the noise that is there
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(evaluation)
            self.scheduler._step_index = None  # set from the other with the next step
        return ratio * state + (sigma**2 - left**2).clamp(min=0).sqrt() * noise


def make_sampler(process: Process, name: str, steps: int, eta: float = 0.0) -> Sampler:
    """A sampler for latents of this process.

    eta: share of fresh noise in each step of ddim, 0 (none) to 1 (as much as ddpm).
    """
    kind = process.config.kind
    if name not in SAMPLERS[kind]:
        raise InputError(f"sampler {name!r} does not fit a {kind} process; use {' or '.join(SAMPLERS[kind])}")
    if steps < 1:
        raise InputError(f"{steps} sampling steps; at least 1 is needed")
    if not 0.0 <= eta <= 1.0:
        raise InputError(f"eta is {eta}; it must be from 0 to 1")
    if eta and name != "ddim":
        raise InputError(f"eta is {eta} and the sampler {name!r}; only ddim has it, use ddim or eta 0")
    if kind == "ddpm":
        return _ddpm(process, name, steps, eta)
    if kind == "flow":
        return _flow(process, name, steps)
    return _cosine_ddim(process, steps, eta) if name == "ddim" else _cosine_solver(process, name, steps)


def _ddpm(process: Process, name: str, steps: int, eta: float) -> Sampler:
    config = process.config
    common = {
        "num_train_timesteps": config.num_train_steps,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "prediction_type": "v_prediction" if config.prediction == "v" else "epsilon",
    }
    if name in ("ddim", "ddpm"):
        _check_coverage(name, steps, config.num_train_steps)
        common |= {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1}
    if name == "ddim":  # the grid and the last alpha of the authors' DDIMSampler (2010.02502)
        scheduler = diffusers.DDIMScheduler(**common, set_alpha_to_one=False)
    elif name == "ddpm":
        scheduler = diffusers.DDPMScheduler(**common)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(**common, algorithm_type=ALGORITHMS[name])
    scheduler.set_timesteps(steps)
    t = scheduler.timesteps
    options = {"eta": eta} if name == "ddim" else {}
    positions = t / config.num_train_steps
    return Sampler(scheduler, process.model_time(t), positions, *process.coefficients(t), options)


def _check_coverage(name: str, steps: int, num_train_steps: int) -> None:
    """These grids are multiples of num_train_steps // steps: some begin far below the noise that training ends with."""
    if steps >= num_train_steps:
        raise InputError(f"{steps} steps of {name}; the process has {num_train_steps} and it must be fewer")
    first, late = steps * (num_train_steps // steps), EARLIEST_START * num_train_steps
    if first < late:
        better = max(n for n in range(1, steps) if n * (num_train_steps // n) >= late)
        raise InputError(
            f"{steps} steps of {name} would begin at time {first} of {num_train_steps}, where noise is not yet all; "
            f"use {better}, or the sampler dpm++"
        )


def _cosine_ddim(process: Process, steps: int, eta: float) -> Sampler:
    """t = 1, 1 - 1/steps, ..., 1/steps: a discrete process of just these times."""
    t = torch.arange(steps, 0, -1, dtype=torch.float64) / steps  # [steps]
    share = torch.cos(t.flip(0) * math.pi / 2) ** 2  # of the data in the variance of x_t, from data to noise
    before = torch.cat([torch.ones(1, dtype=torch.float64), share[:-1]])
    betas = 1.0 - share / before  # 1 - betas: factors whose product is the share
    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=steps,
        trained_betas=betas.numpy(),
        prediction_type="v_prediction",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    t = t.float()
    # At t = 1, where alpha is 0, eta 1 leaves nothing of the prediction, and by rounding a root of less than 0.
    options = {"eta": min(eta, 0.9999)}
    return Sampler(scheduler, process.model_time(t), t, *process.coefficients(t), options)


def _cosine_solver(process: Process, name: str, steps: int) -> Sampler:
    """DPM-Solver++ on sigma / alpha, from Stable Audio's exponential grid; its state is x_t / alpha."""
    config = process.config
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        sigma_min=config.lowest_sigma,
        sigma_max=config.highest_sigma,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
        algorithm_type=ALGORITHMS[name],
    )
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas[:-1]  # sigma / alpha of the process = tan(pi t / 2)
    t = torch.atan(sigmas) * (2 / math.pi)
    alpha = (1.0 + sigmas**2).rsqrt()  # cos(pi t / 2): from x_t / alpha to x_t
    start_scale = scheduler.init_noise_sigma
    times = process.model_time(t)
    ones = torch.ones(steps)
    return Sampler(scheduler, times, t, ones, sigmas, input_scale=alpha, start_scale=start_scale)


def _flow(process: Process, name: str, steps: int) -> Sampler:
    """Steps from noise to data. The scheduler counts the share of noise and wants d x_t / d noise.

    ping_pong: each step goes to data at once, and back to the next share of noise with fresh noise (2605.17991).
    """
    config = process.config
    if name == "heun":
        if config.log_snr is not None:
            raise InputError("heun takes equal steps of t; with log_snr use euler or ping_pong")
        scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(steps)
    else:
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=name == "ping_pong")
        even = [1.0 - i / steps for i in range(steps)]
        grid = even if config.log_snr is None else log_snr_sigmas(*config.log_snr, steps)
        scheduler.set_timesteps(steps, sigmas=grid)
    noise = scheduler.timesteps / scheduler.config.num_train_timesteps  # [n], the share of noise, from 1 down
    progress = 1.0 - noise if config.one_is == "data" else noise
    # The network gets times within its t_min..1 while the path is walked whole, as LAFMA's authors do.
    t = config.t_min + (1.0 - config.t_min) * progress
    sign = -1.0 if config.one_is == "data" else 1.0  # the velocity towards data is -d x_t / d noise
    alphas, sigmas = process.coefficients(progress)
    return Sampler(
        scheduler, process.model_time(t), noise, alphas, sigmas, sign=sign, data_steps=-sign * noise
    )


def log_snr_sigmas(lowest: float, highest: float, steps: int) -> list[float]:
    """Shares of noise [steps] at equal steps of ln((1 - sigma) / sigma) from `lowest`; the first is 1 (2605.17991)."""
    ratios = [lowest + (highest - lowest) * i / steps for i in range(steps)]
    return [1.0] + [1.0 / (1.0 + math.exp(ratio)) for ratio in ratios[1:]]
