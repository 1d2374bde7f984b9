"""`.ecdc` files, version 0: what the command line of the `encodec` package writes and reads. Big-endian:

    4 bytes   magic "ECDC"
    1 byte    format version, 0
    4 bytes   length H of the header
    H bytes   header, JSON: {"m": model, "al": samples, "nc": codebooks, "lm": entropy-coded or not}

and for each segment of the sound (24 kHz: there is one, the whole):

    4 bytes   at 48 kHz only: float32, what the segment's audio was divided by
    ...       codes, frame after frame, codebook after codebook within a frame: ten bits each, lowest bit first, the
              last byte padded with zeros; or, entropy-coded, what `entropy.ArithmeticEncoder` writes under the
              distributions of `ecdc_lm.EcdcLM`

Neither the weights nor the data are checked by the format. Plain codes of another codec decode to noise; the
arithmetic decoder notices that something differs (see `ArithmeticDecoder.finish`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import torch
from torch import Tensor

from audiogen.codec.container import pack, unpack
from audiogen.codec.ecdc_lm import EcdcLM, LMState, load_lm
from audiogen.codec.entropy import ArithmeticDecoder, ArithmeticEncoder, CodingError, cumulative
from audiogen.errors import InputError
from audiogen.files.checkpoint import write_bytes_atomic
from audiogen.interfaces import Codec, Segment

SUFFIX = ".ecdc"
MAGIC, VERSION = b"ECDC", 0
PREFIX, SCALE = Struct(">4sBI"), Struct(">f")
MAX_HEADER_BYTES = 1 << 16
MAX_SAMPLES = 1 << 48  # 180 years: more is damage
CODEBOOK_SIZE, BITS_PER_CODE = 1024, 10


@dataclass(frozen=True)
class EcdcModel:
    """What a name in a header stands for. Lengths are in samples at `sample_rate` Hz.

    segment_samples, stride_samples: pieces of that length begin that far apart; None where the sound is one piece.
    Each piece of a segmented model was divided by its loudness.
    """

    sample_rate: int
    channels: int
    max_codebooks: int
    hop_length: int = 320
    segment_samples: int | None = None
    stride_samples: int | None = None

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    def segment_frames(self, num_samples: int) -> Iterator[int]:
        """Frames of each segment of a sound, the last ones shorter."""
        # In whole numbers. The package's reader computes them in floating point, and for one length in 6000 (such as
        # 6720 samples) gets a frame too many: it fails on the files of its own writer, and so on ours.
        for start in range(0, num_samples, self.stride_samples or num_samples):
            yield -(-min(self.segment_samples or num_samples, num_samples - start) // self.hop_length)


MODELS = {
    "encodec_24khz": EcdcModel(24000, 1, 32),
    "encodec_48khz": EcdcModel(48000, 2, 16, segment_samples=48000, stride_samples=47520),
}


@dataclass(frozen=True)
class EcdcHeader:
    """model: a key of MODELS. num_samples: length of the sound at its rate. entropy_coded: by the language model."""

    model: str
    num_samples: int
    num_codebooks: int
    entropy_coded: bool

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"model {self.model!r:.40}; allowed: {', '.join(MODELS)}")
        for name, most in (("num_samples", MAX_SAMPLES), ("num_codebooks", self.settings.max_codebooks)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise InputError(f"{name} {value!r:.40}; allowed: integers from 1 to {most}")
        if type(self.entropy_coded) is not bool:
            raise InputError(f"lm {self.entropy_coded!r:.40}; allowed: true, false")

    @property
    def settings(self) -> EcdcModel:
        """Of its model."""
        return MODELS[self.model]

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.settings.sample_rate


@dataclass(frozen=True)
class EcdcFile:
    """A whole file; the segments' codes are [1, K, t], their scales [1] or None."""

    header: EcdcHeader
    segments: list[Segment]


def model_name(codec: Codec) -> str:
    """The name that stands for this codec in a file; InputError for a codec that is neither of the two.

    By its sizes: a file says no more of its weights.
    """
    for name, model in MODELS.items():
        rates = (codec.sample_rate, codec.channels, codec.hop_length, codec.segmented)
        if rates != (model.sample_rate, model.channels, model.hop_length, model.segment_samples is not None):
            continue
        if (codec.num_codebooks, codec.codebook_size) == (model.max_codebooks, CODEBOOK_SIZE):
            return name
    raise InputError(
        f"codec {codec.name} ({codec.sample_rate} Hz, {codec.channels} channels, {codec.num_codebooks} codebooks of "
        f"{codec.codebook_size}) is none that an {SUFFIX} file can name: {', '.join(MODELS)}; write .agtok instead"
    )


def read_header(path: str | Path) -> EcdcHeader:
    """The header alone; InputError where the file is missing, another format, of a later version, or damaged there."""
    try:
        with open(path, "rb") as file:
            return _header(path, file.read(PREFIX.size + MAX_HEADER_BYTES))[0]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def read_ecdc(path: str | Path, lm_file: str | Path | None = None) -> EcdcFile:
    """Read a file whole; nothing larger than the file's own bytes call for is allocated.

    lm_file: weights of the language model, which entropy-coded files need; others ignore it.
    Raises InputError where the file is missing, damaged or truncated, or was entropy-coded with other weights or on
    a machine that computes otherwise.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    header, position = _header(path, data)
    lm = _lm(path, header, lm_file) if header.entropy_coded else None
    segments = []
    for index, num_frames in enumerate(header.settings.segment_frames(header.num_samples)):
        where = f"{path}: segment {index}"
        scale = None
        if header.settings.segment_samples is not None:
            scale, position = _read_scale(data, position, where)
        if lm is None:
            codes, position = _read_plain(data, position, header.num_codebooks, num_frames, where)
        else:
            codes, position = _read_coded(data, position, header.num_codebooks, num_frames, lm, where)
        segments.append(Segment(codes[None], scale))
    if position != len(data):
        raise InputError(f"{path}: damaged: {len(data) - position} bytes follow the last segment")
    return EcdcFile(header, segments)


def write_ecdc(
    path: str | Path,
    model: str,
    num_samples: int,
    segments: Sequence[Segment],
    lm_file: str | Path | None = None,
) -> None:
    """Write a file, byte for byte as the `encodec` package does; it appears under its name when it is whole.

    segments: as `Codec.encode_segments` gives them for one sound (B = 1) of `num_samples`. lm_file: weights of the
    language model; the file is then smaller by a fifth or so, and decodes only with the same weights on a machine that
    computes alike. Raises InputError where model and segments are nothing that the format can hold.
    """
    num_codebooks = segments[0].codes.shape[1] if segments else 0
    try:
        header = EcdcHeader(model, num_samples, num_codebooks, lm_file is not None)
        _check_segments(header, segments)
    except InputError as error:
        raise InputError(f"{path} cannot be written: {error}") from None
    lm = None if lm_file is None else _lm(path, header, lm_file)
    stated = {"m": model, "al": num_samples, "nc": num_codebooks, "lm": header.entropy_coded}
    text = json.dumps(stated).encode()
    parts = [PREFIX.pack(MAGIC, VERSION, len(text)), text]
    for codes, scale in segments:
        if scale is not None:
            parts.append(SCALE.pack(float(scale)))
        row = codes[0].cpu()  # [K, t]
        parts.append(pack(row.numpy(), BITS_PER_CODE) if lm is None else _coded(row, lm, path))
    try:
        write_bytes_atomic(path, b"".join(parts))
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def _header(path: str | Path, data: bytes) -> tuple[EcdcHeader, int]:
    """The header at the beginning of a file, and where it ends."""
    if data[:4] != MAGIC:
        raise InputError(f"{path}: not an {SUFFIX} file (it does not begin with {MAGIC.decode()})")
    if len(data) < PREFIX.size:
        raise InputError(f"{path}: truncated after {len(data)} bytes")
    _, version, num_bytes = PREFIX.unpack_from(data)
    if version != VERSION:
        raise InputError(f"{path}: {SUFFIX} file of version {version}; this program reads version {VERSION}")
    end = PREFIX.size + num_bytes
    if num_bytes > MAX_HEADER_BYTES or end > len(data):
        raise InputError(f"{path}: truncated or damaged: the header of {num_bytes} bytes is not there")
    try:
        stated = json.loads(data[PREFIX.size : end])
        return EcdcHeader(*(stated[key] for key in ("m", "al", "nc", "lm"))), end
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # InputError is a ValueError
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: bad header: {reason}; the file is damaged or not for this program"
        ) from None


def _lm(path: str | Path, header: EcdcHeader, lm_file: str | Path | None) -> EcdcLM:
    """The language model that a file needs."""
    if lm_file is None:
        name = header.model.replace("encodec_", "encodec_lm_")
        raise InputError(
            f"{path} is entropy-coded and needs the weights of its language model: give {name}-*.th, or encode the "
            "sound again without it"
        )
    lm = load_lm(lm_file, header.settings.frame_rate)
    if lm.codebook_size != CODEBOOK_SIZE or lm.num_codebooks < header.num_codebooks:
        raise InputError(
            f"{lm_file} is for {lm.num_codebooks} codebooks of {lm.codebook_size}; {path} has {header.num_codebooks} "
            f"of {CODEBOOK_SIZE}"
        )
    return lm


def _read_scale(data: bytes, position: int, where: str) -> tuple[Tensor, int]:
    if position + SCALE.size > len(data):
        raise InputError(f"{where}: truncated: the file ends before its scale")
    (scale,) = SCALE.unpack_from(data, position)
    if not (math.isfinite(scale) and scale > 0):
        raise InputError(f"{where}: damaged: its scale is {scale}; positive numbers are allowed")
    return torch.tensor([scale]), position + SCALE.size


def _read_plain(
    data: bytes, position: int, num_codebooks: int, num_frames: int, where: str
) -> tuple[Tensor, int]:
    """-> codes [K, t] and where they end."""
    end = position + -(-num_frames * num_codebooks * BITS_PER_CODE // 8)
    if end > len(data):
        raise InputError(
            f"{where}: truncated: its {num_frames} frames take {end - position} bytes, {len(data) - position} are left"
        )
    return torch.from_numpy(unpack(data[position:end], num_codebooks, num_frames, BITS_PER_CODE)), end


def _read_coded(
    data: bytes, position: int, num_codebooks: int, num_frames: int, lm: EcdcLM, where: str
) -> tuple[Tensor, int]:
    """As `_read_plain`, entropy-coded."""
    decoder, state = ArithmeticDecoder(data, position), LMState()
    codes = torch.full((num_codebooks, 1), -1)
    frames = []  # grows as the bits allow: the number of frames is the header's claim
    try:
        for _ in range(num_frames):
            ends = cumulative(lm.step(codes, state)).tolist()
            codes = torch.tensor([[decoder.pull(row)] for row in ends])
            frames.append(codes)
        position = decoder.finish()
    except CodingError as error:
        raise InputError(
            f"{where} does not decode ({error}): it was made with other language model weights, on a machine or "
            "PyTorch that computes otherwise, or is damaged; decode it where it was made, or encode without the "
            "language model"
        ) from None
    return torch.cat(frames, 1), position


def _coded(codes: Tensor, lm: EcdcLM, path: str | Path) -> bytes:
    """Codes [K, t] of one segment, entropy-coded."""
    encoder, state = ArithmeticEncoder(), LMState()
    before = torch.full((len(codes), 1), -1)
    try:
        for frame in codes.split(1, 1):
            ends = cumulative(lm.step(before, state)).tolist()
            for symbol, row in zip(frame[:, 0].tolist(), ends, strict=True):
                encoder.push(symbol, row)
            before = frame
    except CodingError as error:
        raise InputError(f"{path} cannot be written: {error}; write it without the language model") from None
    return encoder.finish()


def _check_segments(header: EcdcHeader, segments: Sequence[Segment]) -> None:
    shapes = [(1, header.num_codebooks, t) for t in header.settings.segment_frames(header.num_samples)]
    if [tuple(segment.codes.shape) for segment in segments] != shapes:
        raise InputError(
            f"got {len(segments)} segments, the first one's codes {list(segments[0].codes.shape)}; "
            f"{header.num_samples} samples are {len(shapes)}, the first {list(shapes[0])}"
        )
    for codes, scale in segments:
        if codes.min() < 0 or codes.max() >= CODEBOOK_SIZE:
            raise InputError(
                f"codes lie in {int(codes.min())}..{int(codes.max())}; 0..{CODEBOOK_SIZE - 1} is allowed"
            )
        if (scale is not None) != (header.settings.segment_samples is not None):
            raise InputError(f"a segment's scale is {scale}; at 48 kHz a number is needed, at 24 kHz None")
