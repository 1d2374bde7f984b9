"""Whether a command's memory and open files stay flat over hours; Linux only.

    python tools/endurance.py stream 7200       seconds of sound that --stream writes
    python tools/endurance.py generate 10000    sounds of 0.1 s, each with its picture, in one process
    python tools/endurance.py encode 100000     clips of 0.1 s to shards

The real command runs with one thread in a process of its own, whose resident memory and open files are read again and
again beside how much is done. Lines are fitted to all but the first quarter, while buffers fill. The exit status is 1
where memory grows by 1 MB or more in 1,000 (seconds, sounds, clips), or the open files by half of one.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from audiogen.errors import InputError, run_command

CLIP_S = 0.1
RATE = 16_000  # Hz, of the bundled models
MOST_MB, MOST_FILES = 1.0, 0.5  # in 1,000
NEEDED = 20  # readings that make a line
TERMINATED = 143  # exit status after SIGTERM; Ctrl-C's signal is ignored by what runs in the background


class Reading(NamedTuple):
    """What a process holds when so much is done."""

    done: float
    memory_mb: float
    files: int


def read(process: int, done: float) -> Reading | None:
    """None where it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return Reading(done, int(resident.split()[1]) / 1024, len(os.listdir(f"/proc/{process}/fd")))
    except (OSError, StopIteration):
        return None


def watch(
    command: Sequence[str], done: Callable[[], float], every_s: float, stop_at: float | None = None
) -> list[Reading]:
    """Run a command; readings whenever more is done. InputError where it fails.

    One that goes on without end is terminated when `stop_at` is done.
    """
    readings: list[Reading] = []
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=said, stderr=said, env=one_thread) as process:
            try:
                while process.poll() is None:
                    time.sleep(every_s)
                    reading = read(process.pid, done())
                    if reading and reading.done > (readings[-1].done if readings else 0):
                        readings.append(reading)
                    if stop_at is not None and reading and reading.done >= stop_at:
                        process.send_signal(signal.SIGTERM)
                        process.wait(60)
            finally:
                process.kill()
        if process.returncode not in ((0,) if stop_at is None else (0, TERMINATED)):
            said.seek(0)
            raise InputError(f"the command ended with {process.returncode}: {said.read()[-300:]}")
    return readings


def slopes(readings: Sequence[Reading]) -> tuple[float, float]:
    """MB and open files in 1,000 of what is done."""
    settled = np.array([reading for reading in readings if reading.done >= readings[-1].done / 4])
    if len(settled) < NEEDED:  # also none
        raise InputError(f"{len(settled)} readings are too few for a line: give a larger count")
    memory, files = np.polyfit(settled[:, 0] / 1000, settled[:, 1:], 1)[0]
    return float(memory), float(files)


def plan(kind: str, count: int, folder: Path) -> tuple[list[str], Callable[[], float]]:
    """The command, and how much of it is done."""
    out = folder / "out"
    if kind == "encode":
        import soundfile

        noise = np.random.default_rng(0).normal(0, 0.1, int(RATE * (count / 100 + 1)))
        soundfile.write(folder / "long.wav", noise, RATE)
        rows = ({"audio": "long.wav", "start": index / 100, "duration": CLIP_S} for index in range(count))
        (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["codec", "encode", str(folder / "clips.jsonl"), "--shards", str(max(count // 200, 1))]
        stored = count // len(range(0, count, max(count // 200, 1)))
        return [*words, "--out", str(out)], lambda: stored * len(list(out.glob("*.safetensors")))
    words = ["generate", "--text", "rain falls", "--threads", "1"]
    if kind == "stream":
        words += ["--stream", "--duration", "inf", "--out", str(out / "a.wav")]
        return words, lambda: sum(path.stat().st_size for path in out.glob(".*")) / (2 * RATE)
    words += ["--num-samples", str(count), "--duration", str(CLIP_S), "--out", str(out)]
    return words, lambda: len(list(out.glob("*.png"))) if out.is_dir() else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Watch one command -> exit status."""
    parser = argparse.ArgumentParser(description="Watch a long run of a command.")
    parser.add_argument("kind", choices=("stream", "generate", "encode"))
    parser.add_argument("count", type=int)
    parser.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds between readings")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        words, done = plan(args.kind, args.count, Path(folder))
        began = time.monotonic()
        command = [sys.executable, "-m", f"audiogen.{words[0]}", *words[1:]]
        readings = watch(command, done, args.every, args.count if args.kind == "stream" else None)
    memory, files = slopes(readings)
    is_flat = memory < MOST_MB and files < MOST_FILES
    last = readings[-1]
    print(
        f"{args.kind} {args.count}: {memory:+.3f} MB and {files:+.3f} open files in 1,000, "
        f"at last {last.memory_mb:.0f} MB and {last.files} files, {time.monotonic() - began:.0f} s: "
        f"{'flat' if is_flat else 'IT GROWS'}"
    )
    return 0 if is_flat else 1


if __name__ == "__main__":
    sys.exit(run_command(main))
