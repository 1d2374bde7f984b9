"""A report in three files: `report.md`, `report.json`, and `report.html`, one page by the template beside this file."""

from __future__ import annotations

import base64
import io
import json
import math
import numbers
import os
import re
import string
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from audiogen import audio, provenance
from audiogen.errors import InputError
from audiogen.files.writing import write_bytes_atomic, write_json
from audiogen.spectrogram import LEVELS_DB, picture


class Interval(NamedTuple):
    """A figure and the ends of its interval of 95 %."""

    value: float
    low: float
    high: float


Cell: TypeAlias = Interval | float | int | str | None
Row: TypeAlias = Mapping[str, Cell]
Plot: TypeAlias = tuple[str, str]  # x and y, by the keys of their columns

REFERENCE = "reference"  # key of a row: true for ceilings and floors, which set the scale and do not compete
MISSING = "–"
ARROWS = {"lower": " ↓", "higher": " ↑", "": ""}
LONG_TEXT = 28  # letters of a cell, from which on its column is broken into lines
PANELS_WIDE = 3  # plots side by side
LONGEST_S = 30.0  # of a sound; a page has the beginning of a longer one
LISTEN = (
    "Spectrograms: mel scale from 0 to half the sample rate, one scale of levels for all "
    f"({LEVELS_DB[1] - LEVELS_DB[0]:.0f} dB). Sounds are mono Ogg Vorbis copies, at most {LONGEST_S:.0f} s."
)
RANKED = (
    "A heading sorts. The arrow points to the better end; bold marks the best, and what its interval does not set "
    "apart from the best; rows in italics are the scale."
)


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


class Sound(NamedTuple):
    """A sound to listen to. row: the system it is from; prompt: what was asked for; path: a sound file."""

    row: str
    prompt: str
    path: Path


def filled(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns in which some row has a cell."""
    return [column for column in columns if any(row.get(column.key) is not None for row in rows)]


@dataclass
class Report:
    """A table, what explains it and what belongs to it.

    notes: a line each, such as the command, the embedder with its hash, seeds and number of clips; backticks mark
    code. The first column names the rows. A row is a mapping of the columns' keys, where a missing key is a missing
    value; with `REFERENCE` true it is a ceiling or floor. Keys without a column are in the JSON alone. failures: why
    which system failed.
    """

    title: str
    notes: Sequence[str]
    columns: Sequence[Column]
    rows: Sequence[Row]
    sounds: Sequence[Sound] = ()
    plots: Sequence[Plot] = ()
    failures: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def picture(self) -> bytes:
        """All plots as one PNG; nothing where no row has both values. Raises KeyError for a key without a column."""
        file = io.BytesIO()
        with rc_context({"text.parse_math": False}):  # a dollar in a name is a dollar
            if figure := draw_figure(self.plots, self.columns, self.rows):
                figure.savefig(file, dpi=120, format="png")
        return file.getvalue()

    def write(self, directory: str | Path) -> None:
        """The three files, each whole or not at all, and none if a sound cannot be read (InputError)."""
        directory = Path(directory)
        page = render_page(self)
        items = "".join(f"- {escape_markdown(note)}\n" for note in self.notes)
        table = write_markdown_table(self.columns, self.rows)
        contents = {
            "title": self.title,
            "notes": list(self.notes),
            "columns": [vars(column) for column in self.columns],
            "rows": [{key: _plain(cell) for key, cell in row.items()} for row in self.rows],
            "sounds": [
                sound._asdict() | {"path": os.path.relpath(sound.path, directory)} for sound in self.sounds
            ],
        }
        write_bytes_atomic(directory / "report.html", page.encode())
        text = f"# {escape_markdown(self.title)}\n\n{items}\n{table}"
        write_bytes_atomic(directory / "report.md", text.encode())
        write_json(directory / "report.json", contents)


def _plain(cell: Cell) -> Any:
    """What JSON has for a cell: an interval as an object, what is missing or no number as null, infinity as text."""
    if isinstance(cell, Interval):
        return {name: _plain(value) for name, value in cell._asdict().items()}
    value: Any = cell.item() if isinstance(cell, np.generic) else cell
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


# ------------------------------------------------------------------------------------------------------- cells


def number(cell: Cell) -> float | None:
    """What a cell sorts and plots by: its number, or the value of its interval; None for text and what is missing."""
    if cell is None or isinstance(cell, str):
        return None
    value = float(cell.value if isinstance(cell, Interval) else cell)
    return None if math.isnan(value) else value


def format_cell(cell: Cell, digits: int = 2) -> tuple[str, str]:
    """A cell in two, its value and the ends of its interval, empty where there are none.

    `0.812` and ` [0.75, 0.87]` for an interval, `10,500,000` for an integer, `0.52` for a number, a dash for nothing.
    """
    if isinstance(cell, str):
        return " ".join(cell.split()) or MISSING, ""
    value = number(cell)
    if value is None:
        return MISSING, ""
    if isinstance(cell, Interval):
        has_ends = not math.isnan(cell.low + cell.high)
        ends = f" [{_decimal(cell.low, digits)}, {_decimal(cell.high, digits)}]" if has_ends else ""
        return _decimal(value, digits + 1), ends
    return (f"{cell:,}" if isinstance(cell, numbers.Integral) else _decimal(value, digits)), ""


def _decimal(value: float, digits: int) -> str:
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0: no "-0.00"


def leaders(column: Column, rows: Sequence[Row]) -> set[int]:
    """Numbers of the rows that lead a column: the best, and those whose interval reaches the best value.

    Reference rows do not take part; a column without a better end, or with fewer than two contestants, has no leader.
    """
    cells = {place: row.get(column.key) for place, row in enumerate(rows) if not row.get(REFERENCE)}
    values = {place: value for place, cell in cells.items() if (value := number(cell)) is not None}
    if not column.better or len(values) < 2:
        return set()
    best = (min if column.better == "lower" else max)(values.values())

    def leads(place: int) -> bool:
        cell = cells[place]
        return values[place] == best or (isinstance(cell, Interval) and cell.low <= best <= cell.high)

    return {place for place in values if leads(place)}


def is_text(column: Column, rows: Sequence[Row]) -> bool:
    """Whether a column holds no number at all."""
    return all(number(row.get(column.key)) is None for row in rows)


# ---------------------------------------------------------------------------------------------------- Markdown


def write_markdown_table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table in GitHub's Markdown: text to the left, numbers to the right, leaders in bold, references in italics."""
    marks = ["---" if is_text(column, rows) else "---:" for column in columns]
    lines = [[escape_markdown(column.heading) for column in columns], marks]
    leading = [leaders(column, rows) for column in columns]
    for place, row in enumerate(rows):
        cells = []
        for column, best in zip(columns, leading, strict=True):
            cell = row.get(column.key)
            value, ends = format_cell(cell, column.digits)
            value = escape_markdown(value) if isinstance(cell, str) else value
            italic = isinstance(cell, str) and row.get(REFERENCE)
            mark = "**" if place in best else "*" if italic else ""
            cells.append(f"{mark}{value}{mark}{ends}")
        lines.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: no markup, no cell's end; what stands in backticks is kept."""
    pieces = " ".join(text.split()).split("`")
    if len(pieces) % 2 == 0:  # a backtick without its partner is a character
        pieces = ["\\`".join(pieces)]
    pieces[::2] = [
        re.sub(r"([\\|*\[\]<>]|&(?=#?\w+;)|(?<!\w)_|_(?!\w))", r"\\\1", each) for each in pieces[::2]
    ]
    pieces[1::2] = [code.replace("|", "\\|") for code in pieces[1::2]]
    return "`".join(pieces)


# ---------------------------------------------------------------------------------------------------- the page


def render_page(report: Report) -> str:
    """The page. All text is escaped; a sound adds about 45 kB for 5 s at 16 kHz.

    Raises InputError, which names the file, for a sound that cannot be read.
    """
    items = [re.sub("`([^`]+)`", r"<code>\1</code>", f"<li>{escape(note)}</li>") for note in report.notes]
    sections = []
    if report.picture:
        image = f'<img class="plots" alt="Plots of the table" src="{_data("image/png", report.picture)}">'
        sections.append(f"<section><h2>Plots</h2>{image}</section>")
    if report.sounds:
        articles = []
        for prompt in dict.fromkeys(sound.prompt for sound in report.sounds):
            takes = "\n".join(_figure(sound) for sound in report.sounds if sound.prompt == prompt)
            articles.append(f'<article><h3>{escape(prompt)}</h3><div class="takes">{takes}</div></article>')
        sections.append(
            f'<section><h2>Listen</h2><p class="key">{LISTEN}</p>{chr(10).join(articles)}</section>'
        )
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(
        title=escape(report.title),
        notes=f"<ul>{''.join(items)}</ul>" if items else "",
        table=_table(report.columns, report.rows),
        key=RANKED if any(column.better for column in report.columns) else "A heading sorts.",
        sections="\n".join(sections),
    )


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    heads, bodies = [], [""] * len(rows)
    for at, column in enumerate(columns):
        cells = [row.get(column.key) for row in rows]
        longest = max((len(format_cell(cell)[0]) for cell in cells), default=0)
        kind = ' class="text long"' if longest > LONG_TEXT else ' class="text"'
        kind = kind if is_text(column, rows) else ""
        button = f"<button>{escape(column.heading)}</button>"
        heads.append(f'<th scope="col"{kind} data-better="{column.better}">{button}</th>')
        tag, scope = ("td", "") if at else ("th", ' scope="row"')
        best = leaders(column, rows)
        for place, cell in enumerate(cells):
            key = "" if (plain := number(cell)) is None else f' data-value="{json.dumps(plain)}"'
            value, ends = (escape(half) for half in format_cell(cell, column.digits))
            value = f"<b>{value}</b>" if place in best else value
            bodies[place] += f"<{tag}{scope}{kind}{key}>{value}{ends and f'<small>{ends}</small>'}</{tag}>"
    marks = [' class="reference"' if row.get(REFERENCE) else "" for row in rows]
    lines = "\n".join(f"<tr{mark}>{cells}</tr>" for mark, cells in zip(marks, bodies, strict=True))
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>\n{lines}\n</tbody></table>"


def _figure(sound: Sound) -> str:
    """The spectrogram and the player of one sound."""
    clip, sample_rate = audio.load(sound.path, channels=1, duration_s=LONGEST_S)
    tags = None
    with suppress(InputError):  # of a recording, in whatever format
        tags = None if (found := provenance.read(Path(sound.path))) is None else found.tags()
    label = escape(f"{sound.row}: {sound.prompt}")
    with tempfile.TemporaryDirectory() as folder:
        encoded = audio.save(Path(folder) / "clip.ogg", clip, sample_rate, tags=tags).read_bytes()
    return (
        f"<figure><figcaption>{escape(sound.row)} <small>{clip.shape[-1] / sample_rate:.1f} s</small></figcaption>"
        f'<img alt="Spectrogram of {label}" src="{_data("image/png", picture(clip, sample_rate))}">'
        f'<audio controls preload="none" aria-label="{label}" src="{_data("audio/ogg", encoded)}"></audio></figure>'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---------------------------------------------------------------------------------------- pictures, by matplotlib


def draw_figure(plots: Sequence[Plot], columns: Sequence[Column], rows: Sequence[Row]) -> Figure | None:
    """A panel for each plot, its x axis logarithmic: one line a system, with intervals.

    A row without x is a level: a dashed line, as for real recordings, which take no time to generate.
    """
    headings = {column.key: column.heading for column in columns}
    panels = [(headings[x], headings[y], _curves(x, y, rows)) for x, y in plots]
    panels = [panel for panel in panels if any(points[0][0] for points in panel[2].values())]
    if not panels:
        return None
    wide = min(PANELS_WIDE, len(panels))
    high = math.ceil(len(panels) / wide)
    width, height = 4.6 * wide, 3.6 * high  # inches
    figure = Figure(figsize=(width, height))
    # Room for labels in inches; a layout that measures them takes as long as the drawing.
    figure.subplots_adjust(0.75 / width, 0.6 / height, 1 - 0.2 / width, 1 - 0.15 / height, 0.28, 0.24)
    for place, (x_name, y_name, curves) in enumerate(panels, 1):
        axes = figure.add_subplot(high, wide, place)
        for name, points in curves.items():
            x, y, below, above = zip(*points, strict=True)
            if x[0]:
                axes.errorbar(x, y, [below, above], marker="o", capsize=2, label=name)
            else:
                axes.axhline(y[0], color="0.4", linestyle="--", label=name)
        axes.set(xscale="log", xlabel=x_name, ylabel=y_name)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


def _curves(
    x_key: str, y_key: str, rows: Sequence[Row]
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Of each system its points from left to right: x, y, how far the interval reaches below and above y.

    A system without x is a single point at x = 0, which a logarithmic axis does not have.
    """
    curves: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in rows:
        cell, x = row.get(y_key), number(row.get(x_key)) or 0.0
        y = number(cell)
        if y is None or not math.isfinite(x + y):
            continue
        ends = (y - cell.low, cell.high - y) if isinstance(cell, Interval) else (0.0, 0.0)
        below, above = (max(0.0, end) if math.isfinite(end) else 0.0 for end in ends)
        curves.setdefault(str(row["system"]), []).append((x, y, below, above))
    for name, points in curves.items():
        curves[name] = sorted(point for point in points if point[0]) or points[:1]
    return curves
