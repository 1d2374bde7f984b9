"""Files and folders that appear whole or not at all, and JSON in them."""

import errno
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from audiogen.errors import InputError

TEMPORARY = ".writing-"  # prefix of names that a finished write never has
# What to do about a fault of the file system, by its number.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = {
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.EMFILE: "raise the limit (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: "the disk or its connection is faulty",
}


class StorageError(InputError):
    """The file system refused to write: no space, no permission, a fault of the disk."""


@contextmanager
def storing(path: str | Path, size: int = 0) -> Iterator[None]:
    """Whatever the file system refuses within is a `StorageError`: one line that names `path`.

    size: bytes that are needed; a full disk's line has it beside what is free.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, reason = _fault(error)
        if number is None and isinstance(error, SafetensorError):
            raise
        advice = ADVICE.get(number or 0, "choose another place")
        if number in NO_SPACE:
            needed = f", {size / 1e6:.3g} MB or more are needed" if size else ""
            advice = f"{_free(Path(path)) / 1e6:.3g} MB are free{needed}; make space and run the same command again"
        raise StorageError(f"{path} cannot be written: {reason}; {advice}") from error


def _fault(error: OSError | SafetensorError) -> tuple[int | None, str]:
    """Its number, if it has one, and its reason; the text of a SafetensorError may hold (os error 28)."""
    if isinstance(error, OSError):
        return error.errno, (error.strerror or str(error)).splitlines()[0]
    found = re.search(r"os error (\d+)", str(error))
    return (None, str(error)) if found is None else (int(found[1]), os.strerror(int(found[1])))


def _free(path: Path) -> int:
    """Bytes that are free where `path` is to be."""
    while not path.exists() and path != path.parent:
        path = path.parent
    with suppress(OSError):
        return shutil.disk_usage(path).free
    return 0


@contextmanager
def replacing(path: str | Path, size: int = 0, overwrite: bool = True) -> Iterator[Path]:
    """A name beside `path` for a new file, which takes the place of `path` at the end, at once and for good.

    Folders that are missing are made. After an error the old file stays, and nothing of the new one does; faults of
    the file system are a `StorageError`. size: of the new file in bytes, if that is clear. Without `overwrite` a file
    that is there at the end, whoever wrote it, is an InputError.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with storing(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _fsync(temporary)
            if overwrite:
                publish(temporary, path)
            else:
                _publish_new(temporary, path)
        finally:
            with suppress(OSError):  # a fault comes rarely alone, and the first one is the one to report
                temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that readers, and we after a crash, see all of it or what was there before."""
    with replacing(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented."""
    write_bytes_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """A JSON file; a missing or damaged one is an `InputError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a huge number
        raise InputError(f"{path} cannot be read: {error}; copy it or train again") from None


def clean(folder: str | Path) -> None:
    """Remove what interrupted writes, ours and those of safetensors, left in a folder and the folders in it."""
    for path in [path for name in (f"{TEMPORARY}*", ".tmp??????") for path in Path(folder).rglob(name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where to write what `publish` then puts in the place of `path`."""
    # Not the name itself, which may be as long as the file system allows; of two that write one file, the last wins.
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its name, at once and for good."""
    os.replace(temporary, path)
    _fsync(path.parent)


def _publish_new(temporary: Path, path: Path) -> None:
    """As `publish`, for a file that replaces none: of two processes at once, one gets the name."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: the name is claimed by an empty file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
            os.replace(temporary, path)
    except FileExistsError:
        raise InputError(f"{path} was written by another process; choose another --out") from None
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    windows = sys.platform == "win32"  # folders cannot be opened there, and files only to write
    if windows and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
