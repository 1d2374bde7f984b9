"""What both families of generators check and share: rows of texts, durations and seeds; options of one family."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from audiogen.errors import InputError, plain_text
from audiogen.interfaces import Edit, Generator, Progress, Sampling
from audiogen.text.schedule import check_schedule

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
FAMILIES = ("a token language model", "a latent-diffusion system")
TOKENS = "token LM"  # the family of the first
LONGEST_LM_S = 3600.0
GUIDANCE = 3.0  # of a language model whose files name none
# The fields of `Sampling` that only one of the two has.
LM_DRAWS = ("temperature", "top_k", "top_p", "peer_padding")
LATENT_DRAWS = ("steps", "sampler", "guidance_rescale", "candidates")
# The options of `audiogen.generate` that only one of the two has.
LM_ONLY = ("continue_from", *LM_DRAWS, "cuda_graph", "stream")
LATENT_EDITS = ("strength", "inpaint", "extend_before", "inpaint_resample", "upsample")
LATENT_ONLY = (*LATENT_DRAWS, *LATENT_EDITS, "clap", "heads")
# Why a language model has not those: it predicts each code from those before it, unless it was trained for more.
CAUSAL = ", which makes a sound from its beginning to its end and sees nothing of what follows"
UNSEEN = {"inpaint": " (recipe=lm_tiny_infill trains one that does)", "extend_before": ""}


@dataclass(frozen=True)
class Request:
    """Sounds to make, B of each list. texts: None is no text. num_frames, num_samples: for those durations."""

    texts: list[str | None]
    durations_s: list[float]
    seeds: list[int]
    num_frames: list[int]
    num_samples: list[int]
    guidance: float


def check(
    generator: Generator,
    texts: Sequence[str | None],
    duration_s: float | Sequence[float],
    seed: int | Sequence[int],
    guidance: float | None,
    sampling: Sampling,
) -> Request:
    """A request of one or more rows; InputError names the row or the option that cannot be.

    duration_s: one for all rows or one each. seed: row b has seed + b, or one each. guidance: None is the generator's.
    """
    if isinstance(texts, str):
        raise InputError(f"texts is the one string {texts[:40]!r}; give a list of strings")
    if not texts:
        raise InputError("no texts; give at least one, or None in its place for no text")
    for row, text in enumerate(texts):
        if text is not None and not text.strip():
            raise InputError(f"text {row} is empty; give words, or None for no text")
    texts = [None if text is None else plain_text(text, f"text {row}") for row, text in enumerate(texts)]
    if sampling.negative is not None and not sampling.negative.strip():
        raise InputError("the negative text is empty; give words, or None for no text")
    if guidance is not None and not math.isfinite(guidance):
        raise InputError(f"guidance is {guidance}; it must be a number, 1 for none")
    weight = generator.guidance if guidance is None else guidance
    if sampling.negative is not None and weight == 1:
        raise InputError("a negative text needs guidance, and here that is 1, none; give more, such as 2.5")
    durations = list(duration_s) if isinstance(duration_s, Sequence) else [duration_s] * len(texts)
    seeds = list(seed) if isinstance(seed, Sequence) else [seed + row for row in range(len(texts))]
    for name, values in (("durations", durations), ("seeds", seeds)):
        if len(values) != len(texts):
            raise InputError(f"{len(values)} {name} for {len(texts)} texts; give one, or one a text")
    check_control(sampling, texts, durations)
    for number in seeds:
        if not 0 <= number < 2**63:
            raise InputError(f"seed is {number}; it must be from 0 to {2**63 - 1}")
    frames = [generator.num_frames(duration) for duration in durations]
    samples = [num_samples(duration, generator.sample_rate) for duration in durations]
    return Request(texts, durations, seeds, frames, samples, weight)


def check_control(sampling: Sampling, texts: Sequence[str | None], durations_s: Sequence[float]) -> None:
    """InputError for a schedule, a morph or a loop that cannot be, for these sounds or together."""
    if sampling.morph is not None and not 0 <= sampling.morph <= 1:
        raise InputError(f"morph is {sampling.morph:g}; it must be from 0 (the text) to 1 (the text `to`)")
    if sampling.to is None and sampling.morph is not None:
        raise InputError("morph is between two texts, and there is one; give the other one as to")
    if sampling.to is not None:
        if not sampling.to.strip():
            raise InputError("the text to morph to is empty; give words")
        plain_text(sampling.to, "to")
        if None in texts:
            raise InputError("to needs a text to begin from, and there is none; give one")
    if sampling.crossfade_s is not None:
        if sampling.schedule is None:
            raise InputError(
                "crossfade is between the texts of a schedule, and there is none; drop crossfade"
            )
        if not 0 <= sampling.crossfade_s <= LONGEST_LM_S:
            raise InputError(
                f"crossfade is {sampling.crossfade_s:g} s; it must be from 0 to {LONGEST_LM_S:g} s"
            )
    if sampling.schedule is not None:
        check_schedule(sampling.schedule, durations_s)
        for name in ("to", "loop"):
            if getattr(sampling, name):
                raise InputError(f"schedule and {name} cannot be joined; drop one of the two")


def check_loop(sampling: Sampling, **others: object) -> None:
    """InputError for a loop with something that has a beginning or an end: the first of the others that is given."""
    for name, value in others.items():
        if sampling.loop and value:
            raise InputError(f"a loop is a new sound, made whole; drop {name} or loop")


def morph(sampling: Sampling) -> float:
    """How far the condition of a sound is from its text to the text `to`."""
    return 0.5 if sampling.morph is None else sampling.morph


def noise_seed(seed: int, text: str | None) -> int:
    """What a row's noise is drawn from: its seed and its text, the seed alone without text.

    By the seed alone, all texts of one seed would get the same noise, and their events would fall on the same moments.
    """
    if text is None:
        return seed
    # not data.seeds, which needs torch: options are parsed without
    return int.from_bytes(hashlib.sha256(f"{seed}\n{text}".encode()).digest()[:8], "big") >> 1


def num_samples(duration_s: float, sample_rate: int) -> int:
    """Audio samples for a duration."""
    return max(1, round(duration_s * sample_rate))


def refuse(options: Mapping[str, object], what: str) -> None:
    """InputError for the first of the options that is given: `what` lacks them all. options: values by their names."""
    for name, value in options.items():
        if value is not None and value is not False:  # 0 is given, and equals False
            own = name.strip("-").replace("-", "_")
            why = CAUSAL + UNSEEN[own] if FAMILIES[0] in what and own in UNSEEN else ""
            raise InputError(f"{name} is not for {what}{why}; drop {name}")


def given(sampling: Sampling, names: Sequence[str]) -> dict[str, object]:
    """Those of some fields that are not left to the model's own default."""
    values = {name: getattr(sampling, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def check_duration(duration_s: float, longest_s: float) -> None:
    """InputError unless a sound of this length can be made."""
    if not 0 < duration_s <= longest_s:  # also refuses NaN
        raise InputError(f"duration is {duration_s:g} s; it must be above 0 and at most {longest_s:g} s")


def check_pieces(**parameters: Sequence[float]) -> None:
    """InputError unless all of the values, by a parameter's name, are lengths in seconds of a part of a sound, or 0."""
    for name, value in ((name, value) for name, values in parameters.items() for value in values):
        if not 0 <= value <= LONGEST_LM_S:
            raise InputError(f"{name} is {value}; it must be from 0 to {LONGEST_LM_S:g} s")


def check_prompt(prompt: tuple[Tensor, int], durations_s: Sequence[float]) -> None:
    """InputError unless every result is longer than what it continues: audio [..., N] and its sample rate."""
    prompt_s = prompt[0].shape[-1] / prompt[1]
    shortest_s = min(durations_s)
    if shortest_s <= prompt_s:
        raise InputError(
            f"the sound to continue has {prompt_s:g} s and the duration counts it in; {shortest_s:g} s are too few: "
            "give a longer duration"
        )


def given_edit(
    edit: Edit, prompt: object, durations_s: Sequence[float], infills: bool, sampling: Sampling
) -> tuple[Tensor, int]:
    """What a language model continues, or makes parts of anew: audio [C, N] and its rate.

    infills: it was trained to make parts anew. InputError for what it cannot do.
    """
    given = {name: getattr(edit, name) or None for name in ("inpaint", "upsample")}
    if infills and given.pop("inpaint"):
        other = {"extend": edit.extend_s or None, "schedule": sampling.schedule}
        refuse(other, "parts that a language model makes anew")
    before = {"strength": edit.strength, "extend_before": edit.extend_before_s or None}
    resample = None if edit.inpaint_resample == 1 else edit.inpaint_resample
    refuse({**given, **before, "inpaint_resample": resample}, FAMILIES[0])
    if prompt is not None:
        raise InputError("prompt and edit both give a sound to continue; drop one of the two")
    for duration in durations_s:
        edit.check_duration(duration)
    return edit.audio, edit.sample_rate


def alike(
    runs: Sequence[T], key: Callable[[T], Hashable], size: int, progress: Progress | None
) -> Iterator[tuple[list[T], Callable[[int, int], None] | None]]:
    """Runs with equal keys, in order, at most `size` at a time, which together are all.

    With each a callback (steps done, steps in all), which reports to `progress` how much of all runs is done.
    """
    groups: dict[Hashable, list[T]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    before = 0
    for equal in groups.values():
        for start in range(0, len(equal), size):
            group = equal[start : start + size]
            yield group, progress and _part_of(progress, before / len(runs), len(group) / len(runs))
            before += len(group)


def _part_of(progress: Progress, before: float, share: float) -> Callable[[int, int], None]:
    return lambda done, total: progress(before + share * done / total)
