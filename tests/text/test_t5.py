"""Text to Condition: independent of neighbours, exact after saving, equal to transformers."""

import dataclasses
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from audiogen.errors import InputError
from audiogen.text.condition import drop, null
from audiogen.text.t5 import T5Conditioner, TextConfig, read_config
from audiogen.text.vocabulary import train_vocabulary

CAPTIONS = ["a dog barks", "rain falls on a tin roof", "a clock ticks", "a bell, then a siren far away"]
SMALL = TextConfig(width=10, vocab_size=64, dim=12, num_layers=2, num_heads=3)


@pytest.fixture(scope="module")
def embedded() -> T5Conditioner:
    torch.manual_seed(0)
    return T5Conditioner(SMALL, train_vocabulary(CAPTIONS, 64)).eval()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A directory as the hub serves it: a T5 encoder and its tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(1)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -3.0), ("▁dog", -4.0)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(vocab_size=40, d_model=12, d_kv=4, d_ff=24, num_layers=2, num_heads=3)
    T5EncoderModel(config).save_pretrained(folder)
    return folder


def same(a, b) -> bool:
    return torch.equal(a.tokens, b.tokens) and torch.equal(a.mask, b.mask)


@torch.no_grad()
def test_a_text_does_not_depend_on_its_neighbours(embedded):
    texts = ["a dog barks", "a bell, then a siren far away", None, "a dog barks"]
    together = embedded(texts)
    for row, text in enumerate(texts):
        alone = embedded([text])
        length = alone.mask.shape[1]
        assert torch.equal(together.tokens[row, :length], alone.tokens[0])  # to the last bit
        assert together.mask[row].sum() == length
        assert not together.tokens[row, length:].any()
    assert not torch.equal(together.tokens[0, :2], together.tokens[1, :2])


@torch.no_grad()
def test_training_and_evaluation_agree_but_for_dropout(embedded):
    conditioner = T5Conditioner(dataclasses.replace(SMALL, dropout=0.0), embedded.tokenizer.model)
    conditioner.load_state_dict(embedded.state_dict())
    texts = [CAPTIONS[3], None, CAPTIONS[0]]
    trained, evaluated = conditioner.train()(texts), embedded(texts)
    assert torch.equal(trained.mask, evaluated.mask)
    torch.testing.assert_close(trained.tokens, evaluated.tokens, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_text_is_null_and_what_dropping_leaves(embedded):
    assert same(embedded([None, "", " \n"]), null(3, 10))
    texts = ["a dog barks", "a clock ticks"]
    assert same(drop(embedded(texts), torch.tensor([True, False])), embedded([texts[0], None]))


def test_gradients_reach_the_embedded_encoder_even_beside_no_text(embedded):
    conditioner = T5Conditioner(SMALL, embedded.tokenizer.model).train()
    conditioner(["a dog barks", None]).tokens.square().sum().backward()
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in conditioner.parameters()
    )
    assert conditioner.encoder.embed_tokens.weight.grad.any()


@torch.no_grad()
def test_saved_and_loaded_is_the_same(embedded, tmp_path):
    embedded.save(tmp_path / "text")
    loaded = T5Conditioner.load(tmp_path / "text")
    assert loaded.config == SMALL and not loaded.training
    assert same(loaded(CAPTIONS), embedded(CAPTIONS))
    (tmp_path / "text" / "vocabulary.model").unlink()
    with pytest.raises(InputError, match="half-written"):
        T5Conditioner.load(tmp_path / "text")


@torch.no_grad()
def test_frozen_encoder_equals_transformers_and_is_not_stored(pretrained, tmp_path):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10))
    assert set(conditioner.state_dict()) == {"output_proj.weight", "output_proj.bias"}
    tokenizer, model = (
        T5Tokenizer.from_pretrained(pretrained),
        T5EncoderModel.from_pretrained(pretrained).eval(),
    )
    texts = ["a dog barks", "a dog"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    expected = conditioner.output_proj(model(**batch).last_hidden_state) * batch.attention_mask[..., None]
    for mode in (True, False):
        condition = conditioner.train(mode)(texts)
        torch.testing.assert_close(condition.tokens, expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(condition.mask, batch.attention_mask.bool())
    conditioner.save(tmp_path)
    assert same(T5Conditioner.load(tmp_path)(texts), conditioner.eval()(texts))


@torch.no_grad()
def test_a_t5_in_any_layout_of_the_hub_is_the_same(pretrained, tmp_path):
    expected = T5Conditioner(TextConfig(encoder=str(pretrained), width=10)).eval()
    model = T5EncoderModel.from_pretrained(pretrained)
    decoder = {"decoder.final_layer_norm.weight": torch.ones(12), "lm_head.weight": torch.zeros(40, 12)}
    state = dict(model.state_dict()) | decoder
    both = sorted(state)[::2], sorted(state)[1::2]
    layouts = {
        "safetensors": lambda at: save_file(
            {name: t.clone() for name, t in state.items()}, at / "model.safetensors"
        ),
        "several": lambda at: model.save_pretrained(at, max_shard_size="2KB"),
        "pickled": lambda at: torch.save(state, at / "pytorch_model.bin"),
        "pickled in several": lambda at: [
            torch.save({name: state[name] for name in names}, at / f"pytorch_model-{i}-of-2.bin")
            for i, names in enumerate(both)
        ],
        "embedding under its second name": lambda at: torch.save(
            {name: t for name, t in state.items() if name != "shared.weight"}, at / "pytorch_model.bin"
        ),
        "half": lambda at: T5EncoderModel.from_pretrained(pretrained).half().save_pretrained(at),
    }
    for layout, write in layouts.items():
        folder = tmp_path / layout
        shutil.copytree(pretrained, folder)
        (folder / "model.safetensors").unlink()
        write(folder)
        found = T5Conditioner(TextConfig(encoder=str(folder), width=10)).eval()
        found.load_state_dict(expected.state_dict())
        close = {"atol": 1e-2, "rtol": 1e-2} if layout == "half" else {"atol": 0, "rtol": 0}
        torch.testing.assert_close(found(["a dog"]).tokens, expected(["a dog"]).tokens, **close)
        assert found.text_encoder().stack.embed_tokens.weight.dtype == torch.float32
    assert (tmp_path / "several" / "model.safetensors.index.json").is_file()


@torch.no_grad()
def test_what_is_saved_of_a_stored_encoder_opens_in_transformers(pretrained, tmp_path):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10, stored=True)).eval()
    conditioner.save(tmp_path)
    opened = T5EncoderModel(T5Config.from_pretrained(tmp_path / "t5")).eval()
    stored = load_file(tmp_path / "model.safetensors")
    stack = {name.removeprefix("encoder."): t for name, t in stored.items() if name.startswith("encoder.")}
    opened.encoder.load_state_dict(stack)
    tokens = T5Tokenizer.from_pretrained(tmp_path / "t5")("a dog", return_tensors="pt")
    expected = conditioner.output_proj(opened(**tokens).last_hidden_state)
    torch.testing.assert_close(conditioner(["a dog"]).tokens, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_fine_tuned_encoder_is_stored_whole(pretrained, tmp_path):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10, trainable=True)).eval()
    conditioner.encoder.embed_tokens.weight.add_(1.0)
    conditioner.save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace(str(pretrained), "gone/away"))
    assert same(T5Conditioner.load(tmp_path)(["a dog"]), conditioner(["a dog"]))


@torch.no_grad()
def test_embeddings_of_a_frozen_encoder_are_computed_once(pretrained, tmp_path):
    config = TextConfig(encoder=str(pretrained), width=10, cache_dir=str(tmp_path))
    projection = T5Conditioner(config).state_dict()
    calls = []

    def opened() -> T5Conditioner:
        conditioner = T5Conditioner(config).eval()
        conditioner.text_encoder().stack.register_forward_hook(lambda *_: calls.append(1))
        conditioner.load_state_dict(projection)
        return conditioner

    first = opened()
    expected = first(["a dog", "a cat", "a dog"])
    first(["a cat"])
    assert len(calls) == 2
    assert same(opened()(["a dog", "a cat", "a dog"]), expected)
    assert len(calls) == 2
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:20])  # a damaged cache is rebuilt
    assert same(opened()(["a dog", "a cat", "a dog"]), expected)
    assert len(calls) == 4


@torch.no_grad()
def test_a_frozen_encoder_is_opened_with_the_first_text(pretrained, tmp_path):
    T5Conditioner(TextConfig(encoder=str(pretrained), width=10)).save(tmp_path / "text")
    moved = tmp_path / "moved"
    shutil.copytree(pretrained, moved)
    config = (tmp_path / "text" / "config.json").read_text()
    (tmp_path / "text" / "config.json").write_text(config.replace(str(pretrained), str(moved)))
    (moved / "model.safetensors").rename(moved / "elsewhere")
    conditioner = T5Conditioner.load(tmp_path / "text")
    assert same(conditioner([None, " "]), null(2, 10))
    with pytest.raises(InputError, match="moved' cannot be opened"):
        conditioner(["a dog"])
    (moved / "elsewhere").rename(moved / "model.safetensors")
    assert conditioner(["a dog"]).mask.all()  # tried again
    assert conditioner.text_encoder().stack.config.d_model == 12
    assert not any(weight.requires_grad for weight in conditioner.text_encoder().stack.parameters())


@torch.no_grad()
def test_a_stored_encoder_needs_nothing_else(pretrained, tmp_path):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10, stored=True)).eval()
    conditioner.save(tmp_path / "text")
    config = (tmp_path / "text" / "config.json").read_text()
    (tmp_path / "text" / "config.json").write_text(config.replace(str(pretrained), "gone/away"))
    loaded = T5Conditioner.load(tmp_path / "text")
    assert same(loaded(["a dog", None]), conditioner(["a dog", None]))
    assert set(loaded.state_dict()) == {"output_proj.weight", "output_proj.bias"}  # in no training checkpoint
    loaded.save(tmp_path / "again")
    assert same(T5Conditioner.load(tmp_path / "again")(["a cat"]), conditioner(["a cat"]))
    conditioner.save(tmp_path / "half", torch.float16)
    half = T5Conditioner.load(tmp_path / "half")
    assert {weight.dtype for weight in half.text_encoder().stack.parameters()} == {torch.float32}
    torch.testing.assert_close(half(["a cat"]).tokens, conditioner(["a cat"]).tokens, atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_another_encoder_takes_the_place_of_a_frozen_one(pretrained, embedded, tmp_path, monkeypatch):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10, stored=True)).eval()
    conditioner.save(tmp_path / "text")
    shutil.copytree(pretrained, tmp_path / "other")
    other = T5EncoderModel.from_pretrained(pretrained)
    other.shared.weight.mul_(2.0)
    other.save_pretrained(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    loaded = T5Conditioner.load(tmp_path / "text", "other")
    assert (loaded.config.encoder, loaded.config.stored) == (str(tmp_path / "other"), False)
    assert loaded.config == read_config(tmp_path / "text", "other")
    expected = T5Conditioner(TextConfig(encoder="other", width=10)).eval()
    expected.load_state_dict(conditioner.state_dict())
    assert same(loaded(["a dog"]), expected(["a dog"]))
    assert not same(loaded(["a dog"]), conditioner(["a dog"]))
    T5EncoderModel(T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=1)).save_pretrained("wide")
    with pytest.raises(InputError, match="wide' gives features 16 wide, but .*text projects from 12"):
        T5Conditioner.load(tmp_path / "text", "wide")
    with pytest.raises(InputError, match="'none' cannot be opened"):
        T5Conditioner.load(tmp_path / "text", "none")
    embedded.save(tmp_path / "embedded")
    with pytest.raises(InputError, match="'other.*cannot replace that of .*embedded, which was trained"):
        T5Conditioner.load(tmp_path / "embedded", "other")


def test_half_an_encoder_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "half")
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    name = next(name for name in sorted(tensors) if "block.1" in name)
    del tensors[name]
    save_file(tensors, tmp_path / "half" / "model.safetensors", {"format": "pt"})
    conditioner = T5Conditioner(TextConfig(encoder=str(tmp_path / "half"), width=10))
    with pytest.raises(
        InputError, match=f"weights of .*half do not fit .*missing {name.removeprefix('encoder.')}"
    ):
        conditioner(["a dog"])
    config = tmp_path / "half" / "config.json"
    config.write_text(config.read_text().replace('"t5"', '"bert"'))
    with pytest.raises(InputError, match="model_type 'bert'; 't5' and 't5gemma' are read"):
        T5Conditioner(TextConfig(encoder=str(tmp_path / "half"), width=10))


def test_an_encoder_without_its_tokenizer_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "mute")
    (tmp_path / "mute" / "tokenizer.json").unlink()
    conditioner = T5Conditioner(TextConfig(encoder=str(tmp_path / "mute"), width=10))
    with pytest.raises(
        InputError, match=r"mute' cannot be opened \(it holds no tokenizer, which is tokenizer.json"
    ):
        conditioner(["a dog"])


def test_an_encoder_that_asks_for_code_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "code")
    (tmp_path / "code" / "model.safetensors").unlink()
    torch.save({"shared.weight": print}, tmp_path / "code" / "pytorch_model.bin")
    conditioner = T5Conditioner(TextConfig(encoder=str(tmp_path / "code"), width=10))
    with pytest.raises(InputError, match="pytorch_model.bin asks for print, which is more than data"):
        conditioner(["a dog"])


def test_a_tokenizer_of_more_words_than_the_encoder_is_refused(pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "small")
    small = T5Config(vocab_size=8, d_model=12, d_kv=4, d_ff=24, num_layers=1, num_heads=3)
    T5EncoderModel(small).save_pretrained(tmp_path / "small")
    conditioner = T5Conditioner(TextConfig(encoder=str(tmp_path / "small"), width=10))
    with pytest.raises(InputError, match="small' has 8 tokens, but its tokenizer gives id"):
        conditioner(["zoo"])


def test_what_is_neither_a_directory_nor_a_hub_id_is_no_encoder(pretrained, tmp_path):
    for name in (tmp_path / "gone", pretrained / "config.json"):
        with pytest.raises(InputError, match=r"cannot be opened \(it is no directory and no hub id\)"):
            T5Conditioner(TextConfig(encoder=str(name), width=10))


def test_words_of_no_training_caption_are_warned_of_outside_of_training(embedded: T5Conditioner) -> None:
    with pytest.warns(
        UserWarning,
        match=r"no training caption had 'siern' \(did you mean 'siren'\?\), 'lorry': what is made",
    ):
        embedded(["a siern, then a lorry far away"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedded(["bells, then a siren"])
        embedded.train()(["a lorry"])
    embedded.eval()


def test_unknown_characters_of_a_pretrained_tokenizer_are_named(pretrained):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10))
    with pytest.warns(UserWarning, match="has no token for '🐶.' in 'a 🐶 dog.'"):
        ids = conditioner.token_ids("a 🐶 dog.")
    assert ids.count(conditioner.tokenizer.unk_id) == 2  # kept: it was trained with them


def test_memory_of_the_cache_is_bounded(pretrained):
    conditioner = T5Conditioner(TextConfig(encoder=str(pretrained), width=10)).eval()
    conditioner.frozen.cache.memory_bytes = 500  # each of these is 4 x 12 float32
    conditioner(["ab", "cd", "ef", "gh"])
    assert [
        conditioner.frozen.cache.get(conditioner.token_ids(t)) is None for t in ("ab", "cd", "ef", "gh")
    ] == [
        True,
        True,
        False,
        False,
    ]


@torch.no_grad()
def test_everything_is_float32_under_autocast(embedded):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = embedded(["a dog barks"])
    assert same(inside, embedded(["a dog barks"]))


def test_a_model_records_the_commit_of_its_encoder(pretrained, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--google-t5--t5-small"
    shutil.copytree(pretrained, folder / "snapshots" / ("a" * 40))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    conditioner = T5Conditioner(TextConfig(width=10, encoder="t5-small"))
    conditioner.save(tmp_path / "text")
    expected = conditioner(["a dog"])
    (folder / "refs" / "main").write_text("b" * 40)  # the repository went on
    loaded = T5Conditioner.load(tmp_path / "text")
    assert loaded.config.encoder == f"google-t5/t5-small@{'a' * 40}"
    assert same(loaded(["a dog"]), expected)


@pytest.mark.parametrize("text", ["a \udcff dog", "a\0dog", "x" * 1_000_000])
def test_what_is_no_text_is_one_line_with_either_tokenizer(embedded, pretrained, text):
    for conditioner in (embedded, T5Conditioner(TextConfig(width=10, encoder=str(pretrained)))):
        with pytest.raises(InputError, match="the text '.*(is no text|at most)"):
            conditioner([text])


def test_long_and_odd_texts(embedded):
    with pytest.warns(UserWarning, match=r"'a dog barks a dog.*' has \d+ tokens; .* first 512"):
        condition = embedded(["a dog barks " * 5000])
    assert condition.mask.shape == (1, 512) and condition.tokens.isfinite().all()
    with pytest.warns(UserWarning, match="has no token for '🐶🎺' in '🐶 barks🎺'"):
        emoji = embedded.token_ids("🐶 barks🎺")
    assert embedded.tokenizer.unk_id not in emoji
    assert emoji[-5:] == embedded.token_ids("barks")[-5:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedded(["a dog ticks on a roof"])
        assert embedded.token_ids("a dog barks!") == embedded.token_ids("a dog barks")
    with pytest.raises(ValueError, match="one string"):
        embedded("a dog barks")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": 10}, "text.dim 10 is not a multiple"),
        ({"width": 0}, "width is 0"),
        ({"max_tokens": 5000}, "max_tokens is 5000; it must be in .2, 512"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"encoder": ""}, "text.encoder is empty"),
        ({"stored": True}, "text.stored is for a frozen encoder"),
    ],
)
def test_config_names_the_key(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(SMALL, **change)


def test_missing_encoder_or_vocabulary(tmp_path):
    with pytest.raises(InputError, match="no-such/t5.*cannot be opened"):
        T5Conditioner(TextConfig(encoder="no-such/t5"))
    with pytest.raises(InputError, match="cannot be opened"):
        T5Conditioner(TextConfig(encoder=str(tmp_path)))
    with pytest.raises(InputError, match="needs a vocabulary"):
        T5Conditioner(SMALL)
