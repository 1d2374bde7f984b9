"""Generators and codecs as directories of `transformers`: MusicgenForConditionalGeneration, EncodecModel, DacModel.

config.json               model_type musicgen, with a configuration each for text_encoder, audio_encoder and decoder
model.safetensors         text_encoder.*, enc_to_dec_proj.*, decoder.*, audio_encoder.*
generation_config.json    ids of the special token, guidance, longest generation
preprocessor_config.json  and the tokenizer's files: what `AutoProcessor` needs

Its delays are 0, 1, 2 ..., in pairs for the two channels of a stereo model; its codec is EnCodec; its text encoder's
width is projected to the decoder's unless they are equal. A model that is something else is refused, with what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from audiogen.codec.conv import plain_weights
from audiogen.codec.dac import DacCodec
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.segmented import SegmentedCodec
from audiogen.config import to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.files.tensors import length
from audiogen.interfaces import Codec as AnyCodec
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.models.parts import their_name
from audiogen.models.settings import source, table, theirs
from audiogen.text.t5 import T5Conditioner
from audiogen.text.vocabulary import Vocabulary

NORMALIZER, CHARACTER_MAP = 3, 2  # fields of ModelProto and NormalizerSpec in sentencepiece_model.proto


def save(
    directory: str | Path,
    lm: TokenLM,
    conditioner: T5Conditioner,
    codec: AnyCodec,
    max_frames: int,
    guidance: float,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write the directory; config.json comes last, so that a new one is whole or no model.

    max_frames, guidance: what it generates by default. dtype: of language model and text encoder; the codec's
    weights stay float32, though `transformers` opens all in this one type by default.
    """
    directory = Path(directory)
    decoder_config, decoder = decoder_parts(lm)
    encoder = conditioner.text_encoder().stack
    projection = _projection(conditioner)
    audio_config, audio = encodec_parts(codec)
    learned = projection | {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    learned |= {f"text_encoder.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    # the embedding that T5's encoder shares with its decoder is stored once
    learned["text_encoder.shared.weight"] = learned.pop("text_encoder.encoder.embed_tokens.weight")
    tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in learned.items()}
    tensors |= {f"audio_encoder.{name}": tensor.detach().cpu() for name, tensor in audio.items()}
    text_name = "" if conditioner.config.embedded else conditioner.config.encoder
    config = {
        "architectures": ["MusicgenForConditionalGeneration"],
        "model_type": "musicgen",
        "is_encoder_decoder": True,
        "dtype": str(dtype).removeprefix("torch."),
        "text_encoder": encoder.config.to_dict() | {"_name_or_path": text_name},
        "audio_encoder": audio_config,
        "decoder": decoder_config,
    }
    generation = {
        # one token is all three
        **dict.fromkeys(("bos_token_id", "pad_token_id", "decoder_start_token_id"), lm.special),
        "do_sample": True,
        "guidance_scale": guidance,
        # steps of the interleaved sequence: the frames and the delays of one channel's codebooks
        "max_length": max_frames + lm.config.num_codebooks // decoder_config["audio_channels"],
    }
    processor = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "processor_class": "MusicgenProcessor",
        "feature_size": codec.channels,
        "sampling_rate": codec.sample_rate,
        "padding_side": "left",
    }
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(conditioner.tokenizer, Vocabulary):
        with writing.storing(directory):
            from_vocabulary(conditioner.tokenizer).save_pretrained(directory)
    else:
        conditioner.tokenizer.save(directory)
    writing.write_json(directory / "generation_config.json", generation)
    _write(directory, config, tensors, processor)


def _write(
    directory: Path, config: dict[str, Any], tensors: dict[str, Tensor], processor: Mapping[str, Any]
) -> None:
    """Weights, `processor`, which turns sound into input, and config.json, which comes last."""
    checkpoint.write_tensors(directory / "model.safetensors", tensors, {"format": "pt"})
    contents = {**processor, "padding_value": 0.0, "return_attention_mask": True}
    writing.write_json(directory / "preprocessor_config.json", contents)
    writing.write_json(directory / "config.json", config)


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


def decoder_parts(lm: TokenLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """MusicgenDecoderConfig as a dict, and the tensors of MusicgenForCausalLM (views of the model's).

    Its delays are 0, 1, 2 ... for one channel and 0, 0, 1, 1 ... for two; other patterns are an InputError.
    """
    config = lm.config
    if config.backbone is not None:
        raise InputError(
            "the model has a backbone of Qwen3; transformers has no such MusicGen: give --to audiogen"
        )
    decoder = {
        "model_type": "musicgen_decoder",
        **theirs(config, "transformers.decoder"),
        "ffn_dim": config.ff_mult * config.dim,
        "audio_channels": _channels_of(config),
        "max_position_embeddings": 2048,  # length of a table that transformers extends where needed
        **{key: value for key, value in table("transformers.expected_decoder").items() if value is not None},
        **dict.fromkeys(("attention_dropout", "activation_dropout", "layerdrop"), 0.0),
        "pad_token_id": lm.special,
        "bos_token_id": lm.special,
        "eos_token_id": None,
    }
    tensors: dict[str, Tensor] = {}
    for ours, tensor in lm.state_dict().items():
        names = source(ours, "transformers.names", config.num_codebooks).names
        tensors |= zip(names, tensor.chunk(len(names)), strict=True)
    return decoder, tensors


def _channels_of(config: LMConfig) -> int:
    """Channels of the model of transformers whose delays are those of this one."""
    books = range(config.num_codebooks)
    for channels in (1, 2):
        delays = [k // channels for k in books]
        if config.pattern == "delay" and [*(config.delays or books)] == delays and not len(books) % channels:
            return channels
    shown = list(config.delays) or config.pattern
    raise InputError(
        f"the model interleaves its codebooks by {config.pattern} ({shown}); transformers has only the delays "
        "0, 1, 2 ... and, in stereo, 0, 0, 1, 1 ..., so it stays in the audiogen layout"
    )


def encodec_parts(
    codec: AnyCodec, num_codebooks: tuple[int, ...] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A codec as (config.json, tensors) of `transformers.EncodecModel`.

    num_codebooks: those that it offers as bandwidths, the last one all; by default all alone, which is what MusicGen
    encodes with. Of a `dual_mono` codec it is the mono model, as in a stereo MusicGen. InputError where transformers
    has nothing for the codec.
    """
    if not isinstance(codec, Codec):
        raise InputError(
            f"codec {codec.name or 'given'} is no EnCodec; only an EnCodec can be written as one"
        )
    config = codec.config
    seanet = config.seanet
    streams = 2 if config.dual_mono else 1
    for key, value, allowed in (
        ("arch", config.arch, config.arch == "seanet"),
        ("seanet.lstm", seanet.lstm, seanet.lstm > 0),
        ("codebook_size", config.codebook_size, config.codebook_size & (config.codebook_size - 1) == 0),
        ("channels", config.channels, config.channels <= 2),
    ):
        if not allowed:
            raise InputError(
                f"codec {codec.name or 'given'} has {key} {value!r}; EncodecModel of transformers has SEANet layers "
                "with an LSTM, codebooks of a power of 2, and one or two channels"
            )
    contents: dict[str, Any] = {
        **theirs(config, "transformers.codec"),
        **theirs(seanet, "transformers.seanet"),
        "model_type": "encodec",
        "target_bandwidths": bandwidths(config, num_codebooks or (config.num_codebooks // streams,)),
        "audio_channels": config.channels // streams,
        "chunk_length_s": config.segment_s,
        "overlap": None if config.segment_s is None else config.segment_overlap,
        "codebook_dim": config.latent_dim,
        "norm_type": "time_group_norm" if seanet.norm == "group" else "weight_norm",
        "use_conv_shortcut": not seanet.true_skip,
    }
    return contents, _encodec_tensors(codec)


def _encodec_tensors(codec: Codec) -> dict[str, Tensor]:
    """Its tensors under the names of transformers, with weight norm where EncodecModel has it."""
    own = plain_weights(codec)
    tensors = {}
    for name, tensor in own.items():
        theirs, tensor = their_name(name, "transformers", own), tensor.detach().cpu()
        if codec.config.seanet.norm == "none" and name.endswith((".conv.weight", ".convtr.weight")):
            stem = theirs.removesuffix(".weight") + ".parametrizations.weight.original"
            tensors[f"{stem}0"] = length(tensor)
            tensors[f"{stem}1"] = tensor
        else:
            tensors[theirs] = tensor.reshape(1).float() if name.endswith(".initialised") else tensor
    for k, book in enumerate(codec.quantizer.books):
        average = (book.codewords * book.usage[:, None]).cpu()
        tensors[f"quantizer.layers.{k}.codebook.embed_avg"] = average
    return tensors


def save_codec_transformers(directory: str | Path, codec: AnyCodec | SegmentedCodec) -> None:
    """Write the directory that `EncodecModel.from_pretrained` opens, or for a DAC `DacModel`'s.

    An EnCodec offers 2, 4, 8 ... codebooks and all of them. config.json comes last, so that a new directory is whole
    or no model.
    """
    if isinstance(codec, SegmentedCodec):
        codec = codec.codec
    if isinstance(codec, DacCodec):
        sizes, hop = codec.config, {"hop_length": codec.hop_length}
        ratios = list(sizes.downsampling_ratios)
        contents = {"model_type": "dac", "architectures": ["DacModel"], **to_plain(sizes), **hop}
        contents |= {
            "upsampling_ratios": ratios[::-1],
            "hidden_size": sizes.encoder_hidden_size * 2 ** len(ratios),
        }
        processor = {"feature_extractor_type": "DacFeatureExtractor", "feature_size": 1, **hop}
        processor["sampling_rate"] = codec.sample_rate
        _write(Path(directory), contents, dict(codec.state_dict()), processor)
        return
    total = codec.num_codebooks // (1 + (isinstance(codec, Codec) and codec.config.dual_mono))
    counts = (*(2**power for power in range(1, 16) if 2**power < total), total)
    contents, tensors = encodec_parts(codec, counts)
    contents["architectures"] = ["EncodecModel"]
    processor = {key: contents[key] for key in ("chunk_length_s", "overlap", "sampling_rate")}
    processor |= {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": contents["audio_channels"],
    }
    _write(Path(directory), contents, tensors, processor)


def bandwidths(config: CodecConfig, counts: tuple[int, ...]) -> list[float]:
    """kbit/s that transformers takes for that many codebooks: the inverse of what its reader computes."""
    bits = math.ceil(math.log2(config.codebook_size))
    bits_per_s = math.ceil(config.sample_rate / config.hop_length) * bits
    values = [count * bits_per_s / 1000 for count in counts]
    # It divides again and rounds down, so that a value which rounding made too small would lose a codebook.
    return [
        value if 1000 * value // bits_per_s == count else math.nextafter(value, math.inf)
        for value, count in zip(values, counts, strict=True)
    ]


# ------------------------------------------------------------------------------------------- the tokenizer


def from_vocabulary(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """A SentencePiece vocabulary as a tokenizer of `transformers`: the same ids for every text whose characters it has.

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
    """The bytes of field `wanted` in a serialised protocol buffer (protobuf.dev/programming-guides/encoding).

    Empty where it lacks the field.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = divmod(key, 8)
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind in (0, 2):  # of kind 0 it is the value itself
            size, at = _varint(message, at)
        if kind == 2 and number == wanted:
            return message[at : at + size]
        at += size if kind else 0
    return b""


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number from a place on and where it ends: seven bits a byte, the lowest first; the last is below 128."""
    end = next(place for place in range(at, len(message)) if message[place] < 128) + 1
    return sum((byte & 127) << 7 * place for place, byte in enumerate(message[at:end])), end
