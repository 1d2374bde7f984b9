"""The SentencePiece vocabulary of the embedded text encoder, built from the training captions."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

from audiogen.errors import InputError, plain_text
from audiogen.files import writing

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # as in T5
VOCABULARY_FILE = "vocabulary.model"


def train_vocabulary(captions: Iterable[str | None], vocab_size: int) -> bytes:
    """Build a unigram vocabulary of at most `vocab_size` pieces, as the bytes that `Vocabulary` takes.

    A function of the set of captions only: their order and repeats do not matter. Text is normalised (NFKC)
    and case-folded, so "A Dog barks" and "a dog barks" are the same prompt. Few captions give fewer pieces
    than asked for. Kudo, "Subword Regularization", 2018; Kudo and Richardson, "SentencePiece", 2018.
    """
    lines = sorted({plain_text(caption, "the caption").strip() for caption in captions if caption} - {""})
    if not lines:
        raise InputError("no captions to build a text vocabulary from; give at least one clip a caption")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            num_threads=1,  # the order of floating-point sums, and so the vocabulary, depends on it
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"cannot build a vocabulary of {vocab_size} pieces from {len(lines)} captions ({error}); "
            "set text.vocab_size higher than the number of different characters"
        ) from error
    return model.getvalue()


class Vocabulary:
    """Text to token ids with a SentencePiece model, given as its bytes (kept in `.model` for saving)."""

    def __init__(self, model: bytes):
        self.model = model
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._pieces.encode("a b")  # an empty model is only found now
        except RuntimeError as error:
            raise InputError(f"vocabulary is not a SentencePiece model ({error}); build it again") from error
        self.eos_id: int = self._pieces.eos_id()
        self.unk_id: int = self._pieces.unk_id()
        if not (0 <= self.eos_id < len(self) and 0 <= self.unk_id < len(self)):
            raise InputError("vocabulary has no piece for the end, or none for what it lacks; build it again")

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Token ids with the end-of-sequence id last."""
        return [*self._pieces.encode(text), self.eos_id]

    def save(self, directory: Path) -> None:
        """Write the model's bytes, which `Vocabulary` reads, as vocabulary.model."""
        writing.write_bytes_atomic(directory / VOCABULARY_FILE, self.model)
