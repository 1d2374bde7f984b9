"""A training whose disk fills, rots or is used by another: nothing is lost, and a line says what was."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.locks import only_writer
from audiogen.files.writing import StorageError
from audiogen.train.lm import LMTask
from audiogen.train.log import Log, read_log
from tests.train.conftest import scalars

Train = Callable[..., Path]


def same_end(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints and the models of two runs are equal byte for byte."""
    names = [
        checkpoint.step_dir("", 6) / "state.safetensors",
        Path("model.safetensors"),
        Path("best/model.safetensors"),
    ]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], bool]], None]:
    """The disk is full for files whose path the test chooses."""

    def choose(chosen: Callable[[str], bool]) -> None:
        def fsync(descriptor: int) -> None:
            if chosen(os.readlink(f"/proc/self/fd/{descriptor}")):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", fsync)

    return choose


def test_a_save_that_finds_no_space_is_a_warning_and_the_next_one_is_tried(
    lm_run: Train,
    capsys: pytest.CaptureFixture[str],
    full_at: Callable[[Callable[[str], bool]], None],
    tmp_path: Path,
) -> None:
    whole = lm_run("whole")
    saves = 0

    def in_the_first_save_and_best(path: str) -> bool:
        nonlocal saves
        saves += "/checkpoints/" in path
        return saves == 1 or (saves < 6 and "/best/" in path)

    full_at(in_the_first_save_and_best)
    run = lm_run("full")
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 2, lines
    assert "step_00000002" in lines[0] and "No space left on device" in lines[0] and "MB are free" in lines[0]
    assert same_end(run, whole) and scalars(run) == scalars(whole)
    assert not list(run.rglob(".writing-*"))


def test_a_slow_disk_and_a_clock_that_jumps_change_nothing(
    lm_run: Train, odd_machine: Callable[[], list[float]]
) -> None:
    whole = lm_run("whole", "fit.save_every=6")
    slow = odd_machine()
    run = lm_run("slow", "fit.save_every=6")
    assert slow and same_end(run, whole) and scalars(run) == scalars(whole)
    times = [record["time_s"] for record in read_log(run)]
    assert times == sorted(times) and times[-1] < 3600


def test_a_log_that_finds_no_space_is_an_error_with_no_bar_before_it(
    full_at: Callable[[Callable[[str], bool]], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_at(lambda path: True)
    with pytest.raises(StorageError, match=r"log\.jsonl cannot be written"):
        Log(tmp_path, 0, 6)
    assert capsys.readouterr().err == ""


def test_the_last_save_is_an_error_and_the_checkpoint_before_goes_on(
    lm_run: Train,
    full_at: Callable[[Callable[[str], bool]], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = lm_run("whole")
    saves = 0

    def from_the_third_save(path: str) -> bool:
        nonlocal saves
        saves += path.endswith("checkpoints")  # the folder, once a save is in its place
        return saves >= 2 and "/full" in path

    with monkeypatch.context():
        full_at(from_the_third_save)
        with pytest.raises(StorageError, match=r"step_00000006.*cannot be written: No space left.*the same"):
            lm_run("full")
    monkeypatch.undo()
    assert [step for step, _ in checkpoint.step_dirs(tmp_path / "full")][-1:] == [4]
    assert not list((tmp_path / "full").rglob(".writing-*"))
    assert same_end(lm_run("full"), whole)


def test_a_run_that_ended_before_its_model_was_written_writes_it(
    lm_run: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint is there, the model not yet, or half of it."""
    whole, export = lm_run("whole"), LMTask.export

    def ended(task: LMTask, directory: Path, info: Mapping[str, Any]) -> None:
        if info["step"] == 6 and directory.name == "killed":
            raise KeyboardInterrupt
        export(task, directory, info)

    with monkeypatch.context() as killed:
        killed.setattr(LMTask, "export", ended)
        with pytest.raises(KeyboardInterrupt):
            lm_run("killed")
    halves = [whole.with_name("killed") / "text" / name for name in (".writing-1", ".tmpA1b2C3")]
    for half in halves:
        half.touch()
    assert same_end(lm_run("killed"), whole) and not any(half.exists() for half in halves)
    weights = whole / "model.safetensors"
    weights.unlink()
    lm_run("whole")
    assert not weights.exists()  # a model that was written is the user's, to be moved or deleted


def test_bit_rot_in_the_newest_checkpoint_falls_back_to_the_one_before(
    lm_run: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = lm_run("whole")
    run = lm_run("rotten", "fit.keep_last=2")
    for name in (checkpoint.STATE, checkpoint.TENSORS):
        path = checkpoint.step_dir(run, 6) / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        lm_run("rotten", "fit.keep_last=2")
        said = capsys.readouterr().err
        assert f"step_00000006/{name} is damaged (wrong checksum); the checkpoint before it is tried" in said
        assert same_end(run, whole) and scalars(run) == scalars(whole)
    for _, folder in checkpoint.step_dirs(run):
        (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"no checkpoint of .*rotten is whole"):
        lm_run("rotten")


def test_a_second_training_in_the_folder_is_refused_by_name(lm_run: Train, tmp_path: Path) -> None:
    with (
        only_writer(tmp_path / "mine"),
        pytest.raises(InputError, match=r"mine is being written by this process"),
    ):
        lm_run("mine")
