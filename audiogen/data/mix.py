"""Mixing augmentation: two captioned sounds become one (AudioGen, Kreuk et al. 2022, section 3.2).

Differs from the released code where that fails: the peak is max |x| instead of max x, power is measured on
the valid part instead of the padding too, and a missing caption is handled.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MIN_OVERLAP = 0.5  # of the shorter sound, as published


class Mixture(NamedTuple):
    """audio [C, N], zero after `length` samples; caption describes both sounds, or is None."""

    audio: Tensor
    length: int
    caption: str | None


def mix(
    audio_a: Tensor,
    length_a: int,
    caption_a: str | None,
    audio_b: Tensor,
    length_b: int,
    caption_b: str | None,
    snr_db: float,
    start: float,
) -> Mixture:
    """Add sound b to sound a, both [C, N] and valid up to their length.

    snr_db: power of a over power of b after scaling b. start in [0, 1]: where b begins, from the beginning of
    a (0) to the latest place where half of the shorter sound still overlaps (1); b is cut at N. A mixture whose
    peak is above full scale is divided by it.
    """
    num = audio_a.shape[-1]
    latest = length_a - math.ceil(MIN_OVERLAP * min(length_a, length_b))
    offset = min(latest, int(start * (latest + 1)))
    kept = min(length_b, num - offset)
    power_a = float(audio_a[:, :length_a].double().square().mean())
    power_b = float(audio_b[:, :length_b].double().square().mean())
    gain = 1.0
    if power_a > 0 and power_b > 0:  # silence has no power ratio: both stay as they are
        gain = math.sqrt(power_a / power_b) * 10 ** (
            -snr_db / 20
        )  # power_a / (gain^2 power_b) = 10^(snr_db / 10)
    mixed = audio_a.clone()
    mixed[:, offset : offset + kept] += gain * audio_b[:, :kept]
    peak = float(mixed.abs().max())
    if peak > 1:
        mixed /= peak
    return Mixture(mixed, max(length_a, offset + kept), join_captions(caption_a, caption_b))


def join_captions(a: str | None, b: str | None) -> str | None:
    """`"A dog barks." + "Rain falls" -> "A dog barks and rain falls"`.

    None unless both are given: a caption of one of two sounds would teach the model to add sounds of its own.
    """
    if not a or not b:
        return None
    first, second = a.strip().rstrip(".!;, "), b.strip().rstrip(".!;, ")
    if first.casefold() == second.casefold():
        return first
    is_word = second[1:2].islower() or second[1:2] in ("", " ")  # leaves "DJ ..." and "F-16 ..." as they are
    return f"{first} and {second[:1].lower() + second[1:] if is_word else second}"


def draw(generator: torch.Generator, low: float, high: float) -> float:
    """One number, uniform in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
