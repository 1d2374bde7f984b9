"""Some hundred damaged and forged files of every kind; `python tests/fuzz.py all` tries more of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("av")
if sys.platform != "linux":
    pytest.skip("the limits of processor time and memory are Linux's", allow_module_level=True)


def test_no_damaged_or_forged_file_does_more_than_to_be_refused_in_one_line(tmp_path: Path) -> None:
    # One process, whose imports serve all targets: the longest test of the suite, 20 s for 1,300 files.
    command = [sys.executable, ROOT / "tests" / "fuzz.py", "all", "--count", "100", "--minutes", "0.1"]
    run = subprocess.run([*command, "--out", tmp_path], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert run.stdout.count(" 0 findings") == run.stdout.count("\n") >= 12


def test_a_crash_is_noticed_and_the_next_file_tried(tmp_path: Path) -> None:
    script = f"""
import ctypes, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests import fuzz
from types import SimpleNamespace

def run(path):
    number = int(path.name.partition("-")[0])
    if number == 3:
        ctypes.string_at(0)
    if number == 5:
        raise KeyError("x")
    if number == 6:
        bytearray(3 << 30)
    if number == 7:
        while True:
            pass

fuzz.CASE_S = 0.5
target = SimpleNamespace(seeds=lambda: {{"a.x": b"abc"}}, run=run, repair=bytes, words=())
print(fuzz.fuzz("x", target, 0, 8, 1.0, Path({str(tmp_path)!r})))
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "(9, 4)" in run.stdout, run.stdout + run.stderr
    assert all(word in run.stdout for word in ("SIGSEGV", "SIGPROF", "KeyError", "MemoryError"))
    assert len(list(tmp_path.iterdir())) == 4
