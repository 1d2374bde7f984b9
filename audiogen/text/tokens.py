"""Text as the embeddings of its tokens, for a language model that reads text and sound as one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from audiogen.config import to_plain
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.files.tensors import check_sizes, empty, fill
from audiogen.text import encoder
from audiogen.text.encoder import PretrainedTokenizer, TextEncoder
from audiogen.text.t5 import KIND, T5Conditioner, TextConfig, read_config
from audiogen.text.t5_stack import T5Stack
from audiogen.text.vocabulary import VOCABULARY_FILE, Vocabulary

TOKENIZER_FOLDER = "tokenizer"  # of a pretrained backbone's tokenizer, as transformers writes it


class TokenConditioner(T5Conditioner):
    """`list[str or None] -> Condition` as `T5Conditioner`, but a token is its row of a table [tokens, D] and no more.

    The table is trained with the language model. None and blank texts are no text: zeros and one valid position.
    """

    def __init__(self, config: TextConfig, tokenizer: Vocabulary | PretrainedTokenizer):
        """config.encoder is "tokens"; with a tokenizer that is no vocabulary of ours, vocab_size is the table's."""
        nn.Module.__init__(self)
        self.config, self.width, self.frozen = config, config.width, None
        self._tokenizer = tokenizer
        rows = len(tokenizer) if isinstance(tokenizer, Vocabulary) else config.vocab_size
        self.embed_tokens = nn.Embedding(rows, config.width)
        nn.init.normal_(self.embed_tokens.weight, std=config.width**-0.5)  # as TokenLM's embedding of codes

    def text_encoder(self) -> TextEncoder:
        """Itself in place of a stack, for the table's size, and the tokenizer."""
        return TextEncoder(cast(T5Stack, self), self._tokenizer)

    def _embed(self, rows: list[list[int]]) -> Sequence[Tensor]:
        """Token ids -> their rows of the table, each [L, D]."""
        if not rows:
            return []
        ids = torch.tensor([token for row in rows for token in row], device=self.embed_tokens.weight.device)
        return self.embed_tokens(ids).split([len(row) for row in rows])

    def save(self, directory: Path | str, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json, the table (stored as `dtype`) and the tokenizer."""
        directory = Path(directory)
        ours = isinstance(self._tokenizer, Vocabulary)
        self._tokenizer.save(directory if ours else directory / TOKENIZER_FOLDER)
        checkpoint.save_model(directory, KIND, to_plain(self.config), self.state_dict(), dtype=dtype)


def load_conditioner(
    directory: Path | str, text_encoder: str | None = None, device: torch.device | str = "cpu"
) -> T5Conditioner:
    """Read what either conditioner's `save` wrote, in evaluation mode; arguments as in `T5Conditioner.load`."""
    directory = Path(directory)
    config = read_config(directory, text_encoder)
    if not config.tokens:
        return T5Conditioner.load(directory, text_encoder, device)
    tensors = checkpoint.read_weights(directory / "model.safetensors")
    words, folder = directory / VOCABULARY_FILE, directory / TOKENIZER_FOLDER
    tokenizer: Vocabulary | PretrainedTokenizer
    if words.is_file():
        tokenizer = Vocabulary(words.read_bytes())
    elif folder.is_dir():
        tokenizer = encoder.open_tokenizer(str(folder))
    else:
        raise InputError(f"{words} is missing: the model directory was half-written; copy it again")
    check_sizes(directory, config)
    conditioner = empty(lambda: TokenConditioner(config, tokenizer), directory, len(tensors))
    fill(conditioner, tensors, str, directory)
    return conditioner.eval().to(device)
