"""tools/figures.py: pictures of given sounds, curves of a log, and tables of a report's figures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from audiogen import audio
from audiogen.errors import InputError
from audiogen.provenance import Provenance
from tools import figures, pictures


def test_a_louder_and_higher_sound_is_brighter_and_higher_in_its_picture(tmp_path: Path) -> None:
    seconds = torch.arange(2 * figures.RATE) / figures.RATE
    low, high = (0.5 * torch.sin(2 * torch.pi * hz * seconds)[None] for hz in (800, 6000))
    figures.draw(tmp_path / "a.png", [[("low", low), ("high", high), ("silence", 0 * low)]])
    shown = np.asarray(Image.open(tmp_path / "a.png").convert("L"), dtype=float)
    columns = [
        shown[30:-50, round(shown.shape[1] * (2 * i + 1) / 6)] for i in range(3)
    ]  # through the middles
    low_row, high_row = (int(column.argmax()) for column in columns[:2])
    assert high_row < low_row - 20  # the first row is the top
    assert columns[0].max() > 150 and columns[2].max() < 20


def test_curves_need_a_log_and_draw_one_panel_a_run(tmp_path: Path) -> None:
    for name, values in (("good", [3.0, 2.0, 1.0]), ("bad", [3.0, 4.0, 9.0])):
        (tmp_path / name).mkdir()
        records = [
            {"step": step, "train/loss": value, "valid/ce": value} for step, value in enumerate(values)
        ]
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    runs = [f"{name}={tmp_path / name}" for name in ("good", "bad")]
    assert figures.main(["curves", str(tmp_path / "out.png"), "valid/ce", *runs]) == 0
    one = tmp_path / "one.png"
    figures.curves(one, ["valid/ce"], {"good": tmp_path / "good"})
    wide, narrow = Image.open(tmp_path / "out.png").size, Image.open(one).size
    assert wide[0] == pytest.approx(2 * narrow[0], abs=2) and wide[1] == narrow[1]
    with pytest.raises(InputError, match="no log.jsonl"):
        figures.curves(one, ["valid/ce"], {"none": tmp_path})


def test_a_table_is_put_between_its_marks_and_nowhere_else() -> None:
    page = "a\n<!-- table: headline -->\nold\n<!-- end of table -->\nb\n"
    assert figures.with_table(page, "headline", "| new |\n") == page.replace("old", "| new |")
    with pytest.raises(InputError, match="no place for the table 'other'"):
        figures.with_table(page, "other", "")


@pytest.mark.parametrize(
    ("cell", "digits", "text"),
    [
        ({"value": 12.94, "low": 10.2, "high": 16.6}, 1, "12.9 [10, 17]"),
        ({"value": 0.896, "low": 0.8, "high": 0.963}, 2, "0.90 [0.80, 0.96]"),
        ({"value": 0.9, "low": None, "high": None}, 2, "0.90"),
        (0.123, 2, "0.12"),
        (None, 2, ""),
    ],
)
def test_cells(cell: object, digits: int, text: str) -> None:
    assert figures.cell_text(cell, digits) == text


def test_the_table_of_readme_is_that_of_the_figures_that_are_kept() -> None:
    readme = (figures.ROOT / "README.md").read_text()
    table = figures.headline(json.loads(figures.KEPT.read_text()))
    assert figures.with_table(readme, "headline", table) == readme, "python tools/figures.py table"


def test_the_figures_of_a_report_are_kept_by_system_and_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "KEPT", tmp_path / "kept.json")
    cell = {"value": 6.04, "low": 3.0, "high": 10.0}
    keys = {"fad tagger_tiny 12ab": cell, "fad_inf tagger_tiny 12ab": 9.9, "accuracy logmel 34cd": 0.5}
    names = ("ground truth", "lm_tiny, codec alone", "lm_tiny", "captions shuffled")
    report = {
        "title": "t",
        "notes": ["--data /a/b/esc10/m.jsonl, fold 1/2/3"],
        "rows": [{"system": name, "n": 80, **keys} for name in names],
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    figures.keep(tmp_path / "report.json", "on a day")
    assert json.loads(figures.KEPT.read_text())["notes"] == ["--data esc10/m.jsonl, fold 1/2/3"]
    *lines, gap, made = figures.headline(json.loads(figures.KEPT.read_text())).splitlines()[2:]
    systems = ("real clips", "`lm_tiny`", "real clips, captions exchanged")
    assert lines == [f"| {name} | 6.0 [3, 10] |  |  | 0.50 |" for name in systems]
    assert not gap and made.startswith("Measured on a day, by `python -m audiogen.evaluate compare`")
    with pytest.raises(InputError, match="--made"):
        figures.main(["table", str(tmp_path / "report.json")])


def test_the_parts_of_a_marked_file_are_all_of_it_and_its_samples_are_those_of_one_without(
    tmp_path: Path,
) -> None:
    sound = torch.randn(1, 501) / 10
    tags = Provenance("mine", settings={"text": "rain", "seed": 3}).tags()
    found = {}
    for name, given in (("marked", tags), ("plain", None)):
        audio.save(tmp_path / f"{name}.wav", sound, 16_000, tags=given)
        found[name] = (tmp_path / f"{name}.wav").read_bytes()
    marked, plain = map(pictures.chunks, found.values())
    assert [name for name, *_ in plain] == ["fmt ", "data"] == [name for name, *_ in marked[:2]]
    texts = {name: text for name, _, text in marked}
    assert texts["INAM"] == "rain" and texts["IKEY"] == "AI-generated" and texts["iXML"].startswith("<?xml")
    sizes = sum(8 + size + size % 2 for _, size, _ in marked)
    assert sizes + 12 + 12 == len(found["marked"])  # RIFF, and the head of LIST
    samples = slice(found["plain"].index(b"data"), found["plain"].index(b"data") + 8 + 2 * 501)
    assert found["marked"][samples] == found["plain"][samples]
    with pytest.raises(InputError, match="has no onnx.json: python -m audiogen.convert lm_tiny"):
        pictures.main(["onnx", str(tmp_path)])
