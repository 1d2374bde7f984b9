"""Text through a T5 encoder, a small one of our own or a pretrained one: for a language model, for a denoiser."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from audiogen.config import Positive, Range, build, check_ranges, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint, hub, writing
from audiogen.files.tensors import check_sizes, empty, fill
from audiogen.interfaces import Condition
from audiogen.packed import Linear
from audiogen.text import encoder
from audiogen.text.condition import from_rows
from audiogen.text.encoder import SHARED, STACK, FrozenEncoder, PretrainedTokenizer, TextEncoder
from audiogen.text.t5_stack import T5Shape, T5Stack
from audiogen.text.vocabulary import VOCABULARY_FILE, Vocabulary

KIND = "text_encoder"
TRAINED_FOLDER = "t5"  # shape and tokenizer of a fine-tuned pretrained encoder, as transformers writes them
LONGEST_TEXT = 512  # tokens; T5 was trained on this many


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder, and how wide its output is.

    encoder: "embedded" for a small T5 of our own over a vocabulary built from the training captions, "tokens" for
        the embeddings of a text's tokens alone, which a language model's backbone reads itself (`text.tokens`), or a
        T5 of the Hugging Face hub ("google-t5/t5-large", "google/flan-t5-base") or a directory holding one.
    width: D of the `Condition`, the width of the model that attends to it.
    trainable: train a pretrained encoder too, not only the projection to `width`; the embedded one always is.
    stored: keep a copy of a frozen encoder in the model directory, which then needs nothing else to be opened.
    max_tokens: longer texts are cut, with a warning.
    vocab_size, dim, num_layers, num_heads, dropout: of the embedded encoder, the first of them also of tokens; it is
        an upper bound where the vocabulary is built from the training captions.
    cache_dir: where embeddings of a frozen encoder are kept between runs; None keeps them in memory only.
    """

    encoder: str = "embedded"
    width: Positive = 512
    trainable: bool = False
    stored: bool = False
    max_tokens: Annotated[int, Range(2, LONGEST_TEXT)] = LONGEST_TEXT
    vocab_size: Positive = 1024
    dim: Positive = 256
    num_layers: Positive = 4
    num_heads: Positive = 4
    dropout: Annotated[float, Range(0, 1, below=True)] = 0.1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.encoder:
            raise InputError('text.encoder is empty; it is "embedded", a T5 hub id or a directory')
        if self.stored and self.trains_encoder:
            raise InputError("text.stored is for a frozen encoder; a trained one always is: set it false")
        if self.dim % self.num_heads:
            raise InputError(f"text.dim {self.dim} is not a multiple of text.num_heads {self.num_heads}")

    @property
    def embedded(self) -> bool:
        """Whether the encoder is ours, stored in the model directory."""
        return self.encoder == "embedded"

    @property
    def tokens(self) -> bool:
        """Whether there is no encoder but the model that reads the tokens."""
        return self.encoder == "tokens"

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder's weights are trained, and so stored in the model directory."""
        return self.embedded or self.tokens or self.trainable


class T5Conditioner(nn.Module):
    """`list[str or None] -> Condition`: tokens [B, L, D], zero where the mask is False.

    None and blank texts are no text: zeros and one valid position. Everything is float32, also under
    autocast: T5 overflows in float16. A text's result does not depend on the texts beside it: outside of
    training each text goes through the encoder by itself, so that not even the rounding differs.

    A frozen encoder is opened with the first text, so that what runs without text needs none. Its weights are not
    part of `state_dict()`: `config.encoder` names them.
    """

    def __init__(
        self,
        config: TextConfig,
        vocabulary: bytes | None = None,
        trained: Path | None = None,
        frozen: FrozenEncoder | None = None,
    ):
        """Random weights for the embedded encoder, pretrained ones otherwise.

        vocabulary: the SentencePiece model of the embedded encoder, from `train_vocabulary`.
        trained: folder where `save` put the shape and tokenizer of a fine-tuned pretrained encoder; its
            weights are then on the meta device, for the caller to assign.
        frozen: the encoder of a config that does not train it; by default the one that config.encoder names.
        """
        super().__init__()
        self.config = config
        self.width = config.width
        self.frozen: FrozenEncoder | None = None
        if config.trains_encoder:
            own = _open_trained(config, vocabulary, trained)
            self.encoder = own.stack.train()
            self._tokenizer = own.tokenizer
            encoder_width = own.stack.config.d_model
        else:
            self.frozen = frozen or encoder.named(config.encoder)
            self.frozen.cache_dir = config.cache_dir
            encoder_width = self.frozen.width
        self.output_proj = Linear(encoder_width, config.width)

    def text_encoder(self) -> TextEncoder:
        """Stack (float32, its shape in `.config`) and tokenizer; a frozen encoder is opened for it."""
        return TextEncoder(self.encoder, self._tokenizer) if self.frozen is None else self.frozen.encoder

    @property
    def tokenizer(self) -> Vocabulary | PretrainedTokenizer:
        """What turns text into token ids; a frozen encoder is opened for it."""
        return self.text_encoder().tokenizer

    def forward(self, texts: Sequence[str | None]) -> Condition:
        """B texts -> Condition with tokens [B, L, D]; see the class."""
        if isinstance(texts, str):
            raise ValueError("texts is one string; it must be a list of strings and None")
        rows = [self.token_ids(text) for text in texts]
        embeddings = iter(self._embed([row for row in rows if row]))
        nothing = next(self.parameters()).new_zeros(1, self.width)
        return from_rows([next(embeddings) if row else nothing for row in rows])

    def token_ids(self, text: str | None) -> list[int]:
        """Token ids ending in </s>; an empty list for no text. Warnings as in `TextEncoder.token_ids`.

        Outside of training words that no training caption had are warned of as well, where they were recorded.
        """
        if text is None or not text.strip():
            return []
        if not self.training and isinstance(self.tokenizer, Vocabulary):
            if unknown := self.tokenizer.unknown(text):
                words = ", ".join(
                    f"{word!r} (did you mean {like!r}?)" if like else repr(word)
                    for word, like in unknown.items()
                )
                warnings.warn(f"no training caption had {words}: what is made of it is a guess", stacklevel=2)
        return self.text_encoder().token_ids(text, self.config.max_tokens, self.config.encoder)

    def _embed(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Token ids -> projected embeddings, each [L, D]."""
        if not rows:
            return []
        device = self.output_proj.weight.device
        with torch.autocast(device.type, enabled=False):
            if self.frozen is not None:
                states = [self.frozen.states(row, device=device) for row in rows]  # each [L, encoder width]
            elif self.training:  # all at once, padded and masked
                ids = from_rows([torch.tensor(row) for row in rows])  # [B, L]; PAD_ID is 0
                padded = self.encoder(ids.tokens.to(device), ids.mask.to(device))  # [B, L, encoder width]
                states = [state[: len(row)] for state, row in zip(padded, rows, strict=True)]
            else:
                states = [self.encoder(torch.tensor([row], device=device))[0] for row in rows]
            if not self.training:
                return [self.output_proj(state) for state in states]
            return self.output_proj(torch.cat(states)).split([len(row) for row in rows])

    def save(self, directory: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json, weights (stored as `dtype`) and tokenizer; of a frozen encoder only the name.

        A frozen encoder that config.stored keeps is written whole.
        """
        directory = Path(directory)
        state = self.state_dict()
        if self.config.embedded:
            self.tokenizer.save(directory)
        elif self.config.trainable or self.config.stored:
            stack, tokenizer = self.text_encoder()
            writing.write_json(directory / TRAINED_FOLDER / "config.json", stack.config.to_dict())
            tokenizer.save(directory / TRAINED_FOLDER)
            state |= {f"{STACK}{name}": tensor for name, tensor in stack.state_dict().items()}
        released = encoder.HUB_IDS.get(self.config.encoder, "")  # t5-base is google-t5/t5-base on the hub
        config = to_plain(self.config)
        if (commit := hub.pinned(released)) != released:
            config["encoder"] = commit
        checkpoint.save_model(directory, KIND, config, state, dtype=dtype)

    @classmethod
    def load(
        cls, directory: Path | str, text_encoder: str | None = None, device: torch.device | str = "cpu"
    ) -> T5Conditioner:
        """Read what `save` wrote, in evaluation mode, its weights float32.

        text_encoder: directory or hub id of the T5 to use in place of a frozen encoder.
        """
        directory = Path(directory)
        config = read_config(directory, text_encoder)
        tensors = checkpoint.read_weights(directory / "model.safetensors")
        trained, vocabulary, frozen = directory / TRAINED_FOLDER, None, None
        if config.embedded:
            path = directory / VOCABULARY_FILE
            if not path.is_file():
                raise InputError(f"{path} is missing: the model directory was half-written; copy it again")
            vocabulary = path.read_bytes()
        elif not config.trainable:
            stack = encoder.stack_tensors(tensors)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(STACK)}
            if "output_proj.weight" not in tensors:
                raise InputError(f"weights of {directory} do not fit its config: missing output_proj.weight")
            if config.stored:
                frozen = encoder.carried(encoder.shape_of(trained), stack, str(trained), directory)
            else:
                width = tensors["output_proj.weight"].shape[-1]
                frozen = encoder.named(config.encoder, width, directory, now=text_encoder is not None)
        check_sizes(directory, config)
        conditioner = empty(lambda: cls(config, vocabulary, trained, frozen), directory, len(tensors))
        fill(conditioner, tensors, str, directory)
        return conditioner.eval().to(device)


class TextStates(nn.Module):
    """Text for a denoiser: B texts -> Condition with tokens [B, L, D], zero where the mask is False.

    config.encoder "embedded" is a small T5 of our own, trained with the denoiser; None and "" are then zero tokens. A
    frozen encoder gives its states without a projection, so config.width is its width; None is "" to it.
    """

    def __init__(
        self, config: TextConfig, vocabulary: bytes | None = None, frozen: FrozenEncoder | None = None
    ):
        super().__init__()
        self.config = config
        if config.trainable:
            raise InputError("text.trainable is not for a denoiser's text encoder; set it false")
        self.embedded = T5Conditioner(config, vocabulary) if config.embedded else None
        self.frozen: FrozenEncoder | None = None
        if not config.embedded:
            self.frozen = frozen or encoder.named(config.encoder, config.width)
            self.frozen.cache_dir = config.cache_dir
            encoder.check_width(self.frozen.width, config.width, config.encoder, "the model")

    def save_frozen(self, model: Path, tokenizer: Path) -> None:
        """Write a frozen encoder, as transformers' T5EncoderModel or T5GemmaEncoderModel, and its tokenizer."""
        assert self.frozen is not None
        stack, words = self.frozen.encoder
        tensors = {f"{STACK}{name}": tensor for name, tensor in stack.state_dict().items()}
        if isinstance(stack, T5Stack):
            tensors[SHARED] = tensors.pop(f"{STACK}embed_tokens.weight")
        checkpoint.write_tensors(model / "model.safetensors", tensors)
        config = stack.config.to_dict() | {"architectures": [stack.config.architecture]}
        writing.write_json(model / "config.json", config)
        words.save(tokenizer)

    def forward(self, texts: Sequence[str | None], lengths: Sequence[int] | None = None) -> Condition:
        """lengths: to pad shorter texts to, with tokens that count like the others; a frozen encoder only."""
        if self.frozen is None:
            assert self.embedded is not None
            return self.embedded(texts)
        rows = []
        for text, length in zip(texts, lengths or [0] * len(texts), strict=True):
            ids = self.frozen.encoder.token_ids(text or "", self.config.max_tokens, self.config.encoder)
            rows.append(self.frozen.states(ids, max(0, length - len(ids))))  # [L, D]
        return from_rows(rows)


def read_config(directory: Path | str, text_encoder: str | None = None) -> TextConfig:
    """The configuration in a directory that `T5Conditioner.save` wrote, with another frozen encoder if one is named."""
    config = build(TextConfig, checkpoint.read_config(directory, KIND)["config"], where=str(directory))
    if text_encoder is None:
        return config
    if config.trains_encoder:
        raise InputError(
            f"text encoder {text_encoder!r} cannot replace that of {directory}, which was trained along: leave it out"
        )
    return dataclasses.replace(config, encoder=local_or_hub(text_encoder), stored=False)


def local_or_hub(text_encoder: str) -> str:
    """A directory by its whole path, which stays right wherever a program starts; a hub id as it is."""
    path = Path(text_encoder)
    return str(path.resolve()) if path.exists() else text_encoder


def _open_trained(config: TextConfig, vocabulary: bytes | None, trained: Path | None) -> TextEncoder:
    """The T5 stack that is trained with the model, and its tokenizer."""
    if config.embedded:
        if vocabulary is None:
            raise InputError("the embedded text encoder needs a vocabulary; build one with train_vocabulary")
        words = Vocabulary(vocabulary)
        shape = T5Shape(
            vocab_size=len(words),
            d_model=config.dim,
            d_kv=config.dim // config.num_heads,
            d_ff=4 * config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout,
        )
        return TextEncoder(T5Stack(shape), words)
    if trained is not None:
        stack = encoder.empty_stack(encoder.shape_of(trained))
        return TextEncoder(stack, encoder.open_tokenizer(str(trained)))
    return encoder.named(config.encoder).open()
