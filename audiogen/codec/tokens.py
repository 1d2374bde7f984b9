"""The token file: the codes of one clip, bit-packed, with all that is needed to turn them back into sound.

The idea is EnCodec's `.ecdc`; the model's hash and the checksum are new, so that damage or another codec is
an error and never noise. Layout, little-endian:

    4 bytes   magic "AGTK"
    1 byte    format version
    4 bytes   length H of the header
    H bytes   header, JSON, padded with 20 spaces
    ...       codes, frame after frame, codebook after codebook within a frame, `bits_per_code` bits each,
              lowest bit first, the last byte padded with zeros
    ...       where the header says `normalised`: a float32 for each segment, what its audio was divided by
    4 bytes   CRC-32 of codes and scales, then of everything before them

Version 2 is of codecs that work on segments of `segment_samples` which begin every `stride_samples`; their codes
follow one another without a gap. All other files are of version 1.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import torch
from numpy.typing import NDArray

from audiogen.config import NotNegative, Positive, build, check_ranges
from audiogen.errors import InputError
from audiogen.files.writing import replacing
from audiogen.interfaces import Segment

SUFFIX = ".agtok"
MAGIC = b"AGTK"
VERSION, SEGMENTED_VERSION = 1, 2  # of the file format: without segments, and with
PREFIX = Struct("<4sBI")
CHECKSUM = Struct("<I")
MAX_HEADER_BYTES = 1 << 16
PADDING = 20  # spaces after the header; files had them from the beginning
FRAMES_PER_GROUP = 8  # eight frames fill whole bytes whatever the number of bits a code
BLOCK_FRAMES = 1 << 12  # that are unpacked at a time: memory stays near that of the file
SCALE = np.dtype("<f4")


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its codes.

    codec, identity: name of the codec and hash of its weights; the name is a hint, the hash decides.
    sample_rate: Hz, of the codec. channels: of the codec's audio.
    num_samples: exact length of the clip at `sample_rate`.
    num_codebooks: how many are stored, at most those that the codec has.
    source_sample_rate, source_num_samples: of the recording before it was resampled; None where it is not recorded.
    segment_samples, stride_samples: of a codec that works on segments; None of one that takes the clip as a whole.
    normalised: each segment was divided by its loudness, and has its scale in the file.
    source_key, source_crc: folder and name of the recording, and the CRC-32 of its file; older files have neither.
    """

    codec: str
    identity: str
    sample_rate: Positive
    channels: Positive
    num_samples: Positive
    num_codebooks: Positive
    codebook_size: Positive
    hop_length: Positive
    source_sample_rate: Positive | None = None
    source_num_samples: Positive | None = None
    segment_samples: Positive | None = None
    stride_samples: Positive | None = None
    normalised: bool = False
    source_key: str | None = None
    source_crc: NotNegative | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        segment, stride = self.segment_samples or 1, self.stride_samples or 1
        paired = (self.segment_samples is None) == (self.stride_samples is None)
        if not paired or not stride <= segment <= 2 * stride + 1:  # half of an odd number is rounded down
            raise InputError(
                f"segment_samples is {self.segment_samples}, stride_samples {self.stride_samples}; allowed: both or "
                "neither, a stride of half a segment to a whole one"
            )
        if self.normalised and self.segment_samples is None:
            raise InputError("normalised goes with segment_samples only")

    @property
    def named_codec(self) -> str:
        """Its name and, where the file has it, its hash."""
        return f"{self.codec} ({self.identity})" if self.identity else self.codec

    @property
    def version(self) -> int:
        """Of the file format."""
        return VERSION if self.segment_samples is None else SEGMENTED_VERSION

    @property
    def num_segments(self) -> int:
        """One begins every `stride_samples`, as long as there is sound."""
        return -(-self.num_samples // (self.stride_samples or self.num_samples))

    def segment_frames(self, first: int = 0) -> Iterator[int]:
        """ceil(samples / hop_length) of each segment from `first` on; those that end with the clip are shorter."""
        length = self.segment_samples or self.num_samples
        stride = self.stride_samples or self.num_samples
        for start in range(first * stride, self.num_samples, stride):
            yield -(-min(length, self.num_samples - start) // self.hop_length)

    @property
    def num_frames(self) -> int:
        """T, summed over the segments; ceil(num_samples / hop_length) where the clip is one piece."""
        length = self.segment_samples or self.num_samples
        stride = self.stride_samples or self.num_samples
        # Not by a loop over all segments: the numbers may come from a forged header. The short ones are two or three,
        # as segments overlap by half at most.
        num_whole = max(0, (self.num_samples - length) // stride + 1)
        return num_whole * -(-length // self.hop_length) + sum(self.segment_frames(num_whole))

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def bits_per_code(self) -> int:
        """ceil(log2 V)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bandwidth_kbps(self) -> float:
        """Thousand bits a second that the packed codes take."""
        return self.frame_rate * self.num_codebooks * self.bits_per_code / 1000

    @property
    def num_bytes(self) -> int:
        """Of the packed codes."""
        return -(-self.num_frames * self.num_codebooks * self.bits_per_code // 8)


def pack(codes: np.ndarray, bits_per_code: int) -> bytes:
    """Codes [K, T] of any integer type -> bytes; T a multiple of 8 leaves no padding."""
    values = np.ascontiguousarray(codes.T, dtype="<u4").reshape(-1, 1)  # [T * K, 1]
    bits = np.unpackbits(values.view(np.uint8), axis=1, count=bits_per_code, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(
    data: np.ndarray | bytes, num_codebooks: int, num_frames: int, bits_per_code: int, first: int = 0
) -> NDArray[np.int64]:
    """The inverse of `pack`, of `num_frames` from frame `first` on: -> int64 [K, T]."""
    frame_bits = num_codebooks * bits_per_code
    start, end = first * frame_bits, (first + num_frames) * frame_bits
    packed = np.frombuffer(data, np.uint8)[start // 8 : -(-end // 8)]
    bits = np.unpackbits(packed, bitorder="little")[start % 8 : start % 8 + num_frames * frame_bits]
    weights = 1 << np.arange(bits_per_code, dtype=np.int64)
    values = bits.reshape(num_frames * num_codebooks, bits_per_code) @ weights  # [T * K]
    return np.ascontiguousarray(values.reshape(num_frames, num_codebooks).T)


def write_tokens(path: str | Path, header: TokenHeader, segments: Iterable[Segment]) -> None:
    """Write a clip from its segments, or from blocks of the codes of a clip in one piece, all with B = 1.

    It is packed as it comes and appears under its name when it is whole; where `segments` raises, or does not fit the
    header (InputError), an older file of that name stays.
    """
    # What is unset is left out, so that files of codecs without segments stay as they were before there were any.
    stated = {key: value for key, value in asdict(header).items() if value is not None and value is not False}
    text = json.dumps(stated).encode() + b" " * PADDING
    start = PREFIX.pack(MAGIC, header.version, len(text)) + text
    scales = []

    def blocks() -> Iterator[NDArray[np.int64]]:  # each [K, t]
        for codes, scale in checked(path, header, segments):
            scales.extend([] if scale is None else [scale])
            yield codes

    def parts() -> Iterator[bytes]:
        yield start
        checksum = 0
        for data in packed(header, blocks()):
            checksum = zlib.crc32(data, checksum)
            yield data
        data = np.array(scales, SCALE).tobytes()
        yield data + CHECKSUM.pack(zlib.crc32(start, zlib.crc32(data, checksum)))

    write_file(path, parts())


def packed(header: TokenHeader, blocks: Iterable[NDArray[np.int64]]) -> Iterator[bytes]:
    """Codes of successive frames, blocks [K, t] -> their bytes without a gap, padded at the end only."""
    rest = np.empty((header.num_codebooks, 0), np.int64)  # frames that do not fill a group yet
    for codes in blocks:
        block = np.concatenate([rest, codes], axis=1)
        whole = block.shape[1] // FRAMES_PER_GROUP * FRAMES_PER_GROUP
        yield pack(block[:, :whole], header.bits_per_code)
        rest = block[:, whole:]
    yield pack(rest, header.bits_per_code)


def checked(
    path: str | Path, header: TokenHeader, segments: Iterable[Segment]
) -> Iterator[tuple[NDArray[np.int64], float | None]]:
    """Codes [K, t] and scale of each segment or block for a file; InputError where they are not those of the header."""
    wrong = f"{path}: cannot be written:"
    frames = []
    for codes, scale in segments:
        if codes.dim() != 3 or codes.shape[:2] != (1, header.num_codebooks):
            raise InputError(
                f"{wrong} got codes of shape {list(codes.shape)}; expected [1, {header.num_codebooks}, t]"
            )
        values = codes[0].detach().cpu().numpy().astype(np.int64)
        if values.size and not (values.min() >= 0 and values.max() < header.codebook_size):
            raise InputError(
                f"{wrong} codes lie in {values.min()}..{values.max()}; 0..{header.codebook_size - 1} is allowed"
            )
        if (scale is not None) != header.normalised:
            raise InputError(
                f"{wrong} a segment's scale is {scale}; {'a number' if header.normalised else 'None'} is needed"
            )
        frames.append(values.shape[1])
        yield values, None if scale is None else float(scale)
    given = [sum(frames)] if header.segment_samples is None else frames
    wanted = list(header.segment_frames())
    if given != wanted:
        raise InputError(
            f"{wrong} got {len(given)} segments of {given[:3]} frames; {header.num_samples} samples are "
            f"{len(wanted)} of {wanted[:3]}"
        )


def write_file(path: str | Path, parts: Iterable[bytes]) -> None:
    """Write a file part by part; it appears under its name when it is whole."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(parts)


def read_header(path: str | Path) -> TokenHeader:
    """Check the whole file and return its header.

    InputError if it is missing, not a token file, of a later version, truncated, or damaged anywhere.
    """
    return _open(path)[0]


def read_tokens(path: str | Path) -> tuple[TokenHeader, Iterator[Segment]]:
    """The header and the segments with B = 1, or for a clip in one piece its codes block by block.

    The whole file is checked before this returns (errors as `read_header`): no code is from a damaged file.
    """
    header, data = _open(path)
    return header, _segments(path, header, data)


def _segments(path: str | Path, header: TokenHeader, data: bytes) -> Iterator[Segment]:
    """The codes and scales of a checked file."""
    scales = np.frombuffer(data, SCALE, offset=header.num_bytes).astype("f4")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise InputError(f"{path}: a scale is not a positive number; encode the clip again")
    first = 0
    for index, segment_frames in enumerate(header.segment_frames()):
        end = first + segment_frames
        while first < end:
            num_frames = end - first if header.segment_samples else min(BLOCK_FRAMES, end - first)
            block = unpack(data, header.num_codebooks, num_frames, header.bits_per_code, first)
            if block.max() >= header.codebook_size:
                raise InputError(f"{path}: code {block.max()} in a codebook of {header.codebook_size}")
            scale = torch.from_numpy(scales[index : index + 1]) if header.normalised else None
            yield Segment(torch.from_numpy(block)[None], scale)
            first += num_frames


def _open(path: str | Path) -> tuple[TokenHeader, bytes]:
    """The header of a file that was checked to its last byte, and its codes and scales."""
    version, text, data = read_parts(path, PREFIX, MAGIC, (VERSION, SEGMENTED_VERSION), "update audiogen")
    data, checksum = data[: -CHECKSUM.size], data[-CHECKSUM.size :]
    start = PREFIX.pack(MAGIC, version, len(text)) + text
    if CHECKSUM.pack(zlib.crc32(start, zlib.crc32(data))) != checksum:
        raise InputError(f"{path}: damaged or truncated (wrong checksum); encode the clip again")
    try:
        header = build(TokenHeader, json.loads(text))
    except (ValueError, RecursionError) as error:  # InputError is one
        raise InputError(f"{path}: bad header: {error}") from error
    if header.version != version:
        raise InputError(
            f"{path}: bad header: version {version} with segment_samples {header.segment_samples}"
        )
    if header.num_bytes + (SCALE.itemsize * header.num_segments if header.normalised else 0) != len(data):
        raise InputError(
            f"{path}: {len(data)} bytes do not hold the {header.num_frames} frames of its header"
        )
    return header, data


def read_parts(
    path: str | Path,
    prefix: Struct,
    magic: bytes,
    versions: tuple[int, ...],
    advice: str,
    header_only: bool = False,
) -> tuple[int, bytes, bytes]:
    """Version, header and the rest of a file that begins with (magic, version, length of the header).

    advice: what to do with a file of another version. header_only: the rest is not read, and empty.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(prefix.size)
            if start[:4] != magic:
                raise InputError(f"{path}: not a token file (it does not begin with {magic.decode()})")
            if len(start) < prefix.size:
                raise InputError(f"{path}: truncated after {len(start)} bytes")
            _, version, num_bytes = prefix.unpack(start)
            if version not in versions:
                raise InputError(
                    f"{path}: token file of version {version}; this program reads "
                    f"{' and '.join(map(str, versions))}: {advice}"
                )
            text = file.read(min(num_bytes, MAX_HEADER_BYTES))
            if len(text) < num_bytes:
                raise InputError(
                    f"{path}: truncated or damaged: the header of {num_bytes} bytes is not there"
                )
            return version, text, b"" if header_only else file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
