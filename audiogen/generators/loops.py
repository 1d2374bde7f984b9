"""A loop made of a sound that goes on past its end: where the seam is, and how the sound passes over it."""

from __future__ import annotations

import torch
from torch import Tensor

PAST_S = 1.5  # made past the end of a loop: so much there is to choose the seam from
FADE_S = 0.2  # of what follows the end into the beginning
SILENT = 1e-3  # of the sound's mean power: quieter places fit one another


def closed(sound: Tensor, num_samples: int, sample_rate: int) -> Tensor:
    """The best loop [C, num_samples] in a longer sound [C, N].

    A loop that begins at sample b ends at b + num_samples, where the sound goes on: what follows there is faded into
    the beginning, so that nothing breaks off. b is where both are most alike, sample by sample: so level, spectrum and
    the phase of what is periodic fit.
    """
    fade = min(round(FADE_S * sample_rate), sound.shape[-1] - num_samples, num_samples)
    if fade < 1:
        return sound[:, :num_samples]
    begin, likeness = _seam(sound.double(), num_samples, fade)
    after = sound[:, begin + num_samples : begin + num_samples + fade]
    loop = sound[:, begin : begin + num_samples].clone()
    rising = (torch.arange(fade) + 0.5) / fade
    # Equal sounds add by amplitude, unlike ones by power: the sum keeps their level for any likeness between.
    power = rising**2 + (1 - rising) ** 2 + 2 * likeness * rising * (1 - rising)
    loop[:, :fade] = (loop[:, :fade] * rising + after * (1 - rising)) / power.sqrt()
    return loop


def _seam(sound: Tensor, num_samples: int, fade: int) -> tuple[int, float]:
    """The beginning [C, N] is best to loop from, and the correlation, 0 to 1, of what is faded there."""
    count = sound.shape[-1] - num_samples  # samples that exist one loop later, too
    first, later = sound[:, :count], sound[:, num_samples:]

    def sums(x: Tensor) -> Tensor:  # [C, n] -> of each stretch of `fade` samples [n - fade + 1]
        total = torch.cat([x.new_zeros(1), x.sum(0).cumsum(0)])
        return total[fade:] - total[:-fade]

    product, power = sums(first * later), sums(first**2 + later**2)
    floor = SILENT * fade * float(sound.square().sum(0).mean()) + 1e-12
    begin = int(((power - 2 * product).clamp(min=0) / (power + floor)).argmin())
    likeness = float(2 * product[begin] / (power[begin] + floor))
    return begin, min(max(likeness, 0.0), 1.0)
