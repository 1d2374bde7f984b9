"""CLAP embeddings against transformers' own use of the model, and the branch that released directories lack."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel, ClapTextModelWithProjection

from audiogen.audio import resample
from audiogen.errors import InputError
from audiogen.files import hub
from audiogen.text.clap import Clap, cut_windows
from tests import random_t5
from tests.diffusion.tiny_encoders import write_clap


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("clap"), 12)


@torch.no_grad()
def test_texts_are_embedded_as_transformers_does_padded_and_masked(folder: Path) -> None:
    texts, model = ["a", "abc de", ""], ClapModel.from_pretrained(folder).eval()
    words = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    expected = model.get_text_features(words["input_ids"], words["attention_mask"]).pooler_output
    found = Clap(str(folder)).embed_text(texts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize("text", ["a \udcff dog", "a\0dog", "x" * 1_000_000])
def test_what_is_no_text_is_one_line(folder: Path, text: str) -> None:
    with pytest.raises(InputError, match="the text '.*(is no text|at most)"):
        Clap(str(folder)).embed_text([text])


def test_a_download_shows_its_progress(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the bars of reading are left out."""
    shown = []

    def fetch(name: str, layouts: object) -> Path:
        shown.append(transformers.utils.logging.is_progress_bar_enabled())
        return folder

    monkeypatch.setattr(hub, "fetch", fetch)
    transformers.utils.logging.enable_progress_bar()
    _ = Clap("laion/clap").parts
    assert shown == [True] and transformers.utils.logging.is_progress_bar_enabled()


@torch.no_grad()
def test_a_long_sound_is_embedded_by_its_middle_every_time_the_same(folder: Path) -> None:
    audio = torch.randn(2, 2, 20000, generator=torch.Generator().manual_seed(0)) * 0.1  # 2.5 s of stereo
    clap, extractor = Clap(str(folder)), ClapFeatureExtractor.from_pretrained(folder)
    middle = audio.mean(dim=1)[:, 6000:14000]  # the second that it looks at
    features = extractor([row.numpy() for row in middle], sampling_rate=8000, return_tensors="pt")
    model = ClapModel.from_pretrained(folder).eval()
    expected = model.get_audio_features(features["input_features"]).pooler_output
    found = clap.embed_audio(audio, 8000)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found, clap.embed_audio(audio, 8000))


@torch.no_grad()
def test_all_windows_of_a_long_sound_give_their_mean_direction(folder: Path) -> None:
    audio = torch.randn(2, 1, 20000, generator=torch.Generator().manual_seed(0)) * torch.linspace(
        0.01, 0.2, 20000
    )
    clap = Clap(str(folder))
    parts = sum(clap.embed_audio(audio[..., start : start + 8000], 8000) for start in (0, 6000, 12000))
    found = clap.embed_audio(audio, 8000, windows="all")
    torch.testing.assert_close(found, parts / parts.norm(dim=-1, keepdim=True))
    assert (found - clap.embed_audio(audio, 8000)).norm() > 1e-3
    short = audio[..., :5000]
    torch.testing.assert_close(clap.embed_audio(short, 8000, windows="all"), clap.embed_audio(short, 8000))


def test_a_model_that_lacks_weights_or_is_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    half = shutil.copytree(folder, tmp_path / "half")
    tensors = load_file(half / "model.safetensors")
    del tensors["text_projection.linear1.weight"]
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        InputError, match="half. cannot be opened .it lacks 1 weights of ClapModel, such as text_pro"
    ):
        _ = Clap(str(half)).parts
    other = random_t5.write(tmp_path, 8)
    with pytest.raises(InputError, match="holds a model of type 't5'; 'clap' is needed"):
        Clap(str(other)).embed_text(["a"])


def test_a_sound_of_another_rate_is_resampled_to_that_of_the_model(folder: Path) -> None:
    """CLAP is trained at 48 kHz, and the systems that use it work at 16 and 44.1: here 8 and 16."""
    clap, time_s = Clap(str(folder)), torch.arange(16000) / 16000
    sound = (0.3 * torch.sin(2 * torch.pi * 440 * time_s) + 0.1 * torch.sin(2 * torch.pi * 1500 * time_s))[
        None
    ]
    found = clap.embed_audio(sound[None], 16000)
    lower = clap.embed_audio(resample(sound, 16000, 8000)[None], 8000)
    taken_as_8k = clap.embed_audio(sound[None], 8000)
    torch.testing.assert_close(found, lower, rtol=1e-4, atol=1e-5)
    assert (found - taken_as_8k).norm() > 10 * (found - lower).norm() + 1e-3


@torch.no_grad()
def test_a_directory_without_the_audio_branch_embeds_texts_alike_and_says_what_it_lacks(
    folder: Path, tmp_path: Path
) -> None:
    ClapTextModelWithProjection.from_pretrained(folder).save_pretrained(tmp_path)
    part = Clap(str(tmp_path), tokenizer=str(folder))
    torch.testing.assert_close(part.embed_text(["abc"]), Clap(str(folder)).embed_text(["abc"]))
    with pytest.raises(InputError, match="has no audio branch"):
        part.embed_audio(torch.zeros(1, 1, 8000), 8000)
    with pytest.raises(InputError, match="CLAP model .* cannot be opened"):
        Clap(str(tmp_path / "nothing")).embed_text(["a"])


def test_windows_cover_everything_evenly() -> None:
    sound = torch.arange(23)
    for length in (23, 50):
        (whole,) = cut_windows(sound, length)
        assert torch.equal(whole, sound)
    cut = torch.stack(cut_windows(sound, 10))  # [3, 10]
    assert cut.shape == (3, 10) and cut[:, 0].tolist() == [0, 6, 13]
    assert set(cut.flatten().tolist()) == set(range(23))
    assert torch.stack(cut_windows(torch.arange(30), 10))[:, 0].tolist() == [0, 10, 20]
