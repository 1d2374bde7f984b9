"""Write the credits that the bundled weights owe: every recording they were trained on, from a manifest.

    python tools/attribution.py ../shared/data/esc10/manifest.jsonl > audiogen/weights/ATTRIBUTION.md

Takes the clips that the recipes of the bundled models train on: folds 1-3 under CC0 and CC-BY. Two clips of
those folds are under Sampling+, which forbids some uses; no bundled model was trained on them, so they are not listed.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from audiogen.data.manifest import read_manifest
from audiogen.errors import InputError, run_command

FOLDS = (1, 2, 3)
LICENCES = {
    "CC0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY": "https://creativecommons.org/licenses/by/3.0/",
}
REQUIRED = ("title", "author", "source", "license", "fold")

HEADER = """\
# Recordings behind the bundled weights

The models in this folder were trained on sounds synthesised by `audiogen.data.synth` and on the {clips}
recordings listed below, {counts}. The recordings themselves are not part of this package.
This list is written by `tools/attribution.py`.

They are folds 1-3 of ESC-10, published as a data set under CC-BY 3.0:

> K. J. Piczak. ESC: Dataset for Environmental Sound Classification. Proceedings of the 23rd ACM International
> Conference on Multimedia, pages 1015-1018, 2015. https://doi.org/10.1145/2733373.2806390

Each is a cut of at most five seconds from a recording shared at freesound.org by the author named. For the
models it was resampled, cropped, changed in level and mixed with others.

Licences: {licences}.
"""


def selected(rows: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """The manifest rows that the bundled models train on, sorted by licence, author and title."""
    chosen = [row for row in rows if row.get("fold") in FOLDS and row.get("license") in LICENCES]
    for row in chosen:
        missing = [key for key in REQUIRED if row.get(key) in (None, "")]
        if missing:
            raise InputError(
                f"{row['audio']}: no {', '.join(missing)}: a recording cannot be credited without"
            )
    return sorted(
        chosen, key=lambda row: [str(row[key]).lower() for key in ("license", "author", "title", "audio")]
    )


def render(rows: Sequence[Mapping[str, object]]) -> str:
    """The Markdown page for the selected rows."""
    counts = {name: sum(row["license"] == name for row in rows) for name in LICENCES}
    lines = [
        HEADER.format(
            clips=len(rows),
            counts=" and ".join(f"{count} under {name}" for name, count in counts.items()),
            licences=", ".join(f"[{name}]({url})" for name, url in LICENCES.items()),
        ),
        "| clip | title | author | source | licence |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        clip = Path(str(row["audio"])).stem
        cells = [clip, row["title"], row["author"], f"<{row['source']}>", row["license"]]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    """Text that stays one cell, and itself, in a Markdown table."""
    text = " ".join(str(value).split())
    for character in "\\|*_`[":
        text = text.replace(character, "\\" + character) if not text.startswith("<http") else text
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "manifest", type=Path, help="manifest.jsonl with title, author, source, license and fold"
    )
    arguments = parser.parse_args(argv)
    rows = [{"audio": clip.path, **clip.fields} for clip in read_manifest(arguments.manifest)]
    sys.stdout.write(render(selected(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
