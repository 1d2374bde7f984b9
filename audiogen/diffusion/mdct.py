"""The modified discrete cosine transform (Princen and Bradley, 1986): audio as coefficients of overlapping frames.

They are as many as samples, and give the audio back. A network on 64 bands of 250 Hz does a small part of the work of
one on 16,000 samples a second.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # what is cached during inference must serve training as well
def mdct_basis(num_bands: int, device: str = "cpu") -> Tensor:
    """Windowed cosines [M, 2 M], M = num_bands; frames of them, num_bands apart, are an orthonormal basis."""
    n = torch.arange(2 * num_bands, dtype=torch.float64, device="cpu") + 0.5
    k = torch.arange(num_bands, dtype=torch.float64, device="cpu")[:, None] + 0.5
    window = torch.sin(math.pi * n / (2 * num_bands))
    cosines = torch.cos(math.pi / num_bands * (n + num_bands / 2) * k)
    return (math.sqrt(2 / num_bands) * window * cosines).float().to(device)


def mdct(audio: Tensor, basis: Tensor) -> Tensor:
    """Audio [B, C, N] -> coefficients [B, C * bands, N / bands], float32; N is a multiple of the even number of bands.

    The first and the last half frame overlap with nothing, and come back with their mirror image on top.
    """
    bands = len(basis)
    with torch.autocast(audio.device.type, enabled=False):
        rows = rearrange(audio.float(), "b c n -> (b c) 1 n")
        frames = F.conv1d(rows, basis[:, None], stride=bands, padding=bands // 2)
    return rearrange(frames, "(b c) m t -> b (c m) t", c=audio.shape[1])


def inverse_mdct(coefficients: Tensor, basis: Tensor) -> Tensor:
    """Coefficients [B, C * bands, T] -> audio [B, C, T * bands], float32."""
    bands = len(basis)
    with torch.autocast(coefficients.device.type, enabled=False):
        frames = rearrange(coefficients.float(), "b (c m) t -> (b c) m t", m=bands)
        audio = F.conv_transpose1d(frames, basis[:, None], stride=bands, padding=bands // 2)
    return rearrange(audio, "(b c) 1 n -> b c n", b=len(coefficients))


def compress(coefficients: Tensor) -> Tensor:
    """sign(x) sqrt(|x|) times 4 of any shape, which makes loud coefficients about 1 and halves the range in dB.

    Quiet coefficients are then large enough for the network's activations to be non-linear.
    """
    return 4.0 * coefficients.sign() * coefficients.abs().sqrt()


def expand(compressed: Tensor) -> Tensor:
    """Undo `compress`, in float32; any shape."""
    compressed = compressed.float()
    return compressed * compressed.abs() / 16.0  # 4 squared
