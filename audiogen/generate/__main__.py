"""`python -m audiogen.generate`: text to sound files, each with a picture of its spectrogram.

A sound is a function of its text, duration, seed and the settings, not of the prompts beside it: sample j of every
prompt has the seed `--seed` + j (or the seed of the prompt's own line in `--prompts`, + j), which is printed.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import sys
import time
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiogen.data.prompts import Prompt, read_prompts
from audiogen.errors import InputError, run_command
from audiogen.generate.options import (
    FORMATS,
    LATENT_SETTINGS,
    LM_SETTINGS,
    check_edit,
    given,
    parse_arguments,
    read_heads,
    read_span,
    refuse_others,
)

if TYPE_CHECKING:
    from torch import Tensor
    from tqdm import tqdm

    from audiogen.generators.latent import LatentGenerator
    from audiogen.generators.load import AudioGen
    from audiogen.generators.request import Edit

OTHER_SOUNDS = ("aac", "aif", "aiff", "au", "caf", "m4a", "mp4", "opus", "webm", "wma")
MAX_THREADS = 1024
DURATION_S = 5.0
BAR = "{l_bar}{bar}| {n:.1f}/{total:.1f} s of sound [{elapsed}<{remaining}]"


@dataclass(frozen=True)
class Job:
    """A sound file to make."""

    path: Path
    text: str | None
    duration_s: float
    seed: int


def main(argv: Sequence[str] | None = None) -> int:
    """Generate, write and report. What the user got wrong is an InputError, raised before anything is written."""
    args = parse_arguments(argv)
    if args.threads is not None and not 1 <= args.threads <= MAX_THREADS:
        raise InputError(f"--threads is {args.threads}; it must be from 1 to {MAX_THREADS}")
    check_edit(args)
    inpaint, heads = read_span(args.inpaint), read_heads(args.heads)
    jobs = plan(args)
    if str(args.out) != "-":
        _check_writable(jobs[0].path.parent)

    # Here and not at the top: they import torch, and --help should answer at once. What is imported stays, so that
    # looking for garbage among it, a third of a second, is left out now and later.
    gc.disable()
    import torch
    from tqdm import tqdm

    from audiogen import audio
    from audiogen.generators import load as generators
    from audiogen.generators.request import Edit

    gc.enable()
    gc.freeze()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with warnings.catch_warnings():
        setattr(warnings, "showwarning", _show_warning)  # noqa: B010 (a plain assignment does not pass mypy)
        warnings.filterwarnings("ignore", message="Glyph")  # emoji in the title of a picture
        _refuse_others(args)
        clip = None if args.continue_from is None else audio.load(args.continue_from)
        edit = None
        if args.init is not None:
            edit = Edit(*audio.load(args.init), args.strength, inpaint, args.upsample)
            jobs = plan(args, edit.duration_s)
        packed = True if args.cuda_graph else None
        generator = generators.load(
            args.model, args.device, args.dtype, args.text_encoder, args.adapter, packed, heads, args.clap
        )
        _check_durations(jobs, generator, clip, edit, args.stream)
        if isinstance(generator, generators.AudioGen):
            if args.stream:
                return stream(args, jobs[0], generator, clip)
            call = generator.generate if clip is None else partial(generator.generate_continuation, *clip)
            make = partial(call, peer_padding=args.peer_padding, **given(args, LM_SETTINGS))
        else:
            if edit is not None and edit.sample_rate != generator.sample_rate:
                warnings.warn(
                    f"{args.init} has {edit.sample_rate} Hz and the model {generator.sample_rate} Hz; it is resampled",
                    stacklevel=1,
                )
            make = partial(generator.generate, edit=edit, **given(args, LATENT_SETTINGS))
        sound_s, spent_s = sum(job.duration_s for job in jobs), 0.0
        at_once = len(jobs) if args.peer_padding else generator.batch_size  # peers are all that is asked for
        with tqdm(total=sound_s, bar_format=BAR, disable=None) as bar:
            for start in range(0, len(jobs), at_once):
                group = jobs[start : start + at_once]
                began = time.monotonic()
                sounds = make(
                    [job.text for job in group],
                    [job.duration_s for job in group],
                    guidance=args.guidance,
                    seed=[job.seed for job in group],
                    negative=args.negative,
                    progress=partial(_advance, bar, bar.n, sum(job.duration_s for job in group)),
                )
                spent_s += time.monotonic() - began
                for job, sound in zip(group, sounds, strict=True):
                    sound = audio.below_full_scale(sound[:, : generator.num_samples(job.duration_s)])
                    picture = job.path.with_suffix(".png")
                    try:
                        audio.save(job.path, sound, generator.sample_rate)
                        audio.save_spectrogram(
                            picture, sound, generator.sample_rate, (job.text or "no text")[:100]
                        )
                    except OSError as error:
                        raise InputError(
                            f"{job.path}: cannot be written ({error.strerror or error})"
                        ) from error
                    tqdm.write(f"{job.path}  {picture}  seed {job.seed}")
    for note in generator.notes:
        print(note)
    print(
        f"real-time factor {spent_s / sound_s:.2f} ({sound_s:g} s of sound in {spent_s:.1f} s), "
        f"model {args.model} on {generator.device}"
    )
    return 0


def _refuse_others(args: argparse.Namespace) -> None:
    """Raise InputError where an option is given that the model's family does not have, or where there is no model."""
    from audiogen.generators import load as generators

    latent = generators.is_latent(args.model)
    try:
        refuse_others(args, latent, generators.FAMILIES[latent])
    except InputError:
        generators.find(args.model)
        raise


def stream(args: argparse.Namespace, job: Job, generator: AudioGen, clip: tuple[Tensor, int] | None) -> int:
    """Write one sound while it is generated; Ctrl-C ends it where it is."""
    from audiogen import audio
    from audiogen.generate import live as streaming

    if args.peer_padding:
        raise InputError("--peer-padding is for batches, and --stream makes one sound: drop one of the two")
    clock = streaming.Clock(generator.sample_rate)
    pieces = generator.stream(
        job.text,
        None if math.isinf(job.duration_s) else job.duration_s,
        guidance=args.guidance,
        seed=job.seed,
        negative=args.negative,
        continue_from=clip,
        **given(args, LM_SETTINGS),
    )
    pieces = streaming.below_full_scale(clock.watch(streaming.until_interrupted(pieces)))
    if str(args.out) == "-":
        streaming.write_wav(sys.stdout.buffer, pieces, generator.sample_rate)
    else:
        audio.save(job.path, pieces, generator.sample_rate)
    print(
        f"{job.path}  seed {job.seed}  first sound after {clock.first_s:.2f} s, real-time factor "
        f"{clock.spent_s / clock.sound_s:.2f} ({clock.sound_s:g} s of sound in {clock.spent_s:.1f} s), "
        f"model {args.model} on {generator.device}",
        file=sys.stderr if str(args.out) == "-" else sys.stdout,
    )
    return 0


def _advance(bar: tqdm[Any], before_s: float, group_s: float, share: float) -> None:
    """Move the bar to where a share of a group of sounds is done."""
    bar.update(before_s + share * group_s - bar.n)


def plan(args: argparse.Namespace, default_s: float = DURATION_S) -> list[Job]:
    """The sounds to make and where they go, in order: prompts as given, each with its samples.

    default_s: their duration where none is given.
    """
    asked_s = default_s if args.duration is None else args.duration
    prompts = _prompts(args)
    if args.num_samples < 1:
        raise InputError(f"--num-samples is {args.num_samples}; it must be at least 1")
    count = len(prompts) * args.num_samples
    if args.stream and count != 1:
        raise InputError(f"--stream makes one sound, and there are {count} to make; give one prompt")
    if str(args.out) == "-" and (not args.stream or args.format not in (None, "wav")):
        raise InputError(
            "--out - is the WAV file that --stream writes to a player: add --stream, without --format"
        )
    one_file = str(args.out) == "-" or _is_file(args.out, args.format, count)
    wide, wide_sample = len(str(len(prompts) - 1)), len(str(args.num_samples - 1))
    jobs = []
    for number, prompt in enumerate(prompts):
        for sample in range(args.num_samples):
            name = f"{number:0{wide}}_{sample:0{wide_sample}}_{_slug(prompt.text)}.{args.format or 'wav'}"
            duration_s = asked_s if prompt.duration_s is None else prompt.duration_s
            seed = args.seed if prompt.seed is None else prompt.seed
            jobs.append(
                Job(args.out if one_file else args.out / name, prompt.text, duration_s, seed + sample)
            )
    return jobs


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    for number, text in enumerate(args.text, start=1):
        if not text.strip():
            raise InputError(f"--text number {number} is empty; say what is to be heard")
    prompts = [Prompt(text) for text in args.text]
    if args.prompts is not None:
        prompts += read_prompts(args.prompts)
    if not prompts and args.continue_from is None and args.init is None:
        raise InputError(
            'nothing to generate; give --text "a dog barks", --prompts FILE, --continue-from FILE or --init FILE'
        )
    return prompts or [Prompt(None)]


def _is_file(out: Path, format: str | None, count: int) -> bool:
    """Whether `out` is the file for the one sound rather than a folder, checked against what is asked for."""
    suffix = out.suffix.lower().lstrip(".")
    if out.is_dir() or suffix not in (*FORMATS, *OTHER_SOUNDS):
        if out.exists() and not out.is_dir():
            raise InputError(
                f"--out {out} is a file; give a folder, or a name ending in .{', .'.join(FORMATS)}"
            )
        return False
    if suffix not in FORMATS:
        raise InputError(
            f"--out {out}: format {suffix!r} cannot be written; allowed are {', '.join(FORMATS)}"
        )
    if format not in (None, suffix):
        raise InputError(f"--out {out} and --format {format} disagree; drop one of the two")
    if count > 1:
        raise InputError(f"--out {out} is one file, but there are {count} sounds to make; give a folder")
    return True


def _slug(text: str | None) -> str:
    """A text as part of a file name: ASCII letters and digits, the first 40 characters or so."""
    if text is None:
        return "no_text"
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")[:40].strip("_") or "sound"


def _check_durations(
    jobs: Sequence[Job],
    generator: AudioGen | LatentGenerator,
    clip: tuple[Tensor, int] | None,
    edit: Edit | None,
    endless: bool,
) -> None:
    for job in jobs:
        if edit is not None:
            edit.check_duration(job.duration_s)
        if not (endless and job.duration_s == math.inf):
            generator.num_frames(job.duration_s)
    if clip is not None and (shortest := min(job.duration_s for job in jobs)) <= clip[0].shape[-1] / clip[1]:
        raise InputError(
            f"the sound to continue has {clip[0].shape[-1] / clip[1]:g} s and the duration counts it in; "
            f"{shortest:g} s are too few: give a longer --duration"
        )


def _check_writable(folder: Path) -> None:
    """Raise InputError where the folder, which need not exist yet, could not be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out: {there} is not a folder that can be written to; choose another")


def _show_warning(message: Warning | str, *_: Any) -> None:
    """A warning in one line, without the place in our code."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_command(main))
