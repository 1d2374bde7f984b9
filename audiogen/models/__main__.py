"""`python -m audiogen.models`: the models of this machine, bundled and in the hub's cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from audiogen import command
from audiogen.errors import run_command

HEADINGS = ("name", "family", "sample rate", "on disk", "licence")


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "models",
        "The models of this machine: those that come with the package, and those in the hub's cache.",
    )
    command.add_output(parser)
    command.add_help(parser, examples=("", "--json"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each model."""
    arguments = make_parser().parse_args(argv)
    from audiogen.models import listing

    found = list(listing.models())
    rows = [HEADINGS] + [
        (
            model.name,
            model.family,
            f"{model.sample_rate} Hz" if model.sample_rate else "-",
            f"{model.size / 1e6:,.1f} MB",
            model.licence,
        )
        for model in found
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    with command.output(arguments.json, arguments.quiet) as give:
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        give({"models": [model._asdict() for model in found]})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
