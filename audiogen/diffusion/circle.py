"""A sound without ends: the network sees the latents of a loop as they follow one another when it is repeated.

Without this the beginning and the end of a sound depend on nothing of each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.sample import Denoise
from audiogen.errors import InputError

OVERLAP_S = 1.0  # of the loop that the network sees twice, at its beginning and after its end


def written_out(num_frames: int, first: int, length: int) -> Tensor:
    """Places int64 [T] in a loop of so many frames, from `first` on, T = length."""
    return (torch.arange(length) + first) % num_frames


def around(denoise: Denoise, length: int) -> Denoise:
    """What `sample` calls for a loop: x_t [B, D, n(, M)] is written out to `length` frames, more than n.

    What is there more than once has as many predictions, joined by weights that rise at the beginning of the written
    frames and fall at their end: so the prediction has no step where the loop closes.
    """

    def wrapped(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:  # [B, D, n(, M)], t [B]
        num_frames = x_t.shape[2]
        extra = length - num_frames
        place = written_out(num_frames, -(extra // 2), length)
        found = denoise(x_t[:, :, place.to(x_t.device)], t, conditioning)
        nearest_end = torch.minimum(torch.arange(length), torch.arange(length - 1, -1, -1)) + 0.5
        weights = (nearest_end / min(extra, num_frames)).clamp(max=1.0)
        weights = weights / torch.zeros(num_frames).index_add(0, place, weights)[place]
        weights = weights.to(found).reshape(-1, *[1] * (x_t.dim() - 3))
        return torch.zeros_like(x_t, dtype=found.dtype).index_add(2, place.to(x_t.device), found * weights)

    return wrapped


def padded(latents: Tensor, sides: int) -> Tensor:
    """Latents [B, D, n(, M)] of a loop with so many frames of it before and after: [B, D, sides + n + sides(, M)]."""
    num_frames = latents.shape[2]
    return latents[:, :, written_out(num_frames, -sides, num_frames + 2 * sides).to(latents.device)]


def stretched(loop: Tensor, num_samples: int) -> Tensor:
    """A loop [..., N] with another number of samples, by its Fourier series: the pitch changes by as little as that."""
    if loop.shape[-1] == num_samples:
        return loop
    spectrum = torch.fft.rfft(loop.double())
    return (torch.fft.irfft(spectrum, num_samples) * (num_samples / loop.shape[-1])).to(loop.dtype)


def seen_frames(num_frames: int, overlap: int, multiple: int, window: int | None) -> int:
    """How many frames the network sees of a loop of so many; InputError where it has no room for the overlap.

    overlap: frames to be seen twice. multiple: of what the network takes. window: the one number that it takes.
    """
    if window is None:
        return -(-(num_frames + min(overlap, num_frames)) // multiple) * multiple
    if window - num_frames < min(overlap, num_frames):
        raise InputError(
            f"a loop of {num_frames} latent frames has no room in this system's window of {window}, which must hold "
            f"{overlap} more; give a shorter duration"
        )
    return window


def frames_of(durations_s: Sequence[float], frame_rate: float) -> list[int]:
    """Whole frames of each loop; `stretched` then gives it its own length."""
    return [max(1, round(duration * frame_rate)) for duration in durations_s]
