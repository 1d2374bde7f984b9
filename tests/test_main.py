"""`audiogen`: the list of commands, the commands themselves, and what `--version` imports."""

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import audiogen
from audiogen.__main__ import VERBS, main
from audiogen.errors import run_command


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_every_command_is_listed_with_what_it_does(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, argv) == 0
    page = capsys.readouterr().out
    lines = page.split("\n\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == VERBS and page.startswith(
        "usage: python -m audiogen COMMAND"
    )
    assert {"train", "generate", "convert", "codec", "evaluate", "data", "models"} <= set(VERBS)
    assert all(20 < len(line) < 100 and "python -m" not in line for line in lines)


def test_a_command_runs_by_its_name_and_an_unknown_one_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(main, ["codec", "info", "codec_tiny"]) == 0
    assert "sample rate: 16000 Hz" in capsys.readouterr().out
    assert run_command(main, ["genrate", "--text", "rain"]) == 2
    assert capsys.readouterr().err == "error: 'genrate' is no command; did you mean 'generate'?\n"


def test_the_version_is_printed_without_a_heavy_import() -> None:
    code = (
        "import sys; from audiogen.__main__ import main; main(['--version']);"
        "print({'torch', 'numpy', 'omegaconf', 'huggingface_hub'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == f"audiogen {audiogen.__version__}\nset()\n"


def test_the_console_script_is_there() -> None:
    settings = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    ((module, function),) = re.findall(r'^audiogen = "([\w.]+):(\w+)"$', settings, re.MULTILINE)
    assert callable(getattr(import_module(module), function))
