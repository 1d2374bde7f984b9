"""Two recordings one after the other in 5 s, captioned in order: clips that lm_tiny is trained on last.

    python tools/pairs.py esc10/manifest.jsonl runs/pairs 1200
    python tools/pairs.py esc10/manifest.jsonl runs/parts 952 --single

The second writes the loudest 2.5 s of single recordings, with their own captions: short sounds for lafma_tiny. Takes
folds 1-3 under CC0 and CC-BY, the clips that all bundled models train on (tools/attribution.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from audiogen import audio
from audiogen.data.dataset import SourceConfig, read_source
from audiogen.data.manifest import Clip
from audiogen.errors import run_command
from audiogen.files.writing import write_bytes_atomic

Sound = NDArray[np.float32]  # mono [N]

RATE, DURATION_S, PART_S = 16000, 5, 2.5
WHERE = {"fold": (1, 2, 3), "license": ("CC0", "CC-BY")}
# {A}: the first caption as it is; {a}, {b}: captions that begin with a small letter; {label}: the class of the second.
PATTERNS = (
    "{A}, then {b}",
    "{A} and then {b}",
    "{A} before {b}",
    "First {a}, then {b}",
    "After {a}, {b}",
    "{A}, followed by {label}",
)
WORDINGS = 4  # of these for each clip


def loudest(sound: Sound, size: int, random: np.random.Generator) -> Sound:
    """The loudest part of at most `size` samples, moved a little by chance, with fades of 25 ms."""
    size = min(size, len(sound))
    energy = np.cumsum(np.concatenate([[0.0], sound.astype(np.float64) ** 2]))
    starts = np.arange(0, len(sound) - size + 1, RATE // 50)
    start = starts[np.argmax(energy[starts + size] - energy[starts])]
    start = np.clip(start + random.integers(-RATE // 5, RATE // 10), 0, len(sound) - size)
    ramp = np.minimum(1, np.linspace(0, (size - 1) / (RATE // 40 - 1), size))
    return (sound[start : start + size] * np.minimum(ramp, ramp[::-1])).astype(np.float32)


def words(clips: Sequence[Clip], random: np.random.Generator) -> list[str]:
    """Captions of the two clips, in that order."""
    captions = []
    for pattern in random.permutation(PATTERNS)[:WORDINGS]:
        first, second = (str(random.choice(clip.captions)) for clip in clips)
        small = {"a": first[0].lower() + first[1:], "b": second[0].lower() + second[1:]}
        captions.append(pattern.format(A=first, label=clips[1].fields["label"], **small))
    return captions


def read(manifest: Path) -> list[tuple[Clip, Sound]]:
    """The recordings that are trained on."""
    clips = [clip for clip in read_source(SourceConfig(str(manifest), where=WHERE)) if isinstance(clip, Clip)]
    return [(clip, audio.load(clip.path, RATE, 1)[0][0].numpy()) for clip in clips]


def single(manifest: Path, folder: Path, count: int) -> None:
    """Write `count` parts of single recordings, all equally often, with their manifest.jsonl."""
    random, recordings = np.random.default_rng(0), read(manifest)
    lines = []
    for number in range(count):
        clip, sound = recordings[number % len(recordings)]
        part = torch.from_numpy(loudest(sound, int(PART_S * RATE), random))
        part /= part.abs().max().clamp(min=1)
        lines.append(keep(folder, number, part, clip.captions, str(clip.fields["label"])))
    write_bytes_atomic(folder / "manifest.jsonl", "".join(lines).encode())


def keep(folder: Path, number: int, sound: torch.Tensor, captions: Sequence[str], label: str) -> str:
    """Write a clip [N] -> its line of the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{number:05}.wav"
    audio.save(folder / name, sound[None], RATE)
    return json.dumps({"audio": name, "captions": captions, "label": label}) + "\n"


def write(manifest: Path, folder: Path, count: int) -> None:
    """Write `count` clips of two recordings with their manifest.jsonl, the same ones each time."""
    random = np.random.default_rng(0)
    by_label: dict[str, list[tuple[Clip, Sound]]] = {}
    for clip, sound in read(manifest):
        by_label.setdefault(str(clip.fields["label"]), []).append((clip, sound))
    lines = []
    for number in range(count):
        labels = [str(label) for label in random.choice(sorted(by_label), 2, replace=False)]
        middle_s, gap_s = random.uniform(1.9, 3.1), random.uniform(0.1, 0.35)
        pair, chosen = np.zeros(DURATION_S * RATE, np.float32), []
        spans = ((0.0, middle_s - gap_s / 2), (middle_s + gap_s / 2, float(DURATION_S)))
        for label, (start_s, end_s) in zip(labels, spans, strict=True):
            clip, sound = by_label[label][random.integers(len(by_label[label]))]
            part = loudest(sound, int((end_s - start_s) * RATE), random)
            part *= random.uniform(0.3, 0.8) / max(np.abs(part).max(), 1e-4)
            start = int(start_s * RATE)
            pair[start : start + len(part)] = part
            chosen.append(clip)
        lines.append(keep(folder, number, torch.from_numpy(pair), words(chosen, random), ", ".join(labels)))
    write_bytes_atomic(folder / "manifest.jsonl", "".join(lines).encode())


def main(argv: Sequence[str] | None = None) -> int:
    """Read the manifest of ESC-10, write clips of pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="manifest.jsonl of ESC-10")
    parser.add_argument("folder", type=Path, help="where the clips go")
    parser.add_argument("count", type=int, help="how many")
    parser.add_argument("--single", action="store_true", help="parts of 2.5 s of one recording each")
    arguments = parser.parse_args(argv)
    (single if arguments.single else write)(arguments.manifest, arguments.folder, arguments.count)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
