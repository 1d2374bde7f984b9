"""Checkpoints of a run, whole or absent: of one file, or, where the model is sharded, of one for each process.

The second kind is `files.checkpoint`'s with `shard-*.safetensors` in place of `state.safetensors`, written by
torch.distributed.checkpoint. Any number of processes reads either kind, each its own part of it.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

Group = dist.ProcessGroup | None


def save(directory: Path, state: Any, group: Group) -> None:
    """Write nested dicts and lists of tensors and scalars: this process alone, or all of a group, each its shards."""
    if group is None:
        checkpoint.save_state(directory, state)
        return
    tensors: dict[str, Tensor] = {}
    structure = checkpoint.pack(state, tensors)
    temporary = directory.with_name(f"{writing.TEMPORARY}{directory.name}")  # the same in all processes

    def begin() -> None:
        with writing.storing(directory):
            writing.clean(directory.parent)
            temporary.mkdir(parents=True)

    def end() -> None:
        with writing.storing(directory):
            writing.write_json(temporary / checkpoint.STATE, structure)
            checksums[checkpoint.STATE] = checkpoint.crc32(temporary / checkpoint.STATE)
            writing.write_json(temporary / checkpoint.CHECKSUMS, checksums)
            shutil.rmtree(
                directory, ignore_errors=True
            )  # a damaged one: else the run would have gone on from it
            writing.publish(temporary, directory)

    distributed.first_only(begin, None)
    with _one_line(directory):
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, process_group=group)
    own = temporary.glob(f"shard-{distributed.rank() + 1:05d}-*")  # what this process wrote
    gathered: list[Any] = [None] * distributed.world()
    dist.all_gather_object(gathered, {path.name: checkpoint.crc32(path) for path in own}, group=group)
    checksums = {name: checksum for each in gathered for name, checksum in each.items()}
    distributed.first_only(end, None)


def load(directory: Path, own: Any, group: Group) -> Any:
    """What `save` wrote; an InputError, in all processes, where a file is missing, damaged, or of other sizes.

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
