"""`evaluate codec`: what codecs do to real sounds at every bitrate, beside Opus and the originals, and how fast.

Every system gets the clips at its own rate and channels, as it would in use. What comes out is compared with the
originals at one common rate, in mono.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.config import NotNegative, Positive, PositiveFloat, Range, check_ranges
from audiogen.data.dataset import BuiltInClip, SourceConfig, read_source
from audiogen.data.manifest import Clip
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate import coding, scores
from audiogen.evaluate.clips import balanced, check_distinct, in_words, label_of
from audiogen.evaluate.embedders import Embedded, Embedder, embed_clips, join, load_embedder
from audiogen.evaluate.metrics import Array, Index, Interval, bootstrap, frechet_distance, set_interval
from audiogen.evaluate.reconstruction import check_metrics, code_entropy, measure
from audiogen.evaluate.scores import Warn, mean_of_defined
from audiogen.evaluate.texts import columns_of, notes_on
from audiogen.files import checkpoint, writing
from audiogen.models.build import load_codec
from audiogen.report import REFERENCE, Report, Sound, filled

Cells = dict[str, Any]  # of a row: figures by the keys of columns, and what only the JSON has
Passed = tuple[
    Tensor, dict[str, Any]
]  # a decoded clip [1, N] at the common rate, and what was measured of it

TRUTH = "Ground truth"
PLOTTED = ("mel", "multi_resolution_stft", "visqol")  # against kbps; and, of every embedder:
PLOTTED_OF_EMBEDDERS = ("accuracy", "kl", "fad")
EMBED_CLIPS = 16  # decoded clips held for the embedders at a time


@dataclass(frozen=True)
class CodecEvaluation:
    """What to evaluate, on what, and how: the options of the command line, one of each.

    data: a manifest, folder or synth:COUNT. where: allowed values of its fields. sample_rate: of the comparison, Hz;
    None is the lowest of the codecs. command: what to quote in the report.
    """

    data: str
    codecs: tuple[str, ...] = ("codec_tiny",)
    where: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    num_clips: Positive | None = None
    embedders: tuple[str, ...] = ("tagger_tiny",)
    beam: Positive = 8
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


def run(evaluation: CodecEvaluation, warn: Warn = lambda message: None) -> Report:
    """Evaluate and write report.md, report.json, report.html, quality.png and sounds.

    Everything is measured before anything is written. warn gets what is odd but no error, as the notes do. Sets
    torch's number of threads for the time it runs.
    """
    check_metrics(evaluation.metrics)
    threads = torch.get_num_threads()
    torch.set_num_threads(evaluation.threads)
    try:
        return _run(evaluation, warn)
    finally:
        torch.set_num_threads(threads)


def _run(evaluation: CodecEvaluation, warn: Warn) -> Report:
    """`run`, once the settings are checked."""
    device = choose_device(evaluation.device)
    codecs = open_codecs(evaluation.codecs, device)
    embedders = [load_embedder(spec, device) for spec in evaluation.embedders]
    rate = evaluation.sample_rate or min(codec.header.sample_rate for codec in codecs.values())
    originals = coding.Originals(choose_clips(evaluation), rate)
    warnings, note = scores.once(warn)
    if constant := originals.check():
        note(
            f"{len(constant)} of {len(originals.clips)} clips are silent or constant, the first is {constant[0]}; "
            "what is relative to the original (SI-SDR, for silence multi-resolution STFT) leaves them out."
        )
    tried: dict[float, float] = {}
    wanted = tqdm(evaluation.opus_kbps, "Opus: searching levels", leave=False, disable=None)
    levels = {kbps: coding.find_level(originals, rate, kbps, tried) for kbps in wanted}
    beam = evaluation.beam
    systems = [system for name, codec in codecs.items() for system in coding.codec_systems(name, codec, beam)]
    systems += [coding.opus_system(kbps, level, rate) for kbps, (level, _) in levels.items()]
    rows, sounds = measure_all(evaluation, systems, originals, embedders, note)
    notes = [
        *notes_of(evaluation, codecs, originals, levels),
        *(line for embedder in embedders for line in notes_on("embedder", embedder=embedder)),
        *notes_on("codec"),
        *(line for name in evaluation.metrics for line in notes_on(name)),
        *warnings,
        "`quality.png` has the plots.",
    ]
    own = [column for embedder in embedders for column in scores.embedder_columns(embedder)]
    columns = [*columns_of("codec"), *columns_of("distances"), *own, *columns_of("speeds")]
    columns = filled(columns, rows)
    of_embedders = [scores.key_of(embedder, name) for embedder in embedders for name in PLOTTED_OF_EMBEDDERS]
    keys = {column.key for column in columns}
    plots = [("kbps", key) for key in (*PLOTTED, *of_embedders) if key in keys]
    report = Report("Codecs", notes, columns, rows, write_sounds(evaluation.out, sounds, originals), plots)
    writing.write_bytes_atomic(evaluation.out / "quality.png", report.picture)
    report.write(evaluation.out)
    return report


def open_codecs(names: Sequence[str], device: torch.device) -> dict[str, SegmentedCodec]:
    """Codecs by their name in the table: the folder's, or all that was given where two folders are called the same."""
    codecs = [in_segments(load_codec(name, device)) for name in names]
    short = [codec.name for codec in codecs]
    return {
        codec.name if codec.name and short.count(codec.name) == 1 else name: codec
        for name, codec in zip(names, codecs, strict=True)
    }


def choose_clips(evaluation: CodecEvaluation) -> list[Clip]:
    """The clips to evaluate on: all, or the same choice that `evaluate compare` makes."""
    clips = list(read_source(SourceConfig(evaluation.data, where=dict(evaluation.where))))
    wanted = evaluation.num_clips
    if wanted is not None and wanted > len(clips):
        raise InputError(f"--num-clips is {wanted}, but there are {len(clips)} clips; give 1 to that")
    if wanted is None or isinstance(clips[0], BuiltInClip):  # these are in random order
        return clips[:wanted]
    return balanced(clips)[:wanted]


# ---------------------------------------------------------------------------------------------------- the rows


class Decoded(NamedTuple):
    """What came out of a system. embedded: by each embedder. sounds: the first few clips [1, N]. values: by figure."""

    embedded: list[Embedded]
    sounds: list[Tensor]
    values: dict[str, list[Any]]


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
    labels = [label_of(clip) for clip in originals.clips]
    for embedder in embedders:
        scores.warn_of_labels(embedder, labels, "clips", warn)
    real = embed(((target, {}) for target in originals), rate, embedders, num_sounds)

    def row_of(row: Cells, decoded: Decoded) -> Cells:
        values: dict[str, Any] = {key: each for key, each in decoded.values.items() if key != "counts"}
        for embedder, of_real, embedded in zip(embedders, real.embedded, decoded.embedded, strict=True):
            target = None if decoded is real else of_real
            of_clips = scores.clip_values(embedder, embedded, 1, target, labels)
            values |= of_clips
            row |= {key: mean_of_defined(each) for key, each in of_clips.items()}
            if target is not None:
                row[scores.key_of(embedder, "fad")] = paired_fad(embedder, target, embedded, warn)
        per_clip = {  # JSON has no NaN
            key: [None if math.isnan(value) else value for value in each] for key, each in values.items()
        }
        return row | {"n": len(keys), "clips": keys, "per_clip": per_clip}

    rows = [row_of({"system": TRUTH, REFERENCE: True}, real)]
    sounds = {TRUTH: real.sounds}
    for system in systems:
        sent = send(system, originals, evaluation.metrics)
        clips = tqdm(sent, system.title, len(keys), unit="clip", disable=None, leave=False)
        decoded = embed(clips, rate, embedders, num_sounds)
        for name in evaluation.metrics:
            if undefined := sum(map(math.isnan, decoded.values[name])):
                warn(f"{name}: not defined on {undefined} of {len(keys)} clips, which its mean leaves out")
        rows.append(row_of(system_cells(system, decoded.values), decoded))
        sounds[system.title] = decoded.sounds
    return rows, sounds


def send(system: coding.System, originals: coding.Originals, optional: Sequence[str]) -> Iterator[Passed]:
    """Every clip through the system; measured are distances by name, duration_s, and what `System.code` says."""
    system.code(originals.read(0, system.sample_rate, system.channels))  # the first call sets up: not counted
    for index, clip in enumerate(originals.clips):
        wave = originals.read(index, system.sample_rate, system.channels)
        target = originals.target(index)
        decoded, measured = system.code(wave)
        decoded = audio.convert_channels(decoded[:, : wave.shape[-1]], 1)
        decoded = audio.resample(decoded, system.sample_rate, originals.sample_rate)[:, : target.shape[-1]]
        decoded = torch.nn.functional.pad(decoded, (0, target.shape[-1] - decoded.shape[-1]))
        try:
            distances = measure(decoded[None], target[None], originals.sample_rate, optional)
        except InputError as error:
            raise InputError(f"{system.title}, {clip.key}: {error}") from None
        measured["duration_s"] = wave.shape[-1] / system.sample_rate
        yield decoded, measured | {name: float(value) for name, value in distances.items()}


def embed(
    passed: Iterable[Passed], sample_rate: int, embedders: Sequence[Embedder], num_sounds: int
) -> Decoded:
    """The embeddings and figures of clips, some at a time as they come."""
    passed = iter(passed)
    parts: list[list[Embedded]] = [[] for _ in embedders]
    sounds: list[Tensor] = []
    measured: list[dict[str, Any]] = []
    while some := list(islice(passed, EMBED_CLIPS)):
        clips = [clip for clip, _ in some]
        measured += [values for _, values in some]
        sounds += clips[: num_sounds - len(sounds)]
        for embedder, part in zip(embedders, parts, strict=True):
            part.append(embed_clips(embedder, clips, sample_rate))
    values = {name: [each[name] for each in measured] for name in measured[0]}
    return Decoded([join(part) for part in parts], sounds, values)


def system_cells(system: coding.System, measured: Mapping[str, Sequence[Any]]) -> Cells:
    """The cells of a system that need no embedder; beside the columns bits_per_s carried and a codec's use of codes."""
    values = {key: np.asarray(each, dtype=np.float64) for key, each in measured.items()}
    row: Cells = {"system": system.name, "codebooks": system.codebooks, "kbps": system.kbps}
    row |= {c.key: mean_of_defined(values[c.key]) for c in columns_of("distances") if c.key in values}
    row |= {key: ratio(values["duration_s"], values[f"{key}_s"]) for key in ("encode", "decode")}
    if "counts" in measured:
        of_clips = np.stack(measured["counts"])  # of a codec's codes [n, K, V]
        use = code_entropy(of_clips.sum(0), system.frame_rate)

        def kbps(clips: Index) -> float:
            return code_entropy(of_clips[clips].sum(0), system.frame_rate).bits_per_s / 1000

        most = system.kbps or math.inf
        row["carried"] = set_interval(
            kbps, len(of_clips), minimum=1, rounds=scores.ROUNDS, allowed=(0.0, most)
        )
        row["codes_used"] = 100 * float(use.used.mean()) / of_clips.shape[-1]
        row |= {"perplexity": use.perplexity.tolist(), "used": use.used.tolist()}
    else:
        row["kbps"] = ratio(values["file_bytes"] * 8 / 1000, values["duration_s"]).value
        row["carried"] = ratio(values["packet_bytes"] * 8 / 1000, values["duration_s"])
        row[REFERENCE] = True
    return row | {"bits_per_s": 1000 * row["carried"].value}


def ratio(a: Array, b: Array) -> Interval:
    """Sum of a over sum of b, [n] each, with the interval over clips; without one for a single clip."""

    def of(clips: Index) -> float:
        return float(a[clips].sum() / b[clips].sum())

    return bootstrap(of, len(a))


def paired_fad(embedder: Embedder, real: Embedded, decoded: Embedded, warn: Warn) -> Interval | None:
    """FAD of decoded clips and their originals, the same half samples of both; None where clips are too few.

    There is no kernel distance: it takes the two sets for independent, and a clip and its own copy bring it far below
    0.
    """
    a, b = real.embeddings.astype(np.float64), decoded.embeddings.astype(np.float64)
    n, dim = a.shape

    def distance(clips: Index) -> float:
        return frechet_distance(a[clips], b[clips])

    try:
        rounds = scores.frechet_rounds(dim)
        return set_interval(distance, n, minimum=dim + 1, rounds=rounds, allowed=scores.RANGES["fad"])
    except InputError as error:
        warn(f"no FAD by {embedder.name}: {error}")
        return None


# --------------------------------------------------------------------------------------------------- the report


def notes_of(
    evaluation: CodecEvaluation,
    codecs: Mapping[str, SegmentedCodec],
    originals: coding.Originals,
    levels: Mapping[float, tuple[float, float]],
) -> list[str]:
    """What was compared with what, and on what."""
    rate = originals.sample_rate
    where = in_words(evaluation.where)
    n = len(originals.clips)
    chosen = "all of them" if evaluation.num_clips is None else "a choice that is always the same"
    notes = [f"Command: `{evaluation.command}`"] if evaluation.command else []
    notes += notes_on("clips", n=n, evaluation=evaluation, where=where, chosen=chosen, rate=rate)
    for name, codec in codecs.items():
        identity = checkpoint.identity(codec.codec.state_dict())
        notes += notes_on("weights", name=name, identity=identity, codec=codec.header)
    if levels:
        found = [
            f"{asked:g} asked, {kbps:.2f} found at level {level:.4f}"
            for asked, (level, kbps) in levels.items()
        ]
        facts = {"version": soundfile.__libsndfile_version__, "rate": coding.opus_rate(rate)}
        notes += notes_on("opus", found="; ".join(found), **facts)
    device = next(iter(codecs.values())).device.type
    return notes + notes_on("speeds", device=device, evaluation=evaluation)


def write_sounds(
    out: Path, sounds: Mapping[str, Sequence[Tensor]], originals: coding.Originals
) -> list[Sound]:
    """The clips to listen to [1, N], written, clip by clip."""
    listed = []
    for number in range(max(map(len, sounds.values()))):
        clip = originals.clips[number]
        caption = clip.captions[0] if clip.captions else ""
        for title, kept in sounds.items():
            name = f"{number + 1}_{re.sub(r'[^A-Za-z0-9]+', '_', title)}.wav"
            sound = audio.below_full_scale(kept[number])
            path = audio.save(out / "sounds" / name, sound, originals.sample_rate)
            listed.append(Sound(title, f"{number + 1}. {caption or Path(clip.key).name}", path))
    return listed
