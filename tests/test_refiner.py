"""The refiner: nothing at first, then corrections of limited reach that do not depend on the neighbours in a batch."""

import pytest
import torch

from audiogen.errors import InputError
from audiogen.refiner import Refiner, RefinerConfig

SMALL = RefinerConfig(n_fft=64, hop_length=16, width=8, num_blocks=2, kernel_size=3, mlp_ratio=2)


def trained() -> Refiner:
    """One that changes the sound."""
    torch.manual_seed(0)
    refiner = Refiner(SMALL)
    torch.nn.init.normal_(refiner.out.weight, std=0.3)
    return refiner.eval().requires_grad_(False)


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("length", [64, 77, 1000])
def test_new_weights_change_nothing(length: int) -> None:
    audio = noise(2, 3, length)
    torch.testing.assert_close(Refiner(SMALL)(audio), audio, atol=1e-6, rtol=0)


def test_a_row_does_not_depend_on_the_others_and_silence_stays_silent() -> None:
    refiner, audio = trained(), noise(3, 1, 500)
    audio[1] = 0
    refined = refiner(audio)
    assert not torch.allclose(refined[0], audio[0], atol=1e-2)
    assert refined[1].abs().max() < 1e-5
    torch.testing.assert_close(refined[2:], refiner(audio[2:]), atol=1e-6, rtol=0)


def test_a_sample_reaches_no_further_than_the_context() -> None:
    refiner, audio = trained(), noise(1, 1, 3000)
    changed = audio.clone()
    changed[..., 1500] += 1.0
    reached = (refiner(changed) - refiner(audio))[0, 0].abs() > 1e-7
    places = reached.nonzero()[:, 0]
    assert 0 < 1500 - int(places.min()) <= SMALL.context
    assert 0 < int(places.max()) - 1500 <= SMALL.context


def test_phases_can_be_learned() -> None:
    """Noise that comes three samples late: a hundred steps halve the error."""
    torch.manual_seed(0)
    refiner, wanted = Refiner(SMALL), noise(2, 1, 800)
    given = wanted.roll(3, -1)
    optimizer = torch.optim.Adam(refiner.parameters(), 1e-2)
    errors = []
    for _ in range(100):
        error = (refiner(given) - wanted)[..., 32:-32].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("settings", "match"), [({"n_fft": 500}, "multiple of hop_length"), ({"kernel_size": 4}, "odd")]
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int], match: str) -> None:
    with pytest.raises(InputError, match=match):
        RefinerConfig(**settings)
