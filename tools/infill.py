"""How well a language model fills a gap of 1 s, beside a continuation that does not see what comes after it.

    python tools/infill.py --model runs/lm_tiny_infill --data esc10/manifest.jsonl --where fold=4
    python tools/infill.py --model runs/lm_tiny_infill --data esc10/manifest.jsonl --picture docs/figures/infill.png

Of each clip 2 to 3 s are removed and made again, with its first caption: by the model from both sides; by `--beside`,
which never saw what comes after a gap, from what is before; and by silence. What is outside stays in all of them.
Printed are means over the clips, with the clip itself and the codec's rendering of it as bounds:
- distance: mean difference of the log-mel spectra in the gap from those of the clip, dB;
- level, spectrum: the jump at the end of the gap, as tools/loops.py measures it, dB;
- after: how likely `--beside` finds the 0.25 s after the gap, of what is before, nats a code, less than in the clip.
Last, the nats a code of the clip's own codes in the gap: by the model from both sides and from what is before, and by
`--beside` from what is before.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import RATE, Panel, draw
from loops import jumps
from torch import Tensor

from audiogen import audio
from audiogen.data.manifest import read_manifest
from audiogen.errors import InputError, run_command
from audiogen.generators import level
from audiogen.generators.load import AudioGen, load
from audiogen.interfaces import Edit, Sampling
from audiogen.lm.infill import arrange
from audiogen.lm.model import teacher_forcing, token_loss
from audiogen.lm.score import log_likelihood
from audiogen.spectrogram import log_mel

CLIP_S, BEGIN_S, END_S, AFTER_S = 5.0, 2.0, 3.0, 0.25
COLUMNS = ("distance", "level", "spectrum", "after")
QUIET = 0.01  # -40 dBFS: a gap below it is silence in the clip already


def clips(manifest: Path, where: str, most: int) -> Iterator[tuple[str, Tensor]]:
    """Captions and sounds [1, N] that are not silent where they are to be filled."""
    key, _, value = where.partition("=")
    begin, end = (round(second * RATE) for second in (BEGIN_S, END_S))
    count = 0
    for clip in read_manifest(manifest):
        if str(clip.fields.get(key)) != value or count == most:
            continue
        sound = audio.load(clip.path, RATE, 1)[0][:, : round(CLIP_S * RATE)]
        around = sound[:, begin - RATE // 2 : end + RATE // 2].square().mean().sqrt()
        if sound.shape[-1] == round(CLIP_S * RATE) and around > QUIET:
            count += 1
            yield clip.captions[0], sound


def fillings(
    model: AudioGen, beside: AudioGen, text: str, sound: Tensor, seed: int, guidance: float
) -> dict[str, Tensor]:
    """What is put into the gap of a sound [1, N], by the name of the way: sounds [1, N]."""
    begin, end = (round(second * RATE) for second in (BEGIN_S, END_S))
    keep = level.Kept(sound, begin, end, RATE, model.codec.hop_length)
    settings: dict[str, Any] = {"seed": seed, "guidance": guidance, "sampling": Sampling(in_order=False)}
    silenced = sound.clone()
    silenced[:, begin:end] = 0  # else the codec's frames beside the gap hold a little of it
    filled = {
        name: model.generate([text], CLIP_S, edit=Edit(given, RATE, inpaint=(BEGIN_S, END_S)), **settings)[0]
        for name, given in (("filled", sound), ("filled, silence given", silenced))
    }
    made = {"clip": sound, "codec": model.reconstruct(sound[None])[0], "silence": torch.zeros_like(sound)}
    for name, generator in (("continued", beside), ("continued by the model", model)):
        part = generator.generate([text], END_S, prompt=(sound[:, :begin], RATE), **settings)[0]
        made[name] = torch.cat([part, sound[:, end:]], -1)
    return {name: level.finish(each, keep)[0] for name, each in made.items()} | filled


def figures(beside: AudioGen, text: str, sound: Tensor, made: Tensor) -> list[float]:
    """COLUMNS of one filling [1, N] of a sound [1, N]."""
    begin, end = (round(second * RATE) for second in (BEGIN_S, END_S))
    mels = [log_mel(each[None, :, begin:end], RATE, floor=1e-3)[0] for each in (sound, made)]
    distance = 20 / 2.302585 * float((mels[0] - mels[1]).abs().mean())  # of natural logarithms
    jump = jumps(made[0], torch.tensor([end]), RATE)[0]
    (condition,) = beside._conditions([text], Sampling())
    first, last = round(END_S * beside.frame_rate), round((END_S + AFTER_S) * beside.frame_rate)
    codes = torch.cat([beside._encode(each)[..., :last] for each in (made, sound)])
    codes[0, :, first:] = codes[1, :, first:]  # the same codes are scored
    after = log_likelihood(beside.decoder, condition, codes, first)
    return [distance, float(jump[0]), float(jump[1]), float(after[0] - after[1])]


def nats(model: AudioGen, text: str, sound: Tensor, both_sides: bool) -> float:
    """Of the clip's own codes in the gap [1, N], each given those that the model sees before it in its sequence."""
    codes = model._encode(sound)
    gap = round(BEGIN_S * model.frame_rate), round(END_S * model.frame_rate)
    codes = codes if both_sides else codes[..., : gap[1]]
    pattern, places = arrange(model.config, codes.shape[2], gap)
    inputs, targets, _ = teacher_forcing(model.lm, codes, pattern=pattern)
    is_new = ((pattern.frame >= gap[0]) & (pattern.frame < gap[1]))[None, :, 1:]
    (condition,) = model._conditions([text], Sampling())
    return float(token_loss(model.lm(inputs, condition, positions=places[:-1]), targets, is_new)[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or draw the picture."""
    parser = argparse.ArgumentParser(prog="tools/infill.py", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--beside", default="lm_tiny")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--where", default="fold=4")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args(argv)
    model, beside = load(args.model), load(args.beside)
    if not (isinstance(model, AudioGen) and isinstance(beside, AudioGen)):
        raise InputError("--model and --beside are language models; give those")
    found: dict[str, list[list[float]]] = {}
    own: dict[str, list[float]] = {}
    rows: list[list[Panel]] = []
    drawn: set[str] = set()
    with torch.inference_mode():
        for number, (text, sound) in enumerate(clips(args.data, args.where, args.clips)):
            if args.picture and (text in drawn or len(rows) == 3):
                continue
            drawn.add(text)
            made = fillings(model, beside, text, sound, number, args.guidance)
            shown = {
                "": sound,
                ", gap": made["silence"],
                ", filled": made["filled"],
                ", continued": made["continued"],
            }
            rows.append([(f"{text}{name}" if not name else name[2:], each) for name, each in shown.items()])
            for name, each in made.items():
                found.setdefault(name, []).append(figures(beside, text, sound, each))
            for name, one, both in (
                ("both", model, True),
                ("before", model, False),
                ("beside", beside, False),
            ):
                own.setdefault(name, []).append(nats(one, text, sound, both))
    if args.picture:
        draw(args.picture, rows, 2.6, 1.3)
        return 0
    print(f"{args.model}, {len(rows)} clips, guidance {args.guidance:g}: " + ", ".join(COLUMNS))
    for name, values in found.items():
        print(f"{name:24}", *(f"{value:7.2f}" for value in torch.tensor(values).mean(0).tolist()))
    print(
        "nats a code in the gap:", {name: round(sum(values) / len(values), 3) for name, values in own.items()}
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
