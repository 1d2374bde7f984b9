"""From names and parts to models: language models and codecs, ready for inference.

A codec's identity is the hash of its encoder and codebooks: what its codes mean. A codec whose decoder alone was
trained further keeps its identity and still decodes the codes made before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from audiogen.codec.dac import DacCodec, DacSizes
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import SegmentedCodec, as_configured
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub
from audiogen.files.tensors import check_sizes, empty, fill
from audiogen.interfaces import Codec as AnyCodec
from audiogen.models import audiocraft, own, transformers
from audiogen.models.find import CODEC, CODEC_FILE, LM, OWN, Found, find
from audiogen.models.parts import CodecParts, LMParts, PretrainedLM, their_name
from audiogen.text.t5 import local_or_hub

LM_READERS: dict[str, Callable[[Path, str | None], LMParts]] = {
    OWN: own.read_lm,
    "audiocraft": audiocraft.read_lm,
    "transformers": transformers.read_lm,
}
AVERAGES = (".embed_avg", ".sums")  # of codebooks, in others' files and our older ones: codewords times usage


def read_lm(found: Found, text_encoder: str | None = None) -> LMParts:
    """A language model, its weights still in its files; what this package does not run is an InputError.

    text_encoder: directory or hub id of the T5 to use in place of a frozen one, which is opened with the first text.
    """
    if found.kind == CODEC and found.layout == "audiocraft":
        raise InputError(
            f"{found.name} holds a codec, which does not generate; beside the codec of a released language model lies "
            "its state_dict.bin: copy that, too, or choose a language model"
        )
    text = None if text_encoder is None else local_or_hub(text_encoder)
    return LM_READERS[found.check(LM).layout](found.path, text)


def load_lm(
    name: str | Path | Found,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    text_encoder: str | None = None,
) -> PretrainedLM:
    """Open a language model: bundled, a model directory, or a release (its directory, or a hub id[@revision]).

    dtype: of the LM; the text encoder stays float32. Each weight goes to its device and dtype by itself.
    text_encoder: as in `read_lm`.
    """
    parts = read_lm(find(name, LM), text_encoder)
    lm, text = parts.load(device, dtype), parts.open_text(device)
    return PretrainedLM(lm, text, parts.codec, parts.max_frames, parts.info)


def load_codec(
    name: str | Path | Found,
    device: str | torch.device = "cpu",
    dual_mono: bool = False,
    dtype: torch.dtype = torch.float32,
    beam: int = 1,
) -> AnyCodec | SegmentedCodec:
    """Open a codec: bundled, a model directory, a public one or its hub id[@revision]; frozen, in evaluation mode.

    A codec of overlapping segments (EnCodec at 48 kHz) is a `SegmentedCodec`, which is no `interfaces.Codec`.
    dual_mono: a mono codec is to encode stereo, each channel by itself (see `CodecConfig`). dtype: what it computes in
    (see `Codec.freeze`). beam: how widely it searches for codes (see `ResidualQuantizer.encode`). Raises InputError
    where the codec is missing, damaged, of another kind, or has not that dtype or no such search.
    """
    if beam < 1:
        raise InputError(f"beam is {beam}; allowed: 1, the nearest codeword of each codebook, and more")
    found = find(name, CODEC).check(CODEC)
    parts, name = read_codec(found), found.name if hub.is_hub_id(found.name) else _name_of(found)
    if dual_mono:
        parts = parts._replace(config=_as_dual_mono(parts.config, name))
    codec = _build(parts).to(device)
    codec.name = name
    codec.identity = checkpoint.identity(codec.meaning())
    codec.freeze(dtype)
    if isinstance(codec, Codec):
        codec.beam = beam
        return as_configured(codec)
    if beam > 1:
        raise InputError(
            f"codec {name} of the DAC family has no beam search; beam={beam} is given, 1 is allowed"
        )
    return codec


def read_codec(found: Found, pointed: bool = False) -> CodecParts:
    """A codec, its weights still in its files. pointed: a compression file led here, and none may lead on."""
    path = found.path
    if found.layout == OWN:
        return own.read_codec(path)
    if found.layout == "transformers":
        return transformers.read_codec(path)
    if path.is_dir():
        pattern = CODEC_FILE if found.layout == "audiocraft" else "encodec_[0-9]*khz*.th"
        path, *others = sorted(path.glob(pattern))
        if others:
            raise InputError(f"{found.path} holds {path.name} and {others[0].name}; give one of them")
    parts = audiocraft.read_codec(path)
    if not isinstance(parts, Found):
        return parts
    if pointed:
        raise InputError(f"{path} is a pointer that another one led to; give the codec itself")
    return read_codec(parts.check(CODEC), pointed=True)


def _build(parts: CodecParts) -> Codec | DacCodec:
    """A frozen codec with a file's tensors, float32, in evaluation mode; all are checked before any is copied."""
    config = parts.config
    where = parts.where
    num_tensors = len(parts.tensors)
    check_sizes(where, config)
    if isinstance(config, DacSizes):
        codec: Codec | DacCodec = empty(lambda: DacCodec(config), where, num_tensors)
        fill(codec, parts.tensors, str, where)
        return codec.eval().requires_grad_(False)
    seanet = config.seanet
    # dilations grow with each layer, and 2**20 is too large already
    check_sizes(where, seanet.dilation_base ** min(seanet.num_residual_layers, 20))
    codec = empty(lambda: Codec(config), where, num_tensors)
    if config.arch == "spectral":
        # Its weights are drawn, as ever: what a training that starts from this codec draws stays the same.
        codec = Codec(config)
    names = codec.state_dict()
    averages = [name for name in parts.tensors if name.endswith(AVERAGES)]
    fill(codec, parts.tensors, lambda name: their_name(name, parts.layout, names), where, ignore=averages)
    return codec.eval().requires_grad_(False)


def _name_of(found: Found) -> str:
    """What to call a codec of this machine: the folder's name, for all compression files have one name."""
    path = found.path.resolve()
    if path.is_dir():
        return path.name
    return path.parent.name if path.name == CODEC_FILE else path.stem


def _as_dual_mono(config: CodecConfig | DacSizes, name: str) -> CodecConfig:
    """For the same weights, which then encode two channels each by itself."""
    if not isinstance(config, CodecConfig) or not (config.dual_mono or config.channels == 1):
        raise InputError(f"codec {name} cannot code two channels each by itself: only a mono EnCodec can")
    if config.dual_mono:
        return config
    return replace(config, channels=2, num_codebooks=2 * config.num_codebooks, dual_mono=True)
