"""MusicGen in the layout of `transformers`, as MusicgenForConditionalGeneration.save_pretrained writes it.

config.json              model_type musicgen; text_encoder, audio_encoder and decoder hold a configuration each
model.safetensors        or an index of several: text_encoder.*, enc_to_dec_proj.*, audio_encoder.*, decoder.*
generation_config.json   guidance, longest generation, ids of the special token
tokenizer.json           or spiece.model, with its settings; where absent, the text encoder's own is taken by its name
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.release import (
    Release,
    Shapes,
    check_count,
    check_tensors,
    identity_projection,
    lm_config,
    whole,
)
from audiogen.text import encoder
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig

MODEL_TYPE = "musicgen"
DECODER, TEXT, AUDIO, PROJECTION = "decoder.", "text_encoder.", "audio_encoder.", "enc_to_dec_proj."
# Sinusoids that versions of before 2025 stored; they follow from the width.
POSITIONS = f"{DECODER}model.decoder.embed_positions.weights"
TRAINING_S = 30.0  # seconds of sound that the released models were trained on at a time
# key of the decoder's configuration -> the only value that TokenLM computes
REQUIRED: dict[str, Any] = {
    "activation_function": "gelu",
    "cross_attention_hidden_size": None,
    "scale_embedding": False,
    "tie_word_embeddings": False,
}
# What transformers takes where a key is absent: of the decoder, and of the codec.
DECODER_DEFAULTS: dict[str, Any] = {
    **REQUIRED,
    "num_codebooks": 4,
    "vocab_size": 2048,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "ffn_dim": 4096,
    "dropout": 0.1,
    "audio_channels": 1,
    "pad_token_id": 2048,
}
CODEC_DEFAULTS: dict[str, Any] = {"sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2]}
# our name of a layer's tensor -> theirs, under model.decoder.layers.N
LAYER = {
    "self_attention.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.out_proj": ("self_attn.out_proj",),
    "cross_attention.query_proj": ("encoder_attn.q_proj",),
    "cross_attention.text_proj": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention.out_proj": ("encoder_attn.out_proj",),
    "ff_in": ("fc1",),
    "ff_out": ("fc2",),
}
NORMS = {
    "norm_self": "self_attn_layer_norm",
    "norm_cross": "encoder_attn_layer_norm",
    "norm_ff": "final_layer_norm",
}


def read(directory: Path, text_encoder: str | None = None) -> Release:
    """The language model of a release, its tensors still in the file.

    text_encoder: directory or hub id of the T5 to use in place of the one that the release carries.
    """
    path = directory / "config.json"
    config = read_config(directory)
    generation = _generation(directory)
    decoder = DECODER_DEFAULTS | _section(config, "decoder", path)
    audio = CODEC_DEFAULTS | _section(config, "audio_encoder", path)
    weights = weights_file(directory)
    tensors = checkpoint.open_tensors(weights)
    found = {
        name: tensor for name, tensor in tensors.items() if not name.startswith(AUDIO) and name != POSITIONS
    }
    layers, heads = r"decoder\.model\.decoder\.layers\.(\d+)\.", r"decoder\.lm_heads\.(\d+)\."
    check_count(found, layers, decoder["num_hidden_layers"], "decoder.num_hidden_layers", weights)
    check_count(found, heads, decoder["num_codebooks"], "decoder.num_codebooks", weights)
    channels = _channels(decoder, path)
    lm = _architecture(decoder, generation, channels, path)
    frozen, shapes = _text_encoder(_section(config, "text_encoder", path), found, directory, path)
    if frozen.width != lm.dim:
        shapes |= {f"{PROJECTION}weight": (lm.dim, frozen.width), f"{PROJECTION}bias": (lm.dim,)}
    names = transformers_names(lm)
    check_tensors(found, shapes | _shapes(lm), weights)
    if text_encoder is not None:
        frozen = encoder.named(text_encoder, frozen.width, directory, now=True)
    carried_name = _section(config, "text_encoder", path).get("_name_or_path") or "t5"
    text = TextConfig(text_encoder or str(carried_name), lm.dim, stored=text_encoder is None)
    projection = {part: found[PROJECTION + part] for part in ("weight", "bias") if PROJECTION + part in found}
    return Release(
        lm,
        text,
        frozen,
        {ours: [found[DECODER + name] for name in theirs] for ours, theirs in names.items()},
        projection or identity_projection(lm.dim),
        channels == 2,
        _max_frames(audio, generation, lm.num_codebooks // channels, path),
        _guidance(generation),
    )


def read_config(directory: Path) -> dict[str, Any]:
    """config.json of a MusicGen; another model's is refused."""
    path = directory / "config.json"
    config = checkpoint.read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind == "musicgen_melody":
        raise InputError(
            f"{path}: model_type is 'musicgen_melody': this model follows a melody beside text, which is not "
            "implemented; choose a model that hears text alone"
        )
    if kind != MODEL_TYPE:
        raise InputError(f"{path}: model_type is {kind!r}; as a generator allowed: {MODEL_TYPE!r}")
    return {str(key): value for key, value in config.items()}


def weights_file(directory: Path) -> Path:
    """The safetensors file of a model, or the index of its several."""
    for name in ("model.safetensors", "model.safetensors.index.json"):
        if (directory / name).is_file():
            return directory / name
    raise InputError(
        f"{directory / 'model.safetensors'} is missing; of this layout only safetensors weights are read: copy it, or "
        "save the model again with transformers"
    )


def transformers_names(lm: LMConfig) -> dict[str, list[str]]:
    """TokenLM's names -> those of MusicgenForCausalLM, several of which are one of ours, along dim 0."""
    books = range(lm.num_codebooks)
    names = {
        "embedding.weight": [f"model.decoder.embed_tokens.{k}.weight" for k in books],
        "heads.weight": [f"lm_heads.{k}.weight" for k in books],
        "out_norm.weight": ["model.decoder.layer_norm.weight"],
        "out_norm.bias": ["model.decoder.layer_norm.bias"],
    }
    for i in range(lm.num_layers):
        theirs = f"model.decoder.layers.{i}."
        names |= {
            f"layers.{i}.{ours}.weight": [f"{theirs}{part}.weight" for part in parts]
            for ours, parts in LAYER.items()
        }
        names |= {
            f"layers.{i}.{ours}.{part}": [f"{theirs}{norm}.{part}"]
            for ours, norm in NORMS.items()
            for part in ("weight", "bias")
        }
    return names


def transformers_parts(lm: TokenLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """MusicgenDecoderConfig as a dict, and the tensors of MusicgenForCausalLM (views of the model's).

    Its delays are 0, 1, 2 ... for one channel and 0, 0, 1, 1 ... for two; other patterns are an InputError.
    """
    config = lm.config
    decoder = {
        "model_type": "musicgen_decoder",
        "vocab_size": config.codebook_size,
        "hidden_size": config.dim,
        "ffn_dim": config.ff_mult * config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_codebooks": config.num_codebooks,
        "audio_channels": _channels_of(config),
        "max_position_embeddings": 2048,  # length of a table that transformers extends where needed
        "activation_function": "gelu",
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "pad_token_id": lm.special,
        "bos_token_id": lm.special,
        "eos_token_id": None,
    }
    state = lm.state_dict()
    tensors = {
        their: part
        for ours, theirs in transformers_names(config).items()
        for their, part in zip(theirs, state[ours].chunk(len(theirs)), strict=True)
    }
    return decoder, tensors


def _channels_of(config: LMConfig) -> int:
    """Channels of the model of transformers whose delays are those of this one."""
    if config.pattern == "delay":
        delays = list(config.delays or range(config.num_codebooks))
        for channels in (1, 2):
            if (
                delays == [k // channels for k in range(config.num_codebooks)]
                and not config.num_codebooks % channels
            ):
                return channels
    shown = list(config.delays) or config.pattern
    raise InputError(
        f"the model interleaves its codebooks by {config.pattern} ({shown}); transformers has only the delays "
        "0, 1, 2 ... and, in stereo, 0, 0, 1, 1 ..., so it stays in the audiogen layout"
    )


def _section(config: Mapping[str, Any], key: str, path: Path) -> dict[str, Any]:
    section = config.get(key)
    if not isinstance(section, dict):
        raise InputError(f"{path}: {key} is {section!r}; the configuration of that part is needed")
    return section


def _generation(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    values = checkpoint.read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no `key: value` mapping; copy it again")
    return values


def _architecture(
    decoder: Mapping[str, Any], generation: Mapping[str, Any], channels: int, path: Path
) -> LMConfig:
    for key, wanted in REQUIRED.items():
        if decoder[key] != wanted:
            raise InputError(
                f"{path}: decoder.{key} is {decoder[key]!r}; only {wanted!r} is implemented, so this model "
                "cannot be run"
            )
    keys = (
        "num_codebooks",
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "ffn_dim",
    )
    size = {key: whole(decoder[key], f"decoder.{key}", path) for key in keys}
    if size["ffn_dim"] % size["hidden_size"]:
        raise InputError(
            f"{path}: decoder.ffn_dim is {size['ffn_dim']}; only multiples of decoder.hidden_size "
            f"({size['hidden_size']}) are implemented"
        )
    special = generation.get("decoder_start_token_id", decoder["pad_token_id"])
    if special != size["vocab_size"]:
        raise InputError(
            f"{path}: the special token is {special!r} (pad_token_id, decoder_start_token_id); only "
            f"{size['vocab_size']}, the one after the codes (decoder.vocab_size), is implemented"
        )
    values = {
        "num_codebooks": size["num_codebooks"],
        "codebook_size": size["vocab_size"],
        "dim": size["hidden_size"],
        "num_layers": size["num_hidden_layers"],
        "num_heads": size["num_attention_heads"],
        "ff_mult": size["ffn_dim"] // size["hidden_size"],
        "dropout": decoder["dropout"],
        "delays": [k // channels for k in range(size["num_codebooks"])],
    }
    return lm_config(values, path)


def _channels(decoder: Mapping[str, Any], path: Path) -> int:
    channels = decoder["audio_channels"]
    if channels not in (1, 2):
        raise InputError(f"{path}: decoder.audio_channels is {channels!r}; allowed: 1, 2")
    if whole(decoder["num_codebooks"], "decoder.num_codebooks", path) % channels:
        raise InputError(
            f"{path}: decoder.num_codebooks is {decoder['num_codebooks']} with decoder.audio_channels 2; two channels "
            "have an even number of codebooks"
        )
    return int(channels)


def _text_encoder(
    section: Mapping[str, Any], found: Mapping[str, Tensor], directory: Path, path: Path
) -> tuple[FrozenEncoder, Shapes]:
    """The T5 that the release carries, and names and shapes of its tensors."""
    shape = encoder.read_shape(section, f"{path}: text_encoder")
    blocks = r"text_encoder\.encoder\.block\.(\d+)\."
    check_count(found, blocks, shape.num_layers, "text_encoder.num_layers", directory)
    # Tied: saved under either name, or under both.
    shared, tied = f"{TEXT}shared.weight", f"{TEXT}encoder.embed_tokens.weight"
    stack = {name: tuple(tensor.shape) for name, tensor in encoder.empty_stack(shape).state_dict().items()}
    shapes: Shapes = {f"{TEXT}encoder.{name}": size for name, size in stack.items()}
    embedding = shapes.pop(tied)
    shapes |= {name: embedding for name in (shared, tied) if name in found} or {shared: embedding}
    own_names = {name.removeprefix(TEXT): tensor for name, tensor in found.items() if name.startswith(TEXT)}
    name = section.get("_name_or_path")
    own = any((directory / file).is_file() for file in encoder.TOKENIZER_FILES)
    tokenizer = str(directory) if own else str(name) if name else None
    return encoder.carried(shape, encoder.stack_tensors(own_names), tokenizer, directory), shapes


def _max_frames(
    audio: Mapping[str, Any], generation: Mapping[str, Any], num_codebooks: int, path: Path
) -> int:
    """Longest generation: max_length counts the steps of the interleaved sequence, delays of one channel included.

    The released models say 1500, which is their 30 s of 50 frames without the delays: a whole number of seconds is
    read as frames.
    """
    ratios = audio["upsampling_ratios"]
    if not isinstance(ratios, list) or not ratios:
        raise InputError(
            f"{path}: audio_encoder.upsampling_ratios is {ratios!r}; a list of strides is needed"
        )
    hop = math.prod(whole(ratio, "audio_encoder.upsampling_ratios", path) for ratio in ratios)
    rate = whole(audio["sampling_rate"], "audio_encoder.sampling_rate", path) / hop
    longest = generation.get("max_length")
    if longest is None:
        return max(1, int(TRAINING_S * rate))
    longest = whole(longest, "max_length of generation_config.json", path)
    return longest if (longest / rate).is_integer() else max(1, longest - num_codebooks)


def _guidance(generation: Mapping[str, Any]) -> float | None:
    value = generation.get("guidance_scale")
    return float(value) if isinstance(value, (int, float)) and value >= 0 else None


def _shapes(lm: LMConfig) -> Shapes:
    """Names and shapes of the decoder's tensors."""
    dim, wide = lm.dim, lm.ff_mult * lm.dim
    shapes: Shapes = {}
    for name in (name for names in transformers_names(lm).values() for name in names):
        size: tuple[int, ...] = (dim,) if "norm" in name else (dim, dim)
        if ".embed_tokens." in name:
            size = (lm.codebook_size + 1, dim)
        elif name.startswith("lm_heads."):
            size = (lm.codebook_size, dim)
        elif ".fc1." in name or ".fc2." in name:
            size = (wide, dim) if ".fc1." in name else (dim, wide)
        shapes[DECODER + name] = size
    return shapes
