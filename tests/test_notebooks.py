"""The notebooks of examples/ run, in a reduced form, and are committed with small outputs and no error.

Their cells run in order in one namespace. `!audiogen ...` is that command; what Jupyter displays is counted.
"""

import json
import re
import shlex
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from audiogen.__main__ import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SMALLER = {
    "duration_s=2.0": "duration_s=0.2",
    "NUM_CLIPS = 48": "NUM_CLIPS = 4",
    "data.holdout=0.1": "data.holdout=0.25",
    "fit.steps=200 fit.batch_size=8 fit.valid_every=25": (
        "fit.steps=2 fit.batch_size=2 fit.valid_every=1 fit.log_every=1"
    ),
    "fit.steps=150 fit.valid_every=25": "fit.steps=2 fit.valid_every=1 fit.log_every=1 fit.batch_size=2",
    "data.segment_s=2": "data.segment_s=0.5 text.dim=32 text.num_layers=1",
    "pretokenize_epochs=4": "pretokenize_epochs=1",
    "model.spectral.width=96": "model.spectral.width=16 data.segment_s=0.5",
    "optim.warmup_steps=20": "optim.warmup_steps=1",
}


def cells(path: Path) -> list[dict[str, Any]]:
    contents = json.loads(path.read_text())
    assert contents["nbformat"] == 4
    return [cell for cell in contents["cells"] if cell["cell_type"] == "code"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each kind of thing was displayed; in place of Jupyter's display."""
    count: Counter[str] = Counter()
    display = types.ModuleType("IPython.display")
    display.Audio = lambda filename: Path(filename).stat() and "player"  # type: ignore[attr-defined]
    display.Image = lambda data: data and "picture"  # type: ignore[attr-defined]
    display.display = lambda *things: count.update(things)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return count


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(
    path: Path, shown: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in cells(path):
        source = "".join(cell["source"])
        for text, smaller in SMALLER.items():
            source = source.replace(text, smaller)
        if source.startswith("!audiogen "):
            command = source.removeprefix("!audiogen ").partition(" 2>")[0]
            assert main(shlex.split(command)) == 0, command
        else:
            exec(compile(source, path.name, "exec"), names)
    assert shown["player"] >= 3 and shown["picture"] >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_committed_outputs_are_whole_and_small(path: Path) -> None:
    text = path.read_text()
    assert len(text) < 300_000 and not re.search(r"/(tmp|home|root|work)/", text)
    kinds: Counter[str] = Counter()
    for number, cell in enumerate(cells(path), 1):
        assert cell["execution_count"] == number
        for output in cell["outputs"]:
            assert output["output_type"] != "error" and output.get("name") != "stderr"
            kinds.update(list(output.get("data", ())))
    assert kinds["image/png"] >= 3 and kinds["text/html"] >= 3, "pictures, players"


def test_every_reduction_is_of_use() -> None:
    assert len(NOTEBOOKS) == 2
    text = "".join("".join(cell["source"]) for path in NOTEBOOKS for cell in cells(path))
    assert not [each for each in SMALLER if each not in text]
