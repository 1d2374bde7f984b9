"""A generator as a model directory of `transformers`: what `MusicgenForConditionalGeneration.from_pretrained` opens.

config.json               model_type musicgen, with a configuration each for text_encoder, audio_encoder and decoder
model.safetensors         text_encoder.*, enc_to_dec_proj.*, decoder.*, audio_encoder.*
generation_config.json    ids of the special token, guidance, longest generation
preprocessor_config.json  and the tokenizer's files: what `AutoProcessor` needs

Its delays are 0, 1, 2 ..., in pairs for the two channels of a stereo model; its codec is EnCodec; its text encoder's
width is projected to the decoder's unless they are equal. A model that is something else is refused, with what it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Codec
from audiogen.lm.model import TokenLM
from audiogen.models import codec_public as public_codec
from audiogen.models import lm_layouts as public_lm
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary

NORMALIZER, CHARACTER_MAP = 3, 2  # fields of ModelProto and NormalizerSpec in sentencepiece_model.proto


def save(
    directory: str | Path,
    lm: TokenLM,
    conditioner: T5Conditioner,
    codec: Codec,
    max_frames: int,
    guidance: float,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the directory; config.json comes last, so that a new one is whole or no model.

    max_frames, guidance: what it generates by default. dtype: of language model and text encoder; the codec's
    weights stay float32, though `transformers` opens all in this one type unless told otherwise.
    """
    directory = Path(directory)
    config, tensors = parts(lm, conditioner, codec, dtype)
    decoder = config["decoder"]
    channels = decoder.get("audio_channels", 1)
    # one token is all three
    special = dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id"), lm.special)
    save_tokenizer(directory, conditioner)
    checkpoint.write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    checkpoint.write_json(
        directory / "generation_config.json",
        {
            **special,
            "do_sample": True,
            "guidance_scale": guidance,
            # steps of the interleaved sequence: the frames and the delays of one channel's codebooks
            "max_length": max_frames + lm.config.num_codebooks // channels,
        },
    )
    checkpoint.write_json(
        directory / "preprocessor_config.json",
        {
            "feature_extractor_type": "EncodecFeatureExtractor",
            "processor_class": "MusicgenProcessor",
            "feature_size": codec.channels,
            "sampling_rate": codec.sample_rate,
            "padding_side": "left",
            "padding_value": 0.0,
            "return_attention_mask": True,
        },
    )
    checkpoint.write_json(directory / "config.json", config)


def parts(
    lm: TokenLM, conditioner: T5Conditioner, codec: Codec, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """MusicgenConfig as a dict, and the tensors of MusicgenForConditionalGeneration by name."""
    encoder = conditioner.encoder_stack()
    name = "" if conditioner.config.embedded else conditioner.config.encoder
    projection = _projection(conditioner)
    audio_config, audio = public_codec.transformers_parts(codec)
    decoder_config, decoder = public_lm.transformers_parts(lm)
    text = {_text_name(name): tensor for name, tensor in encoder.state_dict().items()}
    learned = text | projection | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in learned.items()}
    tensors |= {f"audio_encoder.{name}": tensor.detach().cpu() for name, tensor in audio.items()}
    config = {
        "architectures": ["MusicgenForConditionalGeneration"],
        "model_type": "musicgen",
        "is_encoder_decoder": True,
        "dtype": str(dtype).removeprefix("torch."),
        "text_encoder": encoder.config.to_dict() | {"_name_or_path": name},
        "audio_encoder": audio_config | {"model_type": "encodec"},
        "decoder": decoder_config | {"model_type": "musicgen_decoder"},
    }
    return config, tensors


def _projection(conditioner: T5Conditioner) -> dict[str, Tensor]:
    """Weight and bias from the text encoder's width to the model's; between equal widths transformers has none."""
    weight, bias = conditioner.output_proj.weight, conditioner.output_proj.bias
    if weight.shape[0] != weight.shape[1]:
        return {"enc_to_dec_proj.weight": weight, "enc_to_dec_proj.bias": bias}
    if not torch.equal(weight, torch.eye(len(weight), device=weight.device)) or bias.any():
        raise InputError(
            f"text encoder and language model are both {len(weight)} wide; transformers has no projection between "
            "equal widths, and this model has one: it can only be kept in the layout of audiogen"
        )
    return {}


def _text_name(name: str) -> str:
    """The name in T5EncoderModel of a weight of its stack; the embedding it shares is stored once."""
    return "text_encoder.shared.weight" if name == "embed_tokens.weight" else f"text_encoder.encoder.{name}"


def save_tokenizer(directory: Path, conditioner: T5Conditioner) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(directory)` reads."""
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(conditioner.tokenizer, Vocabulary):
        from_vocabulary(conditioner.tokenizer).save_pretrained(directory)
    else:
        conditioner.tokenizer.save(directory)


def from_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A SentencePiece vocabulary as a tokenizer of `transformers`: the same ids for every text it knows.

    Unknown characters become <unk>, which the embedded text encoder leaves out: it was not trained with it.
    """
    pieces = SentencePieceProcessor(model_proto=vocabulary.model)
    scored = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(vocabulary))]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=vocabulary.unk_id, byte_fallback=False))
    characters = _field(_field(vocabulary.model, NORMALIZER), CHARACTER_MAP)
    if characters:
        tokenizer.normalizer = normalizers.Precompiled(characters)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always", split=True)]
    )
    end = pieces.id_to_piece(vocabulary.eos_id)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, vocabulary.eos_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        unk_token=pieces.id_to_piece(vocabulary.unk_id),
        pad_token=pieces.id_to_piece(pieces.pad_id()),
        model_input_names=["input_ids", "attention_mask"],
    )


def _field(message: bytes, wanted: int) -> bytes:
    """The bytes of field `wanted` in a serialised protocol buffer; empty where it lacks it."""
    return next((value for number, value in _fields(message) if number == wanted), b"")


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of the fields that have a length, in order (protobuf.dev/programming-guides/encoding)."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            varint()
        elif kind == 2:
            length = varint()
            yield tag >> 3, message[at : at + length]
            at += length
        else:
            at += {1: 8, 5: 4}[kind]
