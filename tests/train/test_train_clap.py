"""CLAP training: loss and figures in closed form, features as the extractor's; a run learns, resumes and is a model."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

from audiogen import audio
from audiogen.config import build, load_recipe, plain
from audiogen.data.loader import valid_batches
from audiogen.diffusion.autoencoders import MelAutoencoder, MelAutoencoderConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import AudioBatch, Sampling
from audiogen.models.clap import (
    AudioTowerConfig,
    ClapModelConfig,
    FeatureConfig,
    TextTowerConfig,
    learn_vocabulary,
    new_clap,
)
from audiogen.models.latent_codecs import save_autoencoder
from audiogen.text.clap import Clap, clap_features, fit_length
from audiogen.train import clap
from audiogen.train.__main__ import main
from audiogen.train.clap import ClapTask, chance, contrastive_loss, floor, recall
from audiogen.train.run import open_recipe
from tests.diffusion.tiny_encoders import write_clap
from tests.train.conftest import scalars

RECIPE = """
task: clap
out: {out}
model:
  text: {{vocab_size: 300, width: 16, num_layers: 1, num_heads: 2, ff: 24, dropout: 0.1}}
  audio: {{width: 8, depths: [1, 2], num_heads: [2, 4], spec_size: 32, patch: 4, window: 2, dropout: 0.0}}
  features: {{sample_rate: 2000, n_fft: 128, hop_length: 40, num_mels: 16, f_min: 50, f_max: 1000, max_length_s: 1}}
  projection_dim: 12
mask: 0.1
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: {manifest}, valid: {manifest}, segment_s: 1.0, gain_db: [-6, 0]}}
fit: {{steps: 6, batch_size: 4, ema_decay: 0.9, log_every: 1, valid_every: 4, save_every: 2, device: cpu}}
"""
TINY = ClapModelConfig(
    TextTowerConfig(300, 16, 1, 2, 24),
    AudioTowerConfig(8, (1, 2), (2, 4), 32, 4, 2),
    FeatureConfig(2000, 128, 40, 16, 50.0, 1000.0, 1),
    12,
)

Train = Callable[..., Path]


@pytest.fixture
def clap_run(manifest: Path, tmp_path: Path) -> Train:
    """clap_run("name", "key=value", ...) trains a tiny CLAP in tmp_path/name and returns that directory."""
    recipe = tmp_path / "clap.yaml"
    recipe.write_text(RECIPE.format(out=tmp_path / "out", manifest=manifest))

    def train(name: str, *settings: str) -> Path:
        assert main([f"recipe={recipe}", f"out={tmp_path / name}", *settings]) == 0
        return tmp_path / name

    return train


def sounds_of(manifest: Path) -> tuple[torch.Tensor, list[str]]:
    """The eight sounds [8, 1, N] of the manifest and their first captions."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    found = [audio.load(manifest.parent / row["audio"])[0] for row in rows]
    return torch.stack(found), [row["captions"][0] for row in rows]


# --- loss and figures ------------------------------------------------------------------------------------------


def test_the_loss_in_closed_form() -> None:
    texts = torch.eye(3)
    sounds = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0, 0.8]])
    scales = torch.tensor(2.0), torch.tensor(5.0)
    found = contrastive_loss(texts, sounds, torch.eye(3).bool(), *scales)

    def nats(row: list[float], scale: float, right: int) -> float:
        return math.log(sum(math.exp(scale * x) for x in row)) - scale * row[right]

    to_audio = nats([1, 0, 0.6], 2, 0) + nats([0, 1, 0], 2, 1) + nats([0, 0, 0.8], 2, 2)
    to_text = nats([1, 0, 0], 5, 0) + nats([0, 1, 0], 5, 1) + nats([0.6, 0, 0.8], 5, 2)
    assert found.item() == pytest.approx((to_audio + to_text) / 6)
    # both directions count: with texts and sounds exchanged it is the same
    assert contrastive_loss(sounds, texts, torch.eye(3).bool(), *scales[::-1]).item() == pytest.approx(
        found.item()
    )


def test_what_means_the_same_is_right_and_no_mistake() -> None:
    """The floor is reached where all of one meaning are equally near and the rest is far, and only there."""
    ids = torch.tensor([0, 1, 0, 0, 2])
    same = ids[:, None] == ids
    near = torch.nn.functional.one_hot(ids, 5).float().requires_grad_()
    scale = torch.tensor(100.0)
    loss = contrastive_loss(near, near.detach(), same, scale, scale)
    assert loss.item() == pytest.approx(3 / 5 * math.log(3), abs=1e-5) == pytest.approx(floor(same), abs=1e-5)
    loss.backward()
    assert near.grad is not None and near.grad.abs().max() < 1e-5
    single = contrastive_loss(near, near, torch.eye(5).bool(), scale, scale)
    assert single.item() == pytest.approx(3 / 5 * math.log(3), abs=1e-5)  # the same, which here is a mistake
    apart = torch.eye(5)
    assert contrastive_loss(apart, apart, torch.eye(5).bool(), scale, scale).item() < 1e-6
    assert contrastive_loss(apart, apart, same, scale, scale).item() > 10
    ones = torch.ones(5, 1)
    assert contrastive_loss(ones, ones, same, scale, scale).item() == pytest.approx(math.log(5))


def test_recall_counts_equal_meanings_and_chance_is_its_mean() -> None:
    same = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]).bool()
    similarity = torch.tensor([[0.1, 0.9, 0, 0], [0.2, 0, 0.9, 0], [0, 0, 0.5, 0.4], [0.9, 0.8, 0.7, 0.6]])
    assert recall(similarity, same, 1) == pytest.approx(2 / 4)
    assert recall(similarity, same, 2) == pytest.approx(3 / 4)
    assert recall(similarity, same, 10) == 1.0
    random = torch.Generator().manual_seed(0)
    for k in (1, 2, 10):
        drawn = [recall(torch.rand(4, 4, generator=random), same, k) for _ in range(2000)]
        assert sum(drawn) / 2000 == pytest.approx(chance(same, k), abs=0.03)


# --- features and tokens ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
def test_features_are_those_of_the_extractor(padding: str) -> None:
    """Longer than its window (the middle), as long, shorter, and less than half as long; rows of one batch."""
    extractor = ClapFeatureExtractor(
        feature_size=11, sampling_rate=2000, hop_length=30, max_length_s=2, fft_window_size=100,
        frequency_min=40, frequency_max=900, truncation="rand_trunc", padding=padding,
    )  # fmt: skip
    lengths = [4701, 4000, 3100, 1234]
    random = torch.Generator().manual_seed(0)
    batch = torch.zeros(4, 4701)
    for row, length in zip(batch, lengths, strict=True):
        row[:length] = 0.1 * torch.randn(length, generator=random)
    found = clap_features([row[:length] for row, length in zip(batch, lengths, strict=True)], extractor)
    pieces = [batch[0, 350:4350], *(row[:length] for row, length in zip(batch[1:], lengths[1:], strict=True))]
    expected = extractor([piece.numpy() for piece in pieces], sampling_rate=2000, return_tensors="pt")
    assert found.shape == (4, 1, 134, 11)
    torch.testing.assert_close(found, expected["input_features"].float(), rtol=0, atol=1e-3)
    exact = clap_features(pieces, extractor, torch.float64)
    torch.testing.assert_close(exact, expected["input_features"].float(), rtol=0, atol=1e-5)
    assert torch.equal(clap_features([torch.zeros(5)], extractor), torch.full((1, 1, 134, 11), -100.0))
    assert len(fit_length(torch.ones(3), extractor)) == 4000


def test_tokens_fold_case_and_spaces_know_every_byte_and_begin_as_roberta(tmp_path: Path) -> None:
    captions = ["A dog barks", "A dog is barking", "Rain falls"]
    vocabulary = learn_vocabulary(captions, 280)
    assert learn_vocabulary([*captions[::-1], captions[0]], 280) == vocabulary
    made = new_clap(TINY, vocabulary)
    clap.save_clap(tmp_path, made, {})
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(" a  DOG\tbarks ")["input_ids"] == tokenizer("A dog barks")["input_ids"]
    assert tokenizer.decode(tokenizer("A dog barks é 犬")["input_ids"], skip_special_tokens=True).strip() == (
        "a dog barks é 犬"
    )
    padded = tokenizer(["", "a dog"], padding=True)["input_ids"]
    assert padded[0][:3] == [0, 2, 1] and padded[1][0] == 0 and padded[1][-1] == 2
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]) == [0, 1, 2, 3, 4]
    assert len(tokenizer) == made.model.config.text_config.vocab_size <= 280
    long = Clap(str(tmp_path)).embed_text(["rain " * 200])  # its last position is that of the table
    assert long.isfinite().all() and made.model.config.text_config.max_position_embeddings == 79
    with pytest.raises(InputError, match=r"vocab_size is 261; bytes and special tokens alone are 261"):
        learn_vocabulary(captions, 261)


def test_new_layers_keep_the_variance_and_each_bin_is_marked() -> None:
    torch.manual_seed(0)
    made = new_clap(TINY, learn_vocabulary(["a dog"], 280)).model
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (
            made.text_projection.linear1,
            made.audio_model.audio_encoder.layers[1].blocks[0].output.dense,
        ):
            out = layer(torch.randn(500, layer.in_features, generator=random))
            assert 0.8 < out.std() < 1.2
        patches = made.audio_model.audio_encoder.patch_embed.proj(torch.randn(9, 1, 32, 32, generator=random))
        assert 0.8 < patches.std() < 1.2
    marks = made.audio_model.audio_encoder.batch_norm.bias
    assert len(set(marks.tolist())) == 16 and 0.2 < marks.std() < 0.8


# --- runs ------------------------------------------------------------------------------------------------------


def test_it_learns_which_caption_is_whose(clap_run: Train, manifest: Path) -> None:
    run = clap_run(
        "run", "fit.steps=80", "fit.batch_size=8", "fit.valid_every=80", "fit.log_every=80", "fit.save_every=0",
        "mask=0", "model.text.dropout=0",
    )  # fmt: skip
    last = scalars(run)[-1]
    assert last["valid/recall_1_text_to_audio"] == last["valid/recall_1_audio_to_text"] == 1.0
    assert last["valid/floor"] == pytest.approx(math.log(4))  # four tones, four noises
    assert (
        last["valid/loss"]
        < last["valid/floor"] + 0.1
        < last["valid/loss_chance"]
        == pytest.approx(math.log(8))
    )
    assert last["valid/recall_1_chance"] == pytest.approx(0.5)
    sounds, _ = sounds_of(manifest)
    model = Clap(str(run))
    similarity = model.embed_text(["a steady tone", "RAIN falls"]) @ model.embed_audio(sounds, 2000).T
    assert (similarity.argmax(0) == torch.tensor([0, 1] * 4)).all()


def test_a_run_is_a_model_that_embeds_as_the_task_does(
    clap_run: Train, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[ClapTask] = []
    start = ClapTask.__init__
    monkeypatch.setattr(ClapTask, "__init__", lambda self, *a: (kept.append(self), start(self, *a))[1])
    run = clap_run("run")
    (task,) = kept
    sounds, captions = sounds_of(manifest)
    batch = AudioBatch(
        torch.tensor([2000, 2000, 700, 2000, 1999, 2000, 2000, 2000]), captions, [""] * 8, sounds
    )
    task.model.eval()
    with torch.no_grad(), task.average.applied():
        from_sounds, from_texts = task.embed_sounds(task.features(batch)), task.embed_captions(captions)
    model = Clap(str(run))
    torch.testing.assert_close(model.embed_text(captions), from_texts, rtol=1e-4, atol=1e-5)
    for row, length in enumerate(batch.lengths.tolist()):
        found = model.embed_audio(sounds[row : row + 1, :, :length], 2000)
        torch.testing.assert_close(found, from_sounds[row : row + 1], rtol=1e-3, atol=1e-4)
    assert ClapModel.from_pretrained(run).config.projection_dim == 12
    valid = [record for record in scalars(run) if "valid/loss" in record]
    assert [record["step"] for record in valid] == [4, 6]
    info = writing.read_json(run / "best" / "info.json")
    assert info["valid/loss"] == min(record["valid/loss"] for record in valid)
    assert Clap(str(run / "best")).embed_text(["rain"]).shape == (1, 12)


def test_resumed_is_unbroken(clap_run: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clap_run("whole")
    step = ClapTask.step

    def terminated(self: ClapTask, batch: Any, number: int) -> Any:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(ClapTask, "step", terminated)
    parts = clap_run("parts")
    monkeypatch.undo()
    assert checkpoint.latest(parts)[0] == 3  # type: ignore[index]
    clap_run("parts", "resume=must")
    assert scalars(parts) == scalars(whole)
    for folder in ("", "best", "checkpoints/step_00000006"):
        name = "state.safetensors" if "step" in folder else "model.safetensors"
        assert (parts / folder / name).read_bytes() == (whole / folder / name).read_bytes()


def test_the_scale_is_learned_within_its_bounds(clap_run: Train) -> None:
    slow = scalars(clap_run("slow", "fit.valid_every=0"))
    assert len({record["train/scale"] for record in slow}) == 6
    fast = scalars(clap_run("fast", "optim.lr=5", "optim.warmup_steps=0", "fit.steps=1", "fit.valid_every=0"))
    assert fast[0]["train/scale"] in (pytest.approx(1.0), pytest.approx(100.0))


def test_a_model_of_ours_or_another_is_trained_on(clap_run: Train, tmp_path: Path, manifest: Path) -> None:
    first = clap_run("first", "fit.valid_every=0")
    given = write_clap(tmp_path / "given", 20)
    for source, rate in ((first, 2000), (given, 8000)):
        run = clap_run(
            f"on_{source.name}", f"init_from={source}", "fit.steps=1", "optim.lr=1e-12", "fit.ema_decay=0",
            "fit.valid_every=0",
        )  # fmt: skip
        before, after = checkpoint.load_tensors(source), checkpoint.load_tensors(run)
        weights = [name for name in before if "running" not in name and "tracked" not in name]
        assert before.keys() == after.keys()
        assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in weights)
        sounds, captions = sounds_of(manifest)
        assert Clap(str(run)).parts.extractor.sampling_rate == rate
        torch.testing.assert_close(
            Clap(str(run)).embed_text(captions), Clap(str(source)).embed_text(captions), rtol=0, atol=1e-4
        )
        recipe = writing.read_json(run / "info.json")["recipe"]
        assert recipe["model"]["features"]["sample_rate"] == rate
    with pytest.raises(InputError, match=r"init_from=.* decides the architecture"):
        clap_run("no", f"init_from={first}", "model.projection_dim=3")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("fit.batch_size=1", "compared with the others of a batch: at least 2"),
        ("fit.accumulate=2", "it cannot be run in parts"),
        ("mask=1", r"mask is 1.0; it must be in \[0, 1\)"),
        ("init_from=nowhere/at/all", "CLAP model 'nowhere/at/all' cannot be opened"),
        ("model.audio.window=5", "window is 5 patches, but the last stage has 4 a side"),
        ("model.audio.spec_size=36", r"2 stages on patches of 4 need a multiple of 8"),
        ("model.audio.num_heads=[3,4]", "stage 0 is 8 wide, no multiple of its 3 num_heads"),
        ("model.audio.depths=[1]", "need one entry a stage"),
        ("model.features.num_mels=24", "spec_size is 32: features.num_mels .24. must divide it"),
        ("model.features.max_length_s=2", "2 s are 101 frames, but audio.spec_size 32 holds 64 of 16"),
        ("model.features.f_max=1001", "up to half of 2000 Hz"),
        ("model.text.num_heads=3", "width 16 is no multiple of num_heads 3"),
        ("model.text.vocab_size=200", "bytes and special tokens alone are 261"),
    ],
)
def test_what_cannot_be_trained_is_refused(clap_run: Train, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        clap_run("run", setting)


def test_a_clip_without_a_caption_is_named(clap_run: Train, manifest: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for number, line in enumerate(lines):
        line["audio"] = str(manifest.parent / line["audio"])
        line["captions"] = [] if number in (3, 5) else line["captions"]
    (tmp_path / "some.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(InputError, match=r"2 of 8 clips have no caption, .*3.wav first"):
        clap_run("run", f"data.train={tmp_path}/some.jsonl")


def test_the_recipe_is_complete_small_and_steps(tmp_path: Path) -> None:
    small = [
        "data.train=synth:8",
        "data.valid=synth:4@100",
        f"out={tmp_path}",
        "fit.batch_size=2",
        "fit.device=cpu",
    ]
    recipe = open_recipe("clap_tiny", small)
    assert set(load_recipe("clap_tiny")) == set(vars(recipe)), "a recipe is complete"
    task, data = recipe.prepare(torch.device("cpu"))
    assert sum(parameter.numel() for parameter in task.model.parameters()) < 2e6
    metrics = task.step(next(valid_batches(data.train, 2, 1)), 0)
    assert metrics["loss"] == pytest.approx(math.log(2), abs=0.7)


AUDIOLDM = """
task: diffusion
kind: audioldm
autoencoder: {folder}/autoencoder
clap_of: audio
max_reconstruction: 99.0
system:
  mel_autoencoder:
    channels: [8, 16]
    num_res_blocks: 1
    latent_dim: 4
    norm_groups: 4
    vocoder: null
    mid_attention: false
    mel: {{sample_rate: 2000, n_fft: 64, hop_length: 20, num_mels: 16, f_max: 1000.0}}
  conditioner: {{vector: [clap], unconditional: zeros, clap: {clap}, clap_dim: 12}}
  audio_unet: {{latent_dim: 4, channels: [16, 32], heads: [2, 2], attention: [false, true], layers: [null],
    num_res_blocks: 1, norm_groups: 4, vector_dim: 12}}
data: {{train: {manifest}, valid: {manifest}, segment_s: 0.5}}
fit: {{steps: 2, batch_size: 4, valid_every: 0, device: cpu}}
"""


def test_audioldm_is_trained_on_sounds_by_it_and_told_texts_wherever_it_is_saved(
    clap_run: Train, manifest: Path, tmp_path: Path
) -> None:
    run = clap_run("clap", "fit.steps=2", "fit.valid_every=0")
    recipe = tmp_path / "audioldm.yaml"
    recipe.write_text(AUDIOLDM.format(folder=tmp_path, clap=run, manifest=manifest))
    config = build(MelAutoencoderConfig, plain(load_recipe(str(recipe)))["system"]["mel_autoencoder"])
    save_autoencoder(tmp_path / "autoencoder", MelAutoencoder(config), {})
    assert main([f"recipe={recipe}", f"out={tmp_path}/system"]) == 0
    system = LatentGenerator.from_pretrained(tmp_path / "system", device="cpu")
    sound = system.generate(["a tone", "rain falls"], 0.5, guidance=2.0, seed=0, sampling=Sampling(steps=2))
    assert not torch.equal(sound[0], sound[1])
    system.save_pretrained(tmp_path / "whole")
    run.rename(tmp_path / "elsewhere")
    again = LatentGenerator.from_pretrained(tmp_path / "whole", device="cpu")
    assert torch.equal(
        again.generate(["a tone", "rain falls"], 0.5, guidance=2.0, seed=0, sampling=Sampling(steps=2)), sound
    )
    with pytest.raises(InputError, match="CLAP model .* cannot be opened"):
        LatentGenerator.from_pretrained(tmp_path / "system", device="cpu").generate(
            ["a tone"], 0.5, guidance=2.0, seed=0, sampling=Sampling(steps=2)
        )
