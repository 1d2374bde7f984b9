"""Token files of both formats behind one reader and one writer: our own and the encodec package's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from audiogen.codec import container, ecdc
from audiogen.codec.header import TokenHeader
from audiogen.interfaces import Segment

FORMATS = {"agtok": container.SUFFIX, "ecdc-v0": ecdc.SUFFIX}


def is_ecdc(path: Path) -> bool:
    """By the name: a damaged file should be told as what it was meant to be."""
    return path.suffix.lower() == ecdc.SUFFIX


def read(path: Path) -> tuple[TokenHeader, Iterable[Segment]]:
    """The header and the segments with B = 1, or blocks of a clip in one piece; InputError names a bad file."""
    return ecdc.read_ecdc(path) if is_ecdc(path) else container.read_segments(path)


def read_header(path: Path) -> TokenHeader:
    """The header; our own files are checked to the last byte."""
    return ecdc.read_header(path) if is_ecdc(path) else container.read_header(path)


def write(path: Path, header: TokenHeader, segments: Iterable[Segment], codec: str) -> None:
    """A file in the format that its name says; whole or not at all, also where `segments` raises.

    codec: the name of the codec in an `.ecdc` file.
    """
    if not is_ecdc(path):
        container.write_segments(path, header, segments)
        return
    if header.segment_samples is None:
        segments = [Segment(torch.cat([segment.codes for segment in segments], dim=-1))]
    ecdc.write_ecdc(path, codec, header.num_samples, list(segments))
