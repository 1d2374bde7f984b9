"""`audiogen`, or `python -m audiogen`: the commands, a line each; `audiogen VERB` is `python -m audiogen.VERB`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from audiogen import __version__, command
from audiogen.errors import InputError, run_command

VERBS = sorted(path.parent.name for path in Path(__file__).parent.glob("*/__main__.py"))
USAGE = """\
usage: {program} COMMAND [options]

{commands}

options:
  --help      this page; of a command: {program} COMMAND --help
  --version   print the version
  --print-completion SHELL   a script that completes commands and options in bash, zsh or tcsh

examples:
  {program} generate --text "a dog barks"
  {program} train recipe=lm_tiny_finetune data.train=my_sounds/ out=runs/mine
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, or list them with the first lines of their descriptions."""
    verb, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if verb in ("-h", "--help", "--help-all"):
        commands = "\n".join(f"  {name:9} {about(name)}" for name in VERBS)
        print(USAGE.format(program=command.program(), commands=commands), end="")
    elif verb in ("-V", "--version"):
        print(f"audiogen {__version__}")
    elif verb == "--print-completion":
        print(completion(*rest[:1]))
    elif verb in VERBS:
        return int(module_of(verb).main(rest) or 0)
    else:
        from audiogen.config import did_you_mean  # late: `--version` answers in a tenth of a second

        raise InputError(f"{verb!r} is no command; {did_you_mean(verb, VERBS)}")
    return 0


def module_of(verb: str) -> ModuleType:
    """Where a command has its `main` and its `make_parser`."""
    return import_module(f"audiogen.{verb}.__main__")


def about(verb: str) -> str:
    """The first line of a command's description, without the command itself."""
    line = (module_of(verb).__doc__ or "").partition("\n")[0]
    return re.sub(r"^`python -m [^`]*`: |: `python -m .*", "", line).replace("`", "").rstrip(".")


def completion(shell: str = "") -> str:
    """A script for a shell: what may follow `audiogen`."""
    if shell not in (shells := ("bash", "zsh", "tcsh")):
        raise InputError(f"--print-completion is for {', '.join(shells[:-1])} or {shells[-1]}; got {shell!r}")
    try:
        import shtab
    except ImportError:
        raise InputError(
            "--print-completion needs shtab: pip install '.[completion]' in the checkout"
        ) from None
    return str(shtab.complete(command.join({verb: module_of(verb).make_parser() for verb in VERBS}), shell))


def script() -> int:
    """The console script `audiogen`."""
    return run_command(main)


if __name__ == "__main__":
    sys.exit(script())
