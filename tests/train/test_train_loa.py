"""AudioLDM 2's stages: GPT-2 learns vectors of the sounds, the denoiser is given them, and both go on together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen.data.dataset import DataConfig, open_data
from audiogen.data.encoded import LatentDataset
from audiogen.data.loader import collate
from audiogen.diffusion.loa import load_audiomae, pool
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.models.released import load_released
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import train_vocabulary
from tests.diffusion.tiny_encoders import write_audiomae
from tests.train.test_train_diffusion import (
    AUTOENCODER,
    MEL,
    killed_and_resumed,
    same_state,
    scalars,
    train,
    trained,
    write_recipe,
    write_system,
)

CAPTIONS = ["a low tone", "rain falls", "a high tone", "wind"]
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def clips(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips, each with a caption of its own."""
    path = tmp_path_factory.mktemp("clips") / "clips.jsonl"
    lines = [
        json.dumps({"audio": str(manifest.parent / f"{number}.wav"), "captions": [caption]})
        for number, caption in zip((0, 1, 6, 3), CAPTIONS, strict=True)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def autoencoder(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("autoencoder")
    recipe = write_recipe(folder / "mel.yaml", AUTOENCODER + MEL, clips)
    return train(
        recipe, folder / "mel", "fit.steps=80", "fit.save_every=0", "fit.valid_every=0",
        "loss.adversarial=0", "loss.feature_matching=0"
    )  # fmt: skip


@pytest.fixture
def audioldm2(autoencoder: Path, clips: Path, tmp_path: Path) -> Train:
    """audioldm2("name", "key=value", ...) trains a tiny AudioLDM 2 in tmp_path/name, on 5 vectors of width 16."""
    recipe = write_system(tmp_path / "audioldm2.yaml", "audioldm2", autoencoder, clips)
    text = recipe.read_text().replace("length: 3", "length: 5") + "loa: {loss: mse}\n"
    recipe.write_text(text)
    return lambda name, *settings: train(recipe, tmp_path / name, *settings)


def stored(run: Path) -> Any:
    """The clips that a run trains on, as one batch."""
    data = LatentDataset([run / "latents" / "pass_000"])
    return collate([data.item(index, 0, 0) for index in range(len(data))], data.batch_type)


def weights(run: Path, part: str) -> dict[str, torch.Tensor]:
    return dict(load_released(run).system.get_submodule(part).state_dict())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(tensor, other[name], atol=1e-6) for name, tensor in one.items())


def test_vectors_are_stored_with_the_latents(audioldm2: Train) -> None:
    run = audioldm2("run", "fit.steps=1", "loa.only=true")
    batch = stored(run)
    assert batch.features["loa"].shape == (4, 5, 16)
    torch.testing.assert_close(batch.features["loa"], pool(batch.latents, 5, 16), atol=5e-3, rtol=5e-3)
    with pytest.raises(InputError, match=r"made with other settings \(loa\)"):
        audioldm2("run", "fit.steps=2", "loa=null")


def test_audiomaes_vectors_are_stored_and_learned(audioldm2: Train, clips: Path, tmp_path: Path) -> None:
    """At another width than the latents', of 2.56 s though the clips have 0.5 s."""
    folder = write_audiomae(tmp_path, width=64, num_blocks=3, num_patches=128)
    settings = (
        "loa.target=audiomae",
        f"loa.model={folder}",
        "loa.loss=l1",
        "system.conditioner.loa.width=64",
        "system.conditioner.loa.length=2",
        "system.audio_unet.layers=[null,64,24]",
    )
    run = audioldm2("run", *settings, "fit.steps=2")
    data = open_data(DataConfig(str(clips), str(clips), segment_s=0.5), 2000, 1).train
    items = [data.item(index, 0, 0) for index in range(4)]
    batch, model = stored(run), load_audiomae(str(folder))
    assert batch.keys == [item.key for item in items]
    vectors = model.vectors(torch.stack([item.data for item in items]), 2000)
    torch.testing.assert_close(batch.features["loa"], vectors, atol=1e-4, rtol=1e-4)
    assert all(loss > 0 for loss in trained(run, "train/loa")) and len(trained(run, "train/loa")) == 2
    made_by = writing.read_json(run / "latents" / "settings.json")["loa"]
    assert made_by["model"] == checkpoint.identity(model.state_dict())
    with pytest.raises(
        InputError, match="finds 2 vectors of width 64; system.conditioner.loa has length 5 and width 64"
    ):
        audioldm2("other", *settings, "system.conditioner.loa.length=5")
    write_audiomae(tmp_path, width=64, num_blocks=4, num_patches=128)
    with pytest.raises(InputError, match=r"made with other settings \(loa\)"):
        audioldm2("run", *settings, "fit.steps=3")


def test_gpt2_alone_learns_the_vectors_of_the_captions(audioldm2: Train) -> None:
    stage = ("loa.only=true", "fit.ema_decay=0", "fit.save_every=0", "fit.sample_every=6")
    first = audioldm2("first", *stage, "fit.steps=1")
    run = audioldm2("run", *stage, "fit.steps=150", "fit.valid_every=50", "optim.lr=1e-2")
    assert same(weights(run, "denoiser"), weights(first, "denoiser"))
    conditioner, batch = load_released(run).system.conditioner, stored(run)
    inputs = conditioner.inputs(batch.captions)

    def error(found: torch.Tensor) -> float:
        return float((found - batch.features["loa"]).square().mean())

    of_mean = error(batch.features["loa"].mean(dim=0, keepdim=True))
    with torch.no_grad():
        assert error(conditioner.loa_vectors(inputs, batch.features["loa"])) < 0.15 * of_mean
        assert error(conditioner.loa_vectors(inputs)) < 0.15 * of_mean
    records = [record for record in scalars(run) if "valid/loss" in record]
    assert all(record["valid/loss"] == record["valid/loa"] for record in records)
    last = records[-1]
    assert max(last["valid/loa"], last["valid/loa_generated"]) < last["valid/loa_mean"]
    assert last["valid/loa"] < last["valid/loa_shuffled"]
    assert "valid/loss_zero" not in last and trained(run, "train/loss") == trained(run, "train/loa")


def test_the_joint_stage_starts_from_gpt2s(audioldm2: Train, tmp_path: Path) -> None:
    first = audioldm2("first", "loa.only=true", "fit.steps=3", "fit.ema_decay=0")
    once = ("fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0", "fit.valid_every=1")
    run = audioldm2("run", f"init_from={first}", "autoencoder=null", *once)
    assert same(weights(first, "conditioner"), weights(run, "conditioner"))
    valid = [record for record in scalars(run) if "valid/loss" in record][0]
    for name in (
        "loa",
        "loa_shuffled",
        "loa_generated",
        "loa_mean",
        "loss_zero",
        "loss_none",
        "loss_shuffled",
    ):
        assert valid[f"valid/{name}"] > 0


@pytest.mark.parametrize("true_share", [0.0, 1.0])
def test_the_denoiser_teaches_gpt2_only_through_generated_vectors(
    true_share: float, audioldm2: Train
) -> None:
    """GPT-2's own loss is weighed down to nothing, and no weight decays: what moves it is the denoiser's."""
    quiet = (
        "loa.weight=1e-30",
        "optim.weight_decay=0",
        "condition_dropout=0",
        "fit.ema_decay=0",
        "fit.valid_every=0",
    )
    run, later = (
        audioldm2(f"run{steps}", f"fit.steps={steps}", f"loa.true_share={true_share}", *quiet)
        for steps in (1, 3)
    )
    assert not same(weights(run, "denoiser"), weights(later, "denoiser"))
    assert same(weights(run, "conditioner.loa"), weights(later, "conditioner.loa")) == (true_share == 1.0)


def test_stages_resume_bit_for_bit_and_parts_of_a_batch_change_nothing(
    audioldm2: Train, tmp_path: Path
) -> None:
    def run(name: str, *settings: str) -> Path:
        return audioldm2(name, "loa.true_share=0.5", *settings)

    whole = run("whole")
    killed = killed_and_resumed(run, tmp_path)
    assert scalars(killed) == scalars(whole)
    assert same_state(killed, whole)
    # Where all vectors are true, GPT-2's dropout does not reach the denoiser.
    one, two = (
        audioldm2(f"parts{parts}", f"fit.accumulate={parts}", "loa.true_share=1", "fit.steps=1")
        for parts in (1, 2)
    )
    assert trained(one, "train/loss") == pytest.approx(trained(two, "train/loss"), rel=1e-5)
    assert trained(one, "train/loa") == pytest.approx(trained(two, "train/loa"), rel=0.3)


def test_a_text_encoder_that_stays_is_kept_by_the_next_stage(audioldm2: Train, tmp_path: Path) -> None:
    first = audioldm2("first", "loa.only=true", "fit.steps=1", "fit.ema_decay=0")
    language_model = tmp_path / "lm"
    text = load_released(first).system.conditioner.text
    assert text is not None and text.embedded is not None
    text.embedded.save(language_model / "text")
    checkpoint.save_model(language_model, "lm", {}, {"weight": torch.zeros(1)}, {})
    settings = (f"init_from={first}", "autoencoder=null", f"text_from={language_model}", "fit.steps=3")
    run = audioldm2("run", *settings)
    assert same(weights(first, "conditioner.text"), weights(run, "conditioner.text"))
    assert not same(weights(first, "denoiser"), weights(run, "denoiser"))
    other = T5Conditioner(text.config, train_vocabulary(CAPTIONS, 40))
    other.save(language_model / "text")
    with pytest.raises(InputError, match=f"the text encoder of init_from={first} is not that of text_from="):
        audioldm2("other", *settings)


def test_what_does_not_fit_is_refused(
    audioldm2: Train, autoencoder: Path, clips: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        InputError,
        match=r"4 x 25 x 8 .* do not pool to 3 vectors of width 16: .* set system.conditioner.loa.length to 1 or 5",
    ):
        audioldm2("run", "system.conditioner.loa.length=3")
    with pytest.raises(InputError, match=r"true_share is 2"):
        audioldm2("run", "loa.true_share=2")
    for settings in (["loa.target=audiomae"], ["loa.model=org/audiomae"]):
        with pytest.raises(InputError, match=r"audiomae needs a directory .* latents need loa.model=null"):
            audioldm2("run", *settings)
    lafma = write_system(tmp_path / "lafma.yaml", "lafma", autoencoder, clips)
    with pytest.raises(InputError, match="loa is for a system with a stream of loa"):
        train(lafma, tmp_path / "lafma", "loa={only: true}")
