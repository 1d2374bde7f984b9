"""TokenLM on a GPU: a decoding step on static memory, compiled as a whole or recorded as a CUDA graph; int8 weights.

A step of a large model is a thousand small kernels, and launching each from Python takes longer than running it. As in
gpt-fast, the key-value cache is allocated once and its length is a tensor: every step runs the same kernels at the same
addresses. `torch.compile(mode="reduce-overhead", fullgraph=True)` takes the step whole, fuses it and records it;
without a compiler the plain step is recorded as it is. Several steps at once (a prompt) run as they come.
"""

from __future__ import annotations

import copy
import importlib.util
import weakref
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.device import DTYPES as TORCH_DTYPES
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import Read, TokenLM, quantise, reader, rebuild
from audiogen.lm.transformer import KeysValues, KVCache

DTYPES = (*TORCH_DTYPES, "int8")
Mode = Literal["compile", "graph", "eager"]
# Sizes are rounded up to these, so that clips of nearly one length share a recorded step.
STEPS_MULTIPLE, TEXT_MULTIPLE = 128, 32
KEPT_CACHES = 2  # that are free and ready, recorded steps included: an endless stream uses two in turn


class StaticCache(KVCache):
    """A KVCache whose length is also a tensor, so that a step never depends on a Python number.

    position: int64 [1], steps in the cache, on the device; `length` is the host's copy, which the caller advances.
    positions_of: int64 [S_max], the position of the step in each slot.
    recorded: the CUDA graph of one step on this memory, its steps int64 [R, K, 1] and its logits [R, K, V].
    """

    def __init__(self, shape: tuple[int, int, int, int, int], num_text: int, like: Tensor):
        """shape: [layers, R, heads, S_max, D / heads]. num_text: positions of the text, 0 without."""
        layers, rows, heads, _, width = shape
        text_shape = (rows, heads, num_text, width)
        text = [(like.new_zeros(text_shape), like.new_zeros(text_shape)) for _ in range(layers)]
        text_mask = torch.zeros(rows, 1, 1, num_text, dtype=torch.bool, device=like.device)
        super().__init__(shape, text if num_text else None, text_mask if num_text else None, like)
        self.self_keys.zero_()  # what a mask hides must still be finite
        self.self_values.zero_()
        self.position = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.positions_of = torch.arange(self.max_steps, device=like.device)
        self.recorded: list[tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = []

    def tensors(self) -> list[Tensor]:
        """All memory that a step reads or writes, of any shapes."""
        text = [] if self.text is None else [part for pair in self.text for part in pair]
        mask = [] if self.text_mask is None else [self.text_mask]
        return [self.self_keys, self.self_values, self.position, self.positions_of, *text, *mask]

    def place(self, places: Tensor) -> None:
        """As `KVCache.place`, int64 [S] of the first slots, in the memory that recorded steps read."""
        self.positions_of[: len(places)] = places.to(self.positions_of.device)

    def check(self, num_new: int) -> None:
        """The length is the host's to check, before the step: see `GraphLM.step`."""

    def positions(self, num_new: int) -> Tensor:
        """int64 [S] of the next steps."""
        return self.positions_of[self.slots(num_new)]

    def slots(self, num_new: int) -> Tensor:
        """int64 [S], where the next steps are stored."""
        more = torch.arange(num_new, device=self.position.device)
        return self.position + more if num_new > 1 else self.position

    def mask(self, num_new: int) -> Tensor:
        """bool [S, S_max]: each step attends to the slots up to its own."""
        slots = torch.arange(self.max_steps, device=self.position.device)
        return slots <= self.slots(num_new)[:, None]

    def advance(self, num_new: int) -> None:
        """All layers have appended so many steps."""
        self.position.add_(num_new)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> KeysValues:
        """Store a layer's new keys and values [R, heads, S, D / heads] and return all slots."""
        slots = self.slots(keys.shape[2])
        self.self_keys[layer].index_copy_(2, slots, keys)
        self.self_values[layer].index_copy_(2, slots, values)
        return self.self_keys[layer], self.self_values[layer]


class Int8Linear(nn.Module):
    """x [..., inputs] -> [..., outputs] by int8 weights with a scale for every output (weight-only quantisation).

    A compiler converts the weights inside of the product, so that a step reads half the bytes of bfloat16.
    """

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, like: Tensor):
        """weight: [outputs, inputs]. like: of the device and number type that the layer computes in."""
        super().__init__()
        values, scales = quantise(weight.float())
        self.register_buffer("weight", values.to(like.device, torch.int8))
        self.register_buffer("scales", scales.to(like.device, like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scales


class GraphLM:
    """A TokenLM's weights in one number type and its decoding step on static memory. `sample.Decoder`.

    dtype: of the weights; with int8 the rest is bfloat16 on CUDA and float32 elsewhere. device: None is the model's.
    read: gives a weight by its name in `lm`, which may then be on the meta device, as in `native.NativeLM`.
    mode: "compile", "graph" (CUDA only), or "eager"; None is the first that this machine has.
    """

    independent_rows = False

    def __init__(
        self,
        lm: TokenLM,
        dtype: str = "float32",
        device: torch.device | None = None,
        read: Read | None = None,
        mode: Mode | None = None,
    ):
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        self.device = lm.device if device is None else device
        is_cuda = self.device.type == "cuda"
        if mode == "graph" and not is_cuda:
            raise InputError(f"a CUDA graph needs a model on CUDA; it is on {self.device}")
        if mode is None:
            mode = ("compile" if importlib.util.find_spec("triton") else "graph") if is_cuda else "eager"
        self.config, self.special, self.dtype, self.mode = lm.config, lm.special, dtype, mode
        number = torch.bfloat16 if is_cuda else torch.float32
        like = torch.empty(0, device=self.device, dtype=TORCH_DTYPES.get(dtype, number))
        matrix = (lambda weight: Int8Linear(weight, like)) if dtype == "int8" else None
        self._lm = rebuild(lm.config, read or reader(lm), like, matrix)
        self._one_step = self._lm.step
        if mode == "compile":
            self._one_step = torch.compile(
                self._lm.step, mode="reduce-overhead", fullgraph=True, dynamic=False
            )
        self._free: list[StaticCache] = []

    @torch.inference_mode()
    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> StaticCache:
        """An empty cache for at least `max_steps` steps, with the condition's keys and values of every layer.

        Its memory, with what was recorded on it, serves another of that size once this one is no longer used.
        """
        heads, num_text = self.config.num_heads, 0 if condition is None else condition.mask.shape[1]
        slots = -(-max_steps // STEPS_MULTIPLE) * STEPS_MULTIPLE
        shape = (self.config.num_layers, batch_size, heads, slots, self.config.dim // heads)
        memory = self._memory(shape, -(-num_text // TEXT_MULTIPLE) * TEXT_MULTIPLE)
        memory.position.zero_()
        memory.place(torch.arange(memory.max_steps))
        if condition is not None:
            assert memory.text is not None and memory.text_mask is not None
            memory.text_mask.zero_()
            memory.text_mask[..., :num_text] = condition.mask[:, None, None]
            tokens = condition.tokens.to(self.device, memory.self_keys.dtype)
            for block, (keys, values) in zip(self._lm.blocks(), memory.text, strict=True):
                keys[:, :, :num_text], values[:, :, :num_text] = block.cross_attention.project(tokens)
        cache = copy.copy(memory)
        weakref.finalize(cache, self._release, memory)
        return cache

    def _memory(self, shape: tuple[int, int, int, int, int], num_text: int) -> StaticCache:
        """A free cache of these sizes, or a new one."""
        for memory in self._free:
            text = 0 if memory.text_mask is None else memory.text_mask.shape[3]
            if (tuple(memory.self_keys.shape), text) == (shape, num_text):
                self._free.remove(memory)
                return memory
        memory = StaticCache(shape, num_text, like=self._lm.embedding.weight)
        if self.mode == "compile":
            for tensor in memory.tensors():  # else a recorded step would copy them in and out
                torch._dynamo.mark_static_address(tensor, guard=False)
        return memory

    def _release(self, memory: StaticCache) -> None:
        self._free = [memory, *self._free][:KEPT_CACHES]

    @torch.inference_mode()
    def step(self, steps: Tensor, cache: StaticCache) -> Tensor:
        """Steps int64 [R, K, S] after those of the cache -> logits [R, K, V] of the step after the last."""
        KVCache.check(cache, steps.shape[2])
        cache.length += steps.shape[2]
        if steps.shape[2] > 1 or self.mode == "eager":  # a prompt may have any length: nothing to compile for
            return self._lm.step(steps, cache)
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            if self.mode == "compile":
                torch.compiler.cudagraph_mark_step_begin()
                return self._one_step(steps, cache).clone()  # the next step overwrites what was recorded
            if not cache.recorded:
                cache.recorded.append(self._record(steps, cache))
            graph, given, logits = cache.recorded[0]
            given.copy_(steps)
            graph.replay()
            return logits.clone()

    def _record(self, steps: Tensor, cache: StaticCache) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """One step [R, K, 1] as a CUDA graph. It first runs beside: libraries choose kernels and take memory then."""
        given, position = steps.clone(), cache.position.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                self._lm.step(given, cache)
                cache.position.copy_(position)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            logits = self._lm.step(given, cache)
        return graph, given, logits
