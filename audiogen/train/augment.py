"""Log-mel spectrograms varied the way microphones, rooms and noise vary them, for classifiers to see through.

Nothing here imitates a codec or a generator: a classifier trained on their artefacts would not count them as faults.
All draws are from torch's global generator, which `fit` seeds at every step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_BELOW = (2.0, 9.0)  # nats from the loudest bin down to the added noise: 17 to 78 dB
# Of a smooth curve over the mel bins: a constant, a tilt, and bends down to a fifth of the range.
NUM_COSINES = 6


def roll(mel: Tensor, frames: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Rotate each mel [B, M, T] by a random number of frames, `columns` each, and its targets [B, frames, labels]."""
    shifts = torch.randint(frames.shape[1], (len(mel),)).tolist()
    rolled = [x.roll(shift * columns, -1) for x, shift in zip(mel, shifts, strict=True)]
    return torch.stack(rolled), torch.stack(
        [x.roll(shift, 0) for x, shift in zip(frames, shifts, strict=True)]
    )


def recolour(mel: Tensor, floor: float) -> Tensor:
    """Another microphone in another place: equalisation, band limits, noise, uncertain bins. [B, M, T], nats.

    floor: the lowest magnitude.
    """
    num, bins = mel.shape[:2]
    place = torch.arange(bins) / bins  # [M], of each bin, 0 to 1
    waves = torch.cos(math.pi * torch.arange(NUM_COSINES)[:, None] * place)  # [cosines, M]
    # Equalisation: a random smooth curve, each term with a standard deviation of 0.35 nats (3 dB).
    mel = mel + (0.35 * torch.randn(num, NUM_COSINES) @ waves)[..., None]

    # Band limits: 30 % lose the bins above 55 to 100 %, 20 % those below up to 15 %, by 0.3 to 3 nats per bin beyond.
    cut = torch.where(torch.rand(num, 1) < 0.3, _uniform(num, 0.55, 1.0), torch.ones(num, 1))
    low = torch.where(torch.rand(num, 1) < 0.2, _uniform(num, 0.0, 0.15), torch.zeros(num, 1))
    beyond = (place - cut).clamp(min=0) + (low - place).clamp(min=0)  # [B, M]
    mel = mel - (beyond * bins * _uniform(num, 0.3, 3.0))[..., None]

    # Half get coloured noise, its level NOISE_BELOW the loudest bin; magnitudes add.
    colour = 0.7 * torch.randn(num, NUM_COSINES)
    colour[:, 0] = mel.amax((1, 2)) - _uniform(num, *NOISE_BELOW)[:, 0]
    noise = (colour @ waves)[..., None] + 0.5 * torch.randn_like(mel)
    mel = torch.where(torch.rand(num, 1, 1) < 0.5, torch.logaddexp(mel, noise), mel)

    # Uncertain bins: white noise with a standard deviation of up to 0.3 nats (2.6 dB).
    mel = mel + _uniform(num, 0.0, 0.3)[..., None] * torch.randn_like(mel)
    return mel.clamp(min=math.log(floor))


def mask(mel: Tensor, most_bins: int, most_columns: int) -> Tensor:
    """Put the mean in place of a band and of a stretch of each mel [B, M, T] (SpecAugment, arXiv:1904.08779)."""
    mel = mel.clone()
    bins, columns = mel.shape[1:]
    for row in mel:
        mean = row.mean()
        for axis, size, most in ((0, bins, most_bins), (1, columns, most_columns)):
            length = int(torch.randint(most + 1, ()))
            start = int(torch.randint(size - min(length, size) + 1, ()))
            row.narrow(axis, start, min(length, size)).fill_(mean)
    return mel


def _uniform(num: int, low: float, high: float) -> Tensor:
    """[num, 1]."""
    return low + (high - low) * torch.rand(num, 1)
