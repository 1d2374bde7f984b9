"""Language models and codecs in the layout of AudioGen and MusicGen releases.

state_dict.bin              the language model; compression_state_dict.bin lies beside it
compression_state_dict.bin  the codec, or {"pretrained": name}, a pointer to it

Each file is what `torch.save` made of {"best_state": tensors by name, "xp.cfg": the training's configuration as YAML}.
Sizes are read from that configuration; a value that our models do not compute is refused, with its key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from audiogen.codec.model import CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.config import Range, build, short
from audiogen.errors import InputError
from audiogen.files import hub, pickles
from audiogen.files.tensors import empty, match, shaped, under
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.find import CODEC, CODEC_FILE, LM_FILE, Found, find
from audiogen.models.parts import CodecParts, CodecReference, LMParts, release_parts
from audiogen.models.settings import RATE, Settings, parse_yaml, resolve, source, table
from audiogen.text import encoder
from audiogen.text.t5 import TextConfig

PROJECTION = "condition_provider.conditioners.description.output_proj."
DAC_NAMES = {f"dac_{rate}khz": f"descript/dac_{rate}khz" for rate in (16, 24, 44)}  # hub ids of its pointers

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # of transformers


class Release(NamedTuple):
    """One file: its tensors by name, and its configuration, whose `${...}` are filled in where a key is read."""

    state: dict[str, Tensor]
    xp: Any
    where: str

    def settings(self, *keys: str) -> Settings:
        """The values at these dotted keys; the rest may name variables of the machine where the file was written."""
        contents: dict[str, Any] = {}
        for key in keys:
            *path, last = key.split(".")
            part = contents
            for name in path:
                part = part.setdefault(name, {})
            value = resolve(self.xp, key, self.where)
            if value is not None:
                part[last] = value
        return Settings(contents, self.where)


def read_contents(path: Path) -> dict[Any, Any]:
    """What is in a file of either kind."""
    contents = pickles.read_pickle(path)
    if not isinstance(contents, dict):
        raise InputError(
            f"{path} holds a {type(contents).__name__}; a release's file holds best_state and xp.cfg"
        )
    return contents


def release(contents: Mapping[Any, Any], path: Path) -> Release:
    """A file's contents, checked to be a release's."""
    for key in ("best_state", "xp.cfg"):
        if key not in contents:
            raise InputError(f"{path}: {key} is missing; a released model has it, so copy or export it again")
    where = f"{path}: xp.cfg"
    return Release(
        pickles.named_tensors(contents["best_state"], f"best_state of {path}"),
        parse_yaml(contents["xp.cfg"], where),
        where,
    )


# ------------------------------------------------------------------------------------------ the language model


def read_lm(directory: Path, text_encoder: str | None = None) -> LMParts:
    """The language model of a release. text_encoder: directory or hub id of the T5 in place of the one it names."""
    path = directory / LM_FILE
    found = release(read_contents(path), path)
    settings = found.settings(
        *("lm_model", "compression_model_n_q", "interleave_stereo_codebooks", "transformer_lm"),
        *("codebooks_pattern", "conditioners", "fuser"),
        *("dataset.segment_duration", "classifier_free_guidance.inference_coef"),
    )
    settings.choice("lm_model", ["transformer_lm"], "transformer_lm")
    name = _text_encoder(settings)
    lm = _architecture(settings)
    dual_mono = _stereo(settings, lm)
    seconds = settings.number("dataset.segment_duration", within=Range(1e-9))
    guidance = settings.number("classifier_free_guidance.inference_coef", None, Range(0))
    off = [key for key, value in settings.section("transformer_lm").contents.items() if value is False]
    harmless = table("audiocraft.harmless")
    settings.done(
        [
            *(f"transformer_lm.{key}" for key in (*harmless, *off)),
            *table("audiocraft.harmless_conditions"),
        ]
    )
    projection = found.state.get(f"{PROJECTION}weight")
    width = projection.shape[-1] if projection is not None and projection.dim() == 2 else 0
    own = empty(lambda: TokenLM(lm), path, len(found.state)).state_dict()
    own |= shaped({f"{PROJECTION}weight": (lm.dim, width), f"{PROJECTION}bias": (lm.dim,)})
    matches = match(own, found.state, lambda name: source(name, "audiocraft.names", lm.num_codebooks), path)
    return release_parts(
        lm,
        TextConfig(encoder=text_encoder or name, width=lm.dim),
        encoder.named(text_encoder or name, width, directory, now=text_encoder is not None),
        {ours: part for ours, part in matches.items() if not ours.startswith(PROJECTION)},
        under(matches, PROJECTION),
        CodecReference(str(directory), "", dual_mono),
        max(1, int(seconds * _frame_rate(directory / CODEC_FILE))),
        guidance,
    )


def _text_encoder(settings: Settings) -> str:
    """The hub id of its T5; models with another condition than a text are refused."""
    conditioners = settings.section("conditioners", {})
    names = [name for name in conditioners.contents if name != "args"]
    for name in names:
        kind = conditioners.take(f"{name}.model", None)
        if (name, kind) != ("description", "t5"):
            raise InputError(
                f"{settings.where}: conditioners.{name}.model is {short(kind)}; only a 't5' named description is "
                "implemented, and no melody or style beside text: choose a model that is conditioned on text alone"
            )
    if not names:
        raise InputError(
            f"{settings.where}: conditioners is empty; only models with a description are implemented"
        )
    fuser = settings.section("fuser", {})
    fuser.choice("cross_attention_pos_emb", [False, None], False)
    fuser.choice("cross", [["description"]])
    for method, names in fuser.contents.items():
        if method != "cross" and isinstance(names, list):
            fuser.choice(method, [[]])
    t5 = conditioners.section("description.t5", {})
    for key in ("finetune", "normalize_text"):
        t5.choice(key, [False, None], False)
    return encoder.HUB_IDS[t5.choice("name", encoder.HUB_IDS)]


def _architecture(settings: Settings) -> LMConfig:
    model = settings.section("transformer_lm", {})
    for key, (wanted, absent) in table("audiocraft.required").items():
        model.choice(key, [wanted], absent)
    pattern, delays = _pattern(settings, model.whole("n_q"))
    dropout = model.number("dropout", None) or 0.0
    return model.build(LMConfig, "audiocraft.lm", dropout=dropout, pattern=pattern, delays=delays)


def _pattern(settings: Settings, num_codebooks: int) -> tuple[str, tuple[int, ...]]:
    """Name and delays of the interleaving. Releases of before codebooks_pattern.modeling have q_modeling instead."""
    patterns = settings.section("codebooks_pattern", {})
    modeling = patterns.take("modeling", None) or settings.take("transformer_lm.q_modeling", None)
    if modeling not in ("delay", "parallel"):
        raise InputError(
            f"{settings.where}: codebooks_pattern.modeling is {short(modeling)}; only 'delay' or 'parallel' is "
            "implemented"
        )
    for name in patterns.contents:
        if name != modeling:
            patterns.take(name)  # of patterns that are not used
    chosen = patterns.section(modeling, {})
    for key in ("flatten_first", "empty_initial"):
        chosen.choice(key, [0, None, False], 0)
    if modeling == "parallel" or chosen.take("delays", None) is None:
        return modeling, tuple(range(num_codebooks)) if modeling == "delay" else ()
    delays = chosen.wholes("delays", within=Range(0, 2**18))
    if len(delays) != num_codebooks:
        raise InputError(
            f"{settings.where}: codebooks_pattern.delay.delays is {short(list(delays))}; {num_codebooks} are needed, "
            "one for each codebook (n_q)"
        )
    return modeling, delays


def _stereo(settings: Settings, lm: LMConfig) -> bool:
    """Whether the codebooks are those of the left and the right channel in turn."""
    interleave = settings.section("interleave_stereo_codebooks", {})
    stereo, per_timestep = interleave.flag("use", False), interleave.flag("per_timestep", False)
    codec = settings.whole("compression_model_n_q", None)  # codebooks of the codec, for one channel
    if codec is not None and codec * (1 + stereo) != lm.num_codebooks:
        raise InputError(
            f"{settings.where}: compression_model_n_q is {codec}, but transformer_lm.n_q is {lm.num_codebooks}; "
            + ("that must be twice as many, for two channels" if stereo else "they must be equal")
        )
    if stereo and per_timestep:
        interleave.choice("per_timestep", [False])
    if stereo and lm.num_codebooks % 2:
        raise InputError(
            f"{settings.where}: interleave_stereo_codebooks.use is true, but transformer_lm.n_q is {lm.num_codebooks}; "
            "two channels have an even number of codebooks"
        )
    return stereo


def _frame_rate(path: Path) -> float:
    """Hz of the codec in a compression file, or of the one that it names."""
    contents = read_contents(path)
    if "pretrained" in contents:
        target = pointed(path, contents["pretrained"])
        rates = table("audiocraft.pointers")
        if target in rates:
            return float(rates[target])
        if isinstance(target, str) or target.is_dir():
            raise InputError(
                f"{path}: pretrained is {short(contents['pretrained'])}; allowed: a file beside it, or as the codec of "
                f"a language model {', '.join(rates)}"
            )
        path = target
        contents = read_contents(path)
    settings = release(contents, path).settings("seanet.ratios", "sample_rate")
    return float(settings.whole("sample_rate", within=RATE) / math.prod(settings.wholes("seanet.ratios")))


# --------------------------------------------------------------------------------------------------- the codec


def pointed(path: Path, name: Any) -> Path | str:
    """What a compression file points to: a file or directory beside it, or else the name itself."""
    if not isinstance(name, str) or not name:
        raise InputError(f"{path}: pretrained is {short(name)}; the name of a codec is needed")
    inside, beside = Path(name), path.parent / name
    if inside.is_absolute() or ".." in inside.parts or beside == path or not beside.exists():
        return name
    return beside / CODEC_FILE if (beside / CODEC_FILE).is_file() else beside


def read_codec(path: Path) -> CodecParts | Found:
    """The codec in a file, in audiocraft's or in the encodec package's form; for a pointer where the codec lies."""
    contents = read_contents(path)
    if "pretrained" in contents:
        target = pointed(path, contents["pretrained"])
        directory = path.parent
        if isinstance(target, Path):
            return find(target, CODEC)
        if (directory / "config.json").is_file() and any((directory / name).is_file() for name in WEIGHTS):
            return Found(CODEC, "transformers", directory, str(directory))  # the release's other layout
        name = DAC_NAMES.get(target, target)
        if not hub.is_hub_id(name):
            raise InputError(
                f"{path} points to the codec {short(name)}, which is neither beside it nor a hub id"
            )
        return find(name, CODEC)
    if any(str(key).startswith("encoder.model.") for key in contents):
        state = pickles.named_tensors(contents, path)
        return CodecParts(package_config(state), state, "audiocraft", path)
    found = release(contents, path)
    settings = found.settings("compression_model", "encodec", "seanet", "rvq")
    return CodecParts(codec_config(settings), found.state, "audiocraft", path)


def codec_config(settings: Settings) -> CodecConfig:
    """Sections `encodec`, `seanet` and `rvq` of a compression file's `xp.cfg` -> ours."""
    settings.choice("compression_model", ["encodec"], "encodec")
    codec = settings.section("encodec")
    codec.expect(autoencoder="seanet", quantizer="rvq")
    codec.choice("renormalize", [False, None], None)
    seanet, causal = settings.section("seanet"), codec.flag("causal")
    seanet.expect(causal=causal, channels=codec.whole("channels"))
    config = settings.build(CodecConfig, "audiocraft.codec", seanet=_seanet(seanet) | {"causal": causal})
    settings.done(table("audiocraft.harmless_codec"))
    return config


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
    group = seanet.choice("norm", ["none", "weight_norm", "time_group_norm"]) == "time_group_norm"
    if group:  # without group norm, only how the weight is stored depends on it
        seanet.choice("disable_norm_outer_blocks", [0], 0)
    else:
        seanet.take("disable_norm_outer_blocks", 0)
    return seanet.values(SeanetConfig, table("audiocraft.seanet")) | {"norm": "group" if group else "none"}


def package_config(names: Collection[str]) -> CodecConfig:
    """Of the two models of the encodec package, only one has group norm."""
    model = "48khz" if "encoder.model.0.conv.norm.weight" in names else "24khz"
    return build(CodecConfig, table(f"encodec.{model}"))
