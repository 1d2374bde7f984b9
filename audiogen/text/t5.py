"""Text through a T5 encoder: a small one trained with the language model, or a pretrained one."""

from __future__ import annotations

import dataclasses
import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Condition
from audiogen.text import encoder
from audiogen.text.cache import EmbeddingCache
from audiogen.text.encoder import FrozenEncoder, Opened
from audiogen.text.t5_stack import T5Shape, T5Stack
from audiogen.text.vocabulary import PAD_ID, Vocabulary

if TYPE_CHECKING:
    from audiogen.text.tokenizer import PretrainedTokenizer

KIND = "text_encoder"
VOCABULARY_FILE = "vocabulary.model"
TRAINED_FOLDER = "t5"  # shape and tokenizer of a fine-tuned pretrained encoder, as transformers writes them
ENCODER = "encoder."  # what the names of the encoder's weights begin with
LONGEST_TEXT = 512  # tokens; T5 was trained on this many


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder, and how wide its output is.

    encoder: "embedded" for a small T5 of our own over a vocabulary built from the training captions, or a T5
        of the Hugging Face hub ("google-t5/t5-large", "google/flan-t5-base") or a directory holding one.
    width: D of the `Condition`, the width of the model that attends to it.
    trainable: train a pretrained encoder too, not only the projection to `width`; the embedded one always is.
    stored: keep a copy of a frozen encoder in the model directory, which then needs nothing else to be opened.
    max_tokens: longer texts are cut, with a warning.
    vocab_size, dim, num_layers, num_heads, dropout: of the embedded encoder. vocab_size is an upper bound.
    cache_dir: where embeddings of a frozen encoder are kept between runs; None keeps them in memory only.
    """

    encoder: str = "embedded"
    width: int = 512
    trainable: bool = False
    stored: bool = False
    max_tokens: int = LONGEST_TEXT
    vocab_size: int = 1024
    dim: int = 256
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for key in ("width", "vocab_size", "dim", "num_layers", "num_heads"):
            if getattr(self, key) < 1:
                raise InputError(f"text.{key} is {getattr(self, key)}; it must be at least 1")
        if not self.encoder:
            raise InputError('text.encoder is empty; it is "embedded", a T5 hub id or a directory')
        if self.stored and self.trains_encoder:
            raise InputError(
                "text.stored is for a frozen encoder; one that is trained always is stored: set it false"
            )
        if not 2 <= self.max_tokens <= LONGEST_TEXT:
            raise InputError(f"text.max_tokens is {self.max_tokens}; allowed are 2 to {LONGEST_TEXT}")
        if self.dim % self.num_heads:
            raise InputError(f"text.dim {self.dim} is not a multiple of text.num_heads {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"text.dropout is {self.dropout}; it must be at least 0 and below 1")

    @property
    def embedded(self) -> bool:
        """Whether the encoder is ours, stored in the model directory."""
        return self.encoder == "embedded"

    @property
    def stores_encoder(self) -> bool:
        """Whether the encoder's weights are in the model directory."""
        return self.trains_encoder or self.stored

    @property
    def trains_encoder(self) -> bool:
        """Whether the encoder's weights are trained, and so stored in the model directory."""
        return self.embedded or self.trainable


class T5Conditioner(nn.Module):
    """`list[str or None] -> Condition`: tokens [B, L, D], zero where the mask is False.

    None and blank texts are no text: zeros and one valid position. Everything is float32, also under
    autocast: T5 overflows in float16. A text's result does not depend on the texts beside it: outside of
    training each text goes through the encoder by itself, so that not even the rounding differs.

    A frozen encoder is opened with the first text, so that what runs without text needs none. Its weights are not
    part of `state_dict()`: they are named by `config.encoder`.
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
        self.cache: EmbeddingCache | None = None
        # A frozen encoder stays in a list, so that it is no submodule: not saved with every checkpoint, never in
        # training mode.
        self._opened: list[Opened] = []
        self._frozen = frozen
        if config.trains_encoder:
            opened = _open_trained(config, vocabulary, trained)
            self.encoder: T5Stack = opened.stack.train()
            self._tokenizer = opened.tokenizer
            self.encoder_width: int = opened.stack.config.d_model
        else:
            self._frozen = frozen or encoder.named(config.encoder)
            self.encoder_width = self._frozen.width
            self.cache = EmbeddingCache()
        self.output_proj = nn.Linear(self.encoder_width, config.width)

    @property
    def tokenizer(self) -> Vocabulary | PretrainedTokenizer:
        """What turns text into token ids; a frozen encoder is opened for it."""
        return self._tokenizer if self.config.trains_encoder else self._open().tokenizer

    def encoder_stack(self) -> T5Stack:
        """The T5 stack in float32, `.config` its configuration; a frozen one is opened for it."""
        return self.encoder if self.config.trains_encoder else self._open().stack

    def _open(self) -> Opened:
        """The frozen encoder, opened if it is not yet."""
        if not self._opened:
            assert self._frozen is not None and self.cache is not None
            opened = self._frozen.open()
            opened.stack.eval().requires_grad_(False)
            if self.config.cache_dir is not None:
                name = checkpoint.identity(opened.stack.state_dict())
                self.cache.directory = Path(self.config.cache_dir) / name
            self._opened.append(opened)
        return self._opened[0]

    def forward(self, texts: Sequence[str | None]) -> Condition:
        """B texts -> Condition with tokens [B, L, D]; see the class."""
        if isinstance(texts, str):
            raise ValueError("texts is one string; it must be a list of strings and None")
        rows = [self.token_ids(text) for text in texts]
        spoken = [row for row in rows if row]
        embeddings = iter(self._embed(spoken))
        nothing = self.output_proj.weight.new_zeros(1, self.width)
        projected = [next(embeddings) if row else nothing for row in rows]
        tokens = pad_sequence(projected, batch_first=True)  # [B, L, D]
        lengths = torch.tensor([max(1, len(row)) for row in rows], device=tokens.device)
        return Condition(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])

    def token_ids(self, text: str | None) -> list[int]:
        """Token ids ending in </s>; none for no text. Warns of a text cut or not understood."""
        if text is None or not text.strip():
            return []
        tokenizer = self.tokenizer
        ids = tokenizer.encode(text)
        shown = text if len(text) <= 40 else text[:40] + "..."
        if tokenizer.unk_id in ids:
            unknown = tokenizer.unknown(text)
            if not set(unknown) <= set(string.punctuation):  # a missing full stop is not worth a word
                warnings.warn(f"the text encoder does not know {unknown[:20]!r} in {shown!r}", stacklevel=2)
            if self.config.embedded:  # no caption had these, so their embedding was never trained
                ids = [token for token in ids if token != tokenizer.unk_id]
        if len(ids) > self.config.max_tokens:
            warnings.warn(
                f"{shown!r} has {len(ids)} tokens; the text encoder reads the first {self.config.max_tokens}",
                stacklevel=2,
            )
            ids = [*ids[: self.config.max_tokens - 1], tokenizer.eos_id]
        known = self.encoder_stack().embed_tokens.num_embeddings
        if max(ids, default=0) >= known:
            raise InputError(
                f"text encoder {self.config.encoder!r} knows {known} tokens, but its tokenizer gives id {max(ids)}; "
                "they do not belong together: copy both again"
            )
        return ids

    def _embed(self, rows: list[list[int]]) -> list[Tensor]:
        """Token ids -> projected embeddings, each [L, D]."""
        if not rows:
            return []
        device = self.output_proj.weight.device
        with torch.autocast(device.type, enabled=False):
            if not self.training:
                return [self.output_proj(self._encode_one(row)) for row in rows]
            states = self._encode_batch(rows) if self.config.trains_encoder else map(self._encode_one, rows)
            projected = self.output_proj(torch.cat(list(states)))  # [sum of L, D]
            return list(projected.split([len(row) for row in rows]))

    def _encode_one(self, row: list[int]) -> Tensor:
        """One text by itself -> [L, encoder width], from the cache where it may be used."""
        device = self.output_proj.weight.device
        ids = torch.tensor([row], device=device)
        if self.cache is None:
            return self.encoder(ids)[0]
        states = self.cache.get(row)
        if states is None:
            with torch.no_grad():
                states = self._open().stack.to(device)(ids)[0]
            self.cache.put(row, states)
        return states.to(device)

    def _encode_batch(self, rows: list[list[int]]) -> list[Tensor]:
        """All texts at once, padded and masked -> each [L, encoder width]."""
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD_ID)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.output_proj.weight.device
        states = self.encoder(ids.to(device), mask.to(device))  # [B, L, encoder width]
        return [state[: len(row)] for state, row in zip(states, rows, strict=True)]

    def save(self, directory: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json, weights (stored as `dtype`) and tokenizer; of a frozen encoder only the name.

        A frozen encoder that config.stored keeps is written whole.
        """
        directory = Path(directory)
        state = self.state_dict()
        if self.config.embedded:
            assert isinstance(self.tokenizer, Vocabulary)
            checkpoint.write_bytes_atomic(directory / VOCABULARY_FILE, self.tokenizer.model)
        elif self.config.stores_encoder:
            assert not isinstance(self.tokenizer, Vocabulary)
            shape = self.encoder_stack().config.to_dict()
            checkpoint.write_json(directory / TRAINED_FOLDER / "config.json", shape)
            self.tokenizer.save(directory / TRAINED_FOLDER)
            if self.config.stored:
                stack = self.encoder_stack().state_dict()
                state |= {f"{ENCODER}{name}": tensor for name, tensor in stack.items()}
        tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in state.items()}
        checkpoint.save_model(directory, KIND, to_plain(self.config), tensors)

    @classmethod
    def load(
        cls, directory: Path | str, text_encoder: str | None = None, device: torch.device | str = "cpu"
    ) -> T5Conditioner:
        """Read what `save` wrote, in evaluation mode, its weights float32.

        text_encoder: directory or hub id of the T5 to use in place of a frozen encoder.
        """
        directory = Path(directory)
        config = read_config(directory, text_encoder)
        tensors = checkpoint.open_tensors(directory / "model.safetensors")
        vocabulary = frozen = None
        if config.embedded:
            path = directory / VOCABULARY_FILE
            if not path.is_file():
                raise InputError(f"{path} is missing: the model directory was half-written; copy it again")
            vocabulary = path.read_bytes()
        elif not config.trainable:
            own = {name: tensor for name, tensor in tensors.items() if not name.startswith(ENCODER)}
            if "output_proj.weight" not in own:
                raise InputError(
                    f"weights of {directory} do not fit their config: missing output_proj.weight"
                )
            width = own["output_proj.weight"].shape[-1]
            if text_encoder is not None:
                encoder.check_width(encoder.read_width(config.encoder), width, config.encoder, directory)
            frozen = encoder.named(config.encoder, width, directory)
            if config.stored:
                stack = {
                    name.removeprefix(ENCODER): tensor for name, tensor in tensors.items() if name not in own
                }
                folder = directory / TRAINED_FOLDER
                shape = encoder.read_shape(checkpoint.read_json(folder / "config.json"), folder)
                frozen = encoder.carried(shape, stack, str(folder), directory)
            tensors = own
        with checkpoint.unfilled():
            conditioner = cls(config, vocabulary, directory / TRAINED_FOLDER, frozen)
        checkpoint.assign(conditioner, tensors, directory, device, torch.float32)
        return conditioner.eval()


def read_config(directory: Path | str, text_encoder: str | None = None) -> TextConfig:
    """The configuration in a directory that `T5Conditioner.save` wrote, with another frozen encoder if one is named."""
    config = build(TextConfig, checkpoint.read_config(directory, KIND)["config"], where=str(directory))
    if text_encoder is None:
        return config
    if config.trains_encoder:
        raise InputError(
            f"text encoder {text_encoder!r} cannot replace that of {directory}, which was trained with its model: "
            "leave it out"
        )
    return dataclasses.replace(config, encoder=local_or_hub(text_encoder), stored=False)


def local_or_hub(text_encoder: str) -> str:
    """A directory by its whole path, which stays right wherever a program starts; a hub id as it is."""
    path = Path(text_encoder)
    return str(path.resolve()) if path.exists() else text_encoder


def _open_trained(config: TextConfig, vocabulary: bytes | None, trained: Path | None) -> Opened:
    """The T5 stack that is trained with the model, and what turns text into its token ids."""
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
        return Opened(T5Stack(shape), words)
    if trained is not None:
        shape = encoder.read_shape(checkpoint.read_json(trained / "config.json"), trained)
        return Opened(encoder.empty_stack(shape), encoder.open_tokenizer(str(trained)))
    return encoder.named(config.encoder).open()
