"""The models of a server: opened, warmed up, and each with its worker."""

import argparse
import sys
import time

import torch

from audiogen.errors import InputError
from audiogen.generators.load import load
from audiogen.interfaces import Generator
from audiogen.serve.engine import Worker

MOST_BYTES = 4 * 2**30  # of the sounds that may be there at once


def open_workers(args: argparse.Namespace) -> dict[str, Worker]:
    """A worker for each of `args.model`; says what was opened and how fast it is."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    workers: dict[str, Worker] = {}
    for name in dict.fromkeys(args.model):
        began = time.monotonic()
        generator = load(name, args.device, args.dtype)
        check_memory(name, generator, args)
        opened_s = time.monotonic() - began
        factor = warm_up(generator)
        generator.provenance({})  # its files are hashed once, before sounds name them
        print(
            f"{name}: {generator.family}, {generator.sample_rate} Hz, on {generator.device}; "
            f"opened in {opened_s:.1f} s, a second of sound takes {factor:.2g} s",
            file=sys.stderr,
        )
        workers[name] = Worker(name, generator, args.max_batch, args.max_queue, args.batch_wait_ms / 1000)
        workers[name].max_own = args.max_own or args.max_queue
    return workers


def check_memory(name: str, generator: Generator, args: argparse.Namespace) -> None:
    """InputError where the sounds that may be there at once would not fit."""
    sounds = args.max_batch + args.max_queue
    size = int(sounds * args.max_duration * generator.sample_rate * generator.channels * 4)
    if size > MOST_BYTES:
        raise InputError(
            f"{sounds} sounds of {args.max_duration:g} s by {name} are {size / 1e9:.1f} GB; lower --max-duration, "
            f"--max-batch or --max-queue: {MOST_BYTES / 1e9:.1f} GB are allowed"
        )


def warm_up(generator: Generator) -> float:
    """Make a second of sound twice -> seconds that the second one took."""
    spent_s = 0.0
    for _ in range(2):
        began = time.monotonic()
        generator.generate(["a sound"], min(1.0, generator.max_duration_s))
        spent_s = time.monotonic() - began
    return spent_s
