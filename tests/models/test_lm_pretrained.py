"""Model directories of language models: what was saved is what is loaded, from anywhere, or a clear refusal."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.lm.model import LMConfig, TokenLM
from audiogen.lm.sample import TokenRequest, generate_tokens
from audiogen.models.build import load_lm, read_lm
from audiogen.models.find import LM, find
from audiogen.models.own import save_lm
from audiogen.models.parts import CodecReference
from audiogen.text.t5 import T5Conditioner, TextConfig
from audiogen.text.vocabulary import train_vocabulary

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
        return generate_tokens(lm, TokenRequest(conditioner([*CAPTIONS, None]), 7, range(4)))


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
    monkeypatch.setattr("audiogen.models.find.weights_folder", lambda: tmp_path / "weights")
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
    with pytest.raises(InputError, match="holds a codec, which .* a token language model is needed"):
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


@pytest.mark.parametrize(
    "change",
    [
        {"kind": None},
        {"config": None},
        {"config": ["lm"]},
        {"max_frames": 0},
        {"max_frames": "9"},
    ],
)
def test_a_damaged_configuration_is_refused_in_one_line(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference, change: dict[str, object]
) -> None:
    save_lm(tmp_path / "model", *parts, codec, max_frames=250)
    path = tmp_path / "model" / "config.json"
    contents = json.loads(path.read_text())
    (contents["config"] if "max_frames" in change else contents).update(change)
    path.write_text(json.dumps(contents))
    with pytest.raises(InputError, match=r"config.json.* should be .*copy it again") as error:
        load_lm(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_described_without_its_weights(
    tmp_path: Path, parts: tuple[TokenLM, T5Conditioner], codec: CodecReference
) -> None:
    stereo = dataclasses.replace(codec, dual_mono=True)
    save_lm(tmp_path / "model", *parts, stereo, max_frames=250)
    loaded = load_lm(tmp_path / "model")
    assert loaded.codec == CodecReference(str(tmp_path / "model" / "codec"), codec.identity, dual_mono=True)
    for path in (tmp_path / "model").rglob("model.safetensors"):
        path.write_bytes(b"")
    description = read_lm(find(tmp_path / "model", LM))
    assert (description.config, description.text) == (parts[0].config, parts[1].config)
    assert (description.codec, description.max_frames) == (loaded.codec, 250)
    with pytest.raises(InputError, match="'other' cannot replace that of .*text, which was trained"):
        read_lm(find(tmp_path / "model", LM), "other")


def hub_cache(root: Path, hub_id: str, files: Mapping[str, Path | str]) -> None:
    """What a download of main leaves in the hub's cache."""
    folder = root / f"models--{hub_id.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    for name, source in files.items():
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes() if isinstance(source, Path) else source.encode())


def test_models_of_the_hub_from_its_cache(
    tmp_path: Path,
    parts: tuple[TokenLM, T5Conditioner],
    codec: CodecReference,
    shared: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    save_lm(tmp_path / "model", *parts, codec, max_frames=250)
    model = tmp_path / "model"
    own = {str(path.relative_to(model)): path for path in model.rglob("*") if path.is_file()}
    hub_cache(tmp_path / "hub", "some/own", own)
    assert load_lm("some/own").max_frames == 250
    fixture = shared / "fixtures" / "audiogen_tiny"
    released = {name: fixture / name for name in ("state_dict.bin", "compression_state_dict.bin")}
    hub_cache(tmp_path / "hub", "some/audiogen", released)
    assert load_lm("some/audiogen@main").max_frames == 500
    melody = {"config.json": '{"model_type": "musicgen_melody"}', "model-00001-of-00002.safetensors": ""}
    hub_cache(tmp_path / "hub", "some/melody", melody)
    with pytest.raises(InputError, match="musicgen_melody.*follows a melody"):
        load_lm("some/melody")
    with pytest.raises(InputError, match="some/absent"):
        load_lm("some/absent")
