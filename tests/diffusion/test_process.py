"""Training's side of the processes, and each process with each of its samplers against a closed form."""

import math
from collections.abc import Callable
from dataclasses import replace

import diffusers
import pytest
import torch
from torch import Tensor

from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.process import PROCESSES, Process, ProcessConfig
from audiogen.diffusion.sample import SAMPLINGS, Noise, Sampling, sample
from audiogen.diffusion.samplers import SAMPLERS, make_sampler
from audiogen.errors import InputError

MEAN, STD = 0.7, 0.5  # of the data whose best denoiser has a closed form


def path(system: str, time: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma at the network's time, from the papers' formulas alone."""
    if system in ("audioldm", "tango"):
        start, end = (0.0015, 0.0195) if system == "audioldm" else (0.00085, 0.012)
        betas = (start**0.5 + (end**0.5 - start**0.5) * torch.arange(1000.0).double() / 999) ** 2
        share = (1 - betas).log().cumsum(0).exp()[time.long()]
        return share.sqrt().float(), (1 - share).sqrt().float()
    if system == "stable_audio":
        return torch.cos(time * math.pi / 2), torch.sin(time * math.pi / 2)
    if system == "lafma":
        return time / 999, 1 - time / 999
    return 1 - time, time


def closed_form(system: str) -> Callable[[Tensor, Tensor, Conditioning], Tensor]:
    """The best network for data N(MEAN, STD^2), by what each system's network gives."""

    def denoise(x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        alpha, sigma = (part[:, None, None] for part in path(system, time))
        gain = STD**2 * alpha / (alpha**2 * STD**2 + sigma**2)
        clean = MEAN + gain * (x_t - alpha * MEAN)
        # n, given x_t: not (x_t - alpha clean) / sigma, which is 0 / 0 where there is no noise
        noise = sigma * (x_t - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        match system:
            case "audioldm":
                return noise
            case "tango" | "stable_audio":
                return alpha * noise - sigma * clean
            case "lafma":
                return clean - noise
            case _:
                return noise - clean

    return denoise


def moments(config: ProcessConfig, denoise: Callable, sampling: Sampling) -> tuple[float, float]:
    drawn = sample(denoise, Process(config), sampling, Conditioning(), Noise((5, 2000), [1, 2]))
    assert drawn.shape == (2, 5, 2000) and drawn.isfinite().all()
    return drawn.mean().item(), drawn.std().item()


# System, sampler, steps, eta, standard deviation. Of the deterministic ones it is that of the specification where it
# names one; it is STD in the limit of many steps, for Stable Audio also of a grid that goes on below 0.3.
CASES = [
    ("audioldm", "ddim", 200, 0.0, 0.495),
    ("audioldm", "ddim", 10, 0.0, 0.378),
    ("audioldm", "ddim", 200, 1.0, 0.480),
    ("audioldm", "ddpm", 200, 0.0, 0.476),
    ("audioldm", "dpm++", 20, 0.0, 0.430),
    ("audioldm", "dpm++sde", 100, 0.0, 0.486),
    ("tango", "ddim", 200, 0.0, 0.495),
    ("tango", "ddpm", 200, 0.0, 0.482),
    ("tango", "dpm++", 20, 0.0, 0.458),
    ("tango", "dpm++sde", 100, 0.0, 0.492),
    ("stable_audio", "ddim", 200, 0.0, 0.495),
    ("stable_audio", "ddim", 200, 1.0, 0.485),
    ("stable_audio", "dpm++", 100, 0.0, 0.43),
    ("stable_audio", "dpm++sde", 100, 0.0, 0.43),
    ("lafma", "euler", 10, 0.0, 0.426),
    ("lafma", "euler", 200, 0.0, 0.499),
    ("lafma", "heun", 10, 0.0, 0.504),
    ("tangoflux", "euler", 10, 0.0, 0.426),
    ("tangoflux", "euler", 25, 0.0, 0.472),
    ("tangoflux", "euler", 50, 0.0, 0.487),
    ("tangoflux", "heun", 10, 0.0, 0.504),
    # ping_pong is for networks that were distilled to give samples; these give means, whose spread is less
    ("tangoflux", "ping_pong", 10, 0.0, 0.308),
    ("stable_audio_3", "ping_pong", 8, 0.0, 0.270),
    ("stable_audio_3", "euler", 100, 0.0, 0.46),
]


def test_the_cases_cover_every_sampler() -> None:
    offered = {(kind, sampler) for kind, samplers in SAMPLERS.items() for sampler in samplers}
    assert {(PROCESSES[system].kind, sampler) for system, sampler, *_ in CASES} == offered


@pytest.mark.parametrize(("system", "sampler", "steps", "eta", "std"), CASES)
def test_sampling_ends_at_the_data(system: str, sampler: str, steps: int, eta: float, std: float) -> None:
    mean, spread = moments(PROCESSES[system], closed_form(system), Sampling(sampler, steps, 1.0, eta))
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert spread == pytest.approx(std, abs=0.012)


@pytest.mark.parametrize("system", sorted(PROCESSES))
def test_each_system_samples_as_its_authors_do_and_ends_at_the_data(system: str) -> None:
    same_network = "audioldm" if system == "audioldm2" else system
    config = replace(PROCESSES[system], lowest_sigma=0.03)
    mean, spread = moments(config, closed_form(same_network), replace(SAMPLINGS[system], guidance=1.0))
    std = 0.27 if SAMPLINGS[system].sampler == "ping_pong" else STD  # as in the cases above
    assert (mean, spread) == (pytest.approx(MEAN, abs=0.03), pytest.approx(std, abs=0.03))


@pytest.mark.parametrize(("sampler", "steps"), [("dpm++", 100), ("dpm++sde", 200)])
def test_a_grid_down_to_little_noise_has_all_of_the_spread(sampler: str, steps: int) -> None:
    config = replace(PROCESSES["stable_audio"], lowest_sigma=0.03)
    mean, spread = moments(config, closed_form("stable_audio"), Sampling(sampler, steps, 1.0))
    assert (mean, spread) == (pytest.approx(MEAN, abs=0.01), pytest.approx(0.5, abs=0.012))


@pytest.mark.parametrize(
    ("system", "sampler", "wrong"),
    [
        ("audioldm", "ddim", {"prediction": "v"}),
        ("audioldm", "ddim", {"beta_end": 0.012}),
        ("audioldm", "dpm++", {"beta_schedule": "linear"}),
        ("tango", "ddpm", {"prediction": "epsilon"}),
        ("stable_audio", "ddim", {"time_scale": 0.9}),
        ("stable_audio", "dpm++", {"time_scale": 0.9}),
        ("lafma", "euler", {"one_is": "noise"}),
        ("lafma", "euler", {"time_scale": 900.0}),
        ("tangoflux", "heun", {"one_is": "data"}),
        ("tangoflux", "euler", {"t_min": 0.1}),
    ],
)
def test_a_process_other_than_the_networks_does_not_end_at_the_data(
    system: str, sampler: str, wrong: dict[str, object]
) -> None:
    """The check above catches a wrong sign, scale, prediction and schedule: it is not passed by chance."""
    denoise, sampling = closed_form(system), Sampling(sampler, 100, 1.0)
    right = moments(PROCESSES[system], denoise, sampling)
    assert abs(right[0] - MEAN) < 0.03 and abs(right[1] - STD) < 0.08
    mean, spread = moments(replace(PROCESSES[system], **wrong), denoise, sampling)
    assert abs(mean - MEAN) > 0.03 or abs(spread - right[1]) > 0.012


@pytest.mark.parametrize("system", sorted(PROCESSES))
def test_what_training_learns_is_what_sampling_needs(system: str) -> None:
    """A network fitted to noise and target alone, by least squares at each time, samples the data it was fitted to."""
    process = Process(PROCESSES[system])
    generator = torch.Generator().manual_seed(3)
    clean = MEAN + STD * torch.randn(20000, 1, 1, generator=generator)
    times = []

    def fitted(x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        times.append(time[0])
        t = time[:1] / process.config.time_scale
        t = t.long() if process.config.kind == "ddpm" else t
        assert torch.allclose(process.model_time(t).float(), time[:1].float())
        noise = torch.randn(clean.shape, generator=generator)
        t = t.expand(len(clean))
        seen, wanted = process.noise(clean, noise, t).flatten(), process.target(clean, noise, t).flatten()
        gain = ((seen - seen.mean()) * (wanted - wanted.mean())).mean() / seen.var()
        return wanted.mean() + gain * (x_t - seen.mean())

    steps, sampler = (100, "ddim") if process.config.kind != "flow" else (50, "euler")
    mean, spread = moments(process.config, fitted, Sampling(sampler, steps, 1.0))
    assert mean == pytest.approx(MEAN, abs=0.03)
    assert spread == pytest.approx(0.49 if process.config.log_snr is None else 0.46, abs=0.015)
    assert len(set(times)) == steps


def latents(seed: int, batch: int = 6) -> Tensor:
    return torch.randn(batch, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("system", ["audioldm", "tango"])
def test_noise_and_v_are_those_of_diffusers(system: str) -> None:
    config = PROCESSES[system]
    process, t = Process(config), torch.tensor([0, 1, 17, 500, 998, 999])
    theirs = diffusers.DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=config.beta_start, beta_end=config.beta_end
    )
    clean, noise = latents(0), latents(1)
    torch.testing.assert_close(
        process.noise(clean, noise, t), theirs.add_noise(clean, noise, t), atol=2e-5, rtol=1e-5
    )
    expected = noise if config.prediction == "epsilon" else theirs.get_velocity(clean, noise, t)
    torch.testing.assert_close(process.target(clean, noise, t), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("one_is", ["data", "noise"])
@pytest.mark.parametrize("sigma_min", [0.0, 0.1])
def test_a_flows_target_is_the_derivative_of_its_path(one_is: str, sigma_min: float) -> None:
    process = Process(ProcessConfig("flow", "velocity", one_is=one_is, sigma_min=sigma_min))
    t = torch.linspace(0.1, 0.8, 6)
    clean, noise = latents(0), latents(1)
    change = process.noise(clean, noise, t + 0.1) - process.noise(clean, noise, t)
    torch.testing.assert_close(process.target(clean, noise, t), change / 0.1, atol=1e-5, rtol=1e-4)
    ends = torch.zeros(6), torch.ones(6)
    data_end, noise_end = reversed(ends) if one_is == "data" else ends
    torch.testing.assert_close(process.noise(clean, noise, noise_end), noise)
    torch.testing.assert_close(process.noise(clean, noise, data_end), clean + sigma_min * noise)


def test_times_are_drawn_as_configured() -> None:
    generator = torch.Generator().manual_seed(0)
    integers = Process(PROCESSES["audioldm"]).sample_t(20000, generator)
    assert integers.dtype == torch.int64 and (int(integers.min()), int(integers.max())) == (0, 999)
    lafma = Process(PROCESSES["lafma"])
    uniform = lafma.sample_t(20000, generator)
    assert 1e-3 <= uniform.min() < 2e-3 and uniform.mean().item() == pytest.approx(0.5005, abs=0.01)
    torch.testing.assert_close(lafma.model_time(uniform), uniform * 999)
    normal = Process(PROCESSES["tangoflux"]).sample_t(20000, generator).logit()
    assert normal.mean().item() == pytest.approx(0.0, abs=0.03)
    assert normal.std().item() == pytest.approx(1.0, abs=0.03)
    again = [lafma.sample_t(5, torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_weighs_the_error_of_the_clean_latents(prediction: str) -> None:
    process = Process(ProcessConfig(prediction=prediction, snr_gamma=5.0))
    t = torch.tensor([0, 10, 200, 500, 999])
    alpha, sigma = process.coefficients(t)
    snr = (alpha / sigma) ** 2
    # An error d of the prediction is an error of x of d sigma / alpha (epsilon), d sigma (v).
    error_of_clean = sigma / alpha if prediction == "epsilon" else sigma
    torch.testing.assert_close(
        process.weight(t), snr.clamp(max=5.0) * error_of_clean**2, atol=1e-5, rtol=1e-4
    )
    assert torch.equal(Process(ProcessConfig(prediction=prediction)).weight(t), torch.ones(5))


def test_weights_are_finite_at_both_ends() -> None:
    process = Process(ProcessConfig("cosine_v", "v", snr_gamma=5.0))
    weights = process.weight(torch.tensor([0.0, 0.5, 1.0]))
    assert weights.isfinite().all() and weights[1] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "edm"}, "kind is 'edm'; it must be ddpm or cosine_v or flow"),
        ({"kind": "flow"}, "prediction of a flow process is 'epsilon'; it must be velocity"),
        ({"beta_start": 0.03}, "beta_start to beta_end is 0.03 to 0.0195"),
        ({"time_sampling": "logit_normal"}, "set time_sampling to uniform"),
        ({"num_train_steps": 0}, "num_train_steps is 0"),
        ({"snr_gamma": -1.0}, "snr_gamma is -1.0"),
        ({"kind": "flow", "prediction": "velocity", "snr_gamma": 5.0}, "set it to null for a flow"),
        ({"time_scale": math.inf}, "time_scale is inf"),
        ({"t_min": 1.0}, "t_min is 1.0"),
        ({"sigma_min": -0.1}, "sigma_min is -0.1"),
        ({"lowest_sigma": 0.0}, "lowest_sigma to highest_sigma is 0.0 to 500.0"),
        ({"log_snr": (2.0, -6.2)}, "log_snr is 2.0 to -6.2; it must rise"),
        ({"one_is": "text"}, "one_is is 'text'; it must be data or noise"),
    ],
)
def test_a_wrong_configuration_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        ProcessConfig(**wrong)


@pytest.mark.parametrize(
    ("system", "name", "steps", "eta", "message"),
    [
        ("lafma", "ddim", 10, 0.0, "'ddim' does not fit a flow process; use euler or heun or ping_pong"),
        (
            "stable_audio_3",
            "heun",
            10,
            0.0,
            "heun takes equal steps of t; with log_snr use euler or ping_pong",
        ),
        ("stable_audio", "ddpm", 10, 0.0, "a cosine_v process; use ddim or dpm.. or dpm..sde"),
        ("audioldm", "euler", 10, 0.0, "use ddim or ddpm or dpm"),
        ("audioldm", "ddim", 0, 0.0, "0 sampling steps; at least 1"),
        ("audioldm", "dpm++", 10, 1.0, "only ddim has it"),
        ("audioldm", "ddim", 10, 2.0, "eta is 2.0; it must be from 0 to 1"),
        ("audioldm", "ddim", 600, 0.0, "600 steps of ddim would begin at time 600 of 1000"),
        ("audioldm", "ddpm", 1000, 0.0, "it must be fewer"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(
    system: str, name: str, steps: int, eta: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_sampler(Process(PROCESSES[system]), name, steps, eta)
