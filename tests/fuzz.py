"""Damaged and forged files by the thousand: each is refused with an `InputError` of one line, or is read.

    python tests/fuzz.py                    the targets
    python tests/fuzz.py flac --minutes 10  one of them, or `all`; --seed N for other files

Small valid files are mutated; case i of a seed is always the same file. Each target runs in a child process, which
may take 5 s of processor time and 2 GB of memory for a file: a crash, another exception, more time or more memory is a
finding, and its file is kept. Those of faults that were fixed lie in tests/fuzz/TARGET, and are tried first.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[threads] = "1"  # and no thread is lost in a fork


from audiogen.errors import InputError, one_line  # noqa: E402

if TYPE_CHECKING:
    from tests.fuzz_targets import Target

KEPT = ROOT / "tests" / "fuzz"
CASE_S, CASE_BYTES = 5, 2 << 30  # what a file may take
SILENT_S = 120.0  # of no progress, on the clock: something waits for ever
LONGEST = 1 << 18  # bytes of a mutated file
NUMBERS = rb"-1 0 1 1e400 -1e400 NaN 4294967296 18446744073709551616 0.5 null true {} [] [[]] x".split()


def mutate(data: bytes, random: random.Random, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """One to six changes: bits, bytes, numbers, cuts, repeats, moves, pieces of other files."""
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        # Half of them near the beginning, where headers are.
        at = random.randrange(min(len(data), random.choice((32, 256, len(data) + 1, len(data) + 1))) + 1)
        length = random.choice((1, 2, 4, 8, 16, random.randrange(len(data) + 1)))
        piece = data[at : at + length]
        match random.randrange(11):
            case 0:
                flipped = bytes([data[at] ^ 1 << random.randrange(8)]) if at < len(data) else b""
                data = data[:at] + flipped + data[at + 1 :]
            case 1:
                data = data[:at] + random.randbytes(min(length, 16)) + data[at + min(length, 16) :]
            case 2 | 3:  # a field of 1 to 8 bytes gets an extreme value, in either order of bytes
                size = random.choice((1, 2, 4, 4, 8))
                top = 1 << 8 * size - 1
                value = random.choice((0, 1, 2, top - 1, top, top + 1, 2 * top - 1, len(data) % top))
                data = data[:at] + value.to_bytes(size, random.choice(("little", "big"))) + data[at + size :]
            case 4:
                data = data[:at]
            case 5:
                data = data[:at] + data[at + length :]
            case 6:
                data = data[:at] + piece * random.choice((2, 3, 64)) + data[at + length :]
            case 7:  # moved, or copied
                to = random.randrange(len(data) + 1)
                data = data[:to] + piece + data[to:]
            case 8:
                other = random.choice(others)
                begin = random.randrange(len(other) + 1)
                data = data[:at] + other[begin : begin + length] + data[at + random.choice((0, length)) :]
            case 9:  # a number in text
                found = list(re.finditer(rb"-?\d[\d.]*|true|false|null", data[: 1 << 14]))
                if found:
                    number = random.choice(found)
                    data = data[: number.start()] + random.choice(NUMBERS) + data[number.end() :]
            case 10:
                word = random.choice(words) if words else b"\0"
                data = data[:at] + word + data[at + random.choice((0, len(word))) :]
        data = data[:LONGEST]
    return data


class Cases:
    """The files of a target: its seeds, those of faults that were fixed among them, then mutated ones without end."""

    def __init__(self, name: str, target: Target, seed: int) -> None:
        self.name, self.target, self.seed = name, target, seed
        kept = [(path.name.partition("@")[2], path) for path in sorted((KEPT / name).glob("*@*"))]
        self.seeds = sorted(target.seeds().items()) + [(name, path.read_bytes()) for name, path in kept]
        self.others = [data for _, data in self.seeds]

    def __getitem__(self, index: int) -> tuple[str, bytes]:
        """(name of the seed, contents)."""
        if index < len(self.seeds):  # as they are
            return self.seeds[index]
        draw = random.Random(f"{self.name} {self.seed} {index}")
        name, data = draw.choice(self.seeds)
        data = mutate(data, draw, self.others, self.target.words)
        return name, self.target.repair(data) if draw.random() < 0.7 else data


def fault(error: Exception) -> str | None:
    """Why a file should not lead to this exception; None where it is a line that names the file's fault."""
    if not isinstance(error, InputError):
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    line = one_line(error)
    if re.search(r"bad_alloc|allocat", line):
        return f"memory: {line[:200]}"
    return None


def keep(findings: dict[str, Path], out: Path, what: str, case: tuple[str, bytes]) -> None:
    """The first file of each finding; numbers in its words make no other finding."""
    kind = re.sub(r"(?<!py:)\b\d+\b", "N", re.sub(r"'[^']*'|\"[^\"]*\"|\S*/\S*", "'..'", what))
    if kind not in findings:
        path = out / f"{hashlib.sha256(kind.encode()).hexdigest()[:8]}@{case[0]}"
        out.mkdir(parents=True, exist_ok=True)
        path.write_bytes(case[1])
        findings[kind] = path
        print(f"  {what}\n    {path}", flush=True)


def child(cases: Cases, first: int, stop: int, until: float, progress: int, out: Path, folder: Path) -> None:
    """Run cases from `first` on. `progress` is a file that holds the number of the one that runs."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + CASE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    log = open(folder / "stderr", "w")
    os.dup2(log.fileno(), 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGPROF, log, chain=True)  # then the process ends
    findings: dict[str, Path] = {}
    for index in range(first, stop):
        if time.monotonic() > until:
            break
        os.pwrite(progress, index.to_bytes(8, "little"), 0)
        case = cases[index]
        path = folder / f"{index}-{case[0]}"
        path.write_bytes(case[1])
        signal.setitimer(signal.ITIMER_PROF, CASE_S)
        try:
            cases.target.run(path)
        except Exception as error:
            if what := fault(error):
                keep(findings, out, what, case)
                os.pwrite(progress, len(findings).to_bytes(8, "little"), 8)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            path.unlink(missing_ok=True)
        os.pwrite(progress, (index + 1).to_bytes(8, "little"), 0)


def fuzz(name: str, target: Target, seed: int, count: int, minutes: float, out: Path) -> tuple[int, int]:
    """Run a target -> (files tried, findings)."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as place, open(Path(place, "progress"), "w+b") as file:
        folder = Path(place)
        cases = Cases(name, target, seed)
        for first, (seed_name, data) in enumerate(sorted(cases.target.seeds().items())):
            path = folder / f"{first}-{seed_name}"
            path.write_bytes(data)
            with suppress(*[InputError] if seed_name.startswith("refused") else []):
                cases.target.run(path)  # a valid file is read; and imports are made once for all children
        until = time.monotonic() + 60 * minutes
        stop = min(count + len(cases.seeds), 1 << 60)
        first, found = 0, 0
        crashes: dict[str, Path] = {}
        while first < stop and time.monotonic() < until:
            os.pwrite(file.fileno(), first.to_bytes(8, "little") + bytes(8), 0)
            sys.stdout.flush()
            pid = os.fork()
            if not pid:
                try:
                    child(cases, first, stop, until, file.fileno(), out, folder)
                except BaseException:
                    traceback.print_exc()
                    os._exit(3)
                os._exit(0)
            status, first = wait(pid, file.fileno())
            found += int.from_bytes(os.pread(file.fileno(), 8, 8), "little")
            if status == 0:
                break
            tail = (folder / "stderr").read_text(errors="replace").strip()
            where = re.findall(r'File "\S*/(audiogen/\S+|tests/\S+)", line (\d+)', tail)[:1]
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            keep(crashes, out, f"ended by {how} at {where}", cases[first])
            if status == 3:
                print(tail, file=sys.stderr)
                break
            first += 1
        return first, found + len(crashes)


def wait(pid: int, progress: int) -> tuple[int, int]:
    """-> (how the child ended, the number that `progress` held then); a child without progress is ended."""
    before, since = -1, time.monotonic()
    while True:
        index = int.from_bytes(os.pread(progress, 8, 0), "little")
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), int.from_bytes(os.pread(progress, 8, 0), "little")
        if index != before:
            before, since = index, time.monotonic()
        elif time.monotonic() - since > SILENT_S:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def main(argv: Sequence[str] | None = None) -> int:
    """-> 1 where there are findings."""
    from tests.fuzz_targets import TARGETS  # everything that is tried is imported with it

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", nargs="?", help=f"all, or one of {', '.join(TARGETS)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each target (default 10)")
    parser.add_argument("--count", type=int, default=1 << 60, help="at most so many files a target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "fuzz", help="folder for the files of findings"
    )
    options = parser.parse_args(argv)
    if options.target is None:
        print("\n".join(TARGETS))
        return 0
    total = 0
    for name in TARGETS if options.target == "all" else [options.target]:
        begin = time.monotonic()
        tried, found = fuzz(
            name, TARGETS[name], options.seed, options.count, options.minutes, options.out / name
        )
        print(f"{name}: {tried} files in {time.monotonic() - begin:.1f} s, {found} findings", flush=True)
        total += found
    return int(total > 0)


if __name__ == "__main__":
    sys.exit(main())
