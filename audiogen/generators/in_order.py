"""Sounds of several events in order: each event's text makes a part of its own, and the parts are joined.

Where a model was trained on few pairs of events, it seldom makes two that one text asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen.generators import loops
from audiogen.generators.request import Request, num_samples
from audiogen.interfaces import Generator, Progress, Sampling
from audiogen.text.order import events

FADE_S = 0.01  # from one part into silence, and from there into the next
NEARLY = 0.99  # of the loudest stretch's energy is as good
MOST_ROOM = 2.0  # a part is made so much longer than its time, at most


def split(texts: Sequence[str | None], sampling: Sampling, by_default: bool) -> list[list[str | None]] | None:
    """The events of each text, in order; None where no text is to be made of more than one."""
    wanted = by_default if sampling.in_order is None else sampling.in_order
    wanted = (
        wanted and sampling.schedule is None and sampling.to is None
    )  # these say themselves what comes when
    parts: list[list[str | None]] = [[*events(text)] if text else [text] for text in texts]
    return parts if wanted and any(len(each) > 1 for each in parts) else None


def generate(
    generator: Generator,
    parts: Sequence[Sequence[str | None]],
    request: Request,
    sampling: Sampling,
    guidance: float | None,
    progress: Progress | None,
    turned_down_db: list[float] | None,
    room_s: float = 0.0,
) -> Tensor:
    """The sounds [B, C, N] of a request, each joined of its parts, which have its seed and as much of its time each.

    turned_down_db: becomes that of the part of each row that was turned down the most. room_s: parts that have less
    time are made so long, or twice as long as their time, and the loudest stretch of each is taken: a model makes
    sounds of the length that it was trained on best, and an event needs not begin at once.
    """
    counts = list(map(len, parts))
    past_s = loops.PAST_S if sampling.loop else 0.0  # to choose the seam from
    rows = [
        (count, seconds + past_s, seed, num_samples(seconds + past_s, generator.sample_rate))
        for count, seconds, seed in zip(counts, request.durations_s, request.seeds, strict=True)
    ]
    times = [seconds / count for count, seconds, _, _ in rows for _ in range(count)]
    room_s = min(room_s, generator.max_duration_s)
    durations = [max(time_s, min(MOST_ROOM * time_s, room_s)) for time_s in times]
    seeds = [seed for count, _, seed, _ in rows for _ in range(count)]
    down_db: list[float] = []
    made = generator.generate(
        list(chain(*parts)), durations, seed=seeds, guidance=guidance,
        sampling=replace(sampling, in_order=False, loop=False),
        progress=progress, turned_down_db=down_db,
    )  # fmt: skip
    sizes = [num_samples(duration_s, generator.sample_rate) for duration_s in durations]
    each = (sound[:, :size] for sound, size in zip(made, sizes, strict=True))
    each_db, sounds = iter(down_db), []
    if turned_down_db is not None:
        turned_down_db[:] = [max(next(each_db) for _ in range(count)) for count in counts]
    for (count, seconds, _, total), wanted in zip(rows, request.num_samples, strict=True):
        lengths = _lengths(total, seconds, count, generator.sample_rate)
        stretches = [[loudest(next(each), length, generator.sample_rate)] for length in lengths]
        blocks = joined(stretches, lengths, generator.sample_rate)
        sound = torch.cat(list(blocks), -1)
        sound = loops.closed(sound, wanted, generator.sample_rate) if sampling.loop else sound
        sounds.append(F.pad(sound, (0, max(request.num_samples) - wanted)))
    return torch.stack(sounds)


def stream(
    generator: Generator,
    parts: Sequence[str | None],
    duration_s: float,
    sampling: Sampling,
    turned_down_db: list[float] | None,
    given: Mapping[str, Any],
) -> Iterator[Tensor]:
    """As `generate`, of one text, piece by piece. given: the other parameters of its `stream`."""
    most_db = [0.0] if turned_down_db is None else turned_down_db

    def made() -> Iterator[Iterator[Tensor]]:
        for part in parts:
            down_db: list[float] = []
            yield generator.stream(
                part,
                duration_s / len(parts),
                sampling=replace(sampling, in_order=False),
                turned_down_db=down_db,
                **given,
            )
            most_db[:] = [max(0.0, *most_db, *down_db)]

    total = num_samples(duration_s, generator.sample_rate)
    lengths = _lengths(total, duration_s, len(parts), generator.sample_rate)
    return joined(made(), lengths, generator.sample_rate)


def _lengths(total: int, duration_s: float, count: int, sample_rate: int) -> list[int]:
    """Samples of each part; the last has what rounding left."""
    each = num_samples(duration_s / count, sample_rate)
    return [*[each] * (count - 1), total - (count - 1) * each]


def loudest(sound: Tensor, length: int, sample_rate: int) -> Tensor:
    """The stretch [C, length] of a sound [C, N] with the most energy, faded where it is cut.

    A sound that is shorter, or longer by no more than what rounding does, is returned as it is.
    """
    hop = max(2, sample_rate // 50)
    if sound.shape[-1] < length + hop:
        return sound
    power = F.pad(sound.double().square().sum(0).cumsum(0), (1, 0))
    starts = torch.arange(0, sound.shape[-1] - length + 1, hop)
    powers = power[starts + length] - power[starts]
    best = starts[powers >= NEARLY * powers.max()]
    start = int(best[len(best) // 2])  # the event in the middle of its stretch
    is_cut = (start > 0, start + length < sound.shape[-1])
    return sound[:, start : start + length] * _fades(torch.arange(length), length, is_cut, sample_rate)


def _fades(places: Tensor, length: int, at: tuple[bool, bool], sample_rate: int) -> Tensor:
    """Levels of the samples at places [n] of a sound of `length` that is faded at its beginning, its end, or both."""
    distance = torch.full((len(places),), torch.inf)  # to the nearer end that is faded
    if at[0]:
        distance = places + 0.5
    if at[1]:
        distance = torch.minimum(distance, length - 0.5 - places)
    return (distance / (FADE_S * sample_rate)).clamp(max=1)


def joined(parts: Iterable[Iterable[Tensor]], lengths: Sequence[int], sample_rate: int) -> Iterator[Tensor]:
    """Parts of blocks [C, n], one after another: each of its length, faded where they meet.

    A part that is longer is cut off, and one that is shorter is followed by silence.
    """
    channels = 1
    for number, (blocks, length) in enumerate(zip(parts, lengths, strict=True)):
        done = 0
        for block in blocks:
            piece, channels = block[:, : length - done], len(block)
            places = torch.arange(done, done + piece.shape[-1])
            done += piece.shape[-1]
            if piece.shape[-1]:
                yield piece * _fades(places, length, (number > 0, number < len(lengths) - 1), sample_rate)
        if done < length:
            yield torch.zeros(channels, length - done)
