"""The C++ kernels: built by the system's compiler at first use, for this very machine, and loaded.

The library lies in a folder of the user's cache. Without a compiler `library()` is None, and PyTorch's own packed
products and transforms serve (`lm.kernels.packed`, `griffin_lim`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import POINTER, Structure, c_char_p, c_float, c_int64, c_void_p
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SOURCE = Path(__file__).with_name("native.cpp")  # with the headers beside it
COMPILERS = ("c++", "g++", "clang++")
# The first that the compiler takes; the last is for those without a "native" for their processor.
TARGETS = (("-march=native",), ("-mcpu=native",), ())
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
TIMEOUT_S = 300.0  # of the compiler, which takes 3 s where nothing else runs


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built where this machine has none yet; None, with one line on stderr, where they cannot be."""
    compiler = find_compiler()
    if compiler is None:
        reason = "there is no C++ compiler (c++, g++, clang++ or $CXX)"
    else:
        try:
            return build(compiler, cache_directory())
        except (OSError, subprocess.SubprocessError) as error:
            reason = " ".join(str(error).split())[:300]
    print(f"fast kernels are not available: {reason}; PyTorch's are slower", file=sys.stderr)
    return None


def find_compiler() -> str | None:
    """$CXX, or else the first C++ compiler on the PATH."""
    chosen = os.environ.get("CXX")
    names = (chosen,) if chosen else COMPILERS
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def cache_directory() -> Path:
    """Where builds lie: $AUDIOGEN_CACHE, or audiogen in the user's cache; a new folder where neither can be written."""
    own = os.environ.get("AUDIOGEN_CACHE")
    user = os.environ.get("XDG_CACHE_HOME")
    directory = Path(own) if own else (Path(user) if user else Path.home() / ".cache") / "audiogen"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        # only this process writes there: code is loaded from it
        return Path(tempfile.mkdtemp(prefix="audiogen-"))


def build(
    compiler: str, directory: Path, targets: Sequence[Sequence[str]] = TARGETS, source: Path = SOURCE
) -> ctypes.CDLL:
    """The library for this machine, compiler and source, from `directory` or built into it.

    A file is named by its contents: one that was cut off or altered is built again. It comes into its place whole,
    and of several processes one builds while the others wait.
    """
    key = _key(compiler, targets, source)
    with _lock(directory / f"native-{key}.lock"):
        found = _load(directory, key)
        if found is None:
            print(
                "building fast kernels for this machine, once (some seconds) ...", file=sys.stderr, flush=True
            )
            begin = time.monotonic()
            _compile(compiler, directory, key, targets, source)
            print(f"... built in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
            found = _load(directory, key)
    if found is None:
        raise OSError(f"{compiler} built a library that cannot be loaded from {directory}")
    return found


def _key(compiler: str, targets: Sequence[Sequence[str]], source: Path) -> str:
    """Of everything that decides what the library is."""
    version = _run([compiler, "--version"])
    if version.returncode != 0:
        raise OSError(f"{compiler} --version failed: {version.stderr.strip()[-250:]}")
    machine = [platform.system(), platform.machine(), platform.processor()]
    with suppress(OSError):  # Linux: model and instructions of the first core
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        named = ("model name", "flags", "Features", "CPU part")
        machine += [line for line in first if line.startswith(named)]
    sources = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*sources, compiler.encode(), version.stdout.encode(), repr([machine, targets, FLAGS]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _load(directory: Path, key: str) -> ctypes.CDLL | None:
    """The library of this key whose contents are those of its name. Others are removed: loading them may crash."""
    for path in sorted(directory.glob(f"native-{key}-*.so")):
        with suppress(OSError, AttributeError):
            if path.stem.rpartition("-")[2] == _digest(path):
                return _declare(ctypes.CDLL(str(path)))
        path.unlink(missing_ok=True)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; where there are no locks, several build at once, which harms nothing."""
    with path.open("w") as file:
        if sys.platform != "win32":
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(
    compiler: str, directory: Path, key: str, targets: Sequence[Sequence[str]], source: Path
) -> None:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        built = Path(folder) / "native.so"
        for target in targets:
            command = [compiler, *FLAGS, *target, str(source), "-o", str(built)]
            run = _run(command)
            if run.returncode == 0:
                built.replace(directory / f"native-{key}-{_digest(built)}.so")
                return
    raise OSError(f"{compiler} failed: {run.stderr.strip()[-250:]}")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a compiler out of reach of Ctrl-C, which goes to all processes of a terminal: only this one answers it.

    A training that is interrupted finishes its step, and would finish it without a compiler that died. One that a
    signal ended all the same, in the moment before it had left the terminal's group, is run again.
    """
    run = _in_session(command)
    return _in_session(command) if run.returncode < 0 else run


def _in_session(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own; all of it ends where this process is interrupted."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException:
            if sys.platform == "win32":
                process.kill()
            else:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)  # and what it has started
            process.wait()  # it removes its files
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


class Linear(Structure):
    """A matrix packed in panels, and its scales for int8: see `native.pack`."""

    _fields_ = [("panels", c_void_p), ("scales", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class Norm(Structure):
    """A LayerNorm."""

    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


# The weights of a block by their names in TokenLM, in the order of the C++ structure.
BLOCK = (
    "norm_self", "self_attention.in_proj", "self_attention.out_proj",
    "norm_cross", "cross_attention.query_proj", "cross_attention.text_proj", "cross_attention.out_proj",
    "norm_ff", "ff_in", "ff_out",
)  # fmt: skip


class Layer(Structure):
    """A block."""

    _fields_ = [(name.replace(".", "_"), Norm if name.startswith("norm") else Linear) for name in BLOCK]


class Model(Structure):
    """A TokenLM; dtype is an index of `native.DTYPES`."""

    _fields_ = [
        *((name, c_int64) for name in ("dtype", "num_codebooks", "codebook_size", "dim", "num_layers", "num_heads")),
        ("embedding", c_void_p), ("layers", POINTER(Layer)), ("out_norm", Norm), ("heads", Linear),
    ]  # fmt: skip


class Cache(Structure):
    """The cache of B rows; `native.NativeCache` holds its memory."""

    _fields_ = [
        *((name, c_int64) for name in ("batch", "max_steps", "length", "max_text")),
        *((name, c_void_p) for name in ("keys", "values", "text_keys", "text_values", "text_lengths")),
    ]


class Part(Structure):
    """New steps of a cache's rows, and where their logits go."""

    _fields_ = [
        ("cache", POINTER(Cache)),
        ("codes", c_void_p),
        ("positions", c_void_p),
        ("num_steps", c_int64),
        ("logits", c_void_p),
    ]


def _declare(native: ctypes.CDLL) -> ctypes.CDLL:
    """Types of the functions; one that is missing is an AttributeError."""
    model, cache, count, data, team = POINTER(Model), POINTER(Cache), c_int64, c_void_p, c_void_p
    for name, result, arguments in (
        ("team_new", team, [count]),
        ("team_free", None, [team]),
        ("pages", None, [data, count]),
        ("head_bytes", None, [model, count, data]),
        ("text", None, [model, cache, count, data, team]),
        ("step", None, [model, POINTER(Part), count, team]),
        ("transform_new", data, [count, count, data]),
        ("inverse", None, [data, data, data, count, data]),
        ("forward", None, [data, data, count, data, c_float, data, data]),
        ("read", count, [c_char_p, count, team]),
    ):
        function = getattr(native, f"audiogen_{name}")
        function.restype, function.argtypes = result, arguments
    return native
