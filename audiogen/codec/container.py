"""The token file: the codes of one clip, bit-packed, with all that is needed to turn them back into sound.

The idea is EnCodec's `.ecdc`; the model's hash and the checksum are new, so that damage or another codec is
an error and never noise. Layout, little-endian:

    4 bytes   magic "AGTK"
    1 byte    format version
    4 bytes   length H of the header
    H bytes   header, JSON, padded with spaces so that the number of samples can be filled in at the end
    ...       codes, frame after frame, codebook after codebook within a frame, `bits_per_code` bits each,
              lowest bit first, the last byte padded with zeros
    ...       where the header says `normalised`: a float32 for each segment, what its audio was divided by
    4 bytes   CRC-32 of codes and scales, then of everything before them

Version 2 is of codecs that work on segments of `segment_samples` which begin every `stride_samples`; their codes
follow one another without a gap. All other files are of version 1.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from struct import Struct
from types import TracebackType
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from audiogen.codec.header import SEGMENTED_VERSION, VERSION, TokenHeader
from audiogen.errors import InputError
from audiogen.interfaces import Segment

SUFFIX = ".agtok"
MAGIC = b"AGTK"
PREFIX = Struct("<4sBI")
CHECKSUM = Struct("<I")
MAX_HEADER_BYTES = 1 << 16
COUNT_DIGITS = 20  # room left in the header for the number of samples
FRAMES_PER_GROUP = 8  # eight frames fill whole bytes whatever the number of bits a code
BLOCK_FRAMES = 1 << 12
SCALE = np.dtype("<f4")


def pack(codes: np.ndarray, bits_per_code: int) -> bytes:
    """Codes [K, T] of any integer type -> bytes; T a multiple of 8 leaves no padding."""
    values = np.ascontiguousarray(codes.T, dtype=np.uint32).reshape(-1, 1)
    bits = (values >> np.arange(bits_per_code, dtype=np.uint32)) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


def unpack(data: bytes, num_codebooks: int, num_frames: int, bits_per_code: int) -> np.ndarray:
    """The inverse of `pack`: -> int64 [K, T]."""
    count = num_frames * num_codebooks
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits_per_code, bitorder="little")
    weights = 1 << np.arange(bits_per_code, dtype=np.int64)
    values = bits.reshape(count, bits_per_code) @ weights
    return np.ascontiguousarray(values.reshape(num_frames, num_codebooks).T)


class TokenWriter:
    """Writes one token file block by block; the file appears under its name when `finish` has succeeded.

        with TokenWriter(path, header) as writer:
            writer.add(codes)  # [K, t], any number of times; of a normalised codec one segment a time, with its scale
            writer.finish(num_samples)

    Leaving the block without `finish` leaves nothing behind, and an older file of that name as it was.
    """

    def __init__(self, path: str | Path, header: TokenHeader) -> None:
        self.path = Path(path)
        self.header = header
        self._num_frames = 0
        self._checksum = 0
        self._rest = np.empty((header.num_codebooks, 0), np.int64)
        self._scales: list[float] = []
        self._temporary: Path | None = self.path.with_name(f".{uuid4().hex}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by finish or __exit__)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        self._header_bytes = len(_header_json(header)) + COUNT_DIGITS
        self._file.write(bytes(PREFIX.size + self._header_bytes))

    def add(self, codes: Tensor, scale: float | None = None) -> None:
        """Codes [K, t] that follow those before; values outside 0..V-1 are a ValueError, as is a missing scale."""
        num_codebooks, size = self.header.num_codebooks, self.header.codebook_size
        if codes.dim() != 2 or codes.shape[0] != num_codebooks:
            raise ValueError(f"got codes of shape {tuple(codes.shape)}; expected [{num_codebooks}, t]")
        values = codes.detach().cpu().numpy().astype(np.int64)
        if values.size and not (values.min() >= 0 and values.max() < size):
            raise ValueError(f"codes lie in {values.min()}..{values.max()}; allowed is 0..{size - 1}")
        if (scale is not None) != self.header.normalised:
            raise ValueError(
                f"scale is {scale}; a number is expected where the header says normalised, else None"
            )
        self._scales += [] if scale is None else [scale]
        self._num_frames += values.shape[1]
        for start in range(0, values.shape[1], BLOCK_FRAMES):
            block = np.concatenate([self._rest, values[:, start : start + BLOCK_FRAMES]], axis=1)
            whole = block.shape[1] // FRAMES_PER_GROUP * FRAMES_PER_GROUP
            self._write(block[:, :whole])
            self._rest = block[:, whole:]

    def finish(self, num_samples: int) -> TokenHeader:
        """Write the rest and the header and give the file its name; `num_samples` are at the codec's rate."""
        header = replace(self.header, num_samples=num_samples)
        if num_samples < 1 or header.num_frames != self._num_frames:
            raise ValueError(f"{num_samples} samples are {header.num_frames} frames, not {self._num_frames}")
        if header.normalised and header.num_segments != len(self._scales):
            raise ValueError(
                f"{num_samples} samples are {header.num_segments} scales, not {len(self._scales)}"
            )
        self._write(self._rest)
        scales = np.array(self._scales, SCALE).tobytes()
        self._checksum = zlib.crc32(scales, self._checksum)
        self._file.write(scales)
        start = PREFIX.pack(MAGIC, header.version, self._header_bytes)
        start += _header_json(header).ljust(self._header_bytes)
        self._file.write(CHECKSUM.pack(zlib.crc32(start, self._checksum)))
        self._file.seek(0)
        self._file.write(start)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        assert self._temporary is not None
        os.replace(self._temporary, self.path)
        self._temporary = None
        self.header = header
        return header

    def _write(self, codes: np.ndarray) -> None:
        data = pack(codes, self.header.bits_per_code)
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.write(data)

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def write_tokens(path: str | Path, header: TokenHeader, codes: Tensor) -> None:
    """Write a whole clip, codes [K, T] with T = header.num_frames."""
    write_segments(path, header, [Segment(codes[None])])


def write_segments(path: str | Path, header: TokenHeader, segments: Iterable[Segment]) -> None:
    """Write a whole clip from segments or blocks of it with B = 1."""
    with TokenWriter(path, header) as writer:
        for codes, scale in segments:
            writer.add(codes[0], None if scale is None else float(scale[0]))
        writer.finish(header.num_samples)


def read_header(path: str | Path) -> TokenHeader:
    """Check the whole file, in bounded memory, and return its header.

    InputError if it is missing, not a token file, of a later version, truncated, or damaged anywhere.
    """
    header, _ = _open(path)
    return header


def read_tokens(path: str | Path) -> tuple[TokenHeader, Tensor]:
    """A whole clip: the header and int64 codes [K, T]. Errors as `read_header`."""
    header, blocks = read_blocks(path)
    return header, torch.cat(list(blocks), dim=1)


def read_blocks(path: str | Path, block_frames: int = BLOCK_FRAMES) -> tuple[TokenHeader, Iterator[Tensor]]:
    """The header and int64 codes [K, t] block by block.

    t is `block_frames` rounded up to a multiple of eight, but for the last block. The
    whole file is checked before this returns (errors as `read_header`): no block is from a damaged file.
    """
    header, start = _open(path)
    block_frames = -(-block_frames // FRAMES_PER_GROUP) * FRAMES_PER_GROUP

    def blocks() -> Iterator[Tensor]:
        with open(path, "rb") as file:
            file.seek(start)
            for frame in range(0, header.num_frames, block_frames):
                num_frames = min(block_frames, header.num_frames - frame)
                data = file.read(-(-num_frames * header.num_codebooks * header.bits_per_code // 8))
                codes = unpack(data, header.num_codebooks, num_frames, header.bits_per_code)
                if codes.max() >= header.codebook_size:
                    raise InputError(f"{path}: code {codes.max()} in a codebook of {header.codebook_size}")
                yield torch.from_numpy(codes)

    return header, blocks()


def read_segments(path: str | Path) -> tuple[TokenHeader, Iterator[Segment]]:
    """The header and the segments with B = 1, or for a clip in one piece its codes block by block.

    Errors as `read_blocks`.
    """
    header, blocks = read_blocks(path)
    if header.segment_samples is None:
        return header, (Segment(codes[None]) for codes in blocks)
    return header, _segments(path, header, blocks)


def _segments(path: str | Path, header: TokenHeader, blocks: Iterator[Tensor]) -> Iterator[Segment]:
    """Cut blocks [K, t] into the segments of a file."""
    scales = None
    if header.normalised:
        data = np.fromfile(
            path,
            SCALE,
            offset=os.path.getsize(path) - CHECKSUM.size - header.num_scale_bytes,
            count=header.num_segments,
        )
        if not (np.isfinite(data).all() and (data > 0).all()):
            raise InputError(f"{path}: a scale is not a positive number; encode the clip again")
        scales = torch.from_numpy(data.astype(np.float32))
    held = torch.empty(header.num_codebooks, 0, dtype=torch.int64)
    for index in range(header.num_segments):
        num_frames = header.segment_frames(index)
        while held.shape[1] < num_frames:
            held = torch.cat([held, next(blocks)], 1)
        yield Segment(held[None, :, :num_frames], None if scales is None else scales[index : index + 1])
        held = held[:, num_frames:]


def _open(path: str | Path) -> tuple[TokenHeader, int]:
    """The header of a file that was checked to its last byte, and where its codes start."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(PREFIX.size)
            if prefix[:4] != MAGIC:
                raise InputError(f"{path}: not a token file (it does not begin with {MAGIC.decode()})")
            if len(prefix) < PREFIX.size:
                raise InputError(f"{path}: truncated after {size} bytes")
            _, version, header_bytes = PREFIX.unpack(prefix)
            if version not in (VERSION, SEGMENTED_VERSION):
                raise InputError(
                    f"{path}: token file of version {version}; this program reads "
                    f"{VERSION} and {SEGMENTED_VERSION}: update audiogen"
                )
            start = PREFIX.size + header_bytes
            if header_bytes > MAX_HEADER_BYTES or start + CHECKSUM.size > size:
                raise InputError(f"{path}: truncated or damaged: the header ends beyond its {size} bytes")
            header_json = file.read(header_bytes)
            checksum = 0
            for offset in range(start, size - CHECKSUM.size, 1 << 20):
                checksum = zlib.crc32(file.read(min(1 << 20, size - CHECKSUM.size - offset)), checksum)
            if CHECKSUM.pack(zlib.crc32(prefix + header_json, checksum)) != file.read(CHECKSUM.size):
                raise InputError(f"{path}: damaged or truncated (wrong checksum); encode the clip again")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    header = _parse_header(path, header_json)
    if header.version != version:
        raise InputError(
            f"{path}: bad header: version {version} with segment_samples {header.segment_samples}"
        )
    if start + header.num_bytes + header.num_scale_bytes + CHECKSUM.size != size:
        raise InputError(f"{path}: {size} bytes do not hold the {header.num_frames} frames of its header")
    return header, start


def _parse_header(path: str | Path, data: bytes) -> TokenHeader:
    try:
        header = TokenHeader(**json.loads(data))
    except (ValueError, TypeError) as error:  # InputError is a ValueError
        raise InputError(f"{path}: bad header: {error}") from error
    if header.num_samples < 1:
        raise InputError(f"{path}: bad header: num_samples is {header.num_samples}; it must be at least 1")
    return header


def _header_json(header: TokenHeader) -> bytes:
    # What is unset is left out, so that files of other codecs stay as they were before there were segments.
    stated = {key: value for key, value in asdict(header).items() if value is not None and value is not False}
    return json.dumps(stated).encode()
