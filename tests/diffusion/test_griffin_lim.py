"""Sound from a log-mel spectrogram without a network: it has that spectrogram, and any length."""

import dataclasses

import pytest
import torch

from audiogen.diffusion.autoencoders import MelAutoencoder
from audiogen.diffusion.mel import MelConfig, griffin_lim, log_mel, magnitudes
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.models.diffusers import save_diffusers
from audiogen.models.released import load_released
from audiogen.spectrogram import mel_filterbank
from audiogen.text.vocabulary import train_vocabulary
from tests.diffusion.tiny_systems import CAPTIONS, tiny

CONFIG = MelConfig(sample_rate=8000, n_fft=256, hop_length=64, num_mels=40, f_max=4000.0)


def chirp_and_noise() -> torch.Tensor:
    """[2, 1, 4096]: a rising tone, and noise that comes and goes."""
    time_s = torch.arange(4096) / 8000
    tone = 0.5 * torch.sin(2 * torch.pi * (300 + 800 * time_s) * time_s)
    noise = 0.1 * torch.randn(4096, generator=torch.Generator().manual_seed(0)) * (1 + torch.sin(40 * time_s))
    return torch.stack([tone, noise])[:, None]


def test_the_sound_has_the_spectrogram_it_was_made_of() -> None:
    mel = log_mel(chirp_and_noise(), CONFIG)[:, 0]  # [B, T, M]
    sound = griffin_lim(mel, CONFIG)
    assert sound.shape == (2, 4096)
    again = log_mel(sound[:, None], CONFIG)[:, 0]
    wrong = log_mel(griffin_lim(mel.flip(1), CONFIG)[:, None], CONFIG)[:, 0]
    loud = mel > mel.amax((1, 2), keepdim=True) - 5  # a window's side lobes have no phases that are right
    assert (again - mel)[loud].abs().mean() < 0.2
    assert (wrong - mel)[loud].abs().mean() > 0.5


def test_magnitudes_have_the_mel_they_were_made_of() -> None:
    mel = log_mel(chirp_and_noise(), CONFIG)[:, 0]
    found = magnitudes(mel, CONFIG)
    filters = mel_filterbank(8000, 256, 40, 0.0, 4000.0)
    covered = filters.sum(0) > 0  # the lowest bands are narrower than a bin
    again = (found.transpose(1, 2) @ filters).clamp(min=1e-5).log()
    assert (again - mel)[..., covered].abs().mean() < 0.05


def test_rows_are_independent_and_one_frame_is_enough() -> None:
    mel = log_mel(chirp_and_noise(), CONFIG)[:, 0]
    together, alone = griffin_lim(mel, CONFIG)[1:], griffin_lim(mel[1:], CONFIG)
    # iterations magnify by what a processor rounds two rows differently from one
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-3 * alone.abs().max().item())
    assert griffin_lim(mel[:, :1], CONFIG).shape == (2, 64)


def test_a_system_without_a_vocoder_is_saved_and_read(tmp_path) -> None:
    config = tiny("lafma")
    mel = dataclasses.replace(config.mel_autoencoder, vocoder=None, channels=(8, 16), norm_groups=4)
    torch.manual_seed(0)
    system = LatentSystem(
        dataclasses.replace(config, mel_autoencoder=mel), train_vocabulary(CAPTIONS, 40)
    ).eval()
    save_diffusers(tmp_path / "m", system, "lafma", {})
    read = load_released(tmp_path / "m").system
    assert not (tmp_path / "m" / "vocoder").exists() and read.autoencoder.vocoder is None
    latents = torch.randn(1, *system.autoencoder.latent_shape(0.02))
    with torch.no_grad():
        assert torch.equal(read.autoencoder.decode(latents), system.autoencoder.decode(latents))
    with pytest.raises(InputError, match="n_fft . 2 or less"):
        MelAutoencoder(dataclasses.replace(mel, mel=dataclasses.replace(mel.mel, hop_length=40)))
