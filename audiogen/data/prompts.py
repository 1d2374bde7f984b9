"""Lists of prompts for generation: text files, tables and JSON lines. Without torch, for the command line."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiogen.config import short
from audiogen.data.rows import Row, read_rows, read_text, seconds
from audiogen.errors import InputError, plain_text

TEXT_KEYS = ("text", "prompt", "caption")
OTHER_KEYS = ("duration", "seed", "guidance", "negative", "model", "name")
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
SWITCHES = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
Kind = type | tuple[str, ...]  # of a setting: a number, words, a switch (bool), or one of some words
LONGEST_NAME = 200  # bytes; file systems allow 255 with what is added


@dataclass(frozen=True)
class Prompt:
    """A sound to generate; what is None is left to the command, but for the text: None is no text.

    negative, guidance, model: as the command's options. name: of its file, without a suffix. settings: other options
    of the command, by name.
    """

    text: str | None
    duration_s: float | None = None
    seed: int | None = None
    guidance: float | None = None
    negative: str | None = None
    model: str | None = None
    name: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(
    path: Path, options: Mapping[str, Kind] | None = None, check: Callable[[dict[str, Any]], object] = dict
) -> list[Prompt]:
    """Prompts of a file: .txt has one a line; .csv and .tsv have a header and .jsonl an object a line.

    The text is under text, prompt or caption; duration (s) and the other fields of `Prompt` are optional, blank lines
    are ignored. Raises InputError that names the line, also for a field of another name.

    options: other fields that a row may have, with the kind of each; they become `settings`, which `check` may refuse.
    """
    suffix, options = path.suffix.lower(), options or {}
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: prompts are read from {', '.join(SUFFIXES)} files")
    rows: Iterator[tuple[int, Row]]
    if suffix == ".txt":
        lines = enumerate(read_text(path).splitlines(), 1)
        rows = ((number, {"text": line}) for number, line in lines if line.strip())
    else:
        rows = read_rows(path, TEXT_KEYS, lenient=True, others=(*OTHER_KEYS, *options))
    prompts = []
    for number, row in rows:
        try:
            prompts.append(prompt := _prompt(row, options))
            check(dict(prompt.settings))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return prompts


def _prompt(row: Row, options: Mapping[str, Kind]) -> Prompt:
    if isinstance(row, InputError):
        raise row
    text = next((row[key] for key in TEXT_KEYS if key in row), None)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"no text; it goes under {', '.join(TEXT_KEYS)}")
    try:
        seed = None if row.get("seed") is None else int(str(row["seed"]))
    except ValueError:
        raise InputError(f"has seed {short(row['seed'])}, expected a whole number") from None
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"has seed {seed}; it must be from 0 to {2**63 - 1}")
    words = {key: _words(row, key) for key in ("negative", "model", "name")}
    if words["name"] is not None:
        words["name"] = _file_name(words["name"])
    settings = {
        key: _setting(key, row[key], kind) for key, kind in options.items() if row.get(key) is not None
    }
    duration_s = seconds(row, "duration")
    return Prompt(plain_text(text.strip()), duration_s, seed, _guidance(row), **words, settings=settings)


def _setting(key: str, value: object, kind: Kind) -> Any:
    """A field as an option of this kind."""
    text = str(value).strip()
    try:
        if kind is bool:
            return SWITCHES[text.lower()]
        if not isinstance(kind, tuple):
            return kind(text)
        if text in kind:
            return text
    except (KeyError, ValueError):
        pass
    names = {bool: "yes or no", int: "a whole number", float: "a number"}
    expected = " or ".join(kind) if isinstance(kind, tuple) else names.get(kind, "words")
    raise InputError(f"has {key} {short(value)}, expected {expected}")


def _words(row: dict[str, object], key: str) -> str | None:
    """The text under a key, None where there is none."""
    value = row.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise InputError(f"has {key} {short(value)}, expected words")
    return None if value is None else plain_text(value.strip(), f"the {key}")


def _guidance(row: dict[str, object]) -> float | None:
    value = row.get("guidance")
    if value is None:
        return None
    try:
        found = float(str(value))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"has guidance {short(value)}, expected a number, 1 for none")
    return found


def _file_name(name: str) -> str:
    """A name that is one file's on every system, in the folder of the command."""
    if re.search(r'[/\\:*?"<>|\x00-\x1f]', name) or name.startswith(".") or len(name.encode()) > LONGEST_NAME:
        raise InputError(
            f"has name {name[:60]!r}; a file's name has at most {LONGEST_NAME} bytes, none of / \\ : * ? \" < > | and "
            "no dot at its beginning"
        )
    return name
