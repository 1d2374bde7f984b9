"""One system of a comparison: open it, choose its steps, measure its cost, let it make its sounds, keep them all.

What a system makes lies in a folder of its own: `0007_2.wav` (prompt 7, seed 2), `0007_codec.wav` (real clip 7
through its codec), the same with `order_` before it, each with a .json that says how it was made, and `system.json`
with steps and cost. A run that was interrupted goes on where it ended.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from audiogen.errors import InputError
from audiogen.evaluate import cost
from audiogen.evaluate.clips import Prompt, consecutive, is_kept, keep, read
from audiogen.evaluate.cost import Clock, Cost, SteppedGenerator
from audiogen.files import checkpoint
from audiogen.interfaces import Generator

RECONSTRUCTION = "codec"  # stands in a file's name in place of the seed
SEED_STRIDE = 1_000_000  # clip `number` of seed s is generated with seed s * SEED_STRIDE + number
ORDER_OFFSET = SEED_STRIDE // 2  # and order prompt `number` with this much more

Advance = Callable[[int], object]  # is told of so many more finished sounds
Open = Callable[[str, str], Generator]  # (name or directory, device) -> generator


@dataclass(frozen=True)
class Work:
    """What every system of a comparison does.

    prompts: with the real clips they describe; order_prompts: of two events in order, with theirs. Every text is
    generated once with each seed, duration_s long. budget_s: wall time for a clip, or steps: both only matter to
    systems that have steps, which otherwise take their own number. batch_size: sounds generated at a time.
    """

    prompts: tuple[Prompt, ...]
    order_prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    duration_s: float
    guidance: float
    budget_s: float | None = None
    steps: int | None = None
    batch_size: int = 4

    @property
    def num_sounds(self) -> int:
        """That one system makes."""
        return (1 + len(self.seeds)) * (len(self.prompts) + len(self.order_prompts))


class System(NamedTuple):
    """What is known of a system once its sounds are made.

    steps: None where it has no such knob. notes: what was chosen where its files leave a choice.
    """

    identity: str
    family: str
    latent_rate: str
    sample_rate: int
    steps: int | None
    cost: Cost
    notes: tuple[str, ...] = ()


def sound_path(folder: Path, number: int, seed: int | str, order: bool = False) -> Path:
    """Where the sound of a prompt, or order prompt, lies."""
    return folder / f"{'order_' if order else ''}{number:04d}_{seed}.wav"


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


def run_system(
    model: str,
    device: str,
    folder: Path,
    work: Work,
    open_generator: Open,
    advance: Advance,
    clock: Clock = time.perf_counter,
) -> System:
    """Make all sounds of a model that are not there yet."""
    generator = open_generator(model, device)
    limit_s = generator.max_duration_s
    if work.duration_s > limit_s:
        raise InputError(f"generates at most {limit_s:g} s; give a --duration that all models can make")
    system = prepare(generator, folder, work, clock)
    codec_settings = {"identity": system.identity, "duration_s": work.duration_s}
    settings = codec_settings | {"steps": system.steps, "guidance": work.guidance}
    for order, prompts in ((False, work.prompts), (True, work.order_prompts)):
        paths = [sound_path(folder, prompt.number, RECONSTRUCTION, order) for prompt in prompts]
        reconstruct(generator, prompts, paths, work, codec_settings, advance)
        for seed in work.seeds:
            paths = [sound_path(folder, prompt.number, seed, order) for prompt in prompts]
            first_seed = seed * SEED_STRIDE + order * ORDER_OFFSET
            generate(generator, prompts, paths, first_seed, work, settings, advance)
    return system


def prepare(generator: Generator, folder: Path, work: Work, clock: Clock) -> System:
    """Choose the steps and measure the cost, or read from `system.json` what an earlier run found.

    Timing again would give other steps, and with them other sounds.
    """
    path = folder / "system.json"
    texts = [prompt.text for prompt in work.prompts]
    facts: dict[str, Any] = {
        "machine": cost.machine(),
        "identity": identity_of(generator),
        "duration_s": work.duration_s,
        "guidance": work.guidance,
        "budget_s": work.budget_s,
        "asked_steps": work.steps,
    }
    found = checkpoint.read_json(path) if path.is_file() else {}
    if found.get("facts") == facts:
        steps, measured = found["steps"], Cost(**found["cost"])
    else:
        steps = choose_steps(generator, texts[0], work, clock)
        measured = cost.measure(generator, texts, work.duration_s, work.guidance, steps, clock)
        checkpoint.write_json(path, {"facts": facts, "steps": steps, "cost": measured._asdict()})
    return System(
        facts["identity"],
        generator.family,
        generator.latent_rate,
        generator.sample_rate,
        steps,
        measured,
        tuple(getattr(generator, "notes", ())),
    )


def choose_steps(generator: Generator, text: str, work: Work, clock: Clock) -> int | None:
    """The steps that were asked for, that fit the budget, or the system's own; None for one without steps."""
    if not isinstance(generator, SteppedGenerator):
        return None
    if work.budget_s is not None:
        return cost.fit_steps(generator, text, work.duration_s, work.guidance, work.budget_s, clock)
    return generator.default_steps if work.steps is None else work.steps


def reconstruct(
    generator: Generator,
    prompts: Sequence[Prompt],
    paths: Sequence[Path],
    work: Work,
    common: dict[str, Any],
    advance: Advance,
) -> None:
    """The real clips through the system's codec or autoencoder, where they are not kept yet.

    common: what all of these sounds are made with, for the file beside each.
    """
    for prompt, path in zip(prompts, paths, strict=True):
        settings = common | {"clip": prompt.clip.key}
        if not is_kept(path, settings):
            sound = read(prompt.clip, generator.sample_rate, generator.channels, work.duration_s)
            keep(path, generator.reconstruct(sound[None])[0], generator.sample_rate, settings)
        advance(1)


def generate(
    generator: Generator,
    prompts: Sequence[Prompt],
    paths: Sequence[Path],
    first_seed: int,
    work: Work,
    common: dict[str, Any],
    advance: Advance,
) -> None:
    """A sound a prompt where it is not kept yet; prompt n has first_seed + n, whatever is generated beside it.

    common: what all of these sounds are made with, for the file beside each.
    """
    settings = [common | {"text": prompt.text, "seed": first_seed + prompt.number} for prompt in prompts]
    pending = [number for number, path in enumerate(paths) if not is_kept(path, settings[number])]
    advance(len(prompts) - len(pending))
    for numbers in consecutive(pending, work.batch_size):
        sounds = cost.generate(
            generator,
            [prompts[number].text for number in numbers],
            work.duration_s,
            work.guidance,
            first_seed + numbers[0],
            common["steps"],
        )
        for number, sound in zip(numbers, sounds, strict=True):
            keep(paths[number], sound, generator.sample_rate, settings[number])
        advance(len(numbers))


def identity_of(generator: Generator) -> str:
    """16 hex digits that change with any weight of a generator: as it says, or of the modules it holds."""
    own = getattr(generator, "identity", None)
    if callable(own):
        return str(own())
    modules = {name: part for name, part in vars(generator).items() if isinstance(part, nn.Module)}
    parts = {name: checkpoint.identity(module.state_dict()) for name, module in sorted(modules.items())}
    text = json.dumps([type(generator).__name__, parts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
