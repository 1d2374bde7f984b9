"""The sound of a slide show: an ambience for each slide, cross-faded, as long as the slides are shown.

    python examples/slideshow.py examples/slides.csv soundtrack.wav

The table has a line for each slide: seconds, text. To put the result under a video:
ffmpeg -i slides.mp4 -i soundtrack.wav -c:v copy -shortest film.mp4
"""

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import audiogen
from audiogen import audio

FADE_S, LEVEL_DB = 1.0, -26.0  # from slide to slide; root of the mean square of each ambience


def join(sounds: Sequence[Tensor], starts: Sequence[int], fade: int, length: int) -> Tensor:
    """Sounds [C, n] at their first samples, each faded in and out over `fade` samples -> [C, length].

    Sine and cosine ramps: the powers of two different sounds add up to one, so the level stays through the cross-fade.
    """
    result = torch.zeros(sounds[0].shape[0], length)
    ramp = torch.sin(torch.linspace(0, math.pi / 2, fade))
    for sound, start in zip(sounds, starts, strict=True):
        sound = sound.clone()
        sound[:, :fade] *= ramp
        sound[:, -fade:] *= ramp.flip(0)
        end = min(length, start + sound.shape[1])
        result[:, start:end] += sound[:, : end - start]
    return audio.below_full_scale(result)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the slides, make a sound for each, join them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slides", type=Path, help="CSV file with the columns seconds, text")
    parser.add_argument("out", type=Path, help="sound file: .wav, .flac, .ogg or .mp3")
    parser.add_argument("--model", default="lm_tiny", help="default: lm_tiny")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with args.slides.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    model = audiogen.load(args.model)
    rate, seconds = model.sample_rate, [float(row["seconds"]) for row in rows]
    durations = [duration + FADE_S for duration in seconds]  # each goes on while the next one begins
    batch = model.generate([row["text"] for row in rows], durations, seed=args.seed)  # [B, C, N]
    sounds = [sound[:, : round(duration * rate)] for sound, duration in zip(batch, durations, strict=True)]
    sounds = [
        sound * (10 ** (LEVEL_DB / 20) / sound.square().mean().sqrt().clamp(min=1e-6)) for sound in sounds
    ]
    starts = [round(sum(seconds[:number]) * rate) for number in range(len(rows))]
    soundtrack = join(sounds, starts, round(FADE_S * rate), round(sum(seconds) * rate))
    audio.save(args.out, soundtrack, rate)
    print(f"{args.out}: {soundtrack.shape[1] / rate:g} s for {len(rows)} slides")


if __name__ == "__main__":
    main()
