"""Help: what fits a screen, what `--help-all` adds, and examples that the commands accept."""

import argparse
import re
import shlex
import subprocess
import sys

import pytest

from audiogen import command
from audiogen.__main__ import VERBS, main, module_of
from audiogen.errors import run_command

SCREEN = (80, 40)  # columns, lines
COMMANDS = [*VERBS, *(f"codec {name}" for name in ("encode", "decode", "merge", "info")), "data scan"]
COMMANDS += [f"evaluate {name}" for name in ("codec", "compare", "files")]


def parser_of(verb: str) -> argparse.ArgumentParser:
    return module_of(verb).make_parser()


def print_help(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    verb, *rest = words.split()
    with pytest.raises(SystemExit) as ended:
        parser_of(verb).parse_args([*rest, option])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_a_screen_and_its_examples_are_accepted(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(SCREEN[0]))
    text = print_help(words, "--help", capsys)
    assert text.count("\n") <= SCREEN[1], text
    _, _, examples = text.partition("\nexample")
    lines = re.findall(r"^  python -m audiogen\.(.*)", examples, re.MULTILINE)
    assert lines and len(lines) <= 4
    for line in lines:
        assert line.startswith(words), line
        verb, *argv = shlex.split(line.partition(" | ")[0])
        parser_of(verb).parse_args(argv)


@pytest.mark.parametrize("words", ["generate", "serve", "codec encode", "evaluate compare"])
def test_the_common_options_are_few_and_help_all_has_the_rest(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {option: print_help(words, option, capsys) for option in ("--help", "--help-all")}
    few, all_ = ({*re.findall(r"^  (?:-\w.*, )?(--[\w-]+)", page, re.MULTILINE)} for page in pages.values())
    assert 9 <= len(few) <= 12 and few < all_
    assert pages["--help"].partition("\nexamples:")[2] == pages["--help-all"].partition("\nexamples:")[2]


def test_a_mistyped_option_costs_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["convert", "lm_tiny", "--too", "x", "-o", "y"])
    assert ended.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: python -m audiogen.convert MODEL --to TO --out DIR [options]" and "--to" in error


@pytest.mark.parametrize(
    ("program", "shown"), [("/usr/bin/audiogen", "audiogen x"), ("pytest", "python -m audiogen.x")]
)
def test_help_names_the_program_as_it_was_started(
    program: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [program])
    assert command.new_parser("x", "").prog == shown


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_has_every_command_and_its_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs the extra: pip install '.[completion]'")
    assert main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(verb in script for verb in VERBS)
    assert all(
        word in script for word in ("--num-samples", "compare", "--order-prompts", "scan", "--max-queue")
    )
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_without_its_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run_command(main, ["--print-completion", "bash"]) == 2
    assert "pip install '.[completion]' in the checkout" in capsys.readouterr().err
    assert run_command(main, ["--print-completion", "fsh"]) == 2
    assert "bash, zsh or tcsh" in capsys.readouterr().err
