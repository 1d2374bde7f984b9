"""The measurements for a GPU, in small on a CPU: every command runs and writes what the table is made of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audiogen.errors import InputError
from tools import records

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("timeout"), reason="needs bash and timeout")
def test_it_runs_in_miniature_on_a_cpu(tmp_path: Path) -> None:
    variables = os.environ | {"MINIATURE": "1", "PYTHON": sys.executable}
    command = ["bash", str(ROOT / "tools" / "bench_gpu.sh"), str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert "left out" not in done.stdout, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    kinds = [row["bench"] for row in rows]
    assert kinds == ["decoding"] * 2 + ["opening"] + ["codec"] * 2 + ["training"] * 2
    assert all(row[key] > 0 for row in rows for key in row if key.endswith("/s"))
    tables = (tmp_path / "figures.md").read_text()
    assert all(f"\n{kind}\n" in tables for kind in kinds)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.jsonl", "figures.md"]


@pytest.mark.skipif(not shutil.which("bash") or not shutil.which("timeout"), reason="needs bash and timeout")
def test_what_no_longer_fits_is_left_out(tmp_path: Path) -> None:
    variables = os.environ | {"MINIATURE": "1", "PYTHON": sys.executable, "LIMIT_S": "5"}
    command = ["bash", str(ROOT / "tools" / "bench_gpu.sh"), str(tmp_path)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout.count("left out: no time is left") == 5
    assert (tmp_path / "figures.jsonl").read_text() == ""


def test_tables_have_a_column_for_every_key() -> None:
    rows = [{"bench": "a", "model": "x", "rate": 1234.5}, {"bench": "a", "model": "y", "MB": 0.12345}]
    assert records.table(rows) == ("| model | rate | MB |\n|---|---|---|\n| x | 1234 |  |\n| y |  | 0.123 |")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="--json"):
        records.main([str(tmp_path / "x.jsonl")])
