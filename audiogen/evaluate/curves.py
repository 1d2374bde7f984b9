"""The plots of a report as one PNG, for a README or a paper: `report.html` draws its own."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from audiogen.evaluate.metrics import Interval
from audiogen.evaluate.plot import Plot
from audiogen.evaluate.table import Column, Row, number

PANELS_WIDE = 3
TICKS = tuple(step * 10.0**decade for decade in range(-3, 5) for step in (1, 2, 5))


def draw(plots: Sequence[Plot], columns: Sequence[Column], rows: Sequence[Row]) -> bytes:
    """A panel for each plot, its x axis logarithmic: one line a series, with intervals; rows without x are levels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and only pictures need it
    from matplotlib.figure import Figure

    headings = {column.key: column.heading for column in columns}
    wide = min(PANELS_WIDE, len(plots))
    high = -(-len(plots) // wide)
    figure = Figure(figsize=(4.6 * wide, 3.6 * high), layout="constrained")
    FigureCanvasAgg(figure)
    for place, plot in enumerate(plots, 1):
        axes = figure.add_subplot(high, wide, place)
        _curves(axes, plot, rows)
        axes.set(xscale="log", xlabel=headings[plot.x], ylabel=headings[plot.y])
        low, most = axes.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= most]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _curves(axes: Any, plot: Plot, rows: Sequence[Row]) -> None:
    by_series: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if number(row.get(plot.y)) is not None:
            by_series.setdefault(str(row[plot.series]), []).append(row)
    for name, own in by_series.items():
        placed = sorted((number(row.get(plot.x)), _ends(row[plot.y])) for row in own if row.get(plot.x))
        if placed:
            x = [rate for rate, _ in placed]
            y = [value for _, (value, _, _) in placed]
            below, above = ([ends[side] for _, ends in placed] for side in (1, 2))
            axes.errorbar(x, y, [below, above], marker="o", capsize=2, label=name)
        else:
            axes.axhline(number(own[0][plot.y]), color="0.4", linestyle="--", label=name)


def _ends(cell: Any) -> tuple[float, float, float]:
    """A cell's value, and how far its interval reaches below and above it."""
    value = number(cell) or 0.0
    if not isinstance(cell, Interval):
        return value, 0.0, 0.0
    return (
        value,
        max(0.0, value - cell.low),
        max(0.0, cell.high - value),
    )  # NaN, for no interval, stays out as 0
