"""The token file: the codes of one clip, bit-packed, with all that is needed to turn them back into sound.

The idea is EnCodec's `.ecdc`; the model's hash and the checksum are new, so that damage or another codec is
an error and never noise. Layout, little-endian:

    4 bytes   magic "AGTK"
    1 byte    format version
    4 bytes   length H of the header
    H bytes   header, JSON, padded with spaces so that the number of samples can be filled in at the end
    ...       codes, frame after frame, codebook after codebook within a frame, `bits_per_code` bits each,
              lowest bit first, the last byte padded with zeros
    4 bytes   CRC-32 of the codes, then of everything before them
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from struct import Struct
from types import TracebackType
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from audiogen.errors import InputError

SUFFIX = ".agtok"
MAGIC = b"AGTK"
VERSION = 1
PREFIX = Struct("<4sBI")
CHECKSUM = Struct("<I")
MAX_HEADER_BYTES = 1 << 16
COUNT_DIGITS = 20  # room left in the header for the number of samples
FRAMES_PER_GROUP = 8  # eight frames fill whole bytes whatever the number of bits a code
BLOCK_FRAMES = 1 << 12


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its codes.

    codec, identity: name of the codec and hash of its weights; the name is a hint, the hash decides.
    sample_rate: Hz, of the codec. channels: of the codec's audio.
    num_samples: exact length of the clip at `sample_rate`; 0 while it is being written.
    num_codebooks: how many are stored, at most those that the codec has.
    source_sample_rate, source_num_samples: the recording before it was resampled, None where unknown.
    """

    codec: str
    identity: str
    sample_rate: int
    channels: int
    num_samples: int
    num_codebooks: int
    codebook_size: int
    hop_length: int
    source_sample_rate: int | None = None
    source_num_samples: int | None = None

    def __post_init__(self) -> None:
        for name in ("codec", "identity"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"token header: {name} is {getattr(self, name)!r}; it must be text")
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value is None and field.name.startswith("source_"):
                continue
            least = 0 if field.name == "num_samples" else 1
            if type(value) is not int or value < least:
                raise InputError(f"token header: {field.name} is {value!r}; allowed: integers from {least}")

    @property
    def num_frames(self) -> int:
        """T = ceil(num_samples / hop_length)."""
        return -(-self.num_samples // self.hop_length)

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
        return bandwidth_kbps(self.frame_rate, self.num_codebooks, self.codebook_size)

    @property
    def num_bytes(self) -> int:
        """Of the packed codes."""
        return -(-self.num_frames * self.num_codebooks * self.bits_per_code // 8)


def bandwidth_kbps(frame_rate: float, num_codebooks: int, codebook_size: int) -> float:
    """Thousand bits a second that the packed codes take."""
    return frame_rate * num_codebooks * (codebook_size - 1).bit_length() / 1000


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
            writer.add(codes)  # [K, t], any number of times
            writer.finish(num_samples)

    Leaving the block without `finish` leaves nothing behind, and an older file of that name as it was.
    """

    def __init__(self, path: str | Path, header: TokenHeader) -> None:
        self.path = Path(path)
        self.header = header
        self._num_frames = 0
        self._checksum = 0
        self._rest = np.empty((header.num_codebooks, 0), np.int64)
        self._temporary: Path | None = self.path.with_name(f".{uuid4().hex}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "wb")  # noqa: SIM115 (closed by finish or __exit__)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        self._header_bytes = len(_header_json(header)) + COUNT_DIGITS
        self._file.write(bytes(PREFIX.size + self._header_bytes))

    def add(self, codes: Tensor) -> None:
        """Codes [K, t] that follow those before; values outside 0..V-1 are a ValueError."""
        num_codebooks, size = self.header.num_codebooks, self.header.codebook_size
        if codes.dim() != 2 or codes.shape[0] != num_codebooks:
            raise ValueError(f"got codes of shape {tuple(codes.shape)}; expected [{num_codebooks}, t]")
        values = codes.detach().cpu().numpy().astype(np.int64)
        if values.size and not (values.min() >= 0 and values.max() < size):
            raise ValueError(f"codes lie in {values.min()}..{values.max()}; allowed is 0..{size - 1}")
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
        self._write(self._rest)
        start = PREFIX.pack(MAGIC, VERSION, self._header_bytes)
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
    with TokenWriter(path, header) as writer:
        writer.add(codes)
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
            if version != VERSION:
                raise InputError(f"{path}: token file of version {version}; this program reads {VERSION}")
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
    if start + header.num_bytes + CHECKSUM.size != size:
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
    return json.dumps({key: value for key, value in asdict(header).items() if value is not None}).encode()
