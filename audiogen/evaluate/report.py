"""A report in three files: `report.md` to read, `report.json` to compute with, `report.html` to listen to.

The parts: `table` (columns, cells, Markdown), `plot` (SVG), `page` (HTML); what callers need is here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from audiogen.evaluate.metrics import Interval
from audiogen.evaluate.page import Sound, render
from audiogen.evaluate.plot import Plot
from audiogen.evaluate.table import (
    REFERENCE,
    Cell,
    Column,
    Row,
    escape_markdown,
    format_cell,
    write_markdown_table,
)
from audiogen.files.checkpoint import write_bytes_atomic, write_json

__all__ = [
    "REFERENCE",
    "Cell",
    "Column",
    "Plot",
    "Row",
    "Sound",
    "format_cell",
    "write_markdown_table",
    "write_report",
]


def write_report(
    directory: str | Path,
    title: str,
    notes: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[Row],
    sounds: Sequence[Sound] = (),
    plots: Sequence[Plot] = (),
) -> None:
    """Write the three files, each whole or not at all, and none if a sound cannot be read (InputError).

    notes: a line each, such as the command, the embedder with its hash, seeds and number of clips; backticks mark
    code. The first column names the rows. A row is a mapping of the columns' keys, where a missing key is a missing
    value; with `REFERENCE` true it is a ceiling or floor. Keys without a column are in the JSON alone.
    """
    directory = Path(directory)
    page = render(title, notes, columns, rows, sounds, plots)
    items = "".join(f"- {escape_markdown(note)}\n" for note in notes)
    text = f"# {escape_markdown(title)}\n\n{items}\n{write_markdown_table(columns, rows)}"
    contents = {
        "title": title,
        "notes": list(notes),
        "columns": [vars(column) for column in columns],
        "rows": [{key: _plain(cell) for key, cell in row.items()} for row in rows],
        "sounds": [
            {"row": row, "prompt": prompt, "path": os.path.relpath(path, directory)}
            for row, prompt, path in sounds
        ],
    }
    write_bytes_atomic(directory / "report.html", page.encode())
    write_bytes_atomic(directory / "report.md", text.encode())
    write_json(directory / "report.json", contents)


def _plain(cell: Cell) -> Any:
    """What JSON has for a cell: an interval as an object, what is missing or no number as null, infinity as text."""
    if isinstance(cell, Interval):
        return {name: _plain(value) for name, value in cell._asdict().items()}
    if cell is None or isinstance(cell, str | int):
        return cell
    value = cell.item() if hasattr(cell, "item") else cell  # numpy's numbers
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
