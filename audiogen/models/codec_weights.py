"""Tensors of public codecs -> ours: their names in each layout, and weight norm folded in.

All layouts number the layers of encoder and decoder as we do, activations included.

    ours                          audiocraft                            transformers
    encoder.layers.3.conv.weight  encoder.model.3.conv.conv.weight_v    encoder.layers.3.conv.weight_v
    encoder.layers.1.wide.conv.*  encoder.model.1.block.1.conv.conv.*   encoder.layers.1.block.1.conv.*
    encoder.layers.13.lstm.*      encoder.model.13.lstm.*               encoder.layers.13.lstm.*
    decoder.layers.3.convtr.bias  decoder.model.3.convtr.convtr.bias    decoder.layers.3.conv.bias
    decoder.layers.3.norm.*       decoder.model.3.convtr.norm.*         decoder.layers.3.norm.*

The files of encodec have the names of audiocraft. Newer ones say parametrizations.weight.original0 and original1 for
weight_g and weight_v.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from audiogen.codec.model import Codec, CodecConfig
from audiogen.errors import InputError
from audiogen.files import checkpoint

Layout = Literal["audiocraft", "transformers"]
UNITS = {"wide": "block.1", "point": "block.3", "shortcut": "shortcut"}
BUFFERS = {"codewords": "embed", "usage": "cluster_size", "sums": "embed_avg", "initialised": "inited"}
NORMED = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)
LARGEST = 1 << 18  # of any one size; products of three of them still count without overflow


def public_name(name: str, layout: Layout, own: Collection[str]) -> str:
    """Our name of a tensor -> that of the layout, with a weight as one tensor. own: all of our names."""
    parts = name.split(".")
    if parts[0] == "quantizer":
        books = "vq.layers.{}._codebook" if layout == "audiocraft" else "layers.{}.codebook"
        return f"quantizer.{books.format(parts[2])}.{BUFFERS[parts[3]]}"
    *owner, role, leaf = parts
    transposed = ".".join([*owner, "convtr", "weight"]) in own
    public = [owner[0], "model" if layout == "audiocraft" else "layers", owner[2]]
    public += [UNITS[unit] for unit in owner[3:]]
    if role == "lstm":
        public += [role]
    elif layout == "audiocraft":
        convolution = "convtr" if transposed else "conv"
        public += [convolution, convolution if role != "norm" else role]
    else:
        public += ["conv" if role != "norm" else role]
    return ".".join([*public, leaf])


def build(
    config: CodecConfig,
    tensors: Mapping[str, Tensor],
    layout: Layout,
    where: str | Path,
    device: str | torch.device = "cpu",
) -> Codec:
    """A frozen codec of this config with a file's tensors, float32, on `device`.

    Nothing is allocated before all names and shapes are known to fit; InputError names those that do not. One
    tensor at a time is folded, so that the file, if it is mapped into memory, is never there as a whole beside it.
    """
    _check_sizes(config, len(tensors), where)
    with checkpoint.unfilled():
        codec = Codec(config)
    own = codec.state_dict()
    sources = _match(own, tensors, layout, where)
    filled = {}
    for name, parts in sources.items():
        value = _fold([tensors[part] for part in parts]).reshape(own[name].shape)
        if not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{where} is damaged: {parts[-1]} holds values that are no numbers; copy it again"
            )
        filled[name] = (value != 0 if own[name].dtype is torch.bool else value).to(device)
        for part in parts:
            checkpoint.release(tensors[part])
    codec.load_state_dict(filled, assign=True)
    return codec.eval().requires_grad_(False)


def _check_sizes(config: CodecConfig, num_tensors: int, where: str | Path) -> None:
    """Refuse what would take for ever, or all memory, only to be found not to fit."""
    seanet = config.seanet
    width, dilation = (
        seanet.num_filters * 2 ** len(seanet.ratios),
        seanet.dilation_base ** min(seanet.num_residual_layers, 20),  # 2**20 is too large already
    )
    sizes = (width, dilation, config.channels, config.latent_dim, config.codebook_size, *seanet.ratios)
    kernels = (seanet.kernel_size, seanet.residual_kernel_size, seanet.last_kernel_size)
    num_layers = config.num_codebooks + 2 * (
        len(seanet.ratios) * (1 + seanet.num_residual_layers) + seanet.lstm
    )
    if num_layers > num_tensors or max(*sizes, *kernels) > LARGEST:
        raise InputError(
            f"{where}: its config asks for {num_layers} layers up to {max(*sizes, *kernels)} wide, but it holds "
            f"{num_tensors} tensors, and {LARGEST} is allowed; they do not belong together, copy it again"
        )


def _match(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], layout: Layout, where: str | Path
) -> dict[str, list[str]]:
    """Which of a file's tensors make each of ours: one, or weight norm's two."""
    sources, problems = {}, []
    for name, target in own.items():
        public = public_name(name, layout, own)
        stem = public.removesuffix(".weight")
        forms = [[public], *([stem + g, stem + v] for g, v in NORMED if stem != public)]
        parts = next((form for form in forms if all(part in tensors for part in form)), None)
        if parts is None:
            there = [part for form in forms for part in form if part in tensors]
            problems.append(f"missing {public}" + (f" ({there[0]} is there alone)" if there else ""))
            continue
        sources[name] = parts
        shape = list(target.shape) or [1]  # a flag is a vector of one in the public files
        shapes = [shape] if len(parts) == 1 else [[shape[0]] + [1] * (len(shape) - 1), shape]
        problems += [
            f"{part} is {_describe(tensors[part])}, should be {wanted}"
            for part, wanted in zip(parts, shapes, strict=True)
            if (list(tensors[part].shape) or [1]) != wanted or not _is_whole(tensors[part])
        ]
    used = {part for parts in sources.values() for part in parts}
    problems += [f"unexpected {name}" for name in tensors if name not in used]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise InputError(f"weights of {where} do not fit their config: {'; '.join(problems[:4])}{more}")
    return sources


def _is_whole(tensor: Tensor) -> bool:
    """Whether a tensor has its numbers in memory: a forged one may claim any size over a few bytes."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)}" + ("" if _is_whole(tensor) else " without as many values")


def length(direction: Tensor) -> Tensor:
    """|v| over all dimensions but the first, kept as 1: weight norm's g of a weight that is its own direction."""
    return torch.linalg.vector_norm(direction, dim=tuple(range(1, direction.dim())), keepdim=True)


def _fold(parts: list[Tensor]) -> Tensor:
    """A copy in float32; of weight norm's length g and direction v the weight v g / |v|.

    In this order, so that what `public.transformers_parts` wrote, g = |v|, comes back bit for bit.
    """
    values = [part.detach().to(torch.float32) for part in parts]
    if len(values) == 1:
        return values[0].clone(memory_format=torch.contiguous_format)
    g, v = values
    return v * (g / length(v))
