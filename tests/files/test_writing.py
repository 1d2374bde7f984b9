"""What the file system refuses is one line that says what to do; nothing half written is left."""

import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from audiogen import audio
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.files.writing import StorageError
from audiogen.models.diffusers import save_diffusers
from audiogen.spectrogram import save_spectrogram
from audiogen.text.vocabulary import train_vocabulary
from tests.diffusion.tiny_systems import CAPTIONS, tiny


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


WRITERS: dict[str, Callable[[Path], object]] = {
    "a.json": lambda path: writing.write_json(path, {"key": "x" * 100_000}),
    "a.safetensors": lambda path: checkpoint.write_tensors(path, {"weight": noise(30_000)}),
    "step_00000001": lambda path: checkpoint.save_state(path, {"weight": noise(30_000)}),
    "a.png": lambda path: save_spectrogram(path, noise(1, 20_000), 16_000),
    **{
        f"a.{kind}": lambda path: audio.save(path, (noise(1, 80_000), noise(1, 80_000)), 16_000)
        for kind in audio.SAVE_FORMATS
    },
}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Files that grow beyond so many bytes meet EFBIG in write(2), as they meet ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("name", WRITERS)
def test_whatever_is_written_is_whole_or_one_line(tmp_path: Path, name: str) -> None:
    """Also where only the last bytes find no space, which libsndfile does not report for FLAC, Ogg and MP3."""
    write = WRITERS[name]
    write(tmp_path / "whole" / name)
    files = [tmp_path / "whole" / name, *(tmp_path / "whole" / name).rglob("*")]
    size = max(file.stat().st_size for file in files if file.is_file())
    for limit in (0, 1, size // 2, size - 1000, size - 2):
        with largest_file(limit), pytest.raises(StorageError) as raised:
            write(tmp_path / "full" / name)
        assert re.search(
            r"full/\S+ cannot be written: File too large.*MB are free.*make space", str(raised.value)
        )
        assert not list((tmp_path / "full").iterdir())


FULL = """
import json, os, sys, torch
from audiogen import audio
from audiogen.files.writing import StorageError
blocks = 0.1 * torch.randn(1, 1_600_000, generator=torch.Generator().manual_seed(0))
for kind in audio.SAVE_FORMATS:
    path = f"{sys.argv[1]}/a.{kind}"
    try:
        audio.save(path, blocks.split(16_000, dim=-1), 16_000, keep_begun=True)
    except StorageError as error:
        sound, _ = audio.load(path)
        close = (sound - blocks[:, : sound.shape[-1]]).abs().max().item()
        print(json.dumps([kind, str(error), sound.shape[-1] / 16_000, close, os.listdir(sys.argv[1])]))
    os.remove(path)
"""


def test_a_stream_keeps_what_was_written_before_the_disk_was_full(tmp_path: Path) -> None:
    """On a file system that is really full, where this machine lets us make one."""
    script = f'mount -t tmpfs -o size=1300k none {tmp_path} && {sys.executable} -c "$0" {tmp_path}'
    run = subprocess.run(["unshare", "-rm", "sh", "-c", script, FULL], capture_output=True, text=True)
    if "mount" in run.stderr or "unshare" in run.stderr:
        pytest.skip(f"no file system of one's own here: {run.stderr.strip()}")
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert [line[0] for line in lines] == list(audio.SAVE_FORMATS)
    for kind, message, length_s, difference, names in lines:
        assert names == [f"a.{kind}"]
        found = re.search(
            r"written: No space left on device \(the (\d+\.\d) s up to there are kept\)", message
        )
        assert found and 5 < float(found[1]) < 95 and abs(float(found[1]) - length_s) < 0.1
        assert kind in ("ogg", "mp3") or difference < 1 / 32_000


def test_the_line_says_what_is_needed_and_what_to_do(tmp_path: Path) -> None:
    for number, advice in {
        errno.ENOSPC: r"No space left on device; [\d.e+]+ MB are free, 3 MB or more are needed; make space",
        errno.EROFS: "Read-only file system; choose a folder that you may write to",
        errno.EMFILE: "Too many open files; raise the limit",
        errno.ELOOP: "choose another place",
    }.items():
        with (
            pytest.raises(StorageError, match=f"a.bin cannot be written: .*{advice}"),
            writing.storing(tmp_path / "new" / "a.bin", 3_000_000),
        ):
            raise OSError(number, os.strerror(number))


def test_a_full_disk_within_safetensors_is_the_same_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="new cannot be written: No space left on device; .*make space"):
        with writing.storing(tmp_path / "new"):
            raise SafetensorError("Error while serializing: I/O error: No space left (os error 28) at path x")
    with pytest.raises(SafetensorError, match="incomplete"), writing.storing(tmp_path / "new"):
        raise SafetensorError("Error while deserializing header: incomplete metadata")


@pytest.mark.parametrize("limit", [0, 300, 20_000])
def test_a_full_disk_while_diffusers_writes_is_one_line(tmp_path: Path, limit: int) -> None:
    """At a folder's settings, and at its weights."""
    system = LatentSystem(tiny("lafma"), train_vocabulary(CAPTIONS, 40))
    with (
        largest_file(limit),
        pytest.raises(StorageError, match=r"cannot be written: File too large.*make space"),
    ):
        save_diffusers(tmp_path / "full", system, "lafma", {}, encoders=False)
    assert not (tmp_path / "full" / "model_index.json").exists()
    save_diffusers(tmp_path / "full", system, "lafma", {}, encoders=False)


def test_a_fault_in_opening_weights_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch maps the file, and raises a RuntimeError."""

    def fail(path: Path) -> None:
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: Input/output error (5)")

    monkeypatch.setattr(checkpoint, "load_file", fail)
    with pytest.raises(InputError, match=r"model.safetensors is damaged or half-written \(.*error \(5\)\)"):
        checkpoint.load_tensors(tmp_path)


def test_damage_to_a_checkpoint_is_found(tmp_path: Path) -> None:
    state = {"weight": noise(100), "step": 3}
    for name in (checkpoint.STATE, checkpoint.TENSORS):
        checkpoint.save_state(tmp_path / name, state)
        assert torch.equal(checkpoint.load_state(tmp_path / name)["weight"], state["weight"])
        data = np.fromfile(tmp_path / name / name, np.uint8)
        data[-9] ^= 1  # in the last number
        data.tofile(tmp_path / name / name)
        with pytest.raises(writing.InputError, match=f"{name} is damaged"):
            checkpoint.load_state(tmp_path / name)


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_replaces_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """With hard links, and on a file system without them."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a" / "sound.wav"
    with writing.replacing(path, overwrite=False) as temporary:
        temporary.write_text("first")
    with (
        pytest.raises(writing.InputError, match="sound.wav was written by another process"),
        writing.replacing(path, overwrite=False) as temporary,
    ):
        temporary.write_text("second")
    assert path.read_text() == "first" and list(path.parent.iterdir()) == [path]
    with writing.replacing(path) as temporary:
        temporary.write_text("third")
    assert path.read_text() == "third" and list(path.parent.iterdir()) == [path]
