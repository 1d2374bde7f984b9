"""The comparison with other engines, in small: ours and PyTorch's in processes of their own, a table and JSON.

The other engines are converted and compared with PyTorch's logits where their packages are installed.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tools import bench_rivals

MODULES = {"onnxruntime": ("onnxruntime", "onnxscript"), "openvino": ("openvino",)}


def run(tmp_path: Path, arguments: str) -> list[dict[str, object]]:
    """Figures of the tool with the packages that are here."""
    where = ["--environment", str(tmp_path), "--out", str(tmp_path / "figures.json"), "--here"]
    assert bench_rivals.main([*where, "--threads", "1", "--rounds", "2", *arguments.split()]) == 0
    return json.loads((tmp_path / "figures.json").read_text())["figures"]


def test_ours_and_what_cannot_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(tmp_path, "--only lm --shape tiny --frames 3 --dtypes int8 --engines packed llama")
    assert [
        (each["engine"], each["shape"], each["dtype"]) for each in figures if each["engine"] != "llama"
    ] == [
        ("packed", "tiny", "int8"),
        ("ours", "tiny", "int8"),
    ]
    for each in figures:
        assert each["engine"] == "llama" or 0 < float(str(each["error"])) < 0.05
        assert isinstance(each["rate"], float) and each["rate"] > 0
    assert figures[-1]["times"] == [1, 1, 1]
    out = capsys.readouterr().out
    if not importlib.util.find_spec("llama_cpp"):
        assert re.search(r"^llama int8 is left out: ModuleNotFoundError: .*gguf", out, re.M)
    assert "| clip of 3 frames: packed int8 | 1 | 1 | " in out


@pytest.mark.parametrize("engine", MODULES)
def test_a_converted_step_gives_the_same_logits(tmp_path: Path, engine: str) -> None:
    if not all(importlib.util.find_spec(name) for name in MODULES[engine]):
        pytest.skip(f"needs {' and '.join(MODULES[engine])}, which only the tool's own environment has")
    figures = run(tmp_path, f"--only lm --shape tiny --frames 3 --dtypes float32 --engines {engine}")
    assert figures[0]["engine"] == engine and float(str(figures[0]["error"])) < 0.01


def test_codecs(tmp_path: Path) -> None:
    words = "--only codec --codecs tiny --seconds 0.2 --dtypes float32 --engines transformers"
    figures = run(tmp_path, words)
    found = {(each["engine"], each["work"]): each for each in figures}
    assert set(found) == {(e, work) for e in ("ours", "transformers") for work in ("encode", "decode")}
    assert float(str(found["transformers", "encode"]["error"])) < 0.01  # of the codes, rounded apart


def test_figures_are_the_medians_of_rounds() -> None:
    line = bench_rivals.Figure("lm", "clip", "llama", "1", "int8", 2, 1, 50.0, 25.0, (2.0, 1.5, 3.0), None)
    assert bench_rivals.row(line) == (
        "| clip of 50 frames: llama int8 | 1 | 2 | 25.0 | 2.00 (1.50 to 3.00) |  |"
    )
