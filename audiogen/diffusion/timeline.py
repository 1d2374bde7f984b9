"""Several texts in one sound, one after another: each has the network's prediction for its share of the time.

As MultiDiffusion (Bar-Tal et al., 2023, arXiv:2302.08113) does for parts of a picture: at every step each text's
prediction is of the whole sound, so what one part becomes is seen by the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from audiogen.diffusion.conditioning import Conditioning, stack
from audiogen.diffusion.sample import Denoise

FADE_FRAMES = 2.0  # of latents, from one part into the next

# A condition and what guidance moves away from, one row each.
Guided = tuple[Conditioning, Conditioning]


def in_turn(
    denoise: Denoise,
    rows: Sequence[Sequence[Guided]],
    borders: Sequence[float] | None = None,
    fade_frames: float = FADE_FRAMES,
) -> Denoise:
    """What `sample` calls for rows of several parts each: the conditioning that it gives is not read.

    rows: the parts of each, in order. borders: the frames in which each part but the first begins; None gives all parts
    of a row as much of it. The network runs on as many rows as there are parts.
    """
    if all(len(parts) == 1 for parts in rows):
        return denoise
    owners = torch.tensor([row for row, parts in enumerate(rows) for _ in parts])
    wanted, away = (stack([part[side] for part in chain(*rows)]) for side in (0, 1))

    def blended(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        is_guided = len(x_t) > len(rows)  # with the condition, then without
        own = torch.cat([owners, len(rows) + owners]) if is_guided else owners
        own = own.to(x_t.device)
        found = denoise(x_t[own], t[own], stack([wanted, away]) if is_guided else wanted)
        length = x_t.shape[2]
        weights = torch.cat(
            [shares(borders or equal(len(parts), length), length, fade_frames) for parts in rows]
        )
        weights = weights.to(found)  # [R, T]
        weights = weights.repeat(1 + is_guided, 1).reshape(len(own), 1, -1, *[1] * (x_t.dim() - 3))
        return torch.zeros_like(x_t, dtype=found.dtype).index_add(0, own, found * weights)

    return blended


def equal(num_parts: int, num_frames: int) -> list[float]:
    """The borders of parts that are all as long."""
    return (torch.arange(1, num_parts) * (num_frames / num_parts)).tolist()


def shares(borders: Sequence[float], num_frames: int, fade_frames: float = FADE_FRAMES) -> Tensor:
    """The weight of each part at each frame [P, T]; their sum is 1, and each rises and falls within so many frames."""
    frames = torch.arange(num_frames) + 0.5
    passed = ((frames - torch.tensor(list(borders))[:, None]) / max(fade_frames, 1e-6) + 0.5).clamp(
        0, 1
    )  # [P - 1, T]
    ends = torch.ones(1, num_frames), torch.zeros(1, num_frames)
    return torch.cat([ends[0], passed]) - torch.cat([passed, ends[1]])
