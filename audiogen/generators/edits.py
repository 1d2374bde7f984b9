"""A sound to change as latent diffusion takes it: its latents, which of them are new, and which samples are kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen import audio as audio_io
from audiogen.diffusion.autoencoders import MelAutoencoder
from audiogen.diffusion.latents import LatentAutoencoder
from audiogen.diffusion.sample import Reference, inpaint_mask, super_resolution_mask
from audiogen.errors import InputError
from audiogen.generators import level
from audiogen.interfaces import Edit

MIRROR_S = 0.5  # of a sound beyond an end that is extended, in place of silence


def check(edit: Edit, autoencoder: LatentAutoencoder, name: str, durations_s: Sequence[float]) -> None:
    """InputError where a system of that name cannot make that edit, or not in so many seconds."""
    if edit.upsample and not isinstance(autoencoder, MelAutoencoder):
        raise InputError(f"upsample is for systems over mel spectrograms, and {name} works on samples")
    for duration in durations_s:
        edit.check_duration(duration)


def reference(
    edit: Edit,
    autoencoder: LatentAutoencoder,
    num_samples: int,
    shape: tuple[int, ...],
    device: torch.device,
) -> tuple[Reference, tuple[level.Kept, ...]]:
    """The sound to begin from as latents [1, ...] of that shape, silence after its end, and what of it is new.

    With it what of its samples is kept, beside each part that is generated anew.
    """
    rate, hop = autoencoder.sample_rate, autoencoder.hop_length
    given = audio_io.convert_channels(
        audio_io.resample(edit.audio, edit.sample_rate, rate), autoencoder.channels
    )
    before = round(edit.extend_before_s * rate)
    sound = F.pad(given[:, : num_samples - before], (before, 0))
    sound = F.pad(sound, (0, shape[1] * hop - sound.shape[-1]))
    seen = _mirrored(given, before, sound, round(MIRROR_S * rate)) if edit.extend_s or before else sound
    latents = autoencoder.encode(seen[None].to(device, torch.float32))
    spans, mask = edit.spans, None
    if spans:
        masks = [inpaint_mask(shape, sound.shape[-1] / rate, *span) for span in spans]
        mask = functools.reduce(torch.logical_or, masks)
    elif edit.upsample:
        mask = super_resolution_mask(shape)
    kept = sound[:, :num_samples].float().cpu()
    edges = [(round(begin * rate), round(end * rate)) for begin, end in spans]
    strength = 1.0 if edit.strength is None else edit.strength
    return (
        Reference(latents, strength, mask, edit.inpaint_resample),
        tuple(level.Kept(kept, begin, end, rate, hop) for begin, end in edges),
    )


def _mirrored(given: Tensor, before: int, sound: Tensor, mirror: int) -> Tensor:
    """A sound [C, N] with the given one [C, n] from sample `before` on, and `mirror` samples mirrored at its ends.

    The encoder sees some frames beyond those that are kept: silence there would be in the latents of the border.
    """
    most = min(given.shape[-1] - 1, mirror)
    after = sound.shape[-1] - before - given.shape[-1]
    sides = min(before, most), min(max(0, after), most)
    mirrored = F.pad(given[None], sides, mode="reflect")[0]
    return F.pad(mirrored, (before - sides[0], after - sides[1]))
