"""Lists of prompts for generation: text files, tables and JSON lines. Without torch, for the command line."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiogen.config import short
from audiogen.data.rows import Row, read_rows, read_text, seconds
from audiogen.errors import InputError, plain_text

TEXT_KEYS = ("text", "prompt", "caption")
OTHER_KEYS = ("duration", "seed", "guidance", "negative", "model", "name")
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl")
LONGEST_NAME = 200  # bytes; file systems allow 255 with what is added


@dataclass(frozen=True)
class Prompt:
    """A sound to generate; what is None is left to the command, but for the text: None is no text.

    negative, guidance, model: as the command's options. name: of its file, without a suffix.
    """

    text: str | None
    duration_s: float | None = None
    seed: int | None = None
    guidance: float | None = None
    negative: str | None = None
    model: str | None = None
    name: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file: .txt has one a line; .csv and .tsv have a header and .jsonl an object a line.

    The text is under text, prompt or caption; duration (s) and the other fields of `Prompt` are optional, blank lines
    are ignored. Raises InputError that names the line, also for a field of another name.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: prompts are read from {', '.join(SUFFIXES)} files")
    rows: Iterator[tuple[int, Row]]
    if suffix == ".txt":
        lines = enumerate(read_text(path).splitlines(), 1)
        rows = ((number, {"text": line}) for number, line in lines if line.strip())
    else:
        rows = read_rows(path, TEXT_KEYS, lenient=True, others=OTHER_KEYS)
    prompts = []
    for number, row in rows:
        try:
            prompts.append(_prompt(row))
        except InputError as error:
            raise InputError(f"{path}:{number}: {error}") from error
    if not prompts:
        raise InputError(f"{path}: holds no prompts")
    return prompts


def _prompt(row: Row) -> Prompt:
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
    return Prompt(plain_text(text.strip()), seconds(row, "duration"), seed, _guidance(row), **words)


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
