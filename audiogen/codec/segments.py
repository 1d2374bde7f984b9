"""Sounds cut into overlapping pieces of one length, and joined again (EnCodec arXiv:2210.13438, 3.1 at 48 kHz)."""

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_LOUDNESS = 1e-8  # added to the loudness that a piece is divided by, for silence


def cut(num_samples: int, length: int, stride: int) -> list[slice]:
    """Where the pieces of a sound lie: one begins every `stride` samples; the last ones are short.

    The last one may even lie within the one before it: the released codecs code it all the same.
    """
    return [slice(start, min(start + length, num_samples)) for start in range(0, num_samples, max(1, stride))]


def loudness(audio: Tensor) -> Tensor:
    """Root mean square [B] of the mean of the channels of audio [B, C, N], never 0."""
    return audio.mean(1).square().mean(1).sqrt() + MIN_LOUDNESS


def overlap_add(pieces: Sequence[Tensor], stride: int) -> Tensor:
    """Pieces [B, C, n], one every `stride` samples -> audio [B, C, N] with N = where the last one ends.

    The weight of each sample of a piece rises to the middle of the first piece and falls again; the sum is divided by
    the sum of the weights, so that one piece alone stays as it is and two cross-fade linearly, as in EnCodec.
    """
    length, end = pieces[0].shape[-1], stride * (len(pieces) - 1) + pieces[-1].shape[-1]
    position = torch.linspace(0, 1, length + 2, device=pieces[0].device, dtype=pieces[0].dtype)[1:-1]
    weight = 0.5 - (position - 0.5).abs()  # [n], above 0
    total, audio = weight.new_zeros(end), pieces[0].new_zeros(*pieces[0].shape[:-1], end)
    for index, piece in enumerate(pieces):
        where = slice(index * stride, index * stride + piece.shape[-1])
        audio[..., where] += weight[: piece.shape[-1]] * piece
        total[where] += weight[: piece.shape[-1]]
    return audio / total
