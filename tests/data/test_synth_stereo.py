"""The built-in corpus in stereo: places by level and delay, wide textures, and the same scenes as in mono."""

import numpy as np
import pytest
import torch
from torch import Tensor

from audiogen.codec.encode import from_corpus
from audiogen.data import synth
from audiogen.data.dataset import AudioDataset, BuiltInClip
from audiogen.data.synth.corpus import Placement, _in_stereo, _place
from audiogen.data.synth.scene import compose
from audiogen.data.synth.signals import random_numbers
from audiogen.errors import InputError

RATE = 16000


def level_difference_db(audio: Tensor) -> float:
    """Of the left channel above the right one, of audio [2, N]."""
    left, right = audio.double().square().mean(1)
    return float(10 * torch.log10(left / right))


def correlation(audio: Tensor) -> float:
    return float(torch.corrcoef(audio)[0, 1])


def single_events(texture: bool) -> list[tuple[int, Placement]]:
    """Clips of one event, and where it is."""
    found = []
    for index in range(60):
        events = compose(0, index, 5.0).events
        if len(events) == 1 and (events[0].count is None) == texture:
            found.append((index, _place(events[0], random_numbers("stereo", 0, index, 0))))
    return found


def test_scenes_captions_and_the_mono_sound_are_those_of_any_number_of_channels() -> None:
    for index in range(6):
        mono, stereo = synth.render(0, index), synth.render(0, index, channels=2)
        assert stereo.audio.shape == (2, 5 * RATE) and mono.audio.shape == (1, 5 * RATE)
        assert stereo.captions == mono.captions and stereo.places == mono.places
        assert [event.kind for event in stereo.events] == [event.kind for event in mono.events]
        assert stereo.audio.abs().max() <= 0.99


@pytest.mark.parametrize("side", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_a_point_is_louder_and_earlier_on_its_own_side(side: float) -> None:
    track = np.random.default_rng(0).standard_normal(4000).astype(np.float32)
    placed = _in_stereo(track, Placement(side, 0.0), 44100)
    difference = level_difference_db(torch.from_numpy(placed))
    angle = np.pi / 4 * (1 + 0.8 * side)
    assert difference == pytest.approx(20 * np.log10(np.cos(angle) / np.sin(angle)), abs=0.01)
    lags = np.correlate(placed[0], placed[1], "full")
    lag = int(lags.argmax()) - (placed.shape[1] - 1)  # above 0: left is later
    assert lag == round(0.6e-3 * side * 44100)
    assert np.abs(placed).max(1).max() == pytest.approx(np.abs(track).max(), rel=1e-6)


def test_strikes_stand_anywhere_and_textures_are_wide() -> None:
    points, textures = single_events(texture=False), single_events(texture=True)
    sides = [place.side for _, place in points]
    assert min(sides) < -0.6 and max(sides) > 0.6 and all(place.width == 0 for _, place in points)
    for index, place in points[:8]:
        audio = synth.render(0, index, channels=2).audio
        if abs(place.side) > 0.3:
            assert (level_difference_db(audio) > 0) == (place.side < 0), index
    wide = [correlation(synth.render(0, index, channels=2).audio) for index, _ in textures[:8]]
    assert max(wide) < 0.95 and sum(wide) / len(wide) < 0.7


def test_room_and_noise_of_the_two_channels_are_independent() -> None:
    """Before its event begins, a clip has the noise of its recording alone."""
    tried = 0
    for index in range(40):
        audio, (event, *_) = synth.render(0, index, channels=2).audio, compose(0, index, 5.0).events
        before = audio[:, : int(event.start_s * RATE)]
        if event.start_s > 0.5 and before.abs().max() > 0:
            assert abs(correlation(before)) < 0.1
            tried += 1
    assert tried > 3


def test_more_channels_are_refused() -> None:
    with pytest.raises(InputError, match="the built-in corpus has 1 or 2 channels, got 3"):
        synth.render(0, 0, channels=3)


def test_a_stereo_model_trains_on_it_in_stereo() -> None:
    clip = BuiltInClip(single_events(texture=False)[0][0])
    expected = synth.render(0, clip.number, 8000, channels=2).audio
    assert not torch.equal(expected[0], expected[1])
    dataset = AudioDataset([clip], 8000, channels=2, cache_mb=10)
    for _ in range(2):  # decoded, then from the cache
        assert torch.equal(dataset.item(0, 0, 0).data, expected)
    sound = from_corpus(clip, captions=False)
    assert sound.render is not None
    assert torch.equal(sound.render(8000, 2), expected)
    assert sound.render(8000, 1).shape == (1, 40000)
