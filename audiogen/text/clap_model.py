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

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.text.clap import MAX_TOKENS, OpenClap, quiet

BOS, PAD, EOS, UNK, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
SPECIAL = (BOS, PAD, EOS, UNK, MASK)  # RoBERTa's first ids
PAD_ID = SPECIAL.index(PAD)
NUM_BYTES = 256  # every one has a token, so that no text is unknown


@dataclass(frozen=True)
class TextTowerConfig:
    """Transformer over word pieces, learned from the captions, of lower-cased text. width: D. vocab_size: at most."""

    vocab_size: int = 1024
    width: int = 128
    num_layers: int = 2
    num_heads: int = 4
    ff: int = 512
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.vocab_size, self.width, self.num_layers, self.num_heads, self.ff) < 1:
            raise InputError("vocab_size, width, num_layers, num_heads and ff must be at least 1")
        if self.width % self.num_heads:
            raise InputError(f"width {self.width} is no multiple of num_heads {self.num_heads}")


@dataclass(frozen=True)
class AudioTowerConfig:
    """HTSAT. width: D of the first stage, doubled by each that follows. depths, num_heads: of the stages.

    spec_size: side of the square image that the spectrogram is folded to. patch: side of a patch. window: side of the
    windows of attention, in patches; each stage has half as many patches a side as the one before.
    """

    width: int = 48
    depths: tuple[int, ...] = (2, 2, 2)
    num_heads: tuple[int, ...] = (2, 4, 8)
    spec_size: int = 128
    patch: int = 8
    window: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise InputError(
                f"depths {self.depths} and num_heads {self.num_heads} must be as many, one a stage"
            )
        if min(self.width, self.spec_size, self.patch, self.window, *self.depths, *self.num_heads) < 1:
            raise InputError("width, depths, num_heads, spec_size, patch and window must be at least 1")
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

    @property
    def hidden_size(self) -> int:
        """D of the last stage."""
        return int(self.width * 2 ** (len(self.depths) - 1))


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel features in decibels. f_min, f_max: Hz. max_length_s: what is heard at once, whole seconds."""

    sample_rate: int = 16000
    n_fft: int = 1024
    hop_length: int = 320
    num_mels: int = 64
    f_min: float = 50.0
    f_max: float = 8000.0
    max_length_s: int = 5

    def __post_init__(self) -> None:
        if min(self.n_fft, self.hop_length, self.num_mels, self.max_length_s) < 1:
            raise InputError("n_fft, hop_length, num_mels and max_length_s must be at least 1")
        if not 0 <= self.f_min < self.f_max <= self.sample_rate / 2:
            raise InputError(
                f"mel bins from {self.f_min:g} to {self.f_max:g} Hz; they must ascend, up to half of "
                f"{self.sample_rate} Hz"
            )

    @property
    def num_frames(self) -> int:
        """T, of the longest sound."""
        return self.max_length_s * self.sample_rate // self.hop_length + 1


@dataclass(frozen=True)
class ClapModelConfig:
    """Both towers and the features; projection_dim: E of the embeddings."""

    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    projection_dim: int = 128

    def __post_init__(self) -> None:
        if self.projection_dim < 1:
            raise InputError(f"projection_dim is {self.projection_dim}; it must be at least 1")
        size, bins = self.audio.spec_size, self.features.num_mels
        folds = size // bins
        if size % bins or self.audio.last_grid % folds:
            raise InputError(
                f"audio.spec_size is {size}: features.num_mels ({bins}) must divide it, and its {folds} stretches "
                f"the {self.audio.last_grid} patches a side of the last stage"
            )
        if self.features.num_frames > size * folds:
            raise InputError(
                f"{self.features.max_length_s} s are {self.features.num_frames} frames, but audio.spec_size {size} "
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
    words.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
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


def new_clap(config: ClapModelConfig, vocabulary: str) -> OpenClap:
    """A model with weights from torch's global generator. vocabulary: the JSON of its tokenizer."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(vocabulary),
        bos_token=BOS,
        cls_token=BOS,
        pad_token=PAD,
        eos_token=EOS,
        sep_token=EOS,
        unk_token=UNK,
        mask_token=MASK,
        model_max_length=MAX_TOKENS,
    )
    text, audio, features = config.text, config.audio, config.features
    words = {
        "vocab_size": len(tokenizer),
        "hidden_size": text.width,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "intermediate_size": text.ff,
        "hidden_dropout_prob": text.dropout,
        "attention_probs_dropout_prob": text.dropout,
        "max_position_embeddings": MAX_TOKENS + PAD_ID + 1,  # positions are counted from after the padding's
        "pad_token_id": PAD_ID,
        "bos_token_id": SPECIAL.index(BOS),
        "eos_token_id": SPECIAL.index(EOS),
    }
    sounds = {
        "spec_size": audio.spec_size,
        "num_mel_bins": features.num_mels,
        "window_size": audio.window,
        "patch_size": audio.patch,
        "patch_stride": [audio.patch, audio.patch],
        "depths": list(audio.depths),
        "num_attention_heads": list(audio.num_heads),
        "num_hidden_layers": len(audio.depths),
        "patch_embeds_hidden_size": audio.width,
        "hidden_size": audio.hidden_size,
        "hidden_dropout_prob": audio.dropout,
    }
    extractor = ClapFeatureExtractor(
        feature_size=features.num_mels,
        sampling_rate=features.sample_rate,
        hop_length=features.hop_length,
        max_length_s=features.max_length_s,
        fft_window_size=features.n_fft,
        frequency_min=features.f_min,
        frequency_max=features.f_max,
        truncation="rand_trunc",
    )
    model = ClapModel(
        ClapConfig(text_config=words, audio_config=sounds, projection_dim=config.projection_dim)
    )
    initialise(model)
    return OpenClap(model, tokenizer, extractor)


@torch.no_grad()
def initialise(model: ClapModel) -> None:
    """Weights to train from, of torch's global generator; transformers' own are too small for narrow layers."""
    for layer in model.modules():
        if isinstance(
            layer, (nn.Linear, nn.Conv2d)
        ):  # of unit variance in, unit variance out, whatever the width
            layer.weight.normal_(std=layer.weight[0].numel() ** -0.5)
    # HTSAT knows where a patch lies in its window, not whether it is high or low: each bin is marked.
    model.audio_model.audio_encoder.batch_norm.bias.normal_(std=0.5)


def describe(opened: OpenClap, name: str) -> ClapModelConfig:
    """The sizes of a model, own or released; InputError for one that cannot be trained here, with its name."""
    extractor, whole = opened.extractor, opened.model.config
    if extractor is None or whole.audio_config.enable_fusion:
        raise InputError(
            f"CLAP model {name!r} {'has no audio branch' if extractor is None else 'fuses pieces of long sounds'}; "
            "give a whole, unfused one, such as laion/clap-htsat-unfused"
        )
    text, audio = whole.text_config, whole.audio_config
    patch = audio.patch_size if isinstance(audio.patch_size, int) else audio.patch_size[0]
    return ClapModelConfig(
        TextTowerConfig(
            text.vocab_size,
            text.hidden_size,
            text.num_hidden_layers,
            text.num_attention_heads,
            text.intermediate_size,
            float(text.hidden_dropout_prob),
        ),
        AudioTowerConfig(
            audio.patch_embeds_hidden_size,
            tuple(audio.depths),
            tuple(audio.num_attention_heads),
            audio.spec_size,
            patch,
            audio.window_size,
            float(audio.hidden_dropout_prob),
        ),
        FeatureConfig(
            extractor.sampling_rate,
            extractor.fft_window_size,
            extractor.hop_length,
            extractor.feature_size,
            float(extractor.frequency_min),
            float(extractor.frequency_max),
            extractor.max_length_s,
        ),
        whole.projection_dim,
    )


def save_clap(directory: str | Path, opened: OpenClap, info: Mapping[str, Any]) -> None:
    """Write a directory that `Clap` and transformers open; config.json comes last, so that a new one is whole or none.

    info: into info.json.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model, tokenizer, extractor = opened
    checkpoint.write_tensors(directory / "model.safetensors", model.state_dict(), {"format": "pt"})
    with quiet():
        tokenizer.save_pretrained(directory)
        extractor.save_pretrained(directory)
    checkpoint.write_json(directory / "info.json", dict(info))
    config = json.loads(model.config.to_json_string()) | {"architectures": [type(model).__name__]}
    checkpoint.write_json(directory / "config.json", config)
