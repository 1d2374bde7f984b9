"""The built-in corpus: determinism, ranges, and captions that are true of the audio."""

import pytest
import torch

from audiogen.data import synth
from audiogen.errors import InputError


def test_a_clip_is_a_function_of_seed_and_index():
    for index in range(8):
        first, again = synth.render(3, index), synth.render(3, index)
        assert torch.equal(first.audio, again.audio)
        assert first.captions == again.captions == synth.captions(3, index)
        assert first.events == again.events
    assert not torch.equal(synth.render(3, 0).audio, synth.render(4, 0).audio)


@pytest.mark.parametrize(
    ("sample_rate", "duration_s"), [(8000, 0.5), (11025, 1.3), (48000, 2.0), (8000, 30.0)]
)
def test_any_rate_and_duration(sample_rate, duration_s):
    for index in range(12):
        clip = synth.render(5, index, sample_rate, duration_s)
        assert clip.audio.shape == (1, round(sample_rate * duration_s))
        assert torch.isfinite(clip.audio).all()
        assert 1e-3 < clip.audio.abs().max() <= 1
        assert all(0 <= e.start_s < e.end_s <= duration_s + 1e-6 for e in clip.events)


@pytest.mark.parametrize("duration_s", [0, -1, 0.1, 31, float("nan")])
def test_refuses_what_it_cannot_render(duration_s):
    with pytest.raises(InputError, match="0.5 to 30"):
        synth.captions(0, 0, duration_s)
