"""Files at URLs (https://, s3://, gs://, hf:// and whatever fsspec opens), as copies in the user's cache.

A copy is made when a file is first opened, and again when the size, time or tag that its server names have changed
since. Each process asks the server once for a file.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.native.library import cache_directory

URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
FACTS = ("size", "ETag", "etag", "LastModified", "mtime", "md5Hash", "sha256", "blob_id", "last_modified")
T = TypeVar("T")


def is_remote(path: object) -> bool:
    """Whether a path is a URL."""
    return URL.match(str(path)) is not None


def joined(folder: str, name: str) -> str:
    """A file's URL by its name below another URL, or by a URL of its own."""
    return name if is_remote(name) else posixpath.join(folder, name)


@lru_cache(maxsize=100_000)
def fetch(url: str) -> Path:
    """The copy of the file at a URL. InputError where it cannot be had, or the protocol's package is missing."""
    system, path = _system(url)
    facts = _asked(url, lambda: system.info(path))
    if facts.get("type") == "directory":
        raise InputError(f"{url} is a folder; name a manifest (.jsonl, .csv), or a folder of token shards")
    found = repr([(name, str(facts[name])) for name in FACTS if name in facts])
    folder = hashlib.sha256(posixpath.dirname(url).encode()).hexdigest()[:16]
    name = posixpath.basename(path.partition("?")[0])
    copy = cache_directory() / "remote" / folder / (name if name.strip(".") else "file")
    origin = copy.with_name(f"{copy.name}.origin")
    if copy.is_file() and origin.is_file() and origin.read_text(encoding="utf-8") == found:
        return copy
    size = facts.get("size")
    with writing.replacing(copy, size or 0) as temporary:
        _asked(url, lambda: system.get_file(path, str(temporary)))
        if size is not None and temporary.stat().st_size != size:
            raise InputError(
                f"{url}: {temporary.stat().st_size} of {size} bytes came; run the same command again"
            )
    writing.write_bytes_atomic(origin, found.encode())
    return copy


def exists(url: str) -> bool:
    """Whether a file is at a URL. InputError where that cannot be asked."""
    system, path = _system(url)
    return bool(_asked(url, lambda: system.exists(path)))


def _system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path within it."""
    import fsspec

    scheme = url.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # a package is not installed, or there is no such protocol
        reason = " ".join(str(error).split())
        raise InputError(
            f"{url}: {scheme}:// cannot be opened ({reason}); pip install '.[remote]' in the checkout"
        ) from None
    return system, path


def _asked(url: str, ask: Callable[[], T]) -> T:
    """What a server answers; each kind of file system raises errors of its own."""
    try:
        return ask()
    except FileNotFoundError:
        raise InputError(f"{url}: no such file") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(
            f"{url} cannot be fetched ({reason}); check the address, the network and your keys"
        ) from error
