"""The one exception for a user's mistake, and how the command line reports it. Standard library only."""

import atexit
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave is wrong: a file, a key, a value, a directory.

    The message is one line: what was got, what is allowed, what to do. Everything else that is raised is a bug
    of ours and keeps its traceback.
    """


@contextmanager
def opening(what: str, advice: str) -> Iterator[None]:
    """Whatever fails inside is an InputError, for packages whose functions raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what} cannot be opened ({reason}); {advice}") from error


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run a command-line `main(argv)` and return its exit status: an `InputError` becomes one line and status 2."""
    # Read when torch is imported, which is inside main. Idle OpenMP threads sleep rather than spin: spinning beside
    # other work on two cores made ten seconds of sound take more than 200 s instead of 3.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The end of the process frees all memory; to look for garbage first took half a second.
    atexit.register(gc.freeze)
    try:
        return main(argv) or 0
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 141  # the reader of our output went away, as `| head` does
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within: what is imported stays, so the collector does not search it, now or later (0.3 s of CPU time)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
