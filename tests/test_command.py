"""Help: what fits a screen, what `--help-all` adds, and examples that the commands accept."""

import argparse
import re
import shlex
from importlib import import_module
from typing import Any

import pytest

from audiogen import command
from audiogen.__main__ import VERBS, main

SCREEN = (80, 40)  # columns, lines
COMMANDS = [*VERBS, *(f"codec {name}" for name in ("encode", "decode", "merge", "info")), "data scan"]
COMMANDS += [f"evaluate {name}" for name in ("codec", "compare", "files")]


class Parsed(Exception):
    """Ends a command once its command line is read."""


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        parse(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)


def print_help(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    verb, *rest = words.split()
    with pytest.raises(SystemExit) as ended:
        import_module(f"audiogen.{verb}.__main__").main([*rest, option])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", COMMANDS)
def test_help_fits_a_screen_and_its_examples_are_accepted(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], parse_only: None
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
        with pytest.raises(Parsed):
            import_module(f"audiogen.{verb}.__main__").main(argv)


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
    assert command.make_parser("x", "").prog == shown
