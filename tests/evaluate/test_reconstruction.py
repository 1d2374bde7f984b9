"""Reconstruction metrics: closed forms, and what each must and must not react to."""

import importlib
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.evaluate.reconstruction import (
    DISTANCES,
    OPTIONAL,
    check_metrics,
    code_entropy,
    count_codes,
    log_spectral_distance_db,
    measure,
    mel_by_item,
    multi_resolution_stft,
    si_sdr_db,
)

RATE = 8000


@pytest.fixture
def noise() -> Tensor:
    """[B=2, C=1, N]: noise that stays far above the floor in every bin; the second item is softer."""
    sound = 0.1 * torch.randn(2, 1, 6000, generator=torch.Generator().manual_seed(0))
    return sound * torch.tensor([1.0, 0.3])[:, None, None]


# Of equal sounds. The multi-scale mel has a floor under its root, 1e-4 of each window.
@pytest.mark.parametrize("name", DISTANCES)
def test_equal_sounds_are_as_near_as_can_be(name: str, noise: Tensor) -> None:
    best = {"si_sdr_db": 100.0}.get(name, 0.0)
    assert DISTANCES[name](noise, noise, RATE).tolist() == pytest.approx([best] * 2, abs=2e-4)


@pytest.mark.parametrize("name", DISTANCES)
def test_items_do_not_see_each_other(name: str, noise: Tensor) -> None:
    decoded = noise + 0.02 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(1))
    together = DISTANCES[name](decoded, noise, RATE)
    alone = [DISTANCES[name](decoded[i : i + 1], noise[i : i + 1], RATE).item() for i in range(2)]
    assert together.shape == (2,) and together.tolist() == pytest.approx(alone, rel=1e-5)
    assert alone[0] != pytest.approx(alone[1], rel=1e-2)


def test_gain_in_closed_form(noise: Tensor) -> None:
    gain = 0.5
    found = {name: distance(gain * noise, noise, RATE) for name, distance in DISTANCES.items()}
    assert found["mel"].tolist() == pytest.approx([math.log(2)] * 2, rel=1e-3)
    assert found["multi_resolution_stft"].tolist() == pytest.approx([0.5 + math.log(2)] * 2, rel=2e-3)
    assert found["log_spectral_db"].tolist() == pytest.approx([20 * math.log10(2)] * 2, rel=2e-3)
    assert found["si_sdr_db"].tolist() == pytest.approx([100.0] * 2)
    # L1 of the logs and their rms are ln 2 each; L1 of the magnitudes comes on top and grows with the level.
    assert found["multi_scale_mel"][0] > found["multi_scale_mel"][1] > 2 * math.log(2) * 0.99


def test_polarity_does_not_count(noise: Tensor) -> None:
    for name, distance in DISTANCES.items():
        assert torch.allclose(distance(-noise, noise, RATE), distance(noise, noise, RATE), atol=1e-4), name


def test_dc_moves_spectra_and_not_si_sdr(noise: Tensor) -> None:
    shifted = noise + 0.2
    assert si_sdr_db(shifted, noise, RATE).tolist() == pytest.approx([100.0] * 2, abs=5)
    for name in ("mel", "multi_scale_mel", "multi_resolution_stft", "log_spectral_db"):
        moved = DISTANCES[name](shifted, noise, RATE)
        assert (moved > 0.01).all(), name
        assert moved[1] > moved[0], name  # the softer sound is further below it
    # Two or three of 1025 bins hold the whole of it.
    assert log_spectral_distance_db(shifted, noise, RATE)[0] < 0.2 * 60


def test_noise_moves_si_sdr_by_its_level(noise: Tensor) -> None:
    sound = torch.randn(1, 1, 50000, generator=torch.Generator().manual_seed(2))
    other = torch.randn(1, 1, 50000, generator=torch.Generator().manual_seed(3))
    for level_db in (-20, 0, 20):
        decoded = 2 * (sound + 10 ** (-level_db / 20) * other) + 0.5
        assert si_sdr_db(decoded, sound, RATE).item() == pytest.approx(level_db, abs=0.3)


@pytest.mark.parametrize("name", DISTANCES)
def test_more_clipping_is_worse(name: str) -> None:
    sound = 0.3 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(4))
    found = [DISTANCES[name](sound.clamp(-top, top), sound, RATE).item() for top in (0.6, 0.3, 0.1, 0.02)]
    assert found == sorted(found, reverse=name == "si_sdr_db") and len(set(found)) == 4


def test_more_noise_is_worse_in_spectra(noise: Tensor) -> None:
    other = 0.1 * torch.randn(noise.shape, generator=torch.Generator().manual_seed(5))
    for name in ("mel", "multi_scale_mel", "multi_resolution_stft", "log_spectral_db"):
        found = torch.stack([DISTANCES[name](noise + gain * other, noise, RATE) for gain in (0.01, 0.1, 1.0)])
        assert (found.diff(dim=0) > 0).all(), name


def test_silence_out_of_sound(noise: Tensor) -> None:
    silence = torch.zeros_like(noise)
    assert si_sdr_db(silence, noise, RATE).tolist() == [-100.0, -100.0]
    assert si_sdr_db(silence + 0.25, noise, RATE).tolist() == [-100.0, -100.0]
    convergence = multi_resolution_stft(silence, noise, RATE)
    assert torch.isfinite(convergence).all() and (convergence > 1).all()
    spectral = log_spectral_distance_db(silence, noise, RATE)
    assert spectral[0] - spectral[1] == pytest.approx(20 * math.log10(1 / 0.3), abs=0.3)  # down to one floor


def test_sound_out_of_silence_is_a_distance_or_undefined(noise: Tensor) -> None:
    silence = torch.zeros_like(noise)
    found = measure(noise, silence, RATE)
    for name in ("mel", "multi_scale_mel", "log_spectral_db"):
        assert (found[name] > 1).all() and found[name].isfinite().all(), name
    assert found["multi_resolution_stft"].isnan().all() and found["si_sdr_db"].isnan().all()
    still = measure(silence, silence, RATE)
    assert still["mel"].tolist() == still["log_spectral_db"].tolist() == [0, 0]
    assert still["si_sdr_db"].isnan().all()
    constant = torch.full_like(noise, 0.1)
    assert si_sdr_db(noise, constant, RATE).isnan().all()
    assert multi_resolution_stft(constant, constant, RATE).tolist() == [0, 0]


def test_one_silent_item_leaves_the_others_alone(noise: Tensor) -> None:
    target = noise.clone()
    target[1] = 0
    found = measure(0.5 * noise, target, RATE)
    alone = measure(0.5 * noise[:1], target[:1], RATE)
    for name, values in found.items():
        assert values[0].item() == pytest.approx(alone[name].item(), rel=1e-5), name


def test_parity_with_numpy() -> None:
    """The STFT metrics against their formulas on frames cut by hand."""
    random = np.random.default_rng(0)
    a, t = 0.1 * random.standard_normal((2, 4097))

    def magnitude(sound: np.ndarray, n_fft: int) -> np.ndarray:
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        padded = np.pad(sound, n_fft // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[:: n_fft // 4]
        return np.abs(np.fft.rfft(frames * window)) * 2 / window.sum()

    decibel = 20 * np.log10(magnitude(a, 2048)) - 20 * np.log10(magnitude(t, 2048))
    audio, target = (torch.tensor(sound, dtype=torch.float32)[None, None] for sound in (a, t))
    found = log_spectral_distance_db(audio, target, RATE).item()
    assert found == pytest.approx(np.sqrt((decibel**2).mean(1)).mean(), rel=1e-4)
    terms = []
    for n_fft in (512, 1024, 2048):
        x, y = magnitude(a, n_fft), magnitude(t, n_fft)
        terms.append(np.linalg.norm(x - y) / np.linalg.norm(y) + np.abs(np.log(x / y)).mean())
    assert multi_resolution_stft(audio, target, RATE).item() == pytest.approx(np.mean(terms), rel=1e-4)


def test_two_channels_count_alike() -> None:
    stereo = 0.1 * torch.randn(1, 2, 5000, generator=torch.Generator().manual_seed(6))
    decoded = stereo.clone()
    decoded[:, 1] *= 0.5
    half = log_spectral_distance_db(decoded, stereo, RATE).item()
    assert half == pytest.approx(20 * math.log10(2) / 2, rel=2e-3)
    assert mel_by_item(decoded, stereo, RATE).item() > 0


def test_samples_that_are_not_finite_are_refused(noise: Tensor) -> None:
    broken = noise.clone()
    broken[1, 0, 5] = math.nan
    with pytest.raises(InputError, match="the audio holds samples that are not finite"):
        measure(broken, noise, RATE)


# ------------------------------------------------------------------------------------------- optional packages


def test_a_metric_that_does_not_exist_is_named() -> None:
    check_metrics([])
    with pytest.raises(InputError, match="no metric is called 'mos'; allowed: visqol, pesq, stoi"):
        check_metrics(["mos"])


@pytest.mark.parametrize("name,package", [("visqol", "visqol"), ("pesq", "pesq"), ("stoi", "pystoi")])
def test_optional_metrics_or_how_to_get_them(name: str, package: str) -> None:
    sound = 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(7))
    rough = sound + 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(8))
    silence = torch.zeros_like(sound)
    try:
        importlib.import_module(package)
    except ImportError:
        with pytest.raises(
            InputError, match=rf"metric {name} needs.*pip install '\.\[metrics\]' in the checkout"
        ):
            check_metrics([name])
        with pytest.raises(InputError, match="pip install"):
            measure(sound, sound, 16000, [name])
        return
    check_metrics([name])
    same, worse, mute = (OPTIONAL[name](a, sound, 16000).item() for a in (sound, rough, silence))
    assert same > worse >= mute == (0.0 if name == "stoi" else 1.0)
    assert measure(sound, sound, 16000, [name])[name].item() == pytest.approx(same)
    assert OPTIONAL[name](sound, silence, 16000).isnan().all()
    if name != "visqol":  # under a quarter of a second they have no value
        assert OPTIONAL[name](sound[..., :2100], sound[..., :2100], 16000).isnan().all()


# ------------------------------------------------------------------------------------------------ use of codes


def test_even_use_carries_all_bits_and_one_code_none() -> None:
    even = torch.arange(8).repeat(5)
    one = torch.full((40,), 3)
    two = torch.tensor([0, 7]).repeat(20)
    codes = torch.stack([even, one, two])[None]  # [B=1, K=3, T=40]
    entropy = code_entropy(count_codes(codes, 8), frame_rate=50.0)
    assert entropy.perplexity.tolist() == pytest.approx([8, 1, 2])
    assert entropy.used.tolist() == [8, 1, 2]
    assert entropy.bits_per_s == pytest.approx(50 * (3 + 0 + 1))


def test_entropy_of_a_given_distribution() -> None:
    counts = np.array([[4, 2, 1, 1, 0]])
    assert code_entropy(counts, 10.0).bits_per_s == pytest.approx(10 * 1.75)


def test_counts_of_clips_add_up_whatever_their_lengths() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randint(6, (1, 2, 13), generator=random), torch.randint(6, (1, 2, 7), generator=random)
    together = count_codes(torch.cat([a, b], -1), 6)
    assert (count_codes(a, 6) + count_codes(b, 6) == together).all() and together.sum() == 2 * 20
