"""Lists of prompts for generation: text files, CSV and JSON lines. Standard library only, for the command line."""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiogen.errors import InputError

TEXT_KEYS = ("text", "prompt", "caption")
SUFFIXES = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True)
class Prompt:
    """A sound to generate; duration_s and seed None leave them to the command. text None is no text."""

    text: str | None
    duration_s: float | None = None
    seed: int | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: .txt has one a line; .csv has a header and .jsonl an object a line.

    The text is under text, prompt or caption; duration (s) and seed are optional, other fields are ignored, blank lines
    too. Raises InputError that names the line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: prompts are read from {', '.join(SUFFIXES)} files")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason})") from error
    read = {".txt": _lines, ".csv": _csv_rows, ".jsonl": _json_lines}[path.suffix.lower()]
    prompts = [_prompt(fields, f"{path}:{number}") for number, fields in read(content, path)]
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return prompts


def _lines(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield number, {"text": line}


def _csv_rows(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(io.StringIO(content, newline=""), strict=True, skipinitialspace=True)
    if not set(TEXT_KEYS) & {name.strip() for name in rows.fieldnames or ()}:
        raise InputError(f"{path}: the first line must name the columns, one of them {', '.join(TEXT_KEYS)}")
    try:
        for row in rows:
            if None in row:
                raise InputError(
                    f"{path}:{rows.line_num}: more fields than columns; quote texts that hold a comma"
                )
            yield rows.line_num, {name.strip(): value for name, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: broken CSV ({error})") from error


def _json_lines(content: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{number}: broken JSON ({error.msg})") from error
        if not isinstance(fields, dict):
            raise InputError(f'{path}:{number}: not an object; write a line as {{"text": "a dog barks"}}')
        yield number, fields


def _prompt(fields: dict[str, Any], where: str) -> Prompt:
    text = next((fields[key] for key in TEXT_KEYS if key in fields), None)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{where}: no text; it goes under {', '.join(TEXT_KEYS)}")
    try:
        duration_s = None if fields.get("duration") is None else float(fields["duration"])
        seed = None if fields.get("seed") is None else int(str(fields["seed"]))
    except (TypeError, ValueError):
        raise InputError(f"{where}: duration must be a number of seconds and seed an integer") from None
    if duration_s is not None and not (duration_s > 0 and math.isfinite(duration_s)):
        raise InputError(f"{where}: duration is {duration_s:g} s; it must be above 0")
    return Prompt(text.strip(), duration_s, seed)
