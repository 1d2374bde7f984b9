"""Mixing two sounds: the level, the place and the words are as asked."""

import math

import pytest
import torch
from torch import Tensor

from audiogen.data.loader import Item
from audiogen.data.mix import join_captions
from audiogen.data.mix import mix as mix_items
from audiogen.data.seeds import draw


def mix(a: Tensor, length_a: int, b: Tensor, length_b: int, snr_db: float, start: float) -> Item:
    return mix_items(Item(a, None, "a", length_a), Item(b, None, "b", length_b), snr_db, start)


def padded(value: float, length: int, num: int = 1000, channels: int = 2) -> Tensor:
    sound = torch.zeros(channels, num)
    sound[:, :length] = value
    return sound


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 3.0])
@pytest.mark.parametrize("length_b", [1000, 300])
def test_power_ratio_of_the_valid_parts(snr_db: float, length_b: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = 0.01 * torch.randn(2, 1000, generator=generator)
    b = torch.nn.functional.pad(0.2 * torch.randn(2, length_b, generator=generator), (0, 1000 - length_b))
    mixed = mix(a, 1000, b, length_b, snr_db, 0.0)
    added = (mixed.data - a)[:, :length_b]
    ratio = 10 * math.log10(a.square().mean() / added.square().mean())
    assert ratio == pytest.approx(snr_db, abs=0.01)
    torch.testing.assert_close(added / added.abs().max(), (b / b.abs().max())[:, :length_b])  # b only scaled
    assert not (mixed.data - a)[:, length_b:].any()


@pytest.mark.parametrize(
    ("length_a", "length_b"), [(1000, 1000), (400, 1000), (1000, 400), (1, 1), (7, 1000)]
)
def test_at_least_half_of_the_shorter_overlaps(length_a: int, length_b: int) -> None:
    starts = set()
    for start in [i / 50 for i in range(51)]:
        a, b = padded(0.0, length_a), padded(0.1, length_b)
        mixed = mix(a, length_a, b, length_b, 0.0, start)
        sounding = mixed.data[0].nonzero()[:, 0]
        first, last = int(sounding[0]), int(sounding[-1]) + 1
        assert min(length_a, last) - first >= min(length_a, length_b) / 2
        assert last == min(1000, first + length_b)
        assert mixed.length == max(length_a, last)
        assert not mixed.data[:, mixed.length :].any()
        starts.add(first)
    assert min(starts) == 0
    assert max(starts) == length_a - math.ceil(min(length_a, length_b) / 2)  # the whole allowed range is used


def test_the_peak_is_of_the_magnitude_and_quiet_mixtures_keep_their_level() -> None:
    loud = mix(padded(-0.8, 1000), 1000, padded(-0.8, 1000), 1000, 0.0, 0.0)
    torch.testing.assert_close(loud.data, padded(-1.0, 1000))
    quiet = mix(padded(0.1, 1000), 1000, padded(0.1, 1000), 1000, 0.0, 0.0)
    torch.testing.assert_close(quiet.data, padded(0.2, 1000))


def test_silence_mixes_without_infinities_and_inputs_stay() -> None:
    a, b = padded(0.0, 1000), padded(0.25, 1000)
    assert torch.equal(mix(a, 1000, b, 1000, 5.0, 0.0).data, b)
    assert torch.equal(mix(b, 1000, a, 1000, 5.0, 0.5).data, b)
    assert not a.any()


@pytest.mark.parametrize(
    ("a", "b", "joined"),
    [
        ("A dog barks.", "Rain falls", "A dog barks and rain falls"),
        ("A dog barks", "A bell rings ", "A dog barks and a bell rings"),
        ("Music", "DJ scratching", "Music and DJ scratching"),
        ("Wind", "F-16 flyby", "Wind and F-16 flyby"),
        ("rain falls", "Rain falls.", "rain falls"),
        ("A dog barks", None, None),
        (None, "A dog barks", None),
        ("", "A dog barks", None),
        (None, None, None),
    ],
)
def test_captions_say_all_that_is_heard_or_nothing(a: str | None, b: str | None, joined: str | None) -> None:
    assert join_captions(a, b) == joined


def test_draw_is_uniform_in_its_range() -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([draw(generator, -5, 5) for _ in range(2000)])
    assert values.min() >= -5 and values.max() < 5
    assert values.mean() == pytest.approx(0, abs=0.2) and values.std() == pytest.approx(10 / 12**0.5, abs=0.1)
    assert draw(generator, 2, 2) == 2
