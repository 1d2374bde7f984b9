"""tools/sanitize.py finds what it is for, in sources that compile in a second; `make sanitize` tries the kernels."""

from pathlib import Path

import pytest

from audiogen.native.library import find_compiler
from tools.sanitize import sanitized

MAIN = "#include <thread>\nint main(int count, char **) {{ {} }}"
RACE = "long x = 0; std::thread other([&] {{ x += count; }}); x += count; other.join(); return 0;"


@pytest.mark.parametrize(
    ("sanitizer", "body", "found"),
    [
        ("address,undefined", "return 0;", ""),
        ("address,undefined", "int *x = new int[2]; delete[] x; return x[count];", "heap-use-after-free"),
        ("address,undefined", "int x = 0x7fffffff; x += count; return x == 0;", "signed integer overflow"),
        ("thread", RACE.format(), "data race"),
    ],
)  # fmt: skip
def test_a_fault_is_found(sanitizer: str, body: str, found: str, tmp_path: Path) -> None:
    source = tmp_path / "main.cpp"
    source.write_text(MAIN.format(body))
    try:
        run = sanitized(find_compiler() or "c++", sanitizer, [source], tmp_path)
    except OSError as error:
        pytest.skip(str(error))
    assert (run.returncode == 0) == (not found)
    assert found in run.stderr
