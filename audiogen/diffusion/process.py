"""The noising process a denoiser learns to undo: times, noise, targets and weights of training.

Every process is a path x_t = alpha(t) x + sigma(t) n from data x to noise n ~ N(0, 1). `samplers.py` builds the way
back from the same configuration, so that training and sampling cannot disagree. Sources: DDPM (2006.11239), v
prediction (2202.00512), flow matching (2210.02747), min-SNR weights (2303.09556).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from audiogen.config import Positive, PositiveFloat, Range, build, check_ranges, to_plain
from audiogen.errors import InputError

PREDICTIONS = {"ddpm": ("epsilon", "v"), "cosine_v": ("v",), "flow": ("velocity",)}


@dataclass(frozen=True)
class ProcessConfig:
    """A process by its numbers; those of another kind are ignored.

    kind: `ddpm`, integer t below num_train_steps and a beta schedule; `cosine_v`, t in [0, 1], alpha = cos(pi t / 2);
        `flow`, t in [0, 1], straight lines.
    prediction: what the network gives, `epsilon` or `v` (ddpm), `v` (cosine_v), `velocity` = dx_t/dt (flow).
    beta_schedule: `scaled_linear` is linear in the square root. The betas are AudioLDM's.
    time_sampling: how training draws t; `logit_normal` is the sigmoid of N(0, 1).
    snr_gamma: weights of min-SNR; None weights all times alike.
    one_is: what t = 1 is in a flow, `data` (LAFMA) or `noise` (TangoFlux): direction of time and sign of the velocity.
    t_min: a flow's t is at least this. sigma_min: noise that stays on the data at a flow's end.
    time_scale: the network's time is t x time_scale.
    log_snr: a flow is sampled at equal steps of ln(alpha / sigma) between these; None for equal steps of t.
    lowest_sigma, highest_sigma: ends of the grid, as sigma / alpha, of the DPM-Solvers of cosine_v; the defaults
        are those of stable-audio-tools.
    """

    kind: Literal["ddpm", "cosine_v", "flow"] = "ddpm"
    prediction: Literal["epsilon", "v", "velocity"] = "epsilon"
    num_train_steps: Positive = 1000
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    beta_start: float = 0.0015
    beta_end: float = 0.0195
    time_sampling: Literal["uniform", "logit_normal"] = "uniform"
    snr_gamma: PositiveFloat | None = None
    one_is: Literal["data", "noise"] = "noise"
    t_min: Annotated[float, Range(0, 1, below=True)] = 0.0
    sigma_min: Annotated[float, Range(0, 1, below=True)] = 0.0
    time_scale: Annotated[float, Range(0, math.inf, above=True, below=True)] = 1.0
    log_snr: tuple[float, float] | None = None
    lowest_sigma: float = 0.03
    highest_sigma: float = 500.0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.prediction not in PREDICTIONS[self.kind]:
            raise InputError(
                f"prediction of a {self.kind} process is {self.prediction!r}; it must be "
                f"{' or '.join(PREDICTIONS[self.kind])}"
            )
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise InputError(
                f"beta_start to beta_end is {self.beta_start} to {self.beta_end}; it must be rising within 0 to 1"
            )
        if not 0 < self.lowest_sigma < self.highest_sigma < math.inf:
            raise InputError(
                f"lowest_sigma to highest_sigma is {self.lowest_sigma} to {self.highest_sigma}; it must rise above 0"
            )
        if self.log_snr is not None and not -math.inf < self.log_snr[0] < self.log_snr[1] < math.inf:
            raise InputError(f"log_snr is {self.log_snr[0]} to {self.log_snr[1]}; it must rise")
        if self.snr_gamma is not None and self.kind == "flow":
            raise InputError("snr_gamma weights ddpm and cosine_v; set it to null for a flow")
        if self.kind == "ddpm" and self.time_sampling != "uniform":
            raise InputError("a ddpm process draws its integer times uniformly; set time_sampling to uniform")


# As released. Tango's code divides its weights by the SNR also for v, where min-SNR divides by SNR + 1, as we do.
PROCESSES = {
    "audioldm": ProcessConfig(),
    "audioldm2": ProcessConfig(),
    "tango": ProcessConfig(prediction="v", beta_start=0.00085, beta_end=0.012, snr_gamma=5.0),
    "stable_audio": ProcessConfig("cosine_v", "v", lowest_sigma=0.3),
    "lafma": ProcessConfig("flow", "velocity", one_is="data", t_min=1e-3, time_scale=999.0),
    "stable_audio_3": ProcessConfig("flow", "velocity", log_snr=(-6.2, 2.0)),
    "tangoflux": ProcessConfig("flow", "velocity", time_sampling="logit_normal"),
}


def process_of(name: str, changes: Mapping[str, Any], where: str = "process") -> ProcessConfig:
    """That of a system of the kind `name`, with what its files say in place; InputError naming what there is not."""
    if name not in PROCESSES:
        raise InputError(f"there are no systems of the kind {name!r}; there are {', '.join(PROCESSES)}")
    return build(ProcessConfig, to_plain(PROCESSES[name]) | dict(changes), where=where)


class Process:
    """Training's side of a process. Times t are [B]: int64 for ddpm, float32 in [t_min, 1] otherwise."""

    def __init__(self, config: ProcessConfig) -> None:
        self.config = config
        start, end, steps = config.beta_start, config.beta_end, config.num_train_steps
        # float64: the products of a thousand numbers near 1 are differences of small numbers from 1
        if config.beta_schedule == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        else:
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        # [num_train_steps], alpha-bar of DDPM (2006.11239, equation 4): the share of the data in the variance of x_t
        share = torch.cumprod(1.0 - betas, 0)
        self._alpha, self._sigma = share.sqrt().float(), (1.0 - share).sqrt().float()

    def sample_t(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Times [B] of `batch` training items, on the generator's device."""
        config, device = self.config, generator.device if generator is not None else "cpu"
        if config.kind == "ddpm":
            return torch.randint(config.num_train_steps, (batch,), generator=generator, device=device)
        if config.time_sampling == "logit_normal":
            t = torch.randn(batch, generator=generator, device=device).sigmoid()  # 2403.03206, section 3.1
        else:
            t = torch.rand(batch, generator=generator, device=device)
        return config.t_min + (1.0 - config.t_min) * t if config.kind == "flow" else t

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of x_t = alpha x + sigma n, float32 [B]."""
        if self.config.kind == "ddpm":
            return self._alpha.to(t.device)[t], self._sigma.to(t.device)[t]
        if self.config.kind == "cosine_v":
            return torch.cos(t * math.pi / 2), torch.sin(t * math.pi / 2)  # alpha^2 + sigma^2 = 1
        share = t if self.config.one_is == "data" else 1.0 - t  # of the data; the path is a straight line
        return share, 1.0 - (1.0 - self.config.sigma_min) * share

    def noise(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of clean latents [B, D, T] or [B, D, T, M] and noise of that shape."""
        alpha, sigma = self.coefficients(t)
        return _over(alpha, clean) * clean + _over(sigma, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should give for x_t: the same shape, [B, D, T] or [B, D, T, M]."""
        if self.config.prediction == "epsilon":
            return noise
        if self.config.prediction == "v":
            alpha, sigma = self.coefficients(t)
            return _over(alpha, clean) * noise - _over(sigma, clean) * clean  # 2202.00512, section 4
        towards_data = clean - (1.0 - self.config.sigma_min) * noise  # 2210.02747, equation 23
        return towards_data if self.config.one_is == "data" else -towards_data

    def weight(self, t: Tensor) -> Tensor:
        """Factor [B] of each item's squared error: min(SNR, gamma) in terms of x, carried over to the prediction."""
        if self.config.snr_gamma is None:
            return torch.ones(t.shape, device=t.device)
        alpha, sigma = self.coefficients(t)
        signal, noise = alpha**2, sigma**2  # products, so that t = 0 and t = 1 are no division by zero
        # 2303.09556, section 3.4, times `noise` above and below: min(SNR, gamma) / SNR, and / (SNR + 1) for v
        capped = torch.minimum(signal, self.config.snr_gamma * noise)
        return capped / signal if self.config.prediction == "epsilon" else capped / (signal + noise)

    def model_time(self, t: Tensor) -> Tensor:
        """The times [B] that the network gets."""
        return t * self.config.time_scale


def _over(coefficient: Tensor, latents: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to multiply latents."""
    return coefficient.to(latents.dtype).reshape(-1, *[1] * (latents.dim() - 1))
