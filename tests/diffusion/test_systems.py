"""Systems from recipes: published sizes, tiny ones that learn on a CPU, and what does not go together."""

import dataclasses

import pytest
import torch

from audiogen.diffusion.conditioners import ConditionerConfig
from audiogen.diffusion.systems import LatentSystem, SystemConfig, released
from audiogen.errors import InputError
from audiogen.text.vocabulary import train_vocabulary
from tests.diffusion.tiny_systems import CAPTIONS, RECIPES, tiny

MILLIONS = {  # as published, of the denoiser
    "audioldm_s": 185,
    "audioldm_m": 416,
    "audioldm_l": 739,
    "audioldm2": 347,
    "audioldm2_large": 718,
    "lafma": 273,
    "stable_audio": 1057,
    "stable_audio_3": 459,  # its authors count 433, without the 26 of `to_local_embed`
    "tango": 866,
    "tangoflux": 517,
}


def millions(module: torch.nn.Module) -> int:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6)


def test_published_sizes() -> None:
    systems, sizes = released(), {}
    assert set(systems) == set(MILLIONS)
    for name, config in systems.items():
        with torch.device("meta"):
            system = LatentSystem(config)
        sizes[name] = millions(system.denoiser)
        if config.mel_autoencoder is not None:
            assert millions(system.autoencoder.vocoder) == 55
            assert millions(system.autoencoder.vae) == 55 - (not config.mel_autoencoder.mid_attention) * 2
            assert system.autoencoder.latent_shape(10.24) == (8, 256, 16)
        elif config.same_autoencoder is not None:
            blocks = system.denoiser.network.transformer_blocks
            assert millions(torch.nn.ModuleList(block.to_local_embed for block in blocks)) == 459 - 433
            assert millions(system.autoencoder) == 107 and system.autoencoder.latent_shape(5.0) == (256, 54)
        else:
            assert millions(system.autoencoder) == 156
            assert system.autoencoder.latent_shape(2097152 / 44100) == (64, 1024)
    assert sizes == MILLIONS


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_tiny_system_learns_on_a_cpu_with_its_own_text_encoder(name: str) -> None:
    """From the same latents it gives each caption its own target: better than any answer that ignores the caption."""
    torch.manual_seed(0)
    config = tiny(name)
    system = LatentSystem(config, train_vocabulary(CAPTIONS, 40))
    optimiser = torch.optim.Adam([*system.denoiser.parameters(), *system.conditioner.parameters()], lr=5e-3)
    shape = system.autoencoder.latent_shape(160 / system.autoencoder.sample_rate)
    target, x = torch.randn(3, *shape).sign(), torch.randn(1, *shape).expand(3, *shape)
    without_captions = (target - target.mean(dim=0)).square().mean()
    for _ in range(30):
        conditioning = system.conditioner(system.conditioner.inputs(CAPTIONS, torch.full((3,), 2.0)))
        loss = (system.denoiser(x, torch.full((3,), 0.5), conditioning) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.9 * without_captions.item()
    embedding = system.conditioner.text.embedded.encoder.embed_tokens.weight
    assert embedding.grad is not None and embedding.grad.abs().sum() > 0


def test_what_does_not_go_together_is_refused_with_the_numbers() -> None:
    lafma, wave = tiny("lafma"), tiny("stable_audio")
    with pytest.raises(InputError, match="exactly one of audio_unet, text_unet, dit, flux, dit3"):
        dataclasses.replace(lafma, dit=wave.dit)
    with pytest.raises(InputError, match="work on the latents of mel_autoencoder"):
        dataclasses.replace(wave, audio_unet=lafma.audio_unet, dit=None)
    with pytest.raises(InputError, match="gives latents of width 32, the denoiser takes 4"):  # 4 times 8 bins
        dataclasses.replace(lafma, audio_unet=None, dit=wave.dit)
    with pytest.raises(InputError, match=r"width \(24,\), the denoiser takes \(16, 24\)"):
        dataclasses.replace(lafma, audio_unet=tiny("audioldm2").audio_unet)
    with pytest.raises(InputError, match="a vector of width None, the denoiser takes 20"):
        dataclasses.replace(
            lafma,
            conditioner=lafma.conditioner,
            audio_unet=dataclasses.replace(lafma.audio_unet, vector_dim=20),
        )
    with pytest.raises(InputError, match="autoencoder gives latents of width 4, the denoiser takes 8"):
        dataclasses.replace(lafma, audio_unet=dataclasses.replace(lafma.audio_unet, latent_dim=8))
    with pytest.raises(InputError, match="conditioner.cross names 'words'"):
        ConditionerConfig(cross=(("words",),))
    with pytest.raises(InputError, match="conditioner.seconds is null"):
        ConditionerConfig(cross=(("text", "seconds_total"),), text=lafma.conditioner.text)
    assert isinstance(lafma, SystemConfig)
