"""How fast latent systems denoise and decode on a CPU: the same networks by diffusers' modules and by ours.

    python tools/bench_latent.py
    python tools/bench_latent.py --recipes audioldm stable_audio --threads 1 2 --seconds 5 --rounds 3
    python tools/bench_latent.py --recipes lafma_tiny --models diffusers-float32 ours-float32 ours-bfloat16

Random weights, the sizes of the recipes; the same weights for all. A step is one evaluation of the denoiser with
guidance, a pair of rows; decode is latents to samples, vocoder included. A sound of n steps takes n times the one and
once the other; the text's encoder is the same for all and left out. Models take turns, round by round, so that other
work on the machine meets all of them; figures are the least processor time over rounds, in seconds, and how often it
fits the first model's. --json adds a line a model to a file.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from torch import Tensor, nn

from audiogen.config import build, load_recipe, plain
from audiogen.diffusion.autoencoders import LatentAutoencoder, MelAutoencoder
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.denoisers import Denoiser, denoiser
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.errors import InputError, run_command
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Condition
from audiogen.models.systems import Released

DEFAULT = ("diffusers-float32", "diffusers-bfloat16", "ours-float32", "ours-bfloat16")
MODELS = (*DEFAULT, "ours-int8")
TOKENS = 64  # of each stream that the denoiser attends to


class Candidate(NamedTuple):
    """step: x_t [2, ...], conditioning of two rows -> prediction; decode: latents [1, ...] -> audio [C, N]."""

    name: str
    step: Callable[[Tensor, Conditioning], Tensor]
    decode: Callable[[Tensor], Tensor]


def diffusers_model(system: LatentSystem, time_scale: float, dtype: torch.dtype) -> Candidate:
    """The networks as diffusers and transformers have them, their weights in `dtype`."""
    network = _copy(system.denoiser, denoiser(system.config.denoiser)).to(dtype)
    autoencoder = system.autoencoder
    vae = autoencoder.vae
    if not isinstance(autoencoder, MelAutoencoder):
        vae = _copy(vae, AutoencoderOobleck.from_config(vae.config))
    else:
        vae = _copy(vae, type(vae).from_config(vae.config))
    vae = vae.to(dtype)
    vocoder = getattr(autoencoder, "vocoder", None)
    if vocoder is not None:
        vocoder = _copy(vocoder, type(vocoder)(vocoder.config)).to(dtype)

    def step(x_t: Tensor, given: Conditioning) -> Tensor:
        times = torch.full((len(x_t),), 0.5 * time_scale)
        return network(
            x_t.to(dtype), times.to(dtype), given._map(lambda t: t.to(dtype) if t.is_floating_point() else t)
        )

    def decode(latents: Tensor) -> Tensor:
        made = vae.decode((latents / autoencoder.scale_factor).to(dtype)).sample
        if vocoder is not None:
            return vocoder(made[:, 0]).float()
        return autoencoder.synthesise(made.float())[0]

    return Candidate(f"diffusers-{str(dtype)[6:]}", step, decode)


def own_model(system: LatentSystem, name: str, time_scale: float, dtype: torch.dtype) -> Candidate:
    """A generator's, which packs weights where that pays."""
    twin = _copy(system, LatentSystem(system.config))
    generator = LatentGenerator(Released(twin, name, {}), "cpu", str(dtype)[6:])
    generator._pack()

    def step(x_t: Tensor, given: Conditioning) -> Tensor:
        return generator._denoise(x_t, torch.full((len(x_t),), 0.5 * time_scale), given)

    return Candidate(f"ours-{str(dtype)[6:]}", step, generator._decode)


def _copy(source: nn.Module, target: Any) -> Any:
    """A second module with the weights of the first, shared in memory until they change."""
    target.load_state_dict(source.state_dict(), assign=True)
    return target.eval().requires_grad_(False)


def candidates(system: LatentSystem, name: str, names: Sequence[str]) -> list[Candidate]:
    """Those models, with the weights of `system`. name: of its process, as in `Released`."""
    found = []
    scale = 999.0 if "unet" in type(system.denoiser).__name__.lower() else 1.0
    for each in names:
        kind, _, dtype = each.partition("-")
        if kind == "ours":
            found.append(own_model(system, name, scale, getattr(torch, dtype)))
        else:
            found.append(diffusers_model(system, scale, getattr(torch, dtype)))
    return found


def random_system(recipe: str) -> tuple[LatentSystem, str]:
    """One of the recipe's sizes, and its process as in `Released`. Its text encoder is one that nobody opens."""
    contents = plain(load_recipe(recipe))
    if contents.get("system") is None:
        raise InputError(f"recipe {recipe} is not of a latent system with sizes; audioldm is one")
    if text := contents["system"]["conditioner"]["text"]:
        text |= {"encoder": "t5-small", "trainable": False, "stored": False}
    system = LatentSystem(build(SystemConfig, contents["system"], recipe))
    return system.eval().requires_grad_(False), contents["kind"]


def random_inputs(
    denoise: Denoiser, autoencoder: LatentAutoencoder, duration_s: float
) -> tuple[Tensor, Conditioning]:
    """Latents [1, ...] of a sound, frames a multiple of 8 for UNets, and a conditioning of two rows."""
    depth, frames, *bins = autoencoder.latent_shape(duration_s)
    vector, config = denoise.config.vector_dim, denoise.config
    streams = tuple(
        Condition(torch.randn(2, TOKENS, width), torch.ones(2, TOKENS, dtype=torch.bool))
        for width in config.cross_dims
    )
    latents = torch.randn(1, depth, -(-frames // 8) * 8, *bins)
    return latents, Conditioning(streams, None if vector is None else torch.randn(2, vector))


def compare(
    models: Sequence[Candidate], latents: Tensor, given: Conditioning, rounds: int
) -> list[dict[str, object]]:
    """Measure in turns, print a table and return it."""
    pair = torch.cat([latents, latents])
    work: list[tuple[str, str, Callable[[], Tensor]]] = []
    for model in models:
        work.append((model.name, "step", partial(model.step, pair, given)))
        work.append((model.name, "decode", partial(model.decode, latents)))
    least: dict[tuple[str, str], float] = {}
    for turn in range(rounds + 1):  # the first warms up
        for name, verb, run in work:
            begin = time.process_time()
            run()
            took = time.process_time() - begin
            if turn:
                least[name, verb] = min(took, least.get((name, verb), took))
    print(f"{'':20} {'step, s':>9} {'times':>6} {'decode, s':>10} {'times':>6}")
    found = []
    for model in models:
        step, decode = least[model.name, "step"], least[model.name, "decode"]
        ratios = [least[models[0].name, verb] / least[model.name, verb] for verb in ("step", "decode")]
        print(f"{model.name:20} {step:9.3f} {ratios[0]:6.2f} {decode:10.3f} {ratios[1]:6.2f}", flush=True)
        found.append({"model": model.name, "step, s": step, "decode, s": decode, "times": ratios})
    return found


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["audioldm", "stable_audio"])
    parser.add_argument("--models", choices=MODELS, nargs="+", default=list(DEFAULT))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0], help="of the sound")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file to add lines of JSON to")
    args = parser.parse_args(argv)
    if min(*args.threads, args.rounds) < 1 or min(args.seconds) <= 0:
        raise InputError("--threads and --rounds are at least 1; --seconds are above 0")
    for recipe in args.recipes:
        torch.manual_seed(args.seed)
        system, name = random_system(recipe)
        models = candidates(system, name, args.models)
        millions = sum(each.numel() for each in system.denoiser.parameters()) / 1e6
        print(f"{recipe}: denoiser of {millions:.0f} M parameters; times {models[0].name}")
        for threads, duration_s in itertools.product(args.threads, args.seconds):
            torch.set_num_threads(threads)
            print(f"\n{threads} thread{'s'[: threads > 1]}, {duration_s:g} s")
            latents, given = random_inputs(system.denoiser, system.autoencoder, duration_s)
            found = compare(models, latents, given, args.rounds)
            if args.json:
                with open(args.json, "a") as file:
                    for each in found:
                        about = {
                            "bench": "latent",
                            "recipe": recipe,
                            "threads": threads,
                            "seconds": duration_s,
                        }
                        file.write(json.dumps(about | each) + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
