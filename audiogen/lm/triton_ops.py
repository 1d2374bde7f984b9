"""The parts of a decoding step as fused kernels in Triton, for CUDA: the same functions as in `ops`, their oracle.

With few rows a product is bound by reading its matrix, in a large model some microseconds each: what is around it
has to cost nothing. A layer is eight kernels: LayerNorm, int8, GELU and the residual sum ride on the products, and
attention appends to the cache by itself. A row's result is the same bits among 1 to 16 rows: its sums have one order.
float32 is not for these kernels: matrix units would round it.

triton comes with torch's CUDA builds; otherwise `pip install triton`. Under TRITON_INTERPRET=1 the kernels run on a
CPU, slowly, as the tests do.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from audiogen.lm import ops
from audiogen.lm.matrices import Norm, Weight
from audiogen.lm.ops import NORM_EPS, Place

# Every program of a product reads all rows: with more of them than these, a library's tiles are better, and for int8
# even a copy of the matrix in x's type.
MAX_ROWS, MAX_ROWS_INT8 = 16, 64
# (outputs, inputs) that a program of a product holds at a time, by rows: of four stages three are in shared memory, at
# most 96 kB of it, which every processor has. Outputs are few, for many programs; with a long row of inputs those are
# few still, and each keeps twice as much under way. By counting bytes: nothing here was timed yet.
TILES = {16: (16, 256), 32: (32, 128), 64: (32, 64)}
LONG = 4096
HELD_KEYS = (
    16384  # values of keys that a program of attention holds at a time: the fewer turns, the fewer waits
)


def embed(steps: Tensor, table: Tensor, positions: Tensor) -> Tensor:
    """As `ops.embed`: steps [R, K, 1] -> [R, 1, D]; several steps at once are the plain path's."""
    if steps.shape[2] != 1:
        return ops.embed(steps, table, positions)
    rows, num_codebooks, _ = steps.shape
    width = table.shape[1]
    x = table.new_empty(rows, 1, width)
    _embed[(rows,)](
        steps.contiguous(), table, positions, x, len(table) // num_codebooks, NUM_CODEBOOKS=num_codebooks,
        WIDTH=width, PADDED=_power_of_two(width), num_warps=8,
    )  # fmt: skip
    return x


def product(
    x: Tensor, weight: Weight, norm: Norm | None = None, gelu: bool = False, residual: Tensor | None = None
) -> Tensor:
    """As `ops.product`: x [R, S, inputs] -> [R, S, outputs]."""
    outputs, inputs = weight.values.shape
    num_rows = x.numel() // inputs
    if num_rows > (MAX_ROWS if weight.scales is None else MAX_ROWS_INT8):
        return ops.product(x, weight, norm, gelu, residual)
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], outputs)
    rows = max(16, _power_of_two(num_rows))  # the fewest of a matrix unit
    num_outputs, num_inputs = TILES[rows]
    if rows == 16 and inputs >= LONG:
        num_inputs *= 2
    _product[(-(-outputs // num_outputs),)](
        x, weight.values, x if weight.scales is None else weight.scales,
        x if norm is None else norm.weight, x if norm is None else norm.bias,
        x if residual is None else residual.contiguous(), y, num_rows, outputs,
        NUM_INPUTS=inputs, EPS=NORM_EPS, HAS_SCALES=weight.scales is not None, HAS_NORM=norm is not None,
        HAS_RESIDUAL=residual is not None, GELU=gelu, ROWS=rows, OUTPUTS=num_outputs, INPUTS=num_inputs,
        num_warps=4, num_stages=4,
    )  # fmt: skip
    return y


def self_attention(qkv: Tensor, keys: Tensor, values: Tensor, place: Place) -> Tensor:
    """As `ops.self_attention`: qkv [R, 1, 3 D] -> [R, 1, D]; several steps at once are the plain path's."""
    if qkv.shape[1] != 1:
        return ops.self_attention(qkv, keys, values, place)
    return _attend(qkv.contiguous(), keys, values, place.slots, place.last, is_text=False)


def text_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """As `ops.text_attention`: queries [R, 1, D] -> [R, 1, D]; several steps at once are the plain path's."""
    if queries.shape[1] != 1:
        return ops.text_attention(queries, keys, values, mask)
    return _attend(queries.contiguous(), keys, values, mask, mask, is_text=True)


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, first: Tensor, second: Tensor, is_text: bool
) -> Tensor:
    rows, heads, slots, width = keys.shape
    padded = max(16, _power_of_two(width))
    attended = queries.new_empty(rows, 1, heads * width)
    _attention[(rows, heads)](
        queries, keys, values, attended, first, second, slots, queries.shape[2], width**-0.5,
        WIDTH=width, PADDED=padded, POSITIONS=min(256, HELD_KEYS // padded), IS_TEXT=is_text, num_warps=8,
    )  # fmt: skip
    return attended


def _power_of_two(number: int) -> int:
    """The smallest that is not below."""
    return 1 << (number - 1).bit_length()


@triton.jit
def _embed(  # type: ignore[no-untyped-def]
    steps, table, positions, x, num_codes,
    NUM_CODEBOOKS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr,
):  # fmt: skip
    """A row: num_codes is V + 1."""
    row, place = tl.program_id(0), tl.arange(0, PADDED)
    inside = place < WIDTH
    sums = tl.zeros((PADDED,), tl.float32)
    for codebook in range(NUM_CODEBOOKS):
        code = codebook * num_codes + tl.load(steps + row * NUM_CODEBOOKS + codebook)
        sums += tl.load(table + code * WIDTH + place, mask=inside, other=0.0).to(tl.float32)
    half: tl.constexpr = WIDTH // 2
    exponent = tl.where(place < half, place, place - half).to(tl.float32) / (half - 1)
    phase = tl.load(positions).to(tl.float32) * tl.exp(-9.210340371976184 * exponent)  # / 10000^exponent
    sums += tl.where(place < half, tl.cos(phase), tl.sin(phase))
    tl.store(x + row * WIDTH + place, sums.to(x.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def _product(  # type: ignore[no-untyped-def]
    x, weight, scales, norm_weight, norm_bias, residual, y, num_rows, num_outputs,
    NUM_INPUTS: tl.constexpr, EPS: tl.constexpr, HAS_SCALES: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, GELU: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):  # fmt: skip
    """Outputs [OUTPUTS] of all rows: every program reads its rows of the matrix once, and all of x."""
    row = tl.arange(0, ROWS)
    out = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    column = tl.arange(0, INPUTS)
    is_row, is_out = row < num_rows, out < num_outputs
    mean = tl.zeros((ROWS,), tl.float32)
    rate = tl.zeros((ROWS,), tl.float32)
    if HAS_NORM:  # in float32, of four rows at a time, however many there are: a row's sum has one order
        for first in range(0, num_rows, 4):
            four = first + tl.arange(0, 4)
            total = tl.zeros((4,), tl.float32)
            square = tl.zeros((4,), tl.float32)
            for start in range(0, NUM_INPUTS, 2048):
                at = start + tl.arange(0, 2048)
                inside = (four < num_rows)[:, None] & (at < NUM_INPUTS)[None, :]
                tile = tl.load(x + four[:, None] * NUM_INPUTS + at[None, :], mask=inside, other=0.0)
                total += tl.sum(tile.to(tl.float32), 1)
                square += tl.sum(tile.to(tl.float32) * tile.to(tl.float32), 1)
            total = total / NUM_INPUTS
            square = 1 / tl.sqrt(tl.maximum(square / NUM_INPUTS - total * total, 0.0) + EPS)
            is_same = row[:, None] == four[None, :]
            mean += tl.sum(tl.where(is_same, total[None, :], 0.0), 1)
            rate += tl.sum(tl.where(is_same, square[None, :], 0.0), 1)
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in range(0, NUM_INPUTS, INPUTS):
        at = start + column
        is_in = at < NUM_INPUTS
        matrix = tl.load(
            weight + out[:, None].to(tl.int64) * NUM_INPUTS + at[None, :],
            mask=is_out[:, None] & is_in[None, :],
            other=0,
        )
        tile = tl.load(
            x + row[:, None] * NUM_INPUTS + at[None, :], mask=is_row[:, None] & is_in[None, :], other=0.0
        )
        if HAS_NORM:
            normal = (tile.to(tl.float32) - mean[:, None]) * rate[:, None]
            normal = normal * tl.load(norm_weight + at, mask=is_in, other=0.0).to(tl.float32)[None, :]
            normal += tl.load(norm_bias + at, mask=is_in, other=0.0).to(tl.float32)[None, :]
            tile = normal.to(x.dtype.element_ty)
        sums = tl.dot(matrix.to(x.dtype.element_ty), tl.trans(tile), sums)
    if HAS_SCALES:
        sums *= tl.load(scales + out, mask=is_out, other=0.0)[:, None]
    if GELU:
        sums = 0.5 * sums * (1 + tl.erf(sums * 0.7071067811865476))
    target = row[None, :] * num_outputs + out[:, None]
    inside = is_row[None, :] & is_out[:, None]
    if HAS_RESIDUAL:
        sums += tl.load(residual + target, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + target, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _attention(  # type: ignore[no-untyped-def]
    queries, keys, values, attended, first, second, num_slots, row_stride, scale,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, POSITIONS: tl.constexpr, IS_TEXT: tl.constexpr,
):  # fmt: skip
    """A head of a row, by the online softmax (Milakov and Gimelshein, 2018).

    Text: first is its mask [R, L]. Else a row of queries is (q, k, v), which goes into slot `first`, and slots up to
    `second` are seen; the new key and value come from registers, since what is stored here may not be readable yet.
    """
    row, head, num_heads = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    place = tl.arange(0, PADDED)
    inside = place < WIDTH
    source = queries + row * row_stride + head * WIDTH + place
    query = tl.load(source, mask=inside, other=0.0).to(tl.float32) * scale
    begin = (row * num_heads + head) * num_slots * WIDTH
    if IS_TEXT:
        slot, num_seen = -1, num_slots
        best = -1.0e30  # not -inf: the first tile may be masked
        total = 0.0
        sums = tl.zeros((PADDED,), tl.float32)
    else:
        slot, num_seen = tl.load(first), tl.load(second) + 1
        key = tl.load(source + num_heads * WIDTH, mask=inside, other=0.0)
        value = tl.load(source + 2 * num_heads * WIDTH, mask=inside, other=0.0)
        tl.store(keys + begin + slot * WIDTH + place, key, mask=inside)
        tl.store(values + begin + slot * WIDTH + place, value, mask=inside)
        best = tl.sum(query * key.to(tl.float32))
        total = 1.0
        sums = value.to(tl.float32)
    for start in range(0, num_seen, POSITIONS):
        at = start + tl.arange(0, POSITIONS)
        is_seen = (at < num_seen) & (at != slot)
        if IS_TEXT:
            is_seen = is_seen & (tl.load(first + row * num_slots + at, mask=is_seen, other=0) != 0)
        tile = begin + at[:, None] * WIDTH + place[None, :]
        both = is_seen[:, None] & inside[None, :]
        scores = tl.sum(tl.load(keys + tile, mask=both, other=0.0).to(tl.float32) * query[None, :], 1)
        scores = tl.where(is_seen, scores, -1.0e30)
        higher = tl.maximum(best, tl.max(scores))
        shares = tl.where(is_seen, tl.exp(scores - higher), 0.0)
        shrink = tl.exp(best - higher)
        total = total * shrink + tl.sum(shares)
        heard = tl.load(values + tile, mask=both, other=0.0).to(tl.float32)
        sums = sums * shrink + tl.sum(shares[:, None] * heard, 0)
        best = higher
    target = attended + row * num_heads * WIDTH + head * WIDTH + place
    tl.store(target, (sums / total).to(attended.dtype.element_ty), mask=inside)
