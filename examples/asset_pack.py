"""A pack of sound effects for a game from a table: one folder, one JSON file that a game engine can read.

    python examples/asset_pack.py examples/assets.csv pack/

The table has a line for each effect: name, text, seconds, takes. Each take is another seed of the same text, so that a
footstep is not the same one every time. Silence at both ends is cut, and every sound has its peak at -1 dB.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import audiogen
from audiogen import audio

SILENCE_DB, PEAK_DB, FADE_S = -40.0, -1.0, 0.005


def finish(sound: Tensor, sample_rate: int) -> Tensor:
    """[C, N] -> [C, n]: without silence at the ends, faded in and out, its peak at PEAK_DB."""
    loud = (sound.abs().amax(0) > sound.abs().max() * 10 ** (SILENCE_DB / 20)).nonzero().flatten()
    if not len(loud):
        return sound
    sound = sound[:, int(loud[0]) : int(loud[-1]) + 1]
    n = min(round(FADE_S * sample_rate), sound.shape[1] // 2)
    ramp = torch.ones(sound.shape[1])
    ramp[:n], ramp[len(ramp) - n :] = torch.linspace(0, 1, n), torch.linspace(1, 0, n)
    return sound * ramp * (10 ** (PEAK_DB / 20) / sound.abs().max())


def main(argv: Sequence[str] | None = None) -> None:
    """Read the table, make all takes, write the pack."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", type=Path, help="CSV file with the columns name, text, seconds, takes")
    parser.add_argument("out", type=Path, help="folder of the pack")
    parser.add_argument("--model", default="lm_tiny", help="default: lm_tiny")
    args = parser.parse_args(argv)
    with args.table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) for _ in range(int(row["takes"]))]

    model = audiogen.load(args.model)
    texts, durations = [row["text"] for row in rows], [float(row["seconds"]) for row in rows]
    seeds = list(range(len(rows)))
    sounds = model.generate(texts, durations, seed=seeds)  # [B, C, N], shorter ones padded with silence

    pack: dict[str, list[dict[str, object]]] = {}
    for row, seed, sound in zip(rows, seeds, sounds, strict=True):
        takes = pack.setdefault(row["name"], [])
        path = args.out / row["name"] / f"{row['name']}_{len(takes) + 1:02}.wav"
        sound = finish(sound, model.sample_rate)
        audio.save(path, sound, model.sample_rate)
        seconds = round(sound.shape[1] / model.sample_rate, 3)
        takes.append(
            {
                "file": path.relative_to(args.out).as_posix(),
                "seconds": seconds,
                "seed": seed,
                "text": row["text"],
            }
        )
    contents = {"model": args.model, "sample_rate": model.sample_rate, "sounds": pack}
    (args.out / "pack.json").write_text(json.dumps(contents, indent=2))
    print(f"{args.out / 'pack.json'}: {len(rows)} sounds of {len(pack)} effects")


if __name__ == "__main__":
    main()
