"""TokenLM on a CPU by kernels of ours: a whole decoding step in one call, weights in float32, bfloat16 or int8.

Decoding reads every weight once a step, so bytes over memory bandwidth is the floor: `native.cpp` holds the weights
packed in the order in which they are read, reads each once for all rows, and keeps the threads inside one call.
The PyTorch path is the oracle: float32 equals it but for rounding.

The C++ source is built by the system's compiler at first use, for this very machine, into a folder of the user's
cache. Without a compiler `library()` is None, and PyTorch's own packed products serve (`lm.packed`).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from ctypes import POINTER, Structure, byref, c_char_p, c_int64, c_void_p
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import Read, TokenLM, reader
from audiogen.lm.transformer import Block, sinusoidal_positions

if sys.platform != "win32":
    import fcntl

Dtype = Literal["float32", "bfloat16", "int8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
VALUES = {"float32": 1, "bfloat16": 2, "int8": 4}  # values in a word of 32 bits
LANES = 16  # outputs in a panel of weights, positions in one of keys
MAX_STEPS = 128  # steps in one call: a longer prefill goes in pieces, which bounds the memory of activations

SOURCE = Path(__file__).with_name("native.cpp")  # with the headers in the folder native beside it
COMPILERS = ("c++", "g++", "clang++")
# The first that the compiler takes; the last is for those that know no "native" for their processor.
TARGETS = (("-march=native",), ("-mcpu=native",), ())
FLAGS = ("-std=c++17", "-O2", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-Wno-psabi")
TIMEOUT_S = 300.0


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built where this machine has none yet; None, told in one line, where they cannot be built."""
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
        return Path(tempfile.mkdtemp(prefix="audiogen-"))  # ours alone: code is loaded from it


def build(
    compiler: str, directory: Path, targets: Sequence[Sequence[str]] = TARGETS, source: Path = SOURCE
) -> ctypes.CDLL:
    """The library for this machine, compiler and source, from `directory` or built into it.

    A file is named by its contents: one that was cut off or altered is built again. It comes into its place whole,
    and of several processes one builds while the others wait.
    """
    key = _key(compiler, targets, source)
    found = _load(directory, key)
    if found is not None:
        return found
    with _lock(directory / f"native-{key}.lock"):
        found = _load(directory, key)  # built by another process meanwhile
        if found is not None:
            return found
        print("building fast kernels for this machine, once (some seconds) ...", file=sys.stderr, flush=True)
        begin = time.monotonic()
        _compile(compiler, directory, key, targets, source)
        print(f"... built in {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    found = _load(directory, key)
    if found is None:
        raise OSError(f"{compiler} built a library that cannot be loaded from {directory}")
    return found


def _key(compiler: str, targets: Sequence[Sequence[str]], source: Path) -> str:
    """Of everything that decides what the library is."""
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, timeout=TIMEOUT_S, check=True
    ).stdout
    machine = [platform.system(), platform.machine(), platform.processor()]
    with suppress(OSError):  # Linux: model and instructions of the first core
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        named = ("model name", "flags", "Features", "CPU part")
        machine += [line for line in first if line.startswith(named)]
    sources = [path.read_bytes() for path in (source, *sorted(source.parent.glob("native/*.h")))]
    parts = [*sources, compiler.encode(), version, repr([machine, targets, FLAGS]).encode()]
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
            run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            if run.returncode == 0:
                built.replace(directory / f"native-{key}-{_digest(built)}.so")
                return
    raise OSError(f"{compiler} failed: {run.stderr.strip()[-250:]}")


class _Linear(Structure):
    _fields_ = [("panels", c_void_p), ("scales", c_void_p), ("inputs", c_int64), ("outputs", c_int64)]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Layer(Structure):
    _fields_ = [
        ("norm_self", _Norm), ("in_proj", _Linear), ("out_proj", _Linear),
        ("norm_cross", _Norm), ("query_proj", _Linear), ("text_proj", _Linear), ("cross_out_proj", _Linear),
        ("norm_ff", _Norm), ("ff_in", _Linear), ("ff_out", _Linear),
    ]  # fmt: skip


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("dtype", "num_codebooks", "codebook_size", "dim", "num_layers", "num_heads")),
        ("embedding", c_void_p), ("layers", POINTER(_Layer)), ("out_norm", _Norm), ("heads", _Linear),
    ]  # fmt: skip


class _Cache(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("batch", "max_steps", "length", "max_text")),
        *((name, c_void_p) for name in ("keys", "values", "text_keys", "text_values", "text_lengths")),
    ]


def _declare(native: ctypes.CDLL) -> ctypes.CDLL:
    """Types of the functions; one that is missing is an AttributeError."""
    model, cache, count, data, team = POINTER(_Model), POINTER(_Cache), c_int64, c_void_p, c_void_p
    for name, result, arguments in (
        ("team_new", team, [count]),
        ("team_free", None, [team]),
        ("pages", None, [data, count]),
        ("head_bytes", None, [model, count, data]),
        ("text", None, [model, cache, count, data, team]),
        ("step", None, [model, cache, data, data, count, data, team]),
        ("read", count, [c_char_p, count, team]),
    ):
        function = getattr(native, f"audiogen_{name}")
        function.restype, function.argtypes = result, arguments
    return native


class Team:
    """Threads that share the work of a call. They are this process's: a fork of it needs a team of its own."""

    def __init__(self, native: ctypes.CDLL, num_threads: int):
        self.num_threads, self.process = num_threads, os.getpid()
        self._free = native.audiogen_team_free
        self.handle = native.audiogen_team_new(num_threads)

    def __del__(self) -> None:
        if os.getpid() == self.process:
            self._free(self.handle)


class NativeCache:
    """Keys and values of the steps seen so far and of the text, as `native.cpp` lays them out.

    float32 for a float32 model, else bfloat16. length: steps seen. text_lengths: int64 [B], 0 for a row without text.
    """

    def __init__(self, sizes: tuple[int, int, int, int], rows: int, max_steps: int, text_lengths: Tensor):
        """sizes: bytes of the keys and values of a head, then of its text. rows: heads of all layers and rows."""
        self.text_lengths, self.max_steps = text_lengths, max_steps
        memory = [torch.empty(rows * size, dtype=torch.uint8) for size in sizes]
        self._memory = memory, text_lengths  # what `struct` points into
        self.struct = _Cache(
            len(text_lengths), max_steps, 0, int(text_lengths.max()),
            *(tensor.data_ptr() for tensor in memory), text_lengths.data_ptr(),
        )  # fmt: skip

    @property
    def length(self) -> int:
        return self.struct.length


class NativeLM:
    """The weights of a TokenLM, packed, and its decoding step; what it needs of the TokenLM is copied.

    Besides the packed weights, few rows at a time are in memory as float32.

    dtype: of the weights. bfloat16 rounds weights and inputs of products; int8 has a scale for every output of a
    matrix and quantises inputs by groups of 64 as they come. The rest is float32: embeddings, norms, softmax, logits.
    native: from `library()` unless given. read: gives a weight by its name in `lm`, which may then be on the meta
    device: so weights go from a file into their packed form, and are never in memory twice. Threads are those of
    torch.get_num_threads() at each call, which begins as OMP_NUM_THREADS.
    """

    device = torch.device("cpu")
    independent_rows = True

    def __init__(
        self,
        lm: TokenLM,
        dtype: Dtype = "float32",
        native: ctypes.CDLL | None = None,
        read: Read | None = None,
    ):
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        native = native or library()
        if native is None:
            raise InputError(
                "fast kernels need a C++ compiler: install g++ or clang++, or use the PyTorch path"
            )
        self.config, self.special, self.dtype = lm.config, lm.special, dtype
        self._native = native
        self._lock = threading.Lock()  # the team and its buffers serve one call at a time
        self._team = Team(native, torch.get_num_threads())
        self._tensors: list[Tensor] = []  # what the structures point into
        self._read = read or reader(lm)
        self._names = {module: name for name, module in lm.named_modules()}
        self._positions = sinusoidal_positions(torch.arange(0), lm.config.dim)
        config = lm.config
        layers = (_Layer * config.num_layers)(
            *(self._layer(block) for block in cast("list[Block]", list(lm.layers)))
        )
        self._model = _Model(
            DTYPES.index(dtype), config.num_codebooks, config.codebook_size, config.dim, config.num_layers,
            config.num_heads, self._keep(lm.embedding), layers, self._norm(lm.out_norm), self._pack(lm.heads),
        )  # fmt: skip
        del self._read, self._names

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

    def step_bytes(self, guided: bool = False) -> int:
        """Bytes of the weights that a step reads: all matrices but the text's projection, which runs once a prompt.

        guided: some row has text; without, cross-attention is not read.
        """
        linears = [self._model.heads]
        for layer in self._model.layers[: self.config.num_layers]:
            linears += [layer.in_proj, layer.out_proj, layer.ff_in, layer.ff_out]
            linears += [layer.query_proj, layer.cross_out_proj] if guided else []
        return sum(
            _num_panels(linear.outputs) * _num_words(self.dtype, linear.inputs) * LANES * 4
            for linear in linears
        )

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> NativeCache:
        """An empty cache for `max_steps` steps, with the condition's keys and values of every layer.

        Only positions under the mask are kept. A row whose tokens are all zero, as `null` gives, has no text: its
        cross-attention would add exactly zero and is left out.
        """
        texts = [torch.zeros(0, self.config.dim)] * batch_size
        if condition is not None:
            if len(condition.mask) != batch_size or condition.tokens.shape[2] != self.config.dim:
                raise ValueError(
                    f"the condition is {list(condition.tokens.shape)}; it must be "
                    f"[{batch_size}, L, {self.config.dim}]"
                )
            tokens = condition.tokens.detach().float()
            texts = [
                row[mask].contiguous() if row[mask].any() else row[:0]
                for row, mask in zip(tokens, condition.mask, strict=True)
            ]
        text_lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
        sizes = [*self._head_bytes(max_steps), *self._head_bytes(int(text_lengths.max()))]
        rows = self.config.num_layers * batch_size * self.config.num_heads
        cache = NativeCache((sizes[0], sizes[1], sizes[2], sizes[3]), rows, max_steps, text_lengths)
        with self._lock:
            team = self._threads()
            for row, text in enumerate(texts):
                if len(text):
                    self._native.audiogen_text(
                        byref(self._model), byref(cache.struct), row, text.data_ptr(), team.handle
                    )
        return cache

    def step(self, steps: Tensor, cache: NativeCache) -> Tensor:
        """Steps int64 [B, K, S] after those of the cache -> logits float32 [B, K, V] of the step after the last.

        The cache advances by S.
        """
        batch, num_codebooks, num_steps = steps.shape
        if batch != cache.struct.batch or num_codebooks != self.config.num_codebooks or not num_steps:
            raise ValueError(
                f"steps are {list(steps.shape)}; they must be [{cache.struct.batch}, "
                f"{self.config.num_codebooks}, 1 or more]"
            )
        if cache.length + num_steps > cache.max_steps:
            raise ValueError(
                f"the cache is for {cache.max_steps} steps; it holds {cache.length} and {num_steps} are new"
            )
        lowest, highest = (int(end) for end in steps.aminmax())
        if not 0 <= lowest <= highest <= self.special:
            raise IndexError(f"steps hold codes from {lowest} to {highest}; allowed: 0 to {self.special}")
        logits = torch.empty(batch, num_codebooks, self.config.codebook_size)
        with self._lock:
            team = self._threads()
            for part in steps.split(MAX_STEPS, dim=2):
                codes = part.to("cpu", torch.int64).contiguous()
                positions = self._sinusoids(cache.length + part.shape[2])[cache.length :]
                self._native.audiogen_step(
                    byref(self._model), byref(cache.struct), codes.data_ptr(), positions.data_ptr(),
                    part.shape[2], logits.data_ptr(), team.handle,
                )  # fmt: skip
                cache.struct.length += part.shape[2]
        return logits

    def _threads(self) -> Team:
        """The team, anew where the number of threads was changed, or in another process."""
        if (self._team.num_threads, self._team.process) != (torch.get_num_threads(), os.getpid()):
            self._team = Team(self._native, torch.get_num_threads())
        return self._team

    def _sinusoids(self, length: int) -> Tensor:
        """Those of at least the first `length` positions, [S, D]."""
        if len(self._positions) < length:
            positions = torch.arange(max(length, 2 * len(self._positions), 64))
            self._positions = sinusoidal_positions(positions, self.config.dim)
        return self._positions

    def _head_bytes(self, positions: int) -> list[int]:
        sizes = (c_int64 * 2)()
        self._native.audiogen_head_bytes(byref(self._model), positions, sizes)
        return list(sizes)

    def _layer(self, block: Block) -> _Layer:
        own, cross = block.self_attention, block.cross_attention
        return _Layer(
            self._norm(block.norm_self), self._pack(own.in_proj), self._pack(own.out_proj),
            self._norm(block.norm_cross), self._pack(cross.query_proj), self._pack(cross.text_proj),
            self._pack(cross.out_proj),
            self._norm(block.norm_ff), self._pack(block.ff_in), self._pack(block.ff_out),
        )  # fmt: skip

    def _norm(self, norm: nn.LayerNorm) -> _Norm:
        return _Norm(self._keep(norm), self._keep(norm, "bias"))

    def _weight(self, module: nn.Module, which: str = "weight") -> Iterable[Tensor]:
        return self._read(f"{self._names[module]}.{which}")

    def _keep(self, module: nn.Module, which: str = "weight") -> int:
        """The address of a float32 copy."""
        kept, first = torch.empty(module.get_parameter(which).shape), 0
        for rows in self._weight(module, which):
            kept[first : first + len(rows)] = rows
            first += len(rows)
        self._tensors.append(kept)
        return kept.data_ptr()

    def _pack(self, linear: nn.Linear) -> _Linear:
        inputs, outputs = linear.in_features, linear.out_features
        panels = torch.empty(_num_panels(outputs), _num_words(self.dtype, inputs), LANES, dtype=torch.int32)
        self._native.audiogen_pages(panels.data_ptr(), panels.numel() * 4)
        scales = torch.zeros(len(panels) * LANES) if self.dtype == "int8" else None
        self._tensors += [panels] if scales is None else [panels, scales]
        first = 0
        for rows in self._weight(linear):
            pack(rows, self.dtype, panels[first // LANES :], None if scales is None else scales[first:])
            first += len(rows)
        return _Linear(panels.data_ptr(), None if scales is None else scales.data_ptr(), inputs, outputs)


def pack(rows: Tensor, dtype: Dtype, panels: Tensor, scales: Tensor | None) -> None:
    """Weights float32 [rows, inputs] -> the first panels int32 [rows / LANES, words, LANES], rounded up with zeros.

    int8 is symmetric, with a scale for every row, and stored with 128 added. Few rows at a time stay in the
    processor's cache from one pass over them to the next.
    """
    values = VALUES[dtype]
    if dtype == "bfloat16":
        rows = rows.bfloat16()
    if dtype == "int8":
        assert scales is not None
        largest = rows.abs().amax(1)
        scales[: len(rows)] = largest / 127
        rows = (rows * (127 / largest.clamp(min=1e-30))[:, None]).round_().add_(128).to(torch.uint8)
    missing = (0, -rows.shape[1] % values, 0, -len(rows) % LANES)
    if any(missing):
        rows = F.pad(rows, missing, value=128 if dtype == "int8" else 0)
    words = rows.contiguous().view(torch.int32).view(-1, LANES, panels.shape[1])
    panels[: len(words)] = words.transpose(1, 2)


def _num_panels(outputs: int) -> int:
    return -(-outputs // LANES)


def _num_words(dtype: Dtype, inputs: int) -> int:
    """Of 32 bits, for one output."""
    return -(-inputs // VALUES[dtype])
