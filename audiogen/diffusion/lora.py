"""Adapters (LoRA) of a denoiser, stored alone in the layout that diffusers and PEFT read.

pytorch_lora_weights.safetensors   NETWORK.LAYER.lora_A.weight [r, in] and lora_B.weight [out, r], whose product is the
                                   update: alpha / r is in lora_B, as readers assume who find no alpha
fingerprint.safetensors            samples of the base model's weights
config.json                        kind latent_lora; config: {"lora": LatentLoraConfig, "base": the system's name}

NETWORK is unet or transformer. A file of these tensors alone, as others train them, is read as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from audiogen import lora
from audiogen.adapters import KINDS, Adapter
from audiogen.config import build, to_plain
from audiogen.diffusion.denoisers import AudioUNet, TextUNet
from audiogen.diffusion.network import Denoiser
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.packed import pack

KIND = KINDS[1]
WEIGHTS, FINGERPRINT = "pytorch_lora_weights.safetensors", "fingerprint.safetensors"
# Names of layers in diffusers' networks: those of attention (add_*, to_add_out: of the text in a FLUX block), and the
# two matrices between them (proj_*: of a FLUX block in which text and latents are mixed).
TARGETS = {
    "attention": re.compile(r"\.(to_(q|k|v|qkv|kv)|to_out(\.0)?|add_[qkv]_proj|to_add_out)$"),
    "feed_forward": re.compile(
        r"\.ff(_context)?\.(net\.(0\.proj|2)|proj_in|proj_out)$|^single_transformer_blocks\.\d+\.proj_(mlp|out)$"
    ),
}
# The parts of an adapter in a file, under the names of PEFT and those of older files.
PARTS = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
}
METADATA = "lora_adapter_metadata"  # of the file's header, as diffusers writes it: JSON with r and lora_alpha


@dataclass(frozen=True)
class LatentLoraConfig(lora.Rank):
    """Which matrices of the denoiser are adapted, and how. targets: attention (self and cross), feed_forward."""

    targets: tuple[str, ...] = tuple(TARGETS)

    def __post_init__(self) -> None:
        self.check(TARGETS)


def add(denoiser: Denoiser, config: LatentLoraConfig) -> None:
    """Put new adapters beside the network's matrices, in place; from then on only they require gradients."""
    lora.add(denoiser.network, _targets(denoiser, config), config)


def _targets(denoiser: Denoiser, config: LatentLoraConfig) -> list[str]:
    """Names of the network's layers that are adapted; InputError where there are none."""
    names = [
        name
        for name, layer in denoiser.network.named_modules()
        if isinstance(layer, nn.Linear) and any(TARGETS[target].search(name) for target in config.targets)
    ]
    if not names:
        raise InputError(
            f"lora.targets is {list(config.targets)}, of which this denoiser has none; choose others"
        )
    return names


def save_adapter(
    directory: str | Path,
    denoiser: Denoiser,
    config: LatentLoraConfig,
    base: str,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write the adapters alone. base: the name that the system was opened by, for messages."""
    prefix = "unet" if isinstance(denoiser, (AudioUNet, TextUNet)) else "transformer"
    directory, tensors = Path(directory), {}
    for name, tensor in lora.adapter_state(denoiser.network).items():
        layer, _, part = name.rpartition(".")
        if part == "down":
            tensors[f"{prefix}.{layer}.lora_A.weight"] = tensor
        else:
            tensors[f"{prefix}.{layer}.lora_B.weight"] = config.alpha / config.rank * tensor
    checkpoint.write_tensors(directory / WEIGHTS, tensors, {"format": "pt"})
    checkpoint.write_tensors(directory / FINGERPRINT, {"fingerprint": lora.fingerprint(denoiser.network)})
    checkpoint.save_config(directory, KIND, {"lora": to_plain(config), "base": base}, info)


def load_adapters(denoiser: Denoiser, adapters: Sequence[Adapter]) -> None:
    """Add saved adapters to the weights of the denoiser that they were trained on, in place.

    Each is a directory of `save_adapter`, or a file in the layout of diffusers, or a directory with it. InputError
    where it is of another system, or damaged; the denoiser is then as it was.
    """
    lora.add_updates(
        denoiser.network, [(_read(adapter.path, denoiser), adapter.weight) for adapter in adapters]
    )
    pack(denoiser, None)  # copies of the weights that were


def _read(path: Path, denoiser: Denoiser) -> dict[str, lora.Update]:
    network, where = denoiser.network, f"the adapter {path}"
    if path.is_file() or not (path / "config.json").is_file():
        file = path / WEIGHTS if path.is_dir() else path
        if not file.is_file():
            raise InputError(f"{path} holds no adapter: there is no {WEIGHTS} and no config.json in it")
        return _foreign(file, network, where)
    contents = checkpoint.read_config(path, KIND, WEIGHTS)
    if not {"lora", "base"} <= contents["config"].keys():
        raise InputError(f"{path / 'config.json'} lacks config.lora or config.base; copy it again")
    config = build(LatentLoraConfig, contents["config"]["lora"], where="lora")
    stored = checkpoint.read_tensors(path / FINGERPRINT).get("fingerprint")
    if stored is None:
        raise InputError(
            f"{path / FINGERPRINT} lacks the tensor 'fingerprint'; copy or train the adapter again"
        )
    lora.check_model(stored, network, path, contents["config"]["base"])
    tensors, _ = _named(checkpoint.read_tensors(path / WEIGHTS), where)
    return lora.read_updates(network, _targets(denoiser, config), config.rank, 1.0, tensors, where)


def _named(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A file's tensors as "LAYER.down" and "LAYER.up", and the alphas of layers that have one."""
    found, alphas = {}, {}
    for name, tensor in tensors.items():
        layer = re.sub(r"^(unet|transformer)\.", "", name)
        ending = next((ending for ending in PARTS if layer.endswith(ending)), None)
        if layer.endswith(".alpha") and tensor.numel() == 1:
            alphas[layer.removesuffix(".alpha")] = float(tensor)
        elif ending is None:
            raise InputError(f"{where} has {name}, which is no LoRA of a denoiser's matrix; it is not read")
        else:
            found[f"{layer.removesuffix(ending)}.{PARTS[ending]}"] = tensor
    return found, alphas


def _foreign(file: Path, network: nn.Module, where: str) -> dict[str, lora.Update]:
    """The updates of a file that another program wrote: each layer has its own rank, and an alpha where one is said."""
    tensors, alphas = _named(checkpoint.read_tensors(file), where)
    settings = _settings(file, where)
    linear = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    updates: dict[str, lora.Update] = {}
    for name in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        parts = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] == name}
        if name not in linear:
            raise InputError(f"{where} is of another network: this one has no linear layer {name}")
        down = parts.get(f"{name}.down")
        rank = len(down) if down is not None and down.dim() else 0
        alpha = alphas.get(name, settings.get("lora_alpha", rank))
        updates |= lora.read_updates(network, [name], rank, alpha / max(rank, 1), parts, where)
    return updates


def _settings(file: Path, where: str) -> dict[str, Any]:
    """What the header says of rank and alpha, {} where it says nothing; InputError for what is not read."""
    with safe_open(file, "pt") as opened:
        text = (opened.metadata() or {}).get(METADATA, "{}")
    try:
        found = json.loads(text)
        settings = {str(key).rpartition(".")[2]: value for key, value in found.items()}
        alpha = settings.get("lora_alpha", 1)
        unread = [
            key for key in ("alpha_pattern", "use_dora", "use_rslora", "lora_bias") if settings.get(key)
        ]
    except (ValueError, AttributeError):
        alpha, unread = None, []
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise InputError(f"{where}: {METADATA} in its header is damaged; write the adapter again")
    if unread:
        raise InputError(f"{where} is not plain LoRA: it sets {', '.join(unread)}, which are not read")
    return settings
