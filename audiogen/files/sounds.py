"""Sound files as spans of frames, whatever their container: what libsndfile reads, and what it reads wrongly.

Four kinds of files hold more, or less, than libsndfile says, and are read here to their true end: MPEG audio
without a tag that has its length, several MP3 or Ogg sounds in one file, FLAC of unknown length. What it does
not read at all (AAC and ALAC in m4a, webm, wma, ...) is decoded by PyAV where that is installed (extra `av`).
"""

import errno
import functools
import io
import itertools
import mmap
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from audiogen.errors import InputError
from audiogen.files import remote, streams

MIN_RATE, MAX_RATE = 1_000, 768_000
MAX_CHANNELS = 64
MAX_SAMPLE = 2.0**32  # of float samples: full scale is 1; 2^31 where 32-bit numbers were stored as they are
# Of sound in a byte, at most: silence in FLAC takes 13 bytes for each 65535 frames, and is the smallest of all.
MAX_FRAMES_PER_BYTE = 1 << 13
UNKNOWN_FRAMES = 2**40  # libsndfile's count of a FLAC stream that does not say its length is above this
# A frame of layer III may use up to 511 bytes of frames before it (255 in MPEG 2), which libmpg123 does not care for
# when it seeks. The smallest, 8 kbit/s at 24 kHz, hold 11 bytes of sound: 24 frames before, and one that overlaps.
PREROLL = 25 * 1152
# libsndfile 1.2 lands in the wrong place when it seeks into the last page of a Vorbis stream, or a second time
# (libsndfile issue 885). A page holds at most 255 packets of, in practice, 1024 frames.
VORBIS_LAST_PAGE = 255 * 1024
BLOCK_FRAMES = 1 << 16  # read at a time, where only the number of frames matters

Read = Callable[[int, int], NDArray[np.float32]]  # frames [start, stop) -> [frames, channels]


class Sound(NamedTuple):
    """An open sound file. `read` takes spans that move forward, and seeks where they do not."""

    sample_rate: int
    channels: int
    num_frames: int
    read: Read


@contextmanager
def open_sound(path: str | os.PathLike[str]) -> Iterator[Sound]:
    """An open, checked sound file. What cannot be read, or ends before its sound does, is an `InputError`."""
    try:
        source = _Source(remote.fetch(str(path)) if remote.is_remote(path) else os.fspath(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        yield from _open_sound(path, source)
    except InputError:
        source.check(path)
        raise
    source.check(path)


class _Source(io.FileIO):
    """An open file for libsndfile, to which a fault in reading is the end of the file. fault: the first one."""

    fault: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        """-> the number of bytes; 0 after a fault: this is called from C."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            self.fault = self.fault or error
            return 0

    def check(self, path: str | os.PathLike[str]) -> None:
        """Raise InputError where there was a fault: it is behind whatever else was found."""
        if self.fault is not None:
            reason = f"cannot be read: {self.fault.strerror}; see whether its disk is sound"
            raise InputError(f"{path}: {reason}") from self.fault


def _open_sound(path: str | os.PathLike[str], source: _Source) -> Iterator[Sound]:
    with ExitStack() as stack:
        raw = stack.enter_context(io.BufferedReader(source))
        size = os.fstat(raw.fileno()).st_size
        if not size:
            raise InputError(f"{path}: the file is empty")
        try:
            readers = _readers(raw, path)
        except (soundfile.SoundFileError, TypeError) as error:  # TypeError: headerless formats want a rate
            sound = _decoded(path, raw, reason_of(error), stack)
        else:
            file, read, num_frames = readers[0].file, *_joined(readers)
            sound = Sound(file.samplerate, file.channels, num_frames, read)
        if not MIN_RATE <= sound.sample_rate <= MAX_RATE:
            raise InputError(
                f"{path}: sample rate {sound.sample_rate} Hz, allowed are {MIN_RATE} to {MAX_RATE}; resave the file"
            )
        if sound.channels > MAX_CHANNELS:
            raise InputError(f"{path}: {sound.channels} channels, allowed are 1 to {MAX_CHANNELS}")
        if sound.num_frames <= 0:
            raise InputError(f"{path}: holds no samples")
        if sound.num_frames > MAX_FRAMES_PER_BYTE * size:
            raise InputError(
                f"{path}: damaged, {size} bytes do not hold the {sound.num_frames} frames of its header"
            )
        yield sound


def _is_cut(file: soundfile.SoundFile, data: mmap.mmap) -> bool:
    """Whether a file ends early where libsndfile says nothing: WAV and AIFF (it notes so in its log) and Ogg."""
    if file.format == "OGG":  # the last page must be whole and carry the end-of-stream flag (RFC 3533)
        page = data[max(0, data.rfind(b"OggS")) :]
        segments = page[26] if len(page) > 26 else 0
        return len(page) < 27 + segments + sum(page[27 : 27 + segments]) or not page[5] & 4
    lengths = re.search(r"(?:data|SSND) : (\d+) \(should be (\d+)\)", file.extra_info)
    # Recorders that write to a pipe leave the largest number, or 0, where the length belongs: that is no damage.
    return lengths is not None and int(lengths[2]) < int(lengths[1]) < 0x7FFF0000


def reason_of(error: Exception) -> str:
    """What libsndfile or ffmpeg says of a file, without a full stop."""
    text = str(getattr(error, "error_string", "") or getattr(error, "strerror", "") or error)
    return text.rstrip(".") or type(error).__name__


class _File(soundfile.SoundFile):
    """A file read forward: soundfile seeks after each block that it reads, and MP3 decoders then start afresh."""

    def seekable(self) -> bool:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what libmpg123 writes to standard error of frames whose predecessors a seek left out, naming no file."""
    with open(os.devnull, "wb") as nothing:
        try:
            kept = os.dup(2)
        except OSError:  # standard error is closed
            yield
            return
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class _Reader:
    """Reads spans of source frames that move forward; where two overlap, the frames are kept, not sought again."""

    def __init__(self, file: "_File", path: str | os.PathLike[str], num_frames: int | None = None) -> None:
        self.file, self.path = file, path
        self.num_frames: int = num_frames or file.frames
        self.position = 0  # of the file
        # the frames before position
        self.kept: NDArray[np.float32] = np.zeros((0, file.channels), np.float32)

    def __call__(self, start: int, stop: int) -> NDArray[np.float32]:
        if not self.position - len(self.kept) <= start <= self.position:
            self._seek(start)
            self.position, self.kept = start, self.kept[:0]
        overlap = self.kept[len(self.kept) - (self.position - start) :]
        self.kept = np.concatenate([overlap, self._read(stop - self.position)])
        self.position = stop
        return self.kept

    def _seek(self, frame: int) -> None:
        position = frame
        mpeg = self.file.subtype.startswith("MPEG_LAYER")
        if self.file.subtype == "VORBIS":
            position = min(frame, max(0, self.num_frames - VORBIS_LAST_PAGE))
        elif mpeg:
            position = max(0, frame - PREROLL)
        seekable = soundfile.SoundFile.seekable(self.file)
        if not seekable:  # as GSM in WAV: from the beginning again
            source, position = self.file.name, 0
            source.seek(0)
            self.file = _File(source)
        with _quiet() if mpeg else nullcontext():
            try:
                if seekable:
                    self.file.seek(position)
            except soundfile.SoundFileError as error:
                raise self._damaged(error) from error
            for done in range(position, frame, BLOCK_FRAMES):
                self._read(min(frame - done, BLOCK_FRAMES))

    def _damaged(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: damaged ({reason_of(error)}); copy or convert it again")

    def _read(self, frames: int) -> NDArray[np.float32]:
        try:
            block = self.file.read(frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise self._damaged(error) from error
        if len(block) < frames:
            missing = frames - len(block)
            raise InputError(
                f"{self.path}: truncated or damaged, {missing} of {self.num_frames} frames missing"
            )
        return _checked(block, self.path)


def _checked(block: NDArray[np.float32], path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Samples of a file as they are; InputError where some cannot be of a sound."""
    if not -MAX_SAMPLE <= block.min(initial=0) <= block.max(initial=0) <= MAX_SAMPLE:  # nor is NaN
        kind = "beyond any sound" if np.isfinite(block).all() else "that are not finite (NaN or infinity)"
        raise InputError(f"{path}: holds samples {kind}; they lie in [-1, 1]; convert it again")
    return block


class MpegSpans(NamedTuple):
    """Where the frames of an MPEG file lie, in bytes, without those that hold a tag, and the samples of each."""

    spans: list[tuple[int, int]]
    samples: int


def _readers(raw: BinaryIO, path: str | os.PathLike[str]) -> list[_Reader]:
    """The readers of the sounds that a file holds, one after the other; nearly always one."""
    data = _mapped(raw)
    stat = os.fstat(raw.fileno())
    version = os.fspath(path), stat.st_size, stat.st_mtime_ns
    if streams.is_mpeg(data) and (spans := _mpeg_spans(*version)):
        # libsndfile guesses the length from the size, and reads no further: the size is made large enough.
        file = _File(streams.Spans(data, spans.spans, streams.MAX_RATIO * len(data)))
        return [_Reader(file, path, len(spans.spans) * spans.samples)]
    links = _ogg_links(*version) if data[:4] == b"OggS" else ()
    if len(links) < 2:  # the open file, not its name: libsndfile then goes by the content alone
        files = [_File(raw)]
        if (
            files[0].format == "AU"
        ):  # else its first samples are those after the header, not those that it names
            files[0].seek(0)
    else:
        files = [_File(streams.Spans(data, [link])) for link in links]
    if _is_cut(files[0], data):
        raise InputError(f"{path}: truncated, the file ends before its sound does; copy it again")
    kinds = sorted({(file.samplerate, file.channels) for file in files})
    if len(kinds) > 1:
        raise InputError(
            f"{path}: sounds of several kinds joined, {kinds[0][0]} Hz with {kinds[0][1]} channels and "
            f"{kinds[1][0]} Hz with {kinds[1][1]}; convert them one by one"
        )
    return [
        _Reader(file if file.frames < UNKNOWN_FRAMES else _with_length(file, data), path) for file in files
    ]


def _with_length(file: _File, data: mmap.mmap) -> _File:
    """A FLAC stream of unknown length, decoded once, with its length written into its header in memory.

    The length is the last 36 bits of bytes 21 to 25 (RFC 9639, section 8.2); 0 there stands for unknown.
    """
    frames = sum(iter(lambda: len(file.read(BLOCK_FRAMES, dtype="float32")), 0))
    header = bytearray(data[:26])
    header[21:26] = (int.from_bytes(header[21:26], "big") | frames).to_bytes(5, "big")
    return _File(streams.Spans(data, [(0, len(data))], head=bytes(header)))


def _mapped(raw: BinaryIO) -> mmap.mmap:
    return mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ)


# A walk takes 6 us a frame, 0.8 s for an hour: it is made once for all parts of a file.
@functools.lru_cache(maxsize=256)
def _ogg_links(path: str, size: int, changed_ns: int) -> list[tuple[int, int]]:
    with open(path, "rb") as raw, _mapped(raw) as data:
        return streams.ogg_links(data)


@functools.lru_cache(maxsize=256)
def _mpeg_spans(path: str, size: int, changed_ns: int) -> MpegSpans | None:
    """The frames of an MPEG file in which libsndfile would see fewer, or none to speak of; None where it is right."""
    with open(path, "rb") as raw, _mapped(raw) as data:
        walk = streams.mpeg_frames(data)
        start, frame = next(walk, (0, None))
        if frame is None:
            return None
        tag = streams.tag_at(data, start)
        # An ID3v1 tag of 128 bytes may follow what the tag in the first frame counts; other sounds are longer.
        if tag and tag[1] and len(data) - start - tag[1] <= 128:
            return None
        found = [(at, at + each.size) for at, each in itertools.chain([(start, frame)], walk)]
        spans = [span for span in found if streams.tag_at(data, span[0]) is None]
        return None if tag and tag[0] >= len(spans) else MpegSpans(spans, frame.samples)


def _joined(readers: Sequence[_Reader]) -> tuple[Read, int]:
    """One reader of several sounds, one after the other, and its number of frames."""
    ends = list(itertools.accumulate(reader.num_frames for reader in readers))

    def read(start: int, stop: int) -> NDArray[np.float32]:
        starts = [end - reader.num_frames for reader, end in zip(readers, ends, strict=True)]
        return np.concatenate(
            [
                reader(max(0, start - first), min(end, stop) - first)
                for reader, first, end in zip(readers, starts, ends, strict=True)
                if start < end and stop > first
            ]
        )

    return readers[0] if len(readers) == 1 else read, ends[-1]


# The containers of sound and of films with sound that ffmpeg may take a file for: none that names other files.
CONTAINERS = (
    "aac,ac3,aiff,amr,asf,avi,caf,eac3,flac,flv,loas,matroska,mov,mp3,mpeg,mpegts,nistsphere,ogg,tta,wav,wv"
)


def _decoded(path: str | os.PathLike[str], raw: BinaryIO, reason: str, stack: ExitStack) -> Sound:
    """The first sound of a file that libsndfile refuses, decoded by PyAV as a whole into a temporary file."""
    refusal = f"{path}: not a sound file that can be read ({reason}); convert it, as in: ffmpeg -i IN OUT.wav"
    try:
        import av  # an optional package
    except ImportError:
        raise InputError(
            f"{refusal} (or: pip install '.[av]' in the checkout, which reads m4a, webm, wma and more)"
        ) from None
    raw.seek(0)
    spool = stack.enter_context(tempfile.TemporaryFile())
    try:
        given: Any = {"container_options": {"protocol_whitelist": "", "format_whitelist": CONTAINERS}}
        if int(av.__version__.partition(".")[0]) < 19:  # later ones keep titles that are not UTF-8
            given["metadata_errors"] = "ignore"
        container = stack.enter_context(av.open(raw, **given))
        stream = next(iter(container.streams.audio), None)
        if stream is None:
            raise InputError(f"{path}: holds no sound")
        if stream.codec_context is None:
            raise InputError(f"{refusal}; nothing decodes its sound")
        rate, channels = stream.rate, stream.codec_context.channels
        if not rate or not channels:
            raise InputError(f"{refusal}; {rate} Hz, {channels} channels")
        resampler = av.AudioResampler(format="flt", layout=stream.layout, rate=rate)
        for frame in itertools.chain(container.decode(stream), [None]):
            for packed in resampler.resample(frame):
                spool.write(packed.to_ndarray().tobytes())
        spool.flush()
    except InputError:
        raise
    except Exception as error:  # of a damaged file, PyAV raises any of a dozen kinds
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # of the temporary file
        raise InputError(f"{refusal}; {reason_of(error)}") from error
    num_frames = os.fstat(spool.fileno()).st_size // (4 * channels)
    if not num_frames:
        raise InputError(f"{path}: holds no samples")
    samples = np.memmap(spool, np.float32, "r", shape=(num_frames, channels))

    def read(start: int, stop: int) -> NDArray[np.float32]:
        return _checked(np.array(samples[start:stop]), path)

    return Sound(rate, channels, num_frames, read)
