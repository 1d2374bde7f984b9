"""TokenLM on a CPU by C++ kernels: a whole decoding step in one call, weights in float32, bfloat16, int8 or int4.

Decoding reads every weight once a step, so bytes over memory bandwidth is the floor: `native.cpp` holds the weights
packed in the order in which they are read, reads each once for all rows, and keeps the threads inside one call.
The PyTorch path is the oracle: float32 equals it but for rounding. `library.py` builds and loads the kernels.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterable, Sequence
from ctypes import byref, c_int64, pointer

import torch
from torch import Tensor
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import Read, TokenLM, quantise, quantise_groups, reader
from audiogen.lm.transformer import sinusoidal_positions
from audiogen.native.library import BLOCK, Cache, Layer, Linear, Model, Norm, Part, library

VALUES = {"float32": 1, "bfloat16": 2, "int8": 4, "int4": 8}  # of each number type in a word of 32 bits
DTYPES = tuple(VALUES)  # the C++ side has the index
GROUP = 64  # inputs that share a scale of int4
LANES = 16  # outputs in a panel of weights, positions in one of keys
MAX_STEPS = 128  # steps in one call: a longer prefill goes in pieces, which bounds the memory of activations


class ThreadPool:
    """Threads that share the work of a call. They belong to this process: a fork of it starts its own."""

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

    def __init__(self, sizes: list[int], rows: int, max_steps: int, text_lengths: Tensor):
        """sizes: bytes of the keys and values of a head, then of its text. rows: heads of all layers and rows."""
        self.text_lengths, self.max_steps = text_lengths, max_steps
        memory = [torch.empty(rows * size, dtype=torch.uint8) for size in sizes]
        self._memory = memory, text_lengths  # what `struct` points into
        self.places: Tensor | None = None  # int64 [S_max]
        self.struct = Cache(
            len(text_lengths), max_steps, 0, int(text_lengths.max()),
            *(tensor.data_ptr() for tensor in memory), text_lengths.data_ptr(),
        )  # fmt: skip

    @property
    def length(self) -> int:
        return self.struct.length

    def place(self, places: Tensor) -> None:
        """As `transformer.KVCache.place`, int64 [S_max]."""
        self.places = places


class NativeLM:
    """The weights of a TokenLM, packed, and its decoding step; what it needs of the TokenLM is copied.

    Besides the packed weights, few rows at a time are in memory as float32.

    dtype: of the weights. bfloat16 rounds weights and inputs of products; int8 has a scale for every output of a
    matrix and quantises inputs by groups of 64 as they come; int4 has a scale for every output and 64 inputs, and
    heads in int8. The rest is float32: embeddings, norms, softmax, logits.
    native: from `library()` unless given. read: gives a weight by its name in `lm`, which may then be on the meta
    device: so weights go from a file into their packed form, and are never in memory twice. Threads are those of
    torch.get_num_threads() at each call, which begins as OMP_NUM_THREADS.
    """

    device = torch.device("cpu")
    independent_rows = True

    def __init__(
        self,
        lm: TokenLM,
        dtype: str = "float32",
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
        self._lock = threading.Lock()  # the threads and their buffers serve one call at a time
        self._pools: dict[int, ThreadPool] = {}  # of each number of threads that was asked for
        self._tensors: list[Tensor] = []  # what the structures point into
        self._positions = sinusoidal_positions(torch.arange(0), lm.config.dim)
        self._model = self._fill(lm, read or reader(lm))

    @property
    def num_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors)

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
            tokens = zip(condition.tokens.detach().float(), condition.mask, strict=True)
            texts = [text if text.any() else text[:0] for text in (row[mask] for row, mask in tokens)]
        text_lengths = torch.tensor([len(text) for text in texts], dtype=torch.int64)
        sizes = self._head_bytes(max_steps) + self._head_bytes(int(text_lengths.max()))
        rows = self.config.num_layers * batch_size * self.config.num_heads
        cache = NativeCache(sizes, rows, max_steps, text_lengths)
        with self._lock:
            threads = self._threads()
            for row, text in enumerate(texts):
                if len(text):
                    self._native.audiogen_text(
                        byref(self._model), byref(cache.struct), row, text.data_ptr(), threads.handle
                    )
        return cache

    def step(self, steps: Tensor, cache: NativeCache) -> Tensor:
        """Steps int64 [B, K, S] after those of the cache -> logits float32 [B, K, V] of the step after the last.

        The cache advances by S.
        """
        self.check(steps, cache)
        return self.step_all([(steps, cache)])[0]

    def step_all(self, calls: Sequence[tuple[Tensor, NativeCache]]) -> list[Tensor]:
        """Steps [B, K, S] that `check` let pass, of several caches -> their logits [B, K, V], as of each alone.

        Each weight is read once for all.
        """
        logits = [
            torch.empty(len(steps), self.config.num_codebooks, self.config.codebook_size)
            for steps, _ in calls
        ]
        # [B, K, S], at most MAX_STEPS each
        pieces = [steps.to("cpu", torch.int64).split(MAX_STEPS, dim=2) for steps, _ in calls]
        with self._lock:
            threads = self._threads()
            for turn in range(max(map(len, pieces))):
                running = [index for index, of in enumerate(pieces) if turn < len(of)]
                codes = [pieces[index][turn].contiguous() for index in running]
                parts = (Part * len(running))()
                kept = []  # until the call is over
                for index, new, part in zip(running, codes, parts, strict=True):
                    cache = calls[index][1]
                    kept.append(self._sinusoids(cache, new.shape[2]))
                    part.cache = pointer(cache.struct)
                    part.codes, part.positions = new.data_ptr(), kept[-1].data_ptr()
                    part.num_steps, part.logits = new.shape[2], logits[index].data_ptr()
                self._native.audiogen_step(byref(self._model), parts, len(parts), threads.handle)
                for index, new in zip(running, codes, strict=True):
                    calls[index][1].struct.length += new.shape[2]
        return logits

    def check(self, steps: Tensor, cache: NativeCache) -> None:
        """Refuse steps [B, K, S] for which the cache has no place, or that are no codes; the kernels check nothing."""
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

    def _threads(self) -> ThreadPool:
        """As many as PyTorch uses in the calling thread; those of each number stay, asleep, for the next call."""
        count = torch.get_num_threads()
        pool = self._pools.get(count)
        if pool is None or pool.process != os.getpid():
            pool = self._pools[count] = ThreadPool(self._native, count)
        return pool

    def _sinusoids(self, cache: NativeCache, num_new: int) -> Tensor:
        """Those of the next steps of a cache, [num_new, D]."""
        length = cache.length + num_new
        if cache.places is not None:
            return sinusoidal_positions(cache.places[cache.length : length], self.config.dim)
        if len(self._positions) < length:
            positions = torch.arange(max(length, 2 * len(self._positions), 64))  # doubled: few times anew
            self._positions = sinusoidal_positions(positions, self.config.dim)
        return self._positions[cache.length : length]

    def _head_bytes(self, positions: int) -> list[int]:
        sizes = (c_int64 * 2)()
        self._native.audiogen_head_bytes(byref(self._model), positions, sizes)
        return list(sizes)

    def _fill(self, lm: TokenLM, read: Read) -> Model:
        """The structure of the C++ side, with all weights of the model."""

        def keep(name: str) -> int:
            """The address of a float32 copy."""
            kept, first = torch.empty(lm.get_parameter(name).shape), 0
            for rows in read(name):
                kept[first : first + len(rows)] = rows
                first += len(rows)
            self._tensors.append(kept)
            return kept.data_ptr()

        def norm(name: str) -> Norm:
            return Norm(keep(f"{name}.weight"), keep(f"{name}.bias"))

        def linear(name: str) -> Linear:
            outputs, inputs = lm.get_parameter(f"{name}.weight").shape
            dtype = "int8" if self.dtype == "int4" and name == "heads" else self.dtype
            return self._pack(read(f"{name}.weight"), outputs, inputs, dtype)

        def layer(index: int) -> Layer:
            names = (f"layers.{index}.{name}" for name in BLOCK)
            return Layer(*(norm(name) if ".norm" in name else linear(name) for name in names))

        config = lm.config
        layers = (Layer * config.num_layers)(*map(layer, range(config.num_layers)))
        return Model(
            DTYPES.index(self.dtype), config.num_codebooks, config.codebook_size, config.dim, config.num_layers,
            config.num_heads, keep("embedding.weight"), layers, norm("out_norm"), linear("heads"),
        )  # fmt: skip

    def _pack(self, weight: Iterable[Tensor], outputs: int, inputs: int, dtype: str) -> Linear:
        """A matrix [outputs, inputs], which comes a few rows at a time, in panels [outputs / LANES, words, LANES]."""
        num_words = panel_words(inputs, dtype)
        panels = torch.empty(-(-outputs // LANES), num_words, LANES, dtype=torch.int32)
        self._native.audiogen_pages(panels.data_ptr(), panels.numel() * 4)
        scales = torch.zeros(len(panels) * LANES) if dtype == "int8" else None
        self._tensors += [panels] if scales is None else [panels, scales]
        first = 0
        for rows in weight:
            pack(rows, dtype, panels[first // LANES :], None if scales is None else scales[first:])
            first += len(rows)
        return Linear(panels.data_ptr(), None if scales is None else scales.data_ptr(), inputs, outputs)


def panel_words(inputs: int, dtype: str) -> int:
    """Words of 32 bits for the weights of one output."""
    return -(-inputs // GROUP) * (1 + GROUP // 8) if dtype == "int4" else -(-inputs // VALUES[dtype])


def pack(rows: Tensor, dtype: str, panels: Tensor, scales: Tensor | None) -> None:
    """Weights float32 [rows, inputs] -> the first panels int32 [rows / LANES, words, LANES], rounded up with zeros.

    int8 is symmetric, with a scale for every row, and stored with 128 added. int4 is stored with 8 added: of every
    GROUP inputs a scale, and words of 8, the first four in the low halves of the bytes. Few rows at a time stay in
    the processor's cache from one pass over them to the next.
    """
    if dtype == "bfloat16":
        rows = rows.bfloat16()
    if dtype == "int8":
        assert scales is not None
        values, scales[: len(rows)] = quantise(rows)
        rows = values.add_(128).to(torch.uint8)  # 0 is at 128: products of bytes want one without sign
    if dtype == "int4":
        values, of_groups = quantise_groups(rows, GROUP)  # [rows, inputs], [rows, groups]
        halves = values.add_(8).to(torch.uint8).view(len(rows), -1, GROUP // 8, 2, 4)
        words = (halves[..., 0, :] | halves[..., 1, :] << 4).view(torch.int32)  # [rows, groups, GROUP / 8, 1]
        rows = torch.cat([of_groups.view(torch.int32)[..., None], words[..., 0]], 2).flatten(1)
    # int4 has whole words by now
    missing = (0, 0 if dtype == "int4" else -rows.shape[1] % VALUES[dtype], 0, -len(rows) % LANES)
    if any(missing):
        rows = F.pad(rows, missing, value=128 if dtype == "int8" else 0)
    words = rows.contiguous().view(torch.int32).view(-1, LANES, panels.shape[1])
    panels[: len(words)] = words.transpose(1, 2)
