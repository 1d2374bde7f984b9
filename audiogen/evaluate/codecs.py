"""`evaluate codec`: what codecs do to real sounds at every bitrate, beside Opus and the originals, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.data.dataset import AnyClip, SourceConfig, read_source
from audiogen.data.manifest import Clip
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate import opus
from audiogen.evaluate.clips import choose
from audiogen.evaluate.codec_rows import (
    COLUMNS,
    DEFINITIONS,
    KBPS,
    OPTIONAL_DEFINITIONS,
    SPEEDS,
    SYSTEM,
    Cells,
    embedder_cells,
    row_of,
)
from audiogen.evaluate.coding import Measured, Originals, System, codec_systems, hear, opus_system, send
from audiogen.evaluate.embedders import Embedder, load_embedder
from audiogen.evaluate.reconstruction import check_metrics
from audiogen.evaluate.report import REFERENCE, Plot, Sound, draw, write_report
from audiogen.evaluate.scores import Warn, describe, embedder_columns, filled, key_of, once
from audiogen.files import checkpoint
from audiogen.interfaces import Codec
from audiogen.models.codec_pretrained import load_codec

TRUTH = "Ground truth"
PLOTTED = ("mel", "multi_resolution_stft", "visqol")  # against kbps; and, of every embedder:
PLOTTED_OF_EMBEDDERS = ("accuracy", "kl", "fad")


@dataclass(frozen=True)
class CodecEvaluation:
    """What to evaluate, on what, and how.

    codecs: bundled names or model directories. data: a manifest, folder or synth:COUNT; where: allowed values of its
    fields. num_clips: a choice that is always the same; None is all. embedders: specs. opus_kbps: wanted bitrates.
    metrics: optional ones, `reconstruction.OPTIONAL`. sample_rate: of the comparison, Hz; None is the lowest of the
    codecs. threads: of torch. num_sounds: clips to listen to in report.html. out: a folder. command: what to quote in
    the report.
    """

    codecs: tuple[str, ...]
    data: str
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    num_clips: int | None = None
    embedders: tuple[str, ...] = ("tagger_tiny",)
    opus_kbps: tuple[float, ...] = (6.0, 8.0, 12.0, 16.0)
    metrics: tuple[str, ...] = ()
    sample_rate: int | None = None
    threads: int = 1
    num_sounds: int = 3
    device: str = "auto"
    out: Path = Path("evaluation/codec")
    command: str = ""

    def __post_init__(self) -> None:
        if not self.codecs:
            raise InputError("no codec is given; name one with --codec, such as codec_tiny")
        lists: dict[str, Sequence[Any]] = {
            "codec": self.codecs,
            "embedder": self.embedders,
            "opus": self.opus_kbps,
            "metrics": self.metrics,
        }
        for option, values in lists.items():
            if len(set(values)) < len(values):
                raise InputError(f"--{option} names one twice: {', '.join(map(str, values))}; name each once")
        for kbps in self.opus_kbps:
            if not 0 < kbps < math.inf:
                raise InputError(f"--opus {kbps:g}: give bitrates above 0, in kbps, such as 6,8,12,16")
        numbers = {
            "num-clips": (self.num_clips, 1),
            "threads": (self.threads, 1),
            "num-sounds": (self.num_sounds, 0),
        }
        for option, (number, least) in numbers.items():
            if number is not None and number < least:
                raise InputError(f"--{option} is {number}; allowed: {least} and more")
        rate = self.sample_rate
        if rate is not None and not audio.MIN_RATE <= rate <= audio.MAX_RATE:
            raise InputError(f"--sample-rate is {rate}; allowed: {audio.MIN_RATE} to {audio.MAX_RATE} Hz")


def run(evaluation: CodecEvaluation, warn: Warn = lambda message: None) -> Path:
    """Evaluate and write report.md, report.json, report.html, quality.png and sounds -> the path of report.md.

    Everything is measured before anything is written. warn is told of what is odd but no error, as the notes are.
    Sets torch's number of threads for the time it runs.
    """
    if evaluation.out.exists() and not evaluation.out.is_dir():
        raise InputError(f"--out {evaluation.out} is a file; give a folder")
    check_metrics(evaluation.metrics)
    threads = torch.get_num_threads()
    torch.set_num_threads(evaluation.threads)
    try:
        return _run(evaluation, warn)
    finally:
        torch.set_num_threads(threads)


def _run(evaluation: CodecEvaluation, warn: Warn) -> Path:
    """`run`, once the settings are known to be good."""
    device = choose_device(evaluation.device)
    codecs = open_codecs(evaluation.codecs, device)
    embedders = [load_embedder(spec, device) for spec in evaluation.embedders]
    rate = evaluation.sample_rate or min(codec.sample_rate for codec in codecs.values())
    originals = Originals(choose_clips(evaluation), rate)
    odd, note = once(warn)
    if constant := originals.check():
        note(
            f"{len(constant)} of {len(originals.clips)} clips are silent or constant, the first is {constant[0]}; "
            "what is relative to the original (SI-SDR, for silence multi-resolution STFT) leaves them out."
        )
    tried: dict[float, float] = {}
    wanted = tqdm(evaluation.opus_kbps, "Opus: searching levels", leave=False, disable=None)
    levels = {kbps: opus.find_level(originals, rate, kbps, tried) for kbps in wanted}
    systems = [system for name, codec in codecs.items() for system in codec_systems(name, codec)]
    systems += [opus_system(kbps, found.level, rate) for kbps, found in levels.items()]
    rows, sounds = measure_all(evaluation, systems, originals, embedders, note)
    notes = [
        *notes_of(evaluation, codecs, originals, levels),
        *map(describe, embedders),
        *DEFINITIONS,
        *(OPTIONAL_DEFINITIONS[name] for name in evaluation.metrics),
        *(f"Warning: {message}" for message in odd),
    ]
    return write(evaluation.out, notes, rows, sounds, originals, embedders)


def open_codecs(names: Sequence[str], device: torch.device) -> dict[str, Codec]:
    """Codecs by their name in the table: the folder's, or all that was given where two folders are called the same."""
    codecs = [load_codec(name, device) for name in names]
    short = [codec.name for codec in codecs]
    return {
        codec.name if codec.name and short.count(codec.name) == 1 else name: codec
        for name, codec in zip(names, codecs, strict=True)
    }


def choose_clips(evaluation: CodecEvaluation) -> list[AnyClip]:
    """The clips to evaluate on: all, or the same choice that `evaluate compare` makes."""
    clips = read_source(SourceConfig(evaluation.data, where=dict(evaluation.where)))
    wanted = evaluation.num_clips
    if wanted is None:
        return clips
    if wanted > len(clips):
        raise InputError(
            f"--num-clips is {wanted}, but there are {len(clips)} clips; allowed: 1 to {len(clips)}"
        )
    files = [clip for clip in clips if isinstance(clip, Clip)]
    if len(files) < len(clips):  # the built-in corpus is in random order
        return clips[:wanted]
    told = [clip if clip.captions else replace(clip, captions=("",)) for clip in files]
    return [prompt.clip for prompt in choose(told, wanted)]


def measure_all(
    evaluation: CodecEvaluation,
    systems: Sequence[System],
    originals: Originals,
    embedders: Sequence[Embedder],
    warn: Warn,
) -> tuple[list[Cells], dict[str, list[Tensor]]]:
    """The rows of the table, ground truth first, and of each system the first few decoded clips [1, N]."""
    keys = [clip.key for clip in originals.clips]
    labels = [
        str(clip.fields["label"]) if isinstance(clip, Clip) and "label" in clip.fields else None
        for clip in originals.clips
    ]
    real = hear(iter(originals), originals.sample_rate, embedders, evaluation.num_sounds)
    rows: list[Cells] = []
    sounds = {TRUTH: real.sounds}

    def add(row: Cells, measured: Measured, truth: bool) -> None:
        by_clip = dict(measured.values)
        for embedder, of_real, heard in zip(embedders, real.heard, measured.heard, strict=True):
            cells, values = embedder_cells(embedder, labels, None if truth else of_real, heard, warn)
            row |= cells
            by_clip |= values
        rows.append(row | {"n": len(keys), "clips": keys, "per_clip": _plain(by_clip)})

    add({SYSTEM: TRUTH, REFERENCE: True}, real, truth=True)
    with tqdm(total=len(systems) * len(keys), unit="clip", disable=None, leave=False) as bar:
        for system in systems:
            bar.set_description(system.title)
            values = Measured()
            decoded = send(system, originals, evaluation.metrics, values)
            heard = hear(_counted(decoded, bar), originals.sample_rate, embedders, evaluation.num_sounds)
            values.heard, sounds[system.title] = heard.heard, heard.sounds
            for name in evaluation.metrics:
                if undefined := sum(map(math.isnan, values.values[name])):
                    warn(
                        f"{name}: not defined on {undefined} of {len(keys)} clips, which its mean leaves out"
                    )
            add(row_of(system, values), values, truth=False)
    return rows, sounds


def _counted(clips: Iterator[Tensor], bar: Any) -> Iterator[Tensor]:
    for clip in clips:
        bar.update()
        yield clip


def _plain(by_clip: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    """For JSON, which has no NaN."""
    return {key: [None if math.isnan(value) else value for value in each] for key, each in by_clip.items()}


# --------------------------------------------------------------------------------------------------- the report


def notes_of(
    evaluation: CodecEvaluation,
    codecs: Mapping[str, Codec],
    originals: Originals,
    levels: Mapping[float, opus.OpusRate],
) -> list[str]:
    """What was compared with what, and on what."""
    rate, n = originals.sample_rate, len(originals.clips)
    where = "".join(f", {key} {'/'.join(map(str, values))}" for key, values in evaluation.where.items())
    chosen = "all of them" if evaluation.num_clips is None else "a choice that is always the same"
    notes = [f"Command: `{evaluation.command}`"] if evaluation.command else []
    notes.append(
        f"{n} clips of `{evaluation.data}`{where}, {chosen}. Compared at {rate} Hz in mono: what a system gives at "
        "another rate is resampled, and the embedders hear the clips after that."
    )
    for name, codec in codecs.items():
        tensors = codec.state_dict()
        notes.append(
            f"Codec {name}: weights {checkpoint.identity(tensors)}, {codec.sample_rate} Hz, {codec.channels} "
            f"channel{'s' if codec.channels > 1 else ''}, {codec.frame_rate:g} frames a second, {codec.num_codebooks} "
            f"codebooks of {codec.codebook_size}."
        )
    if levels:
        found = "; ".join(
            f"{kbps:g} asked, {level.kbps:.2f} found at level {level.level:.4f}"
            for kbps, level in levels.items()
        )
        notes.append(
            f"Opus: libsndfile {soundfile.__libsndfile_version__}, mono at {opus.opus_rate(rate)} Hz, variable "
            f"bitrate, the compression level whose files over all these clips come nearest to the kbps asked: {found}."
        )
    device = next(next(iter(codecs.values())).parameters()).device
    notes.append(
        f"Speeds: seconds of sound a second, one clip at a time. Codecs on {device.type}, {evaluation.threads} CPU "
        f"thread{'s' if evaluation.threads > 1 else ''}; Opus on one thread of the CPU."
    )
    return notes


def write(
    out: Path,
    notes: Sequence[str],
    rows: Sequence[Cells],
    sounds: Mapping[str, Sequence[Tensor]],
    originals: Originals,
    embedders: Sequence[Embedder],
) -> Path:
    """Write sounds, picture and report, each file whole -> report.md."""
    columns = [
        *COLUMNS,
        *(column for embedder in embedders for column in embedder_columns(embedder)),
        *SPEEDS,
    ]
    columns = filled(columns, rows)
    own = [key_of(embedder, name) for embedder in embedders for name in PLOTTED_OF_EMBEDDERS]
    known = {column.key for column in columns}
    plots = [Plot(KBPS, key) for key in (*PLOTTED, *own) if key in known]
    picture = draw(plots, columns, rows)
    listed = []
    for number in range(max(map(len, sounds.values()))):
        clip = originals.clips[number]
        caption = clip.captions[0] if isinstance(clip, Clip) and clip.captions else ""
        for title, kept in sounds.items():
            name = f"{number + 1}_{re.sub(r'[^A-Za-z0-9]+', '_', title)}.wav"
            sound = audio.below_full_scale(kept[number])
            path = audio.save(out / "sounds" / name, sound, originals.sample_rate)
            listed.append(Sound(title, f"{number + 1}. {caption or Path(clip.key).name}", path))
    checkpoint.write_bytes_atomic(out / "quality.png", picture)
    write_report(out, "Codecs", [*notes, "`quality.png` has the plots."], columns, rows, listed, plots)
    return out / "report.md"
