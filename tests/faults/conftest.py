"""The preloaded library that makes calls fail, and `driver.py`, which runs commands under it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
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


@pytest.fixture
def drive(shim: Path, tmp_path: Path) -> Callable[..., None]:
    """Runs the driver on scenarios, given by their names with commas, and demands that it finds nothing wrong."""

    def drive(names: str, *options: str) -> None:
        run = subprocess.run(
            [sys.executable, HERE / "driver.py", tmp_path, *options, "--only", names],
            env=os.environ | {"LD_PRELOAD": str(shim), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        lines = [json.loads(line) for line in run.stdout.splitlines()]
        assert not [line for line in lines if "wrong" in line], run.stdout
        assert [line["scenario"] for line in lines] == names.split(",") and run.returncode == 0, run.stderr
        assert all(line["faults"] >= 4 for line in lines)

    return drive
