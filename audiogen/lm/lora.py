"""Adapters (LoRA) of a language model: which matrices they are beside, and how they are stored.

config.json         kind lora; config: {"lora": LoraConfig, "base": the name the model was opened by}
model.safetensors   A and B of every adapted matrix, and `fingerprint`: samples of the base model's weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from audiogen import lora
from audiogen.adapters import KINDS, Adapter
from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.lm.model import TokenLM

KIND = KINDS[0]
TARGETS = ("in_proj", "query_proj", "text_proj", "out_proj", "ff_in", "ff_out")
FINGERPRINT = "fingerprint"


@dataclass(frozen=True)
class LoraConfig(lora.Rank):
    """Which matrices are adapted, and how.

    targets: in_proj (of self-attention), query_proj and text_proj (of cross-attention), out_proj (of both), ff_in,
    ff_out. A fused projection (queries, keys and values in one matrix) has one A for all its parts.
    """

    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        self.check(TARGETS)


def add(lm: TokenLM, config: LoraConfig) -> None:
    """Put new adapters beside the model's matrices, in place; from then on only they require gradients."""
    lora.add(lm, _targets(lm, config), config)


def _targets(lm: TokenLM, config: LoraConfig) -> list[str]:
    """Names of the layers that are adapted."""
    return [
        f"layers.{name}"
        for name, layer in lm.layers.named_modules()
        if isinstance(layer, nn.Linear) and name.rpartition(".")[2] in config.targets
    ]


def save_adapter(
    directory: str | Path,
    lm: TokenLM,
    config: LoraConfig,
    base: str,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters alone. base: the name that the model was opened by, for messages."""
    tensors = {**lora.adapter_state(lm), FINGERPRINT: lora.fingerprint(lm)}
    checkpoint.save_model(directory, KIND, {"lora": to_plain(config), "base": base}, tensors, info)


def load_adapters(lm: TokenLM, adapters: Sequence[Adapter]) -> None:
    """Add saved adapters to the weights of the model that they were trained on, in place; it may be of any dtype.

    InputError where it is another model, or they are damaged; the model is then as it was.
    """
    lora.add_updates(lm, [(_read(adapter.path, lm), adapter.weight) for adapter in adapters])


def _read(directory: Path, lm: TokenLM) -> dict[str, lora.Update]:
    contents = checkpoint.read_config(directory, KIND)
    if not {"lora", "base"} <= contents["config"].keys():
        raise InputError(f"{directory / 'config.json'} lacks config.lora or config.base; copy it again")
    config = build(LoraConfig, contents["config"]["lora"], where="lora")
    tensors = checkpoint.load_tensors(directory)
    stored = tensors.pop(FINGERPRINT, None)
    if stored is None:
        raise InputError(f"{directory} lacks the tensor {FINGERPRINT!r}; copy or train the adapter again")
    lora.check_model(stored, lm, directory, contents["config"]["base"])
    scale, where = config.alpha / config.rank, f"the adapter {directory}"
    return lora.read_updates(lm, _targets(lm, config), config.rank, scale, tensors, where)
