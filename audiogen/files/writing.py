"""Files and folders that appear whole or not at all, and JSON in them."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from audiogen.errors import InputError

TEMPORARY = ".writing-"  # prefix of names that a finished write never has


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside `path` for a new file, which takes the place of `path` at the end, at once and for good.

    Folders that are missing are made. After an error the old file stays, and nothing of the new one does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        _fsync(temporary)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that readers, and we after a crash, see all of it or what was there before."""
    with replacing(path) as temporary:
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
    """Remove what interrupted writes left in a folder and the folders in it."""
    for path in list(Path(folder).rglob(f"{TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where to write what `publish` then puts in the place of `path`."""
    # A hash, not the name, which may be as long as the file system allows.
    name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{name}")


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file or directory its name, at once and for good."""
    os.replace(temporary, path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
