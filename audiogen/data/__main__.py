"""`python -m audiogen.data scan FOLDER`: a manifest of a folder of sounds, every file decoded and checked."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from audiogen import command
from audiogen.errors import run_command


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = command.new_parser("data", "Prepare sounds for training.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="scan")
    scan = commands.add_parser(
        "scan", help="write a manifest of a folder of sounds; decodes and checks every file", add_help=False
    )
    scan.add_argument(
        "folder",
        help="sounds, in folders or not; captions come from NAME.txt or NAME.json beside NAME.wav, else from the names",
    )
    scan.add_argument("-o", "--out", help="manifest to write (default: FOLDER/manifest.jsonl)")
    scan.add_argument("--overwrite", action="store_true", help="replace a manifest that exists")
    command.add_help(scan, examples=("my_sounds/", "my_sounds/ -o manifest.jsonl --overwrite"))
    command.add_help(parser, examples=("scan my_sounds/",))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run its command."""
    arguments = make_parser().parse_args(argv)
    from audiogen.data import manifest

    out = Path(arguments.out or Path(arguments.folder, "manifest.jsonl"))
    manifest.scan(arguments.folder, out, arguments.overwrite)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
