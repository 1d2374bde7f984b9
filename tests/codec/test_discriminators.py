"""Discriminators separate real from fake: the one of audio by phase, the one of spectra by their grain."""

import torch

from audiogen.codec.discriminators import (
    DiscriminatorConfig,
    MultiScaleSTFTDiscriminator,
    MultiViewSpectrumDiscriminator,
)
from audiogen.codec.losses import adversarial_discriminator

CONFIG = DiscriminatorConfig(n_ffts=(256, 64), num_filters=4)


def clips(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Decaying bursts (real), or the same magnitudes with random phase per bin (fake): [4, 1, 2048]."""
    x = torch.randn(4, 1, 2048, generator=generator) * torch.exp(-torch.arange(2048) / 150.0)
    if kind == "real":
        return x
    spectrum = torch.fft.rfft(x)
    phase = 6.2832 * torch.rand(spectrum.shape, generator=generator)
    return torch.fft.irfft(spectrum.abs() * torch.exp(1j * phase), 2048)


def test_it_learns_to_tell_real_from_fake():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    discriminator = MultiScaleSTFTDiscriminator(CONFIG)
    optimiser = torch.optim.Adam(discriminator.parameters(), 3e-3)
    for _ in range(60):
        real, _ = discriminator(clips("real", generator))
        fake, _ = discriminator(clips("fake", generator))
        loss = adversarial_discriminator(real, fake)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        real, _ = discriminator(clips("real", generator))
        fake, _ = discriminator(clips("fake", generator))
    for r, f in zip(real, fake, strict=True):
        assert r.mean() > f.mean() + 0.5


def test_shapes_and_features_per_scale_and_layer():
    logits, features = MultiScaleSTFTDiscriminator(CONFIG, channels=2)(torch.randn(3, 2, 1024))
    assert len(logits) == len(features) == 2
    assert logits[0].shape[:3] == (3, 1, (1024 - 256) // 64 + 1)
    assert [f.shape[1] for f in features[0]] == [4] * 5
    widths = [f.shape[3] for f in features[0]]
    assert widths == [129, 65, 33, 17, 17]  # every dilated layer halves the frequencies


def test_a_clip_shorter_than_a_window_is_judged_too():
    logits, _ = MultiScaleSTFTDiscriminator(CONFIG)(torch.randn(1, 1, 100))
    assert all(score.numel() > 0 and torch.isfinite(score).all() for score in logits)


def test_it_is_sensitive_to_phase():
    torch.manual_seed(0)
    discriminator = MultiScaleSTFTDiscriminator(CONFIG)
    x = torch.randn(1, 1, 2048)
    assert not torch.allclose(discriminator(x)[0][0], discriminator(-x)[0][0])


def grain(kind: str, generator: torch.Generator) -> torch.Tensor:
    """Log magnitudes [4, 1, 12, 321], at a level of their own, of noise that flutters (real) or its mean (fake)."""
    level = torch.randn(4, 1, 1, 1, generator=generator) - 4
    noise = torch.randn(4, 1, 12, 321, 2, generator=generator).square().sum(-1).log() / 2
    flutter = torch.randn(4, 1, 12, 1, generator=generator)
    return level + (noise + flutter if kind == "real" else 0.1 * noise)


def test_the_one_of_spectra_learns_to_tell_grain_from_smoothness():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    discriminator = MultiViewSpectrumDiscriminator(DiscriminatorConfig(num_filters=4), 16000, 321)
    optimiser = torch.optim.Adam(discriminator.parameters(), 3e-3)
    for _ in range(60):
        real, _ = discriminator(grain("real", generator))
        fake, _ = discriminator(grain("fake", generator))
        loss = adversarial_discriminator(real, fake)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        real, features = discriminator(grain("real", generator))
        fake, _ = discriminator(grain("fake", generator))
    assert len(real) == len(features) == 2  # bins and bands
    for r, f in zip(real, fake, strict=True):
        assert r.mean() > f.mean() + 0.5


def test_the_one_of_spectra_judges_patches():
    """A score depends on its surroundings, not on the whole clip."""
    torch.manual_seed(0)
    discriminator = MultiViewSpectrumDiscriminator(DiscriminatorConfig(num_filters=4), 16000, 641, channels=2)
    spectra = torch.randn(1, 2, 40, 641, requires_grad=True)
    logits, _ = discriminator(spectra)
    logits[0][0, 0, 0, 0].backward()
    assert spectra.grad is not None
    reached = spectra.grad.abs().sum((0, 1))
    assert reached[:8].sum() > 0 and reached[20:].sum() == 0 and reached[:, 320:].sum() == 0
