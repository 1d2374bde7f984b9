"""`python -m audiogen.evaluate`: codecs beside Opus, systems side by side, and two folders of sounds.

`--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from audiogen import command
from audiogen.errors import InputError, installed, run_command
from audiogen.evaluate import EMBEDDERS

with installed():
    from tqdm import tqdm

    from audiogen.config import read_table
    from audiogen.files.locks import only_writer

T = TypeVar("T")

TYPES = {"int": int, "float": float, "path": Path}
LISTS = {"seeds": int, "opus_kbps": float, "metrics": str}  # what an option with commas holds


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "evaluate",
        "How good sounds are, how well they follow the text, what they cost: report.md, .json, .html.",
    )
    table = read_table(Path(__file__).with_name("options.yaml"))["commands"]
    commands = parser.add_subparsers(dest="name", required=True, metavar=" | ".join(table))
    for name, entry in table.items():
        added = commands.add_parser(
            name, help=entry["help"], argument_default=argparse.SUPPRESS, add_help=False
        )
        for title, options in entry["groups"].items():
            group = added.add_argument_group(title)
            for option, settings in options.items():
                given = settings | {"help": settings["help"].replace("EMBEDDERS", EMBEDDERS)}
                if "type" in settings:
                    given["type"] = TYPES[settings["type"]]
                group.add_argument(f"--{option}", **given)
        command.add_output(group)
        command.add_help(added, entry.get("common", ()), entry["examples"])
    command.add_help(parser, examples=[f"{name} {entry['examples'][0]}" for name, entry in table.items()])
    return parser


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line by the names of a command's settings, of which what is not given is missing; name: which."""
    return vars(make_parser().parse_args(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, print its table and where the rest is -> 1 where a system failed and the others finished.

    With --json it prints what report.json has, the folder and the failures in its place.
    """
    settings = parse(argv)
    as_json, quiet = (settings.pop(name, False) for name in ("json", "quiet"))
    words = sys.argv[1:] if argv is None else argv
    settings["command"] = shlex.join(["python", "-m", "audiogen.evaluate", *words])
    for name in {"where", "reference_where"} & settings.keys():
        settings[name] = read_filters(f"--{name.replace('_', '-')}", settings[name])
    for name in LISTS.keys() & settings.keys():
        settings[name] = read_list(f"--{name.removesuffix('_kbps')}", settings[name], LISTS[name])
    for name in {"codecs", "models", "embedders"} & settings.keys():
        settings[name] = tuple(settings[name])
    from audiogen.evaluate import codecs, compare, files, systems  # here: they import torch

    commands: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
        "codec": (codecs.CodecEvaluation, codecs.run),
        "compare": (systems.Comparison, compare.run),
        "files": (files.FilesEvaluation, files.run),
    }
    make_settings, evaluate = commands[settings.pop("name")]
    evaluation = make_settings(**settings)
    check_out(evaluation.out)
    with (
        command.output(as_json, quiet) as give,
        only_writer(evaluation.out),
        warnings.catch_warnings(),
    ):
        setattr(warnings, "showwarning", warn)  # noqa: B010 (a plain assignment does not pass mypy)
        report = evaluate(evaluation, warn)
        path = evaluation.out / "report.md"
        print(
            *(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")),
            sep="\n",
        )
        print(f"{path}, with report.html to listen to and report.json to compute with")
        figures = json.loads(path.with_suffix(".json").read_bytes())
        give({"out": str(evaluation.out), "failures": dict(report.failures), **figures})
    for system, reason in report.failures.items():
        print(f"error: {system} failed: {reason}", file=sys.stderr)
    return 1 if report.failures else 0


def warn(message: Warning | str, *_: Any) -> None:
    """A warning in one line, below the progress bar if there is one; of Python's own ones without the place."""
    tqdm.write(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def read_filters(option: str, given: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """`["fold=1,2", "license=CC0"]` as values by field."""
    filters: dict[str, tuple[str, ...]] = {}
    for entry in given:
        name, equals, values = entry.partition("=")
        name = name.strip()
        allowed = tuple(value.strip() for value in values.split(",") if value.strip())
        if not (name and equals and allowed):
            raise InputError(f"{option} {entry}: give a field and its values, as in fold=1,2")
        if name in filters:
            raise InputError(f"{option} names {name} twice; give its values in one, as in {name}=1,2")
        filters[name] = allowed
    return filters


def read_list(option: str, given: str, kind: Callable[[str], T]) -> tuple[T, ...]:
    """`"0,1,2"` as values of a kind; spaces and empty entries count for nothing."""
    try:
        return tuple(kind(word) for word in given.replace(",", " ").split())
    except ValueError:
        raise InputError(f"{option} {given}: give {kind.__name__} values with commas between") from None


def check_out(out: Path) -> None:
    """Before any work: the report's folder can be made, or is one."""
    there = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out {out}: {there} is not a folder that can be written to; choose another")


if __name__ == "__main__":
    sys.exit(run_command(main))
