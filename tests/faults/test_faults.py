"""Every command survives a file system that fails at any call; `driver.py` has what is asked of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    if not sys.platform.startswith("linux") or COMPILER is None:
        pytest.skip("faults are made by a preloaded C library: Linux with a C compiler")
    path = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", path, HERE / "shim.c", "-ldl"], check=True)
    return path


@pytest.mark.parametrize("names", ["generate,stream,scan", "encode,shards,decode", "train"])
def test_a_fault_of_the_disk_is_one_line_and_loses_nothing(shim: Path, tmp_path: Path, names: str) -> None:
    """At a few of the calls; `make faults` tries all of them."""
    drive(shim, tmp_path, names, "--at", "2")


@pytest.mark.parametrize("names", ["stream,encode,shards", "train"])
def test_a_signal_at_any_moment_loses_nothing(shim: Path, tmp_path: Path, names: str) -> None:
    """The same command afterwards makes what an undisturbed one makes, byte for byte; at a few random moments."""
    drive(shim, tmp_path, names, "--signals", "2")


def drive(shim: Path, work: Path, names: str, *options: str) -> None:
    """Run the driver, and demand that it finds nothing wrong."""
    run = subprocess.run(
        [sys.executable, HERE / "driver.py", work, *options, "--only", names],
        env=os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert not [line for line in lines if "wrong" in line], run.stdout
    assert [line["scenario"] for line in lines] == names.split(",") and run.returncode == 0, run.stderr
    assert all(line["faults"] >= 4 for line in lines)
