"""How many sounds a classifier of real recordings recognises: originals, reconstructions, generated clips.

A small convolutional network on log-mel spectrograms learns the labels of real clips (never codec output), then
judges other sounds. It says whether a dog still sounds like a dog to a machine that has heard only real dogs.

    python tools/classify.py train esc10/manifest.jsonl classifier.safetensors     (folds 1-3; tests on fold 4)
    python tools/classify.py codec esc10/manifest.jsonl classifier.safetensors codec_tiny [K ...]
    python tools/classify.py opus esc10/manifest.jsonl classifier.safetensors 0.97 1.0     (compression levels)
    python tools/classify.py lm esc10/manifest.jsonl classifier.safetensors lm_tiny [--per-class 8] [--seed 0]
"""

import argparse
import io
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audiogen import audio
from audiogen.codec.losses import mel_distance
from audiogen.data.manifest import Clip, read_manifest, select

SAMPLE_RATE, NUM_SAMPLES = 16000, 80000
LICENCES = ("CC0", "CC-BY")


class Classifier(nn.Module):
    """Log-mel [B, 1, M, time] -> class scores [B, classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width in (32, 64, 128, 192):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            before = width
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(2 * before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(x).mean(2)  # [B, D, time]
        x = torch.cat([x.mean(-1), x.amax(-1)], -1)
        return self.out(F.dropout(x, 0.3, self.training))


def features(waves: Tensor) -> Tensor:
    """[B, N] -> log-mel [B, 1, 64, time]; peak-normalised, so that level says nothing."""
    waves = waves / waves.abs().amax(-1, keepdim=True).clamp(min=1e-4)
    mel = audio.log_mel(waves[:, None], SAMPLE_RATE, 1024, 320, 64)  # [B, 1, M, time]
    return (mel + 6.0) / 3.0


def read(clips: Sequence[Clip]) -> Tensor:
    """Clips as mono [n, 80000] at 16 kHz."""
    waves = torch.zeros(len(clips), NUM_SAMPLES)
    for row, clip in enumerate(clips):
        wave, _ = audio.load(clip.path, SAMPLE_RATE, 1)
        waves[row, : min(NUM_SAMPLES, wave.shape[-1])] = wave[0, :NUM_SAMPLES]
    return waves


def augment(x: Tensor) -> Tensor:
    """Roll in time, mask bands and stretches, tilt: [B, 1, M, time]."""
    x = torch.stack([row.roll(int(torch.randint(x.shape[-1], ())), -1) for row in x])
    for row in x:
        band, place = int(torch.randint(12, ())), int(torch.randint(52, ()))
        row[:, place : place + band] = row.mean()
        stretch, place = int(torch.randint(50, ())), int(torch.randint(x.shape[-1] - 50, ()))
        row[..., place : place + stretch] = row.mean()
    tilt = torch.linspace(-1, 1, x.shape[2])[:, None] * torch.randn(len(x), 1, 1, 1) * 0.2
    return x + tilt + 0.2 * torch.randn(len(x), 1, 1, 1)


def train(clips: Sequence[Clip], labels: list[str], epochs: int = 60) -> Classifier:
    """A classifier of real clips, with mixup and masking against the small number of them."""
    torch.manual_seed(0)
    x, y = features(read(clips)), torch.tensor([labels.index(clip.fields["label"]) for clip in clips])
    model = Classifier(len(labels)).train()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (0.5 + 0.5 * math.cos(math.pi * epoch / epochs))
        for rows in torch.randperm(len(x)).split(32):
            share = float(torch.distributions.Beta(0.3, 0.3).sample())
            other = rows[torch.randperm(len(rows))]
            mixed = share * augment(x[rows]) + (1 - share) * augment(x[other])
            scores = model(mixed)
            loss = share * F.cross_entropy(scores, y[rows]) + (1 - share) * F.cross_entropy(scores, y[other])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


@torch.no_grad()
def recognised(model: Classifier, waves: Tensor, wanted: list[str], labels: list[str]) -> tuple[float, str]:
    """Share of waves [n, N] classified as wanted, and the shares per class."""
    guesses = [labels[int(i)] for part in waves.split(40) for i in model(features(part)).argmax(-1)]
    right = Counter(w for w, g in zip(wanted, guesses, strict=True) if w == g)
    total = Counter(wanted)
    each = ", ".join(f"{label} {right[label]}/{total[label]}" for label in labels if total[label])
    return sum(right.values()) / len(wanted), each


def through_opus(waves: Tensor, level: float) -> tuple[Tensor, float]:
    """Waves [n, N] coded by Opus, and the kbit/s of its files."""
    coded, num_bytes = torch.zeros_like(waves), 0
    for row, wave in enumerate(waves):
        file = io.BytesIO()
        soundfile.write(file, wave.numpy(), SAMPLE_RATE, "OPUS", format="OGG", compression_level=level)
        num_bytes += len(file.getvalue())
        file.seek(0)
        sound = torch.from_numpy(soundfile.read(file, dtype="float32")[0])[: waves.shape[1]]
        coded[row, : len(sound)] = sound
    return coded, num_bytes * 8 / (waves.numel() / SAMPLE_RATE) / 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Train the judge, or let it judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["train", "codec", "opus", "lm"])
    parser.add_argument("manifest")
    parser.add_argument("classifier", type=Path)
    parser.add_argument(
        "model", nargs="*", help="codec or model, then (codec) numbers of codebooks; or Opus levels"
    )
    parser.add_argument("--per-class", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=250)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)

    clips = read_manifest(arguments.manifest)
    labels = sorted({clip.fields["label"] for clip in clips})
    held_out = select(clips, {"fold": (4,), "license": LICENCES})
    wanted = [clip.fields["label"] for clip in held_out]
    if arguments.what == "train":
        model = train(select(clips, {"fold": (1, 2, 3), "license": LICENCES}), labels)
        save_file(model.state_dict(), arguments.classifier)
        share, each = recognised(model, read(held_out), wanted, labels)
        print(f"fold 4 originals: {share:.1%} of {len(wanted)} ({each})")
        return 0

    model = Classifier(len(labels)).eval()
    model.load_state_dict(load_file(arguments.classifier))
    if arguments.what == "codec":
        from audiogen.codec.pretrained import load_codec

        codec, waves = load_codec(arguments.model[0]), read(held_out)
        for count in map(int, arguments.model[1:] or [codec.num_codebooks]):
            parts = [codec.decode(codec.encode(part[:, None], count))[:, 0] for part in waves.split(8)]
            coded = torch.cat(parts)[:, :NUM_SAMPLES]
            distance = mel_distance(coded[:, None], waves[:, None], SAMPLE_RATE).mean()
            share, each = recognised(model, coded, wanted, labels)
            print(
                f"fold 4 through {arguments.model[0]}, {count} codebooks: log-mel {distance:.3f}, {share:.1%} ({each})"
            )
        return 0

    if arguments.what == "opus":
        waves = read(held_out)
        for level in map(float, arguments.model):
            coded, kbps = through_opus(waves, level)
            distance = mel_distance(coded[:, None], waves[:, None], SAMPLE_RATE).mean()
            share, each = recognised(model, coded, wanted, labels)
            print(f"fold 4 through Opus at {kbps:.1f} kbit/s: log-mel {distance:.3f}, {share:.1%} ({each})")
        return 0

    from audiogen.generators import AudioGen

    generator = AudioGen.from_pretrained(arguments.model[0])
    sounds, asked = [], []
    for row, label in enumerate(labels):
        caption = next(clip.captions[0] for clip in clips if clip.fields["label"] == label)
        seed = arguments.seed + 1000 * row
        made = generator.generate(
            [caption] * arguments.per_class,
            duration_s=5.0,
            guidance=arguments.guidance,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            seed=seed,
        )
        sounds.append(made[:, 0, :NUM_SAMPLES])
        asked += [label] * arguments.per_class
    share, each = recognised(model, torch.cat(sounds), asked, labels)
    print(f"generated by {arguments.model[0]}: {share:.1%} of {len(asked)} ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
