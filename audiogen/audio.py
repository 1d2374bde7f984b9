"""Audio files and waveforms: load, stream, save, resample, channels.

Files are read by soundfile, rates are changed by soxr. A waveform is float32 `[C, N]`, nominally in [-1, 1].

Any part of a file is bit-identical to the same part of the whole: resampling works on blocks of a fixed grid,
each with enough context on both sides for the filter, so `load(path, 16000)[:, a:b]`, a load of only that
part and the joined blocks of `stream` agree exactly. (MP3 is the exception, its decoder rounds the last bit
by where it started.)
"""

import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from audiogen.errors import InputError
from audiogen.files.writing import replacing

log = logging.getLogger(__name__)

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # the largest page
MAX_LOAD_SAMPLES = 1_000_000_000  # 4 GB of float32, 17 hours of 16 kHz mono; longer sounds are for `stream`
SAVE_SAMPLES = 1 << 16  # written at a time: longer pieces crash the Vorbis encoder
SAVE_FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}

Read = Callable[[int, int], NDArray[np.float32]]  # source frames [start, stop) -> [frames, channels]


class AudioInfo(NamedTuple):
    """What a file's header says."""

    sample_rate: int
    channels: int
    num_frames: int
    duration_s: float


# ---------------------------------------------------------------------------------------------------- reading


@contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[soundfile.SoundFile]:
    """An open, checked sound file. What libsndfile refuses, and what it lets pass by mistake, is an `InputError`."""
    try:
        raw = open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    with raw:
        if not raw.read(1):
            raise InputError(f"{path}: the file is empty")
        raw.seek(0)
        try:  # the open file, not its name: libsndfile then goes by the content alone, whatever the suffix
            file = soundfile.SoundFile(raw)
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless formats want a rate
            raise InputError(
                f"{path}: not a sound file that can be read ({_reason(error)}); convert it, as in: ffmpeg -i IN OUT.wav"
            ) from error
        with file:
            if not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise InputError(
                    f"{path}: sample rate {file.samplerate} Hz, allowed are {MIN_RATE} to {MAX_RATE}; resave the file"
                )
            if file.channels > MAX_CHANNELS:
                raise InputError(f"{path}: {file.channels} channels, allowed are 1 to {MAX_CHANNELS}")
            if file.frames <= 0:
                raise InputError(f"{path}: holds no samples")
            if _is_cut(file, path):
                raise InputError(f"{path}: truncated, the file ends before its sound does; copy it again")
            yield file


def _is_cut(file: soundfile.SoundFile, path: str | os.PathLike[str]) -> bool:
    """Whether a file ends early where libsndfile says nothing: WAV and AIFF (it notes so in its log) and Ogg."""
    if file.format == "OGG":  # the last page must be whole and carry the end-of-stream flag (RFC 3533)
        with open(path, "rb") as raw:
            raw.seek(max(0, os.path.getsize(path) - OGG_PAGE_BYTES))
            tail = raw.read()
        page = tail[tail.rfind(b"OggS") :]
        segments = page[26] if len(page) > 26 else 0
        return len(page) < 27 + segments + sum(page[27 : 27 + segments]) or not page[5] & 4
    lengths = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info)
    # Recorders that write to a pipe leave the largest number, or 0, where the length belongs: that is no damage.
    return lengths is not None and int(lengths[2]) < int(lengths[1]) < 0x7FFF0000


def _reason(error: Exception) -> str:
    text = str(getattr(error, "error_string", "") or error)
    return text.rstrip(".") or type(error).__name__


def info(path: str | os.PathLike[str]) -> AudioInfo:
    """Read the header. Raises InputError for what is no sound file, holds no samples, or is out of the limits."""
    with _open(path) as file:
        return AudioInfo(file.samplerate, file.channels, file.frames, file.frames / file.samplerate)


# libsndfile 1.2 lands in the wrong place when it seeks into the last page of a Vorbis stream, or a second time
# (libsndfile issue 885). A page holds at most 255 packets of, in practice, 1024 frames.
VORBIS_LAST_PAGE = 255 * 1024


class _Reader:
    """An open file at a rate and channel count, None for its own, read in parts that move forward.

    rate: Hz of the samples that it gives. total: how many there are.
    """

    def __init__(
        self,
        file: soundfile.SoundFile,
        path: str | os.PathLike[str],
        sample_rate: int | None,
        channels: int | None,
    ) -> None:
        self.file = file
        self.path = path
        self.channels = channels or file.channels
        self.rate = sample_rate or file.samplerate
        self.total = resampled_length(file.frames, file.samplerate, self.rate)
        self.position = 0  # of the file
        # the frames before position
        self.kept: NDArray[np.float32] = np.zeros((0, file.channels), np.float32)

    def part(self, start: int, stop: int) -> Tensor:
        """Samples [start, stop) -> [C, stop - start]."""
        span = _resample_span(self._frames, self.file.frames, self.file.samplerate, self.rate, start, stop)
        try:
            return convert_channels(torch.from_numpy(np.ascontiguousarray(span.T)), self.channels)
        except InputError as error:
            raise InputError(f"{self.path}: {error}") from None

    def _frames(self, start: int, stop: int) -> NDArray[np.float32]:
        """Source frames [start, stop) -> [frames, C]; where two calls overlap, they are kept, not sought again."""
        if not self.position - len(self.kept) <= start <= self.position:
            self._seek(start)
        overlap = self.kept[len(self.kept) - (self.position - start) :]
        self.kept = np.concatenate([overlap, self._read(stop - self.position)])
        self.position = stop
        return self.kept

    def _seek(self, frame: int) -> None:
        position = frame
        if self.file.subtype == "VORBIS":
            position = min(frame, max(0, self.file.frames - VORBIS_LAST_PAGE))
        self.file.seek(position)
        while position < frame:
            position += len(self._read(min(frame - position, 1 << 16)))
        self.position, self.kept = frame, self.kept[:0]

    def _read(self, frames: int) -> NDArray[np.float32]:
        try:
            block = self.file.read(frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise InputError(f"{self.path}: damaged ({_reason(error)}); copy or convert it again") from error
        if missing := frames - len(block):
            raise InputError(f"{self.path}: damaged, {missing} of {self.file.frames} frames are missing")
        if not np.isfinite(block).all():
            raise InputError(f"{self.path}: holds samples that are not finite (NaN or infinity)")
        return block


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
    with _open(path) as file:
        reader = _Reader(file, path, sample_rate, channels)
        rate, total = reader.rate, reader.total
        start = round(start_s * rate)
        stop = total if duration_s is None else min(total, start + round(duration_s * rate))
        if not 0 <= start < total or stop <= start:
            length = "" if duration_s is None else f" of {duration_s:g} s"
            raise InputError(
                f"{path}: a part{length} from {start_s:g} s is not in a file of {total / rate:g} s"
            )
        if (stop - start) * file.channels > MAX_LOAD_SAMPLES:
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
    with _open(path) as file:
        reader = _Reader(file, path, sample_rate, channels)
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


def save(path: str | os.PathLike[str], audio: Tensor | Iterable[Tensor], sample_rate: int) -> Path:
    """Write audio [C, N], or blocks [C, n] of a long sound, and return the path; the file appears whole or not at all.

    The suffix decides: .wav (16 bit), .flac, .ogg (Vorbis) or .mp3. Samples beyond [-1, 1] are clipped, and a warning
    says how many; samples that are not finite are refused.
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
    try:
        with (
            replacing(target) as temporary,
            soundfile.SoundFile(temporary, "w", sample_rate, channels, **coding) as file,
        ):
            for block in itertools.chain([first], blocks):
                samples = block.detach().to("cpu", torch.float32)
                if not torch.isfinite(samples).all():
                    raise InputError(f"{target}: some samples are not finite (NaN or infinity)")
                over += int((samples.abs() > 1).sum())
                total += samples.numel()
                for piece in samples.clamp(-1, 1).split(SAVE_SAMPLES, dim=-1):
                    file.write(piece.T.numpy())
    except soundfile.SoundFileError as error:
        raise InputError(
            f"{target}: {channels} channels at {sample_rate} Hz cannot be written as {kind} ({_reason(error)})"
        ) from error
    if over:
        log.warning("%s: %d of %d samples beyond full scale were clipped", target, over, total)
    return target
