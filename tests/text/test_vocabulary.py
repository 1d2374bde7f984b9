"""The vocabulary is a function of the set of captions, and reads text as the captions wrote it."""

import pytest

from audiogen.errors import InputError
from audiogen.text.vocabulary import Vocabulary, train_vocabulary

CAPTIONS = ["a dog barks", "rain falls on a roof", "A clock ticks twice", "a dog barks, then rain falls"]
UNUSABLE = [None, "  "]


def test_same_captions_in_any_order_give_the_same_bytes(tmp_path):
    model = train_vocabulary(CAPTIONS + UNUSABLE, 64)
    Vocabulary(model).save(tmp_path)
    assert (tmp_path / "vocabulary.model").read_bytes() == model
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
    with pytest.raises(InputError, match="not a SentencePiece model"):
        Vocabulary(b"not a model")


@pytest.mark.parametrize("model", [b"", b"\xff" * 20])
def test_a_model_that_is_empty_or_noise_is_said_in_a_line(model):
    with pytest.raises(InputError, match="vocabulary"):
        Vocabulary(model)
