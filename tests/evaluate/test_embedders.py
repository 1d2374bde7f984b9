"""Embedders by their specs: what they give, that a clip stands for itself, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.seanet import SeanetConfig
from audiogen.errors import InputError
from audiogen.evaluate.embedders import Embedder, embed_clips, load_embedder
from audiogen.evaluate.published import EXAMPLE, Vggish
from audiogen.models.own import save_codec, save_tagger
from audiogen.tagger.model import Tagger, TaggerConfig
from tests import random_cnn14

KINDS = ("tagger", "codec", "panns", "vggish")
GROUPS = {"synth": ("bell", "siren"), "esc10": ("dog", "rain", "crow")}


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> dict[str, str]:
    """Tiny random models on disk, one a kind."""
    folder = tmp_path_factory.mktemp("embedders")
    torch.manual_seed(0)
    save_tagger(
        folder / "small", Tagger(TaggerConfig(GROUPS, widths=(2, 3), time_pools=(2, 2), frame_width=4, dim=5))
    )
    codec = CodecConfig(
        8000,
        2,
        "seanet",
        SeanetConfig(ratios=(5, 4, 4), num_filters=4, lstm=0),
        latent_dim=6,
        num_codebooks=2,
    )
    save_codec(folder / "codec", Codec(codec).eval())
    cnn14 = random_cnn14.make(16000, width=2, num_labels=7)
    for name, tensor in cnn14.state_dict().items():
        if name.startswith("conv_block") and ".conv" in name:
            tensor.mul_(2.4)  # else the signal halves in each of twelve layers
    torch.save({"model": cnn14.state_dict()}, folder / "Cnn14_16k.pth")
    torch.save(Vggish(width=2, hidden=8, dim=6).state_dict(), folder / "vggish.pth")
    np.savez(folder / "pca.npz", pca_eigen_vectors=np.eye(6, dtype="f4"), pca_means=np.zeros(6, "f4"))
    places = {"tagger": "small", "codec": "codec", "panns": "Cnn14_16k.pth", "vggish": "vggish.pth"}
    return {kind: f"{kind}:{folder / place}" for kind, place in places.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_names_shapes_and_repeatable_identity(kind, specs):
    embedder = load_embedder(specs[kind])
    name, rate, dim, labels = {
        "tagger": ("small", 16000, 5, 3),
        "codec": ("codec:codec", 8000, 12, None),
        "panns": ("panns:Cnn14_16k.pth", 16000, 64, 7),
        "vggish": ("vggish:vggish.pth", 16000, 6, None),
    }[kind]
    assert (embedder.name, embedder.sample_rate, embedder.text) == (name, rate, None)
    assert len(embedder.identity) == 16 and embedder.identity == load_embedder(specs[kind]).identity
    embeddings, probabilities = embedder.embed(noise(2, 1, EXAMPLE))
    assert embeddings.shape == (2, dim) and embeddings.dtype == np.float32
    if labels is None:
        assert probabilities is None and embedder.labels == []
    else:
        assert probabilities.shape == (2, labels) and probabilities.dtype == np.float32
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-6)
    with pytest.raises(InputError, match="does not read text; use clap"):
        embedder.embed_text(["a dog"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_rows_and_channels_are_averaged(kind, specs):
    embedder = load_embedder(specs[kind])
    audio = noise(3, 2, 20000) * torch.tensor([1.0, 0.3, 0.1])[:, None, None]
    audio[1, :, 5000:] = 0
    together = embedder.embed(audio)
    for row in range(3):
        alone = embedder.embed(audio[row : row + 1].mean(1, keepdim=True))
        np.testing.assert_allclose(together.embeddings[row], alone.embeddings[0], atol=1e-5, rtol=1e-4)
        if together.probabilities is not None:
            np.testing.assert_allclose(together.probabilities[row], alone.probabilities[0], atol=1e-5)
    assert np.ptp(together.embeddings, 0).max() > 1e-4  # rows differ


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_samples", [1, 777])
def test_silence_and_the_shortest_sounds_give_finite_numbers(kind, num_samples, specs):
    for audio in (torch.zeros(1, 1, num_samples), noise(1, 1, num_samples)):
        embedded = load_embedder(specs[kind]).embed(audio)
        assert np.isfinite(embedded.embeddings).all()


def test_the_tagger_behind_it_can_be_reached_and_its_group_is_a_softmax(specs):
    embedder = load_embedder(specs["tagger"])
    assert embedder.labels == ["dog", "rain", "crow"]
    assert isinstance(embedder.model, Tagger)
    audio = noise(2, 1, 16000)
    with torch.inference_mode():
        output = embedder.model(audio[:, 0])
    embedded = embedder.embed(audio)
    np.testing.assert_allclose(embedded.embeddings, output.embedding.numpy(), atol=1e-6)
    np.testing.assert_allclose(embedded.probabilities, output.logits[:, 2:].softmax(-1).numpy(), atol=1e-6)


def test_a_tagger_without_the_group_is_refused(tmp_path):
    save_tagger(tmp_path / "other", Tagger(TaggerConfig({"mood": ("calm",)}, widths=(2,), time_pools=(2,))))
    with pytest.raises(InputError, match="'esc10'; its groups: mood"):
        load_embedder(f"tagger:{tmp_path / 'other'}")


def test_codec_latents_mean_and_deviation(specs):
    embedder = load_embedder(specs["codec"])
    audio = noise(1, 1, 4000)
    with torch.inference_mode():
        latents = embedder.model.encoder(audio.expand(-1, 2, -1))[0].double().numpy()  # [6, T]
    embedding = embedder.embed(audio).embeddings[0]
    np.testing.assert_allclose(embedding[:6], latents.mean(1), atol=1e-5)
    np.testing.assert_allclose(embedding[6:], latents.std(1), atol=1e-5)


def test_vggish_is_the_mean_of_examples_and_whitening_has_its_own_identity(specs):
    embedder = load_embedder(specs["vggish"])
    audio = noise(1, 1, 3 * EXAMPLE)
    examples = embedder.model(audio[:, 0]).detach().numpy()
    assert examples.shape == (1, 3, 6)
    np.testing.assert_allclose(embedder.embed(audio).embeddings, examples.mean(1), atol=1e-6)
    path = specs["vggish"].partition(":")[2]
    whitened = load_embedder(f"{specs['vggish']},pca={Path(path).with_name('pca.npz')}")
    assert whitened.name == "vggish:vggish.pth,pca=pca.npz"
    assert whitened.identity != embedder.identity
    assert not np.allclose(whitened.embed(audio).embeddings, examples.mean(1))


# --- clips -----------------------------------------------------------------------------------------------------


class Levels(Embedder):
    """Independent of any model: mean square and length of each clip, and the sizes of the batches it was given."""

    def __init__(self) -> None:
        super().__init__("levels", "0" * 16, 8000, None, self.measure)
        self.batches: list[int] = []

    def measure(self, audio):
        self.batches.append(len(audio))
        power = audio.square().mean(1)
        return torch.stack([power, torch.full_like(power, audio.shape[-1])], 1), None


def test_clips_keep_their_order_and_never_share_a_batch_with_another_length():
    levels = Levels()
    lengths = [100, 100, 100, 60, 100, 40, 40]
    clips = [noise(1 + index % 2, length, seed=index) for index, length in enumerate(lengths)]
    embedded = embed_clips(levels, iter(clips), 8000, batch=2)
    expected = [[float(clip.mean(0).square().mean()), clip.shape[1]] for clip in clips]
    np.testing.assert_allclose(embedded.embeddings, expected, rtol=1e-5)
    assert levels.batches == [2, 1, 1, 1, 2]


def test_clips_are_resampled():
    time = torch.arange(24000) / 24000
    sine = torch.sin(2 * torch.pi * 440 * time)[None]
    (power, length) = embed_clips(Levels(), [sine], 24000).embeddings[0]
    assert length == 8000
    assert power == pytest.approx(0.5, rel=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_the_batch_changes_nothing(kind, specs):
    embedder = load_embedder(specs[kind])
    clips = [noise(1, 9000, seed=seed) for seed in range(3)] + [noise(2, 4000)]
    one, many = (embed_clips(embedder, clips, 11025, batch=batch) for batch in (1, 3))
    np.testing.assert_allclose(one.embeddings, many.embeddings, atol=1e-5, rtol=1e-4)
    if one.probabilities is not None:
        assert one.probabilities.shape[0] == 4
        np.testing.assert_allclose(one.probabilities, many.probabilities, atol=1e-5)


@pytest.mark.parametrize(
    "bad,message",
    [
        (torch.zeros(1, 0), r"clip 1 has shape \[1, 0\]"),
        (torch.zeros(0, 9), r"clip 1 has shape \[0, 9\]"),
        (torch.zeros(9), r"clip 1 has shape \[9\]"),
        (torch.tensor([[0.0, float("nan")]]), "clip 1 has samples that are not finite"),
        (torch.tensor([[0.0, float("inf")]]), "clip 1 has samples that are not finite"),
    ],
)
def test_a_bad_clip_is_named(bad, message):
    with pytest.raises(InputError, match=message):
        embed_clips(Levels(), [noise(1, 50), bad], 8000)


def test_no_clips_are_refused():
    with pytest.raises(InputError, match="there are no clips"):
        embed_clips(Levels(), [], 8000)


# --- specs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", "fad", "mfcc:x", "panns", "panns:", "clap:"])
def test_a_mistyped_spec_lists_what_there_is(spec):
    with pytest.raises(
        InputError, match=r"there are tagger_tiny, .*codec:.*clap:.*ast:.*panns:FILE.*vggish:FILE"
    ):
        load_embedder(spec)


def test_missing_and_mistaken_files_are_one_clear_line(specs, tmp_path):
    files = {kind: spec.partition(":")[2] for kind, spec in specs.items()}
    for spec, message in {
        f"panns:{tmp_path / 'none.pth'}": "is not there",
        f"vggish:{tmp_path}": "is a directory",
        f"vggish:{files['panns']}": "not a VGGish",
        f"panns:{files['vggish']}": "not a CNN14",
        f"vggish:{files['vggish']},pca=none.npz": "none.npz cannot be opened",
        f"codec:{files['tagger']}": "holds a tagger, which .* a codec is needed",
        f"tagger:{files['codec']}": "holds a codec, which .* a tagger is needed",
        "codec:codec_tyni": "did you mean 'codec_tiny'",
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            load_embedder(spec)
        assert "\n" not in str(caught.value)


def test_the_bundled_codec_needs_nothing():
    embedder = load_embedder("codec:codec_tiny")
    embedded = embed_clips(embedder, [noise(1, 8000)], 16000)
    assert embedder.name == "codec:codec_tiny"
    assert embedded.embeddings.shape[0] == 1 and np.isfinite(embedded.embeddings).all()
