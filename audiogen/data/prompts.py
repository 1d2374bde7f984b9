"""Lists of prompts for generation: text files, CSV and JSON lines. Standard library only, for the command line."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from audiogen.data.rows import Row, read_rows, read_text, seconds
from audiogen.errors import InputError, plain_text

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
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: prompts are read from {', '.join(SUFFIXES)} files")
    rows: Iterator[tuple[int, Row]]
    if suffix == ".txt":
        lines = enumerate(read_text(path).splitlines(), 1)
        rows = ((number, {"text": line}) for number, line in lines if line.strip())
    else:
        rows = read_rows(path, TEXT_KEYS, lenient=True)
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
        raise InputError(f"has seed {row['seed']!r}, expected a whole number") from None
    return Prompt(plain_text(text.strip()), seconds(row, "duration"), seed)
