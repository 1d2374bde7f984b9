"""How fast a decoding step is: transformers, PyTorch and our own steps, with the same weights in one run.

    python tools/bench_generate.py --shape small --threads 1 2
    python tools/bench_generate.py --shape medium --threads 2 --models transformers-float32 native-int8
    python tools/bench_generate.py --device cuda --shape medium --batch 1 8 32 --frames 500

Random weights, guidance as a pair of rows a clip, the first with 20 tokens of text and the second without. A step is
the model alone, without drawing codes. native is `lm.kernels.native`; packed is `lm.kernels.packed`, for machines
without a compiler; compile, graph and eager are the modes of `lm.kernels.graph`: torch.compile, a plain CUDA graph, and
neither. Models take turns, round by round, so that other work on the machine meets all of them; figures are the medians
over rounds. A frame takes one step, and frames/s are those of the mean of the first and the last steps of a clip, times
the clips of a batch. A share of bandwidth is the bytes of weights that a step must read, over its time, over what the
same number of threads read in the same round from memory, or what a GPU moves when it copies.
"""

import argparse
import ctypes
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from audiogen.errors import InputError, run_command
from audiogen.interfaces import Condition
from audiogen.lm.kernels import graph, native
from audiogen.lm.kernels.packed import PackedLM
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.native import library
from audiogen.text.condition import null, stack

SHAPES = {
    "small": LMConfig(4, 2048, 1024, num_layers=24, num_heads=16),  # MusicGen's
    "medium": LMConfig(4, 2048, 1536, num_layers=48, num_heads=24),  # AudioGen's and MusicGen's
    "large": LMConfig(4, 2048, 2048, num_layers=48, num_heads=32),  # MusicGen's
    "tiny": LMConfig(8, 512, 256, num_layers=8, num_heads=4),  # lm_tiny
}
MODELS = {
    "cpu": (
        "transformers-float32", "transformers-bfloat16", "pytorch-float32", "pytorch-bfloat16",
        "packed-float32", "packed-bfloat16", "packed-int8", "native-float32", "native-bfloat16", "native-int8",
        "native-int4",
    ),
    "cuda": ("transformers-bfloat16", "pytorch-bfloat16", "graph-bfloat16", "compile-bfloat16", "compile-int8"),
}  # fmt: skip
GRAPH = get_args(graph.Mode)  # with any of graph.DTYPES
TEXT_TOKENS = 20
READ_BYTES = 1 << 29  # for the bandwidth: many times any cache
COPY_BYTES = 1 << 30


class Candidate(NamedTuple):
    """A model in the middle of a clip. step(position) decodes one step there; cached steps beyond it are dropped."""

    name: str
    num_bytes: int  # of the weights that a step must read
    step: Callable[[int], object]


def native_model(lm: TokenLM, text: Condition, steps: Tensor, dtype: str, num_bytes: int) -> Candidate:
    """The kernels of audiogen/native/native.cpp."""
    fast = native.NativeLM(lm, dtype)
    cache = fast.new_cache(text, len(steps), steps.shape[2])
    fast.step(steps, cache)

    def step(position: int) -> object:
        cache.struct.length = position
        return fast.step(steps[..., position : position + 1], cache)

    return Candidate(f"native-{dtype}", num_bytes, step)


def packed_model(lm: TokenLM, text: Condition, steps: Tensor, dtype: str, num_bytes: int) -> Candidate:
    """PyTorch's products of packed weights, audiogen/lm/kernels/packed.py."""
    fast = PackedLM(lm, dtype)
    cache = fast.new_cache(text, len(steps), steps.shape[2])
    fast.step(steps, cache)

    def step(position: int) -> object:
        cache.length = position
        return fast.step(steps[..., position : position + 1], cache)

    return Candidate(f"packed-{dtype}", num_bytes, step)


def graph_model(
    lm: TokenLM, text: Condition, steps: Tensor, dtype: str, num_bytes: int, mode: graph.Mode
) -> Candidate:
    """The step of audiogen/lm/kernels/graph.py; with int8, what is not a matrix is bfloat16 on a GPU."""
    fast = graph.GraphLM(lm, dtype, mode=mode)
    cache = fast.new_cache(text, len(steps), steps.shape[2])
    fast.step(steps, cache)

    def step(position: int) -> object:
        if cache.length != position:
            cache.length = position
            cache.position.fill_(position)
        return fast.step(steps[..., position : position + 1], cache)

    return Candidate(f"{mode}-{dtype}", num_bytes, step)


def pytorch_model(
    lm: TokenLM, text: Condition, steps: Tensor, dtype: torch.dtype, num_bytes: int
) -> Candidate:
    """TokenLM itself."""
    cast = lm if dtype == torch.float32 else _copy(lm, dtype)
    cache = cast.new_cache(text, len(steps), steps.shape[2])
    cast.features(steps, cache=cache)

    def step(position: int) -> object:
        cache.length = position
        return cast.logits(cast.features(steps[..., position : position + 1], cache=cache))

    return Candidate(f"pytorch-{str(dtype)[6:]}", num_bytes, step)


@functools.cache
def _copy(lm: TokenLM, dtype: torch.dtype) -> TokenLM:
    with torch.device("meta"):
        other = TokenLM(lm.config)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in lm.state_dict().items()}, assign=True)
    return other.eval()


def transformers_model(
    lm: TokenLM, text: Condition, steps: Tensor, dtype: torch.dtype, num_bytes: int
) -> Candidate:
    """MusicgenForCausalLM, as its `generate` calls it: the pairs as a batch."""
    from transformers import DynamicCache, EncoderDecoderCache, MusicgenForCausalLM  # 5 s, for this way alone
    from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

    from audiogen.models.export import decoder_parts

    config, tensors = decoder_parts(lm)
    model = MusicgenForCausalLM._from_config(MusicgenDecoderConfig(**config), dtype=dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    missing = model.load_state_dict(tensors, strict=False, assign=True)
    assert not missing.unexpected_keys, missing
    model.to(steps.device).eval()  # with its table of positions
    rows = steps.reshape(-1, steps.shape[2])  # [2 B K, S]
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    text_inputs = {"encoder_hidden_states": text.tokens.to(dtype), "encoder_attention_mask": text.mask.long()}
    model(rows, past_key_values=past, use_cache=True, **text_inputs)

    layers = past.self_attention_cache.layers
    full = [(layer.keys, layer.values) for layer in layers]

    def step(position: int) -> object:
        for layer, (keys, values) in zip(layers, full, strict=True):
            layer.keys, layer.values = keys[:, :, :position], values[:, :, :position]
        return model(
            rows[:, position : position + 1], past_key_values=past, use_cache=True, **text_inputs
        ).logits

    return Candidate(f"transformers-{str(dtype)[6:]}", num_bytes, step)


def inputs(lm: TokenLM, num_frames: int, batch: int) -> tuple[Condition, Tensor]:
    """Text of TEXT_TOKENS and none, and random codes [2 B, K, S], the same for both rows of a pair."""
    config, device = lm.config, lm.heads.weight.device
    tokens = torch.randn(batch, TEXT_TOKENS, config.dim, device=device)
    mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool, device=device)
    shape = (batch, config.num_codebooks, num_frames)
    steps = torch.randint(0, config.codebook_size, shape, device=device).repeat(2, 1, 1)
    return stack([Condition(tokens, mask), null(batch, config.dim, device)]), steps


def num_weights(lm: TokenLM) -> int:
    """Of those that a step reads whole: neither tables, nor what the text passes through once."""
    named = lm.named_parameters()
    return sum(p.numel() for name, p in named if "text_proj" not in name and "embedding" not in name)


def candidates(lm: TokenLM, names: Sequence[str], num_frames: int, batch: int) -> list[Candidate]:
    """Each with its cache filled by clips of so many frames."""
    text, steps = inputs(lm, num_frames, batch)
    made = []
    for name in names:
        print(f"preparing {name}", file=sys.stderr)
        kind, _, dtype = name.partition("-")
        # int4 with its scales; that its heads are int8 is left out
        of_weight = native.panel_words(64, dtype) / 16 if dtype == "int4" else getattr(torch, dtype).itemsize
        num_bytes = round(num_weights(lm) * of_weight)
        if kind in GRAPH:
            made.append(graph_model(lm, text, steps, dtype, num_bytes, kind))  # type: ignore[arg-type]
        elif kind in ("native", "packed"):
            make = native_model if kind == "native" else packed_model
            made.append(make(lm, text, steps, dtype, num_bytes))
        else:
            plain = pytorch_model if kind == "pytorch" else transformers_model
            made.append(plain(lm, text, steps, getattr(torch, dtype), num_bytes))
    return made


def bandwidth(memory: Tensor, num_threads: int) -> float:
    """Bytes per second that so many threads read from memory, or a GPU moves in it; of two passes the better."""
    if memory.is_cuda:
        half = len(memory) // 2
        events = [torch.cuda.Event(enable_timing=True) for _ in range(3)]
        for event in events:
            event.record()
            memory[half:].copy_(memory[:half])
        torch.cuda.synchronize()
        milliseconds = min(events[i].elapsed_time(events[i + 1]) for i in range(2))
        return 2 * half / milliseconds * 1e3
    kernels = library.library()
    if kernels is None:
        raise InputError("the bandwidth is measured by the native kernels: install g++ or clang++")
    threads = native.ThreadPool(kernels, num_threads)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        kernels.audiogen_read(ctypes.cast(memory.data_ptr(), ctypes.c_char_p), READ_BYTES, threads.handle)
        times.append(time.perf_counter() - begin)
    return READ_BYTES / min(times)


def seconds(candidate: Candidate, first: int, count: int) -> float:
    """Of a step: the mean over `count` of them from position `first`, after one to warm up."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    candidate.step(first)
    wait()
    begin = time.perf_counter()
    for position in range(first, first + count):
        candidate.step(position)
    wait()
    return (time.perf_counter() - begin) / count


def compare(
    models: Sequence[Candidate],
    memory: Tensor,
    num_threads: int,
    num_frames: int,
    count: int,
    rounds: int,
    batch: int,
) -> list[dict[str, object]]:
    """Measure in turns, print a table and return it."""
    torch.set_num_threads(num_threads)
    start: dict[str, list[float]] = {model.name: [] for model in models}
    end: dict[str, list[float]] = {model.name: [] for model in models}
    rates = []
    for _ in range(rounds):
        rates.append(bandwidth(memory, num_threads))
        for model in models:
            start[model.name].append(seconds(model, 0, count))
            end[model.name].append(seconds(model, num_frames - count, count))
    rate = statistics.median(rates)
    where = torch.cuda.get_device_name(memory.device) if memory.is_cuda else f"threads: {num_threads}"
    print(f"\n{where}; memory {rate / 1e9:.1f} GB/s; batch of {batch}")
    print(f"{'':22} frames/s  ms at start  at end  of bandwidth  times {models[0].name}")
    slowest, found = 0.0, []
    for model in models:
        first, last = statistics.median(start[model.name]), statistics.median(end[model.name])
        mean = (first + last) / 2
        slowest = slowest or mean
        share = model.num_bytes / mean / rate
        times = f"{1e3 * first:12.2f} {1e3 * last:7.2f}"
        print(f"{model.name:22} {batch / mean:8.1f} {times} {share:12.0%} {slowest / mean:7.2f}")
        figures = {"frames/s": batch / mean, "of bandwidth": share, f"times {models[0].name}": slowest / mean}
        found.append({"model": model.name, "batch": batch, "where": where} | figures)
    return found


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--models", nargs="+", help="by default some that pay on the device")
    parser.add_argument("--device", choices=MODELS, default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="clips at a time")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of a CPU")
    parser.add_argument("--frames", type=int, default=250, help="length of the clip")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps timed at the start and at the end, a round"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to add lines of JSON to")
    args = parser.parse_args(argv)
    if not 1 <= args.steps < args.frames or min(args.rounds, *args.threads, *args.batch) < 1:
        raise InputError(
            "--steps is from 1 to below --frames; --rounds, --threads and --batch are at least 1"
        )
    names = args.models or MODELS[args.device]
    allowed = (*MODELS["cpu"], *(f"{kind}-{dtype}" for kind in GRAPH for dtype in graph.DTYPES))
    if unknown := set(names) - set(allowed):
        raise InputError(f"--models has {', '.join(sorted(unknown))}; allowed: {', '.join(allowed)}")
    is_cuda = args.device == "cuda"
    if is_cuda and (
        not torch.cuda.is_available() or any(name.startswith(("native", "packed")) for name in names)
    ):
        raise InputError("--device cuda needs a CUDA GPU, and models other than native and packed ones")
    torch.manual_seed(args.seed)
    with torch.device(args.device):
        lm = TokenLM(SHAPES[args.shape]).eval()
        memory = torch.ones(2 * COPY_BYTES if is_cuda else READ_BYTES, dtype=torch.uint8)
    count = sum(p.numel() for p in lm.parameters()) / 1e6
    print(f"{args.shape}: {count:.0f} M parameters, a pair of rows a clip, {args.frames} frames", end="")
    for batch in args.batch:
        models = candidates(lm, names, args.frames, batch)
        for num_threads in args.threads[:1] if is_cuda else args.threads:
            found = compare(models, memory, num_threads, args.frames, args.steps, args.rounds, batch)
            if args.json:
                with open(args.json, "a") as file:
                    for each in found:
                        file.write(json.dumps({"bench": "decoding", "shape": args.shape} | each) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
