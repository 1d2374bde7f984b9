"""Kill one of the processes that train together, in each phase of a training, and say how the others end.

    python tests/faults/processes.py WORK [ONLY]

For ddp and fsdp, two processes under torchrun: SIGKILL to the first or second of them, or to torchrun, while they
prepare tokens, in a step, in a validation and while a checkpoint is written; and to one of two agents (`--nnodes 2`).
Printed are the seconds until no process is left and what the training said. Then the same command runs to its end, and
its model must be, bit for bit, that of a run that was not disturbed. Status 1 where one is not, or a process is left.
ONLY: a part of the cases' names, as they are printed.

A phase lasts 3 s for the process that comes to it first, which writes the phase's file; see `slow_down`.
"""

import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PHASES = ("tokens", "step", "validation", "checkpoint")
LASTS_S = 3.0
LEFT_S = 120.0  # by when all processes must be gone


def slow_down(phase: str, file: Path) -> None:
    """In a training process: the first time that it is in the phase, it writes the file and stays there a while."""
    from audiogen.data.shards import ShardWriter
    from audiogen.train.lm import LMTask

    def slowly(
        real: Callable[..., Any], happens: Callable[..., bool] = lambda *given: True
    ) -> Callable[..., Any]:
        def stay(*given: Any, **named: Any) -> Any:
            if happens(*given) and not file.exists():
                file.write_text(os.environ["RANK"])
                time.sleep(LASTS_S)
            return real(*given, **named)

        return stay

    if phase == "tokens":
        ShardWriter.write = slowly(ShardWriter.write)  # type: ignore[method-assign]
    if phase == "step":
        LMTask.step = slowly(LMTask.step, lambda task, batch, step: step == 2)  # type: ignore[method-assign]
    if phase == "validation":
        LMTask.evaluate = slowly(LMTask.evaluate)  # type: ignore[method-assign]
    if phase == "checkpoint":
        os.fsync = slowly(os.fsync, lambda to: "/checkpoints/" in os.readlink(f"/proc/self/fd/{to}"))


def ranks(run: Path) -> Iterator[tuple[int, int]]:
    """(process id, rank) of each process whose command names the run; -1 is torchrun."""
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if (
                f"out={run}".encode() not in words
                or (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            ):
                continue
            environment = dict(
                line.split(b"=", 1) for line in (folder / "environ").read_bytes().split(b"\0") if b"=" in line
            )
        except (OSError, ValueError):
            continue
        of_torchrun = b"torch.distributed.run" in words
        yield int(folder.name), -1 if of_torchrun else int(environment.get(b"RANK", b"-2"))


def start(run: Path, recipe: Path, shard: str, phase: str, agents: int = 1) -> list[subprocess.Popen[str]]:
    """The training's agents, one of two processes or two of one each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(2 // agents)]
    command += ["--master-port", port] if agents == 1 else [
        "--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "1",
        "--local-addr", "127.0.0.1",
    ]  # fmt: skip
    command += [
        str(Path(__file__).resolve()),
        "--train",
        phase,
        f"recipe={recipe}",
        f"out={run}",
        f"fit.shard={shard}",
    ]
    with open(f"{run}.log", "a") as log:
        return [subprocess.Popen(command, stdout=log, stderr=log, text=True) for _ in range(agents)]


def disturbed(run: Path, recipe: Path, shard: str, phase: str, target: int, agents: int) -> str:
    """A run whose target is killed in the phase (-1: torchrun, or one of the agents) -> how it ended."""
    for path in (run, Path(f"{run}.log"), Path(f"{run}.phase")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    begun = start(run, recipe, shard, phase, agents)
    file = Path(f"{run}.phase")
    while not file.exists():
        if begun[0].poll() is not None:
            return "FAILED: it ended before the phase"
        time.sleep(0.02)
    time.sleep(0.3)
    pids = [pid for pid, rank in ranks(run) if rank == target]
    os.kill(begun[-1].pid if target == -1 else pids[0], signal.SIGKILL)
    began = time.monotonic()
    # An agent whose fellow is gone waits for that at its end, for five minutes.
    while [rank for _, rank in ranks(run) if rank >= 0 or agents == 1] and time.monotonic() - began < LEFT_S:
        time.sleep(0.05)
    spent_s = time.monotonic() - began
    left = [rank for _, rank in ranks(run) if rank >= 0 or agents == 1]
    for pid, _ in list(ranks(run)):
        os.kill(pid, signal.SIGKILL)
    for each in begun:
        each.wait()
    lines = Path(f"{run}.log").read_text().splitlines()
    said = [
        line.strip() for line in lines if "error: " in line or line.strip().startswith("traceback : Signal")
    ]
    return (
        f"{spent_s:.1f} s; {'FAILED: left ' + str(left) if left else 'none left'}; {' | '.join(said)[:300]}"
    )


def main(work: Path, only: str) -> int:
    """Print a line for each case -> 1 where one failed."""
    import torch

    from audiogen import audio
    from audiogen.files import checkpoint

    shutil.rmtree(work, ignore_errors=True)
    random = torch.Generator().manual_seed(0)
    names = []
    for number in range(8):
        audio.save(work / f"{number}.wav", 0.1 * torch.randn(1, 2000, generator=random), 2000)
        names.append(
            json.dumps({"audio": f"{number}.wav", "captions": ["rain falls" if number % 2 else "a tone"]})
        )
    (work / "manifest.jsonl").write_text("\n".join(names))
    recipe = work / "lm.yaml"
    recipe.write_text(RECIPE.format(manifest=work / "manifest.jsonl"))
    failed = False
    for shard in ("ddp", "fsdp"):
        whole = work / f"{shard}-whole"
        assert [each.wait() for each in start(whole, recipe, shard, "")] == [0]
        expected = checkpoint.load_tensors(whole)
        cases = [(phase, target, 1) for phase in PHASES for target in (0, 1, -1)]
        for phase, target, agents in [*cases, *((phase, -1, 2) for phase in PHASES)]:
            who = f"rank {target}" if target >= 0 else "torchrun" if agents == 1 else "one of two agents"
            if only not in (name := f"{shard}, {phase}, {who}"):
                continue
            run = work / f"{shard}-{phase}-{target}-{agents}"
            line = disturbed(run, recipe, shard, phase, target, agents)
            ends = [each.wait() for each in start(run, recipe, shard, "", agents)]
            found = checkpoint.load_tensors(run) if ends == [0] * agents else {}
            equal = found.keys() == expected.keys() and all(
                torch.equal(found[name], expected[name]) for name in found
            )
            failed |= "FAILED" in line or not equal
            print(f"{name}: {line}; {'the same model' if equal else f'FAILED: {ends}'}", flush=True)
    return int(failed)


RECIPE = """
task: lm
codec: codec_tiny
model: {{num_codebooks: 8, codebook_size: 512, dim: 32, num_layers: 2, num_heads: 2, dropout: 0.1}}
text: {{width: 32, vocab_size: 32, dim: 16, num_layers: 1, num_heads: 2}}
pretokenize_epochs: 1
optim: {{lr: 1e-3, warmup_steps: 2}}
data: {{train: {manifest}, valid: {manifest}, segment_s: 0.5}}
fit: {{steps: 6, batch_size: 4, log_every: 1, valid_every: 3, save_every: 2, device: cpu, timeout_s: 20}}
"""

if __name__ == "__main__":
    if sys.argv[1] == "--train":
        phase, settings = sys.argv[2], sys.argv[3:]
        out = next(word for word in settings if word.startswith("out=")).removeprefix("out=")
        if phase:
            slow_down(phase, Path(f"{out}.phase"))
        sys.argv = ["audiogen.train", *settings]
        runpy.run_module("audiogen.train", run_name="__main__", alter_sys=True)
    sys.exit(main(Path(sys.argv[1]).resolve(), "".join(sys.argv[2:3])))
