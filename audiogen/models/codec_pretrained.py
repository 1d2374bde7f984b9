"""Codecs by name, directory, file or hub id: load one ready for inference, save one.

A codec's identity is the hash of its encoder and codebooks: what its tokens mean. A codec whose decoder alone was
trained further keeps its identity and still decodes the tokens made before.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audiogen import config
from audiogen.codec import dac
from audiogen.codec.conv import plain_weights
from audiogen.codec.dac import DacCodec
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import SegmentedCodec, as_configured
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.interfaces import Codec as AnyCodec
from audiogen.models import codec_public as public

KIND = "codec"
DAC = "dac"  # the key under which config.json of a model directory has the sizes of one


def identity(codec: AnyCodec) -> str:
    """16 hex digits over the encoder's weights and the codewords (plain weights: no weight norm)."""
    if isinstance(codec, DacCodec):
        return dac.identity(codec)
    kept: dict[str, Tensor] = {
        k: v for k, v in codec.state_dict().items() if k.startswith("encoder.") or k.endswith(".codewords")
    }
    if isinstance(codec, Codec) and codec.config.dual_mono:  # the same weights, and tokens of two channels
        kept["dual_mono"] = torch.tensor(True)
    return checkpoint.identity(kept)


def load_codec(
    name_or_dir: str | Path,
    device: str | torch.device = "cpu",
    dual_mono: bool = False,
    dtype: torch.dtype = torch.float32,
) -> AnyCodec | SegmentedCodec:
    """A bundled name, a model directory, a public codec or a hub id[@revision] -> a frozen codec in eval mode.

    A codec of overlapping segments (EnCodec at 48 kHz) is a `SegmentedCodec`, which is no `interfaces.Codec`.
    dual_mono: a mono codec is to code stereo, each channel by itself (see `CodecConfig`). dtype: what it computes in
    (see `Codec.freeze`). Raises InputError where the codec is missing, damaged, of another kind, or has not that dtype.
    """
    name, path = str(name_or_dir), Path(name_or_dir)
    on_hub = name not in checkpoint.bundled_names() and hub.is_hub_id(name)
    if on_hub:
        path = hub.fetch(name, public.LAYOUTS)
    if public.is_public(path):
        codec = public.load_public(path, device)
        path_name = public.name_of(path)
    else:
        path = checkpoint.resolve(path, KIND)
        codec = _load_own(path, device)
        path_name = path.name
    codec.name = name if on_hub else path_name
    if dual_mono:
        codec = _as_dual_mono(codec)
    codec.identity = identity(codec)
    freeze(codec, dtype)
    return as_configured(codec) if isinstance(codec, Codec) else codec


def freeze(codec: AnyCodec, dtype: torch.dtype) -> None:
    """Let a codec compute in `dtype` from now on: `Codec.freeze`; a DAC has float32 alone."""
    if isinstance(codec, Codec):
        codec.freeze(dtype)
    elif dtype != torch.float32:
        raise InputError(
            f"codec {codec.name or 'given'} does not compute in {str(dtype)[6:]}: a DAC has float32 alone"
        )


def _load_own(path: Path, device: str | torch.device) -> AnyCodec:
    """A model directory of ours."""
    contents = checkpoint.read_config(path, KIND)["config"]
    tensors = checkpoint.load_tensors(path)
    if isinstance(contents, Mapping) and DAC in contents:
        sizes = config.build(dac.DacSizes, contents[DAC], where=f"config.{DAC}")
        return dac.from_tensors(sizes, tensors, path, device)
    codec = Codec(config.build(CodecConfig, contents, where="config"))
    checkpoint.load_into(
        codec, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, str(path)
    )
    return codec.eval().requires_grad_(False).to(device)


def _as_dual_mono(codec: AnyCodec) -> AnyCodec:
    """The same weights, which code two channels each by itself."""
    if not isinstance(codec, Codec) or not (codec.config.dual_mono or codec.channels == 1):
        raise InputError(
            f"codec {codec.name} cannot code two channels each by itself: only a mono EnCodec can"
        )
    if codec.config.dual_mono:
        return codec
    stereo = replace(codec.config, channels=2, num_codebooks=2 * codec.num_codebooks, dual_mono=True)
    twin = Codec(stereo)
    twin.load_state_dict(codec.state_dict(), assign=True)
    twin.name = codec.name
    return twin.eval().requires_grad_(False)


def save_codec(
    directory: str | Path,
    codec: AnyCodec | SegmentedCodec,
    info: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model directory with plain (folded) weights; `info` is a free record of how it was trained.

    dtype: float16 halves the file; weights are float32 again once loaded.
    """
    if isinstance(codec, SegmentedCodec):
        codec = codec.codec
    if not isinstance(codec, Codec | DacCodec):
        raise TypeError(f"cannot save a {type(codec).__name__}")
    settings = config.to_plain(codec.config)
    contents = {DAC: settings} if isinstance(codec, DacCodec) else settings
    tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in plain_weights(codec).items()}
    checkpoint.save_model(Path(directory), KIND, contents, tensors, dict(info or {}))
