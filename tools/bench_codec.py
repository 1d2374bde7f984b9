"""How fast AudioGen's codec or a DAC encodes and decodes: by transformers and ours, the same weights.

    python tools/bench_codec.py
    python tools/bench_codec.py --shape dac --threads 1 --batch 1
    python tools/bench_codec.py --threads 1 --batch 1 --seconds 5 --models transformers-float32 packed-bfloat16
    python tools/bench_codec.py --device cuda --batch 1 16 --seconds 10 --models transformers-float32 plain-float32

Random weights. Models take turns, round by round, so that other work on the machine meets all of them; figures are the
medians over rounds. Memory is the peak of the process, or of the GPU, while a model runs once, above that before.
--json adds a line a model to a file.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.errors import InputError, run_command
from audiogen.models.export import encodec_parts

SHAPES: dict[str, CodecConfig | DacSizes] = {
    "audiogen": CodecConfig(),  # recipes/codec.yaml
    "dac": DacSizes(),  # descript/dac_16khz
    "tiny": CodecConfig(seanet=SeanetConfig(num_filters=4), latent_dim=8, codebook_size=16),
}
MODELS = (
    "transformers-float32",
    "transformers-bfloat16",
    "plain-float32",
    "packed-float32",
    "packed-bfloat16",
)


class Candidate(NamedTuple):
    """encode: audio [B, C, N] -> codes [B, K, T]; decode: the inverse."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


def transformers_model(codec: Codec | DacCodec, dtype: torch.dtype) -> Candidate:
    """EncodecModel or DacModel."""
    if isinstance(codec, DacCodec):
        dac = DacModel(DacConfig(**vars(codec.config)))
        dac.load_state_dict(codec.state_dict())
        dac.eval().to(dtype)
        return Candidate(
            f"transformers-{str(dtype)[6:]}",
            lambda audio: dac.encode(audio.to(dtype)).audio_codes,
            lambda codes: dac.decode(audio_codes=codes).audio_values[:, None],
        )
    config, tensors = encodec_parts(codec)
    model = EncodecModel(EncodecConfig(**{key: config[key] for key in config if key != "model_type"}))
    model.load_state_dict(tensors)
    model.eval().to(dtype)

    def encode(audio: Tensor) -> Tensor:
        return model.encode(audio.to(dtype), return_dict=True).audio_codes[0]

    def decode(codes: Tensor) -> Tensor:
        return model.decode(codes[None], [None], return_dict=True).audio_values

    return Candidate(f"transformers-{str(dtype)[6:]}", encode, decode)


def own_model(codec: Codec | DacCodec, name: str) -> Candidate:
    """Ours, by its plain layers or by packed weights."""
    kind, _, dtype = name.partition("-")
    twin: Any = type(codec)(codec.config)  # type: ignore[arg-type]  # that of its own kind
    twin.load_state_dict(codec.state_dict(), assign=True)
    twin.eval().requires_grad_(False)
    if kind == "packed":
        twin.freeze(getattr(torch, dtype))
    return Candidate(name, twin.encode, twin.decode)


def candidates(codec: Codec | DacCodec, names: Sequence[str]) -> list[Candidate]:
    """Those models, with the weights of `codec`."""
    return [
        transformers_model(codec, getattr(torch, name.partition("-")[2]))
        if name.startswith("transformers")
        else own_model(codec, name)
        for name in names
    ]


def random_codec(config: CodecConfig | DacSizes) -> Codec | DacCodec:
    """Random weights, and codewords about as large as its latents."""
    if isinstance(config, DacSizes):
        return DacCodec(config)
    codec = Codec(config).eval().requires_grad_(False)
    sound = torch.randn(
        1, config.channels, config.sample_rate, device=codec.quantizer.books[0].codewords.device
    )
    scale = codec.encoder(sound).std()
    for book in codec.quantizer.books:
        book.codewords.normal_(std=float(scale))
    return codec


def seconds(work: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of one run on x [B, ...], to its end."""
    begin = time.perf_counter()
    work(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def peak_mb(work: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Memory at its peak during one run on x [B, ...], above that before; NaN where the system does not report it."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        work(x)
        return (torch.cuda.max_memory_allocated() - held) / 2**20

    def read(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is allocated now
        before = read("VmRSS")
        work(x)
        return read("VmHWM") - before
    except OSError:
        return float("nan")


def compare(
    models: Sequence[Candidate], audio: Tensor, codes: Tensor, duration_s: float, rounds: int
) -> list[dict[str, object]]:
    """Measure in turns, print a table and return it."""
    times: dict[tuple[str, str], list[float]] = {}
    work = [(model, verb, x) for model in models for verb, x in (("encode", audio), ("decode", codes))]
    for model, verb, x in work:
        getattr(model, verb)(x)  # warms up, and packs
    for _ in range(rounds):
        for model, verb, x in work:
            times.setdefault((model.name, verb), []).append(seconds(getattr(model, verb), x))
    print(f"{'':22} {'encode: s/s':>12} {'times':>6} {'MB':>6} {'decode: s/s':>12} {'times':>6} {'MB':>6}")
    found = []
    for model in models:
        line, figures = f"{model.name:22}", {}
        for verb, x in (("encode", audio), ("decode", codes)):
            median = statistics.median(times[model.name, verb])
            ratio = statistics.median(times[models[0].name, verb]) / median
            memory = peak_mb(getattr(model, verb), x)
            figures[f"{verb}, s/s"] = len(audio) * duration_s / median
            figures |= {f"{verb}, times": ratio, f"{verb}, MB": memory}
            line += f" {len(audio) * duration_s / median:12.1f} {ratio:6.2f} {memory:6.0f}"
        print(line, flush=True)
        found.append({"model": model.name, "batch": len(audio), "seconds": duration_s} | figures)
    return found


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="audiogen")
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0, 0.5], help="of each clip")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="file to add lines of JSON to")
    args = parser.parse_args(argv)
    if min(*args.threads, *args.batch, args.rounds) < 1 or min(args.seconds) <= 0:
        raise InputError("--threads, --batch and --rounds are at least 1; --seconds are above 0")
    if args.device == "cuda" and (not torch.cuda.is_available() or any("packed" in n for n in args.models)):
        raise InputError("--device cuda needs a CUDA GPU, and models other than packed ones: see --models")
    torch.manual_seed(args.seed)
    with torch.device(args.device):
        codec = random_codec(SHAPES[args.shape])
        models = candidates(codec, args.models)
    num_weights = sum(p.numel() for p in codec.parameters()) / 1e6
    print(f"{args.shape}: {num_weights:.1f} M parameters; seconds of audio a second, times {models[0].name}")
    for threads, batch, duration_s in itertools.product(args.threads, args.batch, args.seconds):
        torch.set_num_threads(threads)
        audio = torch.randn(batch, codec.channels, round(duration_s * codec.sample_rate)).to(args.device) / 10
        print(f"\n{threads} thread{'s'[: threads > 1]}, {batch} x {duration_s:g} s")
        found = compare(models, audio, codec.encode(audio), duration_s, args.rounds)
        if args.json:
            with open(args.json, "a") as file:
                for each in found:
                    file.write(json.dumps({"bench": "codec", "threads": threads} | each) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
