"""Random numbers that depend on what they are for and on nothing else."""

import hashlib

import torch


def seed_for(*parts: int | str) -> int:
    """A stable 63-bit seed from any integers and strings: equal on every machine, Python and process.

    `seed_for("crop", seed, epoch, index)` gives each use, epoch and item a stream of its own, so no
    generator's state has to be saved or passed between workers.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_for(*parts: int | str) -> torch.Generator:
    """Random numbers of one use, on the CPU, see `seed_for`."""
    return torch.Generator().manual_seed(seed_for(*parts))


def draw(generator: torch.Generator, low: float, high: float) -> float:
    """One number, uniform in [low, high)."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
