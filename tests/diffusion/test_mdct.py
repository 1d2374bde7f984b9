"""The MDCT: an orthonormal transform that comes back, in order of frequency and time, also through the autoencoder."""

import math

import pytest
import torch

from audiogen.diffusion.autoencoders import WaveformAutoencoder, WaveformAutoencoderConfig
from audiogen.diffusion.mdct import compress, expand, inverse_mdct, mdct, mdct_basis
from audiogen.errors import InputError
from audiogen.files.tensors import empty


@pytest.mark.parametrize("bands", [2, 6, 64])
def test_inverse(bands: int) -> None:
    audio, basis = torch.randn(2, 3, 7 * bands), mdct_basis(bands)
    coefficients = mdct(audio, basis)
    assert coefficients.shape == (2, 3 * bands, 7)
    inner = slice(bands // 2, -(bands // 2))  # the ends have their mirror images on top
    torch.testing.assert_close(inverse_mdct(coefficients, basis)[..., inner], audio[..., inner])


def test_frames_are_orthonormal() -> None:
    bands, frames = 6, 5
    basis = mdct_basis(bands)
    rows = torch.zeros(frames, bands, (frames + 1) * bands)
    for frame in range(frames):
        rows[frame, :, frame * bands : (frame + 2) * bands] = basis
    rows = rows.flatten(0, 1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-6, rtol=0)


def test_a_tone_is_in_its_band_while_it_lasts() -> None:
    bands, rate = 64, 16000
    time = torch.arange(20 * bands) / rate
    tone = torch.sin(2 * math.pi * 2000 * time) * (time >= 10 * bands / rate)
    energy = mdct(tone[None, None], mdct_basis(bands))[0].square()  # [bands, T]
    assert energy[:, 12:19].sum(1).argmax() in (15, 16)  # a band is 125 Hz wide
    assert energy[:, :9].max() < 1e-6 < energy[:, 12:19].sum(0).min()


def test_compression_comes_back_and_keeps_signs() -> None:
    values = torch.tensor([-2.0, -1e-4, 0.0, 1e-4, 0.0625])
    found = compress(values)
    torch.testing.assert_close(found[-1], torch.tensor(1.0))
    torch.testing.assert_close(expand(found), values)


def test_autoencoder_on_bands_has_the_length_and_channels_of_the_audio() -> None:
    torch.manual_seed(0)
    config = WaveformAutoencoderConfig(
        channels=2, bands=6, latent_dim=4, width=4, multiples=(2,), strides=(2,)
    )
    assert config.hop_length == 12
    autoencoder = WaveformAutoencoder(config).eval()
    audio = torch.randn(1, 2, 60)
    latents = autoencoder.encode(audio)
    assert latents.shape == (1, 4, 5)
    assert autoencoder.decode(latents).shape == audio.shape
    seen = compress(mdct(audio, mdct_basis(6)))
    expected = inverse_mdct(expand(autoencoder.vae.decode(latents).sample), mdct_basis(6))
    torch.testing.assert_close(latents, autoencoder.vae.encode(seen).latent_dist.mode())
    torch.testing.assert_close(autoencoder.decode(latents), expected)


def test_autoencoder_made_without_memory_and_filled_is_the_same() -> None:
    """As directories are read."""
    config = WaveformAutoencoderConfig(
        channels=1, bands=6, latent_dim=4, width=4, multiples=(2,), strides=(2,)
    )
    real, filled = WaveformAutoencoder(config).eval(), empty(lambda: WaveformAutoencoder(config), "x").eval()
    filled.load_state_dict(real.state_dict(), assign=True)
    with torch.inference_mode():
        latents = real.encode(torch.randn(1, 1, 36))
        torch.testing.assert_close(filled.decode(latents), real.decode(latents))
    real.decode(torch.randn(1, 4, 3)).sum().backward()  # after inference has been first to use the transform


@pytest.mark.parametrize("bands", [0, 3, -2])
def test_odd_bands_are_refused(bands: int) -> None:
    with pytest.raises(InputError, match="bands is"):
        WaveformAutoencoderConfig(bands=bands)
