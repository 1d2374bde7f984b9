"""MusicGen and EnCodec in the layout of `transformers`, as `save_pretrained` writes them.

config.json              model_type musicgen, with a configuration each for text_encoder, audio_encoder and decoder;
                         or encodec, or dac
model.safetensors        or an index of several: text_encoder.*, enc_to_dec_proj.*, audio_encoder.*, decoder.*
generation_config.json   guidance, longest generation, ids of the special token
tokenizer.json           or spiece.model, with its settings; where absent, the text encoder's own is taken by its name
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from audiogen.codec import dac
from audiogen.codec.model import CodecConfig
from audiogen.config import Range, build
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models import encodec
from audiogen.models.parts import CodecParts, CodecReference, LMParts, release_parts
from audiogen.models.settings import RATE, Settings, read_settings, short
from audiogen.models.tensors import Source, check_sizes, empty, match, read_weights, shaped, under
from audiogen.text import encoder
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig

SINGLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
DECODER, TEXT, AUDIO, PROJECTION = "decoder.", "text_encoder.", "audio_encoder.", "enc_to_dec_proj."
# Sinusoids that versions of before 2025 stored; they follow from the width.
POSITIONS = f"{DECODER}model.decoder.embed_positions.weights"
TRAINING_S = 30.0  # seconds of sound that the released models were trained on at a time
# Values of the decoder's configuration that TokenLM computes, which are also those of absent keys.
COMPUTED: dict[str, Any] = {
    "activation_function": "gelu",
    "cross_attention_hidden_size": None,
    "scale_embedding": False,
    "tie_word_embeddings": False,
}
# Keys that every configuration of transformers has, or had: how to call the model, label its output and generate.
GENERIC = (
    *("_name_or_path", "model_type", "architectures", "transformers_version", "torch_dtype", "dtype"),
    *("_attn_implementation_autoset", "_commit_hash", "attn_implementation", "task_specific_params"),
    *("add_cross_attention", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "eos_token_id"),
    *(
        "sep_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "chunk_size_feed_forward",
        "diversity_penalty",
    ),
    *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label*", "label2id*"),
    *(
        "is_decoder",
        "is_encoder_decoder",
        "length_penalty",
        "max_length",
        "min_length",
        "no_repeat_ngram_size",
    ),
    *("num_beam_groups", "num_beams", "num_return_sequences", "output_attentions", "output_hidden_states"),
    *(
        "output_scores",
        "prefix",
        "problem_type",
        "pruned_heads*",
        "remove_invalid_values",
        "repetition_penalty",
    ),
    *("return_dict", "return_dict_in_generate", "suppress_tokens", "temperature", "tf_legacy_loss"),
    *("tie_encoder_decoder", "tokenizer_class", "top_k", "top_p", "torchscript", "typical_p", "use_bfloat16"),
    *("tie_word_embeddings", "cross_attention_hidden_size", "use_cache", "use_return_dict", "output_past"),
)
# Of the decoder: training, initial values, and the length of a table that transformers extends where needed.
DECODER_HARMLESS = (
    *("attention_dropout", "activation_dropout", "layerdrop", "initializer_factor", "initializer_range"),
    *("max_position_embeddings", "classifier_dropout"),
)
# Of DacConfig: what its training uses, and what follows from the ratios.
DAC_HARMLESS = ("codebook_loss_weight", "commitment_loss_weight", "quantizer_dropout", "hop_length")
# our name of a layer's tensor -> theirs, under model.decoder.layers.N
LAYER = {
    "self_attention.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.out_proj": ("self_attn.out_proj",),
    "cross_attention.query_proj": ("encoder_attn.q_proj",),
    "cross_attention.text_proj": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
    "cross_attention.out_proj": ("encoder_attn.out_proj",),
    "ff_in": ("fc1",),
    "ff_out": ("fc2",),
    "norm_self": ("self_attn_layer_norm",),
    "norm_cross": ("encoder_attn_layer_norm",),
    "norm_ff": ("final_layer_norm",),
}


def decoder_names(name: str, num_codebooks: int) -> tuple[str, ...]:
    """TokenLM's name of a tensor -> those of MusicgenForCausalLM, which are joined along dim 0."""
    books = range(num_codebooks)
    stem, _, leaf = name.rpartition(".")
    if stem == "embedding":
        return tuple(f"model.decoder.embed_tokens.{k}.weight" for k in books)
    if stem == "heads":
        return tuple(f"lm_heads.{k}.weight" for k in books)
    if stem == "out_norm":
        return (f"model.decoder.layer_norm.{leaf}",)
    _, layer, part = stem.split(".", 2)
    return tuple(f"model.decoder.layers.{layer}.{theirs}.{leaf}" for theirs in LAYER[part])


# ------------------------------------------------------------------------------------------ the language model


def read_lm(directory: Path, text_encoder: str | None = None) -> LMParts:
    """A MusicGen. text_encoder: directory or hub id of the T5 to use in place of the one that it carries."""
    settings = read_settings(directory / "config.json")
    generation = Settings({}, directory)
    if (directory / "generation_config.json").is_file():
        generation = read_settings(directory / "generation_config.json")
    decoder = settings.section("decoder")
    channels = decoder.choice("audio_channels", (1, 2), 1)
    lm = lm_config(decoder, generation, channels)
    decoder.done([f"decoder.{key}" for key in (*GENERIC, *DECODER_HARMLESS)])
    weights = directory / (
        INDEX if not (directory / SINGLE).is_file() and (directory / INDEX).is_file() else SINGLE
    )
    if not weights.is_file():
        raise InputError(
            f"{weights} is missing; of this layout only safetensors weights are read: copy it, or save the model again "
            "with transformers"
        )
    tensors = {name: tensor for name, tensor in read_weights(weights).items() if not name.startswith(AUDIO)}
    check_sizes(weights, len(tensors), lm.num_layers + lm.num_codebooks, [lm.dim, lm.ff_mult * lm.dim])
    section = settings.section("text_encoder")
    frozen, own = _text_encoder(section, tensors, directory)
    own |= {
        f"{DECODER}{name}": tensor
        for name, tensor in empty(lambda: TokenLM(lm), weights).state_dict().items()
    }
    if frozen.width != lm.dim:
        own |= shaped({f"{PROJECTION}weight": (lm.dim, frozen.width), f"{PROJECTION}bias": (lm.dim,)})

    def source(name: str) -> str | Source:
        if not name.startswith(DECODER):
            return name
        return Source(tuple(DECODER + part for part in decoder_names(name[len(DECODER) :], lm.num_codebooks)))

    matches = match(own, tensors, source, weights, [POSITIONS])
    if text_encoder is not None:
        frozen = encoder.named(text_encoder, frozen.width, directory, now=True)
    name = text_encoder or str(section.take("_name_or_path", None) or "t5")
    return release_parts(
        lm,
        TextConfig(name, lm.dim, stored=text_encoder is None),
        frozen,
        {name: part.tensors for name, part in under(matches, DECODER).items()},
        {name: part.tensors for name, part in under(matches, PROJECTION).items()},
        CodecReference(str(directory), "", channels == 2),
        _max_frames(settings.section("audio_encoder"), generation, lm.num_codebooks // channels),
        generation.number("guidance_scale", None, Range(0)),
    )


def lm_config(decoder: Settings, generation: Settings, channels: int) -> LMConfig:
    """Absent keys have the defaults of `transformers.MusicgenDecoderConfig`."""
    decoder.expect(**COMPUTED)
    num_codebooks, size = decoder.whole("num_codebooks", 4), decoder.whole("vocab_size", 2048)
    width, ff_width = decoder.whole("hidden_size", 1024), decoder.whole("ffn_dim", 4096)
    if num_codebooks % channels:
        raise InputError(
            f"{decoder.where}: decoder.num_codebooks is {num_codebooks} with decoder.audio_channels 2; two channels "
            "have an even number of codebooks"
        )
    if ff_width % width:
        raise InputError(
            f"{decoder.where}: decoder.ffn_dim is {ff_width}; only multiples of decoder.hidden_size ({width}) are "
            "implemented"
        )
    special = generation.take("decoder_start_token_id", decoder.take("pad_token_id", 2048))
    if special != size:
        raise InputError(
            f"{decoder.where}: the special token is {short(special)} (pad_token_id, decoder_start_token_id); only "
            f"{size}, the one after the codes (decoder.vocab_size), is implemented"
        )
    values = {
        "num_codebooks": num_codebooks,
        "codebook_size": size,
        "dim": width,
        "num_layers": decoder.whole("num_hidden_layers", 24),
        "num_heads": decoder.whole("num_attention_heads", 16),
        "ff_mult": ff_width // width,
        "dropout": decoder.number("dropout", 0.1),
        "delays": [k // channels for k in range(num_codebooks)],
    }
    return build(LMConfig, values, where=str(decoder.where))


def _text_encoder(
    section: Settings, found: Mapping[str, Tensor], directory: Path
) -> tuple[FrozenEncoder, dict[str, Tensor]]:
    """The T5 that the release carries, and its tensors by their names there, without memory."""
    shape = encoder.read_shape(section.contents, f"{section.where}: text_encoder")
    check_sizes(
        directory, len(found), shape.num_layers, [shape.d_model, shape.d_ff, shape.num_heads * shape.d_kv]
    )
    stack = encoder.empty_stack(shape).state_dict()
    own = {f"{TEXT}encoder.{name}": tensor for name, tensor in stack.items()}
    # Tied: saved under either name, or under both.
    shared, tied = f"{TEXT}shared.weight", f"{TEXT}encoder.embed_tokens.weight"
    embedding = own.pop(tied)
    own |= {name: embedding for name in (shared, tied) if name in found} or {shared: embedding}
    name = section.take("_name_or_path", None)
    stored = any((directory / file).is_file() for file in encoder.TOKENIZER_FILES)
    tokenizer = str(directory) if stored else str(name) if name else None
    return encoder.carried(shape, encoder.stack_tensors(under(found, TEXT)), tokenizer, directory), own


def _max_frames(audio: Settings, generation: Settings, num_codebooks: int) -> int:
    """Longest generation: max_length counts the steps of the interleaved sequence, delays of one channel included.

    The released models say 1500, which is their 30 s of 50 frames without the delays: a whole number of seconds is
    read as frames.
    """
    hop = math.prod(audio.wholes("upsampling_ratios", [8, 5, 4, 2]))
    rate = audio.whole("sampling_rate", 24000, RATE) / hop
    longest = generation.whole("max_length", None, Range(1, 2**31))
    if longest is None:
        return max(1, int(TRAINING_S * rate))
    return longest if (longest / rate).is_integer() else max(1, longest - num_codebooks)


# --------------------------------------------------------------------------------------------------- the codec


def read_codec(directory: Path) -> CodecParts | dac.DacCodec:
    """EncodecModel, the codec within a MusicGen, or DacModel."""
    settings = read_settings(directory / "config.json")
    kind = settings.choice("model_type", ("encodec", "musicgen", dac.MODEL_TYPE))
    if kind == dac.MODEL_TYPE:
        file = directory / SINGLE
        codec = dac.from_tensors(dac_sizes(settings), checkpoint.open_tensors(file), file)
        codec.name = directory.resolve().name
        return codec
    weights = next(
        (directory / name for name in (SINGLE, INDEX, PICKLED) if (directory / name).is_file()), None
    )
    if weights is None:
        raise InputError(f"{directory} holds no weights: none of {SINGLE}, {INDEX}, {PICKLED} is there")
    tensors = read_weights(weights)
    if kind == "musicgen":
        settings = settings.section("audio_encoder")
        settings.choice("model_type", ["encodec"], "encodec")
        tensors = under(tensors, AUDIO)
    return CodecParts(codec_config(settings), tensors, "transformers", weights)


def dac_sizes(settings: Settings) -> dac.DacSizes:
    """The sizes of a DacModel. hop_length is not compared: released models say 512 and have the ratios of 320."""
    names = [field.name for field in fields(dac.DacSizes) if field.name != "downsampling_ratios"]
    given = {name: settings.whole(name) for name in names}
    ratios = settings.wholes("downsampling_ratios")
    try:
        sizes = dac.DacSizes(downsampling_ratios=ratios, **given)
    except InputError as error:
        raise InputError(f"{settings.where}: {error}") from None
    upsampling, width = list(ratios[::-1]), sizes.encoder_hidden_size * 2 ** len(ratios)
    settings.choice("upsampling_ratios", [upsampling], upsampling)
    settings.choice("hidden_size", [width], width)
    settings.done((*GENERIC, *DAC_HARMLESS))
    return sizes


def codec_config(settings: Settings) -> CodecConfig:
    """config.json of `transformers.EncodecModel`, or the audio_encoder in that of MusicGen.

    A key that is missing has the default of `transformers.EncodecConfig`, which leaves such keys out of the part.
    """
    ratios = settings.wholes("upsampling_ratios", [8, 5, 4, 2])
    latent_dim = settings.whole("hidden_size", 128)
    # transformers has no projection between the two either
    settings.choice("codebook_dim", [latent_dim, None], None)
    chunk_s, overlap = settings.number("chunk_length_s", None), settings.number("overlap", None)
    if chunk_s is not None and overlap is None:
        settings.number("overlap")
    sample_rate, codebook_size = (
        settings.whole("sampling_rate", 24000, RATE),
        settings.whole("codebook_size", 1024),
    )
    values: dict[str, Any] = {
        "sample_rate": sample_rate,
        "channels": settings.whole("audio_channels", 1),
        "latent_dim": latent_dim,
        "codebook_size": codebook_size,
        "num_codebooks": _count_codebooks(settings, math.prod(ratios), sample_rate, codebook_size),
        "segment_s": chunk_s,
        "segment_overlap": 0.0 if chunk_s is None else overlap,
        "normalise": settings.flag("normalize", False),
    }
    seanet = {
        "num_filters": settings.whole("num_filters", 32),
        "num_residual_layers": settings.whole("num_residual_layers", 1, Range(0, 2**18)),
        "ratios": ratios,
        "kernel_size": settings.whole("kernel_size", 7),
        "residual_kernel_size": settings.whole("residual_kernel_size", 3),
        "last_kernel_size": settings.whole("last_kernel_size", 7),
        "dilation_base": settings.whole("dilation_growth_rate", 2),
        "compress": settings.whole("compress", 2),
        "true_skip": not settings.flag("use_conv_shortcut", True),
        "lstm": settings.whole("num_lstm_layers", 2),
        "causal": settings.flag("use_causal_conv", True),
        "pad_mode": settings.choice("pad_mode", ("constant", "reflect", "replicate"), "reflect"),
        "trim_right_ratio": settings.number("trim_right_ratio", 1.0),
        "norm": encodec.NORMS[
            settings.choice("norm_type", ("weight_norm", "time_group_norm"), "weight_norm")
        ],
    }
    prefix = f"{settings.key}." if settings.key else ""
    settings.done([prefix + key for key in GENERIC])
    return encodec.make_config(values, seanet, settings.where)


def _count_codebooks(settings: Settings, hop_length: int, sample_rate: int, codebook_size: int) -> int:
    """transformers says how many codebooks there are by the largest bandwidth in kbit/s."""
    kbps = settings.take("target_bandwidths", [1.5, 3.0, 6.0, 12.0, 24.0])
    if (
        not isinstance(kbps, list)
        or not kbps
        or any(type(b) not in (int, float) or not 0 < b < 1e6 for b in kbps)
    ):
        raise InputError(f"{settings.where}: target_bandwidths is {short(kbps)}; a list of kbit/s is needed")
    bits = max(1, math.ceil(math.log2(codebook_size)))
    count = int(1000 * kbps[-1] // (math.ceil(sample_rate / hop_length) * bits))
    if count < 1:
        raise InputError(f"{settings.where}: target_bandwidths is {short(kbps)}: too little for one codebook")
    return count
