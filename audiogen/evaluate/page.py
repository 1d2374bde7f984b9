"""The page of a report: one HTML file that holds its sounds, spectrograms and plots, and asks for nothing else."""

from __future__ import annotations

import base64
import re
import struct
import tempfile
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_max_pool1d

from audiogen import audio
from audiogen.evaluate.metrics import Interval
from audiogen.evaluate.plot import Plot, draw
from audiogen.evaluate.table import REFERENCE, Cell, Column, Row, format_cell, is_text, leaders, number

LONGEST_S = 30.0  # of a sound; a page has the beginning of a longer one
PICTURE_COLUMNS, PICTURE_BANDS = 360, 80
LEVELS_DB = (-75.0, 5.0)  # the same for all pictures, so that a soft sound looks dark; 0 dB: mel magnitude 1
SHADES = 64
LONG_TEXT = 28  # characters that a cell shows on one line


class Sound(NamedTuple):
    """A sound to listen to. row: the system it is from; prompt: what was asked for; path: a sound file."""

    row: str
    prompt: str
    path: Path


def render(
    title: str,
    notes: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[Row],
    sounds: Sequence[Sound],
    plots: Sequence[Plot],
) -> str:
    """The page. All text is escaped; a sound adds about 45 kB for 5 s at 16 kHz.

    Raises InputError, which names the file, for a sound that cannot be read.
    """
    drawings = [drawing for plot in plots if (drawing := draw(plot, columns, rows))]
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<header><h1>{escape(title)}</h1>",
        *(["<ul>", *(f"<li>{_prose(note)}</li>" for note in notes), "</ul>"] if notes else []),
        "</header><main>",
        '<section><h2>Results</h2><div class="scroll">',
        _table(columns, rows),
        '</div><p class="key">A heading sorts. The arrow points to the better end; bold marks the best, and what its '
        "interval does not tell from the best; rows in italics set the scale.</p></section>",
        *(['<section><h2>Plots</h2><div class="plots">', *drawings, "</div></section>"] if drawings else []),
        *_listening(sounds),
        f"</main><script>{SCRIPT}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _prose(text: str) -> str:
    """Escaped text; what stands in backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    kinds = [_kind(column, rows) for column in columns]
    heads = [
        f'<th scope="col"{kind} data-better="{column.better}"><button>{escape(column.heading)}</button></th>'
        for column, kind in zip(columns, kinds, strict=True)
    ]
    leading = [leaders(column, rows) for column in columns]
    lines = []
    for place, row in enumerate(rows):
        cells = []
        for at, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
            cell = row.get(column.key)
            value = "" if (plain := number(cell)) is None else f' data-value="{_script(plain)}"'
            tag, scope = ("th", ' scope="row"') if at == 0 else ("td", "")
            inner = _inner(cell, column.digits, place in leading[at])
            cells.append(f"<{tag}{scope}{kind}{value}>{inner}</{tag}>")
        mark = ' class="reference"' if row.get(REFERENCE) else ""
        lines.append(f"<tr{mark}>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{''.join(heads)}</tr></thead><tbody>\n{chr(10).join(lines)}\n</tbody></table>"


def _script(value: float) -> str:
    """A number as JavaScript reads it."""
    return repr(value).replace("inf", "Infinity")


def _kind(column: Column, rows: Sequence[Row]) -> str:
    """Class of a column's cells: text stands to the left, and long text, such as a remark, is broken into lines."""
    if not is_text(column, rows):
        return ""
    longest = max((len(format_cell(row.get(column.key))) for row in rows), default=0)
    return ' class="text long"' if longest > LONG_TEXT else ' class="text"'


def _inner(cell: Cell, digits: int, leads: bool) -> str:
    """A cell's text, the ends of an interval small, what leads in bold."""
    text = escape(format_cell(cell, digits))
    value, bracket, ends = text.partition(" [") if isinstance(cell, Interval) else (text, "", "")
    value = f"<b>{value}</b>" if leads else value
    return f"{value} <small>[{ends}</small>" if bracket else value


def _listening(sounds: Sequence[Sound]) -> list[str]:
    """Prompt by prompt, the systems side by side."""
    if not sounds:
        return []
    parts = [
        '<section><h2>Listen</h2><p class="key">Spectrograms: mel scale from 0 to half the sample rate, one scale of '
        f"levels for all ({LEVELS_DB[1] - LEVELS_DB[0]:.0f} dB). Sounds are mono Ogg Vorbis"
        f" copies, at most {LONGEST_S:.0f} s.</p>"
    ]
    for prompt in dict.fromkeys(sound.prompt for sound in sounds):
        takes = [_figure(sound) for sound in sounds if sound.prompt == prompt]
        parts += [f'<article><h3>{escape(prompt)}</h3><div class="takes">', *takes, "</div></article>"]
    return [*parts, "</section>"]


def _figure(sound: Sound) -> str:
    clip, sample_rate = audio.load(sound.path, channels=1, duration_s=LONGEST_S)
    label = escape(f"{sound.row}: {sound.prompt}")
    image, player = (
        _data("image/png", picture(clip, sample_rate)),
        _data("audio/ogg", compressed(clip, sample_rate)),
    )
    return (
        f"<figure><figcaption>{escape(sound.row)} <small>{clip.shape[-1] / sample_rate:.1f} s</small></figcaption>"
        f'<img alt="Spectrogram of {label}" src="{image}">'
        f'<audio controls preload="none" aria-label="{label}" src="{player}"></audio></figure>'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def compressed(clip: Tensor, sample_rate: int) -> bytes:
    """Audio [C, N] as the bytes of an Ogg Vorbis file."""
    with tempfile.TemporaryDirectory() as folder:
        return audio.save(Path(folder) / "clip.ogg", clip, sample_rate).read_bytes()


def picture(clip: Tensor, sample_rate: int) -> bytes:
    """The mel spectrogram of mono audio [1, N] as a small PNG without axes: low at the bottom, at most 360 wide.

    `audiogen.audio.save_spectrogram` draws the large one with axes, of ten times the bytes.
    """
    from matplotlib import colormaps  # slow to import, and only pictures need it

    mel = audio.log_mel(clip[None], sample_rate, n_mels=PICTURE_BANDS)[0, 0]  # [M, T]
    mel = adaptive_max_pool1d(mel, min(mel.shape[1], PICTURE_COLUMNS))
    low, high = LEVELS_DB
    place = (mel * (20 / np.log(10)) - low) / (high - low)
    shades = (place.clamp(0, 1) * (SHADES - 1)).round().to(torch.uint8).flip(0)
    palette = np.round(colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3] * 255).astype(np.uint8)
    return _png(shades.numpy(), palette)


def _png(pixels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> bytes:
    """Pixels [height, width], each a row of the palette [colours, 3] (red, green, blue), as a PNG (ISO 15948)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    height, width = pixels.shape
    lines = np.pad(pixels, ((0, 0), (1, 0)))  # each line begins with its filter: none
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            chunk(b"PLTE", palette.tobytes()),
            chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            chunk(b"IEND", b""),
        ]
    )


# The browser itself refuses anything from elsewhere.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --ink: #1c1d22; --dim: #62656f; --paper: #fbfbfa; --card: #ffffff; --line: #dcdde1;
  --hue0: #2f66b8; --hue1: #c4601a; --hue2: #23845a; --hue3: #a63d80; --hue4: #7455c0; --hue5: #86680f;
  --hue6: #1b8390; --hue7: #b83a34; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --dim: #a0a3ad; --paper: #16171b; --card: #1f2126;
  --line: #363942; --hue0: #7db1f5; --hue1: #f2a166; --hue2: #6cca9b; --hue3: #e58fc0; --hue4: #b7a2f2;
  --hue5: #d6b85c; --hue6: #67cbd8; --hue7: #f28a84; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0 0 .6rem; }
header ul { margin: 0; padding-left: 1.1rem; color: var(--dim); font-size: .9rem; }
code { font: .9em ui-monospace, monospace; color: var(--ink); }
small { color: var(--dim); font-size: .85em; font-weight: normal; }
.key { color: var(--dim); font-size: .85rem; margin: .5rem 0 1rem; max-width: 46rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .75rem; text-align: right; white-space: nowrap; overflow-wrap: normal; font-weight: normal; }
.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; }
thead th { border-bottom: 1px solid var(--line); padding: 0; vertical-align: bottom; }
thead button { all: unset; display: block; box-sizing: border-box; width: 100%; padding: .55rem .75rem; cursor: pointer;
  font-weight: 600; }
thead button:focus-visible { outline: 2px solid var(--hue0); outline-offset: -2px; }
[aria-sort] button { text-decoration: underline; text-underline-offset: .25em; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tr > :first-child { position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 600; white-space: normal; min-width: 9rem; max-width: min(40vw, 16rem); }
.reference > * { color: var(--dim); font-style: italic; font-weight: normal; }
.plots, .takes { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
.takes { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.plot, article { border: 1px solid var(--line); border-radius: 8px; background: var(--card); padding: .9rem; }
article { margin-bottom: 1rem; content-visibility: auto; contain-intrinsic-size: auto 14rem; }
figure { margin: 0; }
figcaption { font-size: .9rem; font-weight: 600; }
figure img { display: block; width: 100%; height: 96px; margin: .3rem 0; border-radius: 4px; background: #000004; }
audio { display: block; width: 100%; height: 40px; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; font: 13px system-ui, sans-serif; fill: var(--ink); }
svg .grid { stroke: var(--line); } svg .dim { fill: var(--dim); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .85rem; margin: .4rem 0 0; padding: 0;
  list-style: none; }
.legend svg { display: inline-block; width: 14px; height: 14px; vertical-align: -2px; margin-right: .35rem; }
@media print { audio { display: none; } }
"""

SCRIPT = """
for (const table of document.querySelectorAll('table')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.firstChild.addEventListener('click', () => {
    const first = head.dataset.better === 'higher' ? 'descending' : 'ascending';
    const other = first === 'ascending' ? 'descending' : 'ascending';
    const order = head.getAttribute('aria-sort') === first ? other : first;
    heads.forEach(each => each.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', order);
    const sign = order === 'ascending' ? 1 : -1;
    const isText = head.classList.contains('text');
    const key = row => isText ? row.cells[column].textContent : parseFloat(row.cells[column].dataset.value);
    const compare = (a, b) => isText ? sign * a.localeCompare(b)
      : isNaN(a) - isNaN(b) || (a === b || isNaN(a) ? 0 : sign * (a - b));
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  }));
}
document.addEventListener('play', event => {
  for (const player of document.querySelectorAll('audio')) if (player !== event.target) player.pause();
}, true);
"""
