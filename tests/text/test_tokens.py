"""Text as the embeddings of its tokens: rows, no text, both kinds of tokenizers, files."""

from pathlib import Path

import pytest
import torch

from audiogen.errors import InputError
from audiogen.text.encoder import PretrainedTokenizer
from audiogen.text.t5 import TextConfig
from audiogen.text.tokens import TokenConditioner, load_conditioner
from audiogen.text.vocabulary import Vocabulary, train_vocabulary
from tests.random_qwen3 import save_random_qwen3

CAPTIONS = ["a dog barks", "rain falls on a roof", "a bell rings twice"]
CONFIG = TextConfig("tokens", width=6, vocab_size=60, max_tokens=8)


@pytest.fixture
def conditioner() -> TokenConditioner:
    torch.manual_seed(0)
    return TokenConditioner(CONFIG, Vocabulary(train_vocabulary(CAPTIONS, 60))).eval()


def test_a_token_is_its_row_and_no_text_is_a_position_of_zeros(conditioner: TokenConditioner) -> None:
    condition = conditioner(["a dog barks", None, " ", "rain"])
    ids = conditioner.token_ids("a dog barks")
    assert condition.tokens.shape == (4, max(len(ids), 1), 6)
    assert torch.equal(condition.tokens[0, : len(ids)], conditioner.embed_tokens.weight[ids])
    assert condition.mask.sum(1).tolist() == [len(ids), 1, 1, len(conditioner.token_ids("rain"))]
    assert not condition.tokens[~condition.mask].any() and not condition.tokens[1:3].any()
    alone = conditioner(["rain"])
    assert torch.equal(condition.tokens[3, : alone.tokens.shape[1]], alone.tokens[0])


def test_gradients_reach_the_rows_of_the_text_alone(conditioner: TokenConditioner) -> None:
    conditioner(["a dog barks", None]).tokens.sum().backward()
    gradient = conditioner.embed_tokens.weight.grad
    assert gradient is not None
    assert set(gradient.abs().sum(1).nonzero()[:, 0].tolist()) == set(conditioner.token_ids("a dog barks"))


def test_long_texts_are_cut_and_strange_words_named(conditioner: TokenConditioner) -> None:
    with pytest.warns(UserWarning, match="the text encoder reads the first 8"):
        assert conditioner(["rain falls " * 9]).tokens.shape[1] == 8
    with pytest.warns(UserWarning, match="no training caption had 'cat'"):
        conditioner(["a cat"])


@pytest.mark.parametrize("pretrained", [False, True])
def test_files_give_the_same_back(conditioner: TokenConditioner, tmp_path: Path, pretrained: bool) -> None:
    if pretrained:
        config = TextConfig("tokens", width=6, vocab_size=40)
        tokenizer = PretrainedTokenizer(save_random_qwen3(tmp_path / "qwen3"))
        conditioner = TokenConditioner(config, tokenizer).eval()
        assert conditioner.embed_tokens.num_embeddings == 40
    conditioner.save(tmp_path / "text")
    loaded = load_conditioner(tmp_path / "text")
    assert isinstance(loaded, TokenConditioner) and not loaded.training
    texts = ["a dog barks", "rain falls", None]
    assert torch.equal(loaded(texts).tokens, conditioner(texts).tokens)
    assert torch.equal(loaded(texts).mask, conditioner(texts).mask)


def test_half_written_files_and_another_encoder_are_refused(
    conditioner: TokenConditioner, tmp_path: Path
) -> None:
    conditioner.save(tmp_path)
    with pytest.raises(InputError, match="cannot replace that of .* which was trained along"):
        load_conditioner(tmp_path, "google-t5/t5-small")
    (tmp_path / "vocabulary.model").unlink()
    with pytest.raises(InputError, match="vocabulary.model is missing: the model directory was half-written"):
        load_conditioner(tmp_path)
