"""A report says the same in its three files, shows any text as text, and holds everything that it plays and draws."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.config import read_table
from audiogen.errors import InputError
from audiogen.evaluate.reconstruction import DISTANCES, OPTIONAL
from audiogen.evaluate.texts import TEXTS, columns_of, notes_on
from audiogen.report import (
    ARROWS,
    Column,
    Interval,
    Report,
    Sound,
    draw_figure,
    format_cell,
    leaders,
    write_markdown_table,
)

HOSTILE = "</script></style><script>alert(1)</script> \"a\" 'b' & <img src=x onerror=alert(1)> | `c`\n*d* &amp; [e](f)"
COLUMNS = [
    Column("system", "system"),
    Column("fad", "FAD", "lower"),
    Column("order", "order <accuracy>", "higher"),
    Column("wall_s", "seconds a clip", "lower", digits=1),
]
ROWS = [
    {"system": "real", "reference": True, "fad": 0.1, "order": Interval(0.9, 0.8, 0.95)},
    {"system": "a", "fad": 3.0, "order": Interval(0.5, 0.4, 0.62), "wall_s": 1.0},
    {"system": HOSTILE, "fad": 2.0, "order": Interval(0.6, 0.5, 0.7), "wall_s": np.float32(4.0), "num": 7},
    {"system": "failed", "fad": math.nan, "order": None},
]
VOID = {"meta", "img", "br", "path"}


class Page(HTMLParser):
    """Elements and text of a page; fails where tags do not pair."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_texts_speak_of_every_distance() -> None:
    """A distance without a column would vanish from the report, and one without notes fail after the measuring."""
    assert {column.key for column in columns_of("distances")} == {*DISTANCES, *OPTIONAL}
    assert all(notes_on(name) for name in OPTIONAL)
    for table in read_table(TEXTS)["columns"]:
        assert {column.better for column in columns_of(table)} <= ARROWS.keys()


def tone(
    folder: Path, name: str, duration_s: float = 0.5, sample_rate: int = 16000, channels: int = 1
) -> Path:
    time = torch.arange(round(duration_s * sample_rate)) / sample_rate
    wave = 0.5 * torch.sin(2 * math.pi * 1000 * time) * torch.exp(-2 * time)
    return audio.save(folder / name, wave.expand(channels, -1), sample_rate)


def decoded(uri: str | None, kind: str) -> bytes:
    assert uri is not None and uri.startswith(f"data:{kind};base64,")
    return base64.b64decode(uri.split(",", 1)[1], validate=True)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    clips = folder / "clips"
    sounds = [
        Sound("a", HOSTILE, tone(clips, "a.wav")),
        Sound("real", "rain", tone(clips, "b.flac", 1.5, 8000, channels=2)),
        Sound("real", HOSTILE, tone(clips, "c.ogg", 31.0, 8000)),
    ]
    notes = [f"Command: `compare --x` {HOSTILE}", "1 clip"]
    plots = [("wall_s", "order"), ("fad", "order")]
    Report(HOSTILE, notes, COLUMNS, ROWS, sounds, plots).write(folder)
    return folder


# -------------------------------------------------------------------------------------------------- cells


@pytest.mark.parametrize(
    ("cell", "printed"),
    [
        (Interval(0.8123, 0.75, 0.8749), "0.812 [0.75, 0.87]"),
        (Interval(-0.00001, -0.001, 1.0), "0.000 [0.00, 1.00]"),
        (Interval(1.0, math.nan, math.nan), "1.000"),
        (Interval(math.nan, math.nan, math.nan), "–"),
        (10_500_000, "10,500,000"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.50"),
        (math.inf, "∞"),
        (math.nan, "–"),
        (None, "–"),
        ("", "–"),
        ("50 Hz\nx 4", "50 Hz x 4"),
    ],
)
def test_cells(cell: object, printed: str) -> None:
    assert "".join(format_cell(cell)) == printed  # type: ignore[arg-type]


def test_digits() -> None:
    assert format_cell(Interval(123.44, 119.6, 130.2), 0) == ("123.4", " [120, 130]")
    assert format_cell(2.0, 3) == ("2.000", "")


def test_leaders_are_the_best_and_what_cannot_be_told_from_it() -> None:
    assert leaders(COLUMNS[1], ROWS) == {2}  # the reference is better, and does not compete
    assert leaders(COLUMNS[2], ROWS) == {1, 2}  # 0.6 lies in 0.4 .. 0.62
    assert leaders(COLUMNS[3], ROWS) == {1}
    assert leaders(COLUMNS[0], ROWS) == set()
    assert leaders(COLUMNS[1], ROWS[:2]) == set()  # one contestant


# ----------------------------------------------------------------------------------------- Markdown, JSON


def test_markdown_table() -> None:
    lines = write_markdown_table(COLUMNS, ROWS).splitlines()
    assert lines[0] == r"| system | FAD ↓ | order \<accuracy\> ↑ | seconds a clip ↓ |"
    assert lines[1] == "| --- | ---: | ---: | ---: |"
    assert lines[2] == "| *real* | 0.10 | 0.900 [0.80, 0.95] | – |"
    assert lines[3] == "| a | 3.00 | **0.500** [0.40, 0.62] | **1.0** |"
    assert lines[5] == "| failed | – | – | – |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {
        5
    }  # a text's own bars do not end a cell
    assert not re.search(r"(?<!\\)[<>]", lines[4])


def test_markdown_file_holds_notes_and_table(report: Path) -> None:
    text = (report / "report.md").read_text(encoding="utf-8")
    assert write_markdown_table(COLUMNS, ROWS) in text
    assert "- Command: `compare --x` " in text and "- 1 clip\n" in text
    assert not re.search(r"(?<!\\)<", text)


def test_json_is_strict_and_keeps_what_has_no_column(report: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    found = json.loads((report / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert found["rows"][1] == {
        "system": "a",
        "fad": 3.0,
        "order": {"value": 0.5, "low": 0.4, "high": 0.62},
        "wall_s": 1.0,
    }
    assert found["rows"][2]["system"] == HOSTILE == found["title"] and found["rows"][2]["num"] == 7
    assert found["rows"][3]["fad"] is None
    assert found["columns"][1] == {"key": "fad", "title": "FAD", "better": "lower", "digits": 2}
    assert [sound["path"] for sound in found["sounds"]] == ["clips/a.wav", "clips/b.flac", "clips/c.ogg"]


# -------------------------------------------------------------------------------------------------- page


def test_text_is_shown_as_text(report: Path) -> None:
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    shown = " ".join(HOSTILE.split())
    assert page.texts["h1"] == [HOSTILE] and page.texts["title"][0] == HOSTILE
    assert page.texts["h3"] == [HOSTILE, "rain"]
    assert shown in page.texts["th"]
    assert "".join(page.texts["li"]).count("</script></style>") == 1  # a note
    assert page.texts["code"] == ["compare --x", "c"]
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert [cell["data-value"] for cell in page.all("td") if "data-value" in cell][-3:] == [
        "2.0",
        "0.6",
        "4.0",
    ]
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_page_asks_for_nothing_else(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    sources = [(tag, a[key]) for tag, a in page.elements for key in ("src", "href", "srcset") if key in a]
    assert {tag for tag, _ in sources} == {"img", "audio"}
    assert all(uri is not None and uri.startswith("data:") for _, uri in sources)


def test_sounds_and_pictures_are_inside(report: Path) -> None:
    page = Page((report / "report.html").read_text(encoding="utf-8"))
    players, (plots, *pictures) = page.all("audio"), page.all("img")
    pixels = matplotlib.image.imread(io.BytesIO(decoded(plots["src"], "image/png")), format="png")
    assert pixels.shape[1] > 2 * pixels.shape[0]  # two panels side by side
    # Prompt by prompt: the two of the first, then the stereo one; a long one is cut.
    for player, (name, rate, length) in zip(
        players, [("a.wav", 16000, 8000), ("c.ogg", 8000, 240000), ("b.flac", 8000, 12000)], strict=True
    ):
        sound, sample_rate = soundfile.read(io.BytesIO(decoded(player["src"], "audio/ogg")))
        assert (sample_rate, sound.shape) == (rate, (length,))
        original = audio.load(report / "clips" / name)[0].mean(0)[:length].numpy()
        assert np.corrcoef(sound, original)[0, 1] > 0.98
    for image in pictures:
        pixels = matplotlib.image.imread(io.BytesIO(decoded(image["src"], "image/png")), format="png")
        assert pixels.shape[0] == 80 and pixels.shape[1] <= 360
    assert [image["alt"] for image in pictures][2] == "Spectrogram of real: rain"
    assert (report / "report.html").stat().st_size < 400_000


def test_a_sound_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="lost.wav"):
        Report("t", [], COLUMNS, ROWS, [Sound("a", "rain", tmp_path / "lost.wav")]).write(out)
    assert not out.exists()


def test_a_report_without_rows_sounds_and_plots(tmp_path: Path) -> None:
    Report("empty", [], COLUMNS, []).write(tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.texts["h2"] == ["Results"] and len(page.all("button")) == 4


# ------------------------------------------------------------------------------------------------- plots


def test_points_lie_where_their_values_say() -> None:
    columns = [Column("system", "system"), Column("kbps", "kbit/s"), Column("mel", "mel", "lower")]
    rows = [
        {"system": "a", "kbps": 2.0, "mel": Interval(0.3, 0.25, 0.35)},
        {"system": "a", "kbps": 1.0, "mel": Interval(0.5, 0.4, 0.6)},
        {"system": "b", "kbps": 8.0, "mel": 0.4},
        {"system": "c", "kbps": 3.0, "mel": Interval(0.6, math.nan, math.nan)},
        {"system": "d", "kbps": 3.0, "mel": math.inf},
        {"system": "real", "mel": 0.0},
        {"system": "failed", "kbps": 4.0, "mel": None},
    ]
    (axes,) = draw_figure([("kbps", "mel")], columns, rows).axes
    curves = {each.get_label(): each for each in axes.containers}
    assert list(curves) == ["a", "b", "c"]
    line, _, (bars,) = curves["a"].lines
    assert line.get_xydata().tolist() == [[1.0, 0.5], [2.0, 0.3]]
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.4, 0.6], [0.25, 0.35]])
    (no_interval,) = curves["c"].lines[2][0].get_segments()
    assert no_interval[0, 1] == no_interval[1, 1] == 0.6
    level = next(each for each in axes.lines if each.get_label() == "real")
    assert level.get_linestyle() == "--" and level.get_ydata() == [0.0, 0.0]
    assert axes.get_xscale() == "log" and axes.get_xlabel() == "kbit/s" and axes.get_ylabel() == "mel ↓"
    low, high = axes.get_xlim()
    assert (
        0 < low < 1 and 8 < high and {"1", "2", "5"} <= {tick.get_text() for tick in axes.get_xticklabels()}
    )


@pytest.mark.parametrize("values", [[3.0], [1e-9, 3e-9], [0.5, 40.0, 3.0], [1.0, 1e6]])
def test_axes_hold_their_values(values: list[float]) -> None:
    columns = [Column("system", "system"), Column("x", "x"), Column("y", "y")]
    rows = [{"system": str(x), "x": x, "y": -x} for x in values]
    (axes,) = draw_figure([("x", "y")], columns, rows).axes
    (left, right), (below, above) = axes.get_xlim(), axes.get_ylim()
    assert all(left <= x <= right and below <= -x <= above for x in values)
    assert Report("", [], columns, rows, (), [("x", "y")]).picture.startswith(b"\x89PNG")


def test_text_of_a_plot_is_no_markup() -> None:
    rows = [{"system": r"$\broken{$ & <b>", "fad": 1.0, "wall_s": 2.0}]
    assert Report("", [], COLUMNS, rows, (), [("wall_s", "fad")]).picture.startswith(b"\x89PNG")


def test_a_plot_without_points_is_left_out() -> None:
    assert Report("", [], COLUMNS, ROWS[:1] + ROWS[3:], (), [("wall_s", "order")]).picture == b""
    assert len(draw_figure([("wall_s", "order"), ("wall_s", "fad")], COLUMNS, ROWS[:3]).axes) == 2
    with pytest.raises(KeyError):
        draw_figure([("nothing", "order")], COLUMNS, ROWS)
