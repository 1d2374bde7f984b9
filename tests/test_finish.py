"""Loudness and shape: what pyloudnorm, another true-peak meter and the samples say of the result."""

import math

import numpy as np
import pyloudnorm
import pytest
import scipy.signal
import torch
from torch import Tensor

from audiogen import audio
from audiogen.errors import InputError
from audiogen.finish import Finish

RATE = 16_000


def noise(seconds: float, level: float = 0.1, channels: int = 1, seed: int = 0) -> Tensor:
    samples = torch.randn(
        channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed), dtype=torch.float32
    )
    return (level * samples).clamp(-1, 1)


def clicks(seconds: float = 2.0) -> Tensor:
    """Quiet noise with loud clicks: a crest factor that no gain alone brings to a high loudness."""
    sound = noise(seconds, 0.02)
    sound[:, 1000::4000] = 0.9
    return sound


def lufs(sound: Tensor, rate: int) -> float:
    return float(pyloudnorm.Meter(rate).integrated_loudness(sound.T.double().numpy()))


def true_peak_db(sound: Tensor) -> float:
    """By the spectrum, 16 times as fine: not the filter that the limiter looks through."""
    fine = scipy.signal.resample(sound.double().numpy(), 16 * sound.shape[-1], axis=-1)
    return 20 * math.log10(np.abs(fine).max())


@pytest.mark.parametrize("target", [-40.0, -23.0, -16.0])
@pytest.mark.parametrize(
    "sound", [noise(2), noise(1, 0.5, channels=2), clicks()], ids=["noise", "stereo", "clicks"]
)
def test_loudness_is_what_was_asked_for_and_peaks_stay_below_the_limit(sound: Tensor, target: float) -> None:
    result = Finish(loudness=target).apply(sound, RATE)
    assert result.loudness is not None
    assert abs(lufs(result.sound, RATE) - target) < 0.2 and abs(result.loudness - target) < 0.2
    assert true_peak_db(result.sound) < -1 + 0.2 and result.notes == ()
    assert result.sound.shape == sound.shape


def test_a_gain_alone_where_no_peak_is_in_the_way() -> None:
    """The waveform keeps its shape: every sample has one factor."""
    sound = noise(1)
    factors = (Finish(loudness=-30).apply(sound, RATE).sound / sound)[sound.abs() > 1e-3]
    torch.testing.assert_close(factors, factors[0].expand_as(factors), rtol=1e-5, atol=0)


def test_a_peak_between_the_samples_is_limited() -> None:
    """A quarter of the rate, sampled at 45 degrees: samples of 0.7, and a sine of 1 between them."""
    time = torch.arange(RATE)
    sound = (0.99 * torch.sin(math.pi / 2 * time + math.pi / 4))[None] * torch.hann_window(RATE)
    assert sound.abs().max() < 0.71
    result = Finish(peak=-6).apply(sound, RATE).sound
    assert -6.3 < true_peak_db(result) < -5.9 and result.abs().max() < 10 ** (-6 / 20)
    torch.testing.assert_close(result[:, :1000], sound[:, :1000])  # where it is quiet nothing was done


def test_the_limiter_turns_both_sides_down_alike_and_only_around_peaks() -> None:
    sound = torch.cat([noise(1, 0.05), noise(1, 0.05, seed=1)])
    sound[0, 8000] = 1.0
    result = Finish(peak=-12).apply(sound, RATE).sound
    gain = result / sound
    torch.testing.assert_close(gain[0], gain[1], rtol=1e-4, atol=1e-4)
    assert gain[0, 8000] < 0.3 and (gain[:, :7000] - 1).abs().max() < 0.01


def test_a_loudness_that_no_limiter_reaches_is_said() -> None:
    sound = torch.zeros(1, RATE)
    sound[0, ::8000] = 0.5
    result = Finish(loudness=-8).apply(sound, RATE)
    (note,) = result.notes
    assert "LUFS in place of -8" in note and f"{lufs(result.sound, RATE):.1f}" in note
    assert true_peak_db(result.sound) < -0.8


def test_silence_stays_and_is_said() -> None:
    sound = torch.zeros(1, RATE)
    result = Finish(loudness=-23, fade_in=0.1, trim_silence=True, peak=-3).apply(sound, RATE)
    assert torch.equal(result.sound, sound) and result.loudness is None and "silent" in result.notes[0]


def test_a_sound_shorter_than_a_block_is_measured_with_silence_after_it() -> None:
    result = Finish(loudness=-23).apply(noise(0.1), RATE).sound
    assert abs(lufs(torch.nn.functional.pad(result, (0, round(0.3 * RATE))), RATE) + 23) < 0.2


def test_fades_rise_from_nothing_and_fall_to_it() -> None:
    sound = torch.ones(2, RATE) / 2
    result = Finish(fade_in=0.25, fade_out=0.5).apply(sound, RATE).sound
    assert result[:, 0].abs().max() < 1e-6 and result[:, -1].abs().max() < 1e-6
    assert (result[:, 1:4000] > result[:, :3999]).all() and (result[:, 8001:] < result[:, 8000:-1]).all()
    assert torch.equal(result[:, 4000:8000], sound[:, 4000:8000])
    torch.testing.assert_close(result[:, 2000], torch.full((2,), 0.25), atol=1e-3, rtol=0)  # half way up


def test_silence_is_cut_off_at_both_ends_and_nowhere_else() -> None:
    sound = torch.cat(
        [torch.zeros(1, 3205), noise(0.5), torch.zeros(1, 4000), noise(0.5), 1e-5 * noise(1)], -1
    )
    result = Finish(trim_silence=True).apply(sound, RATE).sound
    assert torch.equal(result, sound[:, 3200 : 3200 + result.shape[-1]])
    assert abs(result.shape[-1] - (8000 + 4000 + 8000)) <= 2 * RATE // 100
    sine = torch.sin(torch.arange(RATE) / 5)[None] / 2
    assert torch.equal(Finish(trim_silence=True).apply(sine, RATE).sound, sine)


@pytest.mark.parametrize("width", [0.0, 0.3, 1.0])
def test_the_mono_sum_of_a_widened_sound_is_the_mono_sound(width: float) -> None:
    sound = noise(1)
    result = Finish(stereo_width=width).apply(sound, RATE)
    assert result.sound.shape == (2, RATE)
    torch.testing.assert_close(audio.convert_channels(result.sound, 1), sound, atol=1e-6, rtol=0)
    left, right = result.sound.double()
    likeness = float(torch.corrcoef(torch.stack([left, right]))[0, 1])
    # two signals m + w s and m - w s of equal powers that are not correlated: (1 - w^2) / (1 + w^2)
    assert abs(likeness - (1 - width**2) / (1 + width**2)) < 0.05


def test_width_colours_neither_side() -> None:
    """White noise stays white: the level of each octave is that of the others."""
    result = Finish(stereo_width=1.0).apply(noise(8, 0.05), RATE).sound.double().numpy()
    for side in result:
        frequency, power = scipy.signal.welch(side, RATE, nperseg=2048)
        octaves = [
            power[(low <= frequency) & (frequency < 2 * low)].mean() for low in (500, 1000, 2000, 3900)
        ]
        assert max(octaves) / min(octaves) < 1.15


def test_both_sides_past_full_scale_are_turned_down_as_a_whole() -> None:
    sound = noise(1, 0.4)
    result = Finish(stereo_width=1.0).apply(sound, RATE)
    assert result.turned_down_db > 1 and result.sound.abs().max() <= 1
    down = 10 ** (-result.turned_down_db / 20)
    torch.testing.assert_close(result.sound.mean(0, keepdim=True), down * sound, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("seconds", "rate", "length"), [(1.0, 48_000, 48_000), (0.30003, 44_100, 13_231), (0.5, 8000, 4000)]
)
def test_another_sample_rate_has_the_exact_length_and_the_same_tone(
    seconds: float, rate: int, length: int
) -> None:
    time = torch.arange(round(seconds * RATE)) / RATE
    result = Finish(sample_rate=rate).apply(torch.sin(2 * math.pi * 1000 * time)[None] / 2, RATE, seconds)
    assert (result.sample_rate, tuple(result.sound.shape)) == (rate, (1, length))
    middle = result.sound[0, length // 4 : 3 * length // 4]
    expected = torch.sin(2 * math.pi * 1000 * torch.arange(length) / rate)[length // 4 : 3 * length // 4] / 2
    torch.testing.assert_close(middle, expected, atol=1e-3, rtol=0)


def test_all_together_have_the_loudness_of_the_file() -> None:
    sound = torch.cat([torch.zeros(1, 4000), clicks(2.0), torch.zeros(1, 4000)], -1)
    wanted = Finish(-18, -2, 0.1, 0.3, True, 0.5, 44_100)
    result = wanted.apply(sound, RATE, 2.5)
    assert result.sample_rate == 44_100 and result.sound.shape[0] == 2
    assert abs(result.sound.shape[1] / 44_100 - 2.0) < 0.03
    assert abs(lufs(result.sound, 44_100) + 18) < 0.2 and true_peak_db(result.sound) < -2 + 0.2


def test_nothing_asked_for_leaves_the_very_sound() -> None:
    sound = noise(0.1)
    assert Finish().apply(sound, RATE).sound is sound and Finish().given() == {}
    assert Finish(loudness=-23.0, trim_silence=True).given() == {"loudness": -23.0, "trim_silence": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loudness": -80}, "--loudness is -80; it must be from -70 to -5 LUFS"),
        ({"loudness": math.nan}, "--loudness is nan"),
        ({"peak": 1}, "--peak is 1; it must be from -40 to 0 dBTP"),
        ({"fade_in": -1}, "--fade-in is -1; it must be at least 0 s"),
        ({"fade_out": math.inf}, "--fade-out is inf"),
        ({"stereo_width": 1.5}, "--stereo-width is 1.5; it must be from 0 to 1"),
        ({"sample_rate": 10}, "--sample-rate is 10; it must be from 1000 to 768000 Hz"),
    ],
)
def test_a_value_that_cannot_be_is_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        Finish(**settings)  # type: ignore[arg-type]


def test_what_a_sound_or_a_format_cannot_have_is_named() -> None:
    with pytest.raises(InputError, match="take 1.2 s together, and the sound has 1 s; give shorter fades"):
        Finish(fade_in=0.7, fade_out=0.5).check(1.0, 1)
    with pytest.raises(InputError, match="have 2 channels; drop --stereo-width"):
        Finish(stereo_width=0.5).check(1.0, 2)
    with pytest.raises(
        InputError, match="mp3 has no sample rate 96000 Hz; allowed are 8000, .*; or choose wav"
    ):
        Finish(sample_rate=96_000).check(1.0, 1, "mp3")
    with pytest.raises(InputError, match="ogg has sample rates up to 200000 Hz, not 400000"):
        Finish(sample_rate=400_000).check(1.0, 1, "ogg")
    Finish(fade_in=0.5, fade_out=0.5, stereo_width=1, sample_rate=48_000).check(1.0, 1, "mp3")
