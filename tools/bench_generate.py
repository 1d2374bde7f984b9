"""How fast a decoding step is: transformers, PyTorch and the native kernels, with the same weights in one run.

    python tools/bench_generate.py --shape small --threads 1 2
    python tools/bench_generate.py --shape medium --threads 2 --models transformers-float32 native-int8

Random weights, guidance as a pair of rows, the first with 20 tokens of text and the second without. A step is the model
alone, not the drawing of codes. Models take turns, round by round, so that other work on the machine meets all of them;
figures are the medians over rounds. A frame takes one step, and frames/s are those of the mean of the first and the
last steps of a clip. A share of bandwidth is the bytes of weights that a step must read, over its time, over what the
same number of threads read in the same round from memory.
"""

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, MusicgenForCausalLM
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

from audiogen.conditioning.condition import null, stack
from audiogen.errors import InputError, run_command
from audiogen.interfaces import Condition
from audiogen.lm import native
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.public import transformers_parts

SHAPES = {
    "small": LMConfig(4, 2048, 1024, num_layers=24, num_heads=16),  # MusicGen's
    "medium": LMConfig(4, 2048, 1536, num_layers=48, num_heads=24),  # AudioGen's and MusicGen's
    "tiny": LMConfig(8, 512, 256, num_layers=8, num_heads=4),  # lm_tiny
}
MODELS = (
    "transformers-float32", "transformers-bfloat16", "pytorch-float32", "pytorch-bfloat16",
    "native-float32", "native-bfloat16", "native-int8",
)  # fmt: skip
TEXT_TOKENS = 20
READ_BYTES = 1 << 29  # for the bandwidth: many times any cache


class Candidate(NamedTuple):
    """A model in the middle of a clip. step(position) decodes one step there; what is past it is forgotten."""

    name: str
    num_bytes: int  # of the weights that a step must read
    step: Callable[[int], object]


def native_model(lm: TokenLM, text: Condition, steps: Tensor, dtype: native.Dtype) -> Candidate:
    """The kernels of audiogen/lm/native.cpp."""
    fast = native.NativeLM(lm, dtype)
    cache = fast.new_cache(text, 2, steps.shape[2])
    fast.step(steps, cache)

    def step(position: int) -> object:
        cache.struct.length = position
        return fast.step(steps[..., position : position + 1], cache)

    return Candidate(f"native-{dtype}", fast.step_bytes(guided=True), step)


def pytorch_model(
    lm: TokenLM, text: Condition, steps: Tensor, dtype: torch.dtype, num_bytes: int
) -> Candidate:
    """TokenLM itself."""
    cast = lm if dtype == torch.float32 else _copy(lm, dtype)
    cache = cast.new_cache(text, 2, steps.shape[2])
    cast.features(steps, cache=cache)

    def step(position: int) -> object:
        cache.length = position
        return cast.logits(cast.features(steps[..., position : position + 1], cache=cache))

    return Candidate(f"pytorch-{str(dtype)[6:]}", num_bytes, step)


def _copy(lm: TokenLM, dtype: torch.dtype) -> TokenLM:
    with torch.device("meta"):
        other = TokenLM(lm.config)
    other.load_state_dict({name: tensor.to(dtype) for name, tensor in lm.state_dict().items()}, assign=True)
    return other.eval()


def transformers_model(
    lm: TokenLM, text: Condition, steps: Tensor, dtype: torch.dtype, num_bytes: int
) -> Candidate:
    """MusicgenForCausalLM, as its `generate` calls it: the pair as a batch of two."""
    config, tensors = transformers_parts(lm)
    model = MusicgenForCausalLM._from_config(MusicgenDecoderConfig(**config), dtype=dtype)
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    missing = model.load_state_dict(tensors, strict=False, assign=True)
    assert not missing.unexpected_keys, missing
    model.eval()
    rows = steps.reshape(-1, steps.shape[2])  # [2 K, S]
    past = EncoderDecoderCache(DynamicCache(), DynamicCache())
    heard = {"encoder_hidden_states": text.tokens.to(dtype), "encoder_attention_mask": text.mask.long()}
    model(rows, past_key_values=past, use_cache=True, **heard)

    layers = past.self_attention_cache.layers
    full = [(layer.keys, layer.values) for layer in layers]

    def step(position: int) -> object:
        for layer, (keys, values) in zip(layers, full, strict=True):
            layer.keys, layer.values = keys[:, :, :position], values[:, :, :position]
        return model(rows[:, position : position + 1], past_key_values=past, use_cache=True, **heard).logits

    return Candidate(f"transformers-{str(dtype)[6:]}", num_bytes, step)


def candidates(lm: TokenLM, names: Sequence[str], num_frames: int) -> list[Candidate]:
    """Each with its cache filled by a clip of so many frames."""
    config = lm.config
    text = Condition(torch.randn(1, TEXT_TOKENS, config.dim), torch.ones(1, TEXT_TOKENS, dtype=torch.bool))
    text = stack([text, null(1, config.dim)])
    steps = torch.randint(0, config.codebook_size, (1, config.num_codebooks, num_frames)).repeat(2, 1, 1)
    skipped = sum(
        p.numel() for name, p in lm.named_parameters() if "text_proj" in name or "embedding" in name
    )
    num_weights = sum(p.numel() for p in lm.parameters()) - skipped
    made = []
    for name in names:
        print(f"preparing {name}", file=sys.stderr)
        kind, _, dtype = name.partition("-")
        if kind == "native":
            made.append(native_model(lm, text, steps, dtype))  # type: ignore[arg-type]
        else:
            make = pytorch_model if kind == "pytorch" else transformers_model
            torch_dtype = getattr(torch, dtype)
            made.append(make(lm, text, steps, torch_dtype, num_weights * torch_dtype.itemsize))
    return made


def bandwidth(memory: Tensor, num_threads: int) -> float:
    """Bytes per second that so many threads read from memory, in two passes the better."""
    library = native.library()
    if library is None:
        raise InputError("the bandwidth is measured by the native kernels: install g++ or clang++")
    team = native.Team(library, num_threads)
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        library.audiogen_read(ctypes.cast(memory.data_ptr(), ctypes.c_char_p), READ_BYTES, team.handle)
        times.append(time.perf_counter() - begin)
    return READ_BYTES / min(times)


def seconds(candidate: Candidate, first: int, count: int) -> float:
    """Of a step: the mean over `count` of them from position `first`, after one to warm up."""
    candidate.step(first)
    begin = time.perf_counter()
    for position in range(first, first + count):
        candidate.step(position)
    return (time.perf_counter() - begin) / count


def compare(models: Sequence[Candidate], num_threads: int, num_frames: int, count: int, rounds: int) -> None:
    """Measure in turns and print a table."""
    torch.set_num_threads(num_threads)
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    start: dict[str, list[float]] = {model.name: [] for model in models}
    end: dict[str, list[float]] = {model.name: [] for model in models}
    rates = []
    for _ in range(rounds):
        rates.append(bandwidth(memory, num_threads))
        for model in models:
            start[model.name].append(seconds(model, 0, count))
            end[model.name].append(seconds(model, num_frames - count, count))
    rate = statistics.median(rates)
    print(f"\n{num_threads} thread{'s'[: num_threads > 1]}; memory {rate / 1e9:.1f} GB/s")
    print(f"{'':22} frames/s  ms at start  at end  of bandwidth  times {models[0].name}")
    slowest = 0.0
    for model in models:
        first, last = statistics.median(start[model.name]), statistics.median(end[model.name])
        mean = (first + last) / 2
        slowest = slowest or mean
        share = model.num_bytes / mean / rate
        print(
            f"{model.name:22} {1 / mean:8.1f} {1e3 * first:12.2f} {1e3 * last:7.2f} {share:12.0%} {slowest / mean:7.2f}"
        )


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=250, help="length of the clip")
    parser.add_argument(
        "--steps", type=int, default=10, help="steps timed at the start and at the end, a round"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 1 <= args.steps < args.frames or args.rounds < 1 or min(args.threads) < 1:
        raise InputError("--steps is from 1 to below --frames; --rounds and --threads are at least 1")
    torch.manual_seed(args.seed)
    lm = TokenLM(SHAPES[args.shape]).eval()
    models = candidates(lm, args.models, args.frames)
    num_weights = sum(p.numel() for p in lm.parameters()) / 1e6
    print(f"{args.shape}: {num_weights:.0f} M parameters, a pair of rows, {args.frames} frames", end="")
    for num_threads in args.threads:
        compare(models, num_threads, args.frames, args.steps, args.rounds)


if __name__ == "__main__":
    sys.exit(run_command(main))
