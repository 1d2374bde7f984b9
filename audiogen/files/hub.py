"""Models of the Hugging Face hub: from `org/name` or `org/name@revision` to a directory of this machine.

    directory = hub.fetch(name_or_directory, layouts)  # all of a model whose layout its file names decide
    directory = hub.Repository(name).fetch(["*.safetensors"])  # or in steps, for one request to the hub all the same

Files lie in the cache that all programs share (HF_HOME, HF_HUB_CACHE). A model whose files are all in it costs one
request, for the commit that its revision names now. With HF_HUB_OFFLINE, or where the hub does not answer within
`TIMEOUT_S`, the files in the cache are used.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import urljoin

import huggingface_hub  # its functions come when they are first named, and most models are not from the hub
from huggingface_hub import constants

from audiogen.errors import InputError
from audiogen.files import writing

PICKLES = (
    ".bin",
    ".pt",
    ".pth",
    ".th",
    ".ckpt",
    ".pkl",
    ".pickle",
)  # suffixes of files that torch.save wrote
CARD = "README.md"
TIMEOUT_S = 5.0  # for the hub's answer; after it, the cache is used
_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>\w[\w.-]*(?:/\w[\w.-]*)*))?", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
# By cache and hub id: the commit whose files this process has, though another process may have moved the revision on.
_commits: dict[tuple[str, str], str] = {}
_kept: dict[tuple[str, str], str] = {}  # those of them that `keep` gave: the hub is asked for these


class Layout(NamedTuple):
    """A set of files in which a model may be published; all are glob patterns.

    name: of the package that wrote them. required: the files that make it this layout, at least one of each pattern.
    patterns: what is downloaded. kind: what such a model holds, where that is not clear from who asks.
    """

    name: str
    required: tuple[str, ...]
    patterns: tuple[str, ...]
    kind: str = ""

    def fits(self, files: Sequence[str]) -> bool:
        return all(any(fnmatch(file, pattern) for file in files) for pattern in self.required)


def is_hub_id(name: str) -> bool:
    """Whether `name` can only be a repository of the hub: `org/name` or `org/name@revision`, and no path here."""
    return _ID.fullmatch(name) is not None and not Path(name).exists()


def pinned(value: Any) -> Any:
    """Plain settings in which each hub id of a model that the cache has names the commit that it has of it.

    So a trained model records what it was trained with, and opens the same files later.
    """
    if isinstance(value, Mapping):
        return {key: pinned(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pinned(item) for item in value]
    if not isinstance(value, str) or not is_hub_id(value):
        return value
    name, _, revision = value.partition("@")
    commit = commits().get(value) or _cached(name, revision or constants.DEFAULT_REVISION)
    return f"{name}@{commit}" if commit else value


def commits() -> dict[str, str]:
    """The commit of each hub id, as it was given, that this process has opened, or is to open (`keep`)."""
    return {name: commit for (cache, name), commit in _commits.items() if cache == constants.HF_HUB_CACHE}


def keep(path: Path) -> None:
    """Open the hub ids under "hub" of a JSON file, as `commits` gave them, at these commits from now on.

    InputError, which names the file, for what `commits` does not give.
    """
    contents = writing.read_json(path)
    recorded = contents.get("hub", {}) if isinstance(contents, dict) else None
    for name, commit in (recorded if isinstance(recorded, dict) else {"hub": recorded}).items():
        if not _ID.fullmatch(name) or not isinstance(commit, str) or not _COMMIT.fullmatch(commit):
            raise InputError(f"{path}: {name!r}: {commit!r} is no hub id with its commit; remove it")
        _commits[constants.HF_HUB_CACHE, name] = _kept[constants.HF_HUB_CACHE, name] = commit


def _cached(name: str, revision: str) -> str | None:
    """The commit that the cache has of a revision."""
    reference = _folder(name) / "refs" / revision
    if (
        _COMMIT.fullmatch(revision) or not reference.is_file()
    ):  # a commit is itself, whatever a hub said of it
        return revision if _COMMIT.fullmatch(revision) else None
    return reference.read_text().strip()


def _folder(name: str) -> Path:
    """Where the cache has what a revision names, and the files of a commit, by its documented layout."""
    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


def fetch(name_or_directory: str, layouts: Sequence[Layout]) -> Path:
    """The directory with the files of a hub id, downloaded as far as they are not in the cache; a directory as it is.

    layouts: in order of preference; the first one whose required files the repository has decides what is downloaded.
    """
    if Path(name_or_directory).is_dir():
        return Path(name_or_directory)
    repository = Repository(name_or_directory)
    layout = next((layout for layout in layouts if layout.fits(repository.files)), None)
    if layout is None:
        raise repository.lacks(layouts)
    return repository.fetch(layout.patterns, layout.required)


class Repository:
    """A model of the hub: the names of its files, and its files as they are asked for.

    The revision is a branch, tag or commit, "main" where none is given. Whatever fails is an `InputError`: no such
    repository or revision, no access, no network and nothing in the cache, a download that breaks off.

    files: of the revision's newest commit; where the hub does not answer, those of it that the cache has.
    """

    def __init__(self, name: str) -> None:
        match = _ID.fullmatch(name)
        if match is None:
            raise InputError(f"{name!r} is not a hub id; give org/name or org/name@revision, or a directory")
        self.name, self._id = name, match["name"]
        kept = _kept.get((constants.HF_HUB_CACHE, name))
        self._revision = kept or match["revision"] or constants.DEFAULT_REVISION
        folder = _folder(self._id)
        self._cached = commits().get(name) or _cached(self._id, self._revision) or self._revision
        self._reason: str | None = None  # why the hub gave nothing
        answer = None if constants.is_offline_mode() else _ask(self._id, self._revision)
        if answer is not None and not isinstance(answer, Exception):
            self._snapshot = folder / "snapshots" / str(answer.sha)
            self.files = [file.rfilename for file in answer.siblings or ()]
            return
        self._reason = _reason(answer, self._revision)
        self._snapshot = snapshot = folder / "snapshots" / self._cached
        self.files = [f.relative_to(snapshot).as_posix() for f in snapshot.rglob("*") if f.is_file()]
        if not self.files:
            _ask.cache_clear()  # another try may find the network back
            raise InputError(f"{name} cannot be fetched: {self._reason}")

    def fetch(self, patterns: Sequence[str], last: Sequence[str] = ()) -> Path:
        """The directory with all files of these glob patterns, those that the cache lacks downloaded and verified.

        last: patterns of the files without which it is no model, so that one that broke off is not taken for whole.
        """

        def late(file: str) -> bool:
            return any(fnmatch(file, pattern) for pattern in last)

        wanted = [file for file in self.files if any(fnmatch(file, pattern) for pattern in patterns)]
        for file in sorted(wanted, key=late):
            if not (self._snapshot / file).exists():
                try:
                    with _guarded():
                        huggingface_hub.hf_hub_download(self._id, file, revision=self._snapshot.name)
                    _verify(self._snapshot / file)
                except Exception as error:  # of whichever client this huggingface_hub is built on
                    reason = _reason(error, self._revision, f"{file} cannot be downloaded")
                    raise InputError(f"{self.name} cannot be fetched: {reason}") from None
        if (commit := self._snapshot.name) not in (self._cached, self._revision):
            writing.write_bytes_atomic(_folder(self._id) / "refs" / self._revision, commit.encode())
        if _COMMIT.fullmatch(commit):
            _commits[constants.HF_HUB_CACHE, self.name] = commit
        return self._snapshot

    def has(self, patterns: Sequence[str]) -> bool:
        """Whether the cache has all files of these glob patterns."""
        wanted = [file for file in self.files if any(fnmatch(file, pattern) for pattern in patterns)]
        return all((self._snapshot / file).exists() for file in wanted)

    def lacks(self, layouts: Sequence[Layout]) -> InputError:
        """The error for a repository that has none of these layouts."""
        some = ", ".join(sorted(self.files)[:6]) + (", ..." if len(self.files) > 6 else "")
        if self._reason is not None:
            return InputError(
                f"{self.name} cannot be fetched: {self._reason}; the cache holds only {some} of it"
            )
        wanted = "; or ".join(f"{' and '.join(layout.required)} ({layout.name})" for layout in layouts)
        return InputError(f"{self.name} holds {some or 'no files'}; what can be read needs {wanted}")


def push(repo: str, directory: Path, private: bool = False, token: str | None = None) -> str:
    """Upload a directory as one commit -> its address. A card that the repository has stays as it is.

    repo: org/name, made where it is missing. private: of a new one. InputError for what the hub refuses.
    """
    match = _ID.fullmatch(repo)
    if match is None or match["revision"]:
        raise InputError(f"{repo!r} is not a repository of the hub; give org/name")
    if constants.is_offline_mode():
        raise InputError(f"{repo} cannot be written: HF_HUB_OFFLINE is set; unset it to upload")
    api = huggingface_hub.HfApi(token=token)
    try:
        with _guarded():
            api.create_repo(repo, private=private, exist_ok=True)
            keep_theirs = [CARD] if api.file_exists(repo, CARD) else None
            commit = api.upload_folder(
                repo_id=repo, folder_path=directory, commit_message="audiogen", ignore_patterns=keep_theirs
            )
    except Exception as error:  # of whichever client this huggingface_hub is built on
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        status = getattr(getattr(error, "response", None), "status_code", 0)
        advice = "log in with a token that may write (hf auth login)" if status in (401, 403) else "try again"
        raise InputError(f"{repo} cannot be written: {first}; {advice}") from None
    return str(commit.commit_url)


@functools.cache
def _ask(repository: str, revision: str) -> huggingface_hub.ModelInfo | Exception:
    """What the hub says of a revision, asked for once in a process; an exception where it says nothing.

    The client's own limit is one for each address that it tries, so that a thread waits for it.
    """
    found: list[huggingface_hub.ModelInfo | Exception] = []
    api = huggingface_hub.HfApi()  # imports the whole client, seconds on a slow disk that are not the hub's

    def ask() -> None:
        try:
            # not list_repo_files, which tries six times, over half a minute, before the cache's turn comes
            with _guarded():
                answer = api.model_info(
                    repository, revision=revision, timeout=2 * TIMEOUT_S
                )  # join's comes first
            names = [file.rfilename for file in answer.siblings or ()]
            if not _COMMIT.fullmatch(answer.sha or "") or not all(map(_stays_below, names)):
                raise ValueError("a model without a commit, or with files outside it")
            found.append(answer)
        except Exception as error:  # of whichever client this huggingface_hub is built on
            found.append(error)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return found[0] if found else TimeoutError(f"no answer within {TIMEOUT_S:g} s")


def _stays_below(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts


def _verify(path: Path) -> None:
    """Compare a download with the checksum by which the cache names it; OSError where they differ or there is none.

    It is the SHA-256 of a large file and git's SHA-1 of a small one. Caches without links have no such name.
    """
    if not path.exists():
        raise OSError("what arrived is of another commit")
    name = path.readlink().name if path.is_symlink() else ""
    blob = path.parent / path.readlink() if name else path
    if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name):
        size = blob.stat().st_size
        digest = hashlib.sha256() if len(name) == 64 else hashlib.sha1(b"blob %d\0" % size)
        with open(blob, "rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        if digest.hexdigest() != name:
            path.unlink()
            blob.unlink()
            raise OSError("what arrived has another checksum than the hub gives for it")


def _reason(error: Exception | None, revision: str, what: str = "") -> str:
    """Why the hub gave nothing, and what to do, in one line; the special cases of an error come before it.

    None stands for HF_HUB_OFFLINE. what: failed, where the hub had answered before.
    """
    absent = "it is no directory here and not in the cache, and"
    if error is None:
        return f"{absent} HF_HUB_OFFLINE is set; unset it to download"
    from huggingface_hub import errors  # late: it imports the whole client

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's own line says only that something happened
    if isinstance(error, errors.GatedRepoError):
        return "its owner wants an agreement first; accept it on the model's page and log in (hf auth login)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "it is no directory here, and no model of the hub that you have access to; check the name"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}; give a branch, tag or commit after the @"
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    if isinstance(error, errors.HFValidationError):
        return f"{first}; check the name"
    advice = "try again, or download it elsewhere"
    what = what or f"{absent} the hub cannot be reached"
    if isinstance(error, errors.HfHubHTTPError):
        log_in, status = "log in (hf auth login)", getattr(error.response, "status_code", 0)
        advice = {401: log_in, 403: log_in, 429: f"wait some minutes, or {log_in}"}.get(status, advice)
        what = what.replace("cannot be reached", "answers")
    elif isinstance(error, (ValueError, TypeError, KeyError, AttributeError)):  # of whoever reads the answer
        advice = "this is no answer of a hub: check HF_ENDPOINT, or whether the network wants a log-in first"
        what = what.replace("cannot be reached", "cannot be read")
    return f"{what}: {first}; {advice}"


@contextmanager
def _guarded() -> Iterator[None]:
    """huggingface_hub without lines at each attempt, with `_guard` on its answers; download bars stay."""
    from huggingface_hub.utils import get_session  # late: it imports the whole client

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    hooks = getattr(get_session(), "event_hooks", {"response": []})  # of its versions before 1.0: without
    hooks["response"].append(_guard)
    try:
        yield
    finally:
        hooks["response"].remove(_guard)
        logger.setLevel(level)


def _guard(response: Any) -> None:
    """See to it that an answer of the hub neither holds a command up for hours nor leaves https.

    Where the hub names a pause the client waits as long, without a word; else for half a minute over five attempts.
    """
    for name in ("retry-after", "ratelimit"):
        response.headers.pop(name, None)
    target = urljoin(str(response.url), response.headers.get("location", ""))
    if response.url.scheme == "https" and not target.startswith("https:"):
        raise OSError(f"it leads away from https, to {target}")
