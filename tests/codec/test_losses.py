"""Codec losses: closed forms, and what they must and must not react to."""

import math

import pytest
import torch

from audiogen.codec.losses import (
    BIN_WEIGHT,
    TILES,
    adversarial_discriminator,
    adversarial_generator,
    feature_matching,
    log_magnitude_distance,
    mel_distance,
    mel_magnitude,
    multi_scale_mel,
    si_sdr,
    with_middle_and_side,
)
from audiogen.spectrogram import log_mel


@pytest.mark.parametrize(
    "kind,generator,discriminator", [("hinge", 1.5, 0.5 + 0.5), ("lsgan", 2.25, 0.25 + 0.25)]
)
def test_adversarial_losses_in_closed_form(kind, generator, discriminator):
    real, fake = [torch.full((2, 1, 3, 4), 0.5)], [torch.full((2, 1, 3, 4), -0.5)]
    assert adversarial_generator(fake, kind) == pytest.approx(generator)
    assert adversarial_discriminator(real, fake, kind) == pytest.approx(discriminator)


def test_hinge_stops_pushing_scores_that_are_past_the_margin():
    real, fake = torch.full((1, 1), 3.0, requires_grad=True), torch.full((1, 1), -3.0, requires_grad=True)
    adversarial_discriminator([real], [fake], "hinge").backward()
    assert real.grad.item() == 0 and fake.grad.item() == 0


def test_extreme_scores_give_finite_losses():
    for kind in ("hinge", "lsgan"):
        score = torch.tensor([[1e6, -1e6]])
        assert math.isfinite(adversarial_generator([score], kind))


def test_feature_matching_is_relative_and_moves_only_the_fake():
    real = [[torch.full((1, 2), 2.0, requires_grad=True)]]
    fake = [[torch.full((1, 2), 3.0, requires_grad=True)]]
    loss = feature_matching(real, fake)
    assert loss.item() == pytest.approx(0.5)
    loss.backward()
    assert real[0][0].grad is None and fake[0][0].grad.abs().sum() > 0


def tone(frequency_hz: float, gain: float = 0.5) -> torch.Tensor:
    return gain * torch.sin(2 * math.pi * frequency_hz * torch.arange(16000) / 16000)[None, None]


def test_mel_losses_are_zero_on_equals_and_grow_with_the_difference():
    x = tone(440)
    assert multi_scale_mel(x, x, 16000).item() == pytest.approx(0, abs=2e-4)
    assert mel_distance(x, x, 16000).item() == 0
    near, far = multi_scale_mel(tone(450), x, 16000), multi_scale_mel(tone(3000), x, 16000)
    assert 0 < near < far


def test_mel_distance_ignores_phase_and_reads_gain_in_log_units():
    x = 0.1 * torch.randn(1, 1, 16000, generator=torch.Generator().manual_seed(0))
    assert mel_distance(-x, x, 16000).item() == pytest.approx(0, abs=1e-6)
    assert mel_distance(x / 2, x, 16000).item() == pytest.approx(math.log(2), abs=1e-3)


def test_distances_taken_in_inference_do_not_spoil_training():
    """The mel matrix is cached; no other test uses this size."""
    x = torch.randn(1, 1, 1111, requires_grad=True)
    with torch.inference_mode():
        mel_magnitude(x, 11111, 100, 7)
        log_mel(x, 11111, 104, 26, 7)
    (mel_magnitude(x, 11111, 100, 7).sum() + log_mel(x, 11111, 104, 26, 7).sum()).backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_silence_has_a_finite_gradient():
    x = torch.zeros(2, 1, 4000, requires_grad=True)
    multi_scale_mel(x, 0.1 * torch.randn(2, 1, 4000), 16000).backward()
    assert torch.isfinite(x.grad).all()


def test_si_sdr_ignores_scale_and_measures_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 100000, generator=g)
    noise = torch.randn(1, 1, 100000, generator=g)
    assert si_sdr(3 * (x + 0.1 * noise), x).item() == pytest.approx(20, abs=0.2)


def test_log_magnitude_distance_counts_bins_bands_and_tiles():
    target = 3 + torch.randn(2, 1, 24, 129, generator=torch.Generator().manual_seed(0))
    assert log_magnitude_distance(target, target, 16000) == 0
    # Every bin up by 0.5, hence every band and tile up by 0.5 too (the floors keep them just below).
    weights = BIN_WEIGHT + 1 + len(TILES)
    found = log_magnitude_distance(target + 0.5, target, 16000, num_mels=20).item()
    assert found == pytest.approx(0.5 * weights, abs=0.02)


def test_log_magnitude_distance_weighs_what_lasts_above_the_chance_of_noise():
    """Another draw of the same noise is nearer than noise of another level, though no nearer bin by bin."""
    g = torch.Generator().manual_seed(0)

    def noise() -> torch.Tensor:  # log magnitudes of complex Gaussian noise
        return torch.randn(1, 1, 48, 129, 2, generator=g).square().sum(-1).sqrt().log()

    target, again = noise(), noise()
    offset = (again - target).abs().mean()
    beating = target + offset * torch.where(torch.arange(48) % 24 < 12, 1.0, -1.0)[:, None]
    assert (beating - target).abs().mean().item() == pytest.approx(offset.item(), rel=1e-5)
    ratio = log_magnitude_distance(beating, target, 16000) / log_magnitude_distance(again, target, 16000)
    assert ratio > 1.5


def test_a_spectrum_shorter_than_a_tile_has_a_distance():
    a, b = torch.zeros(1, 1, 2, 129), torch.ones(1, 1, 2, 129)
    assert log_magnitude_distance(a, b, 16000) > 1


def test_sum_and_difference_show_what_magnitudes_of_the_channels_do_not() -> None:
    left, other = 0.1 * torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    same, opposite = torch.stack([left, left])[None], torch.stack([left, -left])[None]
    assert multi_scale_mel(opposite, same, 16000) < 0.001
    both = with_middle_and_side(opposite), with_middle_and_side(same)
    assert multi_scale_mel(*both, 16000) > 1
    found = with_middle_and_side(torch.stack([left, other])[None])[0]
    torch.testing.assert_close(found[2] + found[3], left)
    torch.testing.assert_close(found[2] - found[3], other)
    mono = left[None, None]
    assert with_middle_and_side(mono) is mono
