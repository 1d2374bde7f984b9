"""The sounds that a command line asks for, and where they go; needs no torch, so that mistakes are reported at once."""

from __future__ import annotations

import argparse
import math
import os
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audiogen.data.prompts import Prompt, read_prompts
from audiogen.errors import InputError, plain_text
from audiogen.finish import Finish, shown
from audiogen.generate.options import DURATION_S, FORMATS, ROW_OPTIONS, finish_of

OTHER_SOUNDS = ("aac", "aif", "aiff", "au", "caf", "m4a", "mp4", "opus", "webm", "wma")


@dataclass(frozen=True)
class Job:
    """A sound file to make, with a picture beside it. guidance, negative, model: None are those of the command.

    settings: options of its own, by name, in place of the command's. finish: what becomes of it before it is written.
    """

    path: Path
    text: str | None
    duration_s: float
    seed: int
    guidance: float | None = None
    negative: str | None = None
    model: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    finish: Finish = Finish()  # noqa: RUF009 (frozen)

    @property
    def picture(self) -> Path:
        """Where the picture of its spectrogram goes."""
        return self.path.with_suffix(".png")

    @property
    def sidecar(self) -> Path:
        """Where the JSON of `--sidecar` goes."""
        return self.path.with_suffix(".json")

    def asked(self, args: argparse.Namespace) -> dict[str, Any]:
        """The options that make this sound alone, by name, as they may be typed."""
        own: dict[str, Any] = {
            "duration": str(self.duration_s) if math.isinf(self.duration_s) else self.duration_s
        }
        own |= {"seed": self.seed, "text": self.text, "negative": self.negative or args.negative}
        own |= {"guidance": args.guidance if self.guidance is None else self.guidance}
        typed = {key: str(value) if isinstance(value, Path) else value for key, value in args.typed.items()}
        whole = typed | self.settings | own
        return {key: value for key, value in whole.items() if value is not None and value is not False}


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
    models = {prompt.model or args.model for prompt in prompts}
    jobs: list[Job] = []
    for number, prompt in enumerate(prompts):
        for sample in range(args.num_samples):
            duration_s = asked_s if prompt.duration_s is None else prompt.duration_s
            seed = (args.seed if prompt.seed is None else prompt.seed) + sample
            stem = f"{number:0{wide}}_{sample:0{wide_sample}}_{_slug(prompt.text)}_seed{seed}"
            if len(models) > 1:
                stem += f"_{_slug(Path(prompt.model or args.model).name)}"
            if prompt.name is not None:
                stem = prompt.name if args.num_samples == 1 else f"{prompt.name}_seed{seed}"
            path = args.out if one_file else args.out / f"{stem}.{args.format or 'wav'}"
            own = dict(prompt.settings)
            finish = finish_of(vars(args) | own)
            given = prompt.guidance, prompt.negative, prompt.model, own, finish
            jobs.append(Job(path, prompt.text, duration_s, seed, *given))
            if args.stream and (whole := next(iter(finish.given()), None)):
                raise InputError(
                    f"{shown(whole)} is for whole sounds, and --stream writes one piece by piece; drop one of the two"
                )
    _check_distinct(jobs)
    if str(args.out) != "-":
        _check_writable(jobs[0].path.parent)
        if not args.overwrite:
            others = [page_path(args.out, jobs)] if args.report else []
            others += [job.sidecar for job in jobs] if args.sidecar else []
            _check_new(jobs, not args.stream, others)
    return jobs


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    for number, text in enumerate(args.text, start=1):
        if not text.strip():
            raise InputError(f"--text number {number} is empty; describe a sound")
        plain_text(text, "--text")
    prompts = [Prompt(text) for text in args.text]
    if args.prompts is not None:
        prompts += read_prompts(args.prompts, ROW_OPTIONS, lambda own: finish_of(vars(args) | own))
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


def _check_distinct(jobs: list[Job]) -> None:
    """Raise InputError for two sounds of one name, also where upper and lower case are one, as on some systems."""
    texts: dict[str, str | None] = {}
    for job in jobs:
        if (key := str(job.path).casefold()) in texts:
            raise InputError(
                f"{job.path} would be the file of two sounds, {(texts[key] or '')[:40]!r} and "
                f"{(job.text or '')[:40]!r}; give them different names"
            )
        texts[key] = job.text


def page_path(out: Path, jobs: Sequence[Job]) -> Path:
    """Where the page of `--report` goes: into the folder of the sounds, or beside the one sound file."""
    return out.with_suffix(".html") if jobs[0].path == out else out / "report.html"


def _check_new(jobs: list[Job], pictures: bool, others: list[Path]) -> None:
    """Raise InputError naming the first file that would be replaced."""
    paths = [path for job in jobs for path in ((job.path, job.picture) if pictures else (job.path,))] + others
    if existing := [path for path in paths if os.path.lexists(path)]:
        more = "" if len(existing) == 1 else f", and {len(existing) - 1} more"
        raise InputError(f"{existing[0]} exists{more}; choose another --out, or replace with --overwrite")


def _check_writable(folder: Path) -> None:
    """Raise InputError where the folder, which need not exist yet, could not be written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise InputError(f"--out: {there} is not a folder that can be written to; choose another")
