"""`evaluate codec`: what codecs do to real sounds at every bitrate, beside Opus and the originals, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.config import NotNegative, Positive, PositiveFloat, Range, check_ranges
from audiogen.data.dataset import AnyClip, SourceConfig, read_source
from audiogen.data.manifest import Clip
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate import coding, opus, scores
from audiogen.evaluate.clips import check_distinct, choose
from audiogen.evaluate.coding import Cells
from audiogen.evaluate.embedders import Embedded, Embedder, load_embedder
from audiogen.evaluate.metrics import frechet_distance, label_kl
from audiogen.evaluate.reconstruction import check_metrics
from audiogen.evaluate.report import REFERENCE, Column, Outcome, Plot, Sound, draw, write_report
from audiogen.evaluate.scores import Warn
from audiogen.files import checkpoint
from audiogen.models.build import load_codec

TRUTH = "Ground truth"
PLOTTED = ("mel", "multi_resolution_stft", "visqol")  # against kbps; and, of every embedder:
PLOTTED_OF_EMBEDDERS = ("accuracy", "kl", "fad")
COLUMNS = (
    Column(coding.SYSTEM, "System"),
    Column(coding.CODEBOOKS, "Codebooks"),
    Column(coding.KBPS, "kbps"),
    Column(coding.CARRIED, "kbps carried"),
    Column("codes_used", "Codes used (%)", digits=0),
    *coding.DISTANCES,
)
SPEEDS = (
    Column(coding.ENCODE, "Encoded (s a second)", "higher", 0),
    Column(coding.DECODE, "Decoded (s a second)", "higher", 0),
)
DEFINITIONS = (
    "kbps: of a codec, codebooks times bits a code times frames a second, without a container; of Opus, measured from "
    "its Ogg files, of which pages and headers are a good part where clips are short. kbps carried: of a codec, the "
    "entropy of its codes, each codebook by itself (an estimate that lacks (V - 1) / (2 n ln 2) bits a code for n "
    "frames and V codewords); of Opus, its packets alone. Codes used: of all codewords of the codebooks in use, those "
    "that occur in these clips.",
    "Log-mel distance: mean absolute difference of natural-log magnitudes, 80 bands, floor -100 dB. Multi-scale mel: "
    "the same over windows of 64 to 1024 samples, with magnitudes and rms error. Multi-resolution STFT: spectral "
    "convergence plus log-magnitude L1, windows of 512 to 2048. Log-spectral distance: rms over bins of the dB "
    "difference. SI-SDR compares waveforms: a codec that keeps spectra and not phases scores below 0 dB however it "
    "sounds.",
    "FAD and KL compare the decoded clips with the same clips undecoded, so they do not compare with figures against "
    "other clips. Ground truth has no distance to itself: all are 0.",
    "In brackets: 95 % intervals over clips. Means and speeds: bootstrap. Entropy and FAD: half samples, the same "
    "clips on both sides.",
)
OPTIONAL_DEFINITIONS = {
    "visqol": "ViSQOL: version 3 in audio mode, at 48 kHz.",
    "pesq": "PESQ: wide-band at 16 kHz, or narrow-band at 8 kHz where the comparison is below 16 kHz; made for speech.",
    "stoi": "STOI: made for speech.",
}


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
    num_clips: Positive | None = None
    embedders: tuple[str, ...] = ("tagger_tiny",)
    opus_kbps: tuple[PositiveFloat, ...] = (6.0, 8.0, 12.0, 16.0)
    metrics: tuple[str, ...] = ()
    sample_rate: Annotated[int, Range(audio.MIN_RATE, audio.MAX_RATE)] | None = None
    threads: Positive = 1
    num_sounds: NotNegative = 3
    device: str = "auto"
    out: Path = Path("evaluation/codec")
    command: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.codecs:
            raise InputError("no codec is given; name one with --codec, such as codec_tiny")
        check_distinct("--codec", self.codecs)
        check_distinct("--embedder", self.embedders)
        check_distinct("--opus", self.opus_kbps)
        check_distinct("--metrics", self.metrics)


def run(evaluation: CodecEvaluation, warn: Warn = lambda message: None) -> Outcome:
    """Evaluate and write report.md, report.json, report.html, quality.png and sounds.

    Everything is measured before anything is written. warn gets what is odd but no error, as the notes do. Sets
    torch's number of threads for the time it runs.
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


def _run(evaluation: CodecEvaluation, warn: Warn) -> Outcome:
    """`run`, once the settings are checked."""
    device = choose_device(evaluation.device)
    codecs = open_codecs(evaluation.codecs, device)
    embedders = [load_embedder(spec, device) for spec in evaluation.embedders]
    rate = evaluation.sample_rate or min(codec.sample_rate for codec in codecs.values())
    originals = coding.Originals(choose_clips(evaluation), rate)
    warnings, note = scores.once(warn)
    if constant := originals.check():
        note(
            f"{len(constant)} of {len(originals.clips)} clips are silent or constant, the first is {constant[0]}; "
            "what is relative to the original (SI-SDR, for silence multi-resolution STFT) leaves them out."
        )
    tried: dict[float, float] = {}
    wanted = tqdm(evaluation.opus_kbps, "Opus: searching levels", leave=False, disable=None)
    levels = {kbps: opus.find_level(originals, rate, kbps, tried) for kbps in wanted}
    systems = [system for name, codec in codecs.items() for system in coding.codec_systems(name, codec)]
    systems += [coding.opus_system(kbps, found.level, rate) for kbps, found in levels.items()]
    rows, sounds = measure_all(evaluation, systems, originals, embedders, note)
    notes = [
        *notes_of(evaluation, codecs, originals, levels),
        *map(scores.describe, embedders),
        *DEFINITIONS,
        *(OPTIONAL_DEFINITIONS[name] for name in evaluation.metrics),
        *(f"Warning: {message}" for message in warnings),
    ]
    return write(evaluation.out, notes, rows, sounds, originals, embedders)


def open_codecs(names: Sequence[str], device: torch.device) -> dict[str, SegmentedCodec]:
    """Codecs by their name in the table: the folder's, or all that was given where two folders are called the same."""
    codecs = [in_segments(load_codec(name, device)) for name in names]
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
    captioned = [clip if clip.captions else replace(clip, captions=("",)) for clip in files]
    return [prompt.clip for prompt in choose(captioned, wanted)]


# ---------------------------------------------------------------------------------------------------- the rows


def measure_all(
    evaluation: CodecEvaluation,
    systems: Sequence[coding.System],
    originals: coding.Originals,
    embedders: Sequence[Embedder],
    warn: Warn,
) -> tuple[list[Cells], dict[str, list[Tensor]]]:
    """The rows of the table, ground truth first, and of each system the first few decoded clips [1, N]."""
    rate, num_sounds = originals.sample_rate, evaluation.num_sounds
    keys = [clip.key for clip in originals.clips]
    fields = [clip.fields if isinstance(clip, Clip) else {} for clip in originals.clips]
    labels = [str(each["label"]) if "label" in each else None for each in fields]
    real, first = coding.embed(iter(originals), rate, embedders, num_sounds)
    sounds = {TRUTH: first}

    def row_with(row: Cells, values: dict[str, list[float]], decoded: Sequence[Embedded]) -> Cells:
        for embedder, of_real, embedded in zip(embedders, real, decoded, strict=True):
            target = None if decoded is real else of_real
            cells, of_clips = embedder_cells(embedder, labels, target, embedded, warn)
            row, values = row | cells, values | of_clips
        per_clip = {  # JSON has no NaN
            key: [None if math.isnan(value) else value for value in each] for key, each in values.items()
        }
        return row | {"n": len(keys), "clips": keys, "per_clip": per_clip}

    rows = [row_with({coding.SYSTEM: TRUTH, REFERENCE: True}, {}, real)]
    for system in systems:
        measured = coding.Measured()
        clips = tqdm(
            coding.send(system, originals, evaluation.metrics, measured),
            system.title,
            len(keys),
            unit="clip",
            disable=None,
            leave=False,
        )
        decoded, sounds[system.title] = coding.embed(iter(clips), rate, embedders, num_sounds)
        for name in evaluation.metrics:
            if undefined := sum(map(math.isnan, measured.values[name])):
                warn(f"{name}: not defined on {undefined} of {len(keys)} clips, which its mean leaves out")
        rows.append(row_with(coding.row_of(system, measured), measured.values, decoded))
    return rows, sounds


def embedder_cells(
    embedder: Embedder,
    labels: Sequence[str | None],
    real: Embedded | None,
    decoded: Embedded,
    warn: Warn,
) -> tuple[Cells, dict[str, list[float]]]:
    """(cells, values by clip): label accuracy and, against the originals (None for themselves), KL and FAD.

    No kernel distance: it takes the two sets for independent, and a clip and its own copy bring it far below 0.
    """
    values: dict[str, list[float]] = {}
    labelled = np.flatnonzero([label in embedder.labels for label in labels])
    if len(labelled):
        right = np.full(len(labels), math.nan)
        right[labelled] = scores.label_accuracy(embedder, labels, labelled, decoded)
        values["accuracy"] = right.tolist()
        scores.warn_of_labels(embedder, labels, "clips", warn)
    if real is not None and real.probabilities is not None and decoded.probabilities is not None:
        values["kl"] = label_kl(real.probabilities, decoded.probabilities).tolist()
    cells: Cells = {name: coding.mean_of_defined(np.asarray(each)) for name, each in values.items()}
    if real is not None:
        a, b = real.embeddings.astype(np.float64), decoded.embeddings.astype(np.float64)
        n, dim = a.shape
        try:
            cells["fad"] = scores.set_figure(
                lambda clips: frechet_distance(a[clips], b[clips]),
                (n,),
                dim + 1,
                scores.frechet_rounds(dim),
                scores.RANGES["fad"],
            )
        except InputError as error:  # too few clips
            warn(f"no FAD by {embedder.name}: {error}")
            cells["fad"] = None
    return (
        {scores.key_of(embedder, name): cell for name, cell in cells.items()},
        {scores.key_of(embedder, name): each for name, each in values.items()},
    )


# --------------------------------------------------------------------------------------------------- the report


def notes_of(
    evaluation: CodecEvaluation,
    codecs: Mapping[str, SegmentedCodec],
    originals: coding.Originals,
    levels: Mapping[float, opus.OpusRate],
) -> list[str]:
    """What was compared with what, and on what."""
    rate, n = originals.sample_rate, len(originals.clips)
    where = "".join(f", {key} {'/'.join(map(str, values))}" for key, values in evaluation.where.items())
    chosen = "all of them" if evaluation.num_clips is None else "a choice that is always the same"
    notes = [f"Command: `{evaluation.command}`"] if evaluation.command else []
    notes.append(
        f"{n} clips of `{evaluation.data}`{where}, {chosen}. Compared at {rate} Hz in mono: what a system gives at "
        "another rate is resampled, and the embedders get the clips after that."
    )
    for name, codec in codecs.items():
        tensors = codec.codec.state_dict()
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
    device = next(iter(codecs.values())).device
    notes.append(
        f"Speeds: seconds of sound a second, one clip at a time. Codecs on {device.type}, {evaluation.threads} CPU "
        f"thread{'s' if evaluation.threads > 1 else ''}; Opus on one thread of the CPU."
    )
    return notes


def write(
    out: Path,
    notes: Sequence[str],
    rows: list[Cells],
    sounds: Mapping[str, Sequence[Tensor]],
    originals: coding.Originals,
    embedders: Sequence[Embedder],
) -> Outcome:
    """Write sounds, picture and report, each file whole."""
    own = [column for embedder in embedders for column in scores.embedder_columns(embedder)]
    columns = scores.filled([*COLUMNS, *own, *SPEEDS], rows)
    keys = {column.key for column in columns}
    of_embedders = [scores.key_of(embedder, name) for embedder in embedders for name in PLOTTED_OF_EMBEDDERS]
    plots = [Plot(coding.KBPS, key) for key in (*PLOTTED, *of_embedders) if key in keys]
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
    notes = [*notes, "`quality.png` has the plots."]
    return write_report(out, "Codecs", notes, columns, rows, listed, plots)
