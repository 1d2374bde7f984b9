"""What a comparison is asked for, its real clips, and the sounds of one system: steps chosen, cost measured, all kept.

What a system makes lies in a folder of its own: `0007_2.wav` (prompt 7, seed 2), `0007_codec.wav` (real clip 7
through its codec), the same with `order_` before it, each with a .json that says how it was made, and `system.json`
with steps and cost. A run that was interrupted goes on where it ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from audiogen import audio
from audiogen.config import NotNegative, Positive, check_ranges
from audiogen.data.manifest import Clip, read_manifest, select
from audiogen.errors import InputError
from audiogen.evaluate import cost
from audiogen.evaluate.clips import Prompt, Seconds, ceiling_split, check_distinct, choose, read
from audiogen.evaluate.cost import Clock, Job
from audiogen.evaluate.order import order_prompts, real_clip
from audiogen.evaluate.scores import Cells, Warn
from audiogen.files import writing
from audiogen.files.tags import Tags
from audiogen.generators.request import noise_seed
from audiogen.interfaces import Generator

ORDER_RATE = 16000  # Hz, of the built-in corpus as it is rendered for the ceiling of order accuracy
SHORT = 0.9  # of the generated length: shorter real clips are warned of
RECONSTRUCTION = "codec"  # stands in a file's name in place of the seed


@dataclass(frozen=True)
class Comparison:
    """What to compare, and on what: the options of the command line, one of each.

    where: which clips of the data prompts come from, values by field; reference_where: which of them sets are compared
    with, None for the same. num_clips: prompts, None for all. guidance: of all models, None for each one's own.
    budget_s, steps: for systems that have steps, wall time a clip or their number. command: to quote in the report.
    """

    models: tuple[str, ...]
    data: Path
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reference_where: Mapping[str, Sequence[str]] | None = None
    num_clips: Positive | None = None
    seeds: tuple[NotNegative, ...] = (0,)
    order_prompts: NotNegative = 0
    duration_s: Seconds = 5.0
    guidance: float | None = None
    budget_s: Seconds | None = None
    steps: Positive | None = None
    embedders: tuple[str, ...] = ("tagger_tiny", "logmel")
    batch_size: Positive = 4
    num_sounds: NotNegative = 10
    device: str = "auto"
    dtype: str = "auto"
    out: Path = Path("evaluation/compare")
    command: str = ""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise InputError(f"--guidance is {self.guidance}; it must be a number, 1 for none")
        if self.budget_s is not None and self.steps is not None:
            raise InputError("--budget-s and --steps exclude each other: equal time or equal steps")
        if not self.models or not self.embedders or not self.seeds:
            raise InputError("give at least one --model, one --embedder and one of --seeds")
        check_distinct("--seeds", self.seeds)
        check_distinct("--embedder", self.embedders)
        system_names(self.models)

    @property
    def order_judge(self) -> str:
        """The tagger that judges the order of events: the first one among the embedders, else the bundled one."""
        taggers = (spec.partition(":")[2] for spec in self.embedders if spec.startswith("tagger:"))
        return next(taggers, "tagger_tiny")

    def folder(self, name: str) -> Path:
        """Where the sounds of a system are kept; of `real`, the clips for the report's players."""
        return self.out / "clips" / name


class Material(NamedTuple):
    """The real side. split: clips that stand for the reference, and prompts whose clips are measured against them."""

    reference: list[Clip]
    prompts: list[Prompt]
    split: tuple[list[Clip], list[Prompt]]
    order: list[Prompt]

    @property
    def all_prompts(self) -> list[Prompt]:
        """Those of clips, then those for two events in order."""
        return [*self.prompts, *self.order]

    @property
    def clips(self) -> list[Clip]:
        """All recordings, each once."""
        every = [*self.reference, *(prompt.clip for prompt in self.prompts)]
        return list({clip.place: clip for clip in every}.values())


class System(NamedTuple):
    """A system whose sounds are made: the cells of its row that need no embedder, and a note for the report."""

    cells: Cells
    note: str


def system_names(models: Sequence[str]) -> list[str]:
    """A short name a model, each its own: the last part of its path, or more of them where two would be equal.

    The sounds lie in a folder of that name, so one that is given as `.` or `..` goes by what it is called.
    """
    paths = [Path(model).resolve() if Path(model).is_dir() else Path(model) for model in models]
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["_".join(path.parts[-depth:]).strip("/") for path in paths]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"--model is given twice for one model: {', '.join(models)}")


def gather(comparison: Comparison, warn: Warn) -> Material:
    """Choose clips and prompts. Writes nothing: the clips of order prompts are to be made by `keep_real`."""
    everything, duration_s = read_manifest(comparison.data), comparison.duration_s
    reference = chosen = select(everything, comparison.where)
    if comparison.reference_where is not None:
        reference = select(everything, comparison.reference_where)
    prompts = choose(chosen, comparison.num_clips)
    if len(reference) < 2:
        raise InputError(f"{comparison.data}: one clip is no reference; give at least 2, better hundreds")
    num_order = comparison.order_prompts
    order = order_prompts(num_order, duration_s, comparison.folder("real")) if num_order else []
    material = Material(reference, prompts, ceiling_split(reference, prompts), order)

    def length_s(clip: Clip) -> float:
        rest_s = audio.info(clip.path).duration_s - clip.start_s  # by the header of the file
        return rest_s if clip.duration_s is None else min(rest_s, clip.duration_s)

    short = [clip for clip in material.clips if length_s(clip) < SHORT * duration_s]
    if short:
        warn(
            f"{len(short)} of {len(material.clips)} real clips are shorter than the {duration_s:g} s that "
            f"are generated, the first is {short[0].key}: figures will depend on length; see --duration"
        )
    return material


def keep_real(prompt: Prompt, comparison: Comparison) -> Path:
    """Write the real clip of a prompt, that of an order prompt synthesised, where it is not kept yet -> its path."""
    path = prompt.path(comparison.folder("real"), "real")
    duration_s = comparison.duration_s
    settings = {"clip": prompt.scene if prompt.kinds else prompt.clip.key, "duration_s": duration_s}
    if not is_kept(path, settings):
        if prompt.kinds:
            sound = real_clip(prompt, ORDER_RATE, duration_s)
            rate = ORDER_RATE
        else:
            sound = read(prompt.clip, None, None, duration_s)
            rate = audio.info(prompt.clip.path).sample_rate
        keep(path, sound, rate, settings)
    return path


# ------------------------------------------------------------------------------------------- one system's sounds


def run_system(
    generator: Generator,
    comparison: Comparison,
    folder: Path,
    material: Material,
    advance: Callable[[int], object],
    clock: Clock = time.perf_counter,
) -> System:
    """Make all sounds of a generator that are not in its folder yet; advance gets the number of those just finished."""
    duration_s = comparison.duration_s
    guidance = generator.guidance if comparison.guidance is None else comparison.guidance
    if duration_s > generator.max_duration_s:
        limit_s = generator.max_duration_s
        raise InputError(f"generates at most {limit_s:g} s; give a --duration that all models can make")
    identity, rate = generator.identity(), generator.sample_rate
    job = Job(generator, [prompt.text for prompt in material.prompts], duration_s, guidance, clock)
    steps, measured = prepare(job, identity, comparison, folder)
    codec_settings = {"identity": identity, "duration_s": duration_s}
    for prompt in material.all_prompts:
        made_with = codec_settings | {"clip": prompt.clip.key}
        if not is_kept(path := prompt.path(folder, RECONSTRUCTION), made_with):
            real = read(prompt.clip, rate, generator.channels, duration_s)
            keep(path, generator.reconstruct(real[None])[0], rate, made_with)
        advance(1)
    settings = codec_settings | {"steps": steps, "guidance": guidance}
    pending: dict[int, tuple[Path, dict[str, Any]]] = {}  # by the seed
    for seed in comparison.seeds:
        for prompt in material.all_prompts:
            own_seed = prompt.seed(seed)
            made_with = settings | {"text": prompt.text, "noise": noise_seed(own_seed, prompt.text)}
            if is_kept(path := prompt.path(folder, seed), made_with):
                advance(1)
            else:
                pending[own_seed] = (path, made_with)
    for seeds in consecutive(pending, comparison.batch_size):
        sounds = job.generate([pending[seed][1]["text"] for seed in seeds], seeds[0], steps)
        for seed, sound in zip(seeds, sounds, strict=True):  # row b has the seed of the first + b
            path, made_with = pending[seed]
            asked = {"text": made_with["text"], "seed": seed, "duration": duration_s, "guidance": guidance}
            asked |= {} if steps is None else {"steps": steps}
            keep(path, sound, rate, made_with, generator.provenance(asked).tags())
        advance(len(seeds))
    cells: Cells = {
        "family": generator.family,
        "latent_rate": generator.latent_rate,
        "identity": identity,
        "guidance": guidance,
        "steps": steps,
        **measured,
    }
    if comparison.budget_s is not None:
        used = measured["clip_s"] / comparison.budget_s
        cells["budget_used"] = 100 * used
        if used > 1.05:
            cells["remark"] = "over the budget" + ("" if steps else ", and has no steps to save")
    choices = [f"{rate} Hz" + (f", {steps} steps" if steps else ""), *generator.notes]
    return System(cells, f"weights {identity}, {'; '.join(choices)}.")


def prepare(
    job: Job, identity: str, comparison: Comparison, folder: Path
) -> tuple[int | None, dict[str, Any]]:
    """Choose the steps and measure the cost, or read from `system.json` what an earlier run found.

    Timing again would give other steps, and with them other sounds.
    """
    path = folder / "system.json"
    facts: dict[str, Any] = {
        "machine": cost.machine(),
        "identity": identity,
        "duration_s": comparison.duration_s,
        "guidance": job.guidance,
        "budget_s": comparison.budget_s,
        "asked_steps": comparison.steps,
    }
    found = writing.read_json(path) if path.is_file() else {}
    if found.get("facts") == facts:
        return found["steps"], found["cost"]
    steps = job.generator.steps_at_most(None)
    if comparison.budget_s is not None:
        steps = cost.fit_steps(job, comparison.budget_s)
    elif steps is not None and comparison.steps is not None:
        steps = comparison.steps  # as asked: the generator refuses what its sampler cannot take
    measured = cost.measure(job, steps)
    writing.write_json(path, {"facts": facts, "steps": steps, "cost": measured})
    return steps, measured


def is_kept(path: Path, settings: Mapping[str, Any]) -> bool:
    """Whether an earlier run finished this sound with these settings."""
    with suppress(InputError):
        return path.is_file() and writing.read_json(path.with_suffix(".json")) == settings
    return False


def keep(
    path: Path, sound: Tensor, sample_rate: int, settings: Mapping[str, Any], tags: Tags | None = None
) -> None:
    """Write a sound [C, N] as WAV and, beside it, what it was made with; a crash in between leaves it unfinished.

    tags: metadata of a generated one.
    """
    if not sound.isfinite().all():
        raise InputError(f"the sound for {path} holds samples that are not finite (NaN or infinity)")
    path.with_suffix(".json").unlink(missing_ok=True)  # of a sound made otherwise
    audio.save(path, audio.below_full_scale(sound), sample_rate, tags=tags)
    writing.write_json(path.with_suffix(".json"), settings)


def consecutive(numbers: Iterable[int], size: int) -> list[list[int]]:
    """Runs of consecutive numbers, at most `size` long: [0, 1, 2, 5] by 2 is [[0, 1], [2], [5]]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < size:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs
