"""`evaluate compare`: systems side by side on the same prompts and seeds, between ceilings and a floor.

The ground truth says what real clips score; each system's codec, fed with real clips, what its generator could reach
at best; real clips with exchanged captions, what sounds score that do not follow the text.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from audiogen.data.manifest import Clip, group_of
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.evaluate import metrics, scores, systems
from audiogen.evaluate.clips import Prompt, in_words, label_of, read, shuffled
from audiogen.evaluate.cost import Clock, machine
from audiogen.evaluate.embedders import LOGMEL, Embedded, Embedder, load_embedder
from audiogen.evaluate.judge import fit_judge
from audiogen.evaluate.metrics import Interval
from audiogen.evaluate.order import check_judge, judge_clips, order_accuracy
from audiogen.evaluate.scores import Cells, Warn
from audiogen.evaluate.systems import RECONSTRUCTION, Comparison, Material, System, keep_real
from audiogen.evaluate.texts import columns_of, notes_on
from audiogen.files.writing import StorageError
from audiogen.generators import load as generators
from audiogen.interfaces import Generator
from audiogen.models.own import load_tagger
from audiogen.report import REFERENCE, Column, Report, Sound, filled
from audiogen.tagger.model import Tagger

DISAGREEMENT = 0.1  # of label accuracies, from which on a row is named
TYPICAL = 0.05  # of real clips that count as near copies

Open = Callable[[str, str], Generator]  # (name or directory, device) -> generator


class Entry(NamedTuple):
    """A row and the sounds it is about: each prompt's takes, one prompt after another; likewise of order prompts."""

    row: Cells
    clips: list[Clip]
    order_clips: list[Clip]
    takes: int = 1


def run(
    comparison: Comparison, warn: Warn, open_generator: Open | None = None, clock: Clock = time.perf_counter
) -> Report:
    """Generate what is missing, judge it, write the report.

    What is wrong with the data or an embedder is an InputError before anything is generated. A system that fails has
    a row that says so, and the others finish.
    """
    # One that is missing is named before any work, and the hub is asked once.
    found = (
        {}
        if open_generator
        else {name: generators.find(name, kinds=generators.GENERATES) for name in comparison.models}
    )
    opened = open_generator or (lambda model, device: generators.load(found[model], device, comparison.dtype))
    warnings, note = scores.once(warn)
    material = systems.gather(comparison, note)
    device = choose_device(comparison.device)
    if material.order:
        check_judge(load_tagger(comparison.order_judge), material.order)  # now, not after hours
    real = {  # the embedders are closed again: the memory of generators is measured
        spec: scores.embed_files(load_embedder(spec, device), material.clips, comparison.duration_s, note)
        for spec in comparison.embedders
    }
    for prompt in material.order:
        keep_real(prompt, comparison)
    finished, failures = run_systems(comparison, material, opened, clock)
    ceiling, floor = real_entries(material)
    entries = [ceiling, floor]
    for name, system in finished.items():
        entries += system_entries(name, system, comparison, material)
    columns, judges = [], []
    for spec in comparison.embedders:
        embedder = load_embedder(spec, device)
        sounds = fill(embedder, material, real[spec], entries, note)
        columns += scores.embedder_columns(embedder)
        judges += notes_on("embedder", embedder=embedder)
        if spec == LOGMEL:
            judges += judge_spectra(embedder, material, real[spec], entries, sounds, note)
    if material.order:
        tagger = load_tagger(comparison.order_judge, device)
        columns.append(judge_order(tagger, entries, material.order))
        judges += notes_on("order", num_prompts=len(material.order), tagger=tagger)
    flag_disagreement(entries, note)
    codecs_first = sorted(entries[2:], key=lambda entry: REFERENCE not in entry.row)
    failed: list[Cells] = [{"system": name, "remark": f"failed: {why}"} for name, why in failures.items()]
    rows = [ceiling.row, *(entry.row for entry in codecs_first), *failed, floor.row]
    columns, costs = filled(columns, rows), filled(columns_of("costs"), rows)
    quality = [column.key for column in columns if column.better]
    report = Report(
        f"Comparison of {', '.join(systems.system_names(comparison.models))}",
        [*describe_run(comparison, material, finished), *judges, *notes_on("sets"), *warnings],
        [*filled(columns_of("systems"), rows), *columns, *costs],
        rows,
        find_sounds(comparison, material, list(finished)),
        [("clip_s", key) for key in quality] if finished else [],
        failures,
    )
    report.write(comparison.out)
    return report


def run_systems(
    comparison: Comparison, material: Material, open_generator: Open, clock: Clock
) -> tuple[dict[str, System], dict[str, str]]:
    """Let every system make its sounds -> those that finished, and why the others failed, by name."""
    finished: dict[str, System] = {}
    failures: dict[str, str] = {}
    names = systems.system_names(comparison.models)
    num_sounds = (1 + len(comparison.seeds)) * len(material.all_prompts)
    with tqdm(total=num_sounds * len(names), unit="sound", disable=None) as bar:
        for place, (name, model) in enumerate(zip(names, comparison.models, strict=True), 1):
            bar.set_description(name)
            folder = comparison.folder(name)
            log = folder / "failure.txt"
            try:
                opened = open_generator(model, comparison.device)
                finished[name] = systems.run_system(opened, comparison, folder, material, bar.update, clock)
                log.unlink(missing_ok=True)
            except StorageError:
                raise  # the other systems would meet the same full disk
            except Exception as error:  # whatever it is, it must not take hours of the other systems with it
                kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
                failures[name] = kind + " ".join(str(error).split())
                folder.mkdir(parents=True, exist_ok=True)
                log.write_text(traceback.format_exc())
                bar.update(num_sounds * place - bar.n)
    return finished, failures


# ---------------------------------------------------------------------------------------------------- the rows


def real_entries(material: Material) -> tuple[Entry, Entry]:
    """Ceiling and floor: real clips with their captions, and with those of others, which a single prompt lacks."""

    def others(clips: list[Clip]) -> list[Clip]:
        return [clips[other] for other in shuffled(len(clips))] if len(clips) > 1 else []

    clips = [prompt.clip for prompt in material.prompts]
    order_clips = [prompt.clip for prompt in material.order]
    ceiling: Cells = {"system": "ground truth", "family": "real clips", "n": len(clips), REFERENCE: True}
    floor = ceiling | {"system": "captions shuffled"}
    if len(clips) == 1:
        floor |= {"n": 0, "remark": "needs two prompts"}
    return Entry(ceiling, clips, order_clips), Entry(floor, others(clips), others(order_clips))


def system_entries(name: str, system: System, comparison: Comparison, material: Material) -> list[Entry]:
    """Rows of a system: real clips through its codec, and what it generated."""
    folder = comparison.folder(name)

    def clips(prompts: Sequence[Prompt], takes: Sequence[int | str]) -> list[Clip]:
        return [Clip(str(prompt.path(folder, take))) for prompt in prompts for take in takes]

    def entry(row: Cells, takes: Sequence[int | str]) -> Entry:
        sounds = clips(material.prompts, takes)
        order_sounds = clips(material.order, takes)
        return Entry(row | {"n": len(sounds)}, sounds, order_sounds, len(takes))

    codec: Cells = {"system": f"{name}, codec alone", "family": "real clips", REFERENCE: True}
    codec["latent_rate"] = system.cells["latent_rate"]
    row = {"system": name, "seeds": ",".join(map(str, comparison.seeds)), **system.cells}
    return [entry(codec, [RECONSTRUCTION]), entry(row, comparison.seeds)]


def fill(
    embedder: Embedder, material: Material, real: Embedded, entries: Sequence[Entry], warn: Warn
) -> list[Embedded]:
    """The cells of one embedder in all rows -> the sounds of each row.

    Ceiling and floor have equal figures of sets: sets have no captions. real: all recordings. entries: ceiling, floor,
    then those of the systems.
    """
    places = {clip.place: place for place, clip in enumerate(material.clips)}

    def of_real(clips: Sequence[Clip]) -> Embedded:
        return scores.take(real, [places[clip.place] for clip in clips])

    labels = [label_of(prompt.clip) for prompt in material.prompts]
    scores.warn_of_labels(embedder, labels, "prompts", warn)
    ceiling, floor = entries[:2]
    originals, texts = of_real(ceiling.clips), [prompt.text for prompt in material.prompts]
    found = []
    lacking: dict[str, dict[str, list[str]]] = {}  # rows by the figures that they lack, and the reason
    against, measured = material.split
    for entry in entries:
        is_real = bool(entry.row.get(REFERENCE))

        def warn_of(message: str, row: object = entry.row["system"]) -> None:
            warn(f"{row}: {message}")

        def lacks(message: str, row: object = entry.row["system"]) -> None:
            figures, _, reason = message.partition(": ")
            lacking.setdefault(figures, {}).setdefault(reason, []).append(str(row))

        if entry is ceiling or entry is floor:
            sounds = of_real(entry.clips)
        else:
            sounds = scores.embed_files(embedder, entry.clips, None, warn_of)
        found.append(sounds)
        if entry is not floor:
            # What is made of each prompt's real clip is measured against real clips of other recordings.
            part = scores.take(sounds, [prompt.number for prompt in measured]) if is_real else sounds
            reference = of_real(against if is_real else material.reference)
            sets = f"{len(part.embeddings)} with {len(reference.embeddings)}"
            cells = scores.set_cells(embedder, reference, part, lacks, entry.takes)
            for of_sets in (ceiling, floor) if entry is ceiling else (entry,):
                of_sets.row.update(cells | {"sets": sets})
        if entry.clips:
            values = scores.clip_values(embedder, sounds, entry.takes, originals, labels, texts)
            entry.row.update(scores.inception_cells(embedder, sounds, entry.takes))
            entry.row.update({key: scores.mean_of_defined(each, entry.takes) for key, each in values.items()})
    for figures, reasons in lacking.items():
        why = "; ".join(f"{reason} ({'; '.join(rows)})" for reason, rows in reasons.items())
        warn(f"{figures}: {why}")
    return found


def judge_spectra(
    embedder: Embedder,
    material: Material,
    real: Embedded,
    entries: Sequence[Entry],
    sounds: Sequence[Embedded],
    warn: Warn,
) -> list[str]:
    """Label accuracy and near copies by statistics of spectra, in all rows -> notes on how.

    real, entries: as in `fill`, which gave the sounds.
    """
    places = {clip.place: place for place, clip in enumerate(material.clips)}

    def of(clips: Sequence[Clip]) -> metrics.Array:
        return real.embeddings[[places[clip.place] for clip in clips]].astype(np.float64)

    against, measured = material.split
    typical = metrics.nearest(of(against), of([prompt.clip for prompt in measured]))
    threshold = np.quantile(typical, TYPICAL)
    for entry, made in zip(entries, sounds, strict=True):
        part, reference, takes = made.embeddings, of(material.reference), entry.takes
        if entry.row.get(REFERENCE):
            part, reference = part[[prompt.number for prompt in measured]], of(against)
        if entry is not entries[1]:  # the floor: the ceiling's sounds
            near = metrics.nearest(reference, part) < threshold
            entry.row[scores.key_of(embedder, "near")] = metrics.prompt_interval(near, takes)
    notes = notes_on("near", embedder=embedder)
    labels, groups = zip(*((label_of(clip), group_of(clip)) for clip in material.reference), strict=True)
    try:
        judge = fit_judge(of(material.reference), labels, groups)
    except InputError as error:
        warn(str(error))
        return notes
    prompts = [prompt.clip for prompt in material.prompts]
    for index, (entry, made) in enumerate(zip(entries, sounds, strict=True)):
        if entry.clips:
            sources = entry.clips if index < 2 else prompts  # ceiling and floor are real clips themselves
            wanted = [label_of(clip) for clip in prompts for _ in range(entry.takes)]
            recordings = [group_of(clip) for clip in sources for _ in range(entry.takes)]
            right = judge.right(made.embeddings, recordings, wanted)
            entry.row[scores.key_of(embedder, "accuracy")] = scores.mean_of_defined(right, entry.takes)
    return notes_on("judge", embedder=embedder, judge=judge) + notes


def flag_disagreement(entries: Sequence[Entry], warn: Warn) -> None:
    """Name the rows whose label accuracies differ: a judge flatters what it was trained beside."""
    for entry in entries:
        found = {
            key.split()[1]: cell.value
            for key, cell in entry.row.items()
            if key.startswith("accuracy ") and isinstance(cell, Interval)
        }
        if found and max(found.values()) - min(found.values()) > DISAGREEMENT:
            said = ", ".join(f"{value:.2f} by {name}" for name, value in found.items())
            warn(f"{entry.row['system']}: label accuracies differ by more than {DISAGREEMENT:g}: {said}")


def judge_order(tagger: Tagger, entries: Sequence[Entry], prompts: Sequence[Prompt]) -> Column:
    """Share of clips that hold both events in order; for the JSON, that hold both, and of these those in order."""
    judge = f"{tagger.name} {tagger.identity}"
    for entry in entries:
        if entry.order_clips:
            sounds = (read(clip, tagger.sample_rate, 1, None) for clip in entry.order_clips)
            asked = [prompt for prompt in prompts for _ in range(entry.takes)]
            figures = order_accuracy(judge_clips(tagger, sounds, tagger.sample_rate, asked), entry.takes)
            entry.row.update({f"{name} {judge}": figure for name, figure in figures.items()})
    return Column(f"order {judge}", "Order accuracy", "higher")


# --------------------------------------------------------------------------------------------------- the report


def describe_run(comparison: Comparison, material: Material, finished: Mapping[str, System]) -> list[str]:
    """Notes on what was done, with what, on which machine."""
    against, measured = material.split
    where, of_reference = comparison.where, comparison.reference_where
    lines = [f"Command: `{comparison.command}`"] if comparison.command else []
    lines += notes_on(
        "compare",
        comparison=comparison,
        where=in_words(where),
        reference_where=in_words(where if of_reference is None else of_reference),
        seeds=", ".join(map(str, comparison.seeds)),
        num_prompts=len(material.prompts),
        num_reference=len(material.reference),
        num_measured=len(measured),
        num_against=len(against),
        machine=machine(),
        torch=torch.__version__,
    )
    if comparison.budget_s is not None:
        lines += notes_on("budget", comparison=comparison)
    return [*lines, *(f"System {name}: {system.note}" for name, system in finished.items())]


def find_sounds(comparison: Comparison, material: Material, names: Sequence[str]) -> list[Sound]:
    """The sounds to listen to, prompt by prompt: real, through each codec, of each system with the first seed."""
    sounds, num = [], comparison.num_sounds
    for prompt in [*material.prompts[:num], *material.order[:num]]:
        title = f"{prompt.number + 1}{' in order' if prompt.kinds else ''}. {prompt.text}"
        sounds.append(Sound("ground truth", title, keep_real(prompt, comparison)))
        for name in names:
            for row, take in ((f"{name}, codec alone", RECONSTRUCTION), (name, comparison.seeds[0])):
                sounds.append(Sound(row, title, prompt.path(comparison.folder(name), take)))
    return sounds
