"""The table of `evaluate codec`: its columns, what they mean, and the cells of a row, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audiogen.errors import InputError
from audiogen.evaluate.coding import Measured, System
from audiogen.evaluate.embedders import Embedded, Embedder
from audiogen.evaluate.metrics import (
    Interval,
    accuracy,
    bootstrap,
    frechet_distance,
    label_kl,
    prompt_interval,
)
from audiogen.evaluate.reconstruction import code_entropy
from audiogen.evaluate.report import REFERENCE, Column
from audiogen.evaluate.scores import RANGES, ROUNDS, Warn, frechet_rounds, key_of, set_figure

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Cells = dict[str, Any]  # of a row: figures by the keys of columns, and what only the JSON has

SYSTEM, CODEBOOKS, KBPS, CARRIED, ENCODE, DECODE = (
    "system",
    "codebooks",
    "kbps",
    "carried",
    "encode",
    "decode",
)
DISTANCES = (
    Column("mel", "Log-mel distance", "lower", 2),
    Column("multi_scale_mel", "Multi-scale mel", "lower", 2),
    Column("multi_resolution_stft", "Multi-resolution STFT", "lower", 2),
    Column("log_spectral_db", "Log-spectral distance (dB)", "lower", 1),
    Column("si_sdr_db", "SI-SDR (dB)", "higher", 1),
    Column("visqol", "ViSQOL", "higher", 2),
    Column("pesq", "PESQ", "higher", 2),
    Column("stoi", "STOI", "higher", 2),
)
COLUMNS = (
    Column(SYSTEM, "System"),
    Column(CODEBOOKS, "Codebooks"),
    Column(KBPS, "kbps"),
    Column(CARRIED, "kbps carried"),
    Column("codes_used", "Codes used (%)", digits=0),
    *DISTANCES,
)
SPEEDS = (
    Column(ENCODE, "Encoded (s a second)", "higher", 0),
    Column(DECODE, "Decoded (s a second)", "higher", 0),
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


def row_of(system: System, measured: Measured) -> Cells:
    """The cells of a system that need no embedder; beside the columns bits_per_s carried and a codec's use of codes."""
    values = {key: np.asarray(each, dtype=np.float64) for key, each in measured.values.items()}
    row: Cells = {SYSTEM: system.name, CODEBOOKS: system.codebooks, KBPS: system.kbps}
    for column in DISTANCES:
        if column.key in values:
            row[column.key] = mean_of_defined(values[column.key])
    row[ENCODE] = ratio(values["duration_s"], values["encode_s"])
    row[DECODE] = ratio(values["duration_s"], values["decode_s"])
    if measured.counts:
        counts = np.stack(measured.counts)  # [n, K, V]
        use = code_entropy(counts.sum(0), system.frame_rate)

        def kbps(clips: Index) -> float:
            return code_entropy(counts[clips].sum(0), system.frame_rate).bits_per_s / 1000

        row[CARRIED] = set_figure(kbps, (len(counts),), 1, ROUNDS, (0.0, system.kbps or math.inf))
        row["codes_used"] = 100 * float(use.used.mean()) / counts.shape[-1]
        row |= {"perplexity": use.perplexity.tolist(), "used": use.used.tolist()}
    else:
        kilobits = {key: values[key] * 8 / 1000 for key in ("file_bytes", "packet_bytes")}
        row[KBPS] = ratio(kilobits["file_bytes"], values["duration_s"]).value
        row[CARRIED] = ratio(kilobits["packet_bytes"], values["duration_s"])
        row[REFERENCE] = True
    return row | {"bits_per_s": 1000 * row[CARRIED].value}


def embedder_cells(
    embedder: Embedder,
    labels: Sequence[str | None],
    real: Embedded | None,
    heard: Embedded,
    warn: Warn,
) -> tuple[Cells, dict[str, list[float]]]:
    """(cells, values by clip): label accuracy and, against the originals (None for themselves), KL and FAD."""
    values: dict[str, list[float]] = {}
    known = [place for place, label in enumerate(labels) if label in embedder.labels]
    if known and heard.probabilities is not None:
        wanted = [embedder.labels.index(str(labels[place])) for place in known]
        right = np.full(len(labels), math.nan)
        right[known] = accuracy(heard.probabilities[known], wanted)
        values["accuracy"] = right.tolist()
        if len(known) < len(labels):
            warn(
                f"label accuracy by {embedder.name}: {len(known)} of {len(labels)} clips have a label it knows"
            )
    if real is not None and real.probabilities is not None and heard.probabilities is not None:
        values["kl"] = label_kl(real.probabilities, heard.probabilities).tolist()
    cells: Cells = {name: mean_of_defined(np.asarray(each)) for name, each in values.items()}
    if real is not None:
        cells["fad"] = frechet(embedder, real, heard, warn)
    return (
        {key_of(embedder, name): cell for name, cell in cells.items()},
        {key_of(embedder, name): each for name, each in values.items()},
    )


def frechet(embedder: Embedder, real: Embedded, heard: Embedded, warn: Warn) -> Interval | None:
    """Frechet distance of the same clips, as they were and decoded; None where they are too few.

    No kernel distance: it takes the two sets for independent, and a clip and its own copy bring it far below 0.
    """
    a, b = real.embeddings.astype(np.float64), heard.embeddings.astype(np.float64)
    n, dim = a.shape
    try:
        return set_figure(
            lambda clips: frechet_distance(a[clips], b[clips]),
            (n,),
            dim + 1,
            frechet_rounds(dim),
            RANGES["fad"],
        )
    except InputError as error:
        warn(f"no FAD by {embedder.name}: {error}")
        return None


# -------------------------------------------------------------------------------------------------- intervals


def mean_of_defined(values: Array) -> Interval | None:
    """Mean of the values that are not NaN, with its interval; None where all are."""
    defined = values[~np.isnan(values)]
    return prompt_interval(defined) if len(defined) else None


def ratio(a: Array, b: Array) -> Interval:
    """Sum of a over sum of b, [n] each, with the interval over clips; without one for a single clip."""

    def of(clips: Index) -> float:
        return float(a[clips].sum() / b[clips].sum())

    return bootstrap(of, len(a)) if len(a) > 1 else Interval(of(np.arange(1)), math.nan, math.nan)
