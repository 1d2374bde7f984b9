"""Rows and columns of a report: how a cell prints, which rows lead a column, and the table in Markdown."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from audiogen.evaluate.metrics import Interval

Cell: TypeAlias = Interval | float | int | str | None
Row: TypeAlias = Mapping[str, Cell]

REFERENCE = "reference"  # key of a row: true for ceilings and floors, which set the scale and do not compete
MISSING = "–"
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}


@dataclass(frozen=True)
class Column:
    """One column: rows hold its cell under `key`.

    better: which way is good, if either is. digits: decimals of a number and of an interval's ends; the value of an
    interval has one more.
    """

    key: str
    title: str
    better: Literal["lower", "higher", ""] = ""
    digits: int = 2

    @property
    def heading(self) -> str:
        """The title with an arrow that points to the better end."""
        return self.title + ARROWS[self.better]


def number(cell: Cell) -> float | None:
    """What a cell sorts and plots by: its number, or the value of its interval; None for text and what is missing."""
    if cell is None or isinstance(cell, str):
        return None
    value = float(cell.value if isinstance(cell, Interval) else cell)
    return None if math.isnan(value) else value


def format_cell(cell: Cell, digits: int = 2) -> str:
    """`0.812 [0.75, 0.87]` for an interval, `10,500,000` for an integer, `0.52` for a number, a dash for nothing."""
    if isinstance(cell, str):
        return " ".join(cell.split()) or MISSING
    value = number(cell)
    if cell is None or value is None:
        return MISSING
    if isinstance(cell, Interval):
        known = not math.isnan(cell.low + cell.high)
        ends = f" [{_decimal(cell.low, digits)}, {_decimal(cell.high, digits)}]" if known else ""
        return _decimal(value, digits + 1) + ends
    return f"{cell:,}" if isinstance(cell, numbers.Integral) else _decimal(value, digits)  # numpy's, too


def _decimal(value: float, digits: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.00"


def leaders(column: Column, rows: Sequence[Row]) -> set[int]:
    """Numbers of the rows that lead a column: the best, and those whose interval reaches the best value.

    Reference rows do not take part; a column without a better end, or with fewer than two contestants, has no leader.
    """
    values = {
        place: value
        for place, row in enumerate(rows)
        if not row.get(REFERENCE) and (value := number(row.get(column.key))) is not None
    }
    if not column.better or len(values) < 2:
        return set()
    best = (min if column.better == "lower" else max)(values.values())

    def leads(place: int) -> bool:
        cell = rows[place].get(column.key)
        return values[place] == best or (isinstance(cell, Interval) and cell.low <= best <= cell.high)

    return {place for place in values if leads(place)}


def is_text(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column holds no number at all."""
    return all(number(row.get(column.key)) is None for row in rows)


def write_markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table in GitHub's Markdown: text to the left, numbers to the right, leaders in bold, references in italics."""
    marks = ["---" if is_text(column, rows) else "---:" for column in columns]
    lines = [[escape_markdown(column.heading) for column in columns], marks]
    leading = [leaders(column, rows) for column in columns]
    for place, row in enumerate(rows):
        cells = []
        for column, best in zip(columns, leading, strict=True):
            cell = row.get(column.key)
            text = format_cell(cell, column.digits)
            text = escape_markdown(text) if isinstance(cell, str) else text
            italic = isinstance(cell, str) and row.get(REFERENCE)
            value, bracket, ends = text.partition(" [") if isinstance(cell, Interval) else (text, "", "")
            mark = "**" if place in best else "*" if italic else ""
            cells.append(f"{mark}{value}{mark}{bracket}{ends}")
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no cell's end; what stands in backticks is kept."""
    pieces = " ".join(text.split()).split("`")
    if len(pieces) % 2 == 0:  # a backtick without its partner is a character
        pieces = ["\\`".join(pieces)]
    plain = [re.sub(r"([\\|*\[\]<>]|&(?=#?\w+;)|(?<!\w)_|_(?!\w))", r"\\\1", piece) for piece in pieces[::2]]
    code = [piece.replace("|", "\\|") for piece in pieces[1::2]]
    return "".join(p + (f"`{code[place]}`" if place < len(code) else "") for place, p in enumerate(plain))
