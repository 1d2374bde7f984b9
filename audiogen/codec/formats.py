"""The formats of token files, and which functions read and write each; a file's name says its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from audiogen.codec import ecdc, tokens
from audiogen.codec.tokens import TokenHeader
from audiogen.interfaces import Segment


class Format(NamedTuple):
    """read_header checks as much as it reads: our own files to the last byte, the header of others."""

    read: Callable[[Path], tuple[TokenHeader, Iterable[Segment]]]
    read_header: Callable[[Path], TokenHeader]
    write: Callable[[Path, TokenHeader, Iterable[Segment]], None]


AGTOK = Format(tokens.read_tokens, tokens.read_header, tokens.write_tokens)
ECDC = Format(ecdc.read_ecdc, ecdc.read_header, ecdc.write_ecdc)
SUFFIXES = {
    "agtok": tokens.SUFFIX,
    "ecdc-v0": ecdc.SUFFIX,
}  # by the name of the format, the default one first


def format_of(path: Path) -> Format:
    """By the name, so that the message about a damaged file speaks of the format it was meant to have."""
    return ECDC if path.suffix.lower() == ecdc.SUFFIX else AGTOK
