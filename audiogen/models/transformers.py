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

from torch import Tensor

from audiogen.codec.dac import DacSizes
from audiogen.codec.model import CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.config import Range, build, short
from audiogen.errors import InputError
from audiogen.files.checkpoint import read_weights, weights_file
from audiogen.files.tensors import empty, match, shaped, under
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.parts import CodecParts, CodecReference, LMParts, release_parts
from audiogen.models.settings import RATE, Settings, read_settings, source, table
from audiogen.text import encoder
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.t5 import TextConfig

SINGLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
DECODER, TEXT, AUDIO, PROJECTION = "decoder.", "text_encoder.", "audio_encoder.", "enc_to_dec_proj."
# Sinusoids that versions of before 2025 stored; they follow from the width.
POSITIONS = f"{DECODER}model.decoder.embed_positions.weights"
TRAINING_S = 30.0  # seconds of sound that the released models were trained on at a time


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
    decoder.done([*table("transformers.harmless"), *table("transformers.harmless_decoder")])
    weights = weights_file(directory, SINGLE, INDEX)
    tensors = {name: tensor for name, tensor in read_weights(weights).items() if not name.startswith(AUDIO)}
    section = settings.section("text_encoder")
    frozen, own = _text_encoder(section, tensors, directory)
    decoder_state = empty(lambda: TokenLM(lm), weights, len(tensors)).state_dict()
    own |= {f"{DECODER}{name}": tensor for name, tensor in decoder_state.items()}
    if frozen.width != lm.dim:
        own |= shaped({f"{PROJECTION}weight": (lm.dim, frozen.width), f"{PROJECTION}bias": (lm.dim,)})
    matches = match(
        own, tensors, lambda name: source(name, "transformers.names", lm.num_codebooks), weights, [POSITIONS]
    )
    if text_encoder is not None:
        frozen = encoder.named(text_encoder, frozen.width, directory, now=True)
    name = text_encoder or str(section.take("_name_or_path", None) or "t5")
    return release_parts(
        lm,
        TextConfig(name, lm.dim, stored=text_encoder is None),
        frozen,
        under(matches, DECODER),
        under(matches, PROJECTION),
        CodecReference(str(directory), "", channels == 2),
        _max_frames(settings.section("audio_encoder"), generation, lm.num_codebooks // channels),
        generation.number("guidance_scale", None, Range(0)),
    )


def lm_config(decoder: Settings, generation: Settings, channels: int) -> LMConfig:
    """Absent keys have the defaults of `transformers.MusicgenDecoderConfig`."""
    decoder.expect(**table("transformers.expected_decoder"))
    values = decoder.values(LMConfig, table("transformers.decoder"))
    num_codebooks, size, width = (values[key] for key in ("num_codebooks", "codebook_size", "dim"))
    ff_width = decoder.whole("ffn_dim", 4096)
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
    values |= {"ff_mult": ff_width // width, "delays": [k // channels for k in range(num_codebooks)]}
    return build(LMConfig, values, where=str(decoder.where))


def _text_encoder(
    section: Settings, found: Mapping[str, Tensor], directory: Path
) -> tuple[FrozenEncoder, dict[str, Tensor]]:
    """The T5 that the release carries, and its tensors by their names there, without memory."""
    where = f"{section.where}: text_encoder"
    shape = encoder.read_shape(section.contents, where)
    stack = empty(lambda: encoder.new_stack(shape), where, len(found)).state_dict()
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


def read_codec(directory: Path) -> CodecParts:
    """EncodecModel, the codec within a MusicGen, or DacModel."""
    settings = read_settings(directory / "config.json")
    kind = settings.choice("model_type", ("encodec", "musicgen", "dac"))
    weights = weights_file(directory, SINGLE, INDEX, PICKLED)
    tensors = read_weights(weights)
    if kind == "dac":
        return CodecParts(dac_sizes(settings), tensors, "transformers", weights)
    if kind == "musicgen":
        settings, tensors = settings.section("audio_encoder"), under(tensors, AUDIO)
        settings.choice("model_type", ["encodec"], "encodec")
    return CodecParts(codec_config(settings), tensors, "transformers", weights)


def dac_sizes(settings: Settings) -> DacSizes:
    """The sizes of a DacModel. hop_length is not compared: released models say 512 and have the ratios of 320."""
    names = {field.name: [field.name] for field in fields(DacSizes)}
    sizes = build(DacSizes, settings.values(DacSizes, names), where=str(settings.where))
    upsampling = list(sizes.downsampling_ratios[::-1])
    settings.expect(
        upsampling_ratios=upsampling, hidden_size=sizes.encoder_hidden_size * 2 ** len(upsampling)
    )
    settings.done([*table("transformers.harmless"), *table("transformers.harmless_dac")])
    return sizes


def codec_config(settings: Settings) -> CodecConfig:
    """config.json of `transformers.EncodecModel`, or the audio_encoder in that of MusicGen."""
    values = settings.values(CodecConfig, table("transformers.codec"))
    seanet = settings.values(SeanetConfig, table("transformers.seanet"))
    # transformers has no projection between the two either
    settings.choice("codebook_dim", [values["latent_dim"], None], None)
    segment_s, overlap = settings.number("chunk_length_s", None), settings.number("overlap", None)
    if segment_s is not None:
        values |= {
            "segment_s": segment_s,
            "segment_overlap": settings.number("overlap") if overlap is None else overlap,
        }
    frame_rate = math.ceil(values["sample_rate"] / math.prod(seanet["ratios"]))
    values["num_codebooks"] = _count_codebooks(settings, frame_rate, values["codebook_size"])
    seanet["true_skip"] = not settings.flag("use_conv_shortcut", True)
    norm = settings.choice("norm_type", ("weight_norm", "time_group_norm"), "weight_norm")
    values["seanet"] = seanet | {"norm": "group" if norm == "time_group_norm" else "none"}
    settings.done(table("transformers.harmless"))
    return build(CodecConfig, values, where=str(settings.where))


def _count_codebooks(settings: Settings, frame_rate: int, codebook_size: int) -> int:
    """transformers says how many codebooks there are by the largest bandwidth in kbit/s."""
    kbps = settings.numbers(
        "target_bandwidths", [1.5, 3.0, 6.0, 12.0, 24.0], Range(0, 1e6, above=True, below=True)
    )
    bits = max(1, math.ceil(math.log2(codebook_size)))
    count = int(1000 * kbps[-1] // (frame_rate * bits))
    if count < 1:
        raise InputError(f"{settings.where}: target_bandwidths is {short(kbps)}: too little for one codebook")
    return count
