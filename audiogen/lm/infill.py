"""Filling a gap: what comes after it goes before it in the sequence, so that a causal model sees both of its sides.

Frames [before][gap][after] become [after][before][gap]: "Efficient Training of Language Models to Fill in the Middle"
(Bavarian et al., 2022), whose order "suffix, prefix, middle" this is; CM3 (Aghajanyan et al., 2022), InCoder (Fried et
al., 2022) and VoiceCraft (Peng et al., 2024) move the gap to the end as well, with special tokens in its place. Here
each of the three parts is laid out by the model's pattern on its own, its special step first, and every step keeps the
position that it has in the clip. The positions say where the gap is, so no further token is needed, and how long it is.

A model has to be trained for it, on a share of its clips (`infill` in a recipe); their loss counts every code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.lm import patterns
from audiogen.lm.model import LMConfig
from audiogen.lm.patterns import Pattern
from audiogen.lm.sample import (
    Callback,
    Decoder,
    Generation,
    Layout,
    TokenRequest,
    TokenSampling,
    decode,
    draw_noise,
    run,
)

Gap = tuple[int, int]  # its first frame, and the first one after it
LONGEST = 0.6  # of a clip, in training


def arrange(config: LMConfig, num_frames: int, gap: Gap) -> tuple[Pattern, Tensor]:
    """The pattern of `num_frames` frames with the gap last, and the position of each step, int64 [S].

    Where nothing comes after the gap, it is the usual one.
    """
    whole = config.pattern_of(num_frames)
    begin, end = gap
    if end == num_frames:
        return whole, torch.arange(whole.num_steps)
    frames, places, done = [], [], 0
    step = torch.zeros_like(whole.step)  # [K, T]
    for first, last in ((end, num_frames), (0, begin), (begin, end)):
        part = config.pattern_of(last - first)
        step[:, first:last] = part.step + done
        frame = torch.where(part.frame < 0, -1, part.frame + first)  # [K, S of the part]
        own = whole.step.gather(1, frame.clamp(min=0)).masked_fill(frame < 0, -1).amax(0)
        place = int(whole.step[:, first].min()) - 1
        for index, found in enumerate(own.tolist()):  # a step without codes follows the one before it
            place = found if found > 0 else place + (index > 0)
            places.append(place)
        frames.append(frame)
        done += part.num_steps
    return Pattern(torch.cat(frames, 1), step), torch.tensor(places)


def arrange_rows(
    config: LMConfig, num_frames: int, lengths: Sequence[int], gaps: Sequence[Gap | None]
) -> tuple[Pattern, Tensor]:
    """Of a batch of clips of T frames, of which `lengths` are sound: `arrange` for those with a gap -> [B, S].

    Steps past the end of a row hold special tokens.
    """
    each = []
    for length, gap in zip(lengths, gaps, strict=True):
        pattern = config.pattern_of(num_frames)
        each.append(
            (pattern, torch.arange(pattern.num_steps)) if gap is None else arrange(config, length, gap)
        )
    positions = torch.zeros(len(each), max(len(places) for _, places in each), dtype=torch.long)
    for row, (_, places) in zip(positions, each, strict=True):
        row[: len(places)] = places
    return patterns.stack([pattern for pattern, _ in each]), positions


def draw_gap(num_frames: int, generator: torch.Generator) -> Gap | None:
    """A gap in a clip: up to LONGEST of it, anywhere but at its end; None where there are too few frames."""
    if num_frames < 2:
        return None
    size, place = torch.rand(2, generator=generator).tolist()
    length = min(1 + int(size * LONGEST * num_frames), num_frames - 1)
    begin = int(place * (num_frames - length))
    return begin, begin + length


def around(gap: Gap, num_frames: int, max_frames: int) -> tuple[int, int]:
    """The frames, at most max_frames, that the model sees of a longer sound: as many before the gap as after it."""
    begin, end = gap
    room = max_frames - (end - begin)
    if room < 1:
        raise InputError(
            f"a part of {end - begin} frames is to be made anew; this model sees {max_frames} frames, and at least one "
            "beside the part: give shorter parts"
        )
    first = max(0, min(begin - room // 2, num_frames - max_frames))
    return first, min(first + max_frames, num_frames)


@torch.inference_mode()
def fill(
    decoder: Decoder,
    request: TokenRequest,
    gaps: Sequence[Gap],
    sampling: TokenSampling = TokenSampling(),  # noqa: B008 (frozen)
    *,
    max_frames: int,
    callback: Callback | None = None,
) -> Tensor:
    """Codes [B, K, T] of the request's prompt with the gaps made anew, one after the other; the rest stays.

    decoder: of a model that infills. max_frames: what it sees of a longer sound at a time. request: its num_frames is
    not used. InputError for a gap that leaves nothing to see.
    """
    replace(request, num_frames=None).check(decoder)
    config, count = decoder.config, len(request.seeds)
    codes = request.codes(config.num_codebooks).to(decoder.device).clone()
    num_frames = codes.shape[2]
    uniform = draw_noise(request.seeds, [num_frames] * count, config.num_codebooks).to(decoder.device)
    condition, guidance = request.model_condition(decoder), request.guidance if request.is_guided else None
    layouts = []
    for gap in gaps:
        first, last = around(gap, num_frames, max_frames)
        begin, end = gap[0] - first, gap[1] - first
        pattern, places = arrange(config, last - first, (begin, end))
        is_new = (pattern.frame >= begin) & (pattern.frame < end)  # [K, S]
        layout = Layout(pattern, is_new[None], int(pattern.step[:, begin:end].min()), places)
        layouts.append((slice(first, last), layout))
    total, done = sum(layout.num_decoded for _, layout in layouts), 0

    def advance() -> None:
        nonlocal done
        done += 1
        if callback is not None:
            callback(done, total)

    def each() -> Generation:
        for part, layout in layouts:
            codes[..., part] = yield from decode(
                decoder, condition, codes[..., part], uniform[..., part], layout, sampling, guidance, advance
            )

    for _ in run(decoder, each()):
        pass  # it fills `codes`
    return codes
