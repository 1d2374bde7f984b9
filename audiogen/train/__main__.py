"""Train a codec, language model or latent diffusion: `python -m audiogen.train recipe=lm_tiny data.train=sounds/`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from audiogen.config import build, did_you_mean, load_recipe, plain, recipe_names, to_plain, to_yaml
from audiogen.errors import InputError, run_command

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, build the recipe, prepare the task, fit."""
    parser = argparse.ArgumentParser(
        prog="python -m audiogen.train",
        description="Train from a recipe; the run directory (out=) is a model directory that generate and codec take.",
        epilog=f"built-in recipes: {', '.join(recipe_names())}",
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME or recipe=PATH.yaml, and changes to it: fit.steps=1000 data.train=sounds/ out=runs/mine",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="show the resolved recipe and train nothing"
    )
    arguments = parser.parse_args(argv)

    name, overrides = split_settings(arguments.settings)
    node = load_recipe(name, overrides)
    module, recipe_class = task_of(str(node.get("task")))
    recipe: Any = build(recipe_class, normalise(node, module, overrides))
    if arguments.print_config:
        print(to_yaml(recipe), end="")
        return 0
    return train(recipe, module)


def split_settings(settings: Sequence[str]) -> tuple[str, list[str]]:
    """`recipe=NAME` and the other settings."""
    names = [setting.partition("=")[2] for setting in settings if setting.startswith("recipe=")]
    if len(names) != 1 or not names[0]:
        raise InputError(
            f"give one recipe=NAME or recipe=PATH.yaml; built-in recipes: {', '.join(recipe_names())}"
        )
    return names[0], [setting for setting in settings if not setting.startswith("recipe=")]


def task_of(name: str) -> tuple[Any, type]:
    """The module that implements a recipe's `task:`, and its recipe dataclass."""
    if name == "codec":
        from audiogen.train import codec

        return codec, codec.CodecRecipe
    if name == "lm":
        from audiogen.train import lm

        return lm, lm.LMRecipe
    if name == "tagger":
        from audiogen.train import tagger

        return tagger, tagger.TaggerRecipe
    if name == "autoencoder":
        from audiogen.train import autoencoder

        return autoencoder, autoencoder.AutoencoderRecipe
    if name == "diffusion":
        from audiogen.train import diffusion

        return diffusion, diffusion.DiffusionRecipe
    if name == "clap":
        from audiogen.train import clap

        return clap, clap.ClapRecipe
    tasks = ["autoencoder", "clap", "codec", "diffusion", "lm", "tagger"]
    raise InputError(f"task: got {name!r}; {did_you_mean(name, tasks)}")


def normalise(node: DictConfig, module: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe as plain values: sources of data spelled out, the architecture of `init_from` filled in."""
    from audiogen.data.dataset import parse_sources

    values = plain(node)
    if isinstance(values.get("data"), dict):
        for key in ("train", "valid"):
            if key in values["data"]:
                values["data"][key] = parse_sources(values["data"][key])
    if values.get("init_from"):
        fixed = [text for text in overrides if re.split(r"[.=\[]", text)[0] in module.INHERITED]
        if fixed:
            raise InputError(
                f"{fixed[0]}: init_from={values['init_from']} decides the architecture; leave one out"
            )
        values |= module.inherit(values)
    return values


def train(recipe: Any, module: Any) -> int:
    """Run a recipe in its run directory, which is left with the recipe, the log, checkpoints and the model."""
    from pathlib import Path

    from audiogen import distributed
    from audiogen.data.loader import AudioLoader, valid_batches
    from audiogen.device import choose_device
    from audiogen.train.loop import fit

    settings, run = recipe.fit, Path(recipe.out)
    device = choose_device(settings.device)
    distributed.initialize(device)
    try:
        task, data, valid_data, collate = module.prepare(recipe, run, device)
        if distributed.rank() == 0:
            record(recipe, run)
        loader = AudioLoader(
            data,
            settings.batch_size,
            recipe.seed,
            distributed.rank(),
            distributed.world(),
            settings.workers,
            collate,
        )

        def valid() -> Any:
            return valid_batches(valid_data, settings.batch_size, settings.valid_batches, collate)

        info = {"recipe": to_plain(recipe)}
        fit(task, loader, valid if valid_data else None, settings, run, recipe.seed, recipe.resume, info)
        if loader.skipped:
            print(f"{len(loader.unreadable)} clips could not be read and were left out", file=sys.stderr)
    finally:
        distributed.shutdown()
    return 0


def record(recipe: Any, run: Path) -> None:
    """Write `recipe.yaml` and `run.json` (versions, machine); say what differs from the recipe that began the run."""
    import platform

    import torch
    from omegaconf import OmegaConf

    from audiogen import __version__
    from audiogen.files.checkpoint import write_bytes_atomic, write_json

    path = run / "recipe.yaml"
    if path.exists():
        before, now = flatten(OmegaConf.to_container(OmegaConf.load(path))), flatten(to_plain(recipe))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                print(f"{run}: {key} was {before.get(key)}, is now {now.get(key)}", file=sys.stderr)
    write_bytes_atomic(path, to_yaml(recipe).encode())
    versions = {"audiogen": __version__, "python": platform.python_version(), "torch": torch.__version__}
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    write_json(run / "run.json", {"versions": versions, "machine": machine, "seed": recipe.seed})


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        path: value
        for key, item in node.items()
        for path, value in flatten(item, f"{prefix}.{key}" if prefix else str(key)).items()
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
