"""What every command of `audiogen.evaluate` does around its evaluation: warnings, the table, the exit status."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from audiogen.errors import InputError
from audiogen.evaluate import codecs, compare, files
from audiogen.evaluate.systems import Comparison

COMMANDS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "codec": (codecs.CodecEvaluation, codecs.run),
    "compare": (Comparison, compare.run),
    "files": (files.FilesEvaluation, files.run),
}


def run(name: str, settings: Mapping[str, Any]) -> int:
    """Run a command, print its table and where the rest is -> 1 where a system failed and the others finished."""
    make_settings, evaluate = COMMANDS[name]
    try:
        with plain_warnings():
            table = evaluate(make_settings(**settings), warn)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, say: what cannot be read is an InputError by now
        raise InputError(f"{error.filename or 'the output'}: {error.strerror or error}") from error
    path = settings["out"] / "report.md"
    print(*(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("|")), sep="\n")
    print(f"{path}, with report.html to listen to and report.json to compute with")
    for system, reason in table.failures.items():
        print(f"error: {system} failed: {reason}", file=sys.stderr)
    return 1 if table.failures else 0


def warn(message: str) -> None:
    """A warning in one line, below the progress bar if there is one."""
    tqdm.write(f"warning: {' '.join(message.split())}", file=sys.stderr)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Python's warnings, as of a text that is too long, in one line without the place in our code."""

    def show(message: Warning | str, *_: Any) -> None:
        warn(str(message))

    with warnings.catch_warnings():
        setattr(warnings, "showwarning", show)  # noqa: B010 (a plain assignment does not pass mypy)
        yield
