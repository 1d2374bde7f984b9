"""CLAP and AST: equal to transformers' own pipeline on tiny random models, at any length, in any batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    ClapModel,
    ClapProcessor,
)

from audiogen.errors import InputError
from audiogen.evaluate.embedders import embed_clips, load_embedder
from audiogen.models.find import weights_folder

RATE = 8000  # of the tiny CLAP of conftest.py, whose window is 1 s
AST_WINDOW = 400 + 160 * 23  # of the tiny AST: 24 frames


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.fixture(scope="module")
def ast(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "tiny-ast"
    torch.manual_seed(1)
    config = ASTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_length=24,
        num_mel_bins=16,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        num_labels=3,
        id2label={0: "Dog", 1: "Rain", 2: "Crow"},
    )
    model = ASTForAudioClassification(config)
    for tensor in model.parameters():
        if tensor.dim() > 1:
            torch.nn.init.normal_(tensor, std=0.3)
    model.save_pretrained(folder)
    ASTFeatureExtractor(num_mel_bins=16, max_length=24).save_pretrained(folder)
    return folder


# --- CLAP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clap", "fused"])
@pytest.mark.parametrize("num_samples", [1, 3000, 8000])
@torch.no_grad()
def test_clap_audio_is_what_transformers_gives(kind, num_samples, request):
    folder = request.getfixturevalue(kind)
    embedder, model = load_embedder(f"clap:{folder}"), ClapModel.from_pretrained(folder).eval()
    audio = noise(2, 1, num_samples)
    inputs = ClapProcessor.from_pretrained(folder)(
        audio=[row[0].numpy() for row in audio], sampling_rate=RATE, return_tensors="pt"
    )
    inputs["is_longer"] = torch.zeros(2, 1, dtype=torch.bool)  # the processor would choose one row by chance
    result = model.get_audio_features(**inputs)
    expected = result if isinstance(result, Tensor) else result.pooler_output
    embedded = embedder.embed(audio)
    assert embedded.probabilities is None and embedder.labels == [] and embedder.text
    assert (embedder.name, embedder.sample_rate) == (f"clap:{folder.name}", RATE)
    np.testing.assert_allclose(embedded.embeddings, normalize(expected, dim=-1).numpy(), atol=1e-5)


@torch.no_grad()
def test_clap_text_is_what_transformers_gives_and_independent_of_neighbours(clap):
    embedder, model = load_embedder(f"clap:{clap}"), ClapModel.from_pretrained(clap).eval()
    texts = ["a dog", "rain on a tin"]
    tokens = ClapProcessor.from_pretrained(clap)(text=texts, padding=True, return_tensors="pt")
    result = model.get_text_features(**tokens)
    expected = result if isinstance(result, Tensor) else result.pooler_output
    found = embedder.embed_text(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, normalize(expected, dim=-1).numpy(), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_text(texts * 20), np.tile(found, (20, 1)), atol=1e-5)
    np.testing.assert_allclose(embedder.embed_text(texts[:1])[0], found[0], atol=1e-5)
    long = "a dog and rain and a dog and rain"  # more than the 18 tokens this model reads
    assert np.isfinite(embedder.embed_text([long])).all()
    with pytest.raises(InputError, match="no texts"):
        embedder.embed_text([])


@pytest.mark.parametrize("kind", ["clap", "fused"])
def test_a_long_sound_is_the_direction_of_its_windows_without_chance(kind, request):
    embedder = load_embedder(f"clap:{request.getfixturevalue(kind)}")
    audio = noise(2, 1, 2 * RATE + 4000) * torch.linspace(0.01, 1, 2 * RATE + 4000)
    embeddings = embedder.embed(audio).embeddings
    parts = sum(embedder.embed(audio[..., start : start + RATE]).embeddings for start in (0, 6000, 12000))
    np.testing.assert_allclose(embeddings, parts / np.linalg.norm(parts, axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-6)
    assert np.array_equal(embedder.embed(audio).embeddings, embeddings)
    np.testing.assert_allclose(embedder.embed(audio[1:]).embeddings[0], embeddings[1], atol=1e-5)
    assert abs(embeddings[0] - embeddings[1]).max() > 1e-3


# --- AST -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 400, 3000, AST_WINDOW])
@torch.no_grad()
def test_ast_is_what_transformers_gives(ast, num_samples):
    embedder = load_embedder(f"ast:{ast}")
    audio = noise(2, 2, num_samples)
    filled = torch.nn.functional.pad(audio.mean(1), (0, max(0, 400 - num_samples)))  # one frame
    inputs = ASTFeatureExtractor.from_pretrained(ast)(
        list(filled.numpy()), sampling_rate=16000, return_tensors="pt"
    )
    embedded = embedder.embed(audio)
    pooled = ASTModel.from_pretrained(ast).eval()(**inputs).pooler_output
    logits = ASTForAudioClassification.from_pretrained(ast).eval()(**inputs).logits
    np.testing.assert_allclose(embedded.embeddings, pooled.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedded.probabilities, logits.softmax(-1).numpy(), atol=1e-5)
    assert embedder.labels == ["Dog", "Rain", "Crow"]
    assert (embedder.name, embedder.sample_rate, embedder.text) == ("ast:tiny-ast", 16000, None)
    with pytest.raises(InputError, match="does not read text"):
        embedder.embed_text(["a dog"])


def kaldi_fbank(audio: np.ndarray, num_mels: int) -> np.ndarray:
    """Kaldi's filter bank features [T, M] from its definition: symmetric Hann, 20 Hz to 8 kHz, no dither."""
    frames = np.stack([audio[start : start + 400] for start in range(0, len(audio) - 399, 160)])
    frames = frames - frames.mean(1, keepdims=True)
    frames = frames - 0.97 * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    power = np.abs(np.fft.rfft(frames * np.hanning(400), 512)) ** 2
    mel = 1127 * np.log1p(np.arange(257) * 16000 / 512 / 700)
    low, high = 1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700)
    step = (high - low) / (num_mels + 1)
    centres = low + step * np.arange(1, num_mels + 1)
    filters = np.maximum(0, 1 - np.abs(mel[:, None] - centres) / step)  # [bins, M]
    return np.log(np.maximum(power @ filters, np.finfo(np.float32).eps))


@torch.no_grad()
def test_ast_reads_kaldis_features_without_torchaudio(ast):
    """The embedding follows from features computed here, so that the extractor's own way to them is tested too."""
    audio = noise(1, 1, AST_WINDOW)
    features = (kaldi_fbank(audio[0, 0].double().numpy(), 16) + 4.2677393) / (2 * 4.5689974)
    values = torch.from_numpy(features).float()[None]
    expected = ASTModel.from_pretrained(ast).eval()(input_values=values).pooler_output
    found = load_embedder(f"ast:{ast}").embed(audio).embeddings
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)


def test_ast_on_a_long_sound_is_the_mean_of_its_windows(ast):
    embedder = load_embedder(f"ast:{ast}")
    audio = noise(2, 1, 2 * AST_WINDOW) * torch.linspace(0.01, 1, 2 * AST_WINDOW)
    whole = embedder.embed(audio)
    halves = [embedder.embed(half) for half in audio.split(AST_WINDOW, -1)]
    for field in ("embeddings", "probabilities"):
        expected = (getattr(halves[0], field) + getattr(halves[1], field)) / 2
        np.testing.assert_allclose(getattr(whole, field), expected, atol=1e-5)
    np.testing.assert_allclose(whole.probabilities.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["clap", "fused", "ast"])
def test_the_size_of_the_batch_changes_nothing(kind, request):
    folder = request.getfixturevalue(kind)
    embedder = load_embedder(f"{'ast' if kind == 'ast' else 'clap'}:{folder}")
    clips = [noise(1, 2000, seed=seed) for seed in range(3)] + [noise(2, 9000, seed=3), torch.zeros(1, 700)]
    one, many = (embed_clips(embedder, clips, 8000, batch=batch).embeddings for batch in (1, 3))
    np.testing.assert_allclose(one, many, atol=1e-5)
    assert np.isfinite(one).all()


# --- what cannot be opened -------------------------------------------------------------------------------------


def refused(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_embedder(spec)
    assert "\n" not in str(caught.value)


def test_another_kind_of_model_is_refused(clap, ast, tmp_path):
    refused(f"clap:{ast}", "type 'audio-spectrogram-transformer'; 'clap' is needed")
    refused(f"ast:{clap}", "type 'clap'; 'audio-spectrogram-transformer' is needed")
    refused(f"ast:{tmp_path}", "it holds no model that transformers wrote")
    refused(f"clap:{weights_folder() / 'codec_tiny'}", "it holds no model that transformers wrote")
    (tmp_path / "config.json").write_text("{not json")
    refused(f"ast:{tmp_path}", "cannot be opened")


@pytest.mark.parametrize("kind", ["clap", "ast"])
def test_a_hub_that_cannot_be_reached_is_one_line(kind):
    refused(f"{kind}:nobody/has-this", "model 'nobody/has-this' cannot be opened")


def test_pickled_weights_are_not_opened(ast, tmp_path):
    folder = shutil.copytree(ast, tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(ASTForAudioClassification.from_pretrained(ast).state_dict(), folder / "pytorch_model.bin")
    refused(f"ast:{folder}", "cannot be opened")


def test_damaged_weights_are_refused(ast, tmp_path):
    folder = shutil.copytree(ast, tmp_path / "damaged")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(f"ast:{folder}", "cannot be opened")


def test_a_model_without_its_classifier_is_refused_instead_of_guessing(ast, tmp_path):
    ASTModel.from_pretrained(ast).save_pretrained(tmp_path)
    ASTFeatureExtractor.from_pretrained(ast).save_pretrained(tmp_path)
    refused(f"ast:{tmp_path}", "lacks .* weights of ASTForAudioClassification")


def test_a_missing_extractor_or_tokenizer_is_named(clap, tmp_path):
    folder = shutil.copytree(clap, tmp_path / "half")
    (folder / "preprocessor_config.json").unlink()
    refused(f"clap:{folder}", "CLAP model .* cannot be opened")
