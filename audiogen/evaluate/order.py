"""Order accuracy: of prompts for one sound and then another, how many clips hold both, and in the order said.

The prompts are captions of the built-in corpus, from clip numbers that are never trained on; the real clips of the
same numbers are the ceiling of the judge. The judge is strict: it is the sound that was named, not one like it, and
two sounds at the same time are in no order.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from audiogen.audio import resample
from audiogen.data import synth
from audiogen.data.dataset import SYNTH_SEED
from audiogen.data.manifest import Clip
from audiogen.data.synth.scene import compose
from audiogen.errors import InputError
from audiogen.evaluate.clips import Prompt
from audiogen.evaluate.metrics import Array, Index, Interval, bootstrap, prompt_interval
from audiogen.tagger.model import Tagger

GROUP = "synth"  # the tagger's labels that are kinds of the built-in corpus
FIRST_CLIP = 1_000_000  # clip numbers from here on are not trained on
POOL = 200  # clips to choose the next prompt from
# Probability from which a sound counts as present. Chosen on other prompts than those reported, where tagger_tiny then
# finds 97.7 % of the sounds that are there and 3.7 % of those that are not.
THRESHOLD = 0.15
EARLIER = 0.8  # share of the pairs of frames with the one and the other sound that must be in order


class OrderVerdict(NamedTuple):
    """The judge's result for one clip. in_order is true only where both sounds are present."""

    has_first: bool
    has_second: bool
    in_order: bool


def order_prompts(num: int, duration_s: float = 5.0, folder: Path = Path()) -> list[Prompt]:
    """`num` prompts in which all kinds of sound come first, and second, about equally often.

    Always the same for a duration; the first prompts of a longer list are the shorter list. Each prompt is
    the one, of a pool of the next clips with two sounds in order, whose sounds were asked for least in their place.
    folder: where the real clips will lie, once `real_clip` has made them.
    """
    if num < 1:
        raise InputError(f"{num} order prompts were asked for; the least is 1")
    if duration_s < 1.2:
        raise InputError(f"clips of {duration_s:g} s have no room for two sounds; order prompts need 1.2 s")
    scenes = ((clip, compose(SYNTH_SEED, clip, duration_s)) for clip in itertools.count(FIRST_CLIP))
    ordered = (
        (clip, scene.events[0].kind, scene.events[1].kind) for clip, scene in scenes if scene.form == "order"
    )
    pool = list(itertools.islice(ordered, POOL))
    asked: Counter[tuple[int, str]] = Counter()
    prompts: list[Prompt] = []
    for number in range(num):
        chosen = min(pool, key=lambda entry: (asked[0, entry[1]] + asked[1, entry[2]], entry))
        pool[pool.index(chosen)] = next(ordered)
        scene, *kinds = chosen
        asked.update(enumerate(kinds))
        text = synth.captions(SYNTH_SEED, scene, duration_s)[0]
        prompt = Prompt(number, text, Clip(""), tuple(kinds), scene)
        prompts.append(prompt._replace(clip=Clip(str(prompt.path(folder, "real")))))
    return prompts


def real_clip(prompt: Prompt, sample_rate: int, duration_s: float = 5.0) -> Tensor:
    """The clip [1, N] of the built-in corpus that a prompt describes, for the ceiling."""
    return synth.render(SYNTH_SEED, prompt.scene, sample_rate, duration_s).audio


def judge(probabilities: ArrayLike, first: int, second: int, threshold: float = THRESHOLD) -> OrderVerdict:
    """Probability of each kind in each frame [frames, kinds] -> are `first` and `second` present, in this order?

    A sound is present in the frames where its probability reaches the threshold. The order is right if, of all pairs
    of a frame with the first sound and a frame with the second (weighted by their probabilities; one frame with both
    counts half), in at least 0.8 the first is earlier. Two sounds at once, or A B A, come to about 0.5.
    """
    frames = np.asarray(probabilities, dtype=np.float64)[:, [first, second]]
    weights = np.where(frames >= threshold, frames, 0.0)
    has_first, has_second = (bool(weight.any()) for weight in weights.T)
    if not (has_first and has_second):
        return OrderVerdict(has_first, has_second, False)
    a, b = (weights / weights.sum(axis=0)).T
    earlier = float(b @ (np.cumsum(a) - a / 2))
    return OrderVerdict(True, True, earlier >= EARLIER)


@torch.inference_mode()
def frame_probabilities(tagger: Tagger, audio: Tensor, sample_rate: int) -> Array:
    """Audio [C, N] -> probability of each kind in each frame of `tagger.hop_s` seconds [frames, kinds]."""
    mono = resample(audio.mean(0, keepdim=True), sample_rate, tagger.sample_rate)
    logits = tagger(mono).frame_logits[0, :, tagger.group(GROUP)]
    return logits.double().sigmoid().cpu().numpy()


def check_judge(tagger: Tagger, prompts: Sequence[Prompt]) -> None:
    """InputError where prompts name a kind of sound that the tagger has no label for."""
    asked = {kind for prompt in prompts for kind in prompt.kinds}
    if unknown := sorted(asked.difference(tagger.config.groups.get(GROUP, ()))):
        lacks = f"{tagger.name!r} cannot judge order: it has no label {unknown[0]!r}"
        raise InputError(f"the tagger {lacks}; use tagger_tiny")


def judge_clips(
    tagger: Tagger, clips: Iterable[Tensor], sample_rate: int, prompts: Sequence[Prompt]
) -> list[OrderVerdict]:
    """A verdict for each clip [C, N], each on its own prompt. Raises InputError as `check_judge` does."""
    check_judge(tagger, prompts)
    kinds = tagger.config.groups[GROUP]
    verdicts = []
    for clip, prompt in zip(clips, prompts, strict=True):
        first, second = map(kinds.index, prompt.kinds)
        verdicts.append(judge(frame_probabilities(tagger, clip, sample_rate), first, second))
    return verdicts


def order_accuracy(verdicts: Sequence[OrderVerdict], takes: int = 1) -> dict[str, Interval]:
    """Shares of all clips: `order` (both sounds, in order), `both_heard`; and `in_order`, the share of the latter.

    Intervals are over the prompts; takes of one stand side by side. Where no clip has both, in_order is NaN.
    """
    flags = np.array([(v.in_order, v.has_first and v.has_second) for v in verdicts], dtype=np.float64)
    right, both = flags.reshape(-1, takes, 2).mean(1).T
    found = np.flatnonzero(both)  # other prompts say nothing about the order

    def share(index: Index) -> float:
        return float(right[found[index]].sum() / both[found[index]].sum())

    in_order = bootstrap(share, len(found)) if len(found) else Interval(math.nan, math.nan, math.nan)
    return {"order": prompt_interval(right), "both_heard": prompt_interval(both), "in_order": in_order}
