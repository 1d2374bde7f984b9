"""Sound that is still being made, on its way to a file or a player: level, WAV without an end, interruption."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import torch
from torch import Tensor

from audiogen.signals import stop_signals

UNKNOWN = 0xFFFFFFFF  # as the length of a WAV file without an end: players read on


class Clock:
    """When the first sound came and how much there was: `real_time_factor` needs both."""

    def __init__(self, sample_rate: int):
        self.sample_rate, self.began = sample_rate, time.monotonic()
        self.first_s, self.spent_s, self.sound_s = 0.0, 0.0, 0.0

    def watch(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The blocks [C, n] as they are, timed."""
        for block in blocks:
            self.spent_s = time.monotonic() - self.began
            self.first_s = self.first_s or self.spent_s
            self.sound_s += block.shape[-1] / self.sample_rate
            yield block


def until_interrupted(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Blocks up to Ctrl-C, which ends the sound and not the program; before the first, and twice, it ends both."""
    coming = iter(blocks)
    yield from itertools.islice(coming, 1)
    with stop_signals() as received:
        for block in coming:
            yield block
            if received:
                return


def below_full_scale(blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """Blocks [C, n] turned down where a peak is past full scale; the level falls up to that peak and stays down.

    The blocks to come may be louder, so this is not the one level of `audio.below_full_scale`; nothing is cut off.
    """
    level = 1.0
    for block in blocks:
        loud = block.abs().amax(0) * level > 1.0  # [n]
        if not loud.any():
            yield level * block
            continue
        before, level = level, 1.0 / float(block.abs().max())
        fade = torch.full((block.shape[-1],), level)
        first = int(loud.int().argmax())  # where it must be over; a peak at once leaves no time for it
        fade[:first] = torch.linspace(before, level, first + 1)[:first]
        yield fade * block


def write_wav(file: BinaryIO, blocks: Iterable[Tensor], sample_rate: int) -> None:
    """Blocks [C, n] to a pipe as a WAV file of 16 bits, each as soon as it is there."""
    header = None
    for block in blocks:
        if header is None:
            channels = block.shape[0]
            form = struct.pack(
                "<HHIIHH", 1, channels, sample_rate, 2 * channels * sample_rate, 2 * channels, 16
            )
            header = b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVEfmt " + struct.pack("<I", len(form)) + form
            file.write(header + b"data" + struct.pack("<I", UNKNOWN))
        file.write((block.clamp(-1, 1) * 32767).round().to(torch.int16).T.contiguous().numpy().tobytes())
        file.flush()
