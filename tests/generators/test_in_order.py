"""Texts of several events in order, by both families: which part of a sound is of which text."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiogen.diffusion.timeline import equal, shares
from audiogen.generators import in_order
from audiogen.generators.in_order import FADE_S, joined, loudest
from audiogen.generators.latent import PART_S, LatentGenerator
from audiogen.generators.request import check
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Edit, Sampling
from tests.generators.test_latent_generator import make

TEXT = "a dog barks, then rain falls"
YES = Sampling(in_order=True)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32")


def test_each_part_of_a_language_models_sound_is_that_of_its_own_text(model: AudioGen) -> None:
    together = model.generate([TEXT, "a clock ticks"], [0.4, 0.3], seed=5, sampling=YES)
    assert together.shape == (2, 1, 3200)
    first, second = (model.generate([text], 0.2, seed=5)[0] for text in ("a dog barks", "rain falls"))
    fade = round(FADE_S * 8000)
    assert torch.equal(together[0, :, : 1600 - fade], first[:, : 1600 - fade])
    assert torch.equal(together[0, :, 1600 + fade :], second[:, fade:])
    assert together[0, :, 1599:1601].abs().max() <= 0.01 * torch.maximum(
        first.abs().max(), second.abs().max()
    )
    assert torch.equal(together[1, :, :2400], model.generate(["a clock ticks"], 0.3, seed=6)[0])
    alone = model.generate([TEXT], 0.4, seed=5, sampling=YES)
    assert torch.equal(alone[0], together[0])


def test_a_stream_in_order_is_the_whole_sound(model: AudioGen) -> None:
    for seconds in (0.4, 0.33333, 0.00013):
        blocks = list(model.stream(TEXT, seconds, seed=5, sampling=YES, chunk_s=0.03))
        whole = model.generate([TEXT], seconds, seed=5, sampling=YES)[0]
        assert torch.cat(blocks, -1).shape == whole.shape
        assert torch.allclose(torch.cat(blocks, -1), whole, atol=1e-6)


def test_a_model_decides_what_is_not_said(model: AudioGen) -> None:
    plain = model.generate([TEXT], 0.2, seed=5)
    ordered = copy.copy(model)
    ordered.in_order = True
    assert torch.equal(
        ordered.generate([TEXT], 0.2, seed=5), model.generate([TEXT], 0.2, seed=5, sampling=YES)
    )
    assert torch.equal(ordered.generate([TEXT], 0.2, seed=5, sampling=Sampling(in_order=False)), plain)
    # what continues a sound is not taken apart
    prompt = torch.zeros(1, 400), 8000
    assert torch.equal(
        ordered.generate([TEXT], 0.2, seed=5, prompt=prompt),
        model.generate([TEXT], 0.2, seed=5, prompt=prompt),
    )


def test_turned_down_is_the_part_that_was_turned_down_the_most(
    model: AudioGen, monkeypatch: pytest.MonkeyPatch
) -> None:
    loud, decode = copy.copy(model), model._decode
    monkeypatch.setattr(loud, "_decode", lambda codes: 40 * decode(codes))
    down_db: list[float] = []
    sound = loud.generate([TEXT], 0.4, seed=5, sampling=YES, turned_down_db=down_db)
    each: list[float] = []
    loud.generate(["a dog barks", "rain falls"], 0.2, seed=[5, 5], turned_down_db=each)
    assert down_db == [max(each)] and down_db[0] > 0 and sound.abs().max() <= 1


def test_parts_are_as_long_as_they_should_be_and_meet_in_silence() -> None:
    parts = [[torch.ones(2, 300), torch.ones(2, 300)], [torch.ones(2, 100)], []]
    blocks = list(joined(parts, [500, 400, 60], 1000))
    sound = torch.cat(blocks, -1)
    assert sound.shape == (2, 960) and blocks[1].shape == (2, 200)
    fade = round(FADE_S * 1000)
    assert len(blocks[-1]) == 2 and torch.equal(sound[:, : 500 - fade], torch.ones(2, 500 - fade))
    assert sound[:, 500 - fade : 500].diff().max() < 0 and sound[:, 500 : 500 + fade].diff().min() > 0
    assert sound[:, 600:].abs().max() == 0


@pytest.mark.parametrize("kind", ["lafma", "stable_audio"])
def test_each_part_of_a_latent_systems_sound_is_that_of_its_own_text(kind: str) -> None:
    system, few = LatentGenerator(make(kind), "cpu"), Sampling(steps=2)
    ordered = replace(few, in_order=True)
    together = system.generate([TEXT, "rain falls"], 1.0, seed=3, sampling=ordered)
    whole = [system.generate([text], 1.0, seed=3, sampling=few)[0] for text in ("a dog barks", "rain falls")]
    middle, fade = system.sample_rate // 2, round(FADE_S * system.sample_rate)
    parts = [loudest(sound, middle, system.sample_rate) for sound in whole]
    assert torch.equal(together[0, :, : middle - fade], parts[0][:, : middle - fade])
    assert torch.equal(together[0, :, middle + fade :], parts[1][:, fade:])
    alone = system.generate([TEXT], 1.0, seed=3, sampling=ordered)
    assert torch.equal(alone[0], together[0])


@pytest.mark.parametrize(("duration_s", "made_s"), [(1.0, 1.0), (6.0, 5.0), (14.0, 7.0)])
def test_a_latent_systems_parts_are_made_twice_as_long_up_to_5_s(duration_s: float, made_s: float) -> None:
    system, asked = LatentGenerator(make("lafma"), "cpu"), []
    system.max_duration_s = 20.0

    def generate(texts: list[str], durations_s: list[float], **rest: object) -> torch.Tensor:
        asked.extend(durations_s)
        return torch.zeros(len(texts), 1, round(max(durations_s) * system.sample_rate))

    request = check(system, [TEXT], duration_s, 0, None, YES)
    system.generate = generate  # type: ignore[assignment,method-assign]
    sound = in_order.generate(system, [["a", "b"]], request, YES, None, None, None, PART_S)
    assert asked == [made_s, made_s] and sound.shape[-1] == round(duration_s * system.sample_rate)


def test_the_loudest_stretch_is_faded_where_it_is_cut() -> None:
    sound = torch.full((2, 1000), 0.1)
    sound[:, 600:700] = 1.0
    found = loudest(sound, 200, 1000)
    assert found.shape == (2, 200) and (found == 1.0).sum() == 2 * 100
    assert found[:, :5].max() < 0.1 and found[:, -5:].max() < 0.1 and found[:, 45:55].min() == 1.0
    sound[:, 600:700], sound[:, :50] = 0.0, 1.0
    assert torch.equal(loudest(sound, 200, 1000)[:, :180], sound[:, :180])  # not cut at its beginning
    assert all(loudest(sound, length, 1000) is sound for length in (981, 1000, 2000))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_each_half_of_a_changed_sound_follows_its_own_text(guidance: float) -> None:
    """What an edit changes is one sound, so all of its texts are denoised in it, each in its share of the time."""
    system = LatentGenerator(make("lafma"), "cpu")
    seen: list[int] = []
    denoise = system._denoise
    system._denoise = lambda x, t, c: seen.append(len(x)) or denoise(x, t, c)  # type: ignore[method-assign,func-returns-value]
    noise = 0.1 * torch.randn(1, system.sample_rate, generator=torch.Generator().manual_seed(0))
    edit = Edit(noise, system.sample_rate, strength=0.9)
    given = {"guidance": guidance, "seed": 3, "edit": edit}
    few = Sampling(steps=4, in_order=True)
    changed = system.generate([TEXT], 1.0, sampling=few, **given)  # type: ignore[arg-type]
    assert set(seen) == {2 * (1 if guidance == 1.0 else 2)}
    whole = system.generate([TEXT], 1.0, sampling=Sampling(steps=4), **given)  # type: ignore[arg-type]
    assert (changed - whole).norm() > 0.02 * whole.norm()


def test_shares_are_of_equal_parts_and_sum_to_one() -> None:
    for num_parts, num_frames in ((1, 5), (2, 50), (3, 60), (4, 3)):
        weights = shares(equal(num_parts, num_frames), num_frames)
        assert weights.shape == (num_parts, num_frames)
        assert torch.allclose(weights.sum(0), torch.ones(num_frames)) and weights.min() > -1e-6
    halves = shares(equal(2, 50), 50)
    assert torch.equal(halves[0, :24], torch.ones(24)) and torch.equal(halves[1, 26:], torch.ones(24))
    assert (shares(equal(3, 60), 60).argmax(0) == torch.arange(60) // 20).all()


def test_the_bundled_models_make_events_in_order_by_default() -> None:
    assert AudioGen.from_pretrained("lm_tiny", "cpu").in_order
    assert LatentGenerator.from_pretrained("lafma_tiny", "cpu").sampling().in_order
