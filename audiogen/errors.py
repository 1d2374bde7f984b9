"""The one exception for a user's mistake, and how the command line reports it. Standard library only."""

import atexit
import errno
import gc
import io
import os
import re
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

LONGEST_TEXT = 100_000  # characters of a prompt or caption; text encoders read the first 64 to 512 tokens
LONGEST_LINE = 1000  # characters of a message


class InputError(ValueError):
    """Something the user gave is wrong: a file, a key, a value, a directory.

    The message is one line: what was got, what is allowed, what to do. Everything else that is raised, except by the
    system (an OSError), is a bug of ours and keeps its traceback.
    """


def plain_text(text: str, what: str = "the text") -> str:
    """A text by the one spelling of its accented letters (Unicode's NFC); InputError for what no tokenizer reads.

    Bytes that are not UTF-8 reach Python as lone surrogates, from a command line or in a file's name, and JSON may hold
    them. what: the text's part in the message.
    """
    shown = f"{what} {text[:40]!r}{'...' * (len(text) > 40)}"
    if len(text) > LONGEST_TEXT:
        raise InputError(f"{shown} has {len(text)} characters; at most {LONGEST_TEXT} are read: shorten it")
    if odd := re.search("[\0\ud800-\udfff]", text):
        raise InputError(
            f"{shown} holds {odd[0]!r} at place {odd.start()}, which is no text; write it in UTF-8"
        )
    return unicodedata.normalize("NFC", text)


def one_line(message: object) -> str:
    """A message for a terminal: on one line, without control characters of a file's, cut off past any reading."""
    line = " ".join(str(message).split())
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in line[: 2 * LONGEST_LINE])
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


@contextmanager
def opening(what: str, advice: str) -> Iterator[None]:
    """Whatever fails inside is an InputError, for packages whose functions raise a dozen kinds."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{what} cannot be opened ({reason}); {advice}") from error


def missing(error: BaseException) -> str | None:
    """A line for an import that failed because a package is not installed; None for a module of ours, a bug."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "audiogen").startswith("audiogen"):
        return None
    advice = "activate .venv, which make demo makes, or: pip install . in the checkout"
    return f"the package {error.name} is missing; {advice}"


@contextmanager
def installed() -> Iterator[None]:
    """Within: a package that is missing ends the program with one line and status 2. For a command's first imports."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (line := missing(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)


RESEND_S = 0.02  # until an interrupt that was lost comes again
_holds: list[None] = []
_late: list[int] = []


@contextmanager
def hold_interrupts() -> Iterator[None]:
    """Within, a command's SIGINT and SIGTERM wait: an exception raised in a callback from C would be lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _holds.append(None)
    try:
        yield
    finally:
        _holds.pop()
    if _late and not _holds:
        raise KeyboardInterrupt


def run_command(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Run `main(argv)` -> its exit status: a mistake, an OSError or a missing package is one line and status 2."""
    # Read when torch is imported, which is inside main. Idle OpenMP threads sleep rather than spin: spinning beside
    # other work on two cores made ten seconds of sound take more than 200 s instead of 3.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The end of the process frees all memory; to look for garbage first took half a second.
    atexit.register(gc.freeze)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            errors="surrogateescape"
        )  # names of files that are not UTF-8 are printed as they are
    received: list[int] = []

    _late.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if _holds:
            _late.append(number)
        else:
            raise KeyboardInterrupt

    def lost(ignored: Any) -> None:
        """An interrupt in a finaliser or in a callback from C goes no further: send the signal again.

        After it, objects that it left half made complain as they go: of no use to the user.
        """
        if received and issubclass(ignored.exc_type, KeyboardInterrupt):
            again.append(threading.Timer(RESEND_S, os.kill, (os.getpid(), received[-1])))
            again[-1].daemon = True
            again[-1].start()
        elif not received:
            sys.__unraisablehook__(ignored)

    again: list[threading.Timer] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        # SIGTERM, as job systems send it, undoes what is begun, as Ctrl-C does.
        signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored in a background job
            signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = lost
    try:
        status = main(argv) or 0
        if received:
            raise KeyboardInterrupt  # it was lost
        return status
    except BaseException as error:
        # A KeyboardInterrupt within a package's C or Rust may come out of it as another exception.
        if received or isinstance(error, KeyboardInterrupt):
            for number in received:
                signal.signal(number, signal.SIG_DFL)  # another one ends what is left to clean up
            print("interrupted", file=sys.stderr)
            return 128 + (received[0] if received else signal.SIGINT)
        if isinstance(error, InputError):
            print(f"error: {one_line(error)}", file=sys.stderr)
            return 2
        if line := missing(error):
            print(f"error: {line}", file=sys.stderr)
            return 2
        if isinstance(error, BrokenPipeError):
            return 141  # the reader of our output went away, as `| head` does
        if isinstance(error, OSError) and error.strerror:  # of the system, not of a package's own kind
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "; make space and run the same command again" if full else ""
            message = f"{error.filename or 'the output'}: {error.strerror}{advice}"
            print(f"error: {one_line(message)}", file=sys.stderr)
            return 2
        raise
    finally:
        for timer in again:
            timer.cancel()
        _late.clear()  # the command is over: who goes on in this process was not interrupted
        if before:
            sys.unraisablehook = sys.__unraisablehook__
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:  # not where a signal came
                signal.signal(number, handler)


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Within: what is imported stays, so the collector does not search it, now or later (0.3 s of CPU time)."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
