"""JSONL manifests of millions of lines: an index in the user's cache, and clips that are parsed when asked for.

The index is made once for a manifest and a selection, with every check of `read_manifest`; it is mapped into memory,
so that processes share it. A manifest of another size or time gets a new one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from audiogen.data.manifest import Clip, clip_of, group_of, is_missing, order_of, require_good, require_values
from audiogen.data.rows import json_row
from audiogen.data.seeds import seed_for
from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.native.library import cache_directory

LARGE_BYTES = (
    64_000_000  # a manifest from here on is read line by line; its clips would take 5 times as much memory
)
FORMAT = 1
C = TypeVar("C")


class Clips(Sequence[Clip]):
    """The chosen lines of a manifest as clips. table: int64 [n, 2], where a line begins and its group's `order_of`."""

    def __init__(self, path: Path, table: Path, folder: str) -> None:
        self.path, self.table, self.folder = path, table, folder
        self._open()

    def _open(self) -> None:
        self._rows: NDArray[np.int64] = np.load(self.table, mmap_mode="r", allow_pickle=False)
        if self._rows.dtype != np.int64 or self._rows.ndim != 2 or self._rows.shape[1] != 2:
            raise ValueError("not an index")
        with self.path.open("rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[type[Clips], tuple[Path, Path, str]]:
        return Clips, (self.path, self.table, self.folder)  # another process maps both files itself

    @property
    def orders(self) -> NDArray[np.int64]:
        """`order_of` each clip's group, [n]."""
        return self._rows[:, 1]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        begin = int(self._rows[index, 0])
        end = self._text.find(b"\n", begin)
        line = self._text[begin : end if end >= 0 else len(self._text)]
        try:
            return clip_of(json_row(line.decode(), "audio"), self.folder)
        except (UnicodeDecodeError, InputError) as error:
            raise InputError(f"{self.path} has changed since it was opened: {error}; start again") from None


class Joined(Sequence[C], Generic[C]):
    """Some places of several sequences, one after the other, without a copy of what is in them."""

    def __init__(self, parts: Sequence[tuple[Sequence[C], NDArray[np.int64]]]) -> None:
        self.parts = [part for part in parts if len(part[1])]
        self._ends = list(accumulate(len(places) for _, places in self.parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> C: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[C]: ...
    def __getitem__(self, index: int | slice) -> C | Sequence[C]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        number = bisect_right(self._ends, index)
        sequence, places = self.parts[number]
        return sequence[int(places[index - self._ends[number]])]


def is_large(path: str | os.PathLike[str]) -> bool:
    """Whether a manifest is one for `open_lines`."""
    return Path(path).suffix.lower() == ".jsonl" and os.path.getsize(path) >= LARGE_BYTES


def open_lines(
    path: str | os.PathLike[str],
    where: Mapping[str, Sequence[Any]],
    folder: str | os.PathLike[str] | None = None,
) -> Clips:
    """The clips of a JSONL manifest whose fields have one of the allowed values, in its order.

    folder: as `read_manifest` has it. Raises InputError as that and `select` do; a manifest with a bad line has no
    index.
    """
    path = Path(path).resolve()
    folder = str(path.parent if folder is None else folder)
    state = path.stat()
    wanted = {name: sorted(str(value) for value in values) for name, values in sorted(where.items())}
    version = f"{FORMAT} {state.st_size} {state.st_mtime_ns}"
    names = [
        hashlib.sha256(part.encode()).hexdigest()[:16] for part in (f"{path} {folder}", version, repr(wanted))
    ]
    table = cache_directory() / f"manifest-{'-'.join(names)}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or damaged
        return Clips(path, table, folder)
    rows = _index(path, folder, wanted)
    with writing.replacing(table, rows.nbytes) as temporary, temporary.open("wb") as file:
        np.save(file, rows, allow_pickle=False)
    for old in table.parent.glob(f"manifest-{names[0]}-*.npy"):  # of the manifest as it was
        if not old.name.startswith(f"manifest-{names[0]}-{names[1]}-"):
            old.unlink(missing_ok=True)
    return Clips(path, table, folder)


def _index(path: Path, folder: str, where: Mapping[str, Sequence[str]]) -> NDArray[np.int64]:
    """The table of `Clips`, after a check of every line."""
    begins, orders, places, numbers, chosen = (array("q") for _ in range(5))  # 8 bytes a number
    problems: list[tuple[int, str]] = []
    numbered: dict[str, int] = {}  # the orders of groups, of which many clips may have one
    values: dict[str, set[str]] = {name: set() for name in where}
    fields: set[str] = set()
    for number, begin, line in _lines(path):
        try:
            clip = clip_of(json_row(line, "audio"), folder)
            if is_missing(clip):
                raise InputError(f"names {clip.path}, which is not a file")
        except InputError as error:
            problems.append((number, str(error)))
            continue
        fields.update(clip.fields)
        for name, seen in values.items():
            if name in clip.fields:
                seen.add(str(clip.fields[name]))
        group = group_of(clip)
        if group not in numbered:
            numbered[group] = order_of(group)
        begins.append(begin)
        orders.append(numbered[group])
        places.append(seed_for(*map(str, clip.place)))
        numbers.append(number)
        chosen.append(all(str(clip.fields.get(name)) in allowed for name, allowed in where.items()))
    problems += _repeated(np.frombuffer(places, np.int64), numbers)
    require_good(path, problems)
    for name, allowed in where.items():
        require_values(name, allowed, values[name], fields)
    if not any(chosen):
        raise InputError(
            f"where: no clip fulfils all of {dict(where)}"
            if begins
            else f"{path}: the manifest lists no clips"
        )
    table = np.stack([np.frombuffer(begins, np.int64), np.frombuffer(orders, np.int64)], 1)
    return table[np.frombuffer(chosen, np.int64) != 0]


def _lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Number, first byte and text of each line that is not blank."""
    begin = 0
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=f"index of {path.name}", disable=None
        ) as bar,
    ):
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            try:
                if text.strip():
                    yield number, begin + len(line) - len(text), text.decode()
            except UnicodeDecodeError:
                raise InputError(f"{path}: cannot be read (line {number} is not UTF-8 text)") from None
            begin += len(line)
            bar.update(len(line))


def _repeated(places: NDArray[np.int64], numbers: Sequence[int]) -> list[tuple[int, str]]:
    """Number and reproach of each line whose clip an earlier one has."""
    order = np.argsort(places, kind="stable")
    same = np.flatnonzero(places[order][1:] == places[order][:-1])
    return [
        (numbers[order[i + 1]], f"repeats the clip of line {numbers[order[i]]}; remove one of them")
        for i in same
    ]
