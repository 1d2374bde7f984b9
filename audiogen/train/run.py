"""From settings on the command line to a finished run directory."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from audiogen import __version__, distributed
from audiogen.config import (
    build,
    did_you_mean,
    flatten,
    load_recipe,
    plain,
    recipe_names,
    short,
    to_plain,
    to_yaml,
)
from audiogen.data.dataset import parse_sources
from audiogen.device import choose_device
from audiogen.errors import InputError
from audiogen.files import hub, writing
from audiogen.files.locks import only_writer
from audiogen.train.loop import fit
from audiogen.train.task import Run

RUN = "run.json"
# Recipes' `task:` -> the recipe's class, in the module of the task's name.
TASKS = {
    "autoencoder": "AutoencoderRecipe",
    "clap": "ClapRecipe",
    "codec": "CodecRecipe",
    "diffusion": "DiffusionRecipe",
    "distil": "DistilRecipe",
    "latent_lora": "LatentLoraRecipe",
    "lm": "LMRecipe",
    "tagger": "TaggerRecipe",
}


def run(settings: Sequence[str], print_config: bool = False) -> int:
    """Build the recipe from `recipe=NAME` and `a.b=value` settings; train in its run directory, or print it.

    The directory then holds the recipe, the log, checkpoints and the model.
    """
    recipe = open_recipe(*split_settings(settings))
    if print_config:
        print(to_yaml(recipe), end="")
        return 0
    device = choose_device(recipe.fit.device)
    if recipe.fit.precision == "float16" and device.type == "cpu":
        raise InputError("fit.precision=float16 needs a GPU; on a CPU use bfloat16 or float32")
    distributed.initialize(device, recipe.fit.timeout_s)
    first = distributed.rank() == 0
    try:
        with distributed.together(), only_writer(recipe.out) if first else nullcontext():
            distributed.agree(
                {"audiogen": __version__, "torch": torch.__version__, "the recipe": to_yaml(recipe)}
            )
            task, data = recipe.prepare(device)
            if first:
                record(task.recipe)
            fit(task, data, task.recipe)
            distributed.barrier()  # the first process holds the store that the others still ask
    finally:
        distributed.shutdown()
    return 0


def split_settings(settings: Sequence[str]) -> tuple[str, list[str]]:
    """`recipe=NAME` and the other settings."""
    names = [setting.partition("=")[2] for setting in settings if setting.startswith("recipe=")]
    if len(names) != 1 or not names[0]:
        raise InputError(
            f"give one recipe=NAME or recipe=PATH.yaml; built-in recipes: {', '.join(recipe_names())}"
        )
    return names[0], [setting for setting in settings if not setting.startswith("recipe=")]


def open_recipe(name: str, overrides: Sequence[str] = ()) -> Any:
    """A recipe with `a.b=value` settings, as the dataclass of its task."""
    node = load_recipe(name, overrides)
    task = str(node.get("task"))
    if task not in TASKS:
        raise InputError(f"task: got {short(task)}; {did_you_mean(task, TASKS)}")
    cls: type[Run] = getattr(import_module(f"audiogen.train.{task}"), TASKS[task])
    if (begun := Path(str(node.get("out")), RUN)).is_file():
        hub.keep(begun)  # a run goes on with the models it began with, where the hub has newer ones by now
    # As plain values: sources of data spelled out, the architecture of `init_from` filled in.
    values = plain(node)
    if isinstance(values.get("data"), dict):
        for key in ("train", "valid"):
            if key in values["data"]:
                values["data"][key] = parse_sources(values["data"][key])
    # what is no text, `build` refuses
    if values.get("init_from") and all(
        isinstance(values.get(key, ""), str | None) for key in ("init_from", "text_encoder")
    ):
        inherited = cls.inherit(values)
        fixed = [text for text in overrides if re.split(r"[.=\[]", text)[0] in inherited]
        if fixed:
            raise InputError(
                f"{fixed[0]}: init_from={values['init_from']} decides the architecture; leave one out"
            )
        values |= inherited
    before, completed = flatten(values), cls.complete(values)
    for override in overrides:
        decided = flatten(completed).get(key := override.partition("=")[0])
        if decided is not None and decided != before.get(key):
            raise InputError(
                f"{override}: model.backbone decides this, it is {short(decided)}; leave one out"
            )
    return build(cls, values | completed)


def record(recipe: Run) -> None:
    """Write `recipe.yaml` and `run.json` (versions, machine, commits of the hub's models).

    What differs from the recipe that began the run is said.
    """
    out = Path(recipe.out)
    path = out / "recipe.yaml"
    if path.exists():
        before, now = flatten(OmegaConf.to_container(OmegaConf.load(path))), flatten(to_plain(recipe))
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                print(f"{out}: {key} was {before.get(key)}, is now {now.get(key)}", file=sys.stderr)
    writing.write_bytes_atomic(path, to_yaml(recipe).encode())
    versions = {"audiogen": __version__, "python": platform.python_version(), "torch": torch.__version__}
    machine = {"platform": platform.platform(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    facts = {"versions": versions, "machine": machine, "seed": recipe.seed, "hub": hub.commits()}
    writing.write_json(out / RUN, facts)
