"""Models of the Hugging Face hub: from `org/name` or `org/name@revision` to a directory of this machine.

Files lie in the cache that all programs share (HF_HOME, HF_HUB_CACHE). With HF_HUB_OFFLINE, or while the hub cannot
be reached, what the cache holds is used.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import huggingface_hub  # its functions come when they are first named, and most models are not from the hub
from huggingface_hub import constants

from audiogen.errors import InputError

TIMEOUT_S = 10.0  # for the hub's first answer; after it, the cache is used
_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII)


class Layout(NamedTuple):
    """A set of files in which a model may be published.

    required: the files that make it this layout; glob patterns, each with at least one file.
    patterns: the files to download, glob patterns as well.
    """

    name: str
    required: tuple[str, ...]
    patterns: tuple[str, ...]

    def fits(self, files: Sequence[str]) -> bool:
        return all(any(fnmatch(file, pattern) for file in files) for pattern in self.required)


def is_hub_id(name: str) -> bool:
    """Whether `name` can only be a repository of the hub: `org/name` or `org/name@revision`, and no path here."""
    return _ID.fullmatch(name) is not None and not Path(name).exists()


def fetch(name: str, layouts: Sequence[Layout]) -> Path:
    """The directory with the files of a hub id, downloaded as far as they are not in the cache.

    layouts: in order of preference; the first one whose required files the repository has decides what is downloaded.
    The revision is a branch, tag or commit, "main" where none is given. Whatever fails is an `InputError`: no such
    repository or revision, no access, no network and nothing in the cache, files of no layout.
    """
    match = _ID.fullmatch(name)
    if match is None:
        raise InputError(f"{name!r} is not a hub id; give org/name or org/name@revision, or a directory")
    repository, revision = match["name"], match["revision"] or constants.DEFAULT_REVISION
    try:
        with _quiet():
            # not list_repo_files, which tries six times, over half a minute, before the cache's turn comes
            found = huggingface_hub.HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_S)
            files = [file.rfilename for file in found.siblings or ()]
            layout = next((layout for layout in layouts if layout.fits(files)), None)
            if layout is not None:
                return Path(
                    huggingface_hub.snapshot_download(
                        repository, revision=revision, allow_patterns=list(layout.patterns)
                    )
                )
    except Exception as error:  # with network errors of whichever client this huggingface_hub is built on
        cached = _cached(repository, revision)
        files = [] if cached is None else _files(cached)
        if cached is not None and any(layout.fits(files) for layout in layouts):
            return cached
        held = f"; the cache holds only {_some(files)} of it" if files else ""
        raise InputError(f"{name} cannot be fetched: {_reason(error, revision)}{held}") from None
    wanted = "; or ".join(f"{' and '.join(layout.required)} ({layout.name})" for layout in layouts)
    raise InputError(f"{name} holds {_some(files)}; what can be read needs {wanted}")


def _some(files: Sequence[str]) -> str:
    return (", ".join(sorted(files)[:6]) or "no files") + (", ..." if len(files) > 6 else "")


def _cached(repository: str, revision: str) -> Path | None:
    """The snapshot of an earlier download, as the cache's documented folders have it."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def _files(folder: Path) -> list[str]:
    """Names below `folder`; a link whose file is gone is none."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _reason(error: Exception, revision: str) -> str:
    """Why the hub gave nothing, and what to do, in one line; the special cases of an error come before it."""
    from huggingface_hub import errors  # late: it imports the whole client

    if isinstance(error, errors.GatedRepoError):
        return "its owner wants an agreement first; accept it on the model's page and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it is no directory here, and no model of the hub that you have access to; check the name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a branch, tag or commit after the @"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "it is no directory here and not in the cache, and HF_HUB_OFFLINE is set; unset it to download"
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, errors.HFValidationError):
        return f"{first}; check the name"
    what = "the hub answers" if isinstance(error, errors.HfHubHTTPError) else "the hub cannot be reached"
    return f"it is no directory here and not in the cache, and {what}: {first}; try again, or download it elsewhere"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that huggingface_hub prints at each attempt; download bars stay."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
