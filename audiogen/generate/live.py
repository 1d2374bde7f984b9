"""Sound that is still being made, on its way to a file or a player: level, time, interruption, WAV without an end."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from torch import Tensor

from audiogen import audio
from audiogen.files.tags import Tags
from audiogen.signals import stop_signals

ALMOST_SILENT_DB = -60.0  # root of the mean square, against full scale


@dataclass
class Meter:
    """The level of a sound that passes by."""

    power: float = 0.0
    count: int = 0

    def watch(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The blocks [C, n] as they are, measured."""
        for block in blocks:
            self.add(block)
            yield block

    def add(self, block: Tensor) -> None:
        """One block."""
        self.power += float(block.double().square().sum())
        self.count += block.numel()

    @property
    def level_db(self) -> float:
        """Root of the mean square against full scale, -200 at least."""
        return max(-200.0, 10 * math.log10(max(self.power, 1e-20) / max(self.count, 1)))

    def remark(self, turned_down_db: float) -> str:
        """What is to be said of it: how far it was turned down, or that there is next to nothing."""
        if self.level_db < ALMOST_SILENT_DB:
            return f"  almost silent, {self.level_db:.0f} dBFS"
        return f"  turned down by {turned_down_db:.1f} dB" if turned_down_db > 0.05 else ""


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


def write_wav(file: BinaryIO, blocks: Iterable[Tensor], sample_rate: int, tags: Tags | None = None) -> None:
    """Blocks [C, n] to a pipe as a WAV file of 16 bits, each as soon as it is there."""
    for number, block in enumerate(blocks):
        if number == 0:
            file.write(audio.wav_header(sample_rate, len(block), tags=tags))
        file.write(audio.pcm16(block))
        file.flush()
