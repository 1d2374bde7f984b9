"""Scatter plots as SVG that is drawn in the page's own colours: one measured quantity against another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from audiogen.evaluate.metrics import Interval
from audiogen.evaluate.table import Column, Row, format_cell, number

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 408, 34, 256  # edges of the plane, in the units of the drawing
HUES = 8  # colours the page defines, --hue0 and so on
MARKERS = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0",
    "M-4.5,-4.5h9v9h-9z",
    "M0,-6l6,10h-12z",
    "M0,-6l6,6l-6,6l-6,-6z",
)
LOG_SPAN = 20  # an axis whose values span more than this factor is logarithmic


class Plot(NamedTuple):
    """Column y against column x, by their keys; the rows of one series share a colour and are joined by a line.

    A row without x is a level: a dashed line, as for real recordings, which take no time to generate.
    """

    x: str
    y: str
    series: str = "system"


class Point(NamedTuple):
    """One row in the plane. low, high: ends of the interval of y. text: what the pointer shows."""

    x: float | None
    y: float
    low: float
    high: float
    series: str
    text: str


class Axis(NamedTuple):
    """From values to places between two edges. ticks: the values that are written."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Where a value stands in the drawing."""
        a, b, v = (math.log10(t) if self.is_log else t for t in (self.low, self.high, value))
        return self.start + (v - a) / (b - a) * (self.end - self.start)


def draw(plot: Plot, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A card with drawing and legend; nothing where no row has both values. Raises KeyError for an unknown key."""
    by_key = {column.key: column for column in columns}
    x_column, y_column, names = by_key[plot.x], by_key[plot.y], by_key[plot.series]
    points = [point for row in rows if (point := _point(row, x_column, y_column, names))]
    placed = [point for point in points if point.x is not None]
    if not placed:
        return ""
    x = axis([float(point.x or 0) for point in placed], LEFT, RIGHT)
    y = axis([end for point in points for end in (point.low, point.high)], BOTTOM, TOP, may_log=False)
    series = list(dict.fromkeys(point.series for point in placed))
    parts = [
        *_frame(x, y, x_column, y_column),
        *_levels([point for point in points if point.x is None], y),
        *(line for place, name in enumerate(series) for line in _curve(placed, name, place, x, y)),
    ]
    label = escape(f"{y_column.title} against {x_column.title}")
    drawing = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    legend = [
        f'<li><svg viewBox="-7 -7 14 14" aria-hidden="true">{_marker(place)}</svg>{escape(name)}</li>'
        for place, name in enumerate(series)
    ]
    return f'<div class="plot">{drawing}<ul class="legend">{"".join(legend)}</ul></div>'


def _point(row: Row, x_column: Column, y_column: Column, names: Column) -> Point | None:
    x, y = number(row.get(x_column.key)), number(row.get(y_column.key))
    if y is None or math.isinf(y) or (x is not None and math.isinf(x)):
        return None
    cell = row.get(y_column.key)
    low, high = (cell.low, cell.high) if isinstance(cell, Interval) else (y, y)
    if not math.isfinite(low + high):
        low, high = y, y
    series = format_cell(row.get(names.key), names.digits)
    text = f"{series}: {y_column.title} {format_cell(cell, y_column.digits)}"
    if x is not None:
        text += f", {x_column.title} {format_cell(row.get(x_column.key), x_column.digits)}"
    return Point(x, y, low, high, series, text)


def axis(values: Sequence[float], start: float, end: float, may_log: bool = True) -> Axis:
    """An axis that holds all values with some room, ticks at 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if may_log and low > 0 and high / low > LOG_SPAN:
        low, high = low / 1.3, high * 1.3
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        factors = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
        ticks = tuple(t for decade in decades for f in factors if low <= (t := f * 10.0**decade) <= high)
        return Axis(low, high, start, end, True, ticks)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - room if low < 0 or low > room else 0.0, high + room
    rough = (high - low) / 6
    decade = 10.0 ** math.floor(math.log10(rough))
    step = next(f * decade for f in (1, 2, 5, 10) if f * decade >= rough)
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return Axis(low, high, start, end, False, tuple(i * step for i in count))


def _frame(x: Axis, y: Axis, x_column: Column, y_column: Column) -> list[str]:
    """Grid lines, their values, and the names of the axes."""
    parts = []
    for value in y.ticks:
        at = f"{y.place(value):.1f}"
        parts.append(f'<path class="grid" d="M{LEFT},{at}H{RIGHT}"/>')
        parts.append(
            f'<text class="dim" x="{LEFT - 8}" y="{at}" dy=".35em" text-anchor="end">{value:.4g}</text>'
        )
    for value in x.ticks:
        at = f"{x.place(value):.1f}"
        parts.append(f'<path class="grid" d="M{at},{BOTTOM}v5"/>')
        parts.append(f'<text class="dim" x="{at}" y="{BOTTOM + 20}" text-anchor="middle">{value:.4g}</text>')
    parts.append(f'<text x="4" y="18" font-weight="600">{escape(y_column.heading)}</text>')
    parts.append(f'<text x="{RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{escape(x_column.heading)}</text>')
    return parts


def _levels(points: Sequence[Point], y: Axis) -> list[str]:
    """Dashed lines across the plane, their names at the right end, moved up where they would cover one another."""
    parts, free = [], math.inf
    for point in sorted(points, key=lambda point: point.y):
        at = y.place(point.y)
        free = min(at - 4, free - 15)
        parts.append(
            f'<g><title>{escape(point.text)}</title><path d="M{LEFT},{at:.1f}H{RIGHT}" fill="none" '
            'stroke="var(--dim)" stroke-dasharray="5 4"/>'
            f'<text class="dim" x="{RIGHT}" y="{free:.1f}" text-anchor="end" font-size="12" stroke="var(--card)" '
            f'stroke-width="4" paint-order="stroke">{escape(point.series)}</text></g>'
        )
    return parts


def _curve(points: Sequence[Point], name: str, place: int, x: Axis, y: Axis) -> list[str]:
    """The points of one series from left to right, with their intervals, joined by a line."""
    own = sorted((point for point in points if point.series == name), key=lambda point: float(point.x or 0))
    at = [(x.place(float(point.x or 0)), y.place(point.y)) for point in own]
    hue = f"var(--hue{place % HUES})"
    parts = []
    if len(own) > 1:
        path = "L".join(f"{a:.1f},{b:.1f}" for a, b in at)
        parts.append(f'<path d="M{path}" fill="none" stroke="{hue}" stroke-width="1.5" opacity=".6"/>')
    for point, (a, b) in zip(own, at, strict=True):
        bar = f'<path d="M{a:.1f},{y.place(point.low):.1f}V{y.place(point.high):.1f}" stroke="{hue}"/>'
        parts.append(
            f"<g><title>{escape(point.text)}</title>{bar if point.low < point.high else ''}"
            f'<g transform="translate({a:.1f},{b:.1f})">{_marker(place)}</g></g>'
        )
    return parts


def _marker(place: int) -> str:
    """Colours repeat after 8 series; the shape changes with every one, so that neither has to tell them alone."""
    shape = MARKERS[(place + place // HUES) % len(MARKERS)]
    return f'<path d="{shape}" fill="var(--hue{place % HUES})" stroke="var(--card)"/>'
