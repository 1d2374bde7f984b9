"""Clips of two recordings: the sounds come in the order that their captions say, from clips that may be used."""

import json
import runpy
from pathlib import Path

import numpy as np
import torch

from audiogen import audio
from audiogen.data.manifest import read_manifest

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
HZ = {"hum": 300, "whistle": 3000, "noise": 5500}


def strongest_hz(sound: torch.Tensor) -> float:
    """Of mono audio [N]."""
    return float(torch.fft.rfft(sound).abs().argmax() * RATE / len(sound))


def test_order_and_selection(tmp_path: Path) -> None:
    time = torch.arange(5 * RATE) / RATE
    lines = []
    # A test clip (fold 4) and one whose licence forbids some uses; a sound that is shorter than its part.
    for label, fold, license, seconds in (
        ("hum", 1, "CC0", 5),
        ("whistle", 2, "CC-BY", 2),
        ("hum", 3, "CC0", 5),
        ("noise", 4, "CC0", 5),
        ("noise", 1, "Sampling+", 5),
    ):
        name = f"{label}{fold}.wav"
        audio.save(
            tmp_path / name, 0.5 * torch.sin(2 * np.pi * HZ[label] * time)[None, : seconds * RATE], RATE
        )
        lines.append(
            {"audio": name, "captions": [f"A {label}"], "label": label, "fold": fold, "license": license}
        )
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    tool = runpy.run_path(str(ROOT / "tools" / "pairs.py"))
    tool["write"](tmp_path / "manifest.jsonl", tmp_path / "pairs", 6)

    tool["single"](tmp_path / "manifest.jsonl", tmp_path / "parts", 6)  # each recording twice
    parts = read_manifest(tmp_path / "parts" / "manifest.jsonl")
    assert [clip.fields["label"] for clip in parts] == ["hum", "whistle", "hum"] * 2
    for clip in parts:
        sound = audio.load(clip.path)[0][0]
        assert len(sound) == min(2.5, 2 if clip.fields["label"] == "whistle" else 5) * RATE
        assert strongest_hz(sound) == HZ[str(clip.fields["label"])] and clip.captions[0].split()[1] in HZ

    clips = read_manifest(tmp_path / "pairs" / "manifest.jsonl")
    assert {str(clip.fields["label"]) for clip in clips} == {"hum, whistle", "whistle, hum"}
    for clip in clips:
        sound = audio.load(clip.path)[0][0]
        assert len(sound) == 5 * RATE
        first, second = str(clip.fields["label"]).split(", ")
        assert strongest_hz(sound[: int(1.6 * RATE)]) == HZ[first]
        assert strongest_hz(sound[int(3.4 * RATE) : int(3.9 * RATE)]) == HZ[second]
        assert len(clip.captions) == 4
        for caption in clip.captions:
            text = caption.lower()
            assert text.index(first) < text.index(second), caption
