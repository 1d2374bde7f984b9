"""Codec model directories: load one ready for inference, save one.

A codec's identity is the hash of its encoder and codebooks: what its tokens mean. A codec whose decoder alone was
trained further keeps its identity and still decodes the tokens made before.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from audiogen import checkpoint, config
from audiogen.codec.model import Codec, CodecConfig

KIND = "codec"


def identity(codec: Codec) -> str:
    """16 hex digits over the encoder's weights and the codewords (plain weights: no weight norm)."""
    kept = {
        k: v for k, v in codec.state_dict().items() if k.startswith("encoder.") or k.endswith(".codewords")
    }
    return checkpoint.identity(kept)


def load_codec(name_or_dir: str | Path, device: str | torch.device = "cpu") -> Codec:
    """A bundled name or a model directory -> a frozen codec in eval mode.

    Raises InputError where the directory is missing, damaged, or of another kind.
    """
    path = checkpoint.resolve(str(name_or_dir), KIND)
    codec = Codec(config.build(CodecConfig, checkpoint.read_config(path, KIND)["config"], where="config"))
    checkpoint.load_into(
        codec,
        {k: v.float() if v.is_floating_point() else v for k, v in checkpoint.load_tensors(path).items()},
        str(path),
    )
    codec.name, codec.identity = path.name, identity(codec)
    return codec.eval().requires_grad_(False).to(device)


def plain_weights(codec: Codec) -> dict[str, Tensor]:
    """The codec's tensors with weight norm folded in, as model files hold them; the codec trains on as it was.

    Not by folding a deep copy: torch takes the parametrisation out of the class, which copies share.
    """
    tensors = {
        name: tensor for name, tensor in codec.state_dict().items() if ".parametrizations." not in name
    }
    for name, layer in codec.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            tensors[f"{name}.weight"] = layer.weight.detach()
    return tensors


def save_codec(
    directory: str | Path,
    codec: Codec,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory with plain (folded) weights; `info` is a free record of how it was trained.

    dtype: float16 halves the file; weights are float32 again once loaded.
    """
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain_weights(codec).items()}
    checkpoint.save_model(Path(directory), KIND, config.to_plain(codec.config), tensors, dict(info or {}))
