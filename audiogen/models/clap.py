"""CLAP models to be trained: their sizes, new ones with a vocabulary of their own, and writing them for `Clap`.

The architecture is that of transformers' ClapModel: a RoBERTa-like text tower, HTSAT (arXiv:2202.00874) on log-mels,
and a projection of each to E. HTSAT lays the M bins of `spec_size / M` stretches of time below one another, so that
the spectrogram becomes a square image, and works on its patches in windows (Swin, arXiv:2103.14030).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from audiogen.config import Positive, Probability, build, check_ranges
from audiogen.errors import InputError
from audiogen.files import checkpoint, writing
from audiogen.models.settings import Settings, table, theirs
from audiogen.text.clap import MAX_TOKENS, ClapParts
from audiogen.text.encoder import quiet

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL = (BOS, PAD, EOS, UNK, MASK)  # RoBERTa's first ids
PAD_ID = SPECIAL.index(PAD)
NUM_BYTES = 256  # every one has a token, so that no text is unknown


@dataclass(frozen=True)
class TextTowerConfig:
    """Transformer over word pieces, learned from the captions, of lower-cased text. width: D. vocab_size: at most."""

    vocab_size: Positive = 1024
    width: Positive = 128
    num_layers: Positive = 2
    num_heads: Positive = 4
    ff: Positive = 512
    dropout: Probability = 0.1

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.width % self.num_heads:
            raise InputError(f"width {self.width} is no multiple of num_heads {self.num_heads}")


@dataclass(frozen=True)
class AudioTowerConfig:
    """HTSAT. width: D of the first stage, doubled by each that follows. depths, num_heads: of the stages.

    spec_size: side of the square image that the spectrogram is folded to. patch: side of a patch. window: side of the
    windows of attention, in patches; each stage has half as many patches a side as the one before.
    """

    width: Positive = 48
    depths: tuple[Positive, ...] = (2, 2, 2)
    num_heads: tuple[Positive, ...] = (2, 4, 8)
    spec_size: Positive = 128
    patch: Positive = 8
    window: Positive = 4
    dropout: Probability = 0.1

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise InputError(f"depths {self.depths} and num_heads {self.num_heads} need one entry a stage")
        for stage, heads in enumerate(self.num_heads):
            if self.width * 2**stage % heads:
                raise InputError(
                    f"stage {stage} is {self.width * 2**stage} wide, no multiple of its {heads} num_heads"
                )
        smallest = self.patch * 2 ** (len(self.depths) - 1)
        if self.spec_size % smallest:
            raise InputError(
                f"spec_size is {self.spec_size}; {len(self.depths)} stages on patches of {self.patch} need a "
                f"multiple of {smallest}"
            )
        if self.last_grid < self.window:
            raise InputError(
                f"window is {self.window} patches, but the last stage has {self.last_grid} a side; make it no larger"
            )

    @property
    def last_grid(self) -> int:
        """Patches a side of the last stage."""
        return self.spec_size // self.patch // 2 ** (len(self.depths) - 1)


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features in decibels. f_min, f_max: Hz. max_length_s: the model's window, whole seconds."""

    sample_rate: int = 16000
    n_fft: Positive = 1024
    hop_length: Positive = 320
    num_mels: Positive = 64
    f_min: float = 50.0
    f_max: float = 8000.0
    max_length_s: Positive = 5

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"mel bins from {self.f_min:g} to {self.f_max:g} Hz must ascend, up to half of {self.sample_rate} Hz"
            )


@dataclass(frozen=True)
class ClapModelConfig:
    """Both towers and the features; projection_dim: E of the embeddings."""

    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    projection_dim: Positive = 128

    def __post_init__(self) -> None:
        check_ranges(self)
        size, bins = self.audio.spec_size, self.features.num_mels
        folds = size // bins  # stretches of time that lie below one another in the square image
        if size % bins or self.audio.last_grid % folds:
            raise InputError(
                f"audio.spec_size is {size}: features.num_mels ({bins}) must divide it, and its {folds} stretches "
                f"the {self.audio.last_grid} patches a side of the last stage"
            )
        num_frames = self.features.max_length_s * self.features.sample_rate // self.features.hop_length + 1
        if num_frames > size * folds:
            raise InputError(
                f"{self.features.max_length_s} s are {num_frames} frames, but audio.spec_size {size} "
                f"holds {size * folds} of {bins} bins: make features.hop_length or audio.spec_size larger"
            )


def learn_vocabulary(captions: Iterable[str], vocab_size: int) -> str:
    """The JSON of a tokenizer in byte-level BPE, RoBERTa's kind (Sennrich et al., 2016, arXiv:1508.07909).

    A function of the set of captions. Text is normalised (NFKC), lower-cased, and its spaces are joined.
    """
    if vocab_size <= NUM_BYTES + len(SPECIAL):
        raise InputError(
            f"model.text.vocab_size is {vocab_size}; bytes and special tokens alone are "
            f"{NUM_BYTES + len(SPECIAL)}, so make it larger"
        )
    words = Tokenizer(models.BPE(unk_token=UNK))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    steps = [normalizers.NFKC(), normalizers.Lowercase(), spaces, normalizers.Strip()]
    words.normalizer = normalizers.Sequence(steps)
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(sorted(set(captions)), trainer)
    words.post_processor = processors.TemplateProcessing(
        f"{BOS} $A {EOS}", special_tokens=[(token, SPECIAL.index(token)) for token in (BOS, EOS)]
    )
    return str(words.to_str())


def new_clap(config: ClapModelConfig, vocabulary: str) -> ClapParts:
    """A model with weights from torch's global generator. vocabulary: the JSON of its tokenizer."""
    special = {"bos_token": BOS, "cls_token": BOS, "pad_token": PAD, "eos_token": EOS, "sep_token": EOS}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(vocabulary),
        unk_token=UNK,
        mask_token=MASK,
        model_max_length=MAX_TOKENS,
        **special,
    )
    text = theirs(config.text, "clap.text") | {
        "vocab_size": len(tokenizer),
        "attention_probs_dropout_prob": config.text.dropout,
        "max_position_embeddings": MAX_TOKENS + PAD_ID + 1,  # positions are counted from after the padding's
        "pad_token_id": PAD_ID,
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": SPECIAL.index(EOS),
    }
    audio, num_stages = config.audio, len(config.audio.depths)
    towers = theirs(audio, "clap.audio") | {
        "num_mel_bins": config.features.num_mels,
        "patch_stride": [audio.patch, audio.patch],
        "num_hidden_layers": num_stages,
        "hidden_size": audio.width * 2 ** (num_stages - 1),  # D of the last stage
    }
    extractor = ClapFeatureExtractor(**theirs(config.features, "clap.features"), truncation="rand_trunc")
    shape = ClapConfig(text_config=text, audio_config=towers, projection_dim=config.projection_dim)
    model = ClapModel(shape)
    initialise(model)
    return ClapParts(model, tokenizer, extractor)


@torch.no_grad()
def initialise(model: ClapModel) -> None:
    """Weights to train from, of torch's global generator; transformers' own are too small for narrow layers."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            # of unit variance in, unit variance out, whatever the width
            layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)
    # HTSAT's windows have no absolute position in frequency: a bias of its own marks each bin.
    model.audio_model.audio_encoder.batch_norm.bias.normal_(std=0.5)


def describe(parts: ClapParts, name: str) -> ClapModelConfig:
    """The sizes of a model, own or released; InputError for one that cannot be trained here, with its name."""
    extractor, whole = parts.extractor, parts.model.config
    if extractor is None or whole.audio_config.enable_fusion:
        raise InputError(
            f"CLAP model {name!r} {'has no audio branch' if extractor is None else 'fuses pieces of long sounds'}; "
            "give a whole, unfused one, such as laion/clap-htsat-unfused"
        )
    audio = whole.audio_config.to_dict()
    if isinstance(audio["patch_size"], (list, tuple)):
        audio["patch_size"] = audio["patch_size"][0]  # of the sizes for both axes
    values: dict[str, Any] = {"projection_dim": whole.projection_dim}
    for part, cls, found in (
        ("text", TextTowerConfig, whole.text_config.to_dict()),
        ("audio", AudioTowerConfig, audio),
        ("features", FeatureConfig, extractor.to_dict()),
    ):
        values[part] = Settings(found, f"CLAP model {name!r}").values(cls, table(f"clap.{part}"))
    return build(ClapModelConfig, values, "the CLAP model")


def save_clap(directory: str | Path, parts: ClapParts, info: Mapping[str, Any]) -> None:
    """Write a directory that `Clap` and transformers open; config.json comes last, so that a new one is whole or none.

    info: into info.json.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model, tokenizer, extractor = parts
    checkpoint.write_tensors(directory / "model.safetensors", model.state_dict(), {"format": "pt"})
    with quiet(), writing.storing(directory):
        tokenizer.save_pretrained(directory)
        extractor.save_pretrained(directory)
    writing.write_json(directory / "info.json", dict(info))
    config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    writing.write_json(directory / "config.json", config)
