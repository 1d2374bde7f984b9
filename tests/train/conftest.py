"""A world in small: eight one-second sounds at 2 kHz, a codec and a language model that train in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import audio
from audiogen.train.__main__ import main
from audiogen.train.log import read_log

SAMPLE_RATE = 2000

CODEC = """
task: codec
out: {out}
model:
  sample_rate: 2000
  arch: spectral
  spectral: {{n_fft: 80, hop_length: 40, width: 16, num_encoder_blocks: 1, num_decoder_blocks: 1, kernel_size: 3}}
  latent_dim: 6
  num_codebooks: 3
  codebook_size: 8
  dead_below: 0.1
  kmeans_iterations: 3
loss: {{mel_windows: [64, 128]}}
adversarial: {{start: 2, every: 2}}
discriminator: {{n_ffts: [64], num_filters: 2, dilations: [1]}}
optim: {{lr: 1e-3, warmup_steps: 2}}
discriminator_optim: {{lr: 1e-3, warmup_steps: 2}}
data: {{train: {manifest}, valid: {manifest}, segment_s: 0.5, gain_db: [-6, 0]}}
fit: {{steps: 6, batch_size: 4, ema_decay: 0.9, log_every: 1, valid_every: 4, save_every: 2, device: cpu}}
"""

LM = """
task: lm
out: {out}
codec: {codec}
model: {{num_codebooks: 3, codebook_size: 8, dim: 16, num_layers: 2, num_heads: 2, dropout: 0.1}}
text: {{width: 16, vocab_size: 64, dim: 8, num_layers: 1, num_heads: 2}}
condition_dropout: 0.3
optim: {{lr: 1e-2, warmup_steps: 2}}
data: {{train: {manifest}, valid: {manifest}, segment_s: 0.5, mix_probability: 0.3}}
fit: {{steps: 6, batch_size: 4, ema_decay: 0.9, log_every: 1, valid_every: 4, save_every: 2, device: cpu}}
"""

Train = Callable[..., Path]


def losses(run: Path) -> list[float]:
    """The training loss of each step that is in a run's log."""
    return [record["train/loss"] for record in read_log(run) if "train/loss" in record]


def scalars(run: Path) -> list[dict[str, Any]]:
    """The records of a run's log without what depends on the time that it took."""
    timed = "time_s", "speed/"
    return [
        {key: value for key, value in record.items() if not key.startswith(timed)} for record in read_log(run)
    ]


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones and noises with two wordings each."""
    folder = tmp_path_factory.mktemp("sounds")
    random = torch.Generator().manual_seed(0)
    time_s = torch.arange(SAMPLE_RATE) / SAMPLE_RATE
    lines = []
    for number in range(8):
        if number % 2:
            sound, words = 0.1 * torch.randn(SAMPLE_RATE, generator=random), ["rain falls", "it is raining"]
        else:
            sound, words = (
                0.3 * torch.sin(2 * torch.pi * (100 + 50 * number) * time_s),
                ["a tone", "a steady tone"],
            )
        audio.save(folder / f"{number}.wav", sound[None], SAMPLE_RATE)
        lines.append(json.dumps({"audio": f"{number}.wav", "captions": words}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def codec_dir(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec's model directory, trained for three steps."""
    folder = tmp_path_factory.mktemp("codec")
    (folder / "recipe.yaml").write_text(CODEC.format(out=folder / "run", manifest=manifest))
    assert main([f"recipe={folder}/recipe.yaml", "fit.steps=3", "fit.valid_every=0"]) == 0
    return folder / "run"


@pytest.fixture
def codec_run(manifest: Path, tmp_path: Path) -> Train:
    """codec_run("name", "key=value", ...) trains the tiny codec in tmp_path/name and returns that directory."""
    (tmp_path / "codec.yaml").write_text(CODEC.format(out=tmp_path / "out", manifest=manifest))
    return _train(tmp_path / "codec.yaml", tmp_path)


@pytest.fixture
def lm_run(manifest: Path, codec_dir: Path, tmp_path: Path) -> Train:
    """As codec_run, for the tiny language model."""
    (tmp_path / "lm.yaml").write_text(LM.format(out=tmp_path / "out", codec=codec_dir, manifest=manifest))
    return _train(tmp_path / "lm.yaml", tmp_path)


def _train(recipe: Path, folder: Path) -> Train:
    def train(name: str, *settings: str) -> Path:
        assert main([f"recipe={recipe}", f"out={folder / name}", *settings]) == 0
        return folder / name

    return train
