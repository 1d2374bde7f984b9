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
from typing import Any, Literal

import torch
from torch import Tensor

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.config import Range
from audiogen.errors import InputError
from audiogen.models.parts import CodecParts
from audiogen.models.settings import RATE, Settings
from audiogen.models.tensors import check_sizes, empty, fill

Layout = Literal["audiocraft", "transformers"]
NORMS = {"none": "none", "weight_norm": "none", "time_group_norm": "group"}
UNITS = {"wide": "block.1", "point": "block.3", "shortcut": "shortcut"}
TRAINING = (
    *("q_dropout", "kmeans_init", "orthogonal_reg_weight"),
    *("orthogonal_reg_active_codes_only", "orthogonal_reg_max_codes"),
)
BUFFERS = {"codewords": "embed", "usage": "cluster_size", "sums": "embed_avg", "initialised": "inited"}


def their_name(name: str, layout: Layout, own: Collection[str]) -> str:
    """Our name of a tensor -> that of the layout, with a weight as one tensor. own: all of our names."""
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


def open_codec(parts: CodecParts, device: str | torch.device) -> Codec:
    """A frozen codec with a file's tensors, float32, in evaluation mode; all are checked before any is copied."""
    config, seanet = parts.config, parts.config.seanet
    num_layers = config.num_codebooks + 2 * (
        len(seanet.ratios) * (1 + seanet.num_residual_layers) + seanet.lstm
    )
    sizes = (
        seanet.num_filters * 2 ** len(seanet.ratios),  # each level of the encoder has twice the channels
        seanet.dilation_base ** min(seanet.num_residual_layers, 20),  # 2**20 is too large already
        *(config.channels, config.latent_dim, config.codebook_size, *seanet.ratios),
        *(seanet.kernel_size, seanet.residual_kernel_size, seanet.last_kernel_size),
    )
    check_sizes(parts.where, len(parts.tensors), num_layers, sizes)
    codec = empty(lambda: Codec(config), parts.where)
    own = codec.state_dict()
    fill(codec, parts.tensors, lambda name: their_name(name, parts.layout, own), parts.where, device=device)
    return codec.requires_grad_(False)


def make_config(values: Mapping[str, Any], seanet: Mapping[str, Any], where: str | Path) -> CodecConfig:
    """The configuration of a codec under our names; one that is impossible names the file."""
    try:
        return CodecConfig(seanet=SeanetConfig(**seanet), **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def audiocraft_config(settings: Settings) -> CodecConfig:
    """Sections `encodec`, `seanet` and `rvq` of a compression file's `xp.cfg` -> ours."""
    settings.choice("compression_model", ["encodec"], "encodec")
    codec, rvq = settings.section("encodec"), settings.section("rvq")
    codec.expect(autoencoder="seanet", quantizer="rvq")
    codec.choice("renormalize", [False, None], None)
    channels, causal = codec.whole("channels"), codec.flag("causal")
    values: dict[str, Any] = {
        "sample_rate": codec.whole("sample_rate", within=RATE),
        "channels": channels,
        "latent_dim": settings.whole("seanet.dimension"),
        "num_codebooks": rvq.whole("n_q"),
        "codebook_size": rvq.whole("bins"),
        "codebook_decay": rvq.number("decay", 0.99),
        "kmeans_iterations": rvq.whole("kmeans_iters", 50),
        "dead_below": rvq.number("threshold_ema_dead_code", 2.0),
    }
    seanet = settings.section("seanet")
    seanet.expect(causal=causal, channels=channels)
    fields = _seanet(seanet) | {"causal": causal}
    # the original drops renorm, of the first releases, too; the activation whose parameters these are is None
    harmless = [f"rvq.{key}" for key in TRAINING]
    settings.done([*harmless, "encodec.renorm", "seanet.decoder.final_activation_params"])
    return make_config(values, fields, settings.where)


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
    return {
        "num_filters": seanet.whole("n_filters"),
        "num_residual_layers": seanet.whole("n_residual_layers", within=Range(0, 2**18)),
        "ratios": seanet.wholes("ratios"),
        "kernel_size": seanet.whole("kernel_size"),
        "residual_kernel_size": seanet.whole("residual_kernel_size"),
        "last_kernel_size": seanet.whole("last_kernel_size"),
        "dilation_base": seanet.whole("dilation_base"),
        "compress": seanet.whole("compress"),
        "true_skip": seanet.flag("true_skip"),
        "lstm": seanet.whole("lstm", within=Range(0, 2**18)),
        "pad_mode": seanet.choice("pad_mode", ("constant", "reflect", "replicate")),
        "trim_right_ratio": seanet.number("decoder.trim_right_ratio", 1.0),
        "norm": norm,
    }


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
