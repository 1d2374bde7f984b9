"""The log of a run: `log.jsonl` always, TensorBoard on request, a progress bar with loss, speed and time left."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from audiogen import audio as audio_io
from audiogen import distributed
from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.spectrogram import save_spectrogram

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def read_log(run: str | Path) -> list[dict[str, Any]]:
    """The records of a run's `log.jsonl`, {"step", "time_s", and scalars}; a line cut by a kill is left out."""
    path = Path(run) / "log.jsonl"
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def bar_interval_s() -> float:
    """Seconds between two drawings of a progress bar: five per second on a terminal, few lines in a log file."""
    return 0.2 if sys.stderr.isatty() else 30.0


class Speed:
    """What a second of training does, from one record of the log to the next."""

    def __init__(self, device: torch.device):
        self.device = device
        self._clear()

    def _clear(self) -> None:
        self._all_s = self._waited_s = 0.0
        self._amounts: Counter[str] = Counter()

    def add(self, waited_s: float, all_s: float, amounts: Mapping[str, float]) -> None:
        """A step that took `all_s`, of which it waited for its batch, and what it worked on, in any units."""
        self._waited_s += waited_s
        self._all_s += all_s
        self._amounts.update(amounts)

    def take(self) -> dict[str, float]:
        """Of this process and the steps since the last call: `speed/UNIT_per_s`, `data_wait`, `memory_gb`.

        data_wait: the share of their time that they waited for batches. memory_gb: the peak so far.
        """
        all_s = max(self._all_s, 1e-9)
        rates = {f"speed/{unit}_per_s": amount / all_s for unit, amount in self._amounts.items()}
        facts = {"speed/data_wait": self._waited_s / all_s, "speed/memory_gb": peak_memory(self.device) / 1e9}
        self._clear()
        return rates | facts


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process held: of the GPU, or resident on a CPU; 0 where nothing counts them."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or resource is None:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


class Log:
    """One run's log, resumed at `start`: later records, of steps that a kill undid, are dropped.

    Scalars are those of their step, not averaged, with all digits: a resumed run's log equals an unbroken run's except
    for the times and `speed/`. `visible=False` (all ranks but the first) writes and shows nothing.
    """

    def __init__(self, run: Path, start: int, total: int, tensorboard: bool = False, visible: bool = True):
        self.run, self.visible = run, visible
        self._began = time.monotonic()
        self._unwritten = ""  # records that a full disk kept from the file
        self._file: Any = None
        self._board: Any = None
        if visible:
            self._open(start, tensorboard)
        self._bar = tqdm(  # last, so that an error's line has no bar before it
            total=total,
            initial=start,
            unit="step",
            dynamic_ncols=True,
            disable=not visible,
            mininterval=bar_interval_s(),
        )

    def _open(self, start: int, tensorboard: bool) -> None:
        """The file, with what is in it up to step `start`, and TensorBoard's."""
        run = self.run
        kept = [record for record in read_log(run) if record["step"] <= start]
        lines = "".join(json.dumps(record) + "\n" for record in kept)
        writing.write_bytes_atomic(run / "log.jsonl", lines.encode())
        with writing.storing(run / "log.jsonl"):
            self._file = open(run / "log.jsonl", "r+b", buffering=0)  # noqa: SIM115
        self._size = self._file.seek(0, os.SEEK_END)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "fit.tensorboard=true needs the tensorboard package: pip install tensorboard"
                ) from None
            self._board = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def advance(self, metrics: Mapping[str, float]) -> None:
        """One step is done: move the bar."""
        self._bar.set_postfix_str(f"loss {metrics['train/loss']:.4f}", refresh=False)
        self._bar.update()

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars after `step` optimiser steps; what finds no space is written with a later record."""
        if self._file is not None:
            time_s = round(time.monotonic() - self._began, 2)
            self._unwritten += json.dumps({"step": step, "time_s": time_s, **metrics}) + "\n"
            with self.tolerating():
                self._write()
        if self._board is not None:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)

    def _write(self) -> None:
        """Append what is unwritten; after a fault the file ends where it did."""
        data = self._unwritten.encode()
        with writing.storing(self.run / "log.jsonl", len(data)):
            try:
                self._file.seek(self._size)
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
            except OSError:
                self._file.truncate(self._size)
                raise
        self._size += len(data)
        self._unwritten = ""

    @contextmanager
    def tolerating(self) -> Iterator[None]:
        """What cannot be stored within is a warning: training goes on, and tries again when it is due."""
        try:
            yield
        except (writing.StorageError, distributed.Followed) as error:  # the first process says which
            self.say(f"warning: {error}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.visible:
            self._bar.write(text, file=sys.stderr)

    def sounds(self, step: int, sounds: Mapping[str, Tensor], sample_rate: int) -> None:
        """Write audio [C, N] of each name, and its spectrogram, to `samples/step_.../`."""
        folder = self.run / "samples" / f"step_{step:08d}"
        for name, sound in sounds.items():
            sound = sound.detach().float().cpu().clamp(-1, 1)
            audio_io.save(folder / f"{name}.wav", sound, sample_rate)
            save_spectrogram(folder / f"{name}.png", sound, sample_rate, name)
            if self._board is not None:
                self._board.add_audio(name, sound.mean(0, keepdim=True), step, sample_rate)

    def close(self) -> None:
        """Close the bar and the files."""
        for each in (self._bar, self._file, self._board):
            if each is not None:
                each.close()
