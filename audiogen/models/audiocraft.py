"""Language models in the layout of AudioGen and MusicGen releases: state_dict.bin, beside compression_state_dict.bin.

Each file is what `torch.save` made of {"best_state": tensors by name, "xp.cfg": the training's configuration as YAML}.
The architecture is read from that configuration; a value that `TokenLM` does not have is refused, with its key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor
from yaml import YAMLError  # type: ignore[import-untyped]  # comes with omegaconf

from audiogen.errors import InputError
from audiogen.files import pickles
from audiogen.lm.model import LMConfig
from audiogen.models.release import Release, Shapes, check_count, check_tensors, lm_config, whole
from audiogen.text import encoder
from audiogen.text.t5 import TextConfig

WEIGHTS_FILE = "state_dict.bin"
CODEC_FILE = "compression_state_dict.bin"
PROJECTION = "condition_provider.conditioners.description.output_proj."
# Hz of the codecs that a compression file may name instead of holding one.
POINTED_RATES = {
    "facebook/encodec_24khz": 75.0,
    "facebook/encodec_32khz": 50.0,
    "dac_16khz": 50.0,
    "dac_24khz": 75.0,
    "dac_44khz": 44100 / 512,
}

# key -> (the only value that TokenLM computes, what audiocraft takes where the key is absent).
REQUIRED: dict[str, tuple[Any, Any]] = {
    "activation": ("gelu", "relu"),
    "bias_attn": (False, True),
    "bias_ff": (False, True),
    "bias_proj": (False, True),
    "causal": (True, False),
    "kv_repeat": (1, 1),
    "layer_scale": (None, None),
    "max_period": (10000, 10000),
    "norm": ("layer_norm", "layer_norm"),
    "norm_first": (True, False),
    "past_context": (None, None),
    "positional_embedding": ("sin", "sin"),
    "positional_scale": (1.0, 1.0),
    "qk_layer_norm": (False, False),
    "qk_layer_norm_cross": (False, False),
    "xpos": (False, False),
}
SIZES = ("dim", "num_heads", "num_layers", "hidden_scale", "n_q", "card")
# How it was trained, initialised and run fast: nothing that the weights compute depends on these. There is
# cross-attention wherever fuser.cross names something to hear, whatever cross_attention says.
FREE = {
    *(
        "attention_as_float32",
        "attention_dropout",
        "checkpointing",
        "cross_attention",
        "custom",
        "depthwise_init",
    ),
    *(
        "dropout",
        "emb_lr",
        "lr",
        "memory_efficient",
        "q_modeling",
        "two_step_cfg",
        "weight_decay",
        "weight_init",
    ),
    "zero_bias_init",
}
MELODY = ("chroma_stem", "style", "self_wav")


def read(directory: Path, text_encoder: str | None = None) -> Release:
    """The language model of a release, its tensors still in the file.

    text_encoder: directory or hub id of the T5 to use in place of the one that the release names.
    """
    path = directory / WEIGHTS_FILE
    contents = _contents(path)
    xp = _configuration(contents, path)
    state = contents.get("best_state")
    if not isinstance(state, Mapping):
        raise InputError(f"{path}: best_state is missing; a released language model has it, so copy it again")
    name = _text_encoder(xp, path)
    settings = _section(xp, "transformer_lm", path)
    for key, pattern in {"num_layers": r"transformer\.layers\.(\d+)\.", "n_q": r"emb\.(\d+)\."}.items():
        check_count(state, pattern, settings.get(key), f"transformer_lm.{key}", path)
    lm = _architecture(xp, path)
    dual_mono = _stereo(xp, lm, path)
    projection = state.get(f"{PROJECTION}weight")
    width = projection.shape[-1] if isinstance(projection, Tensor) and projection.dim() == 2 else 0
    check_tensors(state, _shapes(lm, width), path)
    seconds = _positive(_get(xp, "dataset.segment_duration", path), "dataset.segment_duration", path)
    guidance = _get(xp, "classifier_free_guidance.inference_coef", path)
    return Release(
        lm,
        TextConfig(encoder=text_encoder or name, width=lm.dim),
        encoder.named(text_encoder or name, width, directory, now=text_encoder is not None),
        _our_names(state, lm),
        {part: state[PROJECTION + part] for part in ("weight", "bias")},
        dual_mono,
        max(1, int(seconds * _frame_rate(directory / CODEC_FILE))),
        None if guidance is None else _positive(guidance, "classifier_free_guidance.inference_coef", path, 0),
    )


def _contents(path: Path) -> Mapping[str, Any]:
    contents = pickles.read_pickle(path)
    if not isinstance(contents, Mapping):
        raise InputError(
            f"{path} holds a {type(contents).__name__}; a release's file holds best_state and xp.cfg"
        )
    return contents


def _configuration(contents: Mapping[str, Any], path: Path) -> DictConfig:
    """The training's configuration; its interpolations are resolved where a key is read."""
    text = contents.get("xp.cfg")
    if not isinstance(text, str):
        raise InputError(f"{path}: xp.cfg is missing; a release's file holds its configuration there as text")
    try:
        config = OmegaConf.create(text)
    except (YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: xp.cfg cannot be read as YAML ({reason}); copy the file again") from None
    if not isinstance(config, DictConfig):
        raise InputError(f"{path}: xp.cfg holds no `key: value` mapping; copy the file again")
    return config


def _get(xp: DictConfig, key: str, path: Path, default: Any = None) -> Any:
    """A value of the configuration as plain Python; `default` where it is absent."""
    try:
        value = OmegaConf.select(xp, key, default=default)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path}: {key} cannot be resolved: {' '.join(str(error).split())[:200]}") from None


def _section(xp: DictConfig, key: str, path: Path) -> dict[str, Any]:
    value = _get(xp, key, path, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is {value!r}; a mapping is needed")
    return {str(name): item for name, item in value.items()}


def _refuse(path: Path, key: str, value: Any, allowed: str) -> InputError:
    return InputError(
        f"{path}: {key} is {value!r}; only {allowed} is implemented, so this model cannot be run"
    )


def _text_encoder(xp: DictConfig, path: Path) -> str:
    """The hub id of its T5; models that hear something else than text are refused."""
    model = _get(xp, "lm_model", path, "transformer_lm")
    if model != "transformer_lm":
        raise _refuse(path, "lm_model", model, "'transformer_lm'")
    conditioners = _section(xp, "conditioners", path)
    conditioners.pop("args", None)  # merging and dropping captions in training
    for name, settings in conditioners.items():
        kind = settings.get("model") if isinstance(settings, Mapping) else settings
        if name in MELODY or kind in MELODY:
            raise InputError(
                f"{path}: conditioners.{name} is {kind!r}: this model follows a melody or a style beside text, which "
                "is not implemented; choose a model that hears text alone"
            )
        if name != "description" or kind != "t5":
            raise _refuse(path, f"conditioners.{name}.model", kind, "a 't5' named description")
    if not conditioners:
        raise InputError(
            f"{path}: conditioners is empty; only models that hear a description are implemented"
        )
    for method, heard in _section(xp, "fuser", path).items():
        if method == "cross_attention_pos_emb" and heard:
            raise _refuse(path, "fuser.cross_attention_pos_emb", heard, "False")
        wanted = ["description"] if method == "cross" else []
        if isinstance(heard, list) and heard != wanted:
            raise _refuse(path, f"fuser.{method}", heard, str(wanted))
    if _get(xp, "fuser.cross", path) is None:
        raise InputError(f"{path}: fuser.cross is missing; it must be ['description']")
    t5 = _section(xp, "conditioners.description.t5", path)
    for key in ("finetune", "normalize_text"):
        if t5.get(key, False):
            raise _refuse(path, f"conditioners.description.t5.{key}", t5[key], "False")
    if t5.get("name") not in encoder.RELEASED_NAMES:
        raise InputError(
            f"{path}: conditioners.description.t5.name is {t5.get('name')!r}; allowed: "
            f"{', '.join(encoder.RELEASED_NAMES)}"
        )
    return encoder.hub_name(str(t5["name"]))


def _architecture(xp: DictConfig, path: Path) -> LMConfig:
    settings = _section(xp, "transformer_lm", path)
    for key, (wanted, absent) in REQUIRED.items():
        value = settings.get(key, absent)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise _refuse(path, f"transformer_lm.{key}", value, repr(wanted))
    for key, value in settings.items():
        if key not in (*REQUIRED, *SIZES) and key not in FREE and value not in (None, False):
            raise InputError(
                f"{path}: transformer_lm.{key} is {value!r}, which is unknown here, so this model cannot be run"
            )
    size = {key: whole(settings.get(key), f"transformer_lm.{key}", path) for key in SIZES}
    pattern, delays = _pattern(xp, size["n_q"], settings.get("q_modeling"), path)
    values = {
        "num_codebooks": size["n_q"],
        "codebook_size": size["card"],
        "dim": size["dim"],
        "num_layers": size["num_layers"],
        "num_heads": size["num_heads"],
        "ff_mult": size["hidden_scale"],
        "dropout": settings.get("dropout") or 0.0,
        "pattern": pattern,
        "delays": delays,
    }
    return lm_config(values, path)


def _pattern(xp: DictConfig, num_codebooks: int, q_modeling: Any, path: Path) -> tuple[str, tuple[int, ...]]:
    """Name and delays of the interleaving. Releases of before codebooks_pattern.modeling have q_modeling instead."""
    modeling = _get(xp, "codebooks_pattern.modeling", path)
    settings = _section(xp, f"codebooks_pattern.{modeling}", path) if modeling else {}
    modeling = modeling or q_modeling
    if modeling not in ("delay", "parallel"):
        raise _refuse(path, "codebooks_pattern.modeling", modeling, "'delay' or 'parallel'")
    for key in ("flatten_first", "empty_initial"):
        if settings.get(key, 0):
            raise _refuse(path, f"codebooks_pattern.{modeling}.{key}", settings[key], "0")
    if modeling == "parallel":
        return "parallel", ()
    delays = settings.get("delays")
    if delays is None:
        delays = list(range(num_codebooks))
    key = "codebooks_pattern.delay.delays"
    if not isinstance(delays, list) or len(delays) != num_codebooks:
        raise InputError(
            f"{path}: {key} is {delays!r}; {num_codebooks} are needed, one for each codebook (n_q)"
        )
    return "delay", tuple(whole(delay, key, path, 0) for delay in delays)


def _stereo(xp: DictConfig, lm: LMConfig, path: Path) -> bool:
    """Whether the codebooks are those of the left and the right channel in turn."""
    stereo = bool(_get(xp, "interleave_stereo_codebooks.use", path, False))
    key = "compression_model_n_q"
    num_used = _get(xp, key, path)  # those of the codec, for one channel
    if num_used is not None and whole(num_used, key, path) * (1 + stereo) != lm.num_codebooks:
        raise InputError(
            f"{path}: {key} is {num_used!r}, but transformer_lm.n_q is {lm.num_codebooks}; "
            + ("that must be twice as many, for two channels" if stereo else "they must be equal")
        )
    if not stereo:
        return False
    if _get(xp, "interleave_stereo_codebooks.per_timestep", path, False):
        raise _refuse(path, "interleave_stereo_codebooks.per_timestep", True, "False")
    if lm.num_codebooks % 2:
        raise InputError(
            f"{path}: interleave_stereo_codebooks.use is true, but transformer_lm.n_q is {lm.num_codebooks}; "
            "two channels have an even number of codebooks"
        )
    return True


def _frame_rate(path: Path) -> float:
    """Hz, from the compression file: that of the codec in it or of the one that it names."""
    contents = _contents(path)
    pointer = contents.get("pretrained")
    if pointer is not None:
        beside = path.parent / Path(str(pointer)).name
        if pointer == beside.name and beside != path and beside.is_file():
            path, contents = beside, _contents(beside)
        elif pointer in POINTED_RATES:
            return POINTED_RATES[pointer]
        else:
            raise InputError(
                f"{path}: pretrained is {pointer!r}; allowed: a file beside it, or as the codec of a language model "
                f"{', '.join(POINTED_RATES)}"
            )
    xp = _configuration(contents, path)
    ratios = _get(xp, "seanet.ratios", path)
    if not isinstance(ratios, list) or not ratios:
        raise InputError(f"{path}: seanet.ratios is {ratios!r}; a list of strides is needed")
    rate = whole(_get(xp, "sample_rate", path), "sample_rate", path)
    return rate / math.prod(whole(ratio, "seanet.ratios", path) for ratio in ratios)


def _positive(value: Any, key: str, path: Path, least: float = 1e-9) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise InputError(f"{path}: {key} is {value!r}; it must be a number above 0")
    return float(value)


def _shapes(lm: LMConfig, encoder_width: int) -> Shapes:
    """Names and shapes of a release of this architecture."""
    dim = lm.dim
    shapes: Shapes = {f"{PROJECTION}weight": (dim, encoder_width), f"{PROJECTION}bias": (dim,)}
    for k in range(lm.num_codebooks):
        shapes[f"emb.{k}.weight"] = (lm.codebook_size + 1, dim)
        shapes[f"linears.{k}.weight"] = (lm.codebook_size, dim)
    norms = ["out_norm."]
    for i in range(lm.num_layers):
        layer = f"transformer.layers.{i}."
        for attention in ("self_attn", "cross_attention"):
            shapes[f"{layer}{attention}.in_proj_weight"] = (3 * dim, dim)
            shapes[f"{layer}{attention}.out_proj.weight"] = (dim, dim)
        shapes[f"{layer}linear1.weight"] = (lm.ff_mult * dim, dim)
        shapes[f"{layer}linear2.weight"] = (dim, lm.ff_mult * dim)
        norms += [f"{layer}{norm}." for norm in ("norm1", "norm_cross", "norm2")]
    return shapes | {f"{norm}{part}": (dim,) for norm in norms for part in ("weight", "bias")}


def _our_names(state: Mapping[str, Tensor], lm: LMConfig) -> dict[str, Tensor | list[Tensor]]:
    """TokenLM's names: its embedding and heads are one matrix for all codebooks, its text's keys and values another."""
    ours: dict[str, Tensor | list[Tensor]] = {
        "embedding.weight": [state[f"emb.{k}.weight"] for k in range(lm.num_codebooks)],
        "heads.weight": [state[f"linears.{k}.weight"] for k in range(lm.num_codebooks)],
        "out_norm.weight": state["out_norm.weight"],
        "out_norm.bias": state["out_norm.bias"],
    }
    for i in range(lm.num_layers):
        theirs, mine = f"transformer.layers.{i}.", f"layers.{i}."
        cross = state[f"{theirs}cross_attention.in_proj_weight"]  # queries, keys, values
        ours |= {
            f"{mine}self_attention.in_proj.weight": state[f"{theirs}self_attn.in_proj_weight"],
            f"{mine}self_attention.out_proj.weight": state[f"{theirs}self_attn.out_proj.weight"],
            f"{mine}cross_attention.query_proj.weight": cross[: lm.dim],
            f"{mine}cross_attention.text_proj.weight": cross[lm.dim :],
            f"{mine}cross_attention.out_proj.weight": state[f"{theirs}cross_attention.out_proj.weight"],
            f"{mine}ff_in.weight": state[f"{theirs}linear1.weight"],
            f"{mine}ff_out.weight": state[f"{theirs}linear2.weight"],
        }
        for our_norm, their_norm in (
            ("norm_self", "norm1"),
            ("norm_cross", "norm_cross"),
            ("norm_ff", "norm2"),
        ):
            for part in ("weight", "bias"):
                ours[f"{mine}{our_norm}.{part}"] = state[f"{theirs}{their_norm}.{part}"]
    return ours
