"""A loop made of a sound that goes on past its end: where the seam is, and how the sound passes over it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.interfaces import Codec, Condition
from audiogen.lm.sample import Decoder
from audiogen.lm.score import log_likelihood

PAST_S = 1.5  # made past the end of a loop: so much there is to choose the seam from
FADE_S = 0.2  # of what follows the end into the beginning
SILENT = 1e-3  # of the sound's mean power: quieter places fit one another
# Of the frames whose waveform fits best a language model chooses: by so much of the beginning after so much of the end.
CANDIDATES = 4
BEGINNING_S, END_S = 0.25, 1.0
Choose = Callable[[Tensor], int]  # the sample to begin from, of how unlike both sides of each seam are [n]


def by_likelihood(
    decoder: Decoder, condition: Condition, codes: Tensor, num_samples: int, codec: Codec, max_frames: int
) -> Choose:
    """Takes the seam that a language model itself finds likeliest, of a loop in codes [K, T] made with that condition.

    The CANDIDATES frames whose waveform fits best are scored by the log-likelihood, with the text, of the frames from
    there on after the last frames of the loop. Within the frame the waveform decides.
    """
    hop, length = codec.hop_length, round(num_samples / codec.hop_length)  # frames of the loop
    beginning, end = (max(1, round(seconds * codec.sample_rate / hop)) for seconds in (BEGINNING_S, END_S))
    beginning = min(beginning, length, max_frames // 2)
    end = min(end, length, max_frames - beginning)

    def choose(unlike: Tensor) -> int:  # [n]
        fits, places = F.pad(unlike, (0, -len(unlike) % hop), value=torch.inf).view(-1, hop).min(1)
        fits = fits[: codes.shape[1] - length + 1]
        frames = fits.topk(min(CANDIDATES, len(fits)), largest=False).indices
        if beginning and len(frames) > 1:
            rows = [
                torch.cat(
                    [codes[:, frame + length - end : frame + length], codes[:, frame : frame + beginning]], 1
                )
                for frame in frames.tolist()
            ]
            frames = frames[log_likelihood(decoder, condition, torch.stack(rows), end).argmax()][None]
        return int(frames[0] * hop + places[frames[0]])

    return choose


def closed(sound: Tensor, num_samples: int, sample_rate: int, choose: Choose | None = None) -> Tensor:
    """The best loop [C, num_samples] in a longer sound [C, N].

    A loop that begins at sample b ends at b + num_samples, where the sound goes on: what follows there is faded into
    the beginning, so that nothing breaks off. b is where both are most alike, sample by sample: so level, spectrum and
    the phase of what is periodic fit. choose: takes b from how unlike they are [n], as `by_likelihood` gives it.
    """
    fade = min(round(FADE_S * sample_rate), sound.shape[-1] - num_samples, num_samples)
    if fade < 1:
        return sound[:, :num_samples]
    begin, likeness = _seam(sound.double(), num_samples, fade, choose)
    after = sound[:, begin + num_samples : begin + num_samples + fade]
    loop = sound[:, begin : begin + num_samples].clone()
    rising = (torch.arange(fade) + 0.5) / fade
    # Equal sounds add by amplitude, unlike ones by power: the sum keeps their level for any likeness between.
    power = rising**2 + (1 - rising) ** 2 + 2 * likeness * rising * (1 - rising)
    loop[:, :fade] = (loop[:, :fade] * rising + after * (1 - rising)) / power.sqrt()
    return loop


def _seam(sound: Tensor, num_samples: int, fade: int, choose: Choose | None) -> tuple[int, float]:
    """The beginning [C, N] is best to loop from, and the correlation, 0 to 1, of what is faded there."""
    count = sound.shape[-1] - num_samples  # samples that exist one loop later, too
    first, later = sound[:, :count], sound[:, num_samples:]

    def sums(x: Tensor) -> Tensor:  # [C, n] -> of each stretch of `fade` samples [n - fade + 1]
        total = torch.cat([x.new_zeros(1), x.sum(0).cumsum(0)])
        return total[fade:] - total[:-fade]

    product, power = sums(first * later), sums(first**2 + later**2)
    floor = SILENT * fade * float(sound.square().sum(0).mean()) + 1e-12
    unlike = (power - 2 * product).clamp(min=0) / (power + floor)
    begin = int(unlike.argmin()) if choose is None else choose(unlike)
    likeness = float(2 * product[begin] / (power[begin] + floor))
    return begin, min(max(likeness, 0.0), 1.0)
