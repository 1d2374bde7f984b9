"""Latent codecs: shapes and lengths, scale, padding, and the vocoder's two traps."""

import dataclasses

import pytest
import torch

from audiogen.diffusion.autoencoders import MelAutoencoder, WaveformAutoencoder
from audiogen.errors import InputError
from tests.diffusion.tiny_systems import tiny

HOPS = {"lafma": 40, "stable_audio": 8}


@pytest.fixture(scope="module", params=sorted(HOPS))
def codec(request) -> MelAutoencoder | WaveformAutoencoder:
    torch.manual_seed(0)
    config = tiny(request.param)
    made = (
        MelAutoencoder(config.mel_autoencoder)
        if config.mel_autoencoder
        else WaveformAutoencoder(config.waveform_autoencoder)
    )
    assert made.hop_length == HOPS[request.param]
    return made.eval().requires_grad_(False)


@pytest.mark.parametrize("samples", [1, 40, 41, 333])
def test_every_length_gives_the_latents_that_latent_shape_says(codec, samples: int) -> None:
    audio = torch.randn(2, codec.channels, samples)
    latents = codec.encode(audio)
    assert latents.shape == (2, *codec.latent_shape(samples / codec.sample_rate))
    assert latents.shape[2] == -(-samples // codec.hop_length)
    assert codec.decode(latents).shape == (2, codec.channels, latents.shape[2] * codec.hop_length)


def test_the_end_is_padded_with_zeros_and_rows_are_independent(codec) -> None:
    audio = torch.randn(2, codec.channels, 333)
    whole = torch.nn.functional.pad(audio, (0, -333 % codec.hop_length))
    torch.testing.assert_close(codec.encode(audio), codec.encode(whole))
    torch.testing.assert_close(codec.encode(audio)[1:], codec.encode(audio[1:]))
    latents = codec.encode(audio)
    torch.testing.assert_close(codec.decode(latents)[1:], codec.decode(latents[1:]))


def test_fit_scale_gives_unit_variance_and_decode_undoes_it(codec) -> None:
    audio = torch.randn(2, codec.channels, 400)
    before, sound = codec.encode(audio), codec.decode(codec.encode(audio))
    codec.fit_scale(before)
    after = codec.encode(audio)
    assert after.std() == pytest.approx(1.0, abs=1e-4)
    codec.fit_scale(after * 3)  # of what it gives now, whatever the scale was
    torch.testing.assert_close(codec.encode(audio), after / 3 / after.std())
    torch.testing.assert_close(codec.decode(codec.encode(audio)), sound, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="standard deviation of 0"):
        codec.fit_scale(torch.zeros_like(after))


def test_a_generator_draws_from_the_posterior_the_same_each_time(codec) -> None:
    audio = torch.randn(1, codec.channels, 400)
    drawn = [codec.encode(audio, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], codec.encode(audio))


def test_wrong_channels_are_refused(codec) -> None:
    with pytest.raises(InputError, match=rf"\[B, {codec.channels}, N\]"):
        codec.encode(torch.randn(1, 3, 400))


def test_sizes_that_do_not_fit_are_named() -> None:
    config = tiny("lafma").mel_autoencoder
    with pytest.raises(InputError, match="make 20 samples of a frame, but mel.hop_length is 24"):
        dataclasses.replace(config, mel=dataclasses.replace(config.mel, hop_length=24))
    with pytest.raises(InputError, match="multiples of norm_groups, 32"):
        dataclasses.replace(config, channels=(32, 40))
    with pytest.raises(InputError, match="scale_factor is 0"):
        dataclasses.replace(config, scale_factor=0.0)
