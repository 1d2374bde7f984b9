"""How much stereo there is in a stereo model's sounds: originals, the same through its codec, and generated ones.

    python tools/stereo.py --model runs/lm_stereo --clips 40 --picture stereo.png

Originals are clips of the built-in corpus that no recipe trains on, and their captions are the texts. Of each sound:
the correlation of left and right; the share of the side, (L - R) / 2, in the energy of middle and side; and the level
of left above right, whose agreement with the original's says whether a sound is where it was.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED
from audiogen.errors import InputError, run_command
from audiogen.evaluate.order import FIRST_CLIP
from audiogen.generators.load import load

CLEARLY_DB = 1.0  # a level of one side above the other from which on a sound stands on that side


def stereo(sounds: Tensor) -> Tensor:
    """Sounds [B, 2, N] -> [B, 3]: correlation of the channels, share of the side, dB of left above right."""
    left, right = sounds.double().unbind(1)
    power = [x.square().mean(1) + 1e-12 for x in (left, right, (left + right) / 2, (left - right) / 2)]
    correlation = ((left - left.mean(1, True)) * (right - right.mean(1, True))).mean(1) / (
        power[0] * power[1]
    ).sqrt()
    return torch.stack([correlation, power[3] / (power[2] + power[3]), 10 * (power[0] / power[1]).log10()], 1)


def line(name: str, found: Tensor, original: Tensor | None = None) -> str:
    """Means of what `stereo` found [B, 3], and how far levels agree with those of the originals [B, 3]."""
    correlation, side, level = found.unbind(1)
    text = f"{name:14} correlation {correlation.mean():5.2f}  side {100 * side.mean():4.1f} %"
    text += f"  level {level.abs().mean():4.1f} dB apart"
    if original is not None:
        clear = original[:, 2].abs() > CLEARLY_DB
        same = (level[clear] > 0) == (original[clear, 2] > 0)
        pairs = torch.stack([level, original[:, 2]])
        text += f"; on the same side {int(same.sum())} of {int(clear.sum())}"
        text += f", r of the levels {torch.corrcoef(pairs)[0, 1]:.2f}"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for originals, reconstructions and generated sounds."""
    parser = argparse.ArgumentParser(prog="tools/stereo.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True, help="a generator of stereo sounds")
    parser.add_argument("--clips", type=int, default=40, help="how many clips of the built-in corpus")
    parser.add_argument("--picture", type=Path, help="PNG with the spectrograms of three")
    args = parser.parse_args(argv)
    model = load(args.model)
    if model.channels != 2:
        raise InputError(f"{args.model} has {model.channels} channel; give a model of stereo sounds")
    clips = [
        synth.render(SYNTH_SEED, FIRST_CLIP + number, model.sample_rate, 5.0, channels=2)
        for number in range(args.clips)
    ]
    originals = torch.stack([clip.audio for clip in clips])
    through = torch.cat([model.reconstruct(clip[None]) for clip in originals])
    texts = [clip.captions[0] for clip in clips]
    made = model.generate(texts, 5.0, seed=0)
    first = stereo(originals)
    print(line("originals", first))
    print(line("through codec", stereo(through), first))
    print(line("generated", stereo(made)))
    if args.picture:
        farthest = (
            first[:, 2].abs().argsort(descending=True)[:3].tolist()
        )  # those that stand most to one side
        sources = {"original": originals, "through": through, "generated": made}
        rows = [
            [
                (f"{side}, {name}: {texts[number]}"[:50], sounds[number, channel][None])
                for name, sounds in sources.items()
            ]
            for number in farthest
            for channel, side in enumerate(("left", "right"))
        ]
        # by its name, for mypy takes each file of tools for a module without a package
        draw = importlib.import_module("tools.figures").draw
        draw(args.picture, rows, wide=3.4, tall=1.2, rate=model.sample_rate)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
