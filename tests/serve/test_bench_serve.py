"""`tools/bench_serve.py` in small: a table, and every answer compared with that of a client alone."""

from pathlib import Path

import pytest

from tests.serve.conftest import Start  # noqa: F401 (skips without the extra)
from tools import bench_serve


def test_a_table_of_clients(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(bench_serve, "SEEDS", 1)
    options = [
        "--model",
        str(tiny_model),
        "--clients",
        "1,3",
        "--seconds",
        "0.5",
        "--duration",
        "0.3",
        "--threads",
        "1",
    ]
    assert bench_serve.main([*options, "--dtype", "float32"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [(row[0].strip(), row[-1].strip()) for row in rows] == [("1", "0"), ("3", "0")]
    assert all(int(row[1]) >= int(row[0]) for row in rows)


def test_percentiles() -> None:
    assert (bench_serve.percentile([3, 1, 2], 0.5), bench_serve.percentile([3, 1, 2], 0.99)) == (2, 3)
