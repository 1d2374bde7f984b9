"""The tokenizers of pretrained T5s, by transformers: seconds to import, so only what opens one imports this file."""

from pathlib import Path

from transformers.models.auto.tokenization_auto import AutoTokenizer
from transformers.utils import logging as transformers_log


class PretrainedTokenizer:
    """The tokenizer of a pretrained T5, with the interface of `Vocabulary`."""

    def __init__(self, directory: str):
        verbosity = transformers_log.get_verbosity()
        transformers_log.set_verbosity_error()  # beside a MusicGen's config.json it warns of the special token's id
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory)
        finally:
            transformers_log.set_verbosity(verbosity)
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
