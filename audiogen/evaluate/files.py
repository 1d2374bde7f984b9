"""`evaluate files`: all figures of sets on two folders of sounds, whatever tool made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from audiogen import audio
from audiogen.config import check_ranges
from audiogen.data.manifest import Clip, sound_files
from audiogen.data.seeds import seed_for
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate import scores
from audiogen.evaluate.clips import Seconds, check_distinct
from audiogen.evaluate.embedders import Embedded, Embedder, load_embedder
from audiogen.evaluate.scores import Cells, Warn
from audiogen.evaluate.texts import columns_of, notes_on
from audiogen.report import REFERENCE, Report, filled

ODD_LENGTHS = 1.5  # factor between the median lengths of two folders from which on a warning is due


@dataclass(frozen=True)
class FilesEvaluation:
    """What to compare: two folders. duration_s: at most so much of every file. command: what to quote in the report."""

    reference: Path
    generated: Path
    embedders: tuple[str, ...] = ("tagger_tiny",)
    duration_s: Seconds | None = None
    device: str = "auto"
    out: Path = Path("evaluation/files")
    command: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_distinct("--embedder", self.embedders)


class Folder(NamedTuple):
    """A folder's sounds in order of name, the median of their lengths, s, and the lowest of their rates, Hz."""

    path: Path
    clips: list[Clip]
    median_s: float
    lowest_rate: int

    def names(self, key: Callable[[Path], str]) -> dict[str, int]:
        """Place of each sound by `key` of its path below the folder; nothing where two share one."""
        found = {key(Path(clip.path).relative_to(self.path)): place for place, clip in enumerate(self.clips)}
        return found if len(found) == len(self.clips) else {}


def run(evaluation: FilesEvaluation, warn: Warn) -> Report:
    """Compare, write the report, return it; warn gets what is odd but no error."""
    warnings, note = scores.once(warn)
    reference, generated = read_folder(evaluation.reference), read_folder(evaluation.generated)
    if reference.path.resolve() == generated.path.resolve():
        note("both folders are the same one: FAD and KL are 0")
    shorter_s, longer_s = sorted([reference.median_s, generated.median_s])
    if longer_s > ODD_LENGTHS * shorter_s and evaluation.duration_s is None:
        note(
            f"half of the sounds are longer than {reference.median_s:.1f} s in {reference.path} and than "
            f"{generated.median_s:.1f} s in {generated.path}: figures will depend on length; see --duration"
        )
    pairs = pair(reference, generated, note)
    columns = columns_of("folders")
    num_half = len(reference.clips) - len(reference.clips) // 2
    ceiling: Cells = {"set": "reference, one half against the other", "n": num_half, REFERENCE: True}
    row: Cells = {"set": str(generated.path), "n": len(generated.clips)}
    notes = [f"Command: `{evaluation.command}`"] if evaluation.command else []
    sizes = {"num_reference": len(reference.clips), "num_generated": len(generated.clips)}
    notes += notes_on("folders", reference=reference, generated=generated, num_pairs=len(pairs), **sizes)
    device = choose_device(evaluation.device)
    for spec in evaluation.embedders:
        embedder = load_embedder(spec, device)
        check_rates(embedder, reference, generated, note)
        columns += scores.embedder_columns(embedder)
        notes += notes_on("embedder", embedder=embedder)
        a, b = (
            scores.embed_files(embedder, folder.clips, evaluation.duration_s, note)
            for folder in (reference, generated)
        )
        ceiling |= ceiling_cells(embedder, a, num_half)
        row |= scores.set_cells(embedder, a, b, note) | scores.inception_cells(embedder, b)
        if pairs:
            of_a, of_b = (scores.take(*side) for side in zip((a, b), zip(*pairs, strict=True), strict=True))
            values = scores.clip_values(embedder, of_b, real=of_a)
            row |= {key: scores.mean_of_defined(each) for key, each in values.items()}
    rows = [ceiling, row]
    notes += [*notes_on("sets"), *warnings]
    report = Report("Two sets of sounds", notes, filled(columns, rows), rows)
    report.write(evaluation.out)
    return report


def read_folder(path: Path) -> Folder:
    """The sounds below a folder, their headers checked. InputError for one that cannot be read, or for fewer than 2."""
    clips = [Clip(str(file)) for file in sound_files(path)]
    if len(clips) < 2:
        raise InputError(f"{path}: one sound is no set; figures of sets need at least 2, better hundreds")
    infos = [audio.info(clip.path) for clip in clips]
    median_s, lowest_rate = median(info.duration_s for info in infos), min(info.sample_rate for info in infos)
    return Folder(path, clips, median_s, lowest_rate)


def check_rates(embedder: Embedder, reference: Folder, generated: Folder, warn: Warn) -> None:
    """Warn where one side has sounds of a lower rate than the other and the embedder reads what they lack."""
    a, b = reference.lowest_rate, generated.lowest_rate
    if a != b and min(a, b) < embedder.sample_rate:
        warn(
            f"sample rates begin at {a} Hz in {reference.path} and at {b} Hz in {generated.path}, and {embedder.name} "
            f"reads {embedder.sample_rate} Hz: figures will depend on bandwidth"
        )


def pair(reference: Folder, generated: Folder, warn: Warn) -> list[tuple[int, int]]:
    """Places of sounds of the same name, but for the suffix; failing that, of the same file name in any subfolder."""
    for key in (lambda name: str(name.with_suffix("")), lambda name: name.stem):
        a, b = reference.names(key), generated.names(key)
        if pairs := [(a[name], b[name]) for name in a if name in b]:
            if len(pairs) < max(len(a), len(b)):
                warn(
                    f"only {len(pairs)} names are in both folders ({len(a)} in {reference.path}, {len(b)} in "
                    f"{generated.path}): KL is over those pairs"
                )
            return pairs
    warn("no file has the same name in both folders: no pairs, so no KL")
    return []


def ceiling_cells(embedder: Embedder, reference: Embedded, num_half: int) -> Cells:
    """What real sounds score against other real sounds: a random half of the reference against the rest."""
    order = np.random.default_rng(seed_for("halves")).permutation(len(reference.embeddings))
    one, other = scores.take(reference, order[:num_half]), scores.take(reference, order[num_half:])
    if len(other.embeddings) < 2:
        return {}
    # Half a set may be too small for a figure of which the whole is not: no warning, the cell is empty.
    cells = scores.set_cells(embedder, other, one, lambda message: None)
    return cells | scores.inception_cells(embedder, one)
