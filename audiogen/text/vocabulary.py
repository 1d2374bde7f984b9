"""The SentencePiece vocabulary of the embedded text encoder, built from the training captions.

Pieces spell any word, so the captions' words are kept beside them: they say what a model was trained on. They are one
more field of SentencePiece's protocol buffer, which its own readers pass over, so that one file holds both. Most of it
is the table of Unicode's normalisation, the same in all; the file is compressed (xz) to a third.
"""

import difflib
import io
import lzma
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

from audiogen.errors import InputError, plain_text
from audiogen.files import writing

PAD_ID, EOS_ID, UNK_ID = 0, 1, 2  # as in T5
VOCABULARY_FILE = "vocabulary.model"
WORDS_FIELD = 1000  # SentencePiece leaves the numbers from 200 on to others
MOST_WORDS = 20_000  # kept, the most frequent ones
WORD = re.compile(r"[^\W\d_]{3,}")  # shorter ones say little of a sound
COMMON = frozenset(
    "and are for from into its some that the then there this was while with".split()
)  # no sounds
XZ = b"\xfd7zXZ\x00"  # the first bytes of what xz compressed
MOST_BYTES = 1 << 26  # of a model, decompressed
LONGEST_WORD = 40  # letters: what is longer is no word
MOST_UNKNOWN = 5  # named of one text
ALIKE = 0.65  # of difflib's ratio, from which on a word with the same first letter is offered for another


def train_vocabulary(captions: Iterable[str | None], vocab_size: int) -> bytes:
    """Build a unigram vocabulary of at most `vocab_size` pieces, with the captions' words: what `Vocabulary` takes.

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
    return with_words(model.getvalue(), words_of(lines))


def words_of(texts: Iterable[str]) -> list[str]:
    """The words of texts, normalised as the pieces are; the most frequent ones of too many."""
    counts = Counter(
        word for text in texts for word in WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    )
    return [word for word, _ in counts.most_common(MOST_WORDS)]


def with_words(model: bytes, words: Iterable[str]) -> bytes:
    """A SentencePiece model that holds these words and no others."""
    pieces = b"".join(model[start:end] for number, start, _, end in _fields(model) if number != WORDS_FIELD)
    content = "\n".join(sorted(set(words))).encode()
    if not content:
        return pieces
    return pieces + _varint(WORDS_FIELD << 3 | 2) + _varint(len(content)) + content


def _fields(model: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(number, start, start of the content, end) of each top-level field; all are length-delimited here.

    Of a model that is cut or is none, those that can be read: what is wrong with it SentencePiece says.
    """
    place = 0
    while place < len(model):
        start = place
        key, place = _read_varint(model, place)
        size, content = _read_varint(model, place)
        place = content + size
        if key & 7 != 2 or not content < place <= len(model):
            return
        yield key >> 3, start, content, place


def _read_varint(model: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while place < len(model):
        byte = model[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128 or shift > 63:
            break
    return value, place


def _varint(value: int) -> bytes:
    found = []
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


class Vocabulary:
    """Text to token ids with a SentencePiece model, given as its bytes, compressed or not (kept in `.model`)."""

    def __init__(self, model: bytes):
        try:
            if model.startswith(XZ):
                model = lzma.LZMADecompressor().decompress(model, MOST_BYTES)
            self.model = model
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            self._pieces.encode("a b")  # an empty model is only found now
        except (RuntimeError, lzma.LZMAError) as error:
            raise InputError(f"vocabulary is not a SentencePiece model ({error}); build it again") from error
        self.words = frozenset(
            word
            for number, _, start, end in _fields(model)
            if number == WORDS_FIELD
            for word in model[start:end].decode(errors="ignore").split("\n")
        )
        self.eos_id: int = self._pieces.eos_id()
        self.unk_id: int = self._pieces.unk_id()
        if not (0 <= self.eos_id < len(self) and 0 <= self.unk_id < len(self)):
            raise InputError("vocabulary has no piece for the end, or none for what it lacks; build it again")

    def __len__(self) -> int:
        return self._pieces.get_piece_size()

    def encode(self, text: str) -> list[int]:
        """Token ids with the end-of-sequence id last."""
        return [*self._pieces.encode(text), self.eos_id]

    def learn(self, captions: Iterable[str]) -> None:
        """Add the words of captions to those that were trained on."""
        self.words |= set(words_of(captions))
        self.model = with_words(self.model, self.words)

    def unknown(self, text: str) -> dict[str, str]:
        """The first words of a text that no caption had in training, each with one like it that one had, or "".

        A plural counts as its singular and the other way round. Empty for a vocabulary that holds no words.
        """
        if not self.words:
            return {}
        lacking = []
        for word in words_of([text]):
            singular = {word, word.removesuffix("s"), word.removesuffix("es")}
            trained = (singular | {word + "s", word + "es"}) & self.words
            if len(word) <= LONGEST_WORD and word not in COMMON and not trained:
                lacking.append(word)
        near = {
            word: difflib.get_close_matches(word, self.words, 1, ALIKE) for word in lacking[:MOST_UNKNOWN]
        }
        return {word: found[0] if found else "" for word, found in near.items()}

    def save(self, directory: Path, compress: bool = True) -> None:
        """Write the model's bytes as vocabulary.model; without `compress` SentencePiece itself reads it."""
        model = lzma.compress(self.model) if compress else self.model
        writing.write_bytes_atomic(directory / VOCABULARY_FILE, model)
