"""What `python -m audiogen.generate` runs once its arguments are checked: open the model, generate, write, report."""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio
from audiogen.errors import InputError
from audiogen.finish import Finished
from audiogen.generate import files, live
from audiogen.generate.jobs import Job, page_path, plan
from audiogen.generate.options import refuse_others
from audiogen.generators import load as generators
from audiogen.generators.request import check_control, check_duration, check_prompt, num_samples
from audiogen.interfaces import Edit, Generator, Sampling
from audiogen.models.digest import digest_of
from audiogen.models.find import SYSTEM, Found, find

BAR = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of sound [{elapsed}<{remaining}]"


def run(args: argparse.Namespace, jobs: Sequence[Job]) -> dict[str, Any]:
    """Make the jobs; warnings are printed in one line each -> what `--json` prints."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    files.check(args, jobs)
    args.inputs = {
        name: digest_of(path) for name, path in args.typed.items() if isinstance(path, Path) and path.exists()
    }
    with warnings.catch_warnings():
        setattr(warnings, "showwarning", _show_warning)  # noqa: B010 (a plain assignment does not pass mypy)
        warnings.filterwarnings("ignore", message="Glyph")  # emoji in the title of a picture
        opened = []
        for name in dict.fromkeys(job.model or args.model for job in jobs):
            found = find(name, kinds=generators.GENERATES)
            generators.check_generates(found)
            own = argparse.Namespace(**vars(args) | {"model": name})
            for job in (job for job in jobs if (job.model or args.model) == name):
                has = generators.more_options(found) if args.inpaint else ()
                refuse_others(argparse.Namespace(**vars(own) | job.settings), found.kind == SYSTEM, has)
            opened.append((own, found))
        prompt = None if args.continue_from is None else audio.load(args.continue_from)
        edit = None
        if args.init is not None:
            edit = read_edit(args)
            jobs = plan(args, edit.duration_s)
        parts = [[job for job in jobs if (job.model or args.model) == own.model] for own, _ in opened]
        for (_, found), part in zip(opened, parts, strict=True):  # before any weights are read
            longest_s = generators.max_duration_s(found, args.heads)
            for job in part:
                check_control(sampling_of(args, job), [job.text], [job.duration_s])
                if not (args.stream and job.duration_s == math.inf):
                    check_duration(job.duration_s, longest_s)
        made = [
            make(own, found, part, prompt, edit) for (own, found), part in zip(opened, parts, strict=True)
        ]
    sounds = [sound for model in made for sound in model.pop("sounds")]
    if args.report:
        from audiogen.generate import page  # late: matplotlib, which a stream needs for nothing else

        page.write(path := page_path(args.out, jobs), sounds, args.command)
        print(path)
    return {
        "sounds": sounds,
        "sound_s": sum(model["sound_s"] for model in made),
        "spent_s": sum(model["spent_s"] for model in made),
        "models": made,
    }


def read_edit(args: argparse.Namespace) -> Edit:
    """What is to become of --init; a longer --duration, where nothing else is given, extends it at its end."""
    sound, rate = audio.load(args.init)
    extend_s, before_s = args.extend or 0.0, args.extend_before or 0.0
    others = args.strength, args.inpaint, args.extend, args.upsample or None
    if args.duration is not None and others == (None,) * 4:
        extend_s = max(0.0, args.duration - before_s - sound.shape[-1] / rate)
    resample = 1 if args.inpaint_resample is None else args.inpaint_resample
    return Edit(sound, rate, args.strength, args.inpaint, args.upsample, extend_s, before_s, resample)


def make(
    args: argparse.Namespace,
    found: Found,
    jobs: Sequence[Job],
    prompt: tuple[Tensor, int] | None,
    edit: Edit | None,
) -> dict[str, Any]:
    """Open a model and make its jobs, those of one guidance and one negative text together -> facts of all."""
    packed = True if args.cuda_graph else None
    generator = generators.load(
        found, args.device, args.dtype, args.text_encoder, args.adapter, packed, args.heads, args.clap
    )
    if edit is not None and edit.sample_rate != generator.sample_rate:
        warnings.warn(
            f"{args.init} has {edit.sample_rate} Hz and the model {generator.sample_rate} Hz; it is resampled",
            stacklevel=1,
        )
    _check_durations(jobs, generator, prompt, edit, args.stream)
    groups: dict[tuple[float | None, Sampling], list[Job]] = {}
    for job in jobs:
        guidance = args.guidance if job.guidance is None else job.guidance
        groups.setdefault((guidance, sampling_of(args, job)), []).append(job)
    spent_s, sounds = 0.0, []
    about = {"model": args.model, "family": generator.family, "device": str(generator.device)}
    about["sample_rate"] = generator.sample_rate
    for (guidance, sampling), group in groups.items():
        chosen = {"model": args.model, "guidance": generator.guidance if guidance is None else guidance}
        chosen |= {key: value for key, value in vars(sampling).items() if value is not None}
        if args.stream:
            clock, sound = stream(args, group[0], generator, guidance, prompt, sampling)
            return about | {"sounds": [chosen | sound], "sound_s": clock.sound_s, "spent_s": clock.spent_s}
        call = partial(generator.generate, guidance=guidance, prompt=prompt, sampling=sampling, edit=edit)
        at_once = len(group) if args.peer_padding else generator.batch_size
        took_s, facts = generate(group, generator, call, at_once, args)
        spent_s += took_s
        sounds += [chosen | fact for fact in facts]
    for note in generator.notes:
        print(note)
    sound_s = sum(job.duration_s for job in jobs)
    print(
        f"real-time factor {spent_s / sound_s:.2f} ({sound_s:g} s of sound in {spent_s:.1f} s), "
        f"model {args.model} on {generator.device}"
    )
    return about | {"sounds": sounds, "sound_s": sound_s, "spent_s": spent_s, "notes": list(generator.notes)}


def sampling_of(args: argparse.Namespace, job: Job) -> Sampling:
    """How a job is drawn: by the command's options, and its own in their place."""
    settings = vars(args) | job.settings | {"negative": job.negative or args.negative}
    in_order = settings["in_order"]
    settings["in_order"] = None if in_order is None else in_order == "yes"
    return Sampling(**{field.name: settings[field.name] for field in fields(Sampling)})


def generate(
    jobs: Sequence[Job],
    generator: Generator,
    make: Callable[..., Tensor],
    at_once: int,
    args: argparse.Namespace,
) -> tuple[float, list[dict[str, Any]]]:
    """Make and write the jobs, some at once -> seconds of generation, and facts of each sound.

    make: `generator.generate` with its settings.
    """
    spent_s, facts = 0.0, []
    with tqdm(total=sum(job.duration_s for job in jobs), bar_format=BAR, disable=None) as bar:
        for start in range(0, len(jobs), at_once):
            group = jobs[start : start + at_once]
            began = time.monotonic()
            down_db: list[float] = []
            sounds = make(
                [job.text for job in group],
                [job.duration_s for job in group],
                seed=[job.seed for job in group],
                progress=partial(_advance, bar, bar.n, sum(job.duration_s for job in group)),
                turned_down_db=down_db,
            )
            spent_s += time.monotonic() - began
            for job, sound, down in zip(group, sounds, down_db, strict=True):
                rate = generator.sample_rate
                sound = sound[:, : num_samples(job.duration_s, rate)]
                made = files.write(args, job, sound, rate, generator)
                (meter := live.Meter()).add(made.sound)
                down += made.turned_down_db
                tqdm.write(f"{job.path}  {job.picture}  seed {job.seed}{meter.remark(down)}")
                for note in made.notes:
                    warnings.warn(f"{job.path}: {note}", stacklevel=1)
                facts.append(facts_of(job, meter, down) | {"picture": str(job.picture)} | shape_of(job, made))
    return spent_s, facts


def facts_of(job: Job, meter: live.Meter, turned_down_db: float) -> dict[str, Any]:
    """What `--json` and the page of `--report` say of one sound."""
    return {
        "path": str(job.path),
        "text": job.text,
        "duration_s": job.duration_s,
        "seed": job.seed,
        "level_db": round(meter.level_db, 2),
        "turned_down_db": round(turned_down_db, 2),
    }


def shape_of(job: Job, made: Finished) -> dict[str, Any]:
    """Facts of a sound that was given another loudness or shape."""
    if not job.finish.given():
        return {}
    facts = {"duration_s": made.sound.shape[-1] / made.sample_rate, "sample_rate": made.sample_rate}
    return facts if made.loudness is None else facts | {"loudness": round(made.loudness, 2)}


def stream(
    args: argparse.Namespace,
    job: Job,
    generator: Generator,
    guidance: float | None,
    prompt: tuple[Tensor, int] | None,
    sampling: Sampling,
) -> tuple[live.Clock, dict[str, Any]]:
    """Write one sound while it is generated; Ctrl-C ends it where it is -> its times, and facts of it."""
    if args.peer_padding:
        raise InputError("--peer-padding is for batches, and --stream makes one sound: drop one of the two")
    clock, meter = live.Clock(generator.sample_rate), live.Meter()
    pieces = generator.stream(
        job.text,
        None if math.isinf(job.duration_s) else job.duration_s,
        guidance=guidance,
        seed=job.seed,
        prompt=prompt,
        sampling=sampling,
        turned_down_db=(down_db := [0.0]),
    )
    pieces = meter.watch(clock.watch(live.until_interrupted(pieces)))
    origin = files.origin_of(args, job, generator)
    if to_player := str(args.out) == "-":
        live.write_wav(sys.stdout.buffer, pieces, generator.sample_rate, origin.tags())
    else:
        audio.save(
            job.path,
            pieces,
            generator.sample_rate,
            keep_begun=True,
            overwrite=args.overwrite,
            tags=origin.tags(),
        )
        files.complete(args, job, origin)
    line = (
        f"{job.path}  seed {job.seed}  first sound after {clock.first_s:.2f} s, real-time factor "
        f"{clock.spent_s / clock.sound_s:.2f} ({clock.sound_s:g} s of sound in {clock.spent_s:.1f} s), "
        f"model {args.model} on {generator.device}{meter.remark(down_db[0])}"
    )
    if not to_player:
        print(line)
    elif not args.quiet:
        print(line, file=sys.stderr)
    return clock, facts_of(job, meter, down_db[0]) | {"duration_s": clock.sound_s, "first_s": clock.first_s}


def _advance(bar: tqdm[Any], before_s: float, group_s: float, share: float) -> None:
    """Move the bar to where a share of a group of sounds is done."""
    bar.update(before_s + share * group_s - bar.n)


def _check_durations(
    jobs: Sequence[Job],
    generator: Generator,
    prompt: tuple[Tensor, int] | None,
    edit: Edit | None,
    endless: bool,
) -> None:
    for job in jobs:
        if edit is not None:
            edit.check_duration(job.duration_s)
        job.finish.check(job.duration_s, generator.channels, job.path.suffix.lstrip("."))
        if not (endless and job.duration_s == math.inf):
            generator.num_frames(job.duration_s)
    if prompt is not None:
        check_prompt(prompt, [job.duration_s for job in jobs])


def _show_warning(message: Warning | str, *_: Any) -> None:
    """A warning in one line, without the place in the code."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)
