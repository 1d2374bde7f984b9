"""The two steps of Griffin-Lim (fast: Perraudin et al. 2013, algorithm 2) for any overlapping Hann windows.

On a CPU by a C++ kernel where a compiler is, else by PyTorch, several times slower and equal to rounding. A frame's
values depend neither on the number of frames nor on where a block of them begins, and sums are made in the order of
time: a sound that is made block by block has the same bits as one made whole.
"""

from __future__ import annotations

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen.native.library import library


def add_frames(rotation: Tensor, magnitude: Tensor, before: Tensor, n_fft: int, hop: int) -> Tensor:
    """Spectra as sound, before its sums are divided by `envelope`.

    rotation: complex [..., T, F], whose product with magnitude, float32 [..., T, F], is transformed back and windowed;
    F = n_fft / 2 + 1. before: [..., n_fft - hop], what earlier frames add to these. -> [..., T * hop + n_fft - hop].
    """
    count = rotation.shape[-2]
    transform = _transform(n_fft, hop) if _is_plain(magnitude, before) else None
    if transform is not None and count:
        sums = F.pad(before, (0, count * hop))
        rotation, magnitude = rotation.contiguous(), magnitude.contiguous()
        rows = zip(_rows(rotation, 2), _rows(magnitude, 2), _rows(sums, 1), strict=True)
        for row in rows:
            transform[0].audiogen_inverse(transform[1], row[0], row[1], count, row[2])
        return sums
    width = -(-n_fft // hop)  # hops that a frame reaches into
    hops = F.pad(before, (0, (count - 1 + width) * hop - before.shape[-1])).unflatten(-1, (-1, hop))
    spectra = torch.view_as_complex(torch.view_as_real(rotation) * magnitude[..., None])
    if count:
        frames = torch.fft.irfft(spectra, n_fft) * torch.hann_window(n_fft, device=before.device)
        pieces = F.pad(frames, (0, width * hop - n_fft)).unflatten(-1, (width, hop))
        for j in reversed(range(width)):  # the oldest frame first
            hops[..., j : j + count, :] += pieces[..., j, :]
    return hops.flatten(-2)[..., : count * hop + n_fft - hop]


def envelope(n_fft: int, hop: int, num_frames: int, device: torch.device) -> Tensor:
    """Sums of the squared windows of so many frames: [(num_frames - 1) * hop + n_fft]."""
    width = -(-n_fft // hop)
    few = min(num_frames, 2 * width)  # from there on what is in the middle repeats
    ones = torch.hann_window(n_fft, device=device).square()
    pieces = F.pad(ones, (0, width * hop - n_fft)).unflatten(0, (width, hop))
    hops = ones.new_zeros(max(0, few - 1) + width, hop)
    for j in reversed(range(width)):
        hops[j : j + few] += pieces[j]
    if num_frames > few:
        hops = torch.cat([hops[:width], hops[width].expand(num_frames - few, hop), hops[width:]])
    return hops.flatten()[: (num_frames - 1) * hop + n_fft]


def spectra(audio: Tensor, previous: Tensor, n_fft: int, hop: int, momentum: float) -> tuple[Tensor, Tensor]:
    """Audio [..., (T - 1) * hop + n_fft or more] -> (rotation, consistent), complex [..., T, F].

    consistent: the spectra of its windows. rotation: of magnitude 1, in the direction of previous + (1 + momentum) *
    (consistent - previous); 0 where that is 0. previous: consistent [..., T, F] of the pass before.
    """
    count = previous.shape[-2]
    transform = _transform(n_fft, hop) if _is_plain(audio) else None
    if transform is not None and count:
        audio, previous = audio.contiguous(), previous.contiguous()
        rotation, consistent = torch.empty_like(previous), torch.empty_like(previous)
        rows = zip(*(_rows(x, 2) for x in (previous, consistent, rotation)), _rows(audio, 1), strict=True)
        for row in rows:
            transform[0].audiogen_forward(transform[1], row[3], count, row[0], momentum, row[1], row[2])
        return rotation, consistent
    if not count:
        return previous, previous
    frames = audio.unfold(-1, n_fft, hop)[..., :count, :]
    consistent = torch.fft.rfft(frames * torch.hann_window(n_fft, device=audio.device))
    # By parts: several times as fast as the same on complex tensors.
    ahead = torch.lerp(torch.view_as_real(previous), torch.view_as_real(consistent), 1 + momentum)
    power = ahead.square().sum(-1, keepdim=True)
    return torch.view_as_complex(ahead * power.clamp(min=1e-16).rsqrt()), consistent


@functools.cache
def _transform(n_fft: int, hop: int) -> tuple[ctypes.CDLL, int] | None:
    """The library and the address of its transform of this size, which stays; None where either is missing."""
    kernels = library()
    if kernels is None:
        return None
    with torch.inference_mode():
        window = torch.hann_window(n_fft)
    made = kernels.audiogen_transform_new(n_fft, hop, window.data_ptr())
    return None if made is None else (kernels, made)


def _is_plain(*tensors: Tensor) -> bool:
    """Whether the kernel takes them: float32 on a CPU, and no gradient is wanted of them."""
    return all(
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and not (x.requires_grad and torch.is_grad_enabled())
        for x in tensors
    )


def _rows(x: Tensor, num_dims: int) -> range:
    """Addresses of the parts of a contiguous tensor that have so many dimensions."""
    size = x[(0,) * (x.dim() - num_dims)].numel() * x.element_size()
    return range(x.data_ptr(), x.data_ptr() + x.numel() * x.element_size(), size)
