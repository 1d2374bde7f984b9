"""Adapters of the denoisers: conditioning they refuse, independent rows."""

import dataclasses

import pytest
import torch

from audiogen.config import build, to_plain
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.denoisers import AudioUNet, AudioUNetConfig, denoiser
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from tests.diffusion.tiny_systems import RECIPES, tiny


def make(name: str, **changes):
    torch.manual_seed(0)
    config = dataclasses.replace(tiny(name).denoiser, **changes)
    shape = (4, 9, 8) if tiny(name).mel_autoencoder else (4, 9)
    return denoiser(config).eval().requires_grad_(False), config, shape


def random_conditioning(config, batch: int, length: int) -> Conditioning:
    cross = tuple(
        Condition(torch.randn(batch, length, width), torch.ones(batch, length, dtype=torch.bool))
        for width in config.cross_dims
    )
    return Conditioning(cross, None if config.vector_dim is None else torch.randn(batch, config.vector_dim))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_stream_the_vector_and_the_time_reach_the_output(name: str) -> None:
    network, config, shape = make(name)
    conditioning, x, t = random_conditioning(config, 2, 5), torch.randn(2, *shape), torch.tensor([0.2, 0.7])
    found = network(x, t, conditioning)
    assert found.shape == x.shape
    assert not torch.allclose(network(x, t.flip(0), conditioning), found, atol=1e-6)
    for i, stream in enumerate(conditioning.streams):
        other = list(conditioning.streams)
        other[i] = Condition(torch.randn_like(stream.tokens), stream.mask)
        assert not torch.allclose(
            network(x, t, Conditioning(tuple(other), conditioning.vector)), found, atol=1e-6
        ), i
    if conditioning.vector is not None:
        other = Conditioning(conditioning.streams, torch.randn_like(conditioning.vector))
        assert not torch.allclose(network(x, t, other), found, atol=1e-6)


@pytest.mark.parametrize("name", ["audioldm2", "lafma", "tango", "tangoflux"])
def test_a_row_does_not_depend_on_longer_texts_beside_it(name: str) -> None:
    """The diffusion transformer of Stable Audio has no mask; its texts are padded to one length."""
    network, config, shape = make(name)
    short, long = random_conditioning(config, 1, 3), random_conditioning(config, 1, 6)
    cross = tuple(
        Condition(
            torch.cat([torch.nn.functional.pad(a.tokens, (0, 0, 0, 3), value=9.0), b.tokens]),
            torch.cat([torch.nn.functional.pad(a.mask, (0, 3)), b.mask]),
        )
        for a, b in zip(short.streams, long.streams, strict=True)
    )
    vector = None if short.vector is None else torch.cat([short.vector, long.vector])
    x, t = torch.randn(2, *shape), torch.tensor([0.2, 0.7])
    both = network(x, t, Conditioning(cross, vector))
    torch.testing.assert_close(both[:1], network(x[:1], t[:1], short), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[1:], network(x[1:], t[1:], long), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["stable_audio", "tangoflux"])
def test_a_transformer_takes_the_bins_of_a_mel_frame_as_one_vector(name: str) -> None:
    """Latents [B, D, T, M] are to it what [B, D * M, T] are: each frame with the bins of each channel side by side."""
    network, config, _ = make(name, latent_dim=12)
    conditioning, x, t = random_conditioning(config, 2, 5), torch.randn(2, 4, 9, 3), torch.tensor([0.2, 0.7])
    found = network(x, t, conditioning)
    frames = torch.stack([x[..., 0], x[..., 1], x[..., 2]], dim=2).reshape(2, 12, 9)
    expected = network(frames, t, conditioning)
    assert found.shape == x.shape
    for channel in range(4):
        for place in range(3):
            assert torch.equal(found[:, channel, :, place], expected[:, 3 * channel + place])


def test_former_configurations_open_and_channels_beside_the_latents_are_refused() -> None:
    values = to_plain(tiny("lafma").audio_unet)
    assert build(AudioUNetConfig, values | {"extra_channels": 0}) == tiny("lafma").audio_unet
    with pytest.raises(InputError, match="extra_channels: got 3; allowed: 0"):
        build(AudioUNetConfig, values | {"extra_channels": 3})


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_conditioning_that_the_network_lacks_are_refused(name: str) -> None:
    network, config, shape = make(name)
    conditioning, x, t = random_conditioning(config, 2, 5), torch.randn(2, *shape), torch.zeros(2)
    extra = Conditioning(
        (*conditioning.streams, Condition(torch.zeros(2, 1, 24), torch.ones(2, 1) > 0)), conditioning.vector
    )
    with pytest.raises(ValueError, match=f"{len(conditioning.streams) + 1} streams"):
        network(x, t, extra)
    with pytest.raises(ValueError, match="vector of 7"):
        network(x, t, Conditioning(conditioning.streams, torch.zeros(2, 7)))


@pytest.mark.parametrize(
    "layers",
    [
        (None, 12, None, 10),
        (None, None, 12, 10),
        (None, None, None, 12, None, 10),
        (None, 12, 10, None, None),
    ],
)
def test_attention_layers_without_text_anywhere_leave_the_two_streams_as_they_are(layers) -> None:
    """Each stream changes the prediction, masked tokens do not, and self-attention takes no text."""
    torch.manual_seed(0)
    config = AudioUNetConfig(
        latent_dim=4,
        channels=(32, 32),
        heads=(2, 2),
        attention=(False, True),
        layers=layers,
        num_res_blocks=1,
        vector_dim=None,
    )
    assert config.cross_dims == (12, 10)
    network = AudioUNet(config).eval()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    first, second = torch.randn(2, 5, 12), torch.randn(2, 6, 10)
    mask = torch.arange(6)[None] < torch.tensor([[6], [3]])

    def prediction(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        streams = (Condition(one, torch.ones(2, 5, dtype=torch.bool)), Condition(two, mask))
        with torch.no_grad():
            return network(x, t, Conditioning(streams))

    usual = prediction(first, second)
    assert not torch.allclose(prediction(first + 1, second), usual, atol=1e-4)
    assert not torch.allclose(prediction(first, second + 1), usual, atol=1e-4)
    hidden = second.clone()
    hidden[1, 3:] += 100
    torch.testing.assert_close(prediction(first, hidden), usual)


def test_layers_beyond_those_of_diffusers_compute_what_its_own_would() -> None:
    """Layers that diffusers can run, run by our routing of streams: the same network, the same prediction."""
    torch.manual_seed(0)
    sizes = {
        "latent_dim": 4,
        "channels": (32, 32),
        "heads": (2, 2),
        "attention": (False, True),
        "num_res_blocks": 1,
    }
    config = AudioUNetConfig(**sizes, layers=(None, 12, None, 10), vector_dim=None)

    class Ours(AudioUNetConfig):
        beyond_diffusers = True

    theirs, ours = (
        AudioUNet(config).eval(),
        AudioUNet(Ours(**sizes, layers=config.layers, vector_dim=None)).eval(),
    )
    ours.load_state_dict(theirs.state_dict())
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    mask = torch.arange(6)[None] < torch.tensor([[6], [3]])
    streams = Condition(torch.randn(2, 6, 12), mask), Condition(torch.randn(2, 6, 10), mask)
    with torch.no_grad():
        assert torch.equal(ours(x, t, Conditioning(streams)), theirs(x, t, Conditioning(streams)))


@pytest.mark.parametrize(
    ("attention", "positions"), [((True, True), 128), ((False, True), 32), ((False, False), 32)]
)
def test_positions_are_those_of_the_first_level_that_attends(
    attention: tuple[bool, ...], positions: int
) -> None:
    config = AudioUNetConfig(4, (8, 8), (2, 2), attention, vector_dim=None, num_res_blocks=1, norm_groups=4)
    network, seen = AudioUNet(config), []
    x_t = torch.randn(1, 4, 16, 8)
    for layer in network.modules():
        if type(layer).__name__ == "Attention":
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape[1]))
    network(x_t, torch.tensor([5.0]), Conditioning())
    assert network.num_positions(x_t) == max(seen) == positions


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_gradients_in_bfloat16_are_near_those_in_float32(name: str) -> None:
    network, config, shape = make(name)
    conditioning, x, t = random_conditioning(config, 2, 5), torch.randn(2, *shape), torch.tensor([0.2, 0.7])
    weights = [weight.requires_grad_() for weight in network.parameters() if weight.is_floating_point()]
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network(x, t, conditioning).float().square().sum()
        gradients.append(torch.autograd.grad(loss, weights, allow_unused=True))
    pairs = [pair for pair in zip(*gradients, strict=True) if pair[0] is not None]
    exact, rounded = (torch.cat([each.flatten() for each in part]) for part in zip(*pairs, strict=True))
    assert len(pairs) > 10 and 0 < (rounded - exact).norm() < 0.05 * exact.norm()
