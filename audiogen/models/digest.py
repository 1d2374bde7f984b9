"""A hash of a model's files, for the metadata of the sounds that it makes: the same files, the same hash, anywhere."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from audiogen.files import writing
from audiogen.files.hub import PICKLES
from audiogen.models.find import CODEC, CONFIG, LM, OWN, Found, find
from audiogen.native.library import cache_directory
from audiogen.provenance import file_sha256

LARGE_BYTES = 4_000_000  # of files from here on the hash is kept in the user's cache: 1 GB takes seconds
LEFT_OUT = ("sounds.json", "run.json", "recipe.yaml")  # what changes no sound
WEIGHTS = (".safetensors", *PICKLES)
SETTINGS = (".json", ".yaml", ".model", ".txt")
FOLDERS = ("checkpoints", "latents", "codes", "samples", "best")  # of a training run


def digest(found: Found) -> str:
    """SHA-256, in hex, of the names and contents of a model's weights and settings, and of the codec that it names.

    A pretrained text encoder that is named by its hub id is not in it.
    """
    whole = digest_of(found.path)
    if found.kind == LM and found.layout == OWN:
        location = writing.read_json(found.path / CONFIG)["config"]["codec"]["location"]
        if location != "codec":  # which lies inside, and is among the files
            whole = hashlib.sha256(f"{whole} {digest(find(location, CODEC))}".encode()).hexdigest()
    return whole


def digest_of(path: Path) -> str:
    """SHA-256, in hex, of a file, or of the names and contents of a directory's weights and settings."""
    if path.is_file():
        return _kept(path)
    lines = "".join(f"{name} {_kept(file)}\n" for name, file in _files(path))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _files(path: Path) -> list[tuple[str, Path]]:
    """Weights and settings, by their names in the directory."""
    files = [file for pattern in ("*", "*/*") for file in path.glob(pattern) if file.is_file()]
    named = sorted((file.relative_to(path).as_posix(), file) for file in files)
    return [
        (name, file)
        for name, file in named
        if file.suffix in (*WEIGHTS, *SETTINGS)
        and file.name not in LEFT_OUT
        and name.partition("/")[0] not in FOLDERS
        and not file.name.startswith(".")
    ]


def _kept(path: Path) -> str:
    """A file's SHA-256; a large one's from the cache, where its path, size and time are those of before."""
    state = path.stat()
    if state.st_size < LARGE_BYTES:
        return file_sha256(path)
    key = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ino}"
    place = cache_directory() / "digests" / hashlib.sha256(key.encode(errors="surrogateescape")).hexdigest()
    with suppress(OSError):
        if len(text := place.read_text()) == 64:
            return text
    found = file_sha256(path)
    with suppress(writing.StorageError):
        writing.write_bytes_atomic(place, found.encode())
    return found
