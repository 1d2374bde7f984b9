"""The tool that measures memory, at the smallest size."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has"
)
def test_it_prints_a_line_for_each_model() -> None:
    words = ["--shape", "tiny", "--models", "native-bfloat16", "packed-float32"]
    run = subprocess.run(
        [sys.executable, "tools/bench_memory.py", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert lines[0] == "tiny: 11 M weights"
    found = [re.fullmatch(r"(\S+) +(\d+) MB, ([\d.]+) times the weights", line) for line in lines[1:]]
    assert [match and match[1] for match in found] == ["native-bfloat16", "packed-float32"]
    assert all(match and 0.9 < float(match[3]) < 4 for match in found)
