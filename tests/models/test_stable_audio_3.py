"""Stable Audio 3: sounds equal those of diffusers' pipeline, directories go both ways, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_audio_3 import StableAudio3DurationEmbedder
from torch import Tensor

from audiogen.convert.__main__ import main as convert
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.dit3 import AudioDiT3, DiT3Config
from audiogen.diffusion.same import LATENT_NOISE, SameAutoencoder, SameAutoencoderConfig
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.request import noise_seed
from audiogen.interfaces import Condition, Edit, Sampling
from audiogen.models.diffusers import save_diffusers
from audiogen.models.released import load_released, read_released
from audiogen.models.systems import Released
from audiogen.packed import Linear, can_pack
from audiogen.text.t5 import TextConfig
from tests import random_t5gemma
from tests.diffusion.tiny_systems import tiny

RATE, HOP = 8000, 8
TEXT = "a dog, far away"


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def randomise(module: torch.nn.Module, size: float) -> None:
    """No weight stays 0: new ones are, in many layers of both networks."""
    random = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        weight.copy_(size * torch.randn(weight.shape, generator=random))


def make_pipeline(stochastic: bool = True, differential: bool = False) -> Any:
    text_encoder, tokenizer = random_t5gemma.components(24)
    vae = diffusers.AutoencoderSAME(
        patch_size=4, encoder_channels=8, encoder_c_mults=[2], encoder_strides=[2], encoder_transformer_depths=[2],
        latent_dim=6, dim_heads=8, decoder_sinusoidal_blocks=[2], sampling_rate=RATE,
    )  # fmt: skip
    dit = diffusers.StableAudio3DiTModel(
        io_channels=6, embed_dim=32, depth=2, num_heads=2, cond_token_dim=24, global_cond_dim=24, local_add_cond_dim=7,
        timestep_features_dim=16, ff_mult=2.0, num_memory_tokens=3, use_differential_attention=differential,
    )  # fmt: skip
    seconds = StableAudio3DurationEmbedder(24)
    randomise(vae, 0.1)
    randomise(dit, 0.2)
    vae.bottleneck.running_std.fill_(0.7)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1, stochastic_sampling=stochastic
    )
    pipe = diffusers.StableAudio3Pipeline(
        vae.eval(), text_encoder, tokenizer, seconds.eval(), dit.eval(), scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline()


@pytest.fixture(scope="module")
def released(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released")
    pipeline.save_pretrained(folder)
    return folder


def theirs(pipe: Any, text: str, duration_s: float, seed: int, **asked: Any) -> Tensor:
    """Its sound [B, C, N], from the noises that ours draws for that text and seed."""
    random = torch.Generator().manual_seed(noise_seed(seed, text))
    return pipe(text, duration_s, generator=random, **asked).audios


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value; and a sound at all, which is not cut off at full scale."""
    assert found.shape == expected.shape and 1e-3 < expected.abs().max() < 1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(("steps", "guidance"), [(None, None), (3, None), (4, 2.5)])
def test_a_sound_is_that_of_diffusers_with_the_noise_of_every_step(
    steps: int | None, guidance: float | None, pipeline: Any, released: Path
) -> None:
    """Ping-pong, 8 steps without guidance where nothing is asked, from the text to the samples."""
    ours = LatentGenerator.from_pretrained(released, "cpu")
    found = ours.generate([TEXT], 0.0453, seed=5, guidance=guidance, sampling=Sampling(steps=steps))
    asked = {"num_inference_steps": steps, "guidance_scale": guidance or 1.0}
    assert_equal(found, theirs(pipeline, TEXT, 0.0453, 5, **asked))
    assert ours.sampling().steps == 8 and ours.sampling().sampler == "ping_pong" and ours.guidance == 1.0


def test_the_release_that_is_not_distilled_is_sampled_by_euler(tmp_path: Path) -> None:
    pipe = make_pipeline(stochastic=False, differential=True)
    pipe.save_pretrained(tmp_path)
    ours = LatentGenerator.from_pretrained(tmp_path, "cpu")
    assert (ours.sampling().sampler, ours.sampling().steps) == ("euler", 100)
    found = ours.generate([TEXT], 0.05, seed=2, sampling=Sampling(steps=5))
    assert_equal(found, theirs(pipe, TEXT, 0.05, 2, num_inference_steps=5))
    ours.save_pretrained(tmp_path / "again")
    scheduler = json.loads((tmp_path / "again/scheduler/scheduler_config.json").read_text())
    assert scheduler["stochastic_sampling"] is False and scheduler["num_train_timesteps"] == 1


@pytest.mark.parametrize("command", [True, False])
def test_what_we_save_is_the_same_sound_here_and_in_diffusers(
    command: bool, released: Path, tmp_path: Path
) -> None:
    ours = LatentGenerator.from_pretrained(released, "cpu")
    expected = ours.generate([TEXT], 0.05, seed=1)
    if command:
        assert convert([str(released), "--to", "diffusers", "-o", str(tmp_path / "out")]) == 0
    else:
        ours.save_pretrained(tmp_path / "out")
    again = LatentGenerator.from_pretrained(tmp_path / "out", "cpu")
    assert torch.equal(again.generate([TEXT], 0.05, seed=1), expected)
    pipe = diffusers.StableAudio3Pipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert_equal(theirs(pipe, TEXT, 0.05, 1), expected)
    assert type(pipe.text_encoder).__name__ == "T5GemmaEncoderModel"


def test_a_scale_of_ours_is_in_the_weights_that_diffusers_decodes_with(tmp_path: Path) -> None:
    """A trained autoencoder has one, and diffusers' pipeline none."""
    random_t5gemma.write(tmp_path / "text", 24)
    config = tiny("stable_audio_3")
    text = TextConfig(str(tmp_path / "text"), width=24, max_tokens=64)
    conditioner = dataclasses.replace(config.conditioner, text=text)
    system = LatentSystem(dataclasses.replace(config, conditioner=conditioner)).eval()
    randomise(system.autoencoder.vae, 0.2)
    randomise(system.denoiser, 0.2)
    system.autoencoder.scale_factor.fill_(2.5)
    latents = torch.randn(1, 4, 20, generator=torch.Generator().manual_seed(1))
    expected = system.autoencoder.decode(latents)
    save_diffusers(tmp_path / "out", system, "stable_audio_3", {})
    torch.testing.assert_close(system.autoencoder.decode(latents), expected)
    pipe = diffusers.StableAudio3Pipeline.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(pipe.vae.decode(latents).sample, expected, rtol=1e-5, atol=1e-6)
    sound = torch.randn(1, 2, 160, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(pipe.vae.encode(sound).latents, system.autoencoder.encode(sound))


def test_a_part_is_made_anew_a_sound_changed_and_a_loop_closed(released: Path) -> None:
    """By what all latent systems have: the pipeline's own way of inpainting is not implemented."""
    ours = LatentGenerator.from_pretrained(released, "cpu")
    sound = 0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(3))
    parts = Edit(sound, RATE, inpaint=((0.4, 0.6),))
    changed = ours.generate([TEXT], 1.0, edit=parts)[0]
    kept = torch.cat([changed[:, :3000], changed[:, 5000:]], dim=1)
    torch.testing.assert_close(kept, torch.cat([sound[:, :3000], sound[:, 5000:]], dim=1))
    assert not torch.allclose(changed[:, 3500:4500], sound[:, 3500:4500], atol=1e-2)
    assert ours.generate([TEXT], 1.0, edit=Edit(sound, RATE, strength=0.5)).isfinite().all()
    assert ours.generate([TEXT], 0.5, sampling=Sampling(loop=True)).shape == (1, 2, 4000)


@pytest.mark.skipif(
    not can_pack(torch.device("cpu"), torch.bfloat16), reason="no bfloat16 kernels for this CPU"
)
def test_in_bfloat16_the_products_are_packed_and_the_sound_stays_near(released: Path) -> None:
    exact = LatentGenerator.from_pretrained(released, "cpu")
    ours = LatentGenerator.from_pretrained(released, "cpu", "bfloat16")
    before = exact.generate([TEXT], 0.5, seed=4)
    found = ours.generate([TEXT], 0.5, seed=4)
    assert 1e-4 * before.norm() < (found - before).norm() < 0.05 * before.norm()
    layers = [
        layer
        for part in (ours.system.denoiser, ours.system.autoencoder.vae.decoder)
        for layer in part.modules()
        if isinstance(layer, Linear)
    ]
    assert len(layers) > 20 and all(layer.packed.dtype == torch.bfloat16 for layer in layers)
    assert torch.equal(ours.generate([TEXT], 0.5, seed=4), found)
    weights = ours.system.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in exact.system.state_dict().items())
    again = LatentGenerator(Released(ours.system, "stable_audio_3", {}), "cpu", "float32")
    assert torch.equal(again.generate([TEXT], 0.5, seed=4), before)  # the same system in another number type


# ------------------------------------------------------------------------------------------------- the parts


def random_inputs(config: DiT3Config, lengths: list[int]) -> tuple[Tensor, Tensor, Conditioning]:
    random = torch.Generator().manual_seed(1)
    rows, longest = len(lengths), 8
    tokens = torch.randn(rows, longest, config.cross_dim, generator=random)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    mask[:, -1] = True  # the seconds come after the padding
    vector = torch.randn(rows, config.vector_dim, generator=random)
    x = torch.randn(rows, config.latent_dim, 9, generator=random)
    return x, torch.rand(rows, generator=random), Conditioning((Condition(tokens, mask),), vector)


@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize("lengths", [[3, 5], [8, 1], [8, 8]])
def test_the_transformer_with_one_token_for_all_padding_is_that_of_diffusers(
    lengths: list[int], differential: bool
) -> None:
    network = AudioDiT3(DiT3Config(6, 2, 2, 16, 2.0, 24, 20, 3, 10, differential)).eval()
    randomise(network, 0.3)
    x, t, conditioning = random_inputs(network.config, lengths)
    (stream,) = conditioning.streams
    expected = network.network(
        x, t, encoder_hidden_states=stream.tokens, global_hidden_states=conditioning.vector,
        encoder_attention_mask=stream.mask,
    ).sample  # fmt: skip
    found = network(x, t, conditioning)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    hidden = Condition(torch.where(stream.mask[..., None], stream.tokens, 9.0), stream.mask)
    assert torch.equal(network(x, t, Conditioning((hidden,), conditioning.vector)), found)
    for row in range(len(lengths)):
        alone = network(x[row : row + 1], t[row : row + 1], conditioning.rows([row]))
        torch.testing.assert_close(alone, found[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("differential", [False, True])
@pytest.mark.parametrize(
    "sizes",
    [
        {"multiples": (2,), "strides": (3,), "depths": (2,), "encoder_sines": (0,), "decoder_sines": (2,)},
        {"multiples": (2, 3), "strides": (2, 3), "depths": (2, 1), "encoder_sines": (0, 0), "decoder_sines": (0, 0),
         "window": 2},
    ],
)  # fmt: skip
@pytest.mark.parametrize("frames", [1, 11, 40])
def test_the_autoencoder_with_attention_in_blocks_is_that_of_diffusers(
    frames: int, sizes: dict[str, Any], differential: bool
) -> None:
    config = SameAutoencoderConfig(8000, 2, 4, 6, 8, **{"head_dim": 8, "differential": differential} | sizes)
    ours = SameAutoencoder(config).eval()
    randomise(ours.vae, 0.3)
    ours.vae.bottleneck.running_std.fill_(1.7)
    reference = diffusers.AutoencoderSAME(
        2, 4, 8, list(config.multiples), list(config.strides), list(config.depths), 6, differential, 8, 3,
        config.window, list(config.encoder_sines), list(config.decoder_sines), 8000,
    ).eval()  # fmt: skip
    reference.load_state_dict(ours.vae.state_dict())
    sound = torch.randn(2, 2, config.hop_length * frames - 3, generator=torch.Generator().manual_seed(4))
    latents, expected = ours.encode(sound), reference.encode(sound).latents
    assert latents.shape == (2, 6, frames)
    assert (latents - expected).abs().max() < 1e-5 * expected.abs().max()
    decoded, expected = ours.decode(latents), reference.decode(latents).sample
    assert decoded.shape == (2, 2, frames * config.hop_length)
    assert (decoded - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_latent_reaches_no_further_than_its_window_in_each_layer() -> None:
    ours = SameAutoencoder(tiny("stable_audio_3").same_autoencoder).eval()  # 2 layers of 1 frame
    randomise(ours.vae, 0.3)
    latents = torch.randn(1, 4, 30, generator=torch.Generator().manual_seed(5))
    other = latents.clone()
    other[..., 12] += 1.0
    change = (ours.decode(latents) - ours.decode(other)).abs().sum(1)[0].reshape(30, 8).sum(1)
    # 3 tokens a frame, of which the first is the latent: those 6 before it to 6 after it
    assert (change > 0).nonzero().flatten().tolist() == [10, 11, 12, 13]


def test_training_draws_latents_near_their_mean() -> None:
    ours = SameAutoencoder(tiny("stable_audio_3").same_autoencoder).eval()
    randomise(ours.vae, 0.3)
    sound = torch.randn(1, 2, 8000, generator=torch.Generator().manual_seed(6))
    drawn = ours.encode(sound, torch.Generator().manual_seed(7))
    assert (drawn - ours.encode(sound)).std().item() == pytest.approx(LATENT_NOISE, rel=0.05)


# ------------------------------------------------------------------------------------------------- bad files


def change(path: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        contents = json.loads((folder / path).read_text())
        (folder / path).write_text(json.dumps(contents | values))

    return edit


def without(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without("duration_embedder"), "lacks duration_embedder"),
        (without("text_encoder"), "lacks text_encoder"),
        (change("scheduler/scheduler_config.json", shift=3.0), "shift is 3.0; only 1.0"),
        (change("scheduler/scheduler_config.json", _class_name="PNDMScheduler"), "_class_name is 'PNDMScheduler'"),
        (change("transformer/config.json", patch_size=2), "patch_size is 2"),
        (change("transformer/config.json", depth=3), "missing transformer_blocks.2"),
        (change("transformer/config.json", embed_dim=36), "head_dim is 18"),
        (change("transformer/config.json", io_channels=5), "latents of width 6, the denoiser takes 5"),
        (change("vae/config.json", encoder_strides=[2, 2]), "a level needs one of each"),
        (change("vae/config.json", dim_heads=10), "must be a multiple of 4 that divides"),
        (change("vae/config.json", sampling_rate=0), "sampling_rate is 0"),
        (change("vae/config.json", decoder_conv_mapping=True), "decoder_conv_mapping is True"),
        (change("duration_embedder/config.json", max_val=-1.0), "seconds are 0 to -1"),
        (change("duration_embedder/config.json", fourier_dim=64), "fourier_dim is 64"),
        (change("text_encoder/config.json", model_type="bert"), "model_type 'bert'"),
        (change("text_encoder/config.json", encoder={"hidden_size": 24, "head_dim": 5}), "must be multiples of"),
    ],
)  # fmt: skip
def test_a_damaged_directory_costs_one_line(
    damage: Callable[[Path], None], said: str, released: Path, tmp_path: Path
) -> None:
    shutil.copytree(released, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=said) as caught:
        load_released(tmp_path / "model").system.conditioner.text(["a"])
    assert "\n" not in str(caught.value)


def test_the_sizes_are_read_without_the_weights(released: Path) -> None:
    parts = read_released(released)
    assert parts.config.dit3 == DiT3Config(6, 2, 2, 16, 2.0, 24, 24, 3, 16)
    assert parts.config.conditioner.padding == "masked" and parts.config.conditioner.text_length == 256
    assert parts.process == {"time_scale": 1.0} and parts.sampling is None
