"""Zero-shot manipulation: which part of the latents is new when a sound is inpainted or its bandwidth extended.

Each function gives the mask of a `sample.Reference`, True where something new is wanted. Style transfer needs none:
it is a Reference with a strength below 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen.errors import InputError


def inpaint_mask(shape: Sequence[int], duration_s: float, begin_s: float, end_s: float) -> Tensor:
    """New from begin_s to end_s of a sound of duration_s -> bool [1, T] or [1, T, 1], for latents (D, T) or (D, T, M).

    Frames that the span touches in part are new as a whole.
    """
    if not 0.0 <= begin_s < end_s <= duration_s:
        raise InputError(
            f"the part to inpaint is {begin_s} s to {end_s} s; it must lie within 0 to {duration_s} s"
        )
    num_frames = shape[1]
    frame = torch.arange(num_frames) * (duration_s / num_frames)
    inside = (frame + duration_s / num_frames > begin_s) & (frame < end_s)
    return inside.reshape(1, num_frames, *[1] * (len(shape) - 2))


def super_resolution_mask(shape: Sequence[int], kept: float = 0.75) -> Tensor:
    """New above that share of the mel bands -> bool [1, 1, M], for mel latents (D, T, M). AudioLDM keeps 0.75."""
    if len(shape) != 3:
        raise InputError(
            f"latents of {len(shape) - 1} axes have no bands; super-resolution needs a mel latent"
        )
    num_kept = round(kept * shape[2])
    if not 0 < num_kept < shape[2]:
        raise InputError(f"{kept} of {shape[2]} bands are kept; some must be, and some new")
    return (torch.arange(shape[2]) >= num_kept).reshape(1, 1, -1)
