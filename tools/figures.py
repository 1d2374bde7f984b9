"""The pictures and tables of README and docs/, made again.

    python tools/figures.py sounds --data esc10/manifest.jsonl     README: real recordings beside generated sounds
    python tools/figures.py options                                docs/generate.md: what an option does to a sound
    python tools/figures.py finishing                              docs/finishing.md: waveforms
    python tools/figures.py control                                docs/control.md: loops, schedules, morphs, edits
    python tools/figures.py curves OUT.png KEY[,KEY..] LABEL=RUN ..    docs/train.md: from the logs of training runs
    python tools/figures.py samples OUT.png TEXT LABEL=RUN ..          docs/train.md: what the runs' models make
    python tools/figures.py table evaluation/compare/report.json --made "on DATE, on MACHINE"
                                                  keep a comparison's figures in docs/figures, and write README's table
    python tools/figures.py table                 the table again, from the figures that are kept

Spectrograms are mel spectra of one range of levels, so that a soft sound looks dark. Tables stand between
`<!-- table: NAME -->` and `<!-- end of table -->`; a test compares them with the figures that are kept.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import audiogen
from audiogen import audio
from audiogen.data.manifest import read_manifest
from audiogen.errors import InputError, run_command
from audiogen.files.writing import write_json
from audiogen.finish import PEAK_DB, Finish
from audiogen.interfaces import Edit, Sampling
from audiogen.spectrogram import LEVELS_DB, log_mel
from audiogen.train.log import read_log

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs/figures"
KEPT = FIGURES / "compare.json"
RATE = 16_000
# Label of ESC-10 -> the text that is asked for.
KINDS = {
    "rooster": "a rooster crows",
    "dog bark": "a dog barks",
    "clock tick": "a clock ticks",
    "sea waves": "sea waves wash ashore",
}
Panel = tuple[str, Tensor]  # a title, and a sound [C, N]
FOLDERS = re.compile(r"(?<![\w.])/[^\s`]*/(?=[^/\s`]+/[^/\s`]+)")  # of an absolute path, but the last


def draw(
    path: Path, rows: Sequence[Sequence[Panel]], wide: float = 2.6, tall: float = 1.5, rate: int = RATE
) -> None:
    """A grid of mel spectrograms, 5 s or what the longest sound has, all on one axis of time."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(wide * columns, tall * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharex=True)
    for row, panels in zip(axes, rows, strict=True):
        for axis, (title, sound) in zip(row, panels, strict=True):
            mel = log_mel(sound.mean(0)[None, None], rate)[0, 0] * (
                20 / torch.log(torch.tensor(10.0))
            )  # [M, T] dB
            end = sound.shape[-1] / rate
            low, high = LEVELS_DB
            axis.imshow(
                mel.numpy(),
                origin="lower",
                aspect="auto",
                cmap="magma",
                vmin=low,
                vmax=high,
                extent=(0, end, 0, 1),
            )
            axis.set_yticks([])
            axis.set_title(title, fontsize=8, loc="left")
            axis.tick_params(labelsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("time (s)", fontsize=7)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """A PNG of 64 colours: a third of the bytes, and spectrograms have no more shades in print."""
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(file).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(path)


def make(name: str, text: str, **settings: Any) -> Tensor:
    """A sound [C, N] of a bundled model, of seed 0 unless given."""
    return audiogen.load(name).generate([text], **{"seed": 0, **settings})[0]


def sounds(data: Path) -> None:
    """README's picture: one row a kind; a CC0 recording of fold 4, and what the bundled models make."""
    clips = [c for c in read_manifest(data) if c.fields.get("fold") == 4 and c.fields.get("license") == "CC0"]
    rows = []
    for label, text in KINDS.items():
        clip = next((c for c in clips if c.fields.get("label") == label), None)
        if clip is None:
            raise InputError(f"{data} has no CC0 clip of fold 4 with the label {label!r}")
        real, _ = audio.load(clip.path, RATE, 1)
        made = [(f"{name}: {text}", make(name, text)) for name in ("lm_tiny", "lafma_tiny")]
        rows.append([(f"recording: {label}", real[:, : 5 * RATE]), *made])
    draw(FIGURES / "sounds.png", rows, 3.2, 1.35)


def options() -> None:
    """The pictures of docs/generate.md: one option a picture."""
    rooster, clock = KINDS["rooster"], KINDS["clock tick"]
    panels = [(f"guidance {w:g}", make("lm_tiny", rooster, guidance=w)) for w in (1.0, 2.0, 3.0, 6.0)]
    draw(FIGURES / "guidance.png", [panels])
    panels = [
        (f"temperature {t:g}", make("lm_tiny", clock, sampling=Sampling(temperature=t)))
        for t in (0.0, 0.7, 1.0, 1.3)
    ]
    draw(FIGURES / "temperature.png", [panels])
    panels = [(f"steps {n}", make("lafma_tiny", rooster, sampling=Sampling(steps=n))) for n in (1, 3, 12, 50)]
    draw(FIGURES / "steps.png", [panels])
    given = make("lafma_tiny", KINDS["sea waves"])
    dog = KINDS["dog bark"]
    edits = [(f"strength {s:g}", Edit(given, RATE, strength=s)) for s in (0.3, 0.6, 0.9)]
    edits.append(("inpaint 1:4", Edit(given, RATE, inpaint=(1.0, 4.0))))
    panels = [("given", given), *((title, make("lafma_tiny", dog, edit=edit)) for title, edit in edits)]
    draw(FIGURES / "change.png", [panels], 2.1)


def control() -> None:
    """The pictures of docs/control.md: two rounds of a loop, a text that changes, a morph, and a sound made longer."""
    names, siren = ("lm_tiny", "lafma_tiny"), "a siren wails"
    panels = [
        (
            f"{name}{', --loop' if loop else ''}",
            make(name, siren, duration_s=2.5, sampling=Sampling(loop=loop)),
        )
        for name in names
        for loop in (False, True)
    ]
    draw(FIGURES / "loops.png", [[(title, sound.repeat(1, 2)) for title, sound in panels]])
    rain, rooster = "rain falls", KINDS["rooster"]
    later = Sampling(schedule=((3.0, rooster),))
    panels = [
        (f"{name}: rain, rooster at 3 s", make(name, rain, duration_s=6.0, sampling=later)) for name in names
    ]
    draw(FIGURES / "schedule.png", [panels], 4.0, 1.6)
    clock = KINDS["clock tick"]
    panels = [
        (
            f"morph {share:g}",
            make("lafma_tiny", clock, duration_s=3.0, sampling=Sampling(to=rain, morph=share)),
        )
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    draw(FIGURES / "morph.png", [panels], 2.1)
    waves = KINDS["sea waves"]
    given = make("lafma_tiny", waves, duration_s=2.0)
    edits = {
        "two parts anew": Edit(given, RATE, inpaint=((0.3, 0.7), (1.2, 1.7)), inpaint_resample=5),
        "--extend-before 2": Edit(given, RATE, extend_before_s=2.0),
        "--extend 2": Edit(given, RATE, extend_s=2.0),
    }
    texts = [KINDS["dog bark"], waves, waves]
    panels = [
        (title, make("lafma_tiny", text, duration_s=edit.duration_s, edit=edit))
        for text, (title, edit) in zip(texts, edits.items(), strict=True)
    ]
    draw(FIGURES / "longer.png", [[("given", given), *panels]])


def curves(path: Path, keys: Sequence[str], runs: Mapping[str, Path]) -> None:
    """One panel a run: its `train/loss`, and the scalars of `keys`, over the steps."""
    figure = Figure(figsize=(3.4 * len(runs), 2.6), layout="constrained")
    axes = figure.subplots(1, len(runs), squeeze=False)[
        0
    ]  # each its own axis: a run that fails leaves the others flat
    for axis, (label, run) in zip(axes, runs.items(), strict=True):
        records = read_log(run)
        if not records:
            raise InputError(f"{run} has no log.jsonl; give the directory of a training run")
        for key in ("train/loss", *keys):
            points = [(record["step"], record[key]) for record in records if key in record]
            faint = (
                {"alpha": 0.45, "linewidth": 0.8} if key == "train/loss" else {"marker": ".", "markersize": 3}
            )
            axis.plot(*zip(*points, strict=True), label=key, **faint)
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    save(figure, path)


def samples(path: Path, text: str, runs: Mapping[str, Path]) -> None:
    """What the model of each run makes of one text: 2 s of seed 0."""
    draw(path, [[(label, make(str(run), text, duration_s=2.0)) for label, run in runs.items()]])


# ----------------------------------------------------------------------------------------------------- tables

# The columns of README's table: a title, a figure of a comparison's rows, the judge that gives it, and its decimals.
HEADLINE = (
    ("FAD", "fad", "tagger_tiny", 1),
    ("label accuracy", "accuracy", "tagger_tiny", 2),
    ("FAD by `logmel`", "fad", "logmel", 1),
    ("label accuracy by `logmel`", "accuracy", "logmel", 2),
)


NAMES = {"ground truth": "real clips", "captions shuffled": "real clips, captions exchanged"}


def keep(report: Path, made: str) -> None:
    """Store the figures of a comparison that README's table needs, and how they were made."""
    contents = json.loads(report.read_text())
    rows = []
    for row in contents["rows"]:
        if row["system"].endswith(", codec alone"):
            continue  # docs/results.md has these
        kept: dict[str, Any] = {"system": NAMES.get(row["system"], f"`{row['system']}`")}
        for _, figure, judge, _ in HEADLINE:  # a report's keys end in the hash of the judge
            kept[f"{figure} {judge}"] = next(
                (row[key] for key in row if key.startswith(f"{figure} {judge} ")), None
            )
        rows.append(kept)
    notes = [FOLDERS.sub("", note) for note in contents["notes"]]
    write_json(KEPT, {"title": contents["title"], "made": made, "notes": notes, "rows": rows})


def headline(kept: Mapping[str, Any]) -> str:
    """README's table, from figures that `keep` stored."""
    lines = [
        "| 80 clips of ESC-10, fold 4 | " + " | ".join(title for title, *_ in HEADLINE) + " |",
        "|---" * (len(HEADLINE) + 1) + "|",
    ]
    for row in kept["rows"]:
        cells = [cell_text(row.get(f"{figure} {judge}"), digits) for _, figure, judge, digits in HEADLINE]
        lines.append(f"| {row['system']} | {' | '.join(cells)} |")
    return (
        "\n".join([*lines, "", f"Measured {kept['made']}, by `python -m audiogen.evaluate compare`."]) + "\n"
    )


def cell_text(cell: Any, digits: int) -> str:
    """A cell of a report's JSON as it stands in the table; the ends of a distance's interval are whole numbers."""
    if cell is None:
        return ""
    if not isinstance(cell, dict):
        return f"{cell:.{digits}f}"
    ends = digits if digits > 1 else 0
    between = "" if cell["low"] is None else f" [{cell['low']:.{ends}f}, {cell['high']:.{ends}f}]"
    return f"{cell['value']:.{digits}f}{between}"


def with_table(text: str, name: str, table: str) -> str:
    """A page with the table of that name in its place; InputError where the page has none."""
    pattern = re.compile(rf"(<!-- table: {re.escape(name)}[^\n]*-->\n).*?(<!-- end of table -->\n)", re.S)
    if not pattern.search(text):
        raise InputError(f"the page has no place for the table {name!r}")
    return pattern.sub(lambda found: found[1] + table + found[2], text)


def finishing() -> None:
    """The picture of docs/finishing.md: a sound as generated, and its waveform after each step."""
    sound = make("lafma_tiny", KINDS["dog bark"])
    wanted = {
        "as generated": Finish(),
        "--loudness -14": Finish(loudness=-14),
        "--fade-in 1 --fade-out 2": Finish(fade_in=1, fade_out=2),
        "--trim-silence": Finish(trim_silence=True),
        "--stereo-width 0.5": Finish(stereo_width=0.5),
    }
    figure = Figure(figsize=(2.6 * len(wanted), 1.7), layout="constrained")
    axes = figure.subplots(1, len(wanted), sharex=True, sharey=True)
    for axis, (title, finish) in zip(axes, wanted.items(), strict=True):
        for channel in finish.apply(sound, RATE).sound:
            axis.plot(torch.arange(len(channel)) / RATE, channel, linewidth=0.3, alpha=0.7)
        axis.axhspan(-(10 ** (PEAK_DB / 20)), 10 ** (PEAK_DB / 20), color="0.93", zorder=0)
        axis.set(xlim=(0, 5), ylim=(-1, 1), yticks=[-1, 0, 1])
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_xlabel("time (s)", fontsize=7)
        axis.tick_params(labelsize=7)
    save(figure, FIGURES / "finishing.png")


def main(argv: Sequence[str] | None = None) -> int:
    """Make what was asked for."""
    parser = argparse.ArgumentParser(description="Make the pictures and tables of the documentation again.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("sounds").add_argument("--data", type=Path, required=True, help="manifest of ESC-10")
    verbs.add_parser("options")
    verbs.add_parser("finishing")
    verbs.add_parser("control")
    drawn = verbs.add_parser("curves")
    drawn.add_argument("out", type=Path)
    drawn.add_argument("keys", type=lambda text: text.split(","))
    drawn.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    drawn = verbs.add_parser("samples")
    drawn.add_argument("out", type=Path)
    drawn.add_argument("text")
    drawn.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    table = verbs.add_parser("table")
    table.add_argument("report", type=Path, nargs="?")
    table.add_argument("--made", help="when and on which machine: on 2026-11-30, on two cores of ...")
    arguments = parser.parse_args(argv)
    if arguments.verb == "sounds":
        sounds(arguments.data)
    elif arguments.verb in ("options", "finishing", "control"):
        {"options": options, "finishing": finishing, "control": control}[arguments.verb]()
    elif arguments.verb in ("curves", "samples"):
        pairs = [run.rpartition("=") for run in arguments.runs]
        runs = {label: Path(run) for label, _, run in pairs}
        if arguments.verb == "curves":
            curves(arguments.out, arguments.keys, runs)
        else:
            samples(arguments.out, arguments.text, runs)
    else:
        if arguments.report is not None:
            if arguments.made is None:
                raise InputError("give --made with a report: every figure has its date and machine")
            keep(arguments.report, arguments.made)
        readme = ROOT / "README.md"
        readme.write_text(with_table(readme.read_text(), "headline", headline(json.loads(KEPT.read_text()))))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
