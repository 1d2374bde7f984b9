"""Audio files and waveforms: load, stream, save, resample, channels.

Files are read by soundfile, rates are changed by soxr. A waveform is float32 `[C, N]`, nominally in [-1, 1].

Any part of a file is bit-identical to the same part of the whole: resampling works on blocks of a fixed grid,
each with enough context on both sides for the filter, so `load(path, 16000)[:, a:b]`, a load of only that
part and the joined blocks of `stream` agree exactly. (MP3 is the exception, its decoder rounds the last bit
by where it started.)
"""

import io
import itertools
import logging
import math
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiogen.errors import InputError, hold_interrupts
from audiogen.files.sounds import MAX_RATE, MIN_RATE, Read, Sound, open_sound, reason_of
from audiogen.files.tags import Tagged, Tags, wav_chunks
from audiogen.files.writing import replacing, storing
from audiogen.interfaces import check_samples

log = logging.getLogger(__name__)

MAX_LOAD_SAMPLES = 1_000_000_000  # 4 GB of float32, 17 hours of 16 kHz mono; longer sounds are for `stream`
SAVE_SAMPLES = 1 << 16  # written at a time: longer pieces crash the Vorbis encoder
RESERVE_BYTES = 1 << 20  # more than an encoder makes of SAVE_SAMPLES, and what it holds back until the end
SAVE_FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MOST_RATES = {"flac": 655_350, "ogg": 200_000}  # Hz; libFLAC's and libvorbis's limits


class AudioInfo(NamedTuple):
    """What a file's header says."""

    sample_rate: int
    channels: int
    num_frames: int
    duration_s: float


# ---------------------------------------------------------------------------------------------------- reading


def info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header. Raises InputError for what is no sound file, holds no samples, or is out of the limits."""
    with open_sound(path) as sound:
        return AudioInfo(
            sound.sample_rate, sound.channels, sound.num_frames, sound.num_frames / sound.sample_rate
        )


class _Reader:
    """An open file at a rate and channel count, None for its own, read in parts that move forward.

    rate: Hz of the samples that it gives. total: how many there are.
    """

    def __init__(
        self, sound: Sound, path: str | os.PathLike[str], sample_rate: int | None, channels: int | None
    ) -> None:
        self.sound = sound
        self.path = path
        self.channels = channels or sound.channels
        self.rate = sample_rate or sound.sample_rate
        self.total = resampled_length(sound.num_frames, sound.sample_rate, self.rate)

    def part(self, start: int, stop: int) -> Tensor:
        """Samples [start, stop) -> [C, stop - start]."""
        sound = self.sound
        span = _resample_span(sound.read, sound.num_frames, sound.sample_rate, self.rate, start, stop)
        try:
            return convert_channels(torch.from_numpy(np.ascontiguousarray(span.T)), self.channels)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None


def load(
    path: str | os.PathLike[str],
    sample_rate: int | None = None,
    channels: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
) -> tuple[Tensor, int]:
    """Load a sound, or only the part asked for -> (audio float32 [C, N], its sample rate in Hz).

    sample_rate and channels: None keeps the file's. start_s and duration_s are rounded to samples of the
    result; a part that runs over the end of the file is cut there. Raises InputError, one line that names the
    file, for a file that cannot be read, is damaged, holds samples that are not finite, or ends before
    start_s.
    """
    with open_sound(path) as sound:
        reader = _Reader(sound, path, sample_rate, channels)
        rate, total = reader.rate, reader.total
        start = round(start_s * rate)
        stop = total if duration_s is None else min(total, start + round(duration_s * rate))
        if not 0 <= start < total or stop <= start:
            length = "" if duration_s is None else f" of {duration_s:g} s"
            raise InputError(
                f"{path}: a part{length} from {start_s:g} s is not in a file of {total / rate:g} s"
            )
        if (stop - start) * sound.channels > MAX_LOAD_SAMPLES:
            length_s = (stop - start) / rate
            raise InputError(f"{path}: {length_s:g} s are too much to load at once; ask for a part of it")
        return reader.part(start, stop), rate


def stream(
    path: str | os.PathLike[str],
    sample_rate: int | None = None,
    channels: int | None = None,
    block_s: float = 10.0,
) -> Iterator[Tensor]:
    """Yield a file of any length in blocks [C, n] of block_s (the last is shorter); joined they equal `load`."""
    with open_sound(path) as sound:
        reader = _Reader(sound, path, sample_rate, channels)
        step = max(1, round(block_s * reader.rate))
        for start in range(0, reader.total, step):
            yield reader.part(start, min(reader.total, start + step))


# ------------------------------------------------------------------------------------------ rate and channels


def resampled_length(num_frames: int, from_rate: int, to_rate: int) -> int:
    """Length after resampling: ceil(num_frames * to_rate / from_rate), so one sample stays at least one."""
    return -(-num_frames * to_rate // from_rate)


# soxr's HQ filter reaches 100 samples of the lower rate to either side before it falls below 1e-7.
RESAMPLE_CONTEXT = 256
RESAMPLE_BLOCK = 4096


def _resample_span(
    read: Read, num_frames: int, from_rate: int, to_rate: int, start: int, stop: int
) -> NDArray[np.float32]:
    """Samples [start, stop) at to_rate of a sound of num_frames at from_rate -> [stop - start, C].

    The sound is cut into blocks that are whole numbers of samples at both rates; each is resampled on its own
    with context around it. A sample's value therefore depends on its place in the file, never on what was
    asked for.
    """
    if from_rate == to_rate:
        return read(start, stop)
    divisor = math.gcd(from_rate, to_rate)
    up, down = to_rate // divisor, from_rate // divisor  # `down` source frames last as long as `up` results
    low = min(up, down)
    block = -(-RESAMPLE_BLOCK // low)
    context = -(-RESAMPLE_CONTEXT // low)
    pieces = []
    for k in range(start // (up * block), -(-stop // (up * block))):
        first = max(0, k * block - context)  # in units of `down` frames
        last = (k + 1) * block + context
        source = read(first * down, min(num_frames, last * down))
        if num_frames < last * down:  # the sound ends here: what follows is silence
            source = np.pad(source, ((0, last * down - num_frames), (0, 0)))
        result = soxr.resample(source, from_rate, to_rate, quality="HQ")
        low_edge = max(start, k * block * up) - first * up
        high_edge = min(stop, (k + 1) * block * up) - first * up
        pieces.append(result[low_edge:high_edge])
    return np.concatenate(pieces)


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Change the sample rate (Hz) of audio [..., N] -> [..., ceil(N * to_rate / from_rate)], without gradient."""
    for rate in (from_rate, to_rate):
        if not MIN_RATE <= rate <= MAX_RATE:
            raise InputError(f"sample rate {rate} Hz, allowed are {MIN_RATE} to {MAX_RATE} Hz")
    num_frames = audio.shape[-1]
    if from_rate == to_rate or num_frames == 0:
        return audio
    check_samples(audio, "the sound")
    flat = audio.detach().to("cpu", torch.float32).reshape(-1, num_frames).numpy().T
    length = resampled_length(num_frames, from_rate, to_rate)
    result = _resample_span(lambda a, b: flat[a:b], num_frames, from_rate, to_rate, 0, length).T
    return torch.from_numpy(np.ascontiguousarray(result)).reshape(*audio.shape[:-1], length).to(audio.device)


def convert_channels(audio: Tensor, channels: int) -> Tensor:
    """[C, N] -> [channels, N]: to mono is the mean, from mono is a copy; other changes are an InputError."""
    have = audio.shape[-2]
    if have == channels:
        return audio
    if channels == 1:
        return audio.mean(-2, keepdim=True)
    if have == 1:
        return audio.expand(*audio.shape[:-2], channels, audio.shape[-1]).clone()
    raise InputError(
        f"{have} channels cannot be made {channels}; convert the sound to mono or to {channels} channels"
    )


# ---------------------------------------------------------------------------------------------------- writing


def below_full_scale(sound: Tensor) -> Tensor:
    """A sound [C, N] whose peak is past full scale turned down to it, not cut off; others as they are."""
    return sound / max(1.0, float(sound.abs().max()))


def check_writable(kind: str, sample_rate: int) -> None:
    """InputError unless sounds of this rate (Hz) can be written in a format of `SAVE_FORMATS`.

    From a table: libsndfile 1.2 damages its memory where it refuses a rate of Ogg.
    """
    if kind == "mp3" and sample_rate not in MP3_RATES:
        raise InputError(
            f"mp3 has no sample rate {sample_rate} Hz; allowed are {', '.join(map(str, MP3_RATES))}; or choose wav"
        )
    if sample_rate > (most := MOST_RATES.get(kind, MAX_RATE)):
        raise InputError(
            f"{kind} has sample rates up to {most} Hz, not {sample_rate}; choose a lower one, or wav"
        )


def save(
    path: str | os.PathLike[str],
    audio: Tensor | Iterable[Tensor],
    sample_rate: int,
    keep_begun: bool = False,
    overwrite: bool = True,
    tags: Tags | None = None,
) -> Path:
    """Write audio [C, N], or blocks [C, n] of a long sound, and return the path; the file appears whole or not at all.

    The suffix decides: .wav (16 bit), .flac, .ogg (Vorbis) or .mp3. Samples beyond [-1, 1] are clipped, and a warning
    says how many; samples that are not finite are refused, and without `overwrite` a file that exists. What the
    file system refuses is a `StorageError`.

    keep_begun: where the disk is full in the middle, the file is the sound up to there, whole, and the error says so.
    tags: the file's metadata, as `Provenance.tags` gives it for generated sounds.
    """
    target = Path(path)
    kind = target.suffix.lstrip(".").lower()
    if kind not in SAVE_FORMATS:
        raise InputError(f"{target}: format {kind!r}, allowed are {', '.join(SAVE_FORMATS)}")
    blocks = iter([audio] if isinstance(audio, Tensor) else audio)
    first = next(blocks, None)
    if first is None or first.dim() != 2 or 0 in first.shape:
        got = "nothing" if first is None else f"a sound of shape {list(first.shape)}"
        raise InputError(f"{target}: cannot write {got}, expected [channels, samples], at least one of each")
    channels = first.shape[0]
    coding = {"subtype": SAVE_FORMATS[kind], "format": kind.upper()}
    over = total = 0
    with replacing(target, overwrite=overwrite) as temporary, ExitStack() as stack:
        reserve = None
        if keep_begun:
            reserve = stack.enter_context(tempfile.TemporaryFile(dir=target.parent, buffering=0))
            reserve.write(bytes(RESERVE_BYTES))
        sink = stack.enter_context(_Sink(temporary, reserve))
        try:
            tagged = Tagged(sink, kind, tags)
            with ExitStack() as inner:
                with hold_interrupts():
                    file = inner.enter_context(_Encoder(tagged, "w", sample_rate, channels, **coding))
                    for name, text in tagged.strings.items():
                        setattr(file, name, text)
                for block in itertools.chain([first], blocks):
                    samples = block.detach().to("cpu", torch.float32)
                    if not torch.isfinite(samples).all():
                        raise InputError(f"{target}: some samples are not finite (NaN or infinity)")
                    over += int((samples.abs() > 1).sum())
                    total += samples.shape[-1]
                    for piece in samples.clamp(-1, 1).split(SAVE_SAMPLES, dim=-1):
                        file.write(piece.T.numpy())
                    if sink.fault is not None:
                        break
        except soundfile.SoundFileError as error:
            what = f"{channels} channels at {sample_rate} Hz"
            raise InputError(f"{target}: {what} cannot be written as {kind} ({reason_of(error)})") from error
        tagged.finish()
        if sink.fault is not None and not keep_begun:
            raise sink.fault
    if sink.fault is not None:
        kept = f"{sink.fault.strerror} (the {total / sample_rate:.1f} s up to there are kept)"
        with storing(target):
            raise OSError(sink.fault.errno, kept) from sink.fault
    if over:
        log.warning("%s: %d of %d samples beyond full scale were clipped", target, over, channels * total)
    return target


def pcm16(sound: Tensor) -> bytes:
    """A sound [C, n] as samples of 16 bits, little-endian, channels in turn; clipped to full scale."""
    samples = (sound.detach().cpu().clamp(-1, 1) * 32767).round().to(torch.int16)
    return samples.T.contiguous().numpy().astype("<i2", copy=False).tobytes()


def wav_header(
    sample_rate: int, channels: int, num_samples: int | None = None, tags: Tags | None = None
) -> bytes:
    """The beginning of a WAV file of 16 bits. num_samples: None where the length is open, and players read on."""
    form = struct.pack("<HHIIHH", 1, channels, sample_rate, 2 * channels * sample_rate, 2 * channels, 16)
    size = None if num_samples is None else 2 * channels * num_samples
    more = b"" if tags is None else wav_chunks(tags)
    whole, data = (struct.pack("<I", 0xFFFFFFFF if size is None else size + n) for n in (36 + len(more), 0))
    return b"RIFF" + whole + b"WAVEfmt " + struct.pack("<I", len(form)) + form + more + b"data" + data


class _Encoder(soundfile.SoundFile):
    """Signals wait while libsndfile calls the sink."""

    def write(self, data: np.ndarray) -> None:
        with hold_interrupts():
            super().write(data)

    def close(self) -> None:
        with hold_interrupts():
            super().close()


class _Sink(io.FileIO):
    """A new file for libsndfile, which reports no fault of its last writes, and never which fault it was.

    fault: the first one. reserve: a file that is emptied then, so that what is begun can be finished on a full disk.
    """

    def __init__(self, path: Path, reserve: IO[bytes] | None) -> None:
        super().__init__(path, "x+")
        self.reserve = reserve
        self.fault: OSError | None = None

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """-> the number of bytes, also after a fault: `save` looks for it, and soundfile asserts that none is left."""
        left = memoryview(data)
        while left:
            try:
                left = left[super().write(left) :]
            except OSError as error:  # not raised here: this is called from C
                self.fault = self.fault or error
                if self.reserve is None:
                    break
                self.reserve.truncate(0)
                self.reserve = None
        return len(data)
