"""Opus as a reference: lengths, measured bitrates, and the search for a level."""

import math

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.evaluate.coding import (
    decode_opus,
    encode_opus,
    find_level,
    level_of,
    opus_rate,
    payload_bytes,
)
from audiogen.evaluate.reconstruction import DISTANCES


def sound(num_samples: int, rate: int = 8000, channels: int = 1) -> Tensor:
    """Harmonics that glide, with some noise [C, N]."""
    random = torch.Generator().manual_seed(num_samples)
    time_s = torch.arange(num_samples) / rate
    phase = 2 * math.pi * (200 * time_s + 80 * time_s**2)
    tone = sum(torch.sin(k * phase) / k for k in (1, 2, 3, 5))
    return 0.1 * tone * torch.ones(channels, 1) + 0.02 * torch.randn(channels, num_samples, generator=random)


@pytest.mark.parametrize("rate", [8000, 16000, 11025, 48000])
@pytest.mark.parametrize("num_samples", [1, 999, 8001])
def test_length_and_rate_come_back(rate: int, num_samples: int) -> None:
    wave = sound(num_samples, rate)
    assert decode_opus(encode_opus(wave, rate, 0.9), rate, num_samples).shape == wave.shape


def test_much_of_the_sound_comes_back_in_place() -> None:
    wave = sound(16000)
    decoded = decode_opus(encode_opus(wave, 8000, level_of(64)), 8000, 16000)
    assert (
        DISTANCES["si_sdr_db"](decoded[None], wave[None], 8000).item() > 10
    )  # a shift of one sample would ruin it
    stereo = torch.cat([wave, -0.5 * wave.flip(-1)])
    back = decode_opus(encode_opus(stereo, 8000, level_of(64)), 8000, 16000)
    for side in (0, 1):
        alone = DISTANCES["si_sdr_db"](back[None, side : side + 1], stereo[None, side : side + 1], 8000)
        assert alone.item() > 10


def test_silence_stays_silence() -> None:
    decoded = decode_opus(encode_opus(torch.zeros(1, 8000), 8000, 1.0), 8000, 8000)
    assert decoded.abs().max() < 1e-4


def test_a_rate_that_opus_lacks_is_raised() -> None:
    assert [opus_rate(rate) for rate in (4000, 8000, 11025, 16000, 22050, 44100, 96000)] == (
        [8000, 8000, 12000, 16000, 24000, 48000, 48000]
    )


def test_payload_is_the_file_without_its_pages_and_headers() -> None:
    short, long = encode_opus(sound(8000), 8000, 0.98), encode_opus(sound(80000), 8000, 0.98)
    for coded in (short, long):
        assert 0 < payload_bytes(coded) < len(coded)
    # Ogg spends one byte a packet of 20 ms (or 1 in 255 more), and one page and two headers in all.
    overhead = len(long) - payload_bytes(long) - (len(short) - payload_bytes(short))
    assert 0.8 * 450 <= overhead <= 2 * 450
    with pytest.raises(InputError, match="not an Ogg file"):
        payload_bytes(b"RIFF" + bytes(100))


def test_the_level_found_gives_the_bitrate_of_the_files() -> None:
    waves = [sound(16000), sound(24001), sound(9000)]
    duration_s = sum(wave.shape[-1] for wave in waves) / 8000
    tried: dict[float, float] = {}
    for kbps in (12.0, 24.0):
        level, found = find_level(waves, 8000, kbps, tried)
        num_bytes = sum(len(encode_opus(wave, 8000, level)) for wave in waves)
        assert found == pytest.approx(num_bytes * 8 / duration_s / 1000)
        assert found == pytest.approx(kbps, rel=0.05)
        assert abs(found - kbps) == min(abs(each - kbps) for each in tried.values())


def test_bitrates_out_of_reach_give_the_nearest() -> None:
    waves = [sound(8000)]
    lowest, highest = find_level(waves, 8000, 0.5), find_level(waves, 8000, 5000.0)
    assert lowest[0] == 1.0 and lowest[1] > 3
    assert highest[0] == 0.0 and highest[1] < 300


def test_more_bits_are_nearer_to_the_sound() -> None:
    waves = [sound(16000)]
    found = [find_level(waves, 8000, kbps) for kbps in (8.0, 20.0, 60.0)]
    rates = [kbps for _, kbps in found]
    assert rates == sorted(rates) and rates[0] < 0.5 * rates[2]
    decoded = [decode_opus(encode_opus(waves[0], 8000, level), 8000, 16000) for level, _ in found]
    distances = [DISTANCES["mel"](each[None], waves[0][None], 8000).item() for each in decoded]
    assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("kbps", [0.0, -1.0, math.nan, math.inf])
def test_a_bitrate_is_above_0(kbps: float) -> None:
    with pytest.raises(InputError, match="above 0"):
        find_level([sound(800)], 8000, kbps)
