"""Sharded or replicated over 1, 2 and 4 processes, a run with the same clips a step is the same run."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.checkpoint import read_tensors
from audiogen.train import checkpoints
from audiogen.train.lm import LMRecipe, LMTask
from audiogen.train.run import open_recipe
from tests.train.conftest import losses
from tests.train.processes import free_port, in_processes
from tests.train.test_train_diffusion import AUTOENCODER, WAVE, train, write_recipe, write_system
from tools.memory_plan import plan

Train = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
# Sums in another order move a weight by up to a hundredth of Adam's step, 1e-2 here; another gradient by a step.
CLOSE = 5e-4
FIXED = ("model.dropout=0", "text.dropout=0", "pretokenize_epochs=1", "fit.save_every=3")


def difference(one: Path, other: Path) -> float:
    """The largest of two models' weights."""
    first, second = checkpoint.load_tensors(one), checkpoint.load_tensors(other)
    assert first.keys() == second.keys()
    return max((first[name].float() - second[name].float()).abs().max().item() for name in first)


@pytest.fixture
def lm_in(lm_run: Train) -> Train:
    """lm_in(world, "name", "key=value", ...) trains the tiny language model with 4 clips a step in all."""

    def train(world: int, name: str, *settings: str) -> Path:
        given = any(setting.startswith("init_from=") for setting in settings)  # with its architecture
        settings = (*FIXED[2 * given :], f"fit.batch_size={4 // world}", *settings)
        if world == 1:
            return lm_run(name, *settings)
        return Path(in_processes(lambda rank: lm_run(name, *settings), world)[0])

    return train


def test_a_sharded_language_model_learns_as_a_whole_one(lm_in: Train) -> None:
    """With an average of weights, which is what is exported; with the batch in two parts and layers recomputed."""
    whole = lm_in(1, "whole")
    thrifty = ("fit.accumulate=2", "gradient_checkpointing=selective")
    for world, shard, settings in ((2, "fsdp", thrifty), (4, "fsdp", ()), (4, "ddp", ())):
        run = lm_in(world, f"{shard}{world}", f"fit.shard={shard}", *settings)
        assert losses(run) == pytest.approx(losses(whole), abs=1e-4)
        assert difference(run, whole) < CLOSE
        assert difference(run / "best", whole / "best") < CLOSE


def test_a_sharded_run_goes_on_in_any_number_of_processes(lm_in: Train, tmp_path: Path) -> None:
    """As if nothing had been in the same number; and a run of one process goes on sharded."""
    begun = lm_in(2, "begun", "fit.shard=fsdp", "fit.steps=3", "optim.schedule=constant")
    files = sorted(path.name for path in checkpoint.step_dir(begun, 3).iterdir())
    assert files == [
        "checksums.json",
        "exported",
        "shard-00001-model-00001-of-00001.safetensors",
        "shard-00002-model-00001-of-00001.safetensors",
        "state.json",
    ]
    for world, shard in ((2, "fsdp"), (1, "auto"), (4, "fsdp"), (2, "ddp")):
        run = tmp_path / f"{shard}{world}"
        shutil.copytree(begun, run)
        lm_in(world, run.name, f"fit.shard={shard}", "optim.schedule=constant")
        if (world, shard) == (2, "fsdp"):
            unbroken = lm_in(2, "unbroken", "fit.shard=fsdp", "optim.schedule=constant")
            assert losses(run) == losses(unbroken) and difference(run, unbroken) == 0
        else:
            assert losses(run) == pytest.approx(losses(unbroken), abs=1e-4)
            assert difference(run, unbroken) < CLOSE


@pytest.mark.parametrize(("kind", "autoencoder"), [("stable_audio", WAVE), ("tangoflux", WAVE)])
def test_a_sharded_denoiser_learns_as_a_whole_one(
    kind: str, autoencoder: str, manifest: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "autoencoder.yaml", AUTOENCODER + autoencoder, manifest)
    given = train(
        recipe, tmp_path / "autoencoder", "fit.steps=1", "loss.adversarial=0", "loss.feature_matching=0"
    )
    recipe = write_system(tmp_path / "system.yaml", kind, given, manifest)
    whole = train(recipe, tmp_path / "whole", "fit.batch_size=4", "fit.save_every=3")
    for world, shard in ((2, "fsdp"), (2, "ddp")) + ((4, "hsdp"),) * (kind == "tangoflux"):
        settings = (f"fit.batch_size={4 // world}", f"fit.shard={shard}", "fit.save_every=3")
        run = tmp_path / f"{shard}{world}"
        in_processes(lambda rank: str(train(recipe, run, *settings)), world, machines=world // 2)  # noqa: B023
        assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
        first, second = (
            read_tensors(path / "transformer" / "diffusion_pytorch_model.safetensors")
            for path in (run, whole)
        )
        assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in second)


def test_a_codec_learns_the_same_in_any_number_of_processes(codec_run: Train) -> None:
    """From the first k-means on, with codes that die, dropped codebooks and a discriminator."""
    whole = codec_run("whole", "fit.valid_every=0")
    for world in (2, 4):
        each = ("fit.valid_every=0", f"fit.batch_size={4 // world}")
        in_processes(lambda rank: str(codec_run(f"ddp{world}", *each)), world)  # noqa: B023
        run = whole.parent / f"ddp{world}"
        assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
        assert difference(run, whole) < CLOSE


def test_a_sharded_run_starts_from_given_weights(lm_in: Train) -> None:
    """Sharding before loading would train zeros; and in bfloat16, which rounds the norms' gains as well."""
    base = lm_in(1, "base", "fit.steps=2")
    start = (f"init_from={base}", "fit.steps=2")
    whole, run = lm_in(1, "whole", *start), lm_in(2, "run", *start, "fit.shard=fsdp")
    assert losses(run) == pytest.approx(losses(whole), abs=1e-5)
    half = (*start, "fit.precision=bfloat16")
    whole, run = lm_in(1, "whole16", *half), lm_in(2, "run16", *half, "fit.shard=fsdp")
    assert losses(run) == pytest.approx(losses(whole), abs=1e-3)


def test_a_sharded_checkpoint_that_is_damaged_or_finds_no_space(
    lm_in: Train, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A bit of one shard: the one before is gone on from. A full disk of one process: all go on without.

    Writing is slow, so that the training is steps ahead when the shards are written.
    """
    write = checkpoints.HuggingFaceStorageWriter.write_data

    def slowly(self: Any, *plan: Any) -> Any:
        time.sleep(0.5)
        return write(self, *plan)

    monkeypatch.setattr(checkpoints.HuggingFaceStorageWriter, "write_data", slowly)
    whole, run = (lm_in(2, name, "fit.shard=fsdp") for name in ("whole", "run"))
    path = next(checkpoint.step_dir(run, 6).glob("shard-00002-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 4
    path.write_bytes(data)
    lm_in(2, "run", "fit.shard=fsdp")
    assert (
        "is damaged (wrong checksum) or missing; the checkpoint before it is tried" in capfd.readouterr().err
    )
    assert losses(run) == losses(whole) and difference(run, whole) == 0

    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "writing-step_00000003/shard-00002" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    full_run = lm_in(2, "full", "fit.shard=fsdp")
    assert "step_00000003 cannot be written: No space left on device" in capfd.readouterr().err
    assert [step for step, _ in checkpoint.step_dirs(full_run)] == [6] and difference(full_run, whole) == 0


def test_two_agents_that_are_stopped_go_on_sharded(lm_run: Train, tmp_path: Path) -> None:
    """`torchrun --nnodes 2` twice on this machine, as on two; SIGTERM to both, as SLURM sends it before a requeue."""
    settings = (*FIXED, "fit.steps=24", "fit.batch_size=2", "fit.valid_every=0", "fit.save_every=24")
    whole = lm_run("whole", *settings, "fit.batch_size=4")
    run = tmp_path / "run"

    def agents() -> list[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "1"]
        command += ["--local-addr", "127.0.0.1", "-m", "audiogen.train", f"recipe={tmp_path / 'lm.yaml'}"]
        command += [*settings, f"out={run}", "fit.shard=hsdp"]
        return [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]

    both = agents()
    while not losses(run):
        assert all(agent.poll() is None for agent in both)
        time.sleep(0.02)
    for agent in both:
        agent.send_signal(signal.SIGTERM)
    for agent in both:
        agent.wait(timeout=200)
    (step, _) = checkpoint.latest(run) or (0, run)
    assert 0 < step < 24
    assert [agent.wait(timeout=200) for agent in agents()] == [0, 0]
    assert losses(run) == pytest.approx(losses(whole), abs=1e-4) and difference(run, whole) < CLOSE


SLURM = {  # stand-ins for its commands, on one machine
    "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$0.log"; fi',
    "scancel": 'kill -TERM $(cat "$(dirname "$0")/tasks")',
    "srun": """shift 2
for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=$rank "$@" &
    echo $!
done > "$(dirname "$0")/tasks"
wait""",
    "python": f'exec {sys.executable} "$@"',
}


def test_a_sharded_slurm_job_that_nears_its_time_limit_saves_and_queues_again(
    lm_run: Train, tmp_path: Path
) -> None:
    folder, run = tmp_path / "bin", tmp_path / "run"
    folder.mkdir()
    for name, body in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    job = str((free_port() - 20000) % 40000)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": job}
    environment |= {"SLURM_JOB_NODELIST": "one", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    command = ["bash", "launch/train.sbatch", f"recipe={tmp_path / 'lm.yaml'}", *FIXED, f"out={run}"]
    command += [
        "fit.shard=fsdp",
        "fit.steps=24",
        "fit.batch_size=1",
        "fit.valid_every=0",
        "fit.save_every=24",
    ]
    batch = subprocess.Popen(command, cwd=ROOT, env=environment)
    while not losses(run):
        assert batch.poll() is None
        time.sleep(0.02)
    batch.send_signal(signal.SIGTERM)
    assert batch.wait(timeout=200) == 0
    assert (folder / "scontrol.log").read_text() == f"requeue {job}\n"
    assert 0 < (checkpoint.latest(run) or (0,))[0] < 24
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=400)
    assert (checkpoint.latest(run) or (0,))[0] == 24
    assert (folder / "scontrol.log").read_text() == f"requeue {job}\n"


def local_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.to_local().nbytes for each in tensors)  # type: ignore[attr-defined]


def test_processes_hold_what_is_planned_from_a_start_without_weights(
    lm_run: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Only the first makes the weights of a new model; shards, moments and averages are those of tools/memory_plan."""
    kept: dict[str, Any] = {}
    prepare = LMRecipe.prepare
    make = LMTask.__init__

    def init(task: LMTask, recipe: LMRecipe, codec: Any, start: Any, *others: Any) -> None:
        kept["on meta"] = start.lm.embedding.weight.is_meta
        make(task, recipe, codec, start, *others)

    def keep(recipe: LMRecipe, device: torch.device) -> Any:
        kept["task"], data = prepare(recipe, device)
        return kept["task"], data

    monkeypatch.setattr(LMTask, "__init__", init)
    monkeypatch.setattr(LMRecipe, "prepare", keep)
    settings = (*FIXED, "fit.batch_size=1", "fit.steps=1", "fit.shard=fsdp")

    def work(rank: int) -> tuple[bool, list[int]]:
        lm_run("run", *settings)
        task = kept["task"]
        weights = list(task.lm.parameters())
        moments = [
            task.optimizer.adamw.state[each][name] for each in weights for name in ("exp_avg", "exp_avg_sq")
        ]
        average = [each for name, each in task.average.averages.items() if name.startswith("lm.")]
        return kept["on meta"], [local_bytes(each) for each in (weights, weights, moments, average)]

    found = in_processes(work, 3)
    assert [on_meta for on_meta, _ in found] == [False, True, True]
    recipe = open_recipe(str(tmp_path / "lm.yaml"), settings)
    assert tuple(found[0][1]) == plan(recipe, "fsdp", 3)[:4]
    assert sum(held[0] for _, held in found) == plan(recipe, "whole", 1).weights


def test_a_sharded_run_writes_what_it_prepares_once(lm_run: Train) -> None:
    """The others come after the first all at once: one that wrote would lose its temporary file to another's start."""
    run = lm_run("run", *FIXED, "fit.steps=1")
    written = (run / "tokens" / "settings.json").stat()
    lm_run("run", *FIXED, "fit.steps=2")
    assert (run / "tokens" / "settings.json").stat().st_ino == written.st_ino


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["fit.shard=zero"], "fit.shard"),
        (["fit.shard=fsdp"], "fit.shard=fsdp is for several, started by torchrun"),
        (["fit.shard=fsdp", "fit.sample_every=2"], "fit.sample_every=0: generate from out= instead"),
        (["fit.shard=hsdp", "fit.compile=true"], "wants fit.compile=false"),
    ],
)
def test_a_mode_that_is_not_for_this_run_is_refused(lm_run: Train, settings: list[str], line: str) -> None:
    with pytest.raises(InputError, match=line):
        lm_run("run", *settings)


def test_what_is_not_for_several_processes_is_refused(lm_run: Train, codec_run: Train, lm_in: Train) -> None:
    """A codec is not sharded; as many steps of other clips a step are another place in the data."""
    lm_in(2, "begun", "fit.steps=3")

    def refused(run: Train, *settings: str) -> str:
        with pytest.raises(InputError) as caught:
            in_processes(lambda rank: str(run("begun", *settings)), 3)
        return str(caught.value)

    assert "task=codec takes fit.shard=ddp" in refused(codec_run, "fit.shard=fsdp")
    assert "fit.shard=none is for one process; there are 3" in refused(lm_run, "fit.shard=none")
    line = refused(lm_run, *FIXED, "fit.batch_size=2")
    assert (
        "4 clips a step, and 3 processes with fit.batch_size=2 are 6: choose a number that divides them"
        in line
    )
