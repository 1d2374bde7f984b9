"""The sampling loop: rows by their own seeds, guidance, beginning from a reference, and keeping a part of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from audiogen.diffusion.conditioning import Conditioning, drop, stack
from audiogen.diffusion.process import PROCESSES, Process
from audiogen.diffusion.sample import (
    Denoise,
    Noise,
    Reference,
    Sampling,
    best_of,
    inpaint_mask,
    rescaled,
    sample,
    super_resolution_mask,
)
from audiogen.diffusion.samplers import SAMPLERS
from audiogen.errors import InputError
from audiogen.interfaces import Condition

EVERY = [  # every sampler of every kind of process, and the one with noise in each of its steps by choice
    (system, sampler, eta)
    for system in ("audioldm", "tango", "stable_audio", "lafma", "tangoflux")
    for sampler in SAMPLERS[PROCESSES[system].kind]
    for eta in ((0.0, 1.0) if sampler == "ddim" else (0.0,))
]
MEAN, STD = 0.7, 0.5


def correlated(system: str, correlation: float = 0.0) -> Denoise:
    """The best network for data of mean MEAN and deviation STD, neighbours on the last axis correlated."""

    def denoise(x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        process = Process(PROCESSES[system])
        t = time[:1] / process.config.time_scale
        alpha, sigma = process.coefficients(t.long() if process.config.kind == "ddpm" else t)
        place = torch.arange(x_t.shape[-1])
        spread = STD**2 * correlation ** (place[:, None] - place).abs().float()
        total = alpha**2 * spread + sigma**2 * torch.eye(len(place))
        whitened = torch.linalg.solve(total, (x_t - alpha * MEAN).mT).mT
        clean, noise = MEAN + alpha * whitened @ spread, sigma * whitened
        return process.target(clean, noise, t.long() if process.config.kind == "ddpm" else t)

    return denoise


def draw(
    system: str, sampling: Sampling, seeds: list[int], denoise: Denoise | None = None, **kwargs
) -> Tensor:
    noise = {key: kwargs.pop(key) for key in ("shape", "device", "start") if key in kwargs}
    kwargs = {
        "conditioning": Conditioning(),
        "noise": Noise(**{"shape": (3, 40), "seeds": seeds} | noise),
    } | kwargs
    process = Process(PROCESSES[system])
    return sample(denoise or correlated(system), process, sampling, **kwargs)


@pytest.mark.parametrize(("system", "sampler", "eta"), EVERY)
def test_a_row_depends_on_its_own_seed_only(system: str, sampler: str, eta: float) -> None:
    sampling = Sampling(sampler, 6, 1.0, eta)
    latents = torch.full((3, 3, 40), MEAN)
    half = torch.arange(40) < 20
    for reference in (None, Reference(latents, 0.5), Reference(latents, 0.5, half)):
        one = replace(reference, latents=latents[:1]) if reference else None
        together = draw(system, sampling, [4, 5, 6], reference=reference)
        for row, seed in enumerate([4, 5, 6]):
            alone = draw(system, sampling, [seed], reference=one)
            torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(together[0], together[1], atol=0.1)


@pytest.mark.parametrize(("system", "sampler", "eta"), EVERY)
def test_strength_goes_from_the_reference_to_a_fresh_sample(system: str, sampler: str, eta: float) -> None:
    sampling = Sampling(sampler, 20, 1.0, eta)
    latents = 3.0 + torch.randn(1, 3, 40, generator=torch.Generator().manual_seed(0))
    drawn = {
        strength: draw(system, sampling, [1], reference=Reference(latents, strength))
        for strength in (0.0, 0.05, 0.3, 0.6, 1.0)
    }
    assert torch.equal(drawn[0.0], latents)
    assert torch.equal(drawn[1.0], draw(system, sampling, [1]))
    far = [(drawn[strength] - latents).abs().mean() for strength in drawn]
    # a step of ping_pong keeps nothing of the noise before it: at .6 it is as far as from the beginning
    assert far[:4] == sorted(far[:4]) and far[1] < 0.7 < 1.5 < far[-1] and far[-2] < far[-1] + 0.02


def test_nothing_is_evaluated_for_the_steps_that_strength_leaves_out() -> None:
    reference, seen = torch.zeros(1, 3, 40), []
    for strength in (0.0, 0.3, 1.0):
        for system, sampler in (("audioldm", "ddim"), ("lafma", "heun")):
            calls: list[tuple[int, int]] = []
            draw(
                system,
                Sampling(sampler, 10, 1.0),
                [1],
                reference=Reference(reference, strength),
                callback=lambda *done, calls=calls: calls.append(done),
            )
            seen.append(len(calls))
            assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    assert seen == [0, 0, 3, 5, 10, 19]  # Heun looks twice in each step but the last


@pytest.mark.parametrize(("system", "sampler", "eta"), EVERY)
def test_the_kept_part_comes_out_as_it_was_and_shapes_its_neighbours(
    system: str, sampler: str, eta: float
) -> None:
    """Neighbours correlated .95: what is new beside 1.7 is near 1.7, far away it is the mean again."""
    latents = torch.full((2, 400, 24), MEAN + 1.0)
    new = torch.arange(24) >= 12
    sampling = Sampling(sampler, 60, 1.0, eta)
    drawn = draw(
        system,
        sampling,
        [1, 2],
        denoise=correlated(system, 0.95),
        shape=(400, 24),
        reference=Reference(latents, mask=new),
    )
    assert torch.equal(drawn[..., ~new], latents[..., ~new])
    beside, away = drawn[..., 12].mean().item(), drawn[..., 23].mean().item()
    # 1.65 and 1.24 if the kept part had been seen clean from the beginning, .7 if never
    assert 1.25 < beside < 1.65 and 0.7 < away < 1.24
    low = 0.1 if sampler == "ping_pong" else 0.156  # which ends with a mean, where the network gives means
    assert low < drawn[..., 12].std() < 0.28  # .156, .5


@pytest.mark.parametrize(
    ("system", "sampler"),
    [("lafma", "euler"), ("audioldm", "ddim"), ("tango", "ddpm"), ("stable_audio", "ddim")],
)
def test_repeated_steps_bring_what_is_new_nearer_to_what_is_kept(system: str, sampler: str) -> None:
    """Beside 1.7, with neighbours correlated .95, exact are 1.65 with a deviation of .156, and 1.24 at the far end."""
    latents, new = torch.full((1, 400, 24), MEAN + 1.0), torch.arange(24) >= 12
    once, often = (
        draw(
            system,
            Sampling(sampler, 40, 1.0),
            [1],
            denoise=correlated(system, 0.95),
            shape=(400, 24),
            reference=Reference(latents, mask=new, resample=count),
        )
        for count in (1, 5)
    )
    assert torch.equal(often[..., ~new], latents[..., ~new])
    assert 1.65 - often[..., 12].mean() < 0.5 * (1.65 - once[..., 12].mean()) and often[..., 12].mean() < 1.66
    assert 1.24 - often[..., 23].mean() < 0.6 * (1.24 - once[..., 23].mean())
    assert 0.12 < often[..., 12].std() < 0.25


def test_samplers_whose_steps_depend_on_others_are_not_repeated() -> None:
    reference = Reference(torch.zeros(1, 3, 40), mask=torch.ones(40, dtype=torch.bool), resample=2)
    with pytest.raises(InputError, match="steps of the sampler heun cannot be repeated"):
        draw("lafma", Sampling("heun", 4, 1.0), [1], reference=reference)


def test_a_mask_that_is_all_new_changes_nothing_of_what_is_drawn_without() -> None:
    reference = Reference(torch.full((2, 3, 40), 9.0), mask=torch.ones(40, dtype=torch.bool))
    sampling = Sampling("euler", 10, 1.0)
    assert torch.equal(draw("lafma", sampling, [1, 2], reference=reference), draw("lafma", sampling, [1, 2]))


def echo(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
    """A flow towards the mean of the row's tokens and its vector."""
    (text,) = conditioning.streams
    aim = (text.tokens * text.mask[..., None]).sum((1, 2)) + conditioning.vector[:, 0]
    return (aim[:, None, None] - x_t) / (1.0 - t[:, None, None] / 999 + 1e-3)


def text(*values: float) -> Condition:
    return Condition(torch.tensor(values)[:, None, None], torch.ones(len(values), 1, dtype=torch.bool))


def test_guidance_moves_from_the_negative_through_the_condition() -> None:
    conditioning = Conditioning(streams=(text(1.0, 5.0),), vector=torch.tensor([[0.5], [0.25]]))
    calls = []

    def counted(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        calls.append((len(x_t), len(t), conditioning.num_rows))
        return echo(x_t, t, conditioning)

    for guidance, rows in ((1.0, 2), (3.0, 4), (0.0, 4)):
        calls.clear()
        sampling = Sampling("euler", 10, guidance)
        negative = Conditioning((text(0.0, 0.0),), conditioning.vector)
        drawn = draw("lafma", sampling, [1, 2], denoise=counted, conditioning=conditioning, negative=negative)
        assert set(calls) == {(rows, rows, rows)}
        aim = torch.tensor([guidance * 1.0 + 0.5, guidance * 5.0 + 0.25])  # the vector is in both
        torch.testing.assert_close(drawn.mean((1, 2)), aim, atol=0.2, rtol=0.05)
    negative = Conditioning(streams=(text(-1.0, 2.0),), vector=torch.zeros(2, 1))
    drawn = draw(
        "lafma",
        Sampling("euler", 10, 2.0),
        [1, 2],
        denoise=echo,
        conditioning=conditioning,
        negative=negative,
    )
    torch.testing.assert_close(drawn.mean((1, 2)), torch.tensor([4.0, 8.5]), atol=0.2, rtol=0.05)


@pytest.mark.parametrize(("system", "sampler", "eta"), EVERY)
def test_everything_the_network_sees_is_on_the_device_asked_for(
    system: str, sampler: str, eta: float
) -> None:
    def network(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        assert x_t.device == t.device == torch.device("meta")
        return x_t * conditioning.vector[:, :, None]

    conditioning = Conditioning(vector=torch.ones(2, 1, device="meta"))
    reference = Reference(torch.zeros(2, 3, 40), 0.5, torch.arange(40) < 20)
    sampling = Sampling(sampler, 5, 3.0, eta)
    for kept in (None, reference):
        drawn = draw(
            system,
            sampling,
            [1, 2],
            network,
            conditioning=conditioning,
            negative=conditioning,
            reference=kept,
            device="meta",
        )
        assert drawn.device == torch.device("meta") and drawn.shape == (2, 3, 40)


def test_conditionings_are_stacked_dropped_and_taken_by_rows() -> None:
    wide = Condition(torch.arange(12.0).reshape(2, 3, 2) + 1, torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    short = Condition(-torch.ones(1, 1, 2), torch.ones(1, 1).bool())
    conditioning = Conditioning((wide,), torch.tensor([[1.0], [2.0]]))
    nothing = Conditioning((short,), torch.tensor([[9.0]]))
    dropped = drop(conditioning, torch.tensor([True, False]), nothing)
    assert torch.equal(dropped.streams[0].tokens[0], wide.tokens[0])
    assert dropped.streams[0].mask.tolist() == [[True] * 3, [True, False, False]]
    assert dropped.streams[0].tokens[1].tolist() == [[-1.0, -1.0], [0.0, 0.0], [0.0, 0.0]]
    assert dropped.vector.tolist() == [[1.0], [9.0]]
    twice = conditioning.rows([1, 0, 1])
    assert twice.vector.flatten().tolist() == [2.0, 1.0, 2.0]
    assert torch.equal(twice.streams[0].tokens[2], wide.tokens[1])
    assert Conditioning().num_rows is None and conditioning.num_rows == 2
    assert conditioning.to("meta").streams[0].mask.device.type == "meta"
    with pytest.raises(ValueError, match="all need the same"):
        stack([conditioning, Conditioning((wide,))])
    with pytest.raises(ValueError, match="keep is torch.int64"):
        drop(conditioning, torch.tensor([1, 0]), nothing)
    with pytest.raises(ValueError, match="the conditioning has .2, 3. rows"):
        _ = Conditioning((wide,), torch.ones(3, 1)).num_rows


def test_noise_given_takes_the_place_of_the_seeds_first_draw() -> None:
    sampling = Sampling("ddim", 10, 1.0, eta=1.0)
    first = torch.randn(1, 3, 40, generator=torch.Generator().manual_seed(5))
    assert torch.equal(draw("audioldm", sampling, [5], start=first), draw("audioldm", sampling, [5]))
    assert not torch.equal(draw("audioldm", sampling, [5], start=-first), draw("audioldm", sampling, [5]))


def test_masks_say_where_something_new_is_wanted() -> None:
    assert inpaint_mask((8, 10), 5.0, 1.0, 2.0)[0].int().tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert inpaint_mask((8, 10, 4), 5.0, 1.2, 1.6).shape == (1, 10, 1)
    assert inpaint_mask((8, 10, 4), 5.0, 1.2, 1.6).flatten().int().tolist() == [0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert inpaint_mask((8, 10), 5.0, 0.0, 5.0).all()
    assert super_resolution_mask((8, 10, 16)).flatten().int().tolist() == [0] * 12 + [1] * 4


@pytest.mark.parametrize(
    ("system", "sampler"), [("lafma", "euler"), ("lafma", "heun"), ("tangoflux", "euler")]
)
def test_in_a_flow_the_level_of_the_data_is_rescaled_and_no_noise_stays(system: str, sampler: str) -> None:
    """A network of one sound, A with the condition and silence without: guidance 4 leads to 4 A."""
    sound = (
        torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1.0, 0.3])[:, None, None]
    )
    sign = 1.0 if PROCESSES[system].one_is == "data" else -1.0

    def denoise(x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
        t = time[0] / PROCESSES[system].time_scale
        share = 1 - t if sign > 0 else t  # of noise
        data = torch.cat([sound, 0 * sound])
        return sign * (data - x_t) / share

    for share, level in ((0.0, 4.0), (0.5, 2.5), (1.0, 1.0)):
        sampling = Sampling(sampler, 8, 4.0, guidance_rescale=share)
        made = draw(system, sampling, [1, 2], denoise, negative=Conditioning())
        torch.testing.assert_close(made, level * sound, atol=0.02, rtol=0.02)


def test_elsewhere_the_prediction_is_rescaled_row_by_row() -> None:
    """As diffusers' rescale_noise_cfg: equations 15 and 16 of 2305.08891."""
    wanted = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    guided = torch.stack([3 * wanted[0], 0.5 * wanted[1] + 1])
    half = rescaled(guided, wanted, 0.5)
    torch.testing.assert_close(half[0], 2 * wanted[0])  # halfway from 3 to 1
    torch.testing.assert_close(half[1], 1.5 * guided[1])  # and from a half to 1, the mean along
    torch.testing.assert_close(rescaled(guided, wanted, 1.0).std((1, 2)), wanted.std((1, 2)))
    guidance = Sampling("ddim", 20, 9.0, guidance_rescale=1.0)
    made = draw("tango", guidance, [1], wide, negative=Conditioning())
    unguided = draw("tango", Sampling("ddim", 20, 1.0), [1], lambda x_t, time, conditioning: x_t / 2)
    torch.testing.assert_close(made, unguided)  # these predictions differ in their level alone
    with pytest.raises(InputError, match="guidance_rescale is 1.5"):
        Sampling(guidance_rescale=1.5)


def wide(x_t: Tensor, time: Tensor, conditioning: Conditioning) -> Tensor:
    """Half of the noise that is there where there is a condition, a third without."""
    with_text, without = x_t.chunk(2)
    return torch.cat([with_text / 2, without / 3])


def test_the_best_candidate_of_each_row_is_taken() -> None:
    candidates = torch.arange(24.0).reshape(2, 3, 4)
    scores = torch.tensor([[0.1, 0.9, float("nan")], [2.0, -1.0, 1.0]])
    assert torch.equal(best_of(candidates[0], scores[0]), candidates[0, 1])
    assert torch.equal(best_of(candidates[1], scores[1]), candidates[1, 0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Reference(torch.zeros(1, 3, 40), 1.5), InputError, "strength is 1.5"),
        (lambda: Reference(torch.zeros(1, 3, 40), mask=torch.ones(40)), ValueError, "must be bool"),
        (lambda: draw("lafma", Sampling("ddim"), [1]), ValueError, "guidance needs a negative conditioning"),
        (lambda: draw("lafma", Sampling("ddim", guidance=1.0), [1]), InputError, "use euler or heun"),
        (
            lambda: draw(
                "lafma", Sampling("euler", 2, 1.0), [1, 2], conditioning=Conditioning(vector=torch.ones(3, 1))
            ),
            ValueError,
            "the conditioning has 3 rows for 2 seeds",
        ),
        (
            lambda: draw("lafma", Sampling("euler", 2, 1.0), [1], reference=Reference(torch.zeros(1, 3, 4))),
            InputError,
            r"the reference is \(1, 3, 4\); it must be \(1, 3, 40\)",
        ),
        (
            lambda: draw("lafma", Sampling("euler", 2, 1.0), [1], start=torch.zeros(2, 3, 40)),
            InputError,
            "the noise is",
        ),
        (lambda: super_resolution_mask((8, 10, 2)), InputError, "2 of 2 bands are kept; .* some new"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
