"""Oobleck's activation in few passes: the same as diffusers' in values and gradients, under its names."""

import copy

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck, Snake1d

from audiogen.diffusion.autoencoders import WaveformAutoencoder, WaveformAutoencoderConfig
from audiogen.snake import Snake, use_snakes


def _pair() -> tuple[Snake1d, Snake]:
    torch.manual_seed(0)
    plain = Snake1d(6)
    plain.alpha.data.normal_()
    plain.beta.data.normal_()
    return plain, Snake(copy.deepcopy(plain))


def test_values_and_gradients_are_those_of_diffusers() -> None:
    x, weight = torch.randn(3, 6, 40, requires_grad=True), torch.randn(3, 6, 40)
    results = []
    for snake in _pair():
        y = snake(x)
        results.append([y, *torch.autograd.grad((y * weight).sum(), [x, snake.alpha, snake.beta])])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)


def test_gradients_are_those_of_the_values() -> None:
    _, snake = _pair()
    x = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(snake.double(), (x,))


def test_bfloat16_stays_bfloat16() -> None:
    plain, ours = _pair()
    x = torch.randn(2, 6, 40).bfloat16()
    found = ours(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain(x.float()), rtol=1e-2, atol=1e-2)


def test_the_autoencoder_uses_it() -> None:
    config = WaveformAutoencoderConfig(channels=1, latent_dim=4, width=4, multiples=(1, 2), strides=(2, 4))
    ours = WaveformAutoencoder(config).vae
    kinds = {type(part) for part in ours.modules()}
    assert Snake in kinds and Snake1d not in kinds
    plain = AutoencoderOobleck(8, [2, 4], [1, 2], 4, 4, 1)
    assert list(ours.state_dict()) == list(plain.state_dict())  # the same names in the same order
    use_snakes(plain, Snake1d)
    assert {type(part) for part in plain.modules()} == kinds
