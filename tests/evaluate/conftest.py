"""What tests of evaluation share: a tiny tagger with random weights, and labelled sounds of its classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audiogen import audio
from audiogen.interfaces import Sampling
from audiogen.provenance import Provenance

LABELS = ("tone", "noise", "pulses")


@pytest.fixture(autouse=True, scope="session")
def few_rounds() -> Iterator[None]:
    """Intervals by few resamplings: what they surround is tested here, how well in test_metrics."""
    from audiogen.evaluate import metrics, scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scores, "ROUNDS", metrics.FEWEST_ROUNDS)
        patch.setattr(scores, "INFINITY_ROUNDS", metrics.FEWEST_ROUNDS)
        yield


def make_sound(label: str, number: int, sample_rate: int = 8000, duration_s: float = 0.4) -> Tensor:
    """A sound [1, N] of one of the labels, different for every number."""
    random = torch.Generator().manual_seed(number)
    time_s = torch.arange(round(sample_rate * duration_s)) / sample_rate
    noise = torch.randn(len(time_s), generator=random)
    if label == "tone":
        return 0.5 * torch.sin(2 * torch.pi * (300 + 70 * number) * time_s)[None] + 0.01 * noise
    if label == "noise":
        return 0.1 * noise[None]
    return (0.3 * noise * ((time_s * (5 + number)) % 1 < 0.2))[None]


class Diffusion:
    """A stand-in for a diffusion system: a call takes `fixed_s`, and `step_s` for each step of each row."""

    sample_rate, channels, max_duration_s = 1000, 1, 10.0
    family, latent_rate, num_parameters, notes = "diffusion", "10 Hz x 8", 77, ()
    default_steps, guidance = 20, 2.5

    def __init__(self, fixed_s: float = 0.5, step_s: float = 0.125) -> None:
        self.fixed_s, self.step_s, self.now_s = fixed_s, step_s, 0.0
        self.calls: list[tuple[int, int]] = []  # (rows, steps)

    def generate(
        self,
        texts: Sequence[str | None],
        duration_s: float,
        *,
        guidance: float,
        seed: int,
        sampling: Sampling,
    ) -> Tensor:
        steps = sampling.steps or self.default_steps
        self.calls.append((len(texts), steps))
        self.now_s += self.fixed_s + self.step_s * steps * len(texts)
        rows = [
            torch.randn(1, round(duration_s * self.sample_rate), generator=torch.Generator().manual_seed(row))
            for row in range(seed, seed + len(texts))
        ]
        return 0.1 * torch.stack(rows)

    def reconstruct(self, audio: Tensor) -> Tensor:
        return audio

    def num_evaluations(self, duration_s: float, guidance: float, steps: int | None = None) -> int:
        return (steps or self.default_steps) * (1 if guidance == 1 else 2)

    def steps_at_most(self, steps: int | None) -> int:
        return steps or self.default_steps

    def identity(self) -> str:
        return "0123456789abcdef"

    def provenance(self, settings: Mapping[str, Any]) -> Provenance:
        return Provenance("diffusion", settings=settings)

    def clock(self) -> float:
        return self.now_s


@pytest.fixture
def diffusion() -> type[Diffusion]:
    """The class of a generator with steps, whose own clock says how long it took."""
    return Diffusion


@pytest.fixture(scope="session")
def tiny_tagger(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The spec of an embedder: a tagger of 4 dimensions at 8 kHz, random but for units like a trained one's."""
    from audiogen.data.synth.scene import KINDS
    from audiogen.models.own import save_tagger
    from audiogen.tagger.model import Tagger, TaggerConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = TaggerConfig(
            groups={"esc10": LABELS, "synth": tuple(KINDS)},
            sample_rate=8000,
            n_fft=256,
            hop_length=64,
            n_mels=16,
            widths=(4, 8),
            time_pools=(2, 2),
            frame_width=8,
            dim=4,
        )
        tagger = Tagger(config)
        with torch.no_grad():  # batch norms learn the scale of real sounds
            for _ in range(20):
                tagger(torch.cat([make_sound(label, number) for label in LABELS for number in range(4)]))
            tagger.clip_head.weight.mul_(4.0)
    folder = tmp_path_factory.mktemp("tagger") / "tagger_x"
    save_tagger(folder, tagger)
    return f"tagger:{folder}"


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 18 clips of three labels, two wordings each, in two folds."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = []
    for number in range(6):
        for label in LABELS:
            name = f"{label}_{number}.wav"
            audio.save(folder / name, make_sound(label, number), 8000)
            lines.append(
                {
                    "audio": name,
                    "captions": [f"a {label}", f"{label} sounds"],
                    "label": label,
                    "fold": number % 2,
                }
            )
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "manifest.jsonl"


def save_clap(folder: Path, fusion: bool) -> Path:
    """A tiny CLAP with random weights, as the hub serves it."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, RobertaTokenizer

    torch.manual_seed(0)
    audio = {
        "window_size": 4,
        "num_mel_bins": 16,
        "spec_size": 64,
        "hidden_size": 32,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "patch_embeds_hidden_size": 16,
        "num_hidden_layers": 2,
        "enable_fusion": fusion,
        "fusion_type": "aff_2d" if fusion else None,
    }
    text = {
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 20,
    }
    model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12))
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1 and "logit" not in name:
            torch.nn.init.normal_(tensor, std=0.3)  # the default is so small that all sounds are alike
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=80,
        max_length_s=1,
        fft_window_size=256,
        frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    ).save_pretrained(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"Ġabcdefghijklmnopqrstuvwxyz"]
    RobertaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="session")
def clap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clap(tmp_path_factory.mktemp("hub") / "tiny-clap", fusion=False)


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clap(tmp_path_factory.mktemp("hub") / "tiny-clap-fused", fusion=True)
