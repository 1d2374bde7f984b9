"""How fast processes train a language model together, by how they share it, and how long a checkpoint holds them up.

    python tools/bench_scale.py --shape lm_tiny --worlds 1,2

Each process has one thread, on this machine, and a batch of its own. A token is a step of the sequence. Seconds are
medians over steps: elapsed, which other work on the machine makes longer, and CPU time of the first process. Memory is
the peak of the first process, with what Python and torch take. held up: how long `Saver.save` keeps the training from
the next step; written: until the checkpoint has its name. Alone, a process writes it before it goes on. hidden: of
the time that reducing the gradients in one piece after the backward pass adds to a step, the share that ddp saves by
reducing parts of them while that pass runs; a step with each, and one without any reduction, take turns.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from audiogen import distributed
from audiogen.codec.model import Codec, CodecConfig
from audiogen.data.dataset import DataConfig, parse_sources
from audiogen.errors import InputError, run_command
from audiogen.interfaces import CodeBatch
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing
from audiogen.models.parts import CodecReference, PretrainedLM
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import train_vocabulary
from audiogen.train.checkpoints import Saver
from audiogen.train.lm import LMRecipe, LMTask
from audiogen.train.log import Log
from audiogen.train.task import FitConfig

SHAPES = {  # the model, clips, frames
    "lm_tiny": (LMConfig(8, 512, 256, num_layers=8, num_heads=4), 8, 125),
    "small": (LMConfig(4, 2048, 1024, num_layers=4, num_heads=16), 4, 250),
}
CAPTIONS = ["a dog barks twice", "rain falls on a tin roof", "a clock ticks, then a bell"]


def make_task(shape: str, shard: Any) -> tuple[LMTask, CodeBatch, int]:
    """A task on random weights, a batch for it, and the tokens of that."""
    config, num_clips, num_frames = SHAPES[shape]
    device = torch.device("cpu")
    distributed.initialize(device)
    torch.manual_seed(0)
    codes = torch.randint(0, config.codebook_size, (num_clips, config.num_codebooks, num_frames))
    fit = FitConfig(steps=10**6, batch_size=num_clips, shard=shard, ema_decay=0.999)
    recipe = LMRecipe(
        codec="",
        model=config,
        data=DataConfig(parse_sources("synth:1")),
        fit=fit,
        text=TextConfig(width=config.dim, dim=64, num_layers=1),
    )
    lm, text = TokenLM(config), T5Conditioner(recipe.text, train_vocabulary(CAPTIONS, 40))
    start = PretrainedLM(lm, text, CodecReference("", ""), num_frames, {})
    codec: Any = Codec(CodecConfig(arch="spectral"))  # for its rates alone
    tokens = num_clips * teacher_forcing(lm, codes).inputs.shape[2]
    names = [str(number) for number in range(num_clips)]
    captions: list[str | None] = [CAPTIONS[number % len(CAPTIONS)] for number in range(num_clips)]
    batch = CodeBatch(torch.full((num_clips,), num_frames), captions, names, codes)
    return LMTask(recipe, codec, start, [], device), batch, tokens


def measure(shape: str, shard: str, num_steps: int) -> dict[str, float]:
    """In one of the processes: what the first prints."""
    torch.set_num_threads(1)
    task, batch, tokens = make_task(shape, shard)
    elapsed, cpu = [], []
    for step in range(num_steps + 1):
        began, began_cpu = time.perf_counter(), time.process_time()
        task.step(batch, step)
        elapsed.append(time.perf_counter() - began)
        cpu.append(time.process_time() - began_cpu)
    found = {
        "elapsed": statistics.median(elapsed[1:]),
        "cpu": statistics.median(cpu[1:]),
    }  # the first allocates
    found |= {
        "tokens": tokens * distributed.world() / found["elapsed"],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    if shard == "ddp":
        found["hidden"] = hidden_share(task, batch, num_steps)
    run = Path(os.environ["BENCH_RUN"])
    first = distributed.rank() == 0
    with (
        closing(Log(run, 0, 1, visible=first)) as log,
        closing(Saver(run, 2, task.parallel.group, log)) as saver,
    ):
        for number in (1, 2):  # the first connects the processes and plans what each writes
            distributed.barrier()
            began = time.perf_counter()
            if first or task.parallel.sharded:
                saver.save(number, {"task": task.state_dict()})
            found["held"] = time.perf_counter() - began
            saver.wait()
            found["written"] = time.perf_counter() - began
    distributed.barrier()
    distributed.shutdown()
    return found


def hidden_share(task: LMTask, batch: CodeBatch, num_turns: int) -> float:
    """See above."""
    reduce_next, update = task.parallel.reduce_next, task.update

    def reduce_all(step: int, metrics: Any = None) -> dict[str, float]:
        gradients = [each.grad for each in task.module.parameters() if each.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce_sum(together)
        for gradient, part in zip(
            gradients, together.split([each.numel() for each in gradients]), strict=True
        ):
            gradient.copy_(part.view_as(gradient) / distributed.world())
        return update(step, metrics)

    def keep(reduce: bool) -> None:
        reduce_next(False)

    kinds = {"during": (reduce_next, update), "after": (keep, reduce_all), "without": (keep, update)}
    elapsed: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(3 * (num_turns + 1)):
        kind = list(kinds)[turn % 3]
        task.parallel.reduce_next, task.update = kinds[kind]  # type: ignore[method-assign]
        distributed.barrier()
        began = time.perf_counter()
        task.step(batch, turn)
        elapsed[kind].append(time.perf_counter() - began)
    task.parallel.reduce_next, task.update = reduce_next, update  # type: ignore[method-assign]
    during, after, without = (statistics.median(times[1:]) for times in elapsed.values())
    return (after - during) / (after - without)


def run_processes(arguments: argparse.Namespace, shard: str, world: int) -> dict[str, float]:
    """Start as many of this program -> what the first found."""
    with socket.socket() as probe, tempfile.TemporaryDirectory() as folder:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        command = [sys.executable, __file__, "--shape", arguments.shape, "--steps", str(arguments.steps)]
        processes = []
        for rank in range(world):
            environment = {**os.environ, "BENCH_RUN": folder, "OMP_NUM_THREADS": "1"}
            if world > 1:
                environment |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            line = [*command, "--alone", shard]
            processes.append(
                subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
            )
        said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise InputError(f"a process of {shard} with {world} failed; run it by itself with --alone {shard}")
    found: dict[str, float] = json.loads(said[0])
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line for each mode and number of processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="lm_tiny")
    parser.add_argument("--worlds", default="1,2", help="numbers of processes (default: 1,2)")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--alone", metavar="MODE", help="in this process; for those that are started")
    arguments = parser.parse_args(argv)
    if arguments.alone:
        print(json.dumps(measure(arguments.shape, arguments.alone, arguments.steps)))
        return 0
    print("mode   ranks  tokens/s  elapsed s  CPU s  memory MB  held up s  written s  hidden")
    for world in map(int, arguments.worlds.split(",")):
        for shard in ("ddp", "fsdp") if world > 1 else ("none",):
            found = run_processes(arguments, shard, world)
            print(
                f"{shard:5}{world:7}{found['tokens']:10,.0f}{found['elapsed']:11.3f}{found['cpu']:7.3f}"
                f"{found['memory']:11,.0f}{found['held']:11.3f}{found['written']:11.3f}"
                + (f"{found['hidden']:8.0%}" if "hidden" in found else "")
            )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
