"""Stable Audio 3 in its authors' files: the sounds are diffusers' of the same weights, and attention goes by chunks."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from audiogen.convert.__main__ import main as convert
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.dit3 import AudioDiT3, DiT3Config
from audiogen.diffusion.same import SameAutoencoder, SameAutoencoderConfig
from audiogen.errors import InputError
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Condition, Sampling
from audiogen.models.released import load_released
from tests import random_t5gemma
from tests.models.test_stable_audio_3 import TEXT, assert_equal, make_pipeline, randomise, theirs

SIDE = {
    "channels": 8, "c_mults": [2], "strides": [2], "latent_dim": 6, "transformer_depths": [2], "dim_heads": 8,
    "checkpointing": False, "differential": True, "dyt": True, "variable_stride": True, "mask_noise": 0.01,
}  # fmt: skip
NEAR = {"sliding_window": [1, 1]}  # as SAME-L
CHUNKS = {"chunk_size": 4, "chunk_midpoint_shift": True}  # as SAME-S: two segments
CONFIG: dict[str, Any] = {
    "model_type": "diffusion_cond_inpaint",
    "sample_size": 16_777_216,
    "sample_rate": 8000,
    "audio_channels": 2,
    "model": {
        "io_channels": 6,
        "pretransform": {
            "type": "autoencoder",
            "iterate_batch": True,
            "config": {
                "pretransform": {"type": "patched", "config": {"patch_size": 4, "channels": 2}},
                "encoder": {"type": "same", "config": {"in_channels": 8, **SIDE, **NEAR}},
                "decoder": {"type": "same", "config": {"out_channels": 8, "sinusoidal_blocks": [2], **SIDE, **NEAR}},
                "bottleneck": {
                    "type": "softnorm",
                    "config": {"dim": 6, "noise_augment_dim": 0, "noise_regularize": True, "auto_scale": True},
                },
                "latent_dim": 6,
                "downsampling_ratio": 8,
                "io_channels": 2,
            },
        },
        "conditioning": {
            "configs": [
                {"id": "prompt", "type": "t5gemma", "config": {
                    "max_length": 256, "padding_mode": "learned", "repo_id": "org/model",
                    "subfolder": "t5gemma-b-b-ul2"}},
                {"id": "seconds_total", "type": "number", "config": {
                    "min_val": 0, "max_val": 384, "fourier_features_type": "expo"}},
            ],
            "cond_dim": 24,
        },
        "diffusion": {
            "type": "dit",
            "diffusion_objective": "rf_denoiser",
            "cross_attention_cond_ids": ["prompt", "seconds_total"],
            "global_cond_ids": ["seconds_total"],
            "mask_padding_attention": True,
            "distribution_shift_options": {"type": "full", "min_length": 256},
            "sampling_distribution_shift_options": None,
            "config": {
                "io_channels": 6, "embed_dim": 32, "depth": 2, "num_heads": 2, "cond_token_dim": 24,
                "global_cond_dim": 24, "local_add_cond_dim": 7, "transformer_type": "continuous_transformer",
                "global_cond_type": "adaLN", "timestep_features_type": "expo", "timestep_features_dim": 16,
                "attn_kwargs": {"qk_norm": "rms", "differential": True}, "norm_type": "rms_norm",
                "norm_kwargs": {"force_fp32": True}, "ff_kwargs": {"mult": 2.0}, "num_memory_tokens": 3,
            },
        },
    },
    "training": {"use_ema": True, "demo": {"demo_steps": 8}},
}  # fmt: skip
BOTH_SIDES = [("encoder", "config"), ("decoder", "config")]


def in_their_order(name: str, tensor: Tensor) -> Tensor:
    """diffusers has queries, queries, keys, keys and values; the authors queries, keys, values, queries, keys."""
    if not name.endswith("to_qkv.weight") or len(tensor) % 5:
        return tensor
    q, q2, k, k2, v = tensor.chunk(5)
    return torch.cat([q, k, v, q2, k2])


def authors_tensors(vae: Any, dit: Any, seconds: Any) -> dict[str, Tensor]:
    """Under the names of the authors' file, as diffusers' script that converts it has them the other way round."""
    tensors: dict[str, Tensor] = {"pretransform.model.bottleneck.noise_scaling_factor": torch.ones(1, 0, 1)}
    for name, tensor in vae.state_dict().items():
        tensor = in_their_order(name, tensor)
        for ours, other in [
            ("encoder.blocks.0.", "encoder.layers.0."), ("encoder.proj.", "encoder.layers.2."),
            ("decoder.blocks.0.", "decoder.layers.3."), ("decoder.proj.", "decoder.layers.1."),
            (".norm_attn.", ".pre_norm."), (".attn.", ".self_attn."), (".norm_ff.", ".ff_norm."),
            (".ff.proj_in.", ".ff.ff.0.proj."), (".ff.proj_out.", ".ff.ff.2."), (".scale", ".scaling_factor"),
        ]:  # fmt: skip
            name = name.replace(ours, other)
        tensors[f"pretransform.model.{name}"] = tensor
        if name.endswith("ff_norm.alpha"):
            tensors[f"pretransform.model.{name.removesuffix('ff_norm.alpha')}rope.inv_freq"] = torch.ones(2)
    for name, tensor in dit.state_dict().items():
        tensor = in_their_order(name, tensor)
        if name == "prompt_padding_embedding":
            tensors["conditioner.conditioners.prompt.padding_embedding"] = tensor
            continue
        name = name.replace(".ff.proj_in.", ".ff.ff.0.proj.").replace(".ff.proj_out.", ".ff.ff.2.")
        name = name.replace("transformer_blocks.", "transformer.layers.").replace(
            "proj_in.", "transformer.project_in."
        )
        name = name.replace("proj_out.", "transformer.project_out.")
        if name.startswith(("memory_tokens", "rotary_pos_emb", "global_cond_embedder")):
            name = f"transformer.{name}"
        tensors[f"model.model.{name}"] = tensor
    for kind in ("weight", "bias"):
        name = f"conditioner.conditioners.seconds_total.embedder.embedding.1.{kind}"
        tensors[name] = seconds.state_dict()[f"linear.{kind}"]
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    random_t5gemma.write(folder / "t5gemma-b-b-ul2", 24)
    return folder


@pytest.fixture(scope="module", autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return make_pipeline(differential=True)


@pytest.fixture(scope="module")
def release(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = authors_tensors(pipeline.vae, pipeline.transformer, pipeline.duration_embedder)
    return write(tmp_path_factory.mktemp("authors"), CONFIG, tensors)


def test_a_sound_is_that_of_diffusers_with_the_same_weights(
    pipeline: Any, release: Path, tmp_path: Path
) -> None:
    """With a window, and without the branch for inpainting, which are what diffusers has."""
    ours = LatentGenerator.from_pretrained(release, "cpu")
    expected = theirs(pipeline, TEXT, 0.0453, 5)
    assert_equal(ours.generate([TEXT], 0.0453, seed=5), expected)
    assert (ours.sampling().sampler, ours.sampling().steps) == ("ping_pong", 8)
    assert convert([str(release), "--to", "diffusers", "-o", str(tmp_path / "out")]) == 0
    pipe = diffusers.StableAudio3Pipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    assert_equal(theirs(pipe, TEXT, 0.0453, 5), expected)


def small(release: Path, folder: Path) -> Path:
    """As the small releases: chunks, a last layer of three taps, zeros for the branch for inpainting; not distilled."""
    config = copy.deepcopy(CONFIG)
    diffusion, sides = config["model"]["diffusion"], config["model"]["pretransform"]["config"]
    diffusion["local_add_cond_ids"] = ["inpaint_mask", "inpaint_masked_input"]
    diffusion["diffusion_objective"] = "rectified_flow"
    for side, key in BOTH_SIDES:
        del sides[side][key]["sliding_window"]
        sides[side][key] |= CHUNKS
    sides["decoder"]["config"]["conv_mapping"] = True
    tensors = load_file(release / "model.safetensors")
    taps = 0.2 * torch.randn(8, 16, 3, generator=torch.Generator().manual_seed(8))
    tensors["pretransform.model.decoder.layers.3.mapping.weight_v"] = taps
    return write(folder, config, tensors)


def test_the_small_release_goes_through_its_own_layers_and_is_kept_by_our_format(
    release: Path, tmp_path: Path
) -> None:
    ours = LatentGenerator.from_pretrained(small(release, tmp_path / "small"), "cpu")
    same, dit = ours.system.config.same_autoencoder, ours.system.config.dit3
    assert (same.chunk, same.kernel, dit.inpaints) == (2, 3, True)
    assert (ours.sampling().sampler, ours.sampling().steps) == ("euler", 100)
    sound = ours.generate([TEXT], 0.0453, seed=5, sampling=Sampling(steps=3))
    windowed = LatentGenerator.from_pretrained(release, "cpu")
    assert not torch.allclose(
        sound,
        windowed.generate([TEXT], 0.0453, seed=5, sampling=Sampling(sampler="euler", steps=3)),
        atol=1e-3,
    )
    ours.save_pretrained(tmp_path / "again")
    again = LatentGenerator.from_pretrained(tmp_path / "again", "cpu")
    assert torch.equal(again.generate([TEXT], 0.0453, seed=5, sampling=Sampling(steps=3)), sound)


def test_the_branch_for_inpainting_gets_zeros_as_diffusers_can_be_told_to() -> None:
    network = AudioDiT3(DiT3Config(6, 2, 2, 16, 2.0, 24, 20, 3, 10, True, True)).eval()
    randomise(network, 0.3)
    random = torch.Generator().manual_seed(1)
    tokens, vector = torch.randn(2, 5, 24, generator=random), torch.randn(2, 20, generator=random)
    x, t = torch.randn(2, 6, 9, generator=random), torch.rand(2, generator=random)
    mask = torch.ones(2, 5, dtype=torch.bool)
    asked = {"encoder_hidden_states": tokens, "global_hidden_states": vector, "encoder_attention_mask": mask}
    expected = network.network(x, t, local_add_cond=torch.zeros(2, 7, 9), **asked).sample
    found = network(x, t, Conditioning((Condition(tokens, mask),), vector))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (network.network(x, t, **asked).sample - expected).abs().max() > 1e-2 * expected.abs().max()


# ------------------------------------------------------------------------------------- attention within chunks


def squash(x: Tensor, norm: Any) -> Tensor:
    return norm.gamma * torch.tanh(norm.alpha * x) + norm.beta


def plain_layer(layer: Any, x: Tensor) -> Tensor:
    """One layer over tokens [n, D] that all see one another, written out for each head."""
    attention, (length, _) = layer.attn, x.shape
    size = attention.dim_heads
    q, q2, k, k2, v = attention.to_qkv(squash(x, layer.norm_attn)).chunk(5, dim=1)
    angles = torch.outer(torch.arange(length), 10000.0 ** -(torch.arange(0, size // 2, 2) / (size // 2)))

    def turned(part: Tensor, norm: Any) -> Tensor:
        part, quarter = squash(part, norm), size // 4
        a, b, rest = part[:, :quarter], part[:, quarter : 2 * quarter], part[:, 2 * quarter :]
        return torch.cat(
            [a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin(), rest], dim=1
        )

    heads = []
    for at in range(0, v.shape[1], size):
        one = slice(at, at + size)
        shares = [
            torch.softmax(
                turned(a[:, one], attention.q_norm) @ turned(b[:, one], attention.k_norm).T / size**0.5, 1
            )
            for a, b in ((q, k), (q2, k2))
        ]
        heads.append((shares[0] - shares[1]) @ v[:, one])
    x = x + attention.to_out(torch.cat(heads, dim=1))
    value, gate = layer.ff.proj_in(squash(x, layer.norm_ff)).chunk(2, dim=1)
    return x + layer.ff.proj_out(value * F.silu(gate))


def plain_layers(level: Any, segments: list[Tensor], chunk: int) -> list[Tensor]:
    """Segments [stride + 1, D] in turn: half of the layers by chunks, the others by chunks half a one later."""
    half, middle = chunk // 2, len(level.transformers) // 2
    for layers, moved in ((level.transformers[:middle], False), (level.transformers[middle:], True)):
        if moved:
            segments = [*segments[:half], *segments, *segments[-half:]]
        made = []
        for at in range(0, len(segments), chunk):
            x = torch.cat(segments[at : at + chunk])
            for layer in layers:
                x = plain_layer(layer, x)
            made += x.split(level.stride + 1)
        segments = made[half:-half] if moved else made
    return segments


@pytest.mark.parametrize("chunk", [2, 4])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_attention_within_chunks_is_what_a_loop_over_chunks_computes(frames: int, chunk: int) -> None:
    config = SameAutoencoderConfig(
        8000, 2, 4, 6, 8, multiples=(2,), strides=(2,), depths=(3,), head_dim=8, chunk=chunk, kernel=3
    )
    ours = SameAutoencoder(config).eval()
    randomise(ours.vae, 0.3)
    ours.vae.bottleneck.running_std.fill_(1.7)
    whole = -(-frames // chunk) * chunk
    latents = torch.randn(1, 6, frames, generator=torch.Generator().manual_seed(4))
    decoder, level = ours.vae.decoder, ours.vae.decoder.blocks[0]
    scaled = decoder.proj(1.7 * latents[0].T)
    scaled = torch.cat([scaled, scaled.new_zeros(whole - frames, 16)])
    learned = level.new_tokens[0].expand(2, -1)
    segments = plain_layers(level, [torch.cat([row[None], learned]) for row in scaled], chunk)
    tokens = torch.cat([segment[1:] for segment in segments])  # [2 whole, D]
    patches = level.mapping(tokens.T[None])[0].T[: 2 * frames]
    expected = patches.reshape(2 * frames, 2, 4).transpose(0, 1).reshape(2, -1)
    found = ours.decode(latents)[0]
    assert found.shape == (2, 8 * frames)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()

    sound = torch.randn(1, 2, 8 * frames - 3, generator=torch.Generator().manual_seed(5))
    level = ours.vae.encoder.blocks[0]
    padded = F.pad(sound[0], (0, 8 * whole - sound.shape[-1]))
    patches = padded.reshape(2, 2 * whole, 4).transpose(0, 1).reshape(2 * whole, 8)
    tokens = level.mapping(patches.T[None])[0].T
    segments = [torch.cat([pair, level.new_tokens[0]]) for pair in tokens.split(2)]
    last = torch.stack([segment[-1] for segment in plain_layers(level, segments, chunk)])
    affine = ours.vae.bottleneck
    expected = (ours.vae.encoder.proj(last).T * affine.scale[0] + affine.bias[0]) / 1.7
    found = ours.encode(sound)[0]
    assert found.shape == (6, frames)
    assert (found - expected[:, :frames]).abs().max() < 1e-5 * expected.abs().max()


# ------------------------------------------------------------------------------------------------- bad files


def put(place: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        *keys, last = place.split(".")
        for key in keys:
            config = config[int(key)] if isinstance(config, list) else config[key]
        config[last] = value

    return edit


AUTOENCODER, DIFFUSION = "model.pretransform.config", "model.diffusion"


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (put("model_type", "diffusion_uncond"), "model_type is 'diffusion_uncond'"),
        (put(f"{AUTOENCODER}.encoder.config.conformer", True), "conformer is True"),
        (put(f"{AUTOENCODER}.encoder.config.conv_mapping", True), "conv_mapping is True"),
        (put(f"{AUTOENCODER}.decoder.config.variable_stride", False), "variable_stride is False"),
        (put(f"{AUTOENCODER}.decoder.config.strides", [4]), "strides is"),
        (put(f"{AUTOENCODER}.decoder.config.sliding_window", [2, 2]), "only equal ones"),
        (put(f"{AUTOENCODER}.encoder.config.sliding_window", [1, 2]), "sliding_window is"),
        (put(f"{AUTOENCODER}.decoder.config.sliding_window", None), "chunk_midpoint_shift true"),
        (put(f"{AUTOENCODER}.bottleneck.type", "vae"), "type is 'vae'"),
        (put(f"{AUTOENCODER}.downsampling_ratio", 16), "downsampling_ratio is 16"),
        (put(f"{AUTOENCODER}.encoder.config.gate_everything", 1), "gate_everything is 1, which is not implemented"),
        (put(f"{DIFFUSION}.diffusion_objective", "v"), "diffusion_objective is 'v'"),
        (put(f"{DIFFUSION}.config.num_heads", 5), "not a multiple of num_heads 5"),
        (put(f"{DIFFUSION}.config.depth", 3), "missing transformer.layers.2"),
        (put(f"{DIFFUSION}.config.timestep_features_logsnr", True), "timestep_features_logsnr is True"),
        (put(f"{DIFFUSION}.local_add_cond_ids", ["chroma"]), "local_add_cond_ids is"),
        (put(f"{DIFFUSION}.sampling_distribution_shift_options", {"type": "flux"}), "sampling_distribution_shift"),
        (put("model.conditioning.configs.0.type", "t5"), "condition 'prompt' of type 't5'"),
        (put("model.conditioning.configs.0.config", {"max_length": 64}), "padding_mode is 'zero'"),
        (put("model.conditioning.configs", []), "lacks the condition 'prompt'"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_none_of_ours_costs_one_line(
    edit: Callable[[dict[str, Any]], None], said: str, release: Path, tmp_path: Path
) -> None:
    shutil.copytree(release, tmp_path / "model")
    config = copy.deepcopy(CONFIG)
    edit(config)
    (tmp_path / "model" / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=said) as caught:
        load_released(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_without_its_folder_the_text_encoder_is_that_of_the_hub(release: Path, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "model", ignore=shutil.ignore_patterns("t5gemma*"))
    config = load_released(tmp_path / "model").system.config
    assert config.conditioner.text.encoder == "google/t5gemma-b-b-ul2"
