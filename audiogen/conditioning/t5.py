"""Text through a T5 encoder: a small one trained with the language model, or a pretrained one."""

from __future__ import annotations

import string
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel

from audiogen import checkpoint
from audiogen.conditioning.cache import EmbeddingCache
from audiogen.conditioning.vocabulary import PAD_ID, Vocabulary
from audiogen.config import build, to_plain
from audiogen.errors import InputError
from audiogen.interfaces import Condition

KIND = "text_encoder"
VOCABULARY_FILE = "vocabulary.model"
TRAINED_FOLDER = "t5"  # shape and tokenizer of a fine-tuned pretrained encoder, as transformers writes them
LONGEST_TEXT = 512  # tokens; T5 was trained on this many


@dataclass(frozen=True)
class TextConfig:
    """Which text encoder, and how wide its output is.

    encoder: "embedded" for a small T5 of our own over a vocabulary built from the training captions, or a T5
        of the Hugging Face hub ("google-t5/t5-large", "google/flan-t5-base") or a directory holding one.
    width: D of the `Condition`, the width of the model that attends to it.
    trainable: train a pretrained encoder too, not only the projection to `width`; the embedded one always is.
    max_tokens: longer texts are cut, with a warning.
    vocab_size, dim, num_layers, num_heads, dropout: of the embedded encoder. vocab_size is an upper bound.
    cache_dir: where embeddings of a frozen encoder are kept between runs; None keeps them in memory only.
    """

    encoder: str = "embedded"
    width: int = 512
    trainable: bool = False
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
    def trains_encoder(self) -> bool:
        """Whether the encoder's weights are trained, and so stored in the model directory."""
        return self.embedded or self.trainable


class T5Conditioner(nn.Module):
    """`list[str or None] -> Condition`: tokens [B, L, D], zero where the mask is False.

    None and blank texts are no text: zeros and one valid position. Everything is float32, also under
    autocast: T5 overflows in float16. A text's result does not depend on the texts beside it: outside of
    training each text goes through the encoder by itself, so that not even the rounding differs.

    The weights of a frozen encoder are not part of `state_dict()`: they are named by `config.encoder`.
    """

    def __init__(self, config: TextConfig, vocabulary: bytes | None = None, trained: Path | None = None):
        """Random weights for the embedded encoder, pretrained ones otherwise.

        vocabulary: the SentencePiece model of the embedded encoder, from `train_vocabulary`.
        trained: folder where `save` put the shape and tokenizer of a fine-tuned pretrained encoder; its
            weights are then left for the caller to load.
        """
        super().__init__()
        self.config = config
        self.width = config.width
        encoder, self.tokenizer = _open_encoder(config, vocabulary, trained)
        self.output_proj = nn.Linear(encoder.config.d_model, config.width)
        self.cache: EmbeddingCache | None = None
        if config.trains_encoder:
            self.encoder: Any = encoder.train()
        else:
            encoder.eval().requires_grad_(False)
            # in a list, so that it is no submodule: not saved with every checkpoint, never in training mode
            self._frozen = [encoder]
            directory = None
            if config.cache_dir is not None:
                directory = Path(config.cache_dir) / checkpoint.identity(encoder.state_dict())
            self.cache = EmbeddingCache(directory)

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
        ids = self.tokenizer.encode(text)
        shown = text if len(text) <= 40 else text[:40] + "..."
        if self.tokenizer.unk_id in ids:
            unknown = self.tokenizer.unknown(text)
            if not set(unknown) <= set(string.punctuation):  # a missing full stop is not worth a word
                warnings.warn(f"the text encoder does not know {unknown[:20]!r} in {shown!r}", stacklevel=2)
            if self.config.embedded:  # no caption had these, so their embedding was never trained
                ids = [token for token in ids if token != self.tokenizer.unk_id]
        if len(ids) > self.config.max_tokens:
            warnings.warn(
                f"{shown!r} has {len(ids)} tokens; the text encoder reads the first {self.config.max_tokens}",
                stacklevel=2,
            )
            ids = [*ids[: self.config.max_tokens - 1], self.tokenizer.eos_id]
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
            return self.encoder(input_ids=ids).last_hidden_state[0]
        states = self.cache.get(row)
        if states is None:
            with torch.no_grad():
                states = self._frozen[0].to(device)(input_ids=ids).last_hidden_state[0]
            self.cache.put(row, states)
        return states.to(device)

    def _encode_batch(self, rows: list[list[int]]) -> list[Tensor]:
        """All texts at once, padded and masked -> each [L, encoder width]."""
        ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD_ID)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        device = self.output_proj.weight.device
        output = self.encoder(input_ids=ids.to(device), attention_mask=mask.to(device).long())
        states = output.last_hidden_state  # [B, L, encoder width]
        return [state[: len(row)] for state, row in zip(states, rows, strict=True)]

    def save(self, directory: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json, weights (stored as `dtype`) and tokenizer; of a frozen encoder only the name."""
        directory = Path(directory)
        if isinstance(self.tokenizer, Vocabulary):
            checkpoint.write_bytes_atomic(directory / VOCABULARY_FILE, self.tokenizer.model)
        elif self.config.trains_encoder:
            self.encoder.config.save_pretrained(directory / TRAINED_FOLDER)
            self.tokenizer.save(directory / TRAINED_FOLDER)
        tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in self.state_dict().items()}
        checkpoint.save_model(directory, KIND, to_plain(self.config), tensors)

    @classmethod
    def load(cls, directory: Path | str) -> T5Conditioner:
        """Read what `save` wrote, on the CPU, in evaluation mode."""
        directory = Path(directory)
        config = build(TextConfig, checkpoint.read_config(directory, KIND)["config"], where=str(directory))
        vocabulary = None
        if config.embedded:
            path = directory / VOCABULARY_FILE
            if not path.is_file():
                raise InputError(f"{path} is missing: the model directory was half-written; copy it again")
            vocabulary = path.read_bytes()
        trained = directory / TRAINED_FOLDER if config.trains_encoder else None
        conditioner = cls(config, vocabulary, trained)
        checkpoint.load_into(conditioner, checkpoint.load_tensors(directory), directory)
        return conditioner.eval()


class PretrainedTokenizer:
    """The tokenizer of a pretrained T5, with the interface of `Vocabulary`."""

    def __init__(self, name_or_directory: str):
        # here, because the embedded encoder needs none of it
        from transformers.models.auto.tokenization_auto import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(name_or_directory)
        self.eos_id: int = self._tokenizer.eos_token_id
        self.unk_id: int = self._tokenizer.unk_token_id

    def encode(self, text: str) -> list[int]:
        """Token ids with the end-of-sequence id last."""
        return self._tokenizer(text, verbose=False).input_ids

    def unknown(self, text: str) -> str:
        """The characters of the text that the tokenizer lacks."""
        return "".join(character for character in text if self.unk_id in self.encode(character))

    def save(self, directory: Path) -> None:
        """Write the files that `PretrainedTokenizer(directory)` reads."""
        self._tokenizer.save_pretrained(directory)


def _open_encoder(
    config: TextConfig, vocabulary: bytes | None, trained: Path | None
) -> tuple[Any, Vocabulary | PretrainedTokenizer]:
    """The T5 encoder stack in float32, and what turns text into its token ids."""
    if config.embedded:
        if vocabulary is None:
            raise InputError("the embedded text encoder needs a vocabulary; build one with train_vocabulary")
        words = Vocabulary(vocabulary)
        shape = T5Config(
            vocab_size=len(words),
            d_model=config.dim,
            d_kv=config.dim // config.num_heads,
            d_ff=4 * config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            dropout_rate=config.dropout,
        )
        return _stack(T5EncoderModel(shape)), words
    if trained is not None:
        return _stack(T5EncoderModel(T5Config.from_pretrained(trained))), PretrainedTokenizer(str(trained))
    try:
        tokenizer = PretrainedTokenizer(config.encoder)
        pretrained = T5EncoderModel.from_pretrained(config.encoder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"text encoder {config.encoder!r} cannot be opened ({reason}); "
            'give "embedded", a directory with a T5 model, or a T5 hub id while the hub can be reached'
        ) from error
    return _stack(pretrained), tokenizer


def _stack(model: T5EncoderModel) -> Any:
    """The encoder without the second name its embedding has in `T5EncoderModel` (tied, so saved twice)."""
    return model.encoder
