"""Sounds on their way into files: loudness and shape, watermark, metadata, picture, sidecar, signature."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from torch import Tensor

from audiogen import audio, spectrogram
from audiogen.files import writing
from audiogen.finish import Finished
from audiogen.generate.jobs import Job
from audiogen.interfaces import Generator
from audiogen.provenance import Provenance


def check(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """InputError where what is asked for beside the sounds cannot be done here; packages come with their extras."""
    if args.watermark:
        from audiogen import watermark

        watermark.check()
    if args.c2pa is not None:
        from audiogen import credentials

        credentials.check(args.c2pa, {job.path.suffix for job in jobs})


def write(
    args: argparse.Namespace, job: Job, sound: Tensor, sample_rate: int, generator: Generator
) -> Finished:
    """Write a generated sound [C, N], a picture of it, and what else was asked for -> what was written."""
    made, origin = job.finish.apply(sound, sample_rate, job.duration_s), origin_of(args, job, generator)
    if args.watermark:
        from audiogen import watermark

        message = watermark.message_of(origin.model_sha256)
        made = made._replace(sound=watermark.embed(made.sound, made.sample_rate, message))
    audio.save(job.path, made.sound, made.sample_rate, overwrite=args.overwrite, tags=origin.tags())
    title = (job.text or "no text")[:100]
    spectrogram.save_spectrogram(job.picture, made.sound, made.sample_rate, title, args.overwrite)
    complete(args, job, origin)
    return made


def origin_of(args: argparse.Namespace, job: Job, generator: Generator) -> Provenance:
    """Where a job's sound comes from, as its file says."""
    origin = generator.provenance(job.asked(args), args.inputs)
    return origin.without_prompt() if args.no_prompt_metadata else origin


def complete(args: argparse.Namespace, job: Job, origin: Provenance) -> None:
    """Sign a file that was written, and write its sidecar, where that was asked for."""
    if args.c2pa is not None:
        from audiogen import credentials

        credentials.sign(job.path, origin, args.c2pa)
    if args.sidecar:
        writing.write_json(job.sidecar, origin.record())
