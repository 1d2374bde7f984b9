"""How fast our decoding step and codec are beside other engines that install from the package index, on a CPU.

    python tools/bench_rivals.py
    python tools/bench_rivals.py --only lm --threads 1 --batch 1 8 --engines llama openvino
    python tools/bench_rivals.py --only codec --seconds 1 10 3600

It makes an environment of its own (--environment), which also sees the packages of this one, and installs there what is
lacking; llama.cpp is compiled, for 10 minutes of two cores. What cannot be installed or converted costs a line that
says why.

Every engine is a process. Ours and each other one of its number type take turns, so that other work on the machine
meets both: ours, theirs, theirs, ours. A clip is so many frames from an empty cache, guidance as a pair of rows a clip,
text of 20 tokens in the first; a codec's sounds longer than 10 s come in pieces of that. times: how many times the
speed of an engine ours has, the median over the rounds, and the least and the most. On one thread it is processor time
that counts, which other work on the machine changes little. error: of logits, against PyTorch's in float32, relative to
their spread, and of a codec the share of other codes; engines without one have other weights.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import site
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from audiogen.errors import InputError, run_command

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "openvino",
    "nncf",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "ctranslate2",
    "gguf",
    "llama-cpp-python",
)
WITHOUT_DEPENDENCIES = ("encodec",)  # what it asks for is a CUDA build of torchaudio
ENGINES = {
    "lm": ("ours", "packed", "transformers", "onnxruntime", "openvino", "ctranslate2", "llama"),
    "codec": ("ours", "transformers", "encodec", "onnxruntime", "openvino"),
}
DTYPES = {"lm": ("float32", "bfloat16", "int8"), "codec": ("float32", "bfloat16")}


class Figure(NamedTuple):
    """Of one engine's work: rate in frames or seconds of sound a second; times as above."""

    task: str
    work: str
    engine: str
    version: str
    dtype: str
    batch: int
    threads: int
    size: float
    rate: float
    times: tuple[float, float, float]
    error: float | None


def environment(folder: Path) -> Path:
    """The Python of an environment with the packages; a line for each that cannot be installed."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder, with_pip=True)
        [packages] = (each for each in folder.rglob("site-packages") if each.is_dir())
        (packages / "this.pth").write_text("\n".join(site.getsitepackages()))
    for name in (*PACKAGES, *WITHOUT_DEPENDENCIES):
        seen = f"import importlib.metadata; importlib.metadata.version({name!r})"
        if subprocess.run([python, "-c", seen], capture_output=True).returncode == 0:
            continue
        print(f"installing {name}", file=sys.stderr)
        command = [str(python), "-m", "pip", "install", "--quiet", name]
        command += ["--no-deps"] if name in WITHOUT_DEPENDENCIES else []
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{name} is not installed: {(done.stderr.strip() or 'pip failed').splitlines()[-1]}")
    return python


class Worker:
    """One engine in its process. facts: what it said when it was ready."""

    def __init__(self, python: Path | str, setting: dict[str, Any], log: Path):
        self.setting = setting
        self.times: dict[str, list[tuple[float, float]]] = {}  # of its work, its own and ours
        command = [str(python), str(ROOT / "tools" / "rivals" / "worker.py"), json.dumps(setting)]
        threads = str(setting["threads"])
        variables = os.environ | {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }
        with open(log, "a") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=variables,
                cwd=ROOT,
            )
        self.facts = self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"failed": f"its process ended with {self.process.wait()}"}

    def seconds(self) -> dict[str, float]:
        """Of each piece of work, once: of processors on one thread, else elapsed; {} where it broke."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        kind = "cpu" if self.setting["threads"] == 1 else "elapsed"
        return {name: times[kind] for name, times in self._read().items() if name != "failed"}

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def race(python: Path | str, settings: Sequence[dict[str, Any]], rounds: int, log: Path) -> Iterator[Figure]:
    """Figures of each engine in turns with the first, whose own come last; those that failed print why."""
    first, *others = settings
    base = start(python, first, log)
    if base is None:
        return
    ours: dict[str, list[float]] = {}
    for setting in others or [first]:
        rival = start(python, setting, log) if others else base  # or ours with itself
        for number in range(rounds if rival else 0):
            assert rival is not None
            pair = {worker: worker.seconds() for worker in ((base, rival), (rival, base))[number % 2]}
            if not pair[rival]:
                print(f"{setting['engine']} {setting['dtype']} broke off in round {number + 1}", flush=True)
                break
            for name in pair[base]:
                ours.setdefault(name, []).append(pair[base][name])
                rival.times.setdefault(name, []).append((pair[rival][name], pair[base][name]))
        if rival:
            rival.close()
            yield from (figure(rival, name, *zip(*pairs, strict=True)) for name, pairs in rival.times.items())
    if others:
        base.close()
        yield from (figure(base, name, values, values) for name, values in ours.items())


def start(python: Path | str, setting: dict[str, Any], log: Path) -> Worker | None:
    """An engine; None, and a line, where it failed."""
    worker = Worker(python, setting, log)
    if "failed" not in worker.facts:
        return worker
    print(f"{setting['engine']} {setting['dtype']} is left out: {worker.facts['failed']}", flush=True)
    worker.close()
    return None


def figure(worker: Worker, name: str, theirs: Sequence[float], ours: Sequence[float]) -> Figure:
    """Of one engine's work, from the seconds of each round and ours in that round."""
    ratios = sorted(one / other for one, other in zip(theirs, ours, strict=True))
    given, facts = worker.setting, worker.facts
    return Figure(
        given["task"], name, given["engine"], facts["version"], given["dtype"], given["batch"], given["threads"],
        given["size"], given["batch"] * given["size"] / statistics.median(theirs),
        (statistics.median(ratios), ratios[0], ratios[-1]), facts.get("error"),
    )  # fmt: skip


HEADER = "| | threads | batch | per second | ours is times as fast | error |\n|---|---|---|---|---|---|"


def row(each: Figure) -> str:
    """A line under HEADER."""
    what = f"{each.work} of {each.size:g} {'frames' if each.task == 'lm' else 's'}"
    error = "" if each.error is None else f"{each.error:.1e}"
    middle, least, most = each.times
    alone = least == most == 1  # ours, or a codec that ours has not got
    times = "" if alone else f"{middle:.2f} ({least:.2f} to {most:.2f})"
    rest = f"{each.rate:.1f} | {times} | {error}"
    return f"| {what}: {each.engine} {each.dtype} | {each.threads} | {each.batch} | {rest} |"


def machine() -> str:
    """The processor, by what Linux calls it, and how busy it was."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(
            line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")
        )
        parts = [part for part in ("avx2", "avx512f", "avx512_bf16", "amx_tile") if part in text]
        return f"{name} with {', '.join(parts)}; {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=tuple(ENGINES), nargs="+", default=list(ENGINES))
    parser.add_argument(
        "--engines", choices=sorted({e for each in ENGINES.values() for e in each}), nargs="+"
    )
    parser.add_argument("--dtypes", choices=DTYPES["lm"], nargs="+", default=list(DTYPES["lm"]))
    parser.add_argument(
        "--shape", choices=("small", "medium", "tiny"), default="small", help="of the language model"
    )
    parser.add_argument(
        "--codecs",
        choices=("audiogen", "dac", "mimi", "tiny"),
        nargs="+",
        default=["audiogen", "dac", "mimi"],
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="clips at a time")
    parser.add_argument("--frames", type=int, default=100, help="of a clip")
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[1.0, 10.0], help="of sounds for the codecs"
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--environment", type=Path, default=ROOT / "build" / "rivals")
    parser.add_argument(
        "--here", action="store_true", help="with the packages of this environment; install nothing"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "rivals.json")
    args = parser.parse_args(argv)
    if min(*args.threads, *args.batch, args.frames, args.rounds) < 1 or min(args.seconds) <= 0:
        raise InputError("--threads, --batch, --frames and --rounds are at least 1; --seconds are above 0")
    args.environment.mkdir(parents=True, exist_ok=True)
    python = sys.executable if args.here else environment(args.environment)
    where, began, figures = machine(), time.strftime("%Y-%m-%d"), []
    print(f"{where}; {began}")
    for task in args.only:
        shapes = [args.shape] if task == "lm" else args.codecs
        sizes = [float(args.frames)] if task == "lm" else args.seconds
        for shape, threads, batch, size, dtype in itertools.product(
            shapes, args.threads, args.batch, sizes, [d for d in DTYPES[task] if d in args.dtypes]
        ):
            common = {
                "task": task,
                "dtype": dtype,
                "shape": shape,
                "batch": batch,
                "threads": threads,
                "size": size,
            }
            common["folder"] = str(args.environment / "models")
            engines = [e for e in ENGINES[task] if e == "ours" or e in (args.engines or ENGINES[task])]
            if shape == "mimi":  # which this package has not got
                engines = ["transformers"]
            settings = [common | {"engine": engine} for engine in engines]
            print(f"\n{shape}\n{HEADER}", flush=True)
            for each in race(python, settings, args.rounds, args.environment / "log.txt"):
                print(row(each), flush=True)
                figures.append({"shape": shape} | each._asdict())
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(
                    json.dumps({"machine": where, "date": began, "figures": figures}, indent=1)
                )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
