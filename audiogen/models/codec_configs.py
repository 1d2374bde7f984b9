"""Configurations of public codecs -> ours: audiocraft's `xp.cfg`, config.json of transformers, encodec's two models.

Every key that decides about the result is read; one that is missing, or has a value that our model has nothing for,
is an InputError with its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

from audiogen.codec.model import CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.errors import InputError

T = TypeVar("T")
REQUIRED: Any = object()
NORMS = {"none": "none", "weight_norm": "none", "time_group_norm": "group"}
TRAINING_ONLY = (
    "q_dropout",
    "kmeans_init",
    "orthogonal_reg_weight",
    "orthogonal_reg_active_codes_only",
    "orthogonal_reg_max_codes",
)


class Section:
    """The keys of one mapping in a file, read one by one; `where` names file and mapping in messages."""

    def __init__(self, values: Any, where: str) -> None:
        if not isinstance(values, Mapping):
            raise InputError(
                f"{where.rstrip('.: ')} is {_short(values)}; a mapping of keys to values is needed"
            )
        self.left, self.where = dict(values), where

    def take(self, key: str, kind: type[T], default: Any = REQUIRED) -> T:
        """The value of a key, of that type; a whole number will do for a float."""
        if key not in self.left and default is REQUIRED:
            raise InputError(f"{self.where}{key} is missing: the file is not whole, or of another version")
        value = self.left.pop(key, default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong = not isinstance(value, kind) or (kind is int and isinstance(value, bool))
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{self.where}{key} is {_short(value)}; a {kind.__name__} is needed")
        return value

    def sizes(self, key: str, default: Any = REQUIRED) -> tuple[int, ...]:
        """A list of whole numbers."""
        values = self.take(key, list, default)
        if not values or any(type(value) is not int or value < 1 for value in values):
            raise InputError(
                f"{self.where}{key} is {_short(values)}; a list of positive whole numbers is needed"
            )
        return tuple(values)

    def size(self, key: str, default: Any = REQUIRED, least: int = 1) -> int:
        """A whole number from `least`."""
        value = self.take(key, int, default)
        if value < least:
            raise InputError(f"{self.where}{key} is {value}; whole numbers from {least} are allowed")
        return value

    def only(self, key: str, allowed: tuple[Any, ...], default: Any = REQUIRED) -> Any:
        """A value out of those that our model implements."""
        if key not in self.left and default is REQUIRED:
            raise InputError(f"{self.where}{key} is missing: the file is not whole, or of another version")
        value = self.left.pop(key, default)
        if not any(value == choice and type(value) is type(choice) for choice in allowed):
            choices = " or ".join(map(repr, allowed))
            raise InputError(f"{self.where}{key} is {_short(value)}; only {choices} is implemented")
        return value

    def end(self) -> None:
        """Refuse what was not read: nobody knows what it would change."""
        if self.left:
            key, value = next(iter(self.left.items()))
            raise InputError(f"{self.where}{key} is {_short(value)}, a key that this version does not know")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _config(values: Mapping[str, Any], seanet: Mapping[str, Any], where: str) -> CodecConfig:
    try:
        return CodecConfig(seanet=SeanetConfig(**seanet), **values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


# -------------------------------------------------------------------------------------------------- audiocraft


def audiocraft_config(text: Any, where: str | Path) -> CodecConfig:
    """`xp.cfg` of a compression file, a YAML text with interpolations; only the sections that are read are resolved."""
    top, name = parse(text, where), f"xp.cfg of {where}: "
    if "compression_model" in top:
        Section({"compression_model": resolve(top, "compression_model", where)}, name).only(
            "compression_model", ("encodec",)
        )
    encodec, seanet, rvq = (
        Section(resolve(top, key, where), f"{name}{key}.") for key in ("encodec", "seanet", "rvq")
    )
    encodec.only("autoencoder", ("seanet",))
    encodec.only("quantizer", ("rvq",))
    encodec.only("renormalize", (False, None), None)
    encodec.left.pop("renorm", None)  # of the first releases; the original drops it, too
    values: dict[str, Any] = {key: encodec.size(key) for key in ("sample_rate", "channels")}
    causal = encodec.take("causal", bool)
    encodec.end()
    seanet.only("causal", (causal,), causal)
    seanet.only("channels", (values["channels"],), values["channels"])
    values["latent_dim"] = seanet.size("dimension")
    sizes = _audiocraft_seanet(seanet, causal)
    values |= {
        "num_codebooks": rvq.size("n_q"),
        "codebook_size": rvq.size("bins"),
        "codebook_decay": rvq.take("decay", float, 0.99),
        "kmeans_iterations": rvq.size("kmeans_iters", 50),
        "dead_below": rvq.take("threshold_ema_dead_code", float, 2.0),
    }
    for key in TRAINING_ONLY:
        rvq.left.pop(key, None)
    rvq.end()
    return _config(values, sizes, str(where))


def parse(text: Any, where: str | Path) -> DictConfig:
    """`xp.cfg` as OmegaConf has it, interpolations unresolved."""
    if not isinstance(text, str):
        raise InputError(f"{where}: xp.cfg is a {type(text).__name__}; a text in YAML is needed")
    try:
        top = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: xp.cfg cannot be read as YAML: {_line(error)}") from None
    if not isinstance(top, DictConfig):
        raise InputError(f"{where}: xp.cfg holds no keys")
    return top


def resolve(top: DictConfig, key: str, where: str | Path) -> Any:
    """One section as plain values, its `${...}` filled in from wherever they point."""
    try:
        if key not in top:
            raise InputError(f"{where}: xp.cfg has no {key}: it is not the configuration of an EnCodec")
        section = top[key]
        return OmegaConf.to_container(section, resolve=True) if OmegaConf.is_config(section) else section
    except (OmegaConfBaseException, RecursionError) as error:
        raise InputError(f"{where}: {key} of xp.cfg cannot be resolved: {_line(error)}") from None


def _audiocraft_seanet(seanet: Section, causal: bool) -> dict[str, Any]:
    """The fields of `SeanetConfig` in section `seanet`, whose parts `encoder` and `decoder` may repeat its keys."""
    common = dict(seanet.left)
    encoder = Section(seanet.take("encoder", dict, {}), f"{seanet.where}encoder.")
    decoder = Section(seanet.take("decoder", dict, {}), f"{seanet.where}decoder.")
    trim = decoder.take("trim_right_ratio", float, 1.0)
    decoder.only("final_activation", (None,), None)
    decoder.left.pop("final_activation_params", None)  # of an activation that is not there
    for part in (encoder, decoder):
        for key in list(part.left):
            if key in common:
                part.only(key, (common[key],))  # one network shape for both
        part.end()
    seanet.only("activation", ("ELU",), "ELU")
    seanet.only("activation_params", ({"alpha": 1.0}, {}), {})
    norm = NORMS[seanet.only("norm", tuple(NORMS))]
    seanet.only("norm_params", ({},), {})
    outer = seanet.take("disable_norm_outer_blocks", int, 0)
    if outer and norm == "group":  # without group norm, only how the weight is stored depends on it
        raise InputError(f"{seanet.where}disable_norm_outer_blocks is {outer}; only 0 is implemented")
    fields = {
        "num_filters": seanet.size("n_filters"),
        "num_residual_layers": seanet.size("n_residual_layers", least=0),
        "ratios": seanet.sizes("ratios"),
        "kernel_size": seanet.size("kernel_size"),
        "residual_kernel_size": seanet.size("residual_kernel_size"),
        "last_kernel_size": seanet.size("last_kernel_size"),
        "dilation_base": seanet.size("dilation_base"),
        "compress": seanet.size("compress"),
        "true_skip": seanet.take("true_skip", bool),
        "lstm": seanet.size("lstm", least=0),
        "pad_mode": seanet.only("pad_mode", ("constant", "reflect", "replicate")),
    }
    seanet.end()
    return fields | {"norm": norm, "causal": causal, "trim_right_ratio": trim}


# ------------------------------------------------------------------------------------------------ transformers


def transformers_config(contents: Mapping[str, Any], where: str | Path) -> CodecConfig:
    """config.json of `transformers.EncodecModel`, or the audio_encoder in that of MusicGen.

    A key that is missing has the default of `transformers.EncodecConfig`, which leaves such keys out of the part.
    """
    file = Section(contents, f"{where}: ")
    ratios = file.sizes("upsampling_ratios", [8, 5, 4, 2])
    latent_dim = file.size("hidden_size", 128)
    if file.left.get("codebook_dim") is not None:
        file.only("codebook_dim", (latent_dim,))  # transformers has no projection between the two either
    chunk_s = file.left.get("chunk_length_s")
    sample_rate, codebook_size = file.size("sampling_rate", 24000), file.size("codebook_size", 1024)
    values: dict[str, Any] = {
        "sample_rate": sample_rate,
        "channels": file.size("audio_channels", 1),
        "latent_dim": latent_dim,
        "codebook_size": codebook_size,
        "num_codebooks": _count_codebooks(file, math.prod(ratios), sample_rate, codebook_size),
        "segment_s": None if chunk_s is None else file.take("chunk_length_s", float),
        "segment_overlap": 0.0 if chunk_s is None else file.take("overlap", float),
        "normalise": file.take("normalize", bool, False),
    }
    seanet = {
        "num_filters": file.size("num_filters", 32),
        "num_residual_layers": file.size("num_residual_layers", 1, least=0),
        "ratios": ratios,
        "kernel_size": file.size("kernel_size", 7),
        "residual_kernel_size": file.size("residual_kernel_size", 3),
        "last_kernel_size": file.size("last_kernel_size", 7),
        "dilation_base": file.size("dilation_growth_rate", 2),
        "compress": file.size("compress", 2),
        "true_skip": not file.take("use_conv_shortcut", bool, True),
        "lstm": file.size("num_lstm_layers", 2),
        "causal": file.take("use_causal_conv", bool, True),
        "pad_mode": file.only("pad_mode", ("constant", "reflect", "replicate"), "reflect"),
        "trim_right_ratio": file.take("trim_right_ratio", float, 1.0),
        "norm": NORMS[file.only("norm_type", ("weight_norm", "time_group_norm"), "weight_norm")],
    }
    return _config(values, seanet, str(where))


def _count_codebooks(file: Section, hop_length: int, sample_rate: int, codebook_size: int) -> int:
    """transformers says how many codebooks there are by the largest bandwidth in kbit/s."""
    bandwidths = file.take("target_bandwidths", list, [1.5, 3.0, 6.0, 12.0, 24.0])
    if not bandwidths or any(type(value) not in (int, float) or not 0 < value < 1e6 for value in bandwidths):
        raise InputError(f"{file.where}target_bandwidths is {_short(bandwidths)}; a list of kbit/s is needed")
    bits = max(1, math.ceil(math.log2(codebook_size)))
    count = int(1000 * bandwidths[-1] // (math.ceil(sample_rate / hop_length) * bits))
    if count < 1:
        raise InputError(
            f"{file.where}target_bandwidths is {_short(bandwidths)}: too little for one codebook"
        )
    return count


def bandwidths(config: CodecConfig, counts: tuple[int, ...]) -> list[float]:
    """The inverse: kbit/s that transformers takes for that many codebooks."""
    bits = math.ceil(math.log2(config.codebook_size))
    bits_per_s = math.ceil(config.sample_rate / config.hop_length) * bits
    values = [count * bits_per_s / 1000 for count in counts]
    # It divides again and rounds down, so that a value which rounding made too small would lose a codebook.
    return [
        value if 1000 * value // bits_per_s == count else math.nextafter(value, math.inf)
        for value, count in zip(values, counts, strict=True)
    ]


# ----------------------------------------------------------------------------------------------------- encodec


def encodec_config(names: Mapping[str, Any]) -> CodecConfig:
    """The files of the encodec package hold no configuration: there are two models, and only one has group norm."""
    common: dict[str, Any] = {"latent_dim": 128, "codebook_size": 1024}
    if "encoder.model.0.conv.norm.weight" in names:
        seanet = SeanetConfig(num_filters=32, true_skip=False, pad_mode="reflect", norm="group")
        return CodecConfig(
            48000,
            2,
            seanet=seanet,
            num_codebooks=16,
            segment_s=1.0,
            segment_overlap=0.01,
            normalise=True,
            **common,
        )
    seanet = SeanetConfig(num_filters=32, true_skip=False, pad_mode="reflect", causal=True)
    return CodecConfig(24000, 1, seanet=seanet, num_codebooks=32, **common)
