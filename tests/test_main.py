"""`python -m audiogen`: the list of commands, and the commands themselves."""

import pytest

from audiogen.__main__ import VERBS, main
from audiogen.errors import run_command


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_every_command_is_listed_with_what_it_does(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == VERBS
    assert {"train", "generate", "convert", "codec", "evaluate", "data"} <= set(VERBS)
    assert all(20 < len(line) < 130 for line in lines)


def test_a_command_runs_by_its_name_and_an_unknown_one_is_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(main, ["codec", "info", "codec_tiny"]) == 0
    assert "sample rate: 16000 Hz" in capsys.readouterr().out
    assert run_command(main, ["genrate", "--text", "rain"]) == 2
    assert capsys.readouterr().err == "error: 'genrate' is no command; did you mean 'generate'?\n"
