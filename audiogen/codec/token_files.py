"""Token files of both formats behind one reader and one writer: our own and the encodec package's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from audiogen.codec import container, ecdc
from audiogen.codec.header import TokenHeader
from audiogen.interfaces import Codec, Segment

FORMATS = {"agtok": container.SUFFIX, "ecdc-v0": ecdc.SUFFIX}


def is_ecdc(path: Path) -> bool:
    """By the name: a damaged file should be told as what it was meant to be."""
    return path.suffix.lower() == ecdc.SUFFIX


def read(path: Path, lm_file: Path | None = None) -> tuple[TokenHeader, Iterable[Segment]]:
    """The header and the segments with B = 1, or blocks of a clip in one piece; InputError names a bad file.

    lm_file: the weights of the language model that some `.ecdc` files are coded with.
    """
    if not is_ecdc(path):
        return container.read_segments(path)
    file = ecdc.read_ecdc(path, lm_file)
    return _of_ecdc(file.header), file.segments


def read_header(path: Path) -> TokenHeader:
    """The header; our own files are checked to the last byte."""
    return _of_ecdc(ecdc.read_header(path)) if is_ecdc(path) else container.read_header(path)


def write(path: Path, header: TokenHeader, segments: Iterable[Segment], codec: Codec) -> None:
    """A file in the format that its name says; whole or not at all, also where `segments` raises."""
    if not is_ecdc(path):
        container.write_segments(path, header, segments)
        return
    if header.segment_samples is None:
        segments = [Segment(torch.cat([segment.codes for segment in segments], dim=-1))]
    ecdc.write_ecdc(path, ecdc.model_name(codec), header.num_samples, list(segments))


def _of_ecdc(header: ecdc.EcdcHeader) -> TokenHeader:
    """As a header of ours; such a file names a model and has no hash of it."""
    model = header.settings
    return TokenHeader(
        codec=header.model,
        identity="",
        sample_rate=model.sample_rate,
        channels=model.channels,
        num_samples=header.num_samples,
        num_codebooks=header.num_codebooks,
        codebook_size=ecdc.CODEBOOK_SIZE,
        hop_length=model.hop_length,
        segment_samples=model.segment_samples,
        stride_samples=model.stride_samples,
        normalised=model.segment_samples is not None,
    )
