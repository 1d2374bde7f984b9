"""The vocabulary is a function of the set of captions, and reads text as the captions wrote it."""

import lzma
from pathlib import Path

import pytest
import sentencepiece

from audiogen.errors import InputError
from audiogen.text.vocabulary import Vocabulary, train_vocabulary, with_words

CAPTIONS = ["a dog barks", "rain falls on a roof", "A clock ticks twice", "a dog barks, then rain falls"]
UNUSABLE = [None, "  "]


def test_same_captions_in_any_order_give_the_same_bytes(tmp_path):
    model = train_vocabulary(CAPTIONS + UNUSABLE, 64)
    Vocabulary(model).save(tmp_path)
    file = (tmp_path / "vocabulary.model").read_bytes()
    assert len(file) < len(model) / 2 and Vocabulary(file).model == model
    assert train_vocabulary(reversed(CAPTIONS * 3), 64) == model
    assert train_vocabulary(CAPTIONS[:2], 64) != model


def test_case_and_width_do_not_matter_and_known_text_has_no_unknown():
    vocabulary = Vocabulary(train_vocabulary(CAPTIONS, 64))
    ids = vocabulary.encode("a dog barks")
    assert ids[-1] == vocabulary.eos_id and vocabulary.unk_id not in ids
    assert vocabulary.encode("A DOG  barks") == ids
    assert vocabulary.encode("a ｄｏｇ barks") == ids
    assert vocabulary.encode("a dog ticks") != ids
    assert vocabulary.unk_id in vocabulary.encode("a 🐶 barks")
    assert max(ids) < len(vocabulary) <= 64


def test_bad_input_is_said_in_a_line():
    with pytest.raises(InputError, match="no captions"):
        train_vocabulary(UNUSABLE, 64)
    with pytest.raises(InputError, match="vocab_size"):
        train_vocabulary(CAPTIONS, 4)
    for cut in (20, 2000):
        with pytest.raises(InputError, match="not a SentencePiece model"):
            Vocabulary(lzma.compress(train_vocabulary(CAPTIONS, 64))[:cut])
    with pytest.raises(InputError, match="not a SentencePiece model"):
        Vocabulary(b"not a model")


@pytest.mark.parametrize("model", [b"", b"\xff" * 20])
def test_a_model_that_is_empty_or_noise_is_said_in_a_line(model):
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary(model)


def test_words_that_no_caption_had_are_found_with_one_like_them() -> None:
    vocabulary = Vocabulary(train_vocabulary(CAPTIONS, 64))
    assert vocabulary.words == set("barks clock dog falls rain roof then ticks twice".split())
    assert (
        vocabulary.unknown("A DOG barks on roofs; rains fall to 12 ｃｌｏｃｋｓ") == {}
    )  # plurals, cases, short
    assert vocabulary.unknown("a violin and the clck, with a violin") == {"violin": "", "clck": "clock"}
    assert vocabulary.unknown("das Geräusch") == {"das": "", "geräusch": ""}


def test_words_are_kept_in_the_file_and_change_no_token(tmp_path: Path) -> None:
    vocabulary = Vocabulary(train_vocabulary(CAPTIONS, 64))
    ids = vocabulary.encode("a dog barks twice")
    vocabulary.learn(["a violin", "a dog"])
    vocabulary.learn(["a cello"])
    vocabulary.save(tmp_path)
    again = Vocabulary((tmp_path / "vocabulary.model").read_bytes())
    assert again.words == vocabulary.words >= {"violin", "cello", "dog", "rain"}
    assert again.encode("a dog barks twice") == ids and len(again) == len(vocabulary)
    assert len(again.model) < len(train_vocabulary(CAPTIONS, 64)) + 40  # words are there once


def test_a_vocabulary_of_before_has_no_words_and_finds_none_missing() -> None:
    former = with_words(train_vocabulary(CAPTIONS, 64), [])
    assert b"twice\n" not in former and with_words(former, []) == former
    assert Vocabulary(former).words == frozenset() and Vocabulary(former).unknown("a violin") == {}
    sentencepiece.SentencePieceProcessor(model_proto=former)
    assert with_words(former, Vocabulary(train_vocabulary(CAPTIONS, 64)).words) == train_vocabulary(
        CAPTIONS, 64
    )
