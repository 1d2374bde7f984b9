"""One writer at a time in a folder; readers ask for no lock."""

import contextlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audiogen.errors import InputError
from audiogen.files.writing import storing

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = ".lock"
_held: set[tuple[int, int]] = (
    set()
)  # (device, inode) of this process's locks, which the system lets it take twice


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Within, no other process or thread writes in `folder`, which is made; InputError names the one that does.

    The system frees the lock of a process that ends, however it ends. POSIX record locks belong to the process
    alone; those of flock (and so of the filelock package) stay for seconds with the forked workers of a training that
    was killed. Where the file system has no locks, a warning says so.
    """
    path = Path(folder) / LOCK
    made = [each for each in path.parents if not each.exists()]  # innermost first
    with storing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path)
    key = _key(os.fstat(descriptor))
    _held.add(key)
    try:
        with storing(path):
            _sign(descriptor)
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file: the lock's file stays, free
            path.unlink()
            for each in made:
                each.rmdir()  # where nothing came into it
        _held.discard(key)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """-> the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        key = _key(os.fstat(descriptor))
        if key in _held:
            # not closed: closing any descriptor of the file would free this process's lock
            raise _taken(path, "this process")
        try:
            _lock(descriptor)
        except (
            BlockingIOError,
            PermissionError,
        ):  # EAGAIN or EACCES, as the system likes: POSIX leaves it open
            holder = os.read(descriptor, 4096).decode(errors="replace").strip()
            os.close(descriptor)
            raise _taken(path, holder or "another process") from None
        except OSError as error:
            print(
                f"warning: {path}: no locks here ({error.strerror}); run one command at a time",
                file=sys.stderr,
            )
        try:
            if _key(os.stat(path)) == key:
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)  # the one before us removed it between our opening and locking: try again


def _sign(descriptor: int) -> None:
    """Write a line about this process, for those that find the file locked."""
    command = " ".join(shlex.join(["python", *sys.orig_argv[1:]]).split())[:300]
    began = time.strftime("%Y-%m-%d %H:%M")
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {platform.node()}, {command}, since {began}\n".encode())


def _key(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _taken(path: Path, holder: str) -> InputError:
    return InputError(
        f"{path.parent} is being written by {holder}; wait for its end, or choose another folder"
    )


def _lock(descriptor: int) -> None:
    """Lock without waiting; OSError where another process has the lock."""
    if sys.platform == "win32":
        os.lseek(
            descriptor, 1 << 30, os.SEEK_SET
        )  # behind the text: others cannot read a byte that is locked
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
