"""The memory of commands: real ones in processes of their own, and what fails costs a line."""

from __future__ import annotations

import json
import os
import sys
import wave
from pathlib import Path

import pytest

from audiogen.train.run import open_recipe
from tools import command_memory
from tools.command_memory import Command

pytestmark = pytest.mark.skipif(not hasattr(os, "wait4"), reason="what a command used is counted by Unix")


def test_the_peak_is_the_commands_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = bytearray(300 << 20)  # of this process, which counts for no child
    (tmp_path / "some.py").write_text("x = bytearray(100 << 20)\n")
    (tmp_path / "fails.py").write_text("raise SystemExit('no such thing')\n")
    (tmp_path / "waits.py").write_text("import time\ntime.sleep(60)\n")
    found = command_memory.measure(Command("some", str(tmp_path / "some.py")), 1, 60)
    assert found is not None and 100 < found[0] < 200 and found[1] > 0 and len(held)
    assert command_memory.measure(Command("bad", str(tmp_path / "fails.py")), 1, 60) is None
    assert command_memory.measure(Command("slow", str(tmp_path / "waits.py")), 1, 0.5) is None
    assert capsys.readouterr().out.splitlines() == [
        "bad is left out: no such thing",
        "slow is left out: it takes more than 0.5 s",
    ]


def test_a_table_of_one_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.py").write_text("")
    monkeypatch.setattr(
        command_memory,
        "commands",
        lambda folder: [Command("first", str(tmp_path / "some.py")), Command("second", "no.py")],
    )
    figures = tmp_path / "figures.jsonl"
    words = ["--only", "fir", "--folder", str(tmp_path / "new"), "--json", str(figures)]
    assert command_memory.main(words) == 0
    assert capsys.readouterr().out.splitlines()[2].startswith("| first | ")
    assert json.loads(figures.read_text())["command"] == "first"
    with wave.open(str(tmp_path / "new" / "hour.wav")) as file:
        assert (file.getnframes(), file.getframerate()) == (3600 * 16000, 16000)


@pytest.mark.parametrize(("recipe", "more"), command_memory.TRAINED, ids=lambda value: value.split(" ")[0])
def test_what_is_added_to_recipes_fits_them(recipe: str, more: str) -> None:
    open_recipe(recipe, f"{command_memory.DATA} {more.format('folder')}".split())


def test_commands_are_parsed_by_the_package(tmp_path: Path) -> None:
    """All others have programs that are here, and their options."""
    options = (Path(__file__).parent / "cli_options.txt").read_text()
    for command in command_memory.commands(tmp_path):
        program, *words = command.arguments.split()
        if program.startswith("audiogen.generate"):
            assert all(f"{program} {word} " in options for word in words if word.startswith("--")), words
        assert program.endswith(".py") or program.startswith("audiogen."), sys.executable
