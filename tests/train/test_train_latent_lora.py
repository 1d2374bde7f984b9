"""Adapters of a latent system: they alone are trained and saved, the loss on the clips falls, a run goes on exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen import lora as low_rank
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.generate.__main__ import main as generate
from audiogen.generators import load as generators
from audiogen.lm import lora as lm_lora
from audiogen.models.build import load_lm
from audiogen.models.released import load_released
from audiogen.train.__main__ import main
from audiogen.train.run import open_recipe
from tests.train.conftest import scalars

RECIPE = """
task: latent_lora
kind: lafma
init_from: {system}
max_reconstruction: 99.0
lora: {{rank: 3, alpha: 6.0}}
condition_dropout: 0.0
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: 'synth:6', valid: 'synth:6', segment_s: 0.5}}
fit: {{steps: 6, batch_size: 3, ema_decay: 0.5, valid_every: 3, save_every: 3, log_every: 1, device: cpu}}
"""
Train = Callable[..., Path]


@pytest.fixture
def lora_run(tiny_latent: Path, tmp_path: Path) -> Train:
    """lora_run("name", "key=value", ...) trains adapters of `tiny_latent` in a directory of that name."""
    path = tmp_path / "lora.yaml"
    path.write_text(RECIPE.format(system=tiny_latent))

    def train(name: str, *settings: str) -> Path:
        assert main([f"recipe={path}", f"out={tmp_path / name}", *settings]) == 0
        return tmp_path / name

    return train


def valid(run: Path) -> list[float]:
    return [record["valid/loss"] for record in scalars(run) if "valid/loss" in record]


def test_training_lowers_the_loss_on_the_clips_and_leaves_the_base(
    lora_run: Train, tiny_latent: Path
) -> None:
    before = {path: path.read_bytes() for path in tiny_latent.rglob("*.safetensors")}
    first = lora_run("none", "fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0", "fit.valid_every=1")
    run = lora_run("run", "fit.steps=30", "fit.valid_every=30", "fit.save_every=0")
    assert valid(run)[-1] < valid(first)[0] - 0.005  # validated on the clips that it is trained on
    assert {path: path.read_bytes() for path in tiny_latent.rglob("*.safetensors")} == before
    for folder in (run, run / "best"):
        assert {path.name for path in folder.iterdir()} >= {"config.json", "pytorch_lora_weights.safetensors"}
        assert not (folder / "model_index.json").exists()
    stored = checkpoint.latest(run)
    assert stored
    state = checkpoint.load_state(stored[1])["task"]
    assert state.keys() == {"adapters", "fingerprint", "optimizer", "average"}


def test_the_system_with_an_adapter_predicts_what_the_run_did(lora_run: Train, tiny_latent: Path) -> None:
    run = lora_run("run", "fit.steps=3", "fit.ema_decay=0", "fit.valid_every=0")
    found = checkpoint.latest(run)
    assert found
    adapters = checkpoint.load_state(found[1])["task"]["adapters"]
    model = generators.load(tiny_latent, "cpu", adapter=run)
    plain = load_released(tiny_latent).system.denoiser.network
    for name in {key.rpartition(".")[0] for key in adapters}:
        update = 6.0 / 3 * adapters[f"{name}.up"] @ adapters[f"{name}.down"]
        expected = plain.get_submodule(name).weight + update
        torch.testing.assert_close(model.system.denoiser.network.get_submodule(name).weight, expected)


def test_a_stopped_run_goes_on_as_one_that_was_not(lora_run: Train) -> None:
    whole = lora_run(
        "whole", "optim.schedule=constant", "fit.steps=4", "fit.save_every=2", "fit.valid_every=0"
    )
    lora_run("part", "optim.schedule=constant", "fit.steps=2", "fit.valid_every=0")
    part = lora_run("part", "optim.schedule=constant", "fit.steps=4", "resume=must", "fit.valid_every=0")
    name = "pytorch_lora_weights.safetensors"
    assert (whole / name).read_bytes() == (part / name).read_bytes()


def test_sounds_with_weights(lora_run: Train, tiny_latent: Path, tmp_path: Path) -> None:
    """Weight 0 is the base to the last bit, another weight another sound; without --model it is the adapter's base."""
    run = lora_run("run", "optim.lr=0.3", "fit.ema_decay=0", "fit.steps=3")

    def sound(name: str, *options: str) -> bytes:
        words = ["--text", "a tone", "--duration", "0.1", "--steps", "2", "--device", "cpu", *options]
        assert generate([*words, "--out", str(tmp_path / name)]) == 0
        return audio.load(tmp_path / name)[0].numpy().tobytes()

    base = sound("base.wav", "--model", str(tiny_latent))
    assert sound("0.wav", "--adapter", f"{run}:0") == base
    whole = sound("1.wav", "--adapter", str(run))
    assert whole != base and sound("half.wav", "--adapter", f"{run}:0.5") not in (base, whole)
    assert sound("sum.wav", "--adapter", f"{run}:0.5", "--adapter", f"{run / 'best'}:0") == sound(
        "half2.wav", "--adapter", f"{run}:0.5"
    )


def test_what_an_adapter_is_not_for_is_one_line(lora_run: Train, tiny_latent: Path, tmp_path: Path) -> None:
    run = lora_run("run", "fit.steps=2", "fit.valid_every=0")
    for adapter, system, said in (
        (run, "lafma_tiny", f"was trained on {tiny_latent}, and the weights of this model are others"),
        (
            run,
            "lm_tiny",
            f"is of a latent-diffusion system, {tiny_latent}, and lm_tiny is a token language model",
        ),
        (tmp_path, tiny_latent, "holds no adapter: there is no pytorch_lora_weights.safetensors"),
    ):
        with pytest.raises(InputError, match=said):
            generators.load(system, "cpu", adapter=adapter)
    with pytest.raises(InputError, match=f"give --model {tiny_latent} --adapter {run}"):
        generators.load(run)
    lm, config = load_lm("lm_tiny").lm, lm_lora.LoraConfig(rank=1)
    lm_lora.add(lm, config)
    assert low_rank.adapter_state(lm)
    lm_lora.save_adapter(tmp_path / "of_lm", lm, config, "lm_tiny")
    with pytest.raises(
        InputError, match="is of a token language model, lm_tiny, and .* is a latent-diffusion"
    ):
        generators.load(tiny_latent, "cpu", adapter=tmp_path / "of_lm")


def test_a_mistake_in_a_recipe_is_named(lora_run: Train, tmp_path: Path) -> None:
    for settings, said in (
        (["init_from=null", "autoencoder=x"], "system"),
        (["lora.targets=[heads]"], r"lora.targets is \['heads'\]"),
        (["fit.shard=fsdp", "fit.sample_every=0"], "adapters take fit.shard=ddp"),
    ):
        with pytest.raises(InputError, match=said):
            open_recipe(str(tmp_path / "lora.yaml"), settings)
    lora_run("run", "fit.steps=2", "fit.valid_every=0")
    with pytest.raises(InputError, match=r"is \[3, \d+\], should make \[4, \d+\]"):
        lora_run("run", "fit.steps=3", "lora.rank=4")
