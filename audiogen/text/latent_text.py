"""Text for a denoiser: the states of a frozen T5 as they are, or our T5 with its own projection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import Condition
from audiogen.text import encoder
from audiogen.text.condition import from_rows
from audiogen.text.encoder import FrozenEncoder
from audiogen.text.frozen import FrozenText
from audiogen.text.t5 import T5Conditioner, TextConfig


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
        self.frozen: FrozenText | None = None
        if not config.embedded:
            self.frozen = FrozenText(frozen or encoder.named(config.encoder, config.width), config.cache_dir)
            encoder.check_width(self.frozen.width, config.width, config.encoder, "the model")

    def save_frozen(self, model: Path, tokenizer: Path) -> None:
        """Write a frozen encoder, as transformers' T5EncoderModel, and its tokenizer to a folder each."""
        assert self.frozen is not None
        found = self.frozen.encoder()
        tensors = {f"encoder.{name}": tensor for name, tensor in found.stack.state_dict().items()}
        tensors["shared.weight"] = tensors.pop("encoder.embed_tokens.weight")
        checkpoint.write_tensors(model / "model.safetensors", tensors)
        config = found.stack.config.to_dict() | {"architectures": ["T5EncoderModel"]}
        checkpoint.write_json(model / "config.json", config)
        found.tokenizer.save(tokenizer)

    def frozen_stack(self) -> nn.Module | None:
        """The frozen encoder, opened now; None where the encoder is our own, a submodule."""
        return None if self.frozen is None else self.frozen.encoder().stack

    def forward(self, texts: Sequence[str | None], padding: Sequence[int] | None = None) -> Condition:
        """padding: tokens of padding for each text, which count like the others; a frozen encoder only."""
        if self.frozen is None:
            assert self.embedded is not None
            return self.embedded(texts)
        rows = []
        for text, more in zip(texts, padding or [0] * len(texts), strict=True):
            ids = self.frozen.encoder().token_ids(text or "", self.config.max_tokens, self.config.encoder)
            rows.append(self.frozen.states(ids, more))  # [L, D]
        return from_rows(rows)
