"""One writer at a time in a folder, whatever ends the one before."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from audiogen.errors import InputError
from audiogen.files.locks import LOCK, only_writer
from audiogen.files.writing import StorageError

HOLD = """
import sys
from audiogen.files.locks import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_is_refused_by_name_until_the_first_ends_however(tmp_path: Path) -> None:
    for kill in (False, True):
        process = holder(tmp_path)
        with pytest.raises(
            InputError, match=f"{tmp_path} is being written by process {process.pid} on .*, since"
        ):
            with only_writer(tmp_path):
                raise AssertionError
        assert os.listdir(tmp_path) == [LOCK]  # reading it took nothing away
        if kill:
            process.send_signal(signal.SIGKILL)
            process.wait()
        else:
            process.communicate("")
        with only_writer(tmp_path):
            assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert not os.listdir(tmp_path)


def test_the_same_process_is_refused_too_and_loses_nothing_by_it(tmp_path: Path) -> None:
    refused: list[InputError] = []

    def second() -> None:
        try:
            with only_writer(tmp_path):
                pass
        except InputError as error:
            refused.append(error)

    with only_writer(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert "this process" in str(refused[0])
        # POSIX frees a lock where its process closes any descriptor of the file
        process = subprocess.run([sys.executable, "-c", HOLD, str(tmp_path)], capture_output=True, text=True)
        assert f"process {os.getpid()}" in process.stderr


def test_a_folder_made_for_the_lock_goes_where_nothing_came_into_it(tmp_path: Path) -> None:
    with only_writer(tmp_path / "new" / "inner"):
        pass
    with only_writer(tmp_path / "kept"):
        (tmp_path / "kept" / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    with (
        pytest.raises(InputError, match="kept/a cannot be written: File exists"),
        only_writer(tmp_path / "kept" / "a"),
    ):
        pass


def test_a_lock_that_finds_no_space_is_one_line_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "write", full)
        with pytest.raises(StorageError, match=r"\.lock cannot be written: No space"), only_writer(tmp_path):
            raise AssertionError
    assert not list(tmp_path.iterdir())
    with only_writer(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    parent = os.fork()
    if parent == 0:
        with only_writer(tmp_path):
            read, write = os.pipe()
            worker = os.fork()
            if worker == 0:
                os.read(read, 1)  # as long as the test has the other end
            os.write(1, b"")
            (tmp_path / "worker").write_text(str(worker))
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    worker = int((tmp_path / "worker").read_text())
    try:
        with only_writer(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
