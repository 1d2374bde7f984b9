"""`python -m audiogen.info`: what a generator is, the options it takes, its words and the sounds that it makes.

`--help` and a mistyped option answer without torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from audiogen import command
from audiogen.errors import run_command


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser(
        "info", "What a generator is, the options it takes, its words and the sounds that it makes."
    )
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="a bundled name, a model directory, a release or a hub id; default: the bundled ones",
    )
    parser.add_argument("--card", action="store_true", help="print the model card, too")
    parser.add_argument("--words", action="store_true", help="list the words that it was trained with")
    command.add_output(parser)
    command.add_help(parser, examples=("", "lm_tiny --words", "lm_tiny --card", "facebook/audiogen-medium"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print one `name: value` a line, for each model."""
    arguments = make_parser().parse_args(argv)
    from audiogen.info import describe

    with command.output(arguments.json, arguments.quiet) as give:
        give({"models": describe.run(arguments.models, arguments.card, arguments.words)})
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
