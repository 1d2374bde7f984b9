"""Token language models on disk: a model directory with its text encoder, and its codec or the codec's name.

config.json         kind token_lm; config: {"lm": LMConfig, "codec": CodecReference, "max_frames": int}
model.safetensors   the LM's weights
text/               the text encoder (`T5Conditioner.save`)
codec/              a copy of the codec's model directory, unless the codec is a bundled one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from audiogen import checkpoint
from audiogen.conditioning.t5 import T5Conditioner
from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.lm.model import LMConfig, TokenLM

KIND = "token_lm"
CODEC_FOLDER = "codec"


@dataclass(frozen=True)
class CodecReference:
    """The codec whose tokens a language model speaks.

    location: a bundled codec's name or a codec's model directory; "codec" in a saved model is the copy inside.
    identity: the codec's own `identity`, a hash of the weights that decide what its tokens mean.
    """

    location: str
    identity: str


class PretrainedLM(NamedTuple):
    """What `load_lm` returns; lm and conditioner are in evaluation mode."""

    lm: TokenLM
    conditioner: T5Conditioner
    codec: CodecReference  # its location is a directory or bundled name that can be opened from anywhere
    max_frames: int  # longest sequence to generate in one piece: that of training
    info: dict[str, Any]


def save_lm(
    directory: str | Path,
    lm: TokenLM,
    conditioner: T5Conditioner,
    codec: CodecReference,
    max_frames: int,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory that `load_lm` reads, complete in itself. A new one is whole or no model.

    dtype: how the weights of LM and text encoder are stored; float16 halves the files.
    """
    directory = Path(directory)
    conditioner.save(directory / "text", dtype)
    if Path(codec.location).is_dir():
        checkpoint.read_config(codec.location, "codec")
        checkpoint.copy_model(codec.location, directory / CODEC_FOLDER)
        codec = CodecReference(CODEC_FOLDER, codec.identity)
    else:
        checkpoint.resolve(codec.location, "codec")
    config = {"lm": to_plain(lm.config), "codec": to_plain(codec), "max_frames": max_frames}
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in lm.state_dict().items()}
    checkpoint.save_model(directory, KIND, config, tensors, info)


def load_lm(
    name_or_directory: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> PretrainedLM:
    """Read a bundled model or a model directory; `dtype` is the LM's, the text encoder stays float32."""
    directory = checkpoint.resolve(name_or_directory, KIND)
    contents = checkpoint.read_config(directory, KIND)
    config = contents["config"]
    for key in ("lm", "codec", "max_frames"):
        if key not in config:
            raise InputError(f"{directory / 'config.json'} lacks config.{key}; copy or train the model again")
    with torch.device("meta"):  # no time for initial weights that are overwritten at once
        lm = TokenLM(build(LMConfig, config["lm"], where="lm"))
    lm = lm.to_empty(device="cpu")
    checkpoint.load_into(lm, checkpoint.load_tensors(directory), directory)
    codec = build(CodecReference, config["codec"], where="codec")
    if codec.location == CODEC_FOLDER:
        codec = CodecReference(str(directory / CODEC_FOLDER), codec.identity)
    conditioner = T5Conditioner.load(directory / "text")
    return PretrainedLM(
        lm.to(device, dtype).eval(), conditioner.to(device), codec, config["max_frames"], contents["info"]
    )
