"""What the commands share: help that fits a screen, and results for programs. Standard library only."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any


def program(verb: str = "") -> str:
    """What to type for a command, as the user did: `audiogen VERB`, or `python -m audiogen.VERB`."""
    if Path(sys.argv[0]).stem == "audiogen":
        return f"audiogen {verb}".rstrip()
    return f"python -m audiogen.{verb}".rstrip(".")


def new_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser of a command's options; `add_help` completes it."""
    return argparse.ArgumentParser(prog=program(verb), description=description, add_help=False)


def join(parsers: Mapping[str, argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """One parser of all commands, for the completion of shells; options that name a file complete files (shtab)."""
    whole = argparse.ArgumentParser(prog="audiogen")
    commands = whole.add_subparsers()
    for verb, parser in parsers.items():
        commands.add_parser(verb, parents=[parser], add_help=False, help=parser.description)
        for action in parser._actions:
            if action.type is Path or action.metavar in ("FILE", "DIR"):
                action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}  # type: ignore[attr-defined]
    return whole


def add_help(
    parser: argparse.ArgumentParser, common: Sequence[str] = (), examples: Sequence[str] = ()
) -> None:
    """The options `-h`, `--help` and `--help-all`, after all others were added.

    `--help` prints positional arguments, the options `common` in that order and the examples, command lines without the
    program's name. `--help-all` prints all options by their groups, as `--help` does without `common`. The usage line
    names what is required; a mistyped option prints no more than that and its error.
    """
    needed = [
        " ".join([*action.option_strings[-1:], action.metavar or action.dest.upper()])  # type: ignore[list-item]
        for action in parser._actions
        if action.required or not action.option_strings
    ]
    parser.usage = " ".join(
        ["%(prog)s", *needed, *["[options]"] * any(a.option_strings for a in parser._actions)]
    )
    group = parser.add_argument_group("help")
    about = "the common options" if common else "this page"
    group.add_argument("-h", "--help", action=_Print, page=(tuple(common), examples), help=about)
    if common:
        group.add_argument("--help-all", action=_Print, page=((), examples), help="all options")


def page(parser: argparse.ArgumentParser, common: Sequence[str], examples: Sequence[str]) -> str:
    """What `--help` prints; see `add_help`."""
    lines = "".join(f"  {parser.prog} {example}".rstrip() + "\n" for example in examples)
    end = f"\n{'example' if len(examples) == 1 else 'examples'}:\n{lines}" if examples else ""
    if not common:
        return parser.format_help() + end
    options = {option: action for action in parser._actions for option in action.option_strings}
    formatter = parser._get_formatter()  # with the colours of newer Pythons, on terminals
    formatter.add_usage(parser.usage, [], [])
    formatter.add_text(parser.description)
    for title, actions in (
        ("arguments", [action for action in parser._actions if not action.option_strings]),
        ("common options", [options[option] for option in (*common, "--help-all")]),
    ):
        formatter.start_section(title)
        formatter.add_arguments(actions)
        formatter.end_section()
    return formatter.format_help() + end


class _Print(argparse.Action):
    """Prints a page and ends the program."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, page: Any, help: str, default: object = None
    ) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self.page = page

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(page(parser, *self.page), end="")
        parser.exit()


# ---------------------------------------------------------------------------------------------------- results


def add_output(parser: Any) -> None:
    """The options `--json` and `--quiet` on a parser or a group of its arguments; `output` does what they say."""
    parser.add_argument(
        "--json", action="store_true", help="the result as one JSON object; all other lines to standard error"
    )
    parser.add_argument("--quiet", action="store_true", help="print warnings and errors alone, no progress")


@contextmanager
def output(as_json: bool, quiet: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Runs a command with its lines where `--json` and `--quiet` want them -> takes the result, for `--json`.

    What is printed inside goes to standard error with `--json` and nowhere with `--quiet`. Bars are drawn on terminals
    alone, and with `--quiet` standard error is not shown as one.
    """
    standard = sys.stdout

    def give(result: Mapping[str, Any]) -> None:
        if as_json:
            print(json.dumps(result, default=str), file=standard, flush=True)

    with ExitStack() as stack:
        if quiet:
            stack.enter_context(redirect_stderr(_NoTerminal(sys.stderr)))
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        elif as_json:
            stack.enter_context(redirect_stdout(sys.stderr))
        yield give


class _NoTerminal:
    """A stream of text that says it is no terminal."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
