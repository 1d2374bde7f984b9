"""One corpus encoded by many processes, on one machine or many: each makes a part, then the parts are merged.

Nothing is said between them: part i of n takes every nth shard, so all must be given the same sounds in the same order.
A shard that is there is done. Merged shards are those of one process, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from audiogen.data.shards import PartSpec, ShardWriter, is_shard_directory, read_rows
from audiogen.errors import InputError
from audiogen.files.locks import only_writer
from audiogen.files.writing import storing

T = TypeVar("T")
FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Part:
    """The `number`th of `of` parts, from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def __call__(self, items: Sequence[T]) -> list[T]:
        """Its share."""
        return list(items[self.number - 1 :: self.of])

    def folder(self, out: str | Path) -> Path:
        """Where its shards are until they are merged."""
        return Path(out, f"part-{self.number:0{len(str(self.of))}d}-of-{self.of}")


def choose_part(given: str | None, environment: Mapping[str, str] = os.environ) -> Part | None:
    """`I/N` as given, or what torchrun or a SLURM array says; None is the whole. InputError where it is no part."""
    if given is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", given)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--part is {given[:40]!r}; give I/N with I from 1 to N, such as 2/8")
        return Part(int(match[1]), int(match[2]))
    try:
        if (of := int(environment.get("WORLD_SIZE", 1))) > 1:
            return Part(int(environment["RANK"]) + 1, of)
        if (of := int(environment.get("SLURM_ARRAY_TASK_COUNT", 1))) > 1:
            first = int(environment.get("SLURM_ARRAY_TASK_MIN", 0))
            return Part(int(environment["SLURM_ARRAY_TASK_ID"]) - first + 1, of)
    except (KeyError, ValueError):
        raise InputError("the variables of torchrun or SLURM name no part; give --part I/N") from None
    return None


def digest(keys: Sequence[str], size: int) -> str:
    """Of what all parts were given: the sounds that were to be encoded, and the clips of a shard."""
    return hashlib.sha256("\n".join([str(size), *keys]).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def merge(out: str | Path) -> tuple[int, dict[str, str]]:
    """Make one folder of shards of its parts -> (clips, reason by key of those that could not be read).

    What was merged before stays. InputError where a part is missing or not finished, or the parts are not of one whole.
    """
    root = Path(out)
    with only_writer(root):
        found = {path: match for path in sorted(root.iterdir()) if (match := FOLDER.fullmatch(path.name))}
        if not found:
            raise InputError(f"{out} holds no parts to merge; encode them with --shards and --part")
        folders = [path for path in found if is_shard_directory(path)]
        counts = {int(match[2]) for match in found.values()}
        if len(counts) > 1:
            listed = " and ".join(map(str, sorted(counts)))
            raise InputError(f"{out} holds parts of {listed}: delete those that are not wanted")
        present = {int(found[path][1]) for path in folders}
        if missing := sorted(set(range(1, max(counts) + 1)) - present):
            listed = ", ".join(map(str, missing[:20]))
            raise InputError(f"{out}: of {max(counts)} parts these are missing: {listed}; encode them first")
        parts = [ShardWriter.read(path) for path in folders]
        first = parts[0]
        for part in parts:
            if part.spec != first.spec:
                raise InputError(
                    f"{part.directory} holds tokens of {part.spec}, {first.directory} of {first.spec}"
                )
            if part.part is None or first.part is None or part.part.digest != first.part.digest:
                raise InputError(
                    f"{part.directory} and {first.directory} are not parts of the same sounds; encode one anew"
                )
            if len(part.done) + len(part.unreadable) < part.part.num_clips:
                done = f"{len(part.done) + len(part.unreadable)} of {part.part.num_clips} clips"
                raise InputError(f"{part.directory} is not finished ({done}); run its command again")
        whole = ShardWriter(root, first.spec)
        shards = sorted((path for part in parts for path in part.paths), key=order)
        fresh = [path for path in shards if not {row["key"] for row in read_rows(path)} <= whole.done]
        whole.adopt(fresh, {key: reason for part in parts for key, reason in part.unreadable.items()})
        for folder in folders:
            with storing(folder):
                shutil.rmtree(folder)
        return len(whole.done), whole.unreadable


def run(arguments: argparse.Namespace) -> None:
    """`audiogen.codec merge`."""
    clips, unreadable = merge(arguments.out)
    for reason in unreadable.values():
        print(f"skipped: {' '.join(reason.split())}", file=sys.stderr)
    print(f"{arguments.out}: {clips} clips in shards; {len(unreadable)} could not be encoded")


def order(shard: Path) -> tuple[int, str]:
    """By the number in its name, of which there may be more digits than are padded."""
    number = re.search(r"\d+", shard.name)
    return int(number[0]) if number else 0, shard.name


def part_spec(part: Part, shards: Sequence[tuple[int, Sequence[str]]], whole: str) -> PartSpec:
    """What a part's index says of it. shards: the keys of its shards, by the shards' numbers in the whole."""
    return PartSpec(part.number, part.of, sum(len(keys) for _, keys in shards), whole)


def run_workers(arguments: argparse.Namespace) -> None:
    """Encode by several processes of this machine, each a part; then merge their shards.

    The first one shows its progress. InputError where one fails, with what it said.
    """
    count = arguments.workers
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--workers")
    _, rest = own.parse_known_args(arguments.given)
    threads = str(max(1, (os.cpu_count() or 1) // count))
    began = time.perf_counter()
    environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | os.environ
    with contextlib.ExitStack() as stack:
        processes = []
        for number in range(1, count + 1):
            said = stack.enter_context(tempfile.TemporaryFile("w+", errors="replace"))
            result = stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [sys.executable, "-m", "audiogen.codec", *rest, "--part", f"{number}/{count}", "--json"]
            shown = sys.stderr if number == 1 and sys.stderr.isatty() else said
            process = subprocess.Popen(command, env=environment, stdout=result, stderr=shown)
            stack.callback(process.wait)
            stack.callback(process.terminate)
            processes.append((process, said, result))
        failed = []
        total: dict[str, Any] = {"out": arguments.out, "encoded": 0, "kept": 0, "failed": {}, "sound_s": 0.0}
        for process, said, result in processes:
            status = process.wait()
            said.seek(0)
            result.seek(0)
            for text in result:  # one line, or none of a process that failed before it had one
                part = json.loads(text)
                total |= {key: total[key] + part[key] for key in ("encoded", "kept", "sound_s")}
                total["failed"] |= part["failed"]
            lines = [line for line in said.read().splitlines() if line.strip()]
            for line in lines:
                if line.startswith(("skipped: ", "warning: ")):
                    print(line, file=sys.stderr)
            if status:
                failed.append(
                    next((line for line in lines if line.startswith("error: ")), f"error: status {status}")
                )
    arguments.give(total | {"spent_s": round(time.perf_counter() - began, 3)})
    if arguments.shards:
        try:
            clips, unreadable = merge(arguments.out)
        except InputError as error:
            raise InputError(failed[0].removeprefix("error: ") if failed else str(error)) from None
        print(f"{arguments.out}: {clips} clips in shards, by {count} processes")
        if unreadable:
            raise InputError(f"{len(unreadable)} clips could not be encoded: named above")
    if failed:
        raise InputError(failed[0].removeprefix("error: "))
