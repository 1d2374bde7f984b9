"""How loud a generated sound is given out, and what of a given sound is kept in it, sample by sample.

Nothing that a generator gives is past full scale. A new sound that is, is turned down as a whole; beside samples that
are kept, only the new ones are. The seam is a linear fade: on both sides is the same sound, once as it was given and
once as the codec renders it, so amplitudes add (an equal-power fade is for sounds that differ), and nothing that
lies between two samples of full scale is past it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audiogen.audio import below_full_scale
from audiogen.interfaces import finite

FADE_S = 0.02  # of the kept part, at each of its borders
MATCH_S = 0.1  # of the kept part, over which its level is compared with that of its rendering
QUIET = 1e-3  # -60 dBFS: below it there is no level to compare
MOST_GAIN = 2.0  # 6 dB; a rendering that is further off is another sound


@dataclass(frozen=True)
class Kept:
    """What of a sound stays as it is: samples [C, m] outside of the new ones from `begin` to `end`.

    margin: samples before a border whose rendering is already, or in part, of what is new.
    """

    audio: Tensor
    begin: int
    end: int
    sample_rate: int
    margin: int

    @property
    def fade(self) -> int:
        """Samples of a fade."""
        return round(FADE_S * self.sample_rate)

    def share_of_new(self, num_samples: int) -> Tensor:
        """[n], 1 from begin to end, falling to 0 over the fades outside; an end of the sound has none."""
        place = torch.arange(num_samples)
        rising = (place - (self.begin - self.fade)) / self.fade if self.begin > 0 else torch.ones(num_samples)
        falling = (self.end + self.fade - 1 - place) / self.fade
        if self.end >= num_samples:
            falling = torch.ones(num_samples)
        return torch.minimum(rising, falling).clamp(0, 1)

    def gains(self, made: Tensor) -> tuple[float, float]:
        """Factors that bring a rendering [C, n] to the level of what is kept, at the two borders."""
        length, away = round(MATCH_S * self.sample_rate), max(self.margin, self.fade)
        before = slice(max(0, self.begin - away - length), max(0, self.begin - away))
        after = slice(self.end + away, self.end + away + length)
        found = [self._gain(made, part) for part in (before, after)]
        first, last = (one if one is not None else found[1 - side] for side, one in enumerate(found))
        return first or 1.0, last or 1.0

    def _gain(self, made: Tensor, part: slice) -> float | None:
        """Of one border; None where there is nothing to compare."""
        levels = [float(sound[:, part].square().mean().sqrt()) for sound in (self.audio, made)]
        if not all(level > QUIET for level in levels):  # NaN, of no samples, is not
            return None
        return min(max(levels[0] / levels[1], 1 / MOST_GAIN), MOST_GAIN)


def until(blocks: Iterable[Tensor], num_samples: int | None) -> Iterator[Tensor]:
    """Blocks [1, C, n] as [C, n] on the CPU, up to a length; InputError for what is no number."""
    done = 0
    for block in blocks:
        piece = block[0] if num_samples is None else block[0, :, : num_samples - done]
        done += piece.shape[-1]
        if piece.shape[-1]:
            yield finite(piece.cpu(), "samples")


def finish(made: Tensor, *kept: Kept) -> tuple[Tensor, float]:
    """A sound [C, n] as it is given out, and by how many dB it, or the loudest of its new parts, was turned down.

    kept: what stays of a given sound, once for each part that is new; of all the same samples.
    """
    if not kept:
        return below_full_scale(made), turned_down(made)
    num_samples = made.shape[-1]
    result, most_db = torch.zeros_like(made), 0.0
    result[:, : kept[0].audio.shape[-1]] = kept[0].audio[:, :num_samples]
    for part in kept:
        share = part.share_of_new(num_samples)
        first, last = part.gains(made)
        place = (torch.arange(num_samples) - part.begin) / max(1, part.end - part.begin)
        new = (made * (first + (last - first) * place.clamp(0, 1)))[:, share > 0]
        mixed = share[share > 0]
        result[:, share > 0] = below_full_scale(new) * mixed + result[:, share > 0] * (1 - mixed)
        most_db = max(most_db, turned_down(new))
    return below_full_scale(result), most_db  # the whole only where what is kept is past full scale


def turned_down(sound: Tensor) -> float:
    """By how many dB a sound is to be turned down to full scale."""
    return 20 * math.log10(max(1.0, float(sound.abs().max())))


def finish_live(
    blocks: Iterable[Tensor], kept: Kept | None = None, turned_down_db: list[float] | None = None
) -> Iterator[Tensor]:
    """Blocks [C, n] of a sound as they are given out: what is kept, if anything, comes first.

    The blocks to come may be louder, so the level falls up to each peak that is past full scale and stays down; it is
    not the one level of `finish`. turned_down_db: becomes [by how many dB so far].
    """
    if kept is None:
        yield from _lower(blocks, turned_down_db)
        return
    kept = replace(kept, audio=below_full_scale(kept.audio))
    blocks, seam = iter(blocks), max(0, kept.begin - kept.fade)
    if seam:
        yield kept.audio[:, :seam]
    held: list[Tensor] = []
    while sum(block.shape[-1] for block in held) <= kept.begin and (block := next(blocks, None)) is not None:
        held.append(block)
    head = torch.cat(held, -1)
    gain, _ = kept.gains(head)
    scaled = (gain * block for block in itertools.chain([head[:, seam:]], blocks))
    for number, block in enumerate(_lower(scaled, turned_down_db)):
        if not number:
            share = kept.share_of_new(head.shape[-1])[seam : kept.begin]
            block[:, : len(share)] *= share
            block[:, : len(share)] += kept.audio[:, seam : seam + len(share)] * (1 - share)
        yield block


def _lower(blocks: Iterable[Tensor], turned_down_db: list[float] | None) -> Iterator[Tensor]:
    """Blocks with the level of `finish_live`; nothing is cut off."""
    level = 1.0
    for block in blocks:
        loud = block.abs().amax(0) * level > 1.0  # [n]
        if not loud.any():
            yield level * block
            continue
        before, level = level, 1.0 / float(block.abs().max())
        if turned_down_db is not None:
            turned_down_db[:] = [-20 * math.log10(level)]
        fade = torch.full((block.shape[-1],), level)
        first = int(loud.int().argmax())  # where it must be over; a peak at once leaves no time for it
        fade[:first] = torch.linspace(before, level, first + 1)[:first]
        yield fade * block
