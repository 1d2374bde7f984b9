"""Model directories of language models: what was saved is what is loaded, from anywhere, or a clear refusal."""

import json
from pathlib import Path

import pytest
import torch

from audiogen import checkpoint
from audiogen.conditioning.t5 import T5Conditioner, TextConfig
from audiogen.conditioning.vocabulary import train_vocabulary
from audiogen.errors import InputError
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.pretrained import CodecReference, load_lm, save_lm
from audiogen.lm.sample import generate_tokens

CAPTIONS = ["a dog barks twice", "rain falls on a roof", "a clock ticks"]


@pytest.fixture(scope="module")
def parts() -> tuple[TokenLM, T5Conditioner]:
    torch.manual_seed(0)
    config = TextConfig(width=24, vocab_size=40, dim=16, num_layers=1, num_heads=2)
    conditioner = T5Conditioner(config, train_vocabulary(CAPTIONS, 40)).eval()
    return TokenLM(LMConfig(3, 11, 24, 2, 4, delays=(0, 2, 2))).eval(), conditioner


@pytest.fixture
def codec(tmp_path: Path) -> CodecReference:
    """A codec's model directory; the language model never opens it."""
    checkpoint.save_model(tmp_path / "some" / "codec_a", "codec", {"bits": 3}, {"w": torch.arange(4.0)})
    return CodecReference(str(tmp_path / "some" / "codec_a"), "0123456789abcdef")


def codes_of(lm: TokenLM, conditioner: T5Conditioner) -> torch.Tensor:
    with torch.no_grad():
        return generate_tokens(lm, conditioner([*CAPTIONS, None]), 7, seeds=range(4))


def test_a_loaded_model_generates_what_the_saved_one_did(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference
) -> None:
    save_lm(tmp_path / "model", *parts, codec, max_frames=250, info={"steps": 7})
    loaded = load_lm(tmp_path / "model")
    assert torch.equal(codes_of(loaded.lm, loaded.conditioner), codes_of(*parts))
    assert loaded.lm.config == parts[0].config
    assert (loaded.max_frames, loaded.info) == (250, {"steps": 7})
    assert not loaded.lm.training and not loaded.conditioner.training


def test_the_directory_holds_its_codec_and_can_be_moved(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference
) -> None:
    save_lm(tmp_path / "model", *parts, codec, max_frames=250)
    (tmp_path / "model").rename(tmp_path / "moved")
    Path(codec.location).rename(tmp_path / "gone")
    found = load_lm(tmp_path / "moved").codec
    assert found.identity == codec.identity
    assert checkpoint.read_config(found.location, "codec")["config"] == {"bits": 3}
    assert torch.equal(checkpoint.load_tensors(found.location)["w"], torch.arange(4.0))
    save_lm(tmp_path / "moved", *parts, found, max_frames=250)  # in place: onto its own copy
    assert load_lm(tmp_path / "moved").codec == found


def test_a_bundled_codec_is_kept_by_name(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "weights_folder", lambda: tmp_path / "weights")
    checkpoint.save_model(tmp_path / "weights" / "codec_b", "codec", {}, {"w": torch.zeros(1)})
    save_lm(tmp_path / "model", *parts, CodecReference("codec_b", "ab"), max_frames=250)
    assert load_lm(tmp_path / "model").codec == CodecReference("codec_b", "ab")
    assert not (tmp_path / "model" / "codec").exists()
    with pytest.raises(InputError, match="codec_c"):
        save_lm(tmp_path / "other", *parts, CodecReference("codec_c", "ab"), max_frames=250)
    assert not (tmp_path / "other" / "config.json").exists()


def test_half_precision_on_disk_and_in_use(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference
) -> None:
    save_lm(tmp_path / "model", *parts, codec, max_frames=250, dtype=torch.float16)
    stored = checkpoint.load_tensors(tmp_path / "model")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    exact = load_lm(tmp_path / "model").lm
    assert {p.dtype for p in exact.parameters()} == {torch.float32}
    torch.testing.assert_close(exact.heads.weight, parts[0].heads.weight, atol=1e-3, rtol=1e-3)
    rounded = load_lm(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in rounded.lm.parameters()} == {torch.bfloat16}
    assert rounded.conditioner(["a dog barks"]).tokens.dtype == torch.float32
    assert codes_of(rounded.lm, rounded.conditioner).shape == (4, 3, 7)


def test_what_is_not_a_whole_language_model_is_refused(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference
) -> None:
    with pytest.raises(InputError, match="holds a model of kind 'codec'; 'token_lm' is needed"):
        load_lm(codec.location)
    with pytest.raises(InputError, match="neither a directory nor a bundled model"):
        load_lm(tmp_path / "absent")
    save_lm(tmp_path / "model", *parts, codec, max_frames=250)
    path = tmp_path / "model" / "config.json"
    contents = json.loads(path.read_text())
    contents["config"]["lm"]["dim"] = 48
    path.write_text(json.dumps(contents))
    with pytest.raises(InputError, match=r"weights of .*model do not fit their config: embedding.weight is"):
        load_lm(tmp_path / "model")
    del contents["config"]["codec"]
    path.write_text(json.dumps(contents))
    with pytest.raises(InputError, match="lacks config.codec"):
        load_lm(tmp_path / "model")
    with pytest.raises(InputError, match="holds a model of kind 'token_lm'; 'codec' is needed"):
        save_lm(tmp_path / "x", *parts, CodecReference(str(tmp_path / "model"), "ab"), max_frames=250)
