"""Codec losses: closed forms, and what they must and must not react to."""

import math

import pytest
import torch

from audiogen.codec.losses import (
    adversarial_discriminator,
    adversarial_generator,
    feature_matching,
    log_magnitude_distance,
    mel_distance,
    multi_scale_mel,
    si_sdr,
)


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


def test_silence_has_a_finite_gradient():
    x = torch.zeros(2, 1, 4000, requires_grad=True)
    multi_scale_mel(x, 0.1 * torch.randn(2, 1, 4000), 16000).backward()
    assert torch.isfinite(x.grad).all()


def test_si_sdr_ignores_scale_and_measures_noise():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 100000, generator=g)
    noise = torch.randn(1, 1, 100000, generator=g)
    assert si_sdr(3 * (x + 0.1 * noise), x).item() == pytest.approx(20, abs=0.2)


def test_log_magnitude_distance_counts_bins_and_bands():
    target = 3 + torch.randn(2, 1, 7, 129, generator=torch.Generator().manual_seed(0))
    assert log_magnitude_distance(target, target, 16000) == 0
    # Every bin up by 0.5, hence every band up by 0.5 too (a floor under the bands keeps it just below).
    assert log_magnitude_distance(target + 0.5, target, 16000, num_mels=20).item() == pytest.approx(
        1.0, abs=0.01
    )
