"""Checkpoints of a run, whole or absent: of one file, or, where the model is sharded, of one for each process.

The second kind is `files.checkpoint`'s with `shard-*.safetensors` in place of `state.safetensors`, written by
torch.distributed.checkpoint. Any number of processes reads either kind, each its own part of it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from audiogen import distributed
from audiogen.errors import InputError, one_line
from audiogen.files import checkpoint, writing
from audiogen.train.log import Log

Group = dist.ProcessGroup | None


class Saver:
    """Writes the checkpoints of a run and drops old ones; sharded ones beside the training, one at a time."""

    def __init__(self, run: Path, keep_last: int, group: Group, log: Log):
        """group: the processes that each write their shards; None where this one writes all."""
        self.run, self.keep_last, self.group, self.log = run, keep_last, group, log
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def save(self, step: int, state: Any) -> None:
        """Write nested dicts and lists of tensors and scalars; with a group only a copy is made before it returns.

        What the writing of a copy meets is raised by `wait`; here, when the next one is due, it is a warning.
        """
        directory = checkpoint.step_dir(self.run, step)
        if self.group is None:
            checkpoint.save_state(directory, state)
            checkpoint.prune(self.run, step, self.keep_last)
            return
        with self.log.tolerating():
            self.wait()
        tensors: dict[str, Tensor] = {}
        structure = checkpoint.pack(state, tensors)
        temporary = directory.with_name(f"{writing.TEMPORARY}{directory.name}")  # the same in all processes

        def begin() -> None:
            writing.clean(directory.parent)
            temporary.mkdir(parents=True)

        self._first(directory, begin)
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        written = dcp.async_save(tensors, storage_writer=writer, process_group=self.group)
        self._running = self._thread.submit(self._finish, step, structure, written, temporary)

    def _finish(self, step: int, structure: Any, written: Any, temporary: Path) -> None:
        """Once all shards are written, give the checkpoint its name."""
        directory = checkpoint.step_dir(self.run, step)
        with _one_line(directory):
            written.result()
        own = temporary.glob(f"shard-{distributed.rank() + 1:05d}-*")  # what this process wrote
        gathered: list[Any] = [None] * distributed.world()
        dist.all_gather_object(
            gathered, {path.name: checkpoint.crc32(path) for path in own}, group=self.group
        )
        checksums = {name: checksum for each in gathered for name, checksum in each.items()}

        def end() -> None:
            writing.write_json(temporary / checkpoint.STATE, structure)
            checksums[checkpoint.STATE] = checkpoint.crc32(temporary / checkpoint.STATE)
            writing.write_json(temporary / checkpoint.CHECKSUMS, checksums)
            shutil.rmtree(directory, ignore_errors=True)  # a damaged one: else the run had gone on from it
            writing.publish(temporary, directory)
            checkpoint.prune(self.run, step, self.keep_last)

        self._first(directory, end)

    def _first(self, directory: Path, work: Callable[[], None]) -> None:
        """Work of the first process, for which the others wait; a fault of its disk is one in all."""
        fault: list[Any] = [None]
        if distributed.rank() == 0:
            try:
                with writing.storing(directory):
                    work()
            except writing.StorageError as error:
                fault = [str(error)]
        dist.broadcast_object_list(fault, group=self.group)
        if fault[0]:
            raise writing.StorageError(fault[0])

    def wait(self) -> None:
        """Until what is being written has its name."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def close(self) -> None:
        """Let what is being written end, at the end of the training, whatever that was."""
        with suppress(Exception):
            self.wait()
        self._thread.shutdown()


def load(directory: Path, own: Any, group: Group) -> Any:
    """What a `Saver` wrote; an InputError, in all processes, where a file is missing, damaged, or of other sizes.

    own: the state that is to be replaced. In a group its tensors are overwritten, and are those that are returned:
    each process reads its shards alone.
    """
    if group is None and (directory / checkpoint.TENSORS).exists():
        return checkpoint.load_state(directory)
    structure = writing.read_json(directory / checkpoint.STATE)
    _check(directory, group)
    targets: dict[str, Tensor] = {}
    if group is not None:
        checkpoint.pack(own, targets)
    with _one_line(directory), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it reads alone
        reader = HuggingFaceStorageReader(str(directory))
        stored: Any = reader.read_metadata().state_dict_metadata
        tensors = {
            name: targets[name] if name in targets else torch.empty(each.size, dtype=each.properties.dtype)
            for name, each in stored.items()
        }
        dcp.load(tensors, storage_reader=reader, process_group=group, no_dist=group is None)
    return checkpoint.unpack(structure, tensors)


def _check(directory: Path, group: Group) -> None:
    """Compare the checksums of the files; the processes of a group share the work."""
    names = sorted(writing.read_json(directory / checkpoint.CHECKSUMS).items())
    damaged = []
    for name, checksum in names if group is None else names[distributed.rank() :: distributed.world()]:
        try:
            damaged += [name] * (checkpoint.crc32(directory / name) != checksum)
        except InputError:
            damaged.append(name)
    if distributed.any_process(bool(damaged)):
        which = ", ".join(damaged) or "a file"
        raise InputError(f"{which} of {directory} is damaged (wrong checksum) or missing")


@contextmanager
def _one_line(directory: Path) -> Iterator[None]:
    """What torch.distributed.checkpoint raises, in all processes, as an InputError; faults of the disk as such."""
    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = next(iter(error.failures.items()))
        with writing.storing(directory):
            if isinstance(reason, OSError):
                raise reason from None
        raise InputError(
            f"{directory} does not fit this run (rank {rank}): {one_line(reason)[:200]}"
        ) from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{directory} is damaged: {one_line(error)[:200]}") from None
