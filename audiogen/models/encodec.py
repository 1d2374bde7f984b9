"""EnCodec's tensors under the names of each layout, and the encodec package's own files.

All layouts number the layers of encoder and decoder as we do, activations included.

    ours                          audiocraft                            transformers
    encoder.layers.3.conv.weight  encoder.model.3.conv.conv.weight_v    encoder.layers.3.conv.weight_v
    encoder.layers.1.wide.conv.*  encoder.model.1.block.1.conv.conv.*   encoder.layers.1.block.1.conv.*
    encoder.layers.13.lstm.*      encoder.model.13.lstm.*               encoder.layers.13.lstm.*
    decoder.layers.3.convtr.bias  decoder.model.3.convtr.convtr.bias    decoder.layers.3.conv.bias
    decoder.layers.3.norm.*       decoder.model.3.convtr.norm.*         decoder.layers.3.norm.*

The files of encodec have the names of audiocraft. Newer ones say parametrizations.weight.original0 and original1 for
weight_g and weight_v.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.codec.model import CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.config import build
from audiogen.models.parts import CodecLayout, CodecParts
from audiogen.models.settings import Settings, formats

NORMS = {"none": "none", "weight_norm": "none", "time_group_norm": "group"}
UNITS = {"wide": "block.1", "point": "block.3", "shortcut": "shortcut"}
BUFFERS = {"codewords": "embed", "usage": "cluster_size", "sums": "embed_avg", "initialised": "inited"}


def their_name(name: str, layout: CodecLayout, own: Collection[str]) -> str:
    """Our name of a tensor -> that of the layout, with a weight as one tensor. own: all of our names."""
    if layout == "audiogen":
        return name
    parts = name.split(".")
    if parts[0] == "quantizer":
        books = "vq.layers.{}._codebook" if layout == "audiocraft" else "layers.{}.codebook"
        return f"quantizer.{books.format(parts[2])}.{BUFFERS[parts[3]]}"
    *owner, role, leaf = parts
    transposed = ".".join([*owner, "convtr", "weight"]) in own
    theirs = [owner[0], "model" if layout == "audiocraft" else "layers", owner[2]]
    theirs += [UNITS[unit] for unit in owner[3:]]
    if role == "lstm":
        theirs += [role]
    elif layout == "audiocraft":
        convolution = "convtr" if transposed else "conv"
        theirs += [convolution, convolution if role != "norm" else role]
    else:
        theirs += ["conv" if role != "norm" else role]
    return ".".join([*theirs, leaf])


def audiocraft_config(settings: Settings) -> CodecConfig:
    """Sections `encodec`, `seanet` and `rvq` of a compression file's `xp.cfg` -> ours."""
    settings.choice("compression_model", ["encodec"], "encodec")
    keys, codec = formats()["audiocraft"], settings.section("encodec")
    codec.expect(autoencoder="seanet", quantizer="rvq")
    codec.choice("renormalize", [False, None], None)
    values = settings.values(CodecConfig, keys["codec"])
    seanet, causal = settings.section("seanet"), codec.flag("causal")
    seanet.expect(causal=causal, channels=values["channels"])
    values["seanet"] = _seanet(seanet) | {"causal": causal}
    settings.done(keys["harmless_codec"])
    return build(CodecConfig, values, where=str(settings.where))


def _seanet(seanet: Settings) -> dict[str, Any]:
    """The fields of `SeanetConfig` in section `seanet`, whose parts `encoder` and `decoder` may repeat its keys."""
    for part in ("encoder", "decoder"):
        section = seanet.section(part, {})
        for key in section.contents:
            if key in seanet.contents:
                section.choice(key, [seanet.contents[key]])  # one network shape for both
    seanet.choice("decoder.final_activation", [None], None)
    seanet.choice("activation", ["ELU"], "ELU")
    seanet.choice("activation_params", [{"alpha": 1.0}, {}], {})
    seanet.choice("norm_params", [{}], {})
    norm = NORMS[seanet.choice("norm", NORMS)]
    if norm == "group":  # without group norm, only how the weight is stored depends on it
        seanet.choice("disable_norm_outer_blocks", [0], 0)
    else:
        seanet.take("disable_norm_outer_blocks", 0)
    return seanet.values(SeanetConfig, formats()["audiocraft"]["seanet"]) | {"norm": norm}


def read_codec(tensors: Mapping[str, Tensor], path: Path) -> CodecParts:
    """A file of the encodec package: tensors alone."""
    return CodecParts(package_config(tensors), tensors, "audiocraft", path)


def package_config(names: Collection[str]) -> CodecConfig:
    """The package's files hold no configuration: there are two models, and only one has group norm."""
    common: dict[str, Any] = {"latent_dim": 128, "codebook_size": 1024}
    seanet: dict[str, Any] = {"num_filters": 32, "true_skip": False, "pad_mode": "reflect"}
    if "encoder.model.0.conv.norm.weight" in names:
        stereo: dict[str, Any] = {
            "num_codebooks": 16,
            "segment_s": 1.0,
            "segment_overlap": 0.01,
            "normalise": True,
        }
        return CodecConfig(48000, 2, seanet=SeanetConfig(**seanet, norm="group"), **stereo, **common)
    return CodecConfig(24000, 1, seanet=SeanetConfig(**seanet, causal=True), num_codebooks=32, **common)
