"""Token files of either format, by the suffix of their name: our own and the encodec package's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from audiogen.codec import ecdc, tokens
from audiogen.codec.tokens import TokenHeader
from audiogen.interfaces import Segment

FORMATS = {"agtok": tokens.SUFFIX, "ecdc-v0": ecdc.SUFFIX}


def is_ecdc(path: Path) -> bool:
    """By the name, so that the message about a damaged file speaks of the format it was meant to have."""
    return path.suffix.lower() == ecdc.SUFFIX


def read(path: Path) -> tuple[TokenHeader, Iterable[Segment]]:
    """The header and the segments with B = 1, or blocks of a clip in one piece; InputError names a bad file."""
    return ecdc.read_ecdc(path) if is_ecdc(path) else tokens.read_tokens(path)


def read_header(path: Path) -> TokenHeader:
    """The header; our own files are checked to the last byte."""
    return ecdc.read_header(path) if is_ecdc(path) else tokens.read_header(path)


def write(path: Path, header: TokenHeader, segments: Iterable[Segment]) -> None:
    """Write a whole file or, where `segments` raises, none."""
    (ecdc.write_ecdc if is_ecdc(path) else tokens.write_tokens)(path, header, segments)
