"""A latent-diffusion system from files: what a reader of a format finds, and building the system of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from audiogen.config import build
from audiogen.diffusion.conditioners import ConditionerConfig
from audiogen.diffusion.process import process_of
from audiogen.diffusion.sample import Sampling
from audiogen.diffusion.systems import LatentSystem, SystemConfig
from audiogen.files.tensors import Source, check_sizes, empty, fill
from audiogen.models.settings import Settings, table
from audiogen.text.clap import Clap
from audiogen.text.encoder import FrozenEncoder

# AudioLDM's releases have diffusers' other UNet, with more settings than ours; of these, what is usual is implemented.
_UNET_DEFAULTS = {
    key: parameter.default for key, parameter in signature(UNet2DConditionModel).parameters.items()
}


class Component(NamedTuple):
    """The weights of one part of a system, and how they are named in their file; the fields are those of `fill`.

    part: the module by its name in a `LatentSystem`. settings: those of a class of diffusers or transformers; what they
    say has to be what ours has, but for `free`.
    """

    part: str
    tensors: Mapping[str, Tensor]
    where: Path
    source: Callable[[str], str | Source] = str
    own: Mapping[str, Tensor] | None = None
    ignore: tuple[str, ...] = ()
    settings: Settings | None = None
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class SystemParts:
    """What the files of a system say, with its weights still in them.

    name: of its kind, as `process.PROCESSES` has them. process: what the files say of its process, by the names of
    `process.ProcessConfig`. heads_from: where the numbers of attention heads are from, if there is a choice. notes:
    what else was chosen, a line each. sampling: that of the recipe that trained it; None is as its authors do.
    window_s: the length that is always generated, and cut from; None is the length that is asked for. where: the files,
    for messages. vocabulary, frozen, clap: as in `LatentSystem`.
    """

    config: SystemConfig
    components: list[Component]
    where: Path
    name: str
    process: Mapping[str, Any] = field(default_factory=dict)
    heads_from: str = ""
    notes: tuple[str, ...] = ()
    sampling: Sampling | None = None
    window_s: float | None = None
    vocabulary: bytes | None = None
    frozen: FrozenEncoder | None = None
    clap: Clap | None = None


@dataclass(frozen=True)
class Released:
    """A system in evaluation mode, float32; the other fields are those of `SystemParts`."""

    system: LatentSystem
    name: str
    process: dict[str, Any]
    notes: tuple[str, ...] = ()
    sampling: Sampling | None = None
    window_s: float | None = None


def build_system(parts: SystemParts) -> Released:
    """The system with its weights. Settings, sizes, names and shapes are checked before anything is allocated."""
    system = without_weights(parts)
    for part in parts.components:
        module = system.get_submodule(part.part)
        fill(module, part.tensors, part.source, part.where, own=part.own, ignore=part.ignore)
    system.autoencoder.scale_factor = torch.tensor(parts.config.autoencoder.scale_factor)
    notes = parts.notes
    if parts.heads_from:
        notes = (f"attention heads {system.denoiser.config.heads}: {parts.heads_from}", *notes)
    return Released(system.eval(), parts.name, dict(parts.process), notes, parts.sampling, parts.window_s)


def conditioner_config(name: str, **sizes: Any) -> ConditionerConfig:
    """How systems of a kind are conditioned, with the encoders and sizes that one's files say."""
    return build(ConditionerConfig, table(f"conditioner.{name}") | sizes)


def without_weights(parts: SystemParts) -> LatentSystem:
    """The system on the meta device; InputError where its settings or sizes are none of ours."""
    config, where = parts.config, parts.where
    process_of(parts.name, parts.process, str(where))  # which refuses values that make no process
    check_sizes(where, config)
    num_tensors = sum(len(component.tensors) for component in parts.components)
    system = empty(
        lambda: LatentSystem(config, parts.vocabulary, parts.frozen, parts.clap), where, num_tensors
    )
    compare_settings(parts, system)
    return system


def compare_settings(parts: SystemParts, system: LatentSystem) -> None:
    """Refuse settings of the files' components that are not those of the networks in the system that was made."""
    for component in parts.components:
        if component.settings is not None:
            _compare(component.settings, system.get_submodule(component.part), component.free)


def _compare(settings: Settings, module: Any, free: tuple[str, ...]) -> None:
    """Refuse each setting of a component of diffusers or transformers that differs from that of our network."""
    found = module.config
    built = _UNET_DEFAULTS | dict(found.to_dict() if hasattr(found, "to_dict") else found)
    # The second is the class of AudioLDM's UNet, which computes the same.
    kinds = [type(module).__name__, "UNet2DConditionModel"]
    settings = Settings(settings.contents, settings.where)  # what was read is compared as well
    settings.choice("_class_name", kinds, kinds[0])
    for key, value in settings.contents.items():
        if key in free or _plain(value) == _plain(built.get(key)):
            settings.take(key)
    settings.done(table("diffusers.harmless"))


def _plain(value: Any) -> Any:
    """Tuples as lists, as in JSON; true is no 1."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return (value,) if isinstance(value, bool) else value
