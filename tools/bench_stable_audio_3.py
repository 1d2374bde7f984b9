"""Seconds that Stable Audio 3 Small takes for a clip on this CPU, at full size with random weights, part by part.

    python tools/bench_stable_audio_3.py --threads 1 2 --dtype float32 bfloat16 int8

The parts are timed within whole calls of `generate`, the least of `--runs` after one that is not counted: the text
(of 12 tokens, read anew each time), the transformer's steps, and the decoder. All take turns. `diffusers` is the same
by StableAudio3Pipeline with the same weights, its text encoded before; with bfloat16 its networks are cast.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_audio_3 import StableAudio3Pipeline

from audiogen.device import DTYPES
from audiogen.diffusion.systems import LatentSystem, released
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Sampling
from audiogen.models.systems import Released
from audiogen.text.encoder import FrozenEncoder, TextEncoder
from audiogen.text.gemma import GemmaShape, GemmaStack

TEXT_TOKENS = 12


class Numbers:
    """A tokenizer of made-up ids: only their number takes time."""

    eos_id, unk_id = 1, 3

    def encode(self, text: str) -> list[int]:
        """Ids, one for no text."""
        return list(range(2, 2 + TEXT_TOKENS)) if text else [2]


def random_system() -> LatentSystem:
    """At the release's sizes, all weights small random numbers."""
    stack = GemmaStack(GemmaShape())
    system = LatentSystem(
        released()["stable_audio_3"],
        frozen=FrozenEncoder(768, lambda: TextEncoder(stack, Numbers())),  # type: ignore[arg-type]
    )
    for module in (stack, system):
        for weight in module.parameters():
            weight.data.normal_(0, 0.02)
    return system.eval().requires_grad_(False)


def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """From now on the time in that method is added up."""
    call = getattr(owner, name)

    def run(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        found = call(*given, **named)
        spent[part] += time.perf_counter() - start
        return found

    setattr(owner, name, run)


Run = tuple[Callable[[], None], dict[str, float]]  # what is timed, and the seconds of its parts


def least(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of the whole and of its parts in the fastest round of each; they take turns, once more than counted."""
    best: dict[str, dict[str, float]] = {}
    for turn in range(rounds + 1):
        for name, (call, spent) in runs.items():
            spent.clear()
            start, cpu = time.perf_counter(), time.process_time()
            call()
            whole = time.perf_counter() - start
            if turn == 1 or (turn and whole < best[name]["whole"]):
                best[name] = {"whole": whole, **spent, "processor time": time.process_time() - cpu}
    return best


def ours(system: LatentSystem, dtype: str, args: argparse.Namespace) -> Run:
    """By `LatentGenerator.generate`, with the same weights in memory and copies in its number type."""
    text = system.conditioner.text
    assert text is not None
    twin = LatentSystem(system.config, frozen=text.frozen)
    twin.load_state_dict(system.state_dict(), assign=True)
    twin = twin.eval().requires_grad_(False)
    model = LatentGenerator(Released(twin, "stable_audio_3", {}), "cpu", dtype)
    spent: dict[str, float] = defaultdict(float)
    timed(model, "_conditioning", spent, "text")
    timed(model, "_denoise", spent, "transformer")
    timed(model, "_decode", spent, "decoder")

    def call() -> None:
        text: Any = twin.conditioner.text
        text.frozen.cache._entries.clear()
        model.generate(["a dog barks"], args.seconds, sampling=Sampling(steps=args.steps))

    return call, spent


def theirs(system: LatentSystem, dtype: str, args: argparse.Namespace) -> Run:
    """By diffusers, with copies of the weights."""
    config = system.config
    vae = diffusers.AutoencoderSAME()
    vae.load_state_dict(system.autoencoder.vae.state_dict())
    dit = diffusers.StableAudio3DiTModel(**dict(system.denoiser.network.config))
    dit.load_state_dict(system.denoiser.network.state_dict())
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, stochastic_sampling=True)
    seconds = copy.deepcopy(system.conditioner.seconds)
    parts = [each.to(DTYPES[dtype]).eval() for each in (vae, seconds, dit)]
    pipe = StableAudio3Pipeline(parts[0], None, None, *parts[1:], scheduler)
    pipe.set_progress_bar_config(disable=True)
    tokens = torch.randn(1, config.conditioner.text_length or 1, 768, dtype=DTYPES[dtype])
    mask = torch.arange(tokens.shape[1])[None] < TEXT_TOKENS
    spent: dict[str, float] = defaultdict(float)
    timed(dit, "forward", spent, "transformer")
    timed(vae, "decode", spent, "decoder")

    def call() -> None:
        pipe(
            prompt_embeds=tokens,
            encoder_attention_mask=mask.long(),
            duration=args.seconds,
            num_inference_steps=args.steps,
        )

    return call, spent


def main() -> None:
    """Print a line for each engine, number type and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=[*DTYPES, "int8"])
    parser.add_argument("--engines", nargs="+", default=["ours", "diffusers"], choices=["ours", "diffusers"])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    diffusers.logging.set_verbosity_error()
    torch.manual_seed(0)
    system = random_system()
    runs = {
        f"{engine} {dtype}": {"ours": ours, "diffusers": theirs}[engine](system, dtype, args)
        for dtype in args.dtype
        for engine in args.engines
        if engine == "ours" or dtype in DTYPES
    }
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name, found in least(runs, args.runs).items():
            parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in found.items())
            print(f"{name} {threads} threads: {parts}", flush=True)


if __name__ == "__main__":
    main()
