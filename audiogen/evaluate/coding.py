"""Codecs and Opus as rows of one table: clips go through each, timed, measured and embedded.

Every system gets the clips at its own rate and channels, as it would in use. What comes out is compared with the
originals at one common rate, in mono.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiogen import audio
from audiogen.codec.segmented import SegmentedCodec
from audiogen.codec.tokens import bandwidth_kbps
from audiogen.data.dataset import AnyClip, AudioDataset
from audiogen.errors import InputError
from audiogen.evaluate import opus
from audiogen.evaluate.embedders import Embedded, Embedder, embed_clips, join
from audiogen.evaluate.metrics import Interval, bootstrap, prompt_interval
from audiogen.evaluate.reconstruction import LONGEST_WINDOW, code_entropy, count_codes, measure
from audiogen.evaluate.report import REFERENCE, Column
from audiogen.evaluate.scores import ROUNDS, set_figure

T = TypeVar("T")
Counts = NDArray[np.int64]
Array = NDArray[np.float64]
Cells = dict[str, Any]  # of a row: figures by the keys of columns, and what only the JSON has

EMBED_CLIPS = 16  # decoded clips held for the embedders at a time
CACHE_MB = 512  # of decoded originals, for each sample rate

SYSTEM, CODEBOOKS, KBPS = "system", "codebooks", "kbps"
CARRIED, ENCODE, DECODE = "carried", "encode", "decode"
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


# ---------------------------------------------------------------------------------------------------- systems


class Coded(NamedTuple):
    """A clip after a system. audio [C, n] at the system's rate, n at least that of the clip; wall times in s.

    counts: of its codes [K, V]. num_bytes: of its file and of the packets in it. None where there are none.
    """

    audio: Tensor
    encode_s: float
    decode_s: float
    counts: Counts | None = None
    num_bytes: tuple[int, int] | None = None


@dataclass(frozen=True)
class System:
    """One row: clips [C, N] at `sample_rate` with `channels` go through `code`. kbps, frame_rate: of a codec."""

    name: str
    title: str
    sample_rate: int
    channels: int
    code: Callable[[Tensor], Coded]
    codebooks: int | None = None
    kbps: float | None = None
    frame_rate: float = 0.0


def codec_systems(name: str, codec: SegmentedCodec) -> list[System]:
    """A codec at every number of codebooks."""
    device = codec.device

    def system(count: int) -> System:
        def code(wave: Tensor) -> Coded:
            sound = wave[None].to(device)
            segments, encode_s = timed(lambda: list(codec.encode_stream([sound], count)), device)
            blocks, decode_s = timed(lambda: list(codec.decode_stream(segments, sound.shape[-1])), device)
            codes = torch.cat([segment.codes for segment in segments], -1)  # [1, K, T]
            decoded = torch.cat(blocks, -1)
            return Coded(decoded[0].cpu(), encode_s, decode_s, count_codes(codes, codec.codebook_size))

        title = f"{name}, {count} codebook{'s' if count > 1 else ''}"
        kbps = bandwidth_kbps(codec, count)
        return System(name, title, codec.sample_rate, codec.channels, code, count, kbps, codec.frame_rate)

    return [system(count) for count in range(1, codec.num_codebooks + 1)]


def opus_system(wanted_kbps: float, level: float, sample_rate: int) -> System:
    """Opus at a compression level."""
    cpu = torch.device("cpu")

    def code(wave: Tensor) -> Coded:
        sound, encode_s = timed(lambda: opus.encode(wave, sample_rate, level), cpu)
        decoded, decode_s = timed(lambda: opus.decode(sound, sample_rate, wave.shape[-1]), cpu)
        return Coded(decoded, encode_s, decode_s, None, (len(sound.data), sound.payload_bytes))

    return System("Opus", f"Opus, {wanted_kbps:g} kbps", sample_rate, 1, code)


def timed(function: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """The result and the wall seconds it took, a GPU's queue included."""
    began = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return result, time.perf_counter() - began


# ------------------------------------------------------------------------------------------------------ clips


class Originals:
    """The clips, read at any rate; iterating gives each as it is compared, and may be done again and again."""

    def __init__(self, clips: Sequence[AnyClip], sample_rate: int) -> None:
        self.clips, self.sample_rate = clips, sample_rate
        self._sets: dict[tuple[int, int], AudioDataset] = {}

    def read(self, index: int, sample_rate: int, channels: int) -> Tensor:
        """Clip `index` [C, N]; InputError, which names the file, for one that cannot be read."""
        key = (sample_rate, channels)
        if key not in self._sets:
            self._sets[key] = AudioDataset(self.clips, *key, cache_mb=CACHE_MB)
        return self._sets[key].item(index, 0, 0).audio

    def target(self, index: int) -> Tensor:
        """Clip `index` as it is compared: [1, N] at the common rate."""
        return self.read(index, self.sample_rate, 1)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.target, range(len(self.clips)))

    def check(self) -> list[str]:
        """Read every clip once: InputError for one that is damaged or too short; the keys of constant ones."""
        constant = []
        for clip, wave in zip(self.clips, self, strict=True):
            if wave.shape[-1] < LONGEST_WINDOW:
                raise InputError(
                    f"{clip.key} lasts {wave.shape[-1] / self.sample_rate:.3f} s; the distances need "
                    f"{LONGEST_WINDOW / self.sample_rate:.3f} s: leave the clip out"
                )
            if bool((wave == wave[:, :1]).all()):
                constant.append(clip.key)
        return constant


# -------------------------------------------------------------------------------------------------- measuring


@dataclass
class Measured:
    """What a system did to each of n clips.

    values: by metric [n], with duration_s, encode_s, decode_s, and of Opus file_bytes and packet_bytes. counts: of a
    codec's codes [K, V].
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    counts: list[Counts] = field(default_factory=list)

    def add(self, figures: Mapping[str, float]) -> None:
        """The next clip's values."""
        for name, value in figures.items():
            self.values.setdefault(name, []).append(value)


def send(
    system: System, originals: Originals, optional: Sequence[str], measured: Measured
) -> Iterator[Tensor]:
    """Every clip through the system, measured -> the decoded clips [1, N] at the common rate."""
    system.code(originals.read(0, system.sample_rate, system.channels))  # the first call sets up: not counted
    for index, clip in enumerate(originals.clips):
        wave = originals.read(index, system.sample_rate, system.channels)
        target = originals.target(index)
        coded = system.code(wave)
        decoded = audio.convert_channels(coded.audio[:, : wave.shape[-1]], 1)
        decoded = audio.resample(decoded, system.sample_rate, originals.sample_rate)[:, : target.shape[-1]]
        decoded = torch.nn.functional.pad(decoded, (0, target.shape[-1] - decoded.shape[-1]))
        try:
            distances = measure(decoded[None], target[None], originals.sample_rate, optional)
        except InputError as error:
            raise InputError(f"{system.title}, {clip.key}: {error}") from None
        measured.add({name: float(value) for name, value in distances.items()})
        duration_s = wave.shape[-1] / system.sample_rate
        measured.add({"duration_s": duration_s, "encode_s": coded.encode_s, "decode_s": coded.decode_s})
        if coded.counts is not None:
            measured.counts.append(coded.counts)
        if coded.num_bytes is not None:
            measured.add({"file_bytes": coded.num_bytes[0], "packet_bytes": coded.num_bytes[1]})
        yield decoded


def embed(
    clips: Iterator[Tensor], sample_rate: int, embedders: Sequence[Embedder], num_sounds: int
) -> tuple[list[Embedded], list[Tensor]]:
    """Clips [1, N] as they come -> their embeddings by each embedder, and the first few of them."""
    sounds: list[Tensor] = []
    parts: list[list[Embedded]] = [[] for _ in embedders]
    while some := list(islice(clips, EMBED_CLIPS)):
        sounds += some[: num_sounds - len(sounds)]
        for embedder, part in zip(embedders, parts, strict=True):
            part.append(embed_clips(embedder, some, sample_rate))
    return [join(part) for part in parts], sounds


# ----------------------------------------------------------------------------------------------------- a row


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

        def kbps(clips: Counts) -> float:
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


def mean_of_defined(values: Array) -> Interval | None:
    """Mean of the values that are not NaN, with its interval; None where all are."""
    defined = values[~np.isnan(values)]
    return prompt_interval(defined) if len(defined) else None


def ratio(a: Array, b: Array) -> Interval:
    """Sum of a over sum of b, [n] each, with the interval over clips; without one for a single clip."""

    def of(clips: Counts) -> float:
        return float(a[clips].sum() / b[clips].sum())

    return bootstrap(of, len(a)) if len(a) > 1 else Interval(of(np.arange(1)), math.nan, math.nan)
