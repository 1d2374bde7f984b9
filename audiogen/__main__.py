"""`audiogen`, or `python -m audiogen`: the commands, a line each; `audiogen VERB` is `python -m audiogen.VERB`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from audiogen import __version__
from audiogen.errors import InputError, run_command

VERBS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/__main__.py"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or list them with the first lines of their descriptions."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "--help-all"):
        for name in VERBS:
            about = (import_module(f"audiogen.{name}.__main__").__doc__ or "").partition("\n")[0]
            print(f"{name:9} {about.replace('`', '')}")
        return 0
    if verb in ("-V", "--version"):
        print(f"audiogen {__version__}")
        return 0
    if verb not in VERBS:
        from audiogen.config import did_you_mean  # late: `--version` answers in a tenth of a second

        raise InputError(f"{verb!r} is no command; {did_you_mean(verb, VERBS)}")
    return int(import_module(f"audiogen.{verb}.__main__").main(rest) or 0)


def script() -> int:
    """The console script `audiogen`."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(script())
