"""TokenLM on a CPU where the C++ kernels cannot be built: products of PyTorch, of weights packed beforehand.

`nn.Linear` on one or two rows reads its matrix at a third of the memory's bandwidth. oneDNN's product of a matrix in
its own layout (`onednn.py`), and FBGEMM's of an int8 one, come close to it. The latter is what PyTorch's dynamic
quantisation calls; its names are no public interface, so they stand in this file alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from audiogen import onednn
from audiogen.errors import InputError
from audiogen.interfaces import Condition
from audiogen.lm.model import Read, TokenLM, reader, rebuild
from audiogen.lm.transformer import KVCache

DTYPES = ("float32", "bfloat16", "int8")
ROWS = 2  # that weights are packed for: a pair for guidance; any number is computed
ENGINES = ("x86", "fbgemm", "qnnpack")  # of products in int8: the first that this PyTorch has


class PackedLM:
    """A TokenLM's decoding step with packed weights; what it needs of the TokenLM is copied. `sample.Decoder`.

    dtype: of the weights. bfloat16 rounds weights and inputs of products; int8 has a scale for every output of a
    matrix and one for every row of inputs. The rest is float32: embeddings, norms, cache, logits.
    read: as in `native.NativeLM`.
    """

    device = torch.device("cpu")
    independent_rows = False

    def __init__(self, lm: TokenLM, dtype: str = "float32", read: Read | None = None):
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; allowed: {', '.join(DTYPES)}")
        self.config, self.special, self.dtype = lm.config, lm.special, dtype
        self._lm = rebuild(
            lm.config, read or reader(lm), torch.empty(0), lambda weight: PackedLinear(weight, dtype)
        )

    def new_cache(self, condition: Condition | None, batch_size: int, max_steps: int) -> KVCache:
        """As `TokenLM.new_cache`."""
        return self._lm.new_cache(condition, batch_size, max_steps)

    def step(self, steps: Tensor, cache: KVCache) -> Tensor:
        """As `TokenLM.step`; logits are float32."""
        return self._lm.step(steps, cache)


class PackedLinear(nn.Module):
    """x [..., inputs] -> float32 [..., outputs], by a weight [outputs, inputs] packed for products of few rows."""

    def __init__(self, weight: Tensor, dtype: str):
        super().__init__()
        pack = {"float32": _pack_float, "bfloat16": _pack_bfloat16, "int8": _pack_int8}[dtype]
        self.product = pack(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


Product = Callable[[Tensor], Tensor]  # float32 [rows, inputs] -> float32 [rows, outputs]


def _pack_float(weight: Tensor) -> Product:  # [outputs, inputs]
    if not onednn.has_packed_products(weight.dtype):
        return lambda x: nn.functional.linear(x, weight)
    packed = onednn.pack_linear(weight, ROWS)
    return lambda x: onednn.linear(x, packed)


def _pack_bfloat16(weight: Tensor) -> Product:  # [outputs, inputs]
    product = _pack_float(weight.bfloat16())
    return lambda x: product(x.bfloat16()).float()


def _pack_int8(weight: Tensor) -> Product:
    """Symmetric per output; of the inputs each row has its own scale, so that rows do not depend on one another.

    PyTorch quantises the inputs by the range of all rows. One more row, with 1 and -1, makes that range the same for
    rows that were each divided by their largest magnitude.
    """
    engine = next((name for name in ENGINES if name in torch.backends.quantized.supported_engines), None)
    if engine is None or not hasattr(torch, "quantize_per_channel"):  # deprecated, and may go
        raise InputError(
            "int8 needs a C++ compiler, or a PyTorch with FBGEMM or QNNPACK; choose bfloat16 or float32"
        )
    # also decides who computes later: set to nothing else in this package
    torch.backends.quantized.engine = engine
    scales = weight.abs().amax(1).clamp(min=1e-30) / 127  # int8's largest; rows of zeros stay finite
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantised = torch.quantize_per_channel(weight, scales.double(), zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantised, None)
    # Without 8-bit dot products x86 adds pairs in 16 bits, which seven bits of input cannot overflow.
    has_vnni = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()  # there is no public function
    reduce_range = engine != "qnnpack" and not has_vnni
    ends = torch.zeros(1, weight.shape[1])
    ends[0, :1], ends[0, 1:2] = 1.0, -1.0

    def product(x: Tensor) -> Tensor:
        largest = x.abs().amax(1, keepdim=True).clamp(min=1e-30)  # [rows, 1]; 1e-30: a row of zeros
        rows = torch.cat([x / largest, ends])
        return torch.ops.quantized.linear_dynamic(rows, packed, reduce_range)[:-1] * largest

    return product
