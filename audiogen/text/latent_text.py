"""Text as a denoiser sees it: the states of a frozen T5 as they are, or our T5 with its own projection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Condition
from audiogen.text import encoder
from audiogen.text.cache import EmbeddingCache
from audiogen.text.encoder import FrozenEncoder, Opened
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import PAD_ID, Vocabulary


class FrozenText:
    """The states of a frozen T5, which is opened with the first text; it has no weights to train or save.

    Each text goes through by itself, so that it does not depend on the texts beside it.
    """

    def __init__(self, config: TextConfig, frozen: FrozenEncoder | None = None):
        self.config = config
        self.width = config.width
        self._frozen = frozen or encoder.named(config.encoder, config.width)
        self._opened: Opened | None = None
        self._cache = EmbeddingCache()

    def states(self, text: str, padding: int = 0) -> Tensor:
        """One text, "" included -> its states [L + padding, D], those of padding tokens last."""
        opened = self.opened()
        ids = opened.tokenizer.encode(text)
        if len(ids) > self.config.max_tokens:
            ids = [*ids[: self.config.max_tokens - 1], opened.tokenizer.eos_id]
        key = [*ids, *[PAD_ID] * padding]
        found = self._cache.get(key)
        if found is None:
            mask = torch.tensor([[True] * len(ids) + [False] * padding])
            with torch.no_grad():
                inputs = torch.tensor([key])
                found = opened.stack(inputs, mask)[0]
            self._cache.put(key, found)
        return found

    def opened(self) -> Opened:
        """The encoder, opened if it is not yet."""
        if self._opened is None:
            self._opened = self._frozen.open()
            self._opened.stack.eval().requires_grad_(False)
            encoder.check_width(
                self._opened.stack.config.d_model, self.width, self.config.encoder, "the model"
            )
        return self._opened


class TextStates(nn.Module):
    """B texts -> Condition with tokens [B, L, D], zero where the mask is False.

    config.encoder "embedded" is a small T5 of our own, trained with the denoiser; None and "" are then zero tokens. A
    frozen encoder gives its states without a projection, so config.width is its width; None is "" to it.
    """

    def __init__(
        self, config: TextConfig, vocabulary: bytes | None = None, frozen: FrozenEncoder | None = None
    ):
        super().__init__()
        self.config = config
        self.width = config.width
        if config.trainable:
            raise InputError("text.trainable is not for a denoiser's text encoder; set it false")
        self.embedded = T5Conditioner(config, vocabulary) if config.embedded else None
        self._frozen = [] if config.embedded else [FrozenText(config, frozen)]  # a list: it is no submodule

    def save_frozen(self, model: Path, tokenizer: Path) -> None:
        """Write a frozen encoder, as transformers' T5EncoderModel, and its tokenizer to a folder each."""
        opened = self._frozen[0].opened()
        assert not isinstance(opened.tokenizer, Vocabulary)
        weights = opened.stack.state_dict()
        tensors = {
            f"encoder.{name}": tensor for name, tensor in weights.items() if name != "embed_tokens.weight"
        }
        checkpoint.write_tensors(
            model / "model.safetensors", tensors | {"shared.weight": weights["embed_tokens.weight"]}
        )
        config = opened.stack.config.to_dict() | {"architectures": ["T5EncoderModel"]}
        checkpoint.write_json(model / "config.json", config)
        opened.tokenizer.save(tokenizer)

    def frozen_stack(self) -> nn.Module | None:
        """The frozen encoder, opened now; None where the encoder is our own, a submodule."""
        return None if self.embedded is not None else self._frozen[0].opened().stack

    def forward(self, texts: Sequence[str | None], padding: Sequence[int] | None = None) -> Condition:
        """padding: tokens of padding for each text, which count like the others; a frozen encoder only."""
        if self.embedded is not None:
            return self.embedded(texts)
        extra = padding or [0] * len(texts)
        rows = [
            self._frozen[0].states(text or "", more) for text, more in zip(texts, extra, strict=True)
        ]  # each [L, D]
        return joined(rows)


def joined(rows: Sequence[Tensor]) -> Condition:
    """States of each row [L, D], L from row to row -> Condition with tokens [B, max L, D]."""
    tokens = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
    return Condition(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])
