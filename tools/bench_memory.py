"""How much memory a language model takes, opened and decoding, each way to run it in a process of its own.

    python tools/bench_memory.py --shape medium --models native-bfloat16 native-int8 transformers-float32

Random weights, made a few rows at a time, as a file gives them. What is printed is the peak of resident memory less
what the process held after its imports, beside the bytes of the weights in their number type. Linux only.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from bench_generate import MODELS, SHAPES
from torch import Tensor

from audiogen.errors import InputError, run_command
from audiogen.files.tensors import unfilled
from audiogen.lm.kernels import native, packed
from audiogen.lm.model import ROWS, LMConfig, TokenLM
from audiogen.native import library

NUM_STEPS = 8
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def peak_bytes() -> int:
    """The most that was resident in this process so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def decode(config: LMConfig, kind: str, dtype: str) -> None:
    """Open one model with random weights and take some steps with it, a pair of rows."""
    with unfilled():
        skeleton = TokenLM(config).eval()

    def read(name: str) -> Iterator[Tensor]:
        shape = skeleton.get_parameter(name).shape
        for first in range(0, shape[0], ROWS):
            yield torch.randn(min(ROWS, shape[0] - first), *shape[1:]) * 0.02

    steps = torch.zeros(2, config.num_codebooks, 1, dtype=torch.int64)
    if kind == "transformers":
        from transformers import MusicgenForCausalLM
        from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

        from audiogen.models.export import decoder_parts

        settings, _ = decoder_parts(skeleton)
        model = MusicgenForCausalLM._from_config(
            MusicgenDecoderConfig(**settings), dtype=getattr(torch, dtype)
        ).eval()
        past = None
        for _ in range(NUM_STEPS):
            past = model(steps.flatten(0, 1), past_key_values=past, use_cache=True).past_key_values
        return
    if kind == "pytorch":
        lm = TokenLM(config).to(getattr(torch, dtype)).eval()
    elif kind == "packed":
        lm = packed.PackedLM(skeleton, dtype, read)  # type: ignore[assignment]
    else:
        lm = native.NativeLM(skeleton, dtype, read=read)  # type: ignore[assignment]
    cache = lm.new_cache(None, 2, NUM_STEPS)
    for _ in range(NUM_STEPS):
        lm.step(steps, cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, or with --alone the line of one model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--models", choices=MODELS["cpu"], nargs="+", default=list(MODELS["cpu"]))
    parser.add_argument("--alone", action="store_true", help="in this process, the first of --models")
    arguments = parser.parse_args(argv)
    config = SHAPES[arguments.shape]
    if not Path("/proc/self/status").exists():
        raise InputError("the peak of memory is read from /proc/self/status, which this system lacks")
    if not arguments.alone:
        with torch.device("meta"):
            count = sum(weight.numel() for weight in TokenLM(config).parameters())
        print(f"{arguments.shape}: {count / 1e6:.0f} M weights")
        for name in arguments.models:
            command = [sys.executable, __file__, "--shape", arguments.shape, "--alone", "--models", name]
            run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            peak, weights = int(run.stdout), count * BYTES[name.partition("-")[2]]
            print(f"{name:22} {peak / 1e6:9,.0f} MB, {peak / weights:.2f} times the weights")
        return 0
    library.library()
    before = peak_bytes()
    kind, _, dtype = arguments.models[0].partition("-")
    with torch.inference_mode():
        decode(config, kind, dtype)
    print(peak_bytes() - before)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
