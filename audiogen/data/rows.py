"""Rows of CSV and JSON lines files, each with the number of its line. Without torch, for command lines."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audiogen.config import did_you_mean, short
from audiogen.errors import InputError

TABLES = {".csv": ",;\t", ".tsv": "\t"}  # what may part their columns: spreadsheets of some languages write ;
Row = dict[str, Any] | InputError  # of a broken line, what is wrong with it


def read_text(path: Path) -> str:
    """The contents of a UTF-8 file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason})") from error


def read_rows(
    path: Path, keys: Sequence[str], lenient: bool = False, others: Sequence[str] | None = None
) -> Iterator[tuple[int, Row]]:
    """The rows of a .csv or .tsv file, or of one with a JSON object a line; `keys`: a row needs one, by preference.

    lenient: rows of a table may lack their last fields, and spaces may follow commas. others: the other fields that
    there are; None is any.
    """
    text = read_text(path)
    parting = TABLES.get(path.suffix.lower())
    fields = None if others is None else (*keys, *others)
    if parting is not None:
        return _table(text, keys, lenient, parting, fields)
    return ((number, _checked(row, fields)) for number, row in _json_lines(text, keys[0]))


def _checked(row: Row, fields: Sequence[str] | None) -> Row:
    """The row, or what is wrong with it where it has other fields; None is any."""
    if fields is None or isinstance(row, InputError):
        return row
    other = next((name for name in row if name not in fields), None)
    if other is None:
        return row
    return InputError(f"has {other[:60]!r}, which is not read; {did_you_mean(other, fields)}")


def _json_lines(text: str, key: str) -> Iterator[tuple[int, Row]]:
    """Blank lines are left out."""
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: a text may hold other separators
        if line.strip():
            yield number, json_row(line, key)


def json_row(line: str, key: str) -> Row:
    """A line with a JSON object, which should have a key, or what is wrong with it."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return InputError(f"is not JSON ({error.msg} at column {error.colno})")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return InputError(f"is not JSON that can be read ({error})")
    return (
        row
        if isinstance(row, dict)
        else InputError(f"is {type(row).__name__}, expected an object with the key {key}")
    )


def _table(
    text: str, keys: Sequence[str], lenient: bool, parting: str, fields: Sequence[str] | None
) -> Iterator[tuple[int, Row]]:
    """Fields that are not empty, by the names of the first line in lower case; a column without a name has none.

    parting: characters that may part columns; it is the first of them by which a column has one of the names in `keys`.
    """
    first = text.lstrip("\r\n").partition("\n")[0].lower()
    fits = (mark for mark in parting if {name.strip(' "\r') for name in first.split(mark)} & set(keys))
    mark = next(fits, parting[0])
    reader = csv.DictReader(
        io.StringIO(text, newline=""), strict=True, skipinitialspace=lenient, delimiter=mark
    )
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or []]
        if not set(columns) & set(keys):
            yield 1, InputError(f"columns {', '.join(columns) or 'none'}; expected one of {', '.join(keys)}")
            return
        # also a column without any field: a misspelt one may be empty so far
        other = _checked({name: "" for name in columns if name}, fields)
        if isinstance(other, InputError):
            yield reader.line_num, other
            return
        reader.fieldnames = columns
        for row in reader:
            if None in row or (None in row.values() and not lenient):
                between = {",": "commas", ";": "semicolons"}.get(mark, "tabs")
                message = f"has not {len(columns)} columns; quote texts that hold {between}"
                yield reader.line_num, InputError(message)
            else:
                yield reader.line_num, _checked({key: value for key, value in row.items() if value}, fields)
    except csv.Error as error:
        line = reader.reader.line_num  # the DictReader's own is that of the row before
        yield line, InputError(f"is not CSV ({error})")


def seconds(row: Mapping[str, Any], key: str, zero: bool = False) -> float | None:
    """The time under a key of a row, None where it has none. zero: whether it may be 0."""
    value = row.get(key)
    if value is None:
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not 0 <= found < math.inf or not (found or zero):
        raise InputError(
            f"has {key} {short(value)}, expected a {'' if zero else 'positive '}number of seconds"
        )
    return found
