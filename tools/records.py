"""Tables of the lines of JSON that the benchmarks write with --json: one for each kind of benchmark, in Markdown.

python tools/records.py build/gpu/figures.jsonl
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from audiogen.errors import InputError, run_command


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Of rows with their columns in the order in which they first appear; what a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "bench"))
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(cell(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines)


def cell(value: Any) -> str:
    """Three digits of a number, whole ones from 100 on."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables of a file, and where it was measured if a GPU is here."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    path = parser.parse_args(argv).file
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        kinds = sorted(rows, key=lambda row: str(row["bench"]))  # stable: within a kind as they were written
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} has no lines that a benchmark wrote with --json: {error}") from None
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    print(f"{where}, PyTorch {torch.__version__}")
    for kind, group in groupby(kinds, key=lambda row: row["bench"]):
        print(f"\n{kind}\n\n{table(list(group))}")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
