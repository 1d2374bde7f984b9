"""`.ecdc` files, version 0: what the command line of the `encodec` package writes and reads. Big-endian:

    4 bytes   magic "ECDC"
    1 byte    format version, 0
    4 bytes   length H of the header
    H bytes   header, JSON: {"m": model, "al": samples, "nc": codebooks, "lm": entropy-coded or not}

and for each segment of the sound (24 kHz: there is one, the whole):

    4 bytes   at 48 kHz only: float32, what the segment's audio was divided by
    ...       codes, frame after frame, codebook after codebook within a frame: ten bits each, lowest bit first, the
              last byte padded with zeros

A file names a model and has no hash of its weights and no checksum: codes of another codec decode to noise. Files whose
codes are entropy-coded by the package's language model are refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from struct import Struct
from typing import Any

import torch

from audiogen.codec.tokens import TokenHeader, checked, pack, packed, read_parts, unpack, write_file
from audiogen.errors import InputError
from audiogen.interfaces import Segment

SUFFIX = ".ecdc"
MAGIC, VERSION = b"ECDC", 0
PREFIX, SCALE = Struct(">4sBI"), Struct(">f")
MAX_SAMPLES = 1 << 48  # 180 years: more is damage
# The codecs that a file can name. num_codebooks is the most that one has; num_samples is a placeholder.
MODELS = {
    "encodec_24khz": TokenHeader("encodec_24khz", "", 24000, 1, 1, 32, 1024, 320),
    "encodec_48khz": TokenHeader(
        "encodec_48khz", "", 48000, 2, 1, 16, 1024, 320,
        segment_samples=48000, stride_samples=47520, normalised=True,
    ),
}  # fmt: skip


def model_name(tokens: TokenHeader) -> str:
    """The name in a file for the codec that all codebooks of these tokens are of; InputError where there is none.

    By its sizes: a file says no more about its weights.
    """
    for name, model in MODELS.items():
        if replace(tokens, codec=name, identity="", num_samples=1) == model:
            return name
    raise InputError(
        f"codec {tokens.codec} ({tokens.sample_rate} Hz, {tokens.channels} channels, {tokens.num_codebooks} codebooks "
        f"of {tokens.codebook_size}) has no name in {SUFFIX} files, which are of {', '.join(MODELS)}; write .agtok "
        "instead"
    )


def read_header(path: str | Path) -> TokenHeader:
    """The header alone; InputError where the file is missing, another format, of a later version, or damaged there."""
    return _open(path, header_only=True)[0]


def read_ecdc(path: str | Path) -> tuple[TokenHeader, list[Segment]]:
    """A whole file: its header and segments, whose codes are [1, K, t] and scales [1] or None.

    Nothing larger than the file's own bytes is allocated. InputError where the file is missing, damaged or truncated.
    """
    header, data = _open(path)
    segments = []
    position = 0
    for index, num_frames in enumerate(header.segment_frames()):
        where = f"{path}: segment {index}"
        begin = position + (SCALE.size if header.normalised else 0)
        end = begin + -(-num_frames * header.num_codebooks * header.bits_per_code // 8)
        if end > len(data):
            raise InputError(
                f"{where}: truncated: its {num_frames} frames take {end - position} bytes, "
                f"{len(data) - position} are left"
            )
        scale = None
        if header.normalised:
            scale = torch.tensor(SCALE.unpack_from(data, position))
            if not (scale.isfinite() & (scale > 0)):
                raise InputError(
                    f"{where}: damaged: its scale is {scale.item()}; positive numbers are allowed"
                )
        codes = unpack(data[begin:end], header.num_codebooks, num_frames, header.bits_per_code)
        segments.append(Segment(torch.from_numpy(codes)[None], scale))
        position = end
    if position != len(data):
        raise InputError(f"{path}: damaged: {len(data) - position} bytes follow the last segment")
    return header, segments


def write_ecdc(path: str | Path, header: TokenHeader, segments: Iterable[Segment]) -> None:
    """Write a file, byte for byte as the `encodec` package does; it appears under its name when it is whole.

    header: its codec is one of `MODELS`. segments: of one sound (B = 1), or blocks of the codes of a sound in one
    piece. InputError where the format cannot hold header and segments.
    """
    stated = {"m": header.codec, "al": header.num_samples, "nc": header.num_codebooks, "lm": False}
    try:
        header = _parse(stated)
    except InputError as error:
        raise InputError(f"{path}: cannot be written: {error}") from None

    def parts() -> Iterator[bytes]:
        text = json.dumps(stated).encode()
        yield PREFIX.pack(MAGIC, VERSION, len(text)) + text
        pieces = checked(path, header, segments)
        if header.segment_samples is None:
            yield from packed(header, (codes for codes, _ in pieces))
        else:
            for codes, scale in pieces:  # each begins with a byte of its own
                yield (b"" if scale is None else SCALE.pack(scale)) + pack(codes, header.bits_per_code)

    write_file(path, parts())


def _open(path: str | Path, header_only: bool = False) -> tuple[TokenHeader, bytes]:
    """The header of a file, and what follows it."""
    advice = "decode it with the version of encodec that wrote it"
    _, text, data = read_parts(path, PREFIX, MAGIC, (VERSION,), advice, header_only)
    try:
        stated = json.loads(text)
        header, entropy_coded = _parse(stated), stated["lm"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:  # InputError is a ValueError
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(
            f"{path}: bad header: {reason}; the file is damaged or not for this program"
        ) from None
    if entropy_coded:
        raise InputError(
            f"{path} is coded with the language model of the encodec package, which is not supported: decode it with "
            "that package, or encode the sound again without --lm"
        )
    return header, data


def _parse(stated: dict[str, Any]) -> TokenHeader:
    """The keys of a header -> the tokens they mean."""
    name, num_samples, num_codebooks, entropy_coded = (stated[key] for key in ("m", "al", "nc", "lm"))
    if name not in MODELS:
        raise InputError(f"model {name!r:.40}; allowed: {', '.join(MODELS)}")
    model = MODELS[name]
    values: dict[str, Any] = {"num_samples": num_samples, "num_codebooks": num_codebooks}
    for (key, value), most in zip(values.items(), (MAX_SAMPLES, model.num_codebooks), strict=True):
        if type(value) is not int or not 1 <= value <= most:
            raise InputError(f"{key} {value!r:.40}; allowed: integers from 1 to {most}")
    if type(entropy_coded) is not bool:
        raise InputError(f"lm {entropy_coded!r:.40}; allowed: true, false")
    return replace(model, **values)
