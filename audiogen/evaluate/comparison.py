"""What a comparison is asked for, and the real clips that it rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from audiogen import audio
from audiogen.data.manifest import Clip, read_manifest, select
from audiogen.errors import InputError
from audiogen.evaluate.clips import Prompt, ceiling_split, choose, is_kept, keep
from audiogen.evaluate.order import OrderPrompt, order_prompts, real_clip
from audiogen.evaluate.scores import Warn
from audiogen.evaluate.systems import sound_path, system_names

ORDER_RATE = 16000  # Hz, of the built-in corpus as it is rendered for the ceiling of order accuracy
SHORT = 0.9  # of the generated length: shorter real clips are warned of


@dataclass(frozen=True)
class Comparison:
    """What to compare, and on what.

    models: bundled names or model directories. data: a manifest; where: which of its clips prompts come from, values
    by field; reference_where: which of them sets are compared with, None for the same. num_clips: prompts, None for
    all. order_prompts: prompts of two events in order. duration_s: of what is generated, and at most of real clips.
    budget_s, steps: for systems that have steps, wall time a clip or their number. embedders: specs. num_sounds:
    prompts whose sounds the report holds. dtype: of the systems, as `audiogen.generate` takes it. command: what to
    quote in the report.
    """

    models: tuple[str, ...]
    data: Path
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reference_where: Mapping[str, Sequence[str]] | None = None
    num_clips: int | None = None
    seeds: tuple[int, ...] = (0,)
    order_prompts: int = 0
    duration_s: float = 5.0
    guidance: float = 3.0
    budget_s: float | None = None
    steps: int | None = None
    embedders: tuple[str, ...] = ("tagger_tiny",)
    batch_size: int = 4
    num_sounds: int = 10
    device: str = "auto"
    dtype: str = "auto"
    out: Path = Path("evaluation/compare")
    command: str = ""

    def __post_init__(self) -> None:
        def at_least(option: str, value: int | None, least: int) -> None:
            if value is not None and value < least:
                raise InputError(f"--{option} is {value}; allowed: {least} and more")

        for option, value, least in (
            ("num-clips", self.num_clips, 1),
            ("order-prompts", self.order_prompts, 0),
            ("steps", self.steps, 1),
            ("batch-size", self.batch_size, 1),
            ("num-sounds", self.num_sounds, 0),
        ):
            at_least(option, value, least)
        for option, seconds in (("duration", self.duration_s), ("budget-s", self.budget_s)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise InputError(f"--{option} is {seconds:g} s; it must be above 0")
        if not math.isfinite(self.guidance):
            raise InputError(f"--guidance is {self.guidance}; it must be a number, 1 for none")
        if self.budget_s is not None and self.steps is not None:
            raise InputError("--budget-s and --steps exclude each other: equal time or equal steps")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise InputError(f"--seeds {list(self.seeds)}; give at least one, each once, from 0 on")
        if not self.models or not self.embedders:
            raise InputError("nothing to compare; give at least one --model and one --embedder")
        if len(set(self.embedders)) != len(self.embedders):
            raise InputError(f"--embedder is given twice for one embedder: {', '.join(self.embedders)}")
        system_names(self.models)

    @property
    def order_judge(self) -> str:
        """The tagger that hears the order of events: the first one among the embedders, else the bundled one."""
        taggers = [spec.partition(":")[2] for spec in self.embedders if spec.startswith("tagger:")]
        return taggers[0] if taggers else "tagger_tiny"


class Material(NamedTuple):
    """The real side. split: clips that stand for the reference, and prompts whose clips are measured against them."""

    reference: list[Clip]
    prompts: list[Prompt]
    split: tuple[list[Clip], list[Prompt]]
    order: list[OrderPrompt]
    order_clips: list[Prompt]

    @property
    def clips(self) -> list[Clip]:
        """All recordings, each once."""
        return list(
            {clip.place: clip for clip in [*self.reference, *(p.clip for p in self.prompts)]}.values()
        )


def gather(comparison: Comparison, warn: Warn) -> Material:
    """Choose clips and prompts. Writes nothing: `render_order_clips` does, once embedders are known to be there."""
    everything = read_manifest(comparison.data)
    chosen = select(everything, comparison.where)
    reference = chosen
    if comparison.reference_where is not None:
        reference = select(everything, comparison.reference_where)
    prompts = choose(chosen, comparison.num_clips)
    if len(reference) < 2:
        raise InputError(
            f"{comparison.data}: one clip is chosen as reference; give at least 2, better hundreds"
        )
    order = []
    if comparison.order_prompts:
        order = order_prompts(comparison.order_prompts, duration_s=comparison.duration_s)
    order_clips = [
        Prompt(
            number, prompt.caption, Clip(str(sound_path(real_folder(comparison), number, "real", order=True)))
        )
        for number, prompt in enumerate(order)
    ]
    split = ceiling_split(reference, prompts)
    material = Material(reference, prompts, split, order, order_clips)
    short = [clip for clip in material.clips if length_s(clip) < SHORT * comparison.duration_s]
    if short:
        warn(
            f"{len(short)} of {len(material.clips)} real clips are shorter than the {comparison.duration_s:g} s that "
            f"are generated, the first is {short[0].key}: figures will tell lengths apart; see --duration"
        )
    return material


def render_order_clips(comparison: Comparison, material: Material) -> None:
    """Write the real clips of order prompts, which are synthesised, where they are not kept yet."""
    for prompt, told in zip(material.order, material.order_clips, strict=True):
        settings = {"clip": prompt.number, "duration_s": comparison.duration_s}
        path = Path(told.clip.path)
        if not is_kept(path, settings):
            keep(path, real_clip(prompt, ORDER_RATE, comparison.duration_s), ORDER_RATE, settings)


def real_folder(comparison: Comparison) -> Path:
    """Where real clips are kept to be listened to."""
    return comparison.out / "clips" / "real"


def length_s(clip: Clip) -> float:
    """Seconds of a clip, by the header of its file."""
    rest_s = audio.info(clip.path).duration_s - clip.start_s
    return rest_s if clip.duration_s is None else min(rest_s, clip.duration_s)
