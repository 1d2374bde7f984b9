"""The page of `audiogen.generate --report`: the sounds of a command with players, spectrograms and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audiogen.files.writing import write_bytes_atomic
from audiogen.report import Column, Report, Row, Sound, filled, render_page

COLUMNS = (
    Column("file", "Sound"),
    Column("text", "Text"),
    Column("duration_s", "Seconds"),
    Column("seed", "Seed"),
    Column("model", "Model"),
    Column("guidance", "Guidance"),
    *(
        Column(key, key.replace("_", " ").capitalize())
        for key in ("negative", "temperature", "top_k", "top_p")
    ),
    *(
        Column(key, key.replace("_", " ").capitalize())
        for key in ("steps", "sampler", "guidance_rescale", "candidates", "in_order")
    ),
    Column("level_db", "Level (dB)", digits=1),
    Column("turned_down_db", "Turned down (dB)", digits=1),
    Column("loudness", "Loudness (LUFS)", digits=1),
)


def write(path: Path, sounds: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write the page. sounds: facts by the keys of `COLUMNS`, and the path of each."""
    several = len({sound["model"] for sound in sounds}) > 1
    # plain numbers have thousands separators in a table, and a seed is a name
    rows: list[Row] = [
        {**sound, "file": Path(sound["path"]).name, "seed": str(sound["seed"])} for sound in sounds
    ]
    takes = [
        Sound(
            f"seed {sound['seed']}" + (f", {sound['model']}" if several else ""),
            sound["text"] or "no text",
            Path(sound["path"]),
        )
        for sound in sounds
    ]
    page = render_page(
        Report("Generated sounds", [f"Command: `{command}`"], filled(COLUMNS, rows), rows, takes)
    )
    write_bytes_atomic(path, page.encode())
