"""The rows of a comparison: what each is about, and its cells as embedders and the judge of order fill them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

from audiogen.data.manifest import Clip
from audiogen.device import choose_device
from audiogen.evaluate.clips import Prompt, read, shuffled
from audiogen.evaluate.comparison import Comparison, Material
from audiogen.evaluate.embedders import Embedded, Embedder, load_embedder
from audiogen.evaluate.order import OrderPrompt, judge_clips, order_accuracy
from audiogen.evaluate.report import REFERENCE, Cell, Column
from audiogen.evaluate.scores import (
    Warn,
    describe,
    embedder_columns,
    hear,
    inception_cells,
    paired_cells,
    set_cells,
    take,
    text_cells,
)
from audiogen.evaluate.systems import RECONSTRUCTION, System, sound_path
from audiogen.tagger.model import Tagger
from audiogen.tagger.pretrained import load_tagger

SYSTEM, CLIP_S, SETS = "system", "clip_s", "sets"
FACTS = (
    Column(SYSTEM, "System"),
    Column("family", "Family"),
    Column("num_parameters", "Parameters"),
    Column("latent_rate", "Latent rate"),
    Column("n", "n"),
    Column(SETS, "Sets"),
)
COSTS = (
    Column("steps", "Steps"),
    Column("num_evaluations", "Model evaluations"),
    Column("guidance", "Guidance", digits=1),
    Column(CLIP_S, "Time a clip (s)", "lower"),
    Column("budget_used", "Budget used (%)", digits=0),
    Column("real_time_factor", "Real-time factor", "lower"),
    Column("real_time_factor_8", "Real-time factor, batch 8", "lower"),
    Column("peak_memory_mb", "Peak memory (MB)", "lower", 0),
    Column("remark", "Remark"),
)


class Entry(NamedTuple):
    """A row and the sounds it is about: each prompt's takes, one prompt after another; likewise of order prompts."""

    row: dict[str, Cell]
    clips: list[Clip]
    order_clips: list[Clip]
    takes: int


def real_entries(material: Material) -> tuple[Entry, Entry]:
    """Ceiling and floor: real clips with their captions, and with those of others, which a single prompt lacks."""
    clips, order_clips = (
        [prompt.clip for prompt in side] for side in (material.prompts, material.order_clips)
    )
    ceiling: dict[str, Cell] = {
        SYSTEM: "ground truth",
        "family": "real clips",
        "n": len(clips),
        REFERENCE: True,
    }
    floor = ceiling | {SYSTEM: "captions shuffled"}
    of_others, order_of_others = (
        [side[other] for other in shuffled(len(side))] if len(side) > 1 else []
        for side in (clips, order_clips)
    )
    if not of_others:
        floor |= {"n": 0, "remark": "needs two prompts"}
    return Entry(ceiling, clips, order_clips, 1), Entry(floor, of_others, order_of_others, 1)


def system_entries(name: str, system: System, comparison: Comparison, material: Material) -> list[Entry]:
    """Rows of a system: real clips through its codec, and what it generated."""
    folder = comparison.out / "clips" / name
    seeds = comparison.seeds

    def kept(prompts: Sequence[Prompt], takes: Sequence[int | str], order: bool) -> list[Clip]:
        return [
            Clip(str(sound_path(folder, prompt.number, seed, order))) for prompt in prompts for seed in takes
        ]

    prompts, order_clips, measured = material.prompts, material.order_clips, system.cost
    codec: dict[str, Cell] = {
        SYSTEM: f"{name}, codec alone",
        "family": "real clips",
        "latent_rate": system.latent_rate,
        "n": len(prompts),
        REFERENCE: True,
    }
    row: dict[str, Cell] = {
        SYSTEM: name,
        "family": system.family,
        "latent_rate": system.latent_rate,
        "n": len(prompts) * len(seeds),
        "seeds": ",".join(map(str, seeds)),
        "identity": system.identity,
        "guidance": comparison.guidance,
        "steps": system.steps,
        **measured._asdict(),
    }
    if comparison.budget_s is not None:
        used = measured.clip_s / comparison.budget_s
        row["budget_used"] = 100 * used
        if used > 1.05:
            row["remark"] = "over the budget" + ("" if system.steps else ", and has no steps to save")
    again = [RECONSTRUCTION]
    return [
        Entry(codec, kept(prompts, again, False), kept(order_clips, again, True), 1),
        Entry(row, kept(prompts, seeds, False), kept(order_clips, seeds, True), len(seeds)),
    ]


def judge_entries(
    comparison: Comparison,
    material: Material,
    real: Mapping[str, Embedded],
    ceiling: Entry,
    floor: Entry,
    entries: Sequence[Entry],
    warn: Warn,
) -> tuple[list[Column], list[str]]:
    """Fill the rows -> the columns, and notes on who judged. real: what each embedder hears in all recordings."""
    columns: list[Column] = []
    notes: list[str] = []
    device = choose_device(comparison.device)
    for spec in comparison.embedders:
        embedder = load_embedder(spec, device)
        heard = real[spec]
        fill_real(embedder, material, heard, ceiling, floor, warn)
        originals = of_real(material, heard, ceiling.clips)
        reference = of_real(material, heard, material.reference)
        for entry in entries:
            warn_of = partial(prefixed, warn, str(entry.row[SYSTEM]))
            sounds = hear(embedder, entry.clips, None, warn_of)
            if entry.row.get(REFERENCE):  # a codec's rendering of real clips is measured as those are
                entry.row.update(ceiling_cells(embedder, material, heard, sounds, warn_of))
            else:
                entry.row[SETS] = sizes(sounds, reference)
                entry.row.update(set_cells(embedder, reference, sounds, warn_of, entry.takes))
            entry.row.update(prompt_cells(embedder, material, originals, sounds, entry.takes))
        columns += embedder_columns(embedder)
        notes.append(describe(embedder))
    if material.order:
        tagger = load_tagger(comparison.order_judge, device)
        for entry in (entry for entry in (ceiling, floor, *entries) if entry.order_clips):
            entry.row.update(order_cells(tagger, entry, material.order))
        columns.append(Column(f"order {judge_of(tagger)}", "Order accuracy", "higher"))
        notes.append(
            f"Order accuracy: of {len(material.order)} prompts for two events of the built-in corpus, one after the "
            f"other, the share of clips that hold both, in that order, as `{tagger.name}` ({tagger.identity}) hears "
            "them."
        )
    return columns, notes


def fill_real(
    embedder: Embedder, material: Material, heard: Embedded, ceiling: Entry, floor: Entry, warn: Warn
) -> None:
    """The rows of real clips. Their figures of sets are the same: sets have no captions."""
    originals = of_real(material, heard, ceiling.clips)
    known = sum(prompt.label in embedder.labels for prompt in material.prompts)
    if 0 < known < len(material.prompts):
        warn(
            f"label accuracy by {embedder.name}: {known} of {len(material.prompts)} prompts have a label it knows"
        )
    warn_of = partial(prefixed, warn, str(ceiling.row[SYSTEM]))
    of_sets = ceiling_cells(embedder, material, heard, originals, warn_of)
    for entry in (ceiling, floor):
        entry.row.update(of_sets)
        if entry.clips:
            sounds = of_real(material, heard, entry.clips)
            entry.row.update(prompt_cells(embedder, material, originals, sounds, 1))


def ceiling_cells(
    embedder: Embedder, material: Material, heard: Embedded, sounds: Embedded, warn: Warn
) -> dict[str, Cell]:
    """Figures of sets of one sound a prompt, each made from its real clip: against real clips of other recordings."""
    against, measured = material.split
    part = take(sounds, [prompt.number for prompt in measured])
    reference = of_real(material, heard, against)
    return {SETS: sizes(part, reference), **set_cells(embedder, reference, part, warn)}


def sizes(sounds: Embedded, reference: Embedded) -> str:
    """How many sounds figures of sets compare with how many real ones: it need not be the n of the row."""
    return f"{len(sounds.embeddings)} with {len(reference.embeddings)}"


def prefixed(warn: Warn, name: str, message: str) -> None:
    """A warning that says which row it is about."""
    warn(f"{name}: {message}")


def of_real(material: Material, heard: Embedded, clips: Sequence[Clip]) -> Embedded:
    """What was heard in some of the recordings."""
    places = {clip.place: place for place, clip in enumerate(material.clips)}
    return take(heard, [places[clip.place] for clip in clips])


def prompt_cells(
    embedder: Embedder, material: Material, originals: Embedded, sounds: Embedded, takes: int
) -> dict[str, Cell]:
    """IS, KL from the originals, label accuracy and CLAP score of the sounds for all prompts."""
    texts = [prompt.text for prompt in material.prompts]
    labels = [prompt.label for prompt in material.prompts]
    return (
        inception_cells(embedder, sounds, takes)
        | paired_cells(embedder, originals, sounds, takes)
        | text_cells(embedder, texts, labels, sounds, takes)
    )


def judge_of(tagger: Tagger) -> str:
    """A judge of order in the keys of its figures, as `key_of` names an embedder."""
    return f"{tagger.name} {tagger.identity}"


def order_cells(tagger: Tagger, entry: Entry, prompts: Sequence[OrderPrompt]) -> dict[str, Cell]:
    """Share of clips that hold both events in order; for the JSON, that hold both, and of these those in order."""
    sounds = (read(clip, tagger.sample_rate, 1, None) for clip in entry.order_clips)
    asked = [prompt for prompt in prompts for _ in range(entry.takes)]
    found = order_accuracy(judge_clips(tagger, sounds, tagger.sample_rate, asked), entry.takes)
    figures = {"order": found.right, "both_heard": found.both_heard, "in_order": found.in_order}
    return {f"{name} {judge_of(tagger)}": figure for name, figure in figures.items()}
