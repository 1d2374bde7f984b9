"""Our own model directories: language models, codecs and taggers, written and read.

config.json         kind token_lm; config: {"lm": LMConfig, "codec": CodecReference, "max_frames": int}
model.safetensors   the LM's weights
text/               the text encoder (`T5Conditioner.save`, `TokenConditioner.save`)
codec/              a copy of the codec's model directory, unless the codec is a bundled one

A codec's own directory has kind codec, and in config a CodecConfig, or {"dac": DacSizes}.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen.codec.conv import plain_weights
from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import SegmentedCodec
from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.tensors import Match, check_sizes, empty, match
from audiogen.interfaces import Codec as AnyCodec
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.find import CODEC, LM, TAGGER, find
from audiogen.models.parts import CodecParts, CodecReference, LMParts
from audiogen.tagger.model import Tagger, TaggerConfig
from audiogen.text.t5 import T5Conditioner, read_config
from audiogen.text.tokens import load_conditioner

CODEC_FOLDER = "codec"
CODEWORDS, SCALE = ".codewords", "_scale"
DAC = "dac"  # the key under which config.json of a codec has the sizes of one


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
    found = find(codec.location, CODEC)
    checkpoint.read_config(found.path, CODEC)
    if Path(codec.location).is_dir():
        checkpoint.copy_model(found.path, directory / CODEC_FOLDER)
        codec = dataclasses.replace(codec, location=CODEC_FOLDER)
    config = {"lm": to_plain(lm.config), "codec": to_plain(codec), "max_frames": max_frames}
    checkpoint.save_model(directory, LM, config, lm.state_dict(), info, dtype)


def read_lm(directory: Path, text_encoder: str | None = None) -> LMParts:
    """What `save_lm` wrote. text_encoder: directory or hub id of the T5 to use in place of a frozen one."""
    contents = checkpoint.read_config(directory, LM)
    config = contents["config"]
    for key in ("lm", "codec", "max_frames"):
        if key not in config:
            raise InputError(f"{directory / 'config.json'} lacks config.{key}; copy or train the model again")
    if type(config["max_frames"]) is not int or config["max_frames"] < 1:
        raise InputError(
            f"{directory / 'config.json'}: max_frames should be a whole number from 1 on; copy it again"
        )
    codec = build(CodecReference, config["codec"], where="codec")
    if codec.location == CODEC_FOLDER:
        codec = dataclasses.replace(codec, location=str(directory / CODEC_FOLDER))
    lm = build(LMConfig, config["lm"], where="lm")

    def tensors() -> dict[str, Match]:
        stored = checkpoint.read_weights(directory / "model.safetensors")
        own = empty(lambda: TokenLM(lm), directory, len(stored)).state_dict()
        return match(own, stored, str, directory)

    return LMParts(
        lm,
        read_config(directory / "text", text_encoder),
        codec,
        config["max_frames"],
        contents["info"],
        directory,
        tensors,
        lambda device: load_conditioner(directory / "text", text_encoder, device),
    )


def save_codec(
    directory: str | Path,
    codec: AnyCodec | SegmentedCodec,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory with plain (folded) weights; `info` is a free record of how it was trained.

    dtype: float16 halves the file, and codewords are then bytes; weights are float32 again once loaded.
    """
    if isinstance(codec, SegmentedCodec):
        codec = codec.codec
    if not isinstance(codec, Codec | DacCodec):
        raise TypeError(f"cannot save a {type(codec).__name__}")
    settings = to_plain(codec.config)
    contents = {DAC: settings} if isinstance(codec, DacCodec) else settings
    tensors = plain_weights(codec)
    if dtype == torch.float16:
        tensors = _codewords_as_bytes(tensors)
    checkpoint.save_model(directory, CODEC, contents, tensors, info, dtype)


def read_codec(directory: Path) -> CodecParts:
    """What `save_codec` wrote."""
    contents = checkpoint.read_config(directory, CODEC)["config"]
    config: CodecConfig | DacSizes
    if DAC in contents:
        config = build(DacSizes, contents[DAC], where=f"config.{DAC}")
    else:
        config = build(CodecConfig, contents, where="config")
    tensors = _codewords_from_bytes(checkpoint.load_tensors(directory), directory)
    return CodecParts(config, tensors, "audiogen", directory)


def _codewords_as_bytes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Codewords [V, D] as int8, and beside them a float16 scale for each [V, 1]: -43 dB from what they were."""
    stored = dict(tensors)
    for name in tensors:
        if name.endswith(CODEWORDS):
            codewords = tensors[name].float()
            scale = (codewords.abs().amax(1, keepdim=True) / 127).half()
            parts = codewords / scale.float().clamp(min=1e-12)
            stored |= {name: parts.round().clamp(-127, 127).to(torch.int8), name + SCALE: scale}
    return stored


def _codewords_from_bytes(tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """What `_codewords_as_bytes` stored, as float32; other tensors as they are. Raises InputError for a wrong scale."""
    for name in [name for name in tensors if name.endswith(CODEWORDS + SCALE)]:
        scale, key = tensors.pop(name), name.removesuffix(SCALE)
        if key not in tensors or tensors[key].dim() != 2 or scale.shape != (len(tensors[key]), 1):
            raise InputError(f"{where}: {name} is not a scale for each codeword; copy the model again")
        tensors[key] = tensors[key].float() * scale.float()
    return tensors


def save_tagger(
    directory: str | Path,
    tagger: Tagger,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory; `info` and dtype as in `save_codec`."""
    checkpoint.save_model(directory, TAGGER, to_plain(tagger.config), tagger.state_dict(), info, dtype)


def load_tagger(name_or_dir: str | Path = "tagger_tiny", device: str | torch.device = "cpu") -> Tagger:
    """A bundled name or a model directory -> a frozen tagger in eval mode, with `name` and `identity`.

    Its identity is the hash of its weights: figures of two taggers do not compare. Raises InputError where the
    directory is missing, damaged, or of another kind.
    """
    path = find(name_or_dir, TAGGER).check(TAGGER).path
    config = build(TaggerConfig, checkpoint.read_config(path, TAGGER)["config"], where="config")
    tensors = checkpoint.load_tensors(path)
    check_sizes(path, config)
    match(empty(lambda: Tagger(config), path, len(tensors)).state_dict(), tensors, str, path)  # before memory
    tagger = Tagger(config)
    checkpoint.load_into(tagger, tensors, path)
    tagger.name, tagger.identity = path.name, checkpoint.identity(tagger.state_dict())
    return tagger.eval().requires_grad_(False).to(device)
