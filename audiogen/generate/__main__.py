"""`python -m audiogen.generate`: text to sound files, each with a picture of its spectrogram.

A sound is a function of its text, duration, seed and the settings, not of the prompts beside it: sample j of every
prompt has the seed `--seed` + j (or the seed of the prompt's own line in `--prompts`, + j), which is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from audiogen import command
from audiogen.errors import heavy_imports, installed, run_command

with installed():
    from audiogen.generate.jobs import plan
    from audiogen.generate.options import make_parser as make_parser
    from audiogen.generate.options import parse_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, write and report. What the user got wrong is an InputError, raised before anything is written."""
    args = parse_arguments(argv)
    jobs = plan(args)
    with heavy_imports():
        from audiogen.generate import run
    to_player = str(args.out) == "-"  # the sound itself is on standard output
    with command.output(args.json, args.quiet and not to_player) as give:
        give(run.run(args, jobs))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
