"""TokenLM on a GPU: the whole decoding step, sampling included, on memory that never moves, as one CUDA graph.

A step of a large model is a thousand small kernels, and launching each from Python takes longer than running it. So
the step here takes no arguments and gives no results: it reads the codes of the last step from a buffer, appends to
a key-value cache at a place that is itself in the device's memory, draws the next codes and writes them into the
buffer. A CUDA graph records it once, and the host only replays it, without waiting for anything until the end.

On a CPU, or with capture=False, the same step runs directly: the tests compare it with the plain path, code by code.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, cast, get_args

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm import ops
from audiogen.lm.matrices import Layer, matrices_of
from audiogen.lm.model import Read, TokenLM
from audiogen.lm.ops import Ops, Place
from audiogen.lm.sample import TokenSampling, draw, guide
from audiogen.lm.transformer import KeysValues

Dtype = Literal["float32", "bfloat16", "float16", "int8"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK = 128  # slots of a cache come in multiples of this; the fewest that a step looks at
TEXT_BLOCK = 32  # so do positions of the text
LOOPS = 2  # sizes of batch, cache and text that are kept ready


class StaticCache:
    """Keys and values of the last `max_steps` steps and of the text, in memory that is allocated once.

    A ring: step n lies in slot n % max_steps, and what it overwrites is forgotten. The position that a step's
    encoding is made of is counted apart, so that an endless sound may choose it.

    keys, values: [layers, R, heads, max_steps, D / heads]. text_keys, text_values: [layers, R, heads, L, D / heads].
    text_mask: bool [R, 1, 1, L]. count, position: int64 [1] on the device, both advanced by every step.
    length: the host's copy of count.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], num_text: int, like: Tensor):
        layers, rows, heads, _, width = shape
        # Zeros: what a mask hides must still be finite.
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.text_keys = like.new_zeros(layers, rows, heads, num_text, width)
        self.text_values = torch.zeros_like(self.text_keys)
        self.text_mask = torch.zeros(rows, 1, 1, num_text, dtype=torch.bool, device=like.device)
        self.count = torch.zeros(1, dtype=torch.int64, device=like.device)
        self.position = torch.zeros_like(self.count)
        self.length = 0

    @property
    def max_steps(self) -> int:
        """Number of slots."""
        return self.keys.shape[3]

    @property
    def has_text(self) -> bool:
        """Without, a step leaves cross-attention out."""
        return self.text_mask.shape[3] > 0

    def row(self, index: int) -> StaticCache:
        """One row of it, in the same memory but for the counters."""
        one = copy.copy(self)
        for name in ("keys", "values", "text_keys", "text_values"):
            setattr(one, name, getattr(self, name)[:, index : index + 1])
        one.text_mask = self.text_mask[index : index + 1]
        one.count, one.position = self.count.clone(), self.position.clone()
        return one

    def restart(self, length: int = 0) -> None:
        """Keep the first `length` steps."""
        self.count.fill_(length)
        self.position.fill_(length)
        self.length = length


class StaticLM:
    """A TokenLM's weights and its decoding step on static memory; a `sample.Decoder`, and faster by `complete`.

    dtype: of the weights; None is the model's own, whose weights are then shared. int8 has a scale for every output
    of a matrix; the rest is bfloat16 on CUDA, elsewhere in the model's type. device: None is the model's. read: gives
    the weights, and `lm` may then be on the meta device, as in `native.NativeLM`.
    capture: replay the step as a CUDA graph; None is on CUDA.
    kernels: `ops` or `triton_ops`; None is the latter on CUDA where triton is installed and nothing is float32.
    compile: let torch.compile make kernels of what comes before and after the layers, and of a layer where `kernels`
    is `ops`: all layers share one, whatever their number.
    block: the fewest slots that a step looks at.

    independent_rows: with `triton_ops`, up to 16 rows. What passes a library's products, the text and several steps at
    once, then goes row by row.
    """

    def __init__(
        self,
        lm: TokenLM,
        dtype: Dtype | None = None,
        device: torch.device | None = None,
        read: Read | None = None,
        *,
        capture: bool | None = None,
        kernels: Ops | None = None,
        compile: bool = False,
        block: int = BLOCK,
    ):
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        device = lm.device if device is None else device
        is_cuda = device.type == "cuda"
        if capture and not is_cuda:
            raise InputError(f"a CUDA graph needs a model on CUDA; it is on {device}")
        self.config, self.special, self.device, self.dtype = lm.config, lm.special, device, dtype
        self.capture = is_cuda if capture is None else capture
        self.compile = compile
        number = lm.embedding.weight.dtype
        if dtype in TYPES:
            number = TYPES[dtype]
        elif dtype == "int8" and is_cuda:
            number = torch.bfloat16

        def weight(name: str) -> Tensor:
            if read is None:
                return lm.get_parameter(name).detach().to(device)
            return torch.cat([rows.to(device) for rows in read(name)])

        self.matrices = matrices_of(lm, weight, number, is_int8=dtype == "int8")
        self.ops = choose_ops(device, number) if kernels is None else kernels
        self.independent_rows = self.ops is not cast("Ops", ops)
        self.block = block
        self._embed_one, self._apply_to_one = self._embed, self._apply
        if compile:
            self._embed_one = torch.compile(self._embed, dynamic=False)
        if compile and self.ops is cast("Ops", ops):
            self._apply_to_one = torch.compile(self._apply, dynamic=False)
        self._loops: dict[tuple[object, ...], Loop] = {}
        self._lock = threading.Lock()  # the loops' memory serves one call at a time

    @torch.inference_mode()
    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> StaticCache:
        """An empty cache for at least the last `max_steps` steps, with the condition's keys and values."""
        cache = self._empty_cache(condition, batch_size, max_steps)
        self._fill_text(cache, condition)
        return cache

    @torch.inference_mode()
    def step(self, steps: Tensor, cache: StaticCache) -> Tensor:
        """Steps int64 [R, K, S] after those of the cache -> logits [R, K, V] of the step after the last.

        More than one step must find free slots; one at a time, the oldest are overwritten.
        """
        num_new = steps.shape[2]
        if num_new > 1 and cache.length + num_new > cache.max_steps:
            raise ValueError(
                f"the cache is for {cache.max_steps} steps; it holds {cache.length} and {num_new} are new: "
                "past its end they go one by one"
            )
        cache.length += num_new
        seen = self.seen(cache.length, cache.max_steps)
        with _on(self.device):
            if num_new == 1 or not self.independent_rows:
                return self.logits(steps, cache, seen)
            rows = [self.logits(row[None], cache.row(index), seen) for index, row in enumerate(steps)]
        cache.count += num_new
        cache.position += num_new
        return torch.cat(rows)

    def seen(self, length: int, max_steps: int) -> int:
        """Slots that a step looks at when so many are filled: one block, or two, four, eight ... of them.

        A recorded step is of one shape, so there is one for each of these, and a short cache does not pay for a long
        one's attention.
        """
        blocks = -(-length // self.block)
        return min(self.block << (blocks - 1).bit_length(), max_steps)

    def logits(self, steps: Tensor, cache: StaticCache, seen: int) -> Tensor:
        """`step` on the device alone: the cache's host copy of the length is the caller's to advance."""
        is_one = steps.shape[2] == 1  # else a prefill, of any length: nothing to compile for
        embed, apply = (self._embed_one, self._apply_to_one) if is_one else (self._embed, self._apply)
        x, place = embed(steps, cache.count, cache.position, cache.max_steps, seen)
        for index, layer in enumerate(self.matrices.layers):
            own = cache.keys[index], cache.values[index]
            text = (cache.text_keys[index], cache.text_values[index]) if cache.has_text else None
            x = apply(x, layer, own, text, cache.text_mask, place)
        cache.count += steps.shape[2]
        cache.position += steps.shape[2]
        flat = self.ops.product(x[:, -1:], self.matrices.heads, self.matrices.out_norm)  # [R, 1, K V]
        return flat.view(len(steps), self.config.num_codebooks, self.config.codebook_size)

    def _embed(
        self, steps: Tensor, count: Tensor, position: Tensor, max_steps: int, seen: int
    ) -> tuple[Tensor, Place]:
        """Steps [R, K, S] -> what the first layer sees [R, S, D], and where it goes."""
        new = torch.arange(steps.shape[2], device=steps.device)
        last = (count + new).clamp(max=max_steps - 1)
        mask = torch.arange(seen, device=steps.device) <= last[:, None]
        x = self.ops.embed(steps, self.matrices.embedding, position + new)
        return x, Place((count + new) % max_steps, last, mask)

    def _apply(
        self,
        x: Tensor,
        layer: Layer,
        own: KeysValues,
        text: KeysValues | None,
        text_mask: Tensor,
        place: Place,
    ) -> Tensor:
        """x [R, S, D] -> [R, S, D]; own: the layer's cache, appended to."""
        qkv = self.ops.product(x, layer.in_proj, layer.norm_self)
        x = self.ops.product(self.ops.self_attention(qkv, *own, place), layer.out_proj, residual=x)
        if text is not None:
            queries = self.ops.product(x, layer.query_proj, layer.norm_cross)
            attended = self.ops.text_attention(queries, *text, text_mask)
            x = self.ops.product(attended, layer.cross_out_proj, residual=x)
        hidden = self.ops.product(x, layer.ff_in, layer.norm_ff, gelu=True)
        return self.ops.product(hidden, layer.ff_out, residual=x)

    @torch.inference_mode()
    def complete(
        self,
        steps: Tensor,
        uniform: Tensor,
        unknown: Tensor,
        first: int,
        condition: Condition | None,
        sampling: TokenSampling,
        guidance: float | None,
        advance: Callable[[], None],
    ) -> Tensor:
        """Decode steps int64 [B, K, S] from `first` on, where `unknown` [B, K, S]; uniform [B, K, S] draws them.

        condition: B rows, or 2 B with guidance. `advance` is called once a step, ahead of the device.
        """
        with self._lock, _on(self.device):
            loop = self._loop(condition, len(steps), steps.shape[2], sampling, guidance)
            loop.begin(steps, uniform, unknown, first, condition)
            for _ in range(first, steps.shape[2]):
                loop.advance()
                advance()
            return loop.steps[..., : steps.shape[2]].clone()

    def _loop(
        self,
        condition: Condition | None,
        batch_size: int,
        num_steps: int,
        sampling: TokenSampling,
        guidance: float | None,
    ) -> Loop:
        """One made before for these sizes, or a new one in place of the one not used for longest."""
        num_text = 0 if condition is None else _round_up(condition.mask.shape[1], TEXT_BLOCK)
        key = (batch_size, _round_up(num_steps, self.block), num_text, sampling, guidance)
        loop = self._loops.pop(key, None)
        if loop is None:
            while len(self._loops) >= LOOPS:
                del self._loops[next(iter(self._loops))]
            rows = batch_size if guidance is None else 2 * batch_size
            loop = Loop(self, self._empty_cache(condition, rows, num_steps), batch_size, sampling, guidance)
        self._loops[key] = loop
        return loop

    def _empty_cache(self, condition: Condition | None, rows: int, max_steps: int) -> StaticCache:
        heads = self.config.num_heads
        slots = _round_up(max_steps, self.block)
        shape = (len(self.matrices.layers), rows, heads, slots, self.config.dim // heads)
        num_text = 0 if condition is None else _round_up(condition.mask.shape[1], TEXT_BLOCK)
        return StaticCache(shape, num_text, like=self.matrices.embedding)

    def _fill_text(self, cache: StaticCache, condition: Condition | None) -> None:
        """Keys and values of a condition of no more positions than the cache has."""
        if condition is None:
            return
        num_rows, num_text = condition.mask.shape
        cache.text_mask.zero_()
        cache.text_mask[..., :num_text] = condition.mask[:, None, None]
        tokens = condition.tokens.to(self.device, cache.keys.dtype)
        rows, ends = [slice(None)], [num_text]
        if self.independent_rows:  # each as long as it would be alone
            tokens = F.pad(tokens, (0, 0, 0, cache.text_mask.shape[3] - num_text))
            places = torch.arange(1, num_text + 1, device=condition.mask.device)
            rows = [slice(row, row + 1) for row in range(num_rows)]
            ends = [_round_up(end, TEXT_BLOCK) for end in (condition.mask * places).amax(1).tolist()]
        for index, layer in enumerate(self.matrices.layers):
            for row, end in zip(rows, ends, strict=True):
                both = self.ops.product(tokens[row, :end], layer.text_proj)
                keys, values = rearrange(both, "r l (two h d) -> two r h l d", two=2, h=self.config.num_heads)
                cache.text_keys[index, row, :, :end] = keys
                cache.text_values[index, row, :, :end] = values


class Loop:
    """The buffers of a batch, and the step on them that decodes it.

    Column n % max_steps of the buffers is that of step n, as in the cache: an endless sound reads codes and writes
    what comes next there, while the step goes round.

    steps: int64 [B, K, max_steps]. uniform: float32, same shape. unknown: bool, same shape, codes to be drawn.
    """

    def __init__(
        self,
        lm: StaticLM,
        cache: StaticCache,
        batch_size: int,
        sampling: TokenSampling,
        guidance: float | None,
    ):
        """guidance: None is none, else the cache has 2 B rows."""
        self.lm, self.cache, self.sampling, self.guidance = lm, cache, sampling, guidance
        shape = (batch_size, lm.config.num_codebooks, cache.max_steps)
        self.steps = torch.zeros(shape, dtype=torch.int64, device=cache.keys.device)
        self.uniform = torch.zeros(shape, device=cache.keys.device)
        self.unknown = torch.zeros(shape, dtype=torch.bool, device=cache.keys.device)
        self._draw_one = torch.compile(self._draw, dynamic=False) if lm.compile else self._draw
        self._recorded: dict[int, torch.cuda.CUDAGraph] = {}

    def begin(
        self, steps: Tensor, uniform: Tensor, unknown: Tensor, first: int, condition: Condition | None
    ) -> None:
        """Load a batch [B, K, S] whose steps before `first`, at least the special one, are known."""
        num_steps = steps.shape[2]
        self.steps[..., :num_steps] = steps
        self.uniform[..., :num_steps] = uniform
        self.unknown[..., :num_steps] = unknown
        self.lm._fill_text(self.cache, condition)
        self.cache.restart()
        if first > 1:  # step first - 1 is the first that decodes something
            self.lm.step(self._rows(steps[..., : first - 1]), self.cache)

    def step(self, seen: int) -> None:
        """Decode one step, on the device alone. Doing it again from the same count changes nothing."""
        cache = self.cache
        new = self.steps.index_select(2, cache.count % cache.max_steps)
        logits = self.lm.logits(self._rows(new), cache, seen)
        slot = cache.count % cache.max_steps  # advanced: that of the codes to draw
        self._draw_one(logits, self.steps, self.uniform, self.unknown, slot)

    def _draw(self, logits: Tensor, steps: Tensor, uniform: Tensor, unknown: Tensor, slot: Tensor) -> None:
        """From logits [R, K, V] into column `slot` of the steps, where they are unknown."""
        if self.guidance is not None:
            logits = guide(logits, self.guidance)
        drawn = draw(logits, self.sampling, uniform.index_select(2, slot).squeeze(2))[..., None]
        given = steps.index_select(2, slot)
        steps.index_copy_(2, slot, torch.where(unknown.index_select(2, slot), drawn, given))

    def advance(self) -> None:
        """Decode one step: the host only says so."""
        self.cache.length += 1
        seen = self.lm.seen(self.cache.length, self.cache.max_steps)
        if not self.lm.capture:
            self.step(seen)
            return
        if seen not in self._recorded:
            self._recorded[seen] = self._record(seen)
        self._recorded[seen].replay()

    def _record(self, seen: int) -> torch.cuda.CUDAGraph:
        """The step as a CUDA graph. Kernels are compiled and memory is found by running it first, beside."""
        count, position = self.cache.count.clone(), self.cache.position.clone()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                self.step(seen)
                self.cache.count.copy_(count)
                self.cache.position.copy_(position)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        pool = next(iter(self._recorded.values())).pool() if self._recorded else None
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            self.step(seen)
        return graph

    def _rows(self, steps: Tensor) -> Tensor:
        """With guidance, the model sees everything twice."""
        return steps if self.guidance is None else steps.repeat(2, 1, 1)


def choose_ops(device: torch.device, dtype: torch.dtype) -> Ops:
    """Those of Triton where they run and nothing is float32, whose products they would round."""
    if device.type != "cuda" or dtype == torch.float32 or importlib.util.find_spec("triton") is None:
        return ops
    return importlib.import_module("audiogen.lm.triton_ops")


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Triton and CUDA's streams go by the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
