"""`evaluate compare`: systems side by side on the same prompts and seeds, between ceilings and a floor.

The ground truth says what real clips score; each system's codec, fed with real clips, what its generator could reach
at best; real clips with exchanged captions, what sounds score that do not heed the text.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from audiogen import audio
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate.clips import is_kept, keep, read
from audiogen.evaluate.comparison import Comparison, Material, gather, real_folder, render_order_clips
from audiogen.evaluate.cost import Clock, machine
from audiogen.evaluate.embedders import Embedded, load_embedder
from audiogen.evaluate.order import check_judge
from audiogen.evaluate.report import REFERENCE, Cell, Column, Plot, Sound, write_report
from audiogen.evaluate.rows import CLIP_S, COSTS, FACTS, SYSTEM, judge_entries, real_entries, system_entries
from audiogen.evaluate.scores import SET_NOTES, Warn, filled, hear, remembered
from audiogen.evaluate.systems import RECONSTRUCTION, Open, System, Work, run_system, sound_path, system_names
from audiogen.generators import load as generators
from audiogen.tagger.pretrained import load_tagger


class Outcome(NamedTuple):
    """The table, and why which system failed."""

    columns: list[Column]
    rows: list[dict[str, Cell]]
    failures: dict[str, str]


def run(
    comparison: Comparison,
    warn: Warn,
    open_generator: Open | None = None,
    clock: Clock = time.perf_counter,
) -> Outcome:
    """Generate what is missing, judge it, write the report.

    What is wrong with the data or an embedder is an InputError before anything is generated. A system that fails has
    a row that says so, and the others finish.
    """
    open_generator = open_generator or partial(generators.load, dtype=comparison.dtype)
    warnings, note = remembered(warn)
    material = gather(comparison, note)
    if material.order:
        check_judge(load_tagger(comparison.order_judge), material.order)  # now, not after hours
    real = {spec: hear_real(spec, material, comparison, note) for spec in comparison.embedders}
    render_order_clips(comparison, material)
    systems, failures = run_systems(comparison, material, open_generator, clock)
    ceiling, floor = real_entries(material)
    entries = [
        entry for name in systems for entry in system_entries(name, systems[name], comparison, material)
    ]
    columns, notes = judge_entries(comparison, material, real, ceiling, floor, entries, note)
    references = [entry.row for entry in entries if entry.row.get(REFERENCE)]
    contestants = [entry.row for entry in entries if not entry.row.get(REFERENCE)]
    failed: list[dict[str, Cell]] = [
        {SYSTEM: name, "remark": f"failed: {why}"} for name, why in failures.items()
    ]
    rows = [ceiling.row, *references, *contestants, *failed, floor.row]
    columns = filled([*FACTS, *columns, *COSTS], rows)
    quality = [column.key for column in columns if column.better and column not in COSTS]
    write_report(
        comparison.out,
        f"Comparison of {', '.join(system_names(comparison.models))}",
        [
            *describe_run(comparison, material, systems),
            *notes,
            *SET_NOTES,
            *(f"Warning: {message}" for message in warnings),
        ],
        columns,
        rows,
        find_sounds(comparison, material, list(systems)),
        [Plot(CLIP_S, key) for key in quality] if systems else [],
    )
    return Outcome(columns, rows, failures)


def hear_real(spec: str, material: Material, comparison: Comparison, warn: Warn) -> Embedded:
    """What an embedder hears in all recordings. The embedder is let go: the memory of generators is measured."""
    embedder = load_embedder(spec, choose_device(comparison.device))
    return hear(embedder, material.clips, comparison.duration_s, warn)


# ------------------------------------------------------------------------------------------------- the systems


def run_systems(
    comparison: Comparison, material: Material, open_generator: Open, clock: Clock
) -> tuple[dict[str, System], dict[str, str]]:
    """Let every system make its sounds -> those that finished, and why the others failed, by name."""
    work = Work(
        tuple(material.prompts),
        tuple(material.order_clips),
        comparison.seeds,
        comparison.duration_s,
        comparison.guidance,
        comparison.budget_s,
        comparison.steps,
        comparison.batch_size,
    )
    systems: dict[str, System] = {}
    failures: dict[str, str] = {}
    names = system_names(comparison.models)
    with tqdm(total=work.num_sounds * len(names), unit="sound", disable=None) as bar:
        for place, (name, model) in enumerate(zip(names, comparison.models, strict=True)):
            bar.set_description(name)
            folder = comparison.out / "clips" / name
            log = folder / "failure.txt"
            try:
                systems[name] = run_system(
                    model, comparison.device, folder, work, open_generator, bar.update, clock
                )
                log.unlink(missing_ok=True)
            except Exception as error:  # whatever it is, it must not take hours of the other systems with it
                reason = " ".join(str(error).split())
                failures[name] = (
                    reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
                )
                folder.mkdir(parents=True, exist_ok=True)
                log.write_text(traceback.format_exc())
                bar.update(work.num_sounds * (place + 1) - bar.n)
    return systems, failures


# --------------------------------------------------------------------------------------------------- the report


def describe_run(comparison: Comparison, material: Material, systems: Mapping[str, System]) -> list[str]:
    """Notes on what was done, with what, on which machine."""
    against, measured = material.split
    chosen = in_words(comparison.where)
    of_reference = (
        in_words(comparison.reference_where or {}) if comparison.reference_where is not None else chosen
    )
    lines = [f"Command: `{comparison.command}`"] if comparison.command else []
    lines += [
        f"Prompts: captions of {len(material.prompts)} clips of `{comparison.data}` ({chosen}), one wording each; "
        f"every system makes {comparison.duration_s:g} s of each with seeds {', '.join(map(str, comparison.seeds))}. "
        f"Reference of sets: {len(material.reference)} real clips ({of_reference}), at most their first "
        f"{comparison.duration_s:g} s.",
        "Ground truth: the real clips of the prompts. Codec alone: these through a system's codec or autoencoder, "
        "the best its generator could do. Captions shuffled: real clips, each with the caption of another: what does "
        "not heed the text scores no better.",
        "Sets: how many sounds FAD, KD, density and coverage compare with how many real ones. In the rows of real "
        f"clips these are {len(measured)} prompts' clips and {len(against)} real clips of other recordings.",
        f"Costs: {machine()}, torch {torch.__version__}; one clip after one that warmed up. Model evaluations: a "
        "guided step counts as two. Real-time factor: wall seconds for a second of sound. Memory: of the GPU where "
        f"there is one, else of the whole process. Number type: {comparison.dtype}.",
    ]
    if comparison.budget_s is not None:
        lines.append(
            f"Equal time: {comparison.budget_s:g} s a clip. A system that has steps takes as many as fit, by two timed "
            "runs; one without runs as it is, and its row says how much of the budget it used."
        )
    for name, system in systems.items():
        steps = f", {system.steps} steps" if system.steps else ""
        remarks = "".join(f"; {note}" for note in system.notes)
        lines.append(f"System {name}: weights {system.identity}, {system.sample_rate} Hz{steps}{remarks}.")
    return lines


def in_words(where: Mapping[str, Sequence[str]]) -> str:
    """A selection as the notes tell it: "fold 1/2, license CC0"."""
    return ", ".join(f"{name} {'/'.join(values)}" for name, values in where.items()) or "all clips"


def find_sounds(comparison: Comparison, material: Material, names: Sequence[str]) -> list[Sound]:
    """The sounds to listen to, prompt by prompt: real, through each codec, of each system with the first seed."""
    sounds = []
    for order, prompts in ((False, material.prompts), (True, material.order_clips)):
        for prompt in prompts[: comparison.num_sounds]:
            title = f"{prompt.number + 1}{' in order' if order else ''}. {prompt.text}"
            path = Path(prompt.clip.path)
            if not order:
                path = sound_path(real_folder(comparison), prompt.number, "real")
                settings = {"clip": prompt.clip.key, "duration_s": comparison.duration_s}
                if not is_kept(path, settings):
                    sound = read(prompt.clip, None, None, comparison.duration_s)
                    keep(path, sound, audio.info(prompt.clip.path).sample_rate, settings)
            sounds.append(Sound("ground truth", title, path))
            for name in names:
                folder = comparison.out / "clips" / name
                for row, seed in ((f"{name}, codec alone", RECONSTRUCTION), (name, comparison.seeds[0])):
                    sounds.append(Sound(row, title, sound_path(folder, prompt.number, seed, order)))
    return sounds
