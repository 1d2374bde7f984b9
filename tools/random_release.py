"""A release of AudioGen's or MusicGen's layout with random weights, and what loading one takes.

    python tools/random_release.py build /tmp/release --size medium --text-encoder
    python tools/random_release.py load /tmp/release --dtype bfloat16 --generate 1
    python -m audiogen.generate --model /tmp/release --text-encoder /tmp/release/text_encoder --text "a dog barks"

`medium` has the sizes of facebook/audiogen-medium: 588 tensors of 1,839,131,136 numbers in float16 and a codec of 59
million in float32; 3.9 GB on the disk, and as much memory to build it. Names, shapes and configuration are those of
the released layout, so what loads here loads there; the sound is noise. `load` prints the peak of resident memory, of a
GPU that of what was allocated; with --generate also how soon the first quarter of a second of a stream is there.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from audiogen.errors import InputError, run_command
from audiogen.generators.load import AudioGen
from audiogen.lm.kernels.native import NativeLM
from audiogen.lm.model import TokenLM


@dataclass(frozen=True)
class Size:
    """What differs between releases. text: the T5's name and width. filters: of the codec's first convolution."""

    dim: int
    num_layers: int
    num_heads: int
    codebook_size: int
    text: tuple[str, int]
    filters: int
    latent_dim: int
    num_codebooks: int = 4
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    sample_rate: int = 16000


SIZES = {
    "tiny": Size(24, 3, 4, 32, ("t5-small", 512), 2, 6),
    "small": Size(1024, 24, 16, 2048, ("t5-base", 768), 64, 128),
    "medium": Size(1536, 48, 24, 2048, ("t5-large", 1024), 64, 128),
}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Build a release, or load one and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build_it = commands.add_parser("build", help="write state_dict.bin and compression_state_dict.bin")
    build_it.add_argument("directory", type=Path)
    build_it.add_argument("--size", choices=SIZES, default="medium")
    build_it.add_argument(
        "--stereo", action="store_true", help="codebooks of two channels in turn, as MusicGen"
    )
    build_it.add_argument("--text-encoder", action="store_true", help="and a small T5 in text_encoder/")
    load_it = commands.add_parser("load", help="load it and print the peak of memory")
    load_it.add_argument("directory", type=Path)
    load_it.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16", "int8"),
        default="float32",
        help="of the language model",
    )
    load_it.add_argument("--unpacked", action="store_true", help="as a PyTorch module, not packed for a CPU")
    load_it.add_argument("--device", default="cpu")
    load_it.add_argument("--json", type=Path, help="file to add a line of JSON to")
    load_it.add_argument("--generate", type=float, default=0.0, metavar="S", help="also S seconds of sound")
    arguments = parser.parse_args(argv)
    if arguments.command == "build":
        build(arguments.directory, SIZES[arguments.size], arguments.stereo, arguments.text_encoder)
    else:
        found = load(
            arguments.directory, arguments.dtype, not arguments.unpacked, arguments.generate, arguments.device
        )
        if arguments.json:
            with open(arguments.json, "a") as file:
                file.write(json.dumps({"bench": "opening", "dtype": arguments.dtype} | found) + "\n")
    return 0


# ------------------------------------------------------------------------------------------------------- build


def build(directory: Path, size: Size, stereo: bool = False, text_encoder: bool = False) -> None:
    """Write a release; the same sizes give the same weights."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{directory} cannot be made a directory: {error.strerror}; give another") from None
    random = torch.Generator().manual_seed(0)
    channels = 2 if stereo else 1
    lm = {name: weight(name, shape, random, torch.float16) for name, shape in lm_shapes(size, channels)}
    write(directory / "state_dict.bin", lm, lm_config(size, channels))
    del lm  # before the codec's weights are there
    codec = {name: weight(name, shape, random, torch.float32) for name, shape in codec_shapes(size)}
    write(directory / "compression_state_dict.bin", codec, codec_config(size))
    if text_encoder:
        write_text_encoder(directory / "text_encoder", size.text[1])


def write(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """One file of a release."""
    contents = {"best_state": tensors, "xp.cfg": OmegaConf.to_yaml(OmegaConf.create(config))}
    torch.save({**contents, "version": "0.0", "exported": True}, path)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{path}: {len(tensors)} tensors, {numbers:,} numbers, {path.stat().st_size:,} bytes")


def weight(name: str, shape: tuple[int, ...], random: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Ones for scales and zeros for shifts of normalisations, as in training's first step; noise for the rest."""
    kind, last = name.split(".")[-2:]
    if "norm" in kind:
        return torch.full(shape, float(last == "weight"), dtype=dtype)
    if last in ("inited", "cluster_size", "weight_g"):
        return torch.ones(shape, dtype=dtype)
    spread = 1.0 if "embed" in last else max(shape[-1], 1) ** -0.5
    return torch.empty(shape, dtype=dtype).normal_(0.0, spread, generator=random)


def lm_shapes(size: Size, channels: int) -> Shapes:
    """The tensors of state_dict.bin."""
    dim = size.dim
    projection = "condition_provider.conditioners.description.output_proj"
    yield f"{projection}.weight", (dim, size.text[1])
    yield f"{projection}.bias", (dim,)
    for k in range(size.num_codebooks * channels):
        yield f"emb.{k}.weight", (size.codebook_size + 1, dim)
        yield f"linears.{k}.weight", (size.codebook_size, dim)
    for layer in range(size.num_layers):
        name = f"transformer.layers.{layer}"
        for attention in ("self_attn", "cross_attention"):
            yield f"{name}.{attention}.in_proj_weight", (3 * dim, dim)
            yield f"{name}.{attention}.out_proj.weight", (dim, dim)
        yield f"{name}.linear1.weight", (4 * dim, dim)
        yield f"{name}.linear2.weight", (dim, 4 * dim)
        for norm in ("norm1", "norm_cross", "norm2"):
            yield f"{name}.{norm}.weight", (dim,)
            yield f"{name}.{norm}.bias", (dim,)
    yield "out_norm.weight", (dim,)
    yield "out_norm.bias", (dim,)


def codec_shapes(size: Size) -> Shapes:
    """The tensors of compression_state_dict.bin; convolutions are numbered as layers, with activations between."""
    width = size.filters
    yield from convolution("encoder.model.0.conv.conv", width, 1, 7)
    for stage, ratio in enumerate(reversed(size.ratios)):
        yield from residual(f"encoder.model.{3 * stage + 1}", width)
        yield from convolution(f"encoder.model.{3 * stage + 3}.conv.conv", 2 * width, width, 2 * ratio)
        width *= 2
    last = 3 * len(size.ratios) + 1
    yield from lstm(f"encoder.model.{last}.lstm", width)
    yield from convolution(f"encoder.model.{last + 2}.conv.conv", size.latent_dim, width, 7)
    yield from convolution("decoder.model.0.conv.conv", width, size.latent_dim, 7)
    yield from lstm("decoder.model.1.lstm", width)
    for stage, ratio in enumerate(size.ratios):
        # a transposed convolution's first axis is its input
        up = f"decoder.model.{3 * stage + 3}.convtr.convtr"
        yield from convolution(up, width, width // 2, 2 * ratio, bias=width // 2)
        width //= 2
        yield from residual(f"decoder.model.{3 * stage + 4}", width)
    yield from convolution(f"decoder.model.{last + 2}.conv.conv", 1, width, 7)
    for k in range(size.num_codebooks):
        book = f"quantizer.vq.layers.{k}._codebook"
        yield f"{book}.inited", (1,)
        yield f"{book}.cluster_size", (size.codebook_size,)
        yield f"{book}.embed", (size.codebook_size, size.latent_dim)
        yield f"{book}.embed_avg", (size.codebook_size, size.latent_dim)


def convolution(name: str, first: int, second: int, kernel: int, bias: int | None = None) -> Shapes:
    """A convolution with weight norm over its first axis."""
    yield f"{name}.bias", (first if bias is None else bias,)
    yield f"{name}.weight_g", (first, 1, 1)
    yield f"{name}.weight_v", (first, second, kernel)


def residual(name: str, width: int) -> Shapes:
    """The two convolutions of a residual block, half as wide between them."""
    yield from convolution(f"{name}.block.1.conv.conv", width // 2, width, 3)
    yield from convolution(f"{name}.block.3.conv.conv", width, width // 2, 1)


def lstm(name: str, width: int) -> Shapes:
    """Two layers of an LSTM: its four gates are stacked."""
    for layer in (0, 1):
        for part in ("ih", "hh"):
            yield f"{name}.weight_{part}_l{layer}", (4 * width, width)
            yield f"{name}.bias_{part}_l{layer}", (4 * width,)


def lm_config(size: Size, channels: int) -> dict[str, Any]:
    """xp.cfg of state_dict.bin: what decides the architecture, and how it generates by default."""
    num_streams = size.num_codebooks * channels
    return {
        "solver": "audiogen" if channels == 1 else "musicgen",
        "sample_rate": size.sample_rate,
        "channels": channels,
        "lm_model": "transformer_lm",
        "codebooks_pattern": {
            "modeling": "delay",
            "delay": {"delays": [k // channels for k in range(num_streams)]},
        },
        **({"interleave_stereo_codebooks": {"use": True, "per_timestep": False}} if channels == 2 else {}),
        "transformer_lm": {
            "dim": size.dim,
            "num_heads": size.num_heads,
            "num_layers": size.num_layers,
            "hidden_scale": 4,
            "n_q": num_streams,
            "card": size.codebook_size,
            "activation": "gelu",
            "norm_first": True,
            **dict.fromkeys(("bias_ff", "bias_attn", "bias_proj"), False),
            "causal": True,
            "positional_embedding": "sin",
            "norm": "layer_norm",
            "cross_attention": True,
        },
        "classifier_free_guidance": {"training_dropout": 0.1, "inference_coef": 3.0},
        "fuser": {"cross_attention_pos_emb": False, "sum": [], "prepend": [], "cross": ["description"]},
        "conditioners": {"description": {"model": "t5", "t5": {"name": size.text[0], "finetune": False}}},
        "dataset": {"segment_duration": 10},
    }


def codec_config(size: Size) -> dict[str, Any]:
    """xp.cfg of compression_state_dict.bin, with some values that point to others, as the released ones have."""
    return {
        "solver": "compression",
        "compression_model": "encodec",
        "sample_rate": size.sample_rate,
        "channels": 1,
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "dimension": size.latent_dim,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": size.filters,
            "n_residual_layers": 1,
            "ratios": list(size.ratios),
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None},
        },
        "rvq": {"n_q": size.num_codebooks, "bins": size.codebook_size},
    }


def write_text_encoder(directory: Path, width: int) -> None:
    """A T5 of that width with random weights, shallow, whose vocabulary is letters: what --text-encoder takes."""
    from transformers import (  # 5 s of a processor's time, for this alone
        T5Config,
        T5EncoderModel,
        T5Tokenizer,
    )

    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz,.'"]
    T5Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0).save_pretrained(
        directory
    )
    config = T5Config(
        vocab_size=len(pieces),
        d_model=width,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        num_decoder_layers=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        T5EncoderModel(config).save_pretrained(directory)
    print(f"{directory}: a T5 of width {width}")


# -------------------------------------------------------------------------------------------------------- load


def load(
    directory: Path, dtype: str, packed: bool, duration_s: float, device: str = "cpu"
) -> dict[str, float | str]:
    """Open it as generation does, generate without text, and print the peak of memory against the weights' size."""
    peak_of = torch.cuda.max_memory_allocated if torch.device(device).type == "cuda" else peak_bytes
    start, before = time.perf_counter(), peak_of()
    model = AudioGen.from_pretrained(directory, device, dtype, packed=packed)
    seconds = time.perf_counter() - start
    modules: list[Any] = [model.conditioner, model.codec]
    if isinstance(model.decoder, TokenLM):
        modules.append(model.decoder)
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    weights = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    weights += model.decoder.num_bytes if isinstance(model.decoder, NativeLM) else 0
    peak = peak_of()
    print(
        f"weights {weights / 1e6:,.1f} MB, peak of memory {peak / 1e6:,.1f} MB ({before / 1e6:,.1f} MB before), "
        f"ratio {peak / weights:.3f}, {seconds:.1f} s"
    )
    found = {
        "model": directory.name,
        "device": str(model.device),
        "weights MB": weights / 1e6,
        "opens in s": seconds,
    }
    if duration_s:
        start = time.perf_counter()
        model.generate([None], duration_s, guidance=1.0)
        seconds, peak = time.perf_counter() - start, peak_of()
        start = time.perf_counter()
        next(model.stream(None, duration_s, guidance=1.0))
        first = time.perf_counter() - start
        print(
            f"{duration_s:g} s of sound: {seconds:.1f} s, peak {peak / 1e6:,.1f} MB, ratio {peak / weights:.3f}; "
            f"the first of a stream after {first:.2f} s"
        )
        found |= {"seconds of sound": duration_s, "takes s": seconds, "first sound after s": first}
    return found | {"peak MB": peak / 1e6}


def peak_bytes() -> int:
    """The most memory that was resident in this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage also counts what the process was before it became this program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(run_command(main))
