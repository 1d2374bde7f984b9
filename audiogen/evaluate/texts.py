"""The columns of all tables and the notes that explain them, from `texts.yaml`."""

from pathlib import Path

from audiogen.config import read_table
from audiogen.report import Column

TEXTS = Path(__file__).with_name("texts.yaml")


def columns_of(table: str) -> list[Column]:
    """Columns by the name of their list."""
    return [Column(key, **entry) for key, entry in read_table(TEXTS)["columns"][table].items()]


def notes_on(topic: str, **facts: object) -> list[str]:
    """Notes by the name of their list, with the facts that they name."""
    return [note.format(**facts) for note in read_table(TEXTS)["notes"][topic]]
