"""What clips go through, one system a row of the table: a codec at a number of codebooks, or Opus at a level.

Opus is the reference of the codec tables. libsndfile writes it, as Ogg files in memory. It takes no bitrate but a
compression level: 0 aims at 256 kbps a channel, 1 at 6. The encoder's variable bitrate then spends what the sound
needs, often much less. So the bitrate is measured from the files, and the level for a wanted one searched.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import soundfile
import torch
from torch import Tensor

from audiogen.audio import resample
from audiogen.codec.model import Codec as OwnCodec
from audiogen.codec.segmented import SegmentedCodec
from audiogen.data.dataset import AudioDataset
from audiogen.data.manifest import Clip
from audiogen.errors import InputError
from audiogen.evaluate.reconstruction import LONGEST_WINDOW, count_codes

T = TypeVar("T")

CPU = torch.device("cpu")
CACHE_MB = 512  # of decoded originals, for each sample rate
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)  # that Opus takes, Hz
LOWEST_KBPS, HIGHEST_KBPS = 6.0, 256.0  # a channel, at compression levels 1 and 0
NEAR = 0.01  # a bitrate within this share of the wanted one is good enough
MOST_TRIES = 8
WRITE_SAMPLES = 1 << 16  # at a time: libsndfile's Ogg encoders crash on much longer blocks


class Originals:
    """The clips, read at any rate; iterating gives each as it is compared, and may be done again and again."""

    def __init__(self, clips: Sequence[Clip], sample_rate: int) -> None:
        self.clips, self.sample_rate = clips, sample_rate
        self._at = cache(partial(AudioDataset, clips, cache_mb=CACHE_MB))  # by sample rate and channels

    def read(self, index: int, sample_rate: int, channels: int) -> Tensor:
        """Clip `index` [C, N]; InputError, which names the file, for one that cannot be read."""
        return self._at(sample_rate, channels).item(index, 0, 0).data

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
                lasts_s, needed_s = (n / self.sample_rate for n in (wave.shape[-1], LONGEST_WINDOW))
                raise InputError(f"{clip.key} lasts {lasts_s:.3f} s; the distances need {needed_s:.3f} s")
            if bool((wave == wave[:, :1]).all()):
                constant.append(clip.key)
        return constant


# ---------------------------------------------------------------------------------------------------- systems


class System(NamedTuple):
    """One row: clips [C, N] at `sample_rate` with `channels` go through `code`. kbps, frame_rate: of a codec.

    code gives audio [C, n] at the system's rate, n at least that of the clip, and what was measured: wall times
    encode_s and decode_s, and of a codec the counts of its codes [K, V], of Opus file_bytes and packet_bytes.
    """

    name: str
    title: str
    sample_rate: int
    channels: int
    code: Callable[[Tensor], tuple[Tensor, dict[str, Any]]]
    codebooks: int | None = None
    kbps: float | None = None
    frame_rate: float = 0.0


def codec_systems(name: str, codec: SegmentedCodec, beam: int = 1) -> list[System]:
    """A codec at every number of codebooks, and with all of them by a beam search, if it has that and beam is not 1."""
    device, header, inner = codec.device, codec.header, codec.codec

    def system(count: int, kbps: float, kept: int = 1) -> System:
        def code(wave: Tensor) -> tuple[Tensor, dict[str, Any]]:
            if isinstance(inner, OwnCodec):
                inner.beam = kept
            sound = wave[None].to(device)
            segments, encode_s = timed(lambda: list(codec.encode_stream([sound], count)), device)
            blocks, decode_s = timed(lambda: list(codec.decode_stream(segments, sound.shape[-1])), device)
            codes = torch.cat([segment.codes for segment in segments], -1)  # [1, K, T]
            counts = count_codes(codes, header.codebook_size)
            measured = {"encode_s": encode_s, "decode_s": decode_s, "counts": counts}
            return torch.cat(blocks, -1)[0].cpu(), measured

        row = name if kept == 1 else f"{name}, beam {kept}"
        title = f"{row}, {count} codebook{'s' if count > 1 else ''}"
        return System(row, title, header.sample_rate, header.channels, code, count, kbps, header.frame_rate)

    systems = [system(count, kbps) for count, kbps in enumerate(codec.bandwidths_kbps, 1)]
    if beam > 1 and header.num_codebooks > 1 and isinstance(inner, OwnCodec):
        systems.append(system(header.num_codebooks, codec.bandwidths_kbps[-1], beam))
    return systems


def opus_system(wanted_kbps: float, level: float, sample_rate: int) -> System:
    """Opus at a compression level."""

    def code(wave: Tensor) -> tuple[Tensor, dict[str, Any]]:
        file, encode_s = timed(lambda: encode_opus(wave, sample_rate, level))
        decoded, decode_s = timed(lambda: decode_opus(file, sample_rate, wave.shape[-1]))
        sizes = {"file_bytes": len(file), "packet_bytes": payload_bytes(file)}
        return decoded, {"encode_s": encode_s, "decode_s": decode_s} | sizes

    return System("Opus", f"Opus, {wanted_kbps:g} kbps", sample_rate, 1, code)


def timed(function: Callable[[], T], device: torch.device = CPU) -> tuple[T, float]:
    """The result and the wall seconds it took, a GPU's queue included."""
    began = time.perf_counter()
    result = function()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)  # not the current one
    return result, time.perf_counter() - began


# ------------------------------------------------------------------------------------------------------- Opus


def encode_opus(wave: Tensor, sample_rate: int, level: float) -> bytes:
    """A sound [C, N] as an Opus file. A rate that Opus does not take is raised to the next one that it does."""
    rate = opus_rate(sample_rate)
    samples = resample(wave, sample_rate, rate).detach().cpu().float()
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", rate, samples.shape[0], subtype="OPUS", format="OGG", compression_level=level
    ) as writer:
        for block in samples.split(WRITE_SAMPLES, -1):
            writer.write(block.T.numpy())
    return file.getvalue()


def decode_opus(file: bytes, sample_rate: int, num_samples: int) -> Tensor:
    """The audio [C, num_samples] of an Opus file, at sample_rate (Hz)."""
    samples, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    audio = resample(torch.from_numpy(samples.T.copy()), rate, sample_rate)[:, :num_samples]
    return torch.nn.functional.pad(audio, (0, num_samples - audio.shape[-1]))


def opus_rate(sample_rate: int) -> int:
    """The lowest rate (Hz) that Opus takes and that loses nothing of sample_rate; 48 kHz above that."""
    return next((rate for rate in OPUS_RATES if rate >= sample_rate), OPUS_RATES[-1])


def payload_bytes(data: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file (RFC 3533, RFC 7845): pages of headers have granule position 0."""
    total, place = 0, 0
    while place < len(data):
        if data[place : place + 4] != b"OggS":
            raise InputError(f"not an Ogg file: no page begins at byte {place}")
        num_segments = data[place + 26]
        size = sum(data[place + 27 : place + 27 + num_segments])
        if data[place + 6 : place + 14] != bytes(8):
            total += size
        place += 27 + num_segments + size
    return total


def find_level(
    waves: Iterable[Tensor], sample_rate: int, kbps: float, tried: dict[float, float] | None = None
) -> tuple[float, float]:
    """(compression level, kbps of its files), nearest to `kbps` over all the sounds [C, N], by up to 8 tries.

    waves is gone through once a try, so it may read its sounds anew. tried: what earlier searches over the same
    sounds measured, kbps by the bitrate that libsndfile asked of the encoder; this one uses it and adds to it.
    """
    if not 0 < kbps < math.inf:
        raise InputError(f"Opus at {kbps:g} kbps: give a bitrate above 0, such as 12")
    tried = {} if tried is None else tried
    asked = min(HIGHEST_KBPS, max(LOWEST_KBPS, kbps))
    for _ in range(MOST_TRIES):
        if asked not in tried:
            tried[asked] = _kbps(waves, sample_rate, level_of(asked))
        best = min(tried, key=lambda rate: (abs(tried[rate] - kbps), rate))
        if abs(tried[best] - kbps) <= NEAR * kbps:
            break
        above = min((rate for rate in tried if tried[rate] >= kbps), default=None)
        below = max((rate for rate in tried if tried[rate] < kbps), default=None)
        if above is not None and below is not None:
            share = (kbps - tried[below]) / (tried[above] - tried[below])
            asked = below + min(0.9, max(0.1, share)) * (above - below)
        else:  # a little further than in proportion: the encoder spends less and less of what it may
            asked = min(HIGHEST_KBPS, max(LOWEST_KBPS, best * (kbps / tried[best]) ** 1.25))
        if asked in tried:
            break  # an end of the scale
    return level_of(best), tried[best]


def level_of(kbps: float) -> float:
    """The compression level at which libsndfile asks the encoder for that bitrate a channel."""
    return 1 - (kbps - LOWEST_KBPS) / (HIGHEST_KBPS - LOWEST_KBPS)


def _kbps(waves: Iterable[Tensor], sample_rate: int, level: float) -> float:
    num_bytes, duration_s = 0, 0.0
    for wave in waves:
        num_bytes += len(encode_opus(wave, sample_rate, level))
        duration_s += wave.shape[-1] / sample_rate
    return num_bytes * 8 / duration_s / 1000
