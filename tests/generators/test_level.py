"""Nothing is past full scale; what is kept of a sound is kept bit for bit, and the new part joins it at its level."""

import pytest
import torch
from torch import Tensor

from audiogen.generators.level import Kept, finish, finish_live

RATE, FADE = 1000, 20


def sine(num_samples: int, peak: float, channels: int = 1) -> Tensor:
    return peak * torch.sin(torch.arange(num_samples) / 3.0).repeat(channels, 1)


def test_a_sound_past_full_scale_is_turned_down_as_a_whole() -> None:
    loud, quiet = torch.tensor([[0.5, -2.0, 1.0]]), torch.tensor([[0.5, -0.9]])
    sound, down_db = finish(loud)
    assert torch.equal(sound, loud / 2) and down_db == pytest.approx(6.02, abs=0.01)
    assert torch.equal(finish(quiet)[0], quiet) and finish(quiet)[1] == 0


@pytest.mark.parametrize(("begin", "end"), [(300, 500), (0, 500), (300, 900), (3, 890), (0, 900)])
@pytest.mark.parametrize("loud", [1.0, 30.0])
def test_all_but_the_new_part_and_its_fades_is_kept_to_the_bit(begin: int, end: int, loud: float) -> None:
    """However loud the new part is; only that is turned down."""
    given = torch.rand(2, 900, generator=torch.Generator().manual_seed(0)) * 1.9 - 0.95
    made = 0.8 * given
    made[:, begin:end] = sine(end - begin, loud, 2)
    sound, down_db = finish(made, Kept(given, begin, end, RATE, margin=10))
    outside = torch.ones(900, dtype=torch.bool)
    outside[max(0, begin - FADE) : end + FADE] = False
    assert torch.equal(sound[:, outside], given[:, outside])
    assert sound.abs().max() <= 1 and (down_db > 20) == (loud > 1)
    assert torch.corrcoef(torch.stack([sound[0, begin:end], made[0, begin:end]]))[0, 1] > 0.98
    assert sound[:, begin:end].abs().max() > 0.9


def test_the_new_part_has_the_level_of_what_is_kept_at_each_border() -> None:
    """The rendering is half as loud before, and 1.5 times as loud after; a step would be a peak of the difference."""
    given = sine(3000, 0.2)
    made = given.clone()
    made[:, :2000] *= 0.5
    made[:, 2000:] *= 1.5
    made[:, 1000:2000] = torch.cat([sine(500, 0.1), sine(500, 0.3)], 1)
    sound, down_db = finish(made, Kept(given, 1000, 2000, RATE, margin=50))
    assert down_db == 0
    assert sound[0, 1000:1100].abs().max() == pytest.approx(0.2, rel=0.1)
    assert sound[0, 1980:2000].abs().max() == pytest.approx(0.2, rel=0.1)
    # nothing to compare with, or a rendering of something else: no gain, or a bounded one
    silent = Kept(torch.zeros(1, 3000), 1000, 2000, RATE, 50)
    assert torch.equal(finish(made, silent)[0][:, 1000:2000], made[:, 1000:2000])
    far = finish(made * 0.01, Kept(given, 1000, 2000, RATE, 50))[0]
    assert far[0, 1100:1400].abs().max() == pytest.approx(0.002, rel=0.05)


def test_a_kept_part_past_full_scale_is_the_one_reason_to_turn_it_down() -> None:
    given = torch.ones(1, 500) * 1.25
    assert torch.equal(finish(given / 2, Kept(given, 300, 500, RATE, 10))[0][:, :200], torch.ones(1, 200))


@pytest.mark.parametrize("block", [7, 100, 1000])
def test_live_a_kept_beginning_comes_first_and_the_level_falls_after_it(block: int) -> None:
    given, down_db = sine(200, 0.9, 2), [0.0]
    made = torch.cat([given / 1.5, sine(300, 0.3, 2), sine(300, 5.0, 2), sine(200, 0.3, 2)], 1)
    kept = Kept(given, 200, 2**62, RATE, margin=10)
    pieces = list(finish_live(made.split(block, dim=-1), kept, down_db))
    sound = torch.cat(pieces, -1)
    assert sound.shape == made.shape and torch.equal(sound[:, : 200 - FADE], given[:, : 200 - FADE])
    torch.testing.assert_close(sound[:, 200 - FADE : 200], given[:, 200 - FADE :], atol=0.05, rtol=0)
    assert sound.abs().max() <= 1 and down_db[0] == pytest.approx(17.5, abs=0.1)
    quiet = torch.cat([made[:, :500], made[:, 800:]], 1)
    live = torch.cat(list(finish_live(quiet.split(block, dim=-1), kept)), -1)
    torch.testing.assert_close(live, finish(quiet, kept)[0], atol=1e-6, rtol=0)


def test_a_loud_block_is_turned_down_without_a_step_and_what_follows_too() -> None:
    blocks = [0.5 * torch.ones(2, 100), torch.linspace(0.5, 2.0, 100).expand(2, -1), 0.5 * torch.ones(2, 100)]
    made = list(finish_live(blocks))
    assert torch.equal(made[0], blocks[0])
    joined = torch.cat(made, -1)
    assert joined.abs().max() <= 1.0 and joined[:, :200].diff().abs().max() < 0.02
    assert torch.allclose(made[2], 0.5 * blocks[2])
    early = torch.zeros(1, 100)
    early[0, 3] = 4.0  # no time to fade
    (made_early,) = finish_live([early])
    assert torch.allclose(made_early, early / 4)
    assert list(finish_live([torch.zeros(1, 5)]))[0].shape == (1, 5)
