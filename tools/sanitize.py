"""The C++ kernels under the compiler's sanitizers: memory, undefined behaviour, races between threads.

python tools/sanitize.py

Builds tests/lm/native_harness.cpp with the kernels for each and runs it: odd shapes, three kinds of weights, 1, 2, 3
and 7 threads, every logit against a naive step in double precision. Status 1 where one finds a fault.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from audiogen.native.library import FLAGS, SOURCE, find_compiler

HARNESS = Path(__file__).resolve().parent.parent / "tests" / "lm" / "native_harness.cpp"
SANITIZERS = ("address,undefined", "thread")


def sanitized(
    compiler: str, sanitizer: str, sources: Sequence[Path], folder: Path
) -> subprocess.CompletedProcess[str]:
    """A program built with a sanitizer and run: its status and what it wrote; OSError where it cannot be built."""
    program = folder / "program"
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC", "-O2")]
    flags += ["-O1", "-g", "-march=native", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    command = [compiler, *flags, *map(str, sources), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise OSError(f"{compiler} cannot build with -fsanitize={sanitizer}: {built.stderr.strip()[-250:]}")
    return subprocess.run([str(program)], capture_output=True, text=True, check=False)


def main() -> int:
    """-> 1 where a sanitizer finds a fault, or cannot be used."""
    compiler = find_compiler()
    if compiler is None:
        print("there is no C++ compiler (c++, g++, clang++ or $CXX)", file=sys.stderr)
        return 1
    status = 0
    for sanitizer in SANITIZERS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                run = sanitized(compiler, sanitizer, [HARNESS, SOURCE], Path(folder))
            except OSError as error:
                print(error, file=sys.stderr)
                status = 1
                continue
        clean = run.returncode == 0
        print(f"{sanitizer}: {'clean' if clean else 'FAULT'} in {time.monotonic() - begin:.0f} s", flush=True)
        print(run.stdout + ("" if clean else run.stderr))
        status |= not clean
    return status


if __name__ == "__main__":
    sys.exit(main())
