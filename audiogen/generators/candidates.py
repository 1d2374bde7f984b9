"""Several sounds of one text, of which CLAP keeps the nearest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen.diffusion.sample import best_of
from audiogen.errors import InputError
from audiogen.text.clap import Clap

MAX_CANDIDATES = 64
STRIDE = 2**40  # candidate c of a sound with seed s is drawn with s + c of these


def check_ranker(clap: Clap | None, candidates: int, texts: Sequence[str | None]) -> Clap:
    """The CLAP model that ranks candidates; InputError without an audio branch, or a text to rank by."""
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise InputError(f"candidates is {candidates}; it must be from 1 to {MAX_CANDIDATES}")
    if None in texts:
        raise InputError(
            "candidates are ranked by their text, and there is none; drop candidates or give one"
        )
    if clap is None or not clap.reads_audio:
        raise InputError(
            "candidates are ranked by a CLAP model with an audio branch, which this system lacks; give one as "
            "clap: a directory, or a hub id such as laion/clap-htsat-unfused"
        )
    return clap


def nearest(sounds: Sequence[Tensor], sample_rate: int, text: str | None, clap: Clap) -> int:
    """Which of R sounds [C, n] has the CLAP embedding that is nearest to the text's."""
    scores = clap.embed_audio(torch.stack(list(sounds)), sample_rate) @ clap.embed_text([text or ""])[0]
    return int(best_of(torch.arange(len(sounds)), scores.cpu()))
