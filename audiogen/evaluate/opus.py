"""Sounds through Opus, the reference of the codec tables. libsndfile writes it, as Ogg files in memory.

libsndfile takes no bitrate but a compression level: 0 aims at 256 kbps a channel, 1 at 6. The encoder's variable
bitrate then spends what the sound needs, often much less. So the bitrate is measured from the files, and the level
for a wanted one searched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor

from audiogen.audio import resample
from audiogen.errors import InputError

RATES = (8000, 12000, 16000, 24000, 48000)  # that Opus takes, Hz
LOWEST_KBPS, HIGHEST_KBPS = 6.0, 256.0  # a channel, at compression levels 1 and 0
NEAR = 0.01  # a bitrate within this share of the wanted one is good enough
MOST_TRIES = 8
WRITE_SAMPLES = 1 << 16  # at a time: libsndfile's Ogg encoders crash on much longer blocks


class OpusSound(NamedTuple):
    """One sound as an Opus file. payload_bytes: of its audio packets alone, without Ogg's pages and headers."""

    data: bytes
    payload_bytes: int


class OpusRate(NamedTuple):
    """A compression level and what it was measured to give over a set of sounds: bits of the files a second / 1000."""

    level: float
    kbps: float


def encode(wave: Tensor, sample_rate: int, level: float) -> OpusSound:
    """A sound [C, N] as an Opus file. A rate that Opus does not take is raised to the next one that it does."""
    rate = opus_rate(sample_rate)
    if not wave.isfinite().all() or wave.dim() != 2 or 0 in wave.shape:
        raise InputError(f"audio of shape {list(wave.shape)} for Opus must be [C, N], N >= 1, and finite")
    samples = resample(wave, sample_rate, rate).detach().cpu().float()
    file = io.BytesIO()
    with soundfile.SoundFile(
        file, "w", rate, samples.shape[0], subtype="OPUS", format="OGG", compression_level=level
    ) as writer:
        for block in samples.split(WRITE_SAMPLES, -1):
            writer.write(block.T.numpy())
    data = file.getvalue()
    return OpusSound(data, payload_bytes(data))


def decode(sound: OpusSound, sample_rate: int, num_samples: int) -> Tensor:
    """The audio [C, num_samples] of an Opus file, at sample_rate (Hz)."""
    samples, rate = soundfile.read(io.BytesIO(sound.data), dtype="float32", always_2d=True)
    audio = resample(torch.from_numpy(samples.T.copy()), rate, sample_rate)[:, :num_samples]
    return torch.nn.functional.pad(audio, (0, num_samples - audio.shape[-1]))


def opus_rate(sample_rate: int) -> int:
    """The lowest rate (Hz) that Opus takes and that loses nothing of sample_rate; 48 kHz above that."""
    return next((rate for rate in RATES if rate >= sample_rate), RATES[-1])


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
) -> OpusRate:
    """The compression level whose files come nearest to `kbps` over all the sounds [C, N], by up to 8 tries.

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
    return OpusRate(level_of(best), tried[best])


def level_of(kbps: float) -> float:
    """The compression level at which libsndfile asks the encoder for that bitrate a channel."""
    return 1 - (kbps - LOWEST_KBPS) / (HIGHEST_KBPS - LOWEST_KBPS)


def _kbps(waves: Iterable[Tensor], sample_rate: int, level: float) -> float:
    num_bytes, duration_s = 0, 0.0
    for wave in waves:
        num_bytes += len(encode(wave, sample_rate, level).data)
        duration_s += wave.shape[-1] / sample_rate
    if duration_s == 0:
        raise InputError("there is no sound to code with Opus")
    return num_bytes * 8 / duration_s / 1000
