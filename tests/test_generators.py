"""Text to audio: a sound is a function of its text, seed and settings; durations, continuation, saving, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from audiogen import AudioGen, checkpoint, generators
from audiogen.codec.pretrained import load_codec
from audiogen.errors import InputError
from audiogen.interfaces import Generator

TEXTS = ["a dog barks", "rain falls on a tin roof", None, "a clock ticks", "a dog ticks", "rain"]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, device="cpu")


def test_a_sound_is_the_same_alone_in_a_batch_and_in_any_order(model: AudioGen) -> None:
    together = model.generate(TEXTS, 0.2, seed=5)
    assert together.shape == (6, 1, 1600) and together.isfinite().all()
    for row, text in enumerate(TEXTS):
        assert torch.equal(model.generate([text], 0.2, seed=5 + row), together[row : row + 1])
    backwards = model.generate(TEXTS[::-1], 0.2, seed=[10, 9, 8, 7, 6, 5])
    assert torch.equal(backwards.flip(0), together)
    assert len({row.numpy().tobytes() for row in together}) == 6


def test_long_and_short_rows_of_a_batch_are_what_they_are_alone(model: AudioGen) -> None:
    texts, durations = (
        ["a dog barks", "a clock ticks " * 20, "rain"],
        [0.2, 0.155, 0.9],
    )  # 0.9 s is past the window
    together = model.generate(texts, durations, seed=1, negative="rain")
    assert together.shape == (3, 1, 7200)
    for row, (text, duration_s) in enumerate(zip(texts, durations, strict=True)):
        alone = model.generate([text], duration_s, seed=1 + row, negative="rain")[0]
        assert alone.shape[-1] == round(8000 * duration_s)
        assert torch.equal(together[row, :, : alone.shape[-1]], alone)
        assert not together[row, :, alone.shape[-1] :].any()
        assert alone[:, -80:].any()  # sound to the very end


def test_every_setting_reaches_the_model(model: AudioGen) -> None:
    def sound(**settings: object) -> bytes:
        text = settings.pop("text", "a dog barks")
        return model.generate([text], 0.4, **settings).numpy().tobytes()  # type: ignore[arg-type, list-item]

    settings = [
        {},
        {"seed": 1},
        {"text": "rain"},
        {"guidance": 1.0},
        {"temperature": 0.3},
        {"top_k": 2},
        {"top_p": 0.5},
        {"negative": "rain"},
    ]
    assert len({sound(**setting) for setting in settings}) == len(settings)
    assert sound(temperature=0.0, seed=1) == sound(temperature=0.0, seed=2) == sound(top_k=1, seed=3)


def test_unconditional_is_generation_from_none(model: AudioGen) -> None:
    unconditional = model.generate_unconditional(3, 0.2, seed=4)
    torch.testing.assert_close(unconditional, model.generate([None] * 3, 0.2, seed=4), atol=1e-5, rtol=0)


def test_continuation_begins_with_the_clip_as_the_codec_renders_it(model: AudioGen) -> None:
    clip = 0.5 * torch.sin(torch.arange(1000) / 5.0)[None]  # 12 whole frames and a half
    whole = clip[None, :, :960]
    codes = model.codec.encode(whole)
    sounds = model.generate_continuation(clip, 8000, ["a dog barks", "rain"], 0.3, temperature=0.0)
    assert sounds.shape == (2, 1, 2400)
    context = model.codec.context_frames * 80
    kept = max(0, 960 - context)
    rendered = model.codec.decode(codes)[0, :, :kept]
    for sound in sounds:
        torch.testing.assert_close(sound[:, :kept], rendered, atol=1e-5, rtol=0)
    plain = model.generate(["a dog barks", "rain"], 0.3, temperature=0.0)
    assert not torch.equal(sounds, plain)
    # a clip a row, at another rate and in stereo
    stereo = torch.stack([clip, clip.flip(-1)]).repeat_interleave(2, -1).expand(2, 2, -1)
    both = model.generate_continuation(stereo, 16000, duration_s=0.3)
    assert both.shape == (2, 1, 2400) and not torch.equal(both[0], both[1])


def test_a_saved_model_is_complete_and_generates_the_same(model: AudioGen, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved").rename(tmp_path / "moved")
    moved = generators.load(tmp_path / "moved", device="cpu")
    assert torch.equal(moved.generate(TEXTS[:2], 0.1), model.generate(TEXTS[:2], 0.1))
    assert moved.info == {"steps": 0} and moved.max_frames == 40
    moved.save_pretrained(tmp_path / "moved")  # onto itself
    assert torch.equal(
        generators.load(tmp_path / "moved").generate(["rain"], 0.1), model.generate(["rain"], 0.1)
    )


def test_a_bundled_codec_is_named_not_copied(
    model: AudioGen, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "weights_folder", lambda: tmp_path / "weights")
    shutil.copytree(tiny_model / "codec", tmp_path / "weights" / "codec_x")
    codec = load_codec("codec_x")
    named = AudioGen(model.lm, model.conditioner, codec, model.max_frames)
    named.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "codec").exists()
    again = AudioGen.from_pretrained(tmp_path / "saved", "cpu")
    assert torch.equal(again.generate(["rain"], 0.1), model.generate(["rain"], 0.1))
    next(codec.decoder.parameters()).mul_(1.5)  # no longer the bundled one, though it reads the same tokens
    named.save_pretrained(tmp_path / "changed")
    again = AudioGen.from_pretrained(tmp_path / "changed", "cpu")
    assert again.codec.identity == model.codec.identity
    assert torch.equal(again.generate(["rain"], 0.1), named.generate(["rain"], 0.1))


def test_another_codec_is_refused_and_not_noise(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    tensors = checkpoint.load_tensors(tmp_path / "model" / "codec")
    name = next(name for name in tensors if name.endswith("codewords"))
    tensors[name] = tensors[name] + 0.5
    checkpoint.write_tensors(tmp_path / "model" / "codec" / "model.safetensors", tensors)
    with pytest.raises(InputError, match="was trained on the tokens of codec"):
        AudioGen.from_pretrained(tmp_path / "model")


def test_reconstruction_is_the_codec_alone(model: AudioGen) -> None:
    audio = 0.1 * torch.randn(2, 1, 501, generator=torch.Generator().manual_seed(0))
    codes = model.codec.encode(audio)[:, : model.lm.config.num_codebooks]
    assert torch.allclose(model.reconstruct(audio), model.codec.decode(codes)[..., :501], atol=1e-5)


@pytest.mark.parametrize("duration_s", [0.1, 1.3])
def test_evaluations_are_counted_as_they_happen(
    model: AudioGen, duration_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of the batch that the language model sees, over the batch: also past the training length."""
    seen = []
    logits = type(model.lm).logits

    def watched(self: object, features: torch.Tensor) -> torch.Tensor:
        seen.append(len(features))
        return logits(self, features)

    monkeypatch.setattr(type(model.lm), "logits", watched)
    for guidance in (1.0, 3.0):
        seen.clear()
        model.generate(["a tone"], duration_s, guidance=guidance)
        assert sum(seen) == model.batch_size * model.num_evaluations(duration_s, guidance)


def test_parameters_are_those_of_all_parts(model: AudioGen) -> None:
    parts = [model.lm.state_dict(), model.conditioner.state_dict(), model.codec.decoder.state_dict()]
    assert model.num_parameters > sum(tensor.numel() for part in parts for tensor in part.values()) // 2
    assert model.latent_rate == f"{model.frame_rate:g} Hz x {model.lm.config.num_codebooks}"


def test_progress_rises_to_one(model: AudioGen) -> None:
    shares: list[float] = []
    model.generate(TEXTS, [0.1] * 5 + [0.6], progress=shares.append)
    assert shares == sorted(shares) and 0 < shares[0] < 0.1 and shares[-1] == pytest.approx(1.0)


def test_half_precision_generates_and_leaves_text_and_codec_alone(tiny_model: Path) -> None:
    model: Generator = AudioGen.from_pretrained(tiny_model, "cpu", "bfloat16")
    assert isinstance(model, AudioGen)
    assert model.lm.heads.weight.dtype == torch.bfloat16
    assert {weight.dtype for part in (model.conditioner, model.codec) for weight in part.parameters()} == {
        torch.float32
    }
    sound = model.generate(["rain"], 0.1, guidance=3.0, seed=0)
    assert sound.dtype == torch.float32 and sound.isfinite().all()


@pytest.mark.parametrize(
    ("texts", "settings", "said"),
    [
        ("a dog", {}, "one string"),
        ([], {}, "no texts"),
        (["a dog", " "], {}, "text 1 is empty"),
        (["a dog"], {"negative": ""}, "negative text is empty"),
        (["a dog"], {"duration_s": 0}, "duration is 0 s; it must be above 0 and at most 3600 s"),
        (["a dog"], {"duration_s": -1.5}, "duration is -1.5 s"),
        (["a dog"], {"duration_s": 1e9}, "duration is 1e\\+09 s"),
        (["a dog"], {"duration_s": float("nan")}, "duration is nan s"),
        (["a dog"], {"duration_s": [0.1, 0.2]}, "2 durations for 1 texts"),
        (["a dog"], {"seed": [1, 2]}, "2 seeds for 1 texts"),
        (["a dog"], {"seed": -1}, "seed is -1"),
        (["a dog"], {"guidance": float("inf")}, "guidance is inf"),
        (["a dog"], {"temperature": -1.0}, "temperature is -1"),
        (["a dog"], {"top_k": -1}, "top_k is -1"),
        (["a dog"], {"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_what_cannot_be_generated_is_said(
    model: AudioGen, texts: list[str], settings: dict, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        model.generate(texts, **settings)


def test_what_cannot_be_continued_is_said(model: AudioGen) -> None:
    with pytest.raises(InputError, match="duration is 0.1 s, but the sound to continue has 0.2 s"):
        model.generate_continuation(torch.zeros(1, 1600), 8000, ["a dog"], 0.1)
    with pytest.raises(InputError, match="2 sounds to continue for 3 texts"):
        model.generate_continuation(torch.zeros(2, 1, 800), 8000, ["a dog"] * 3, 0.5)
    with pytest.raises(InputError, match="not finite"):
        model.generate_continuation(torch.full((1, 800), torch.nan), 8000, ["a dog"], 0.5)
    with pytest.raises(InputError, match="shape \\[1, 0\\]"):
        model.generate_continuation(torch.zeros(1, 0), 8000, ["a dog"], 0.5)


def test_what_cannot_be_opened_is_said(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="kind 'codec', which does not generate"):
        generators.load(tiny_model / "codec")
    with pytest.raises(InputError, match="kind 'codec'"):
        AudioGen.from_pretrained(tiny_model / "codec")
    with pytest.raises(InputError, match="neither a directory nor a bundled model"):
        generators.load("lm_tinny")
    with pytest.raises(InputError, match="device 'gpu' cannot be used"):
        generators.load(tiny_model, device="gpu")
    with pytest.raises(InputError, match="dtype is 'int8'; allowed: auto, float32"):
        generators.load(tiny_model, dtype="int8")
    for part in (
        "model.safetensors",
        "config.json",
        "text/vocabulary.model",
        "text/model.safetensors",
        "codec",
    ):
        shutil.copytree(tiny_model, tmp_path / part)
        doomed = tmp_path / part / part
        shutil.rmtree(doomed) if doomed.is_dir() else doomed.unlink()
        with pytest.raises(InputError):
            generators.load(tmp_path / part)
    config = json.loads((tiny_model / "config.json").read_text())
    config["config"]["lm"]["codebook_size"] = 12
    shutil.copytree(tiny_model, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not fit their config"):
        generators.load(tmp_path / "other")


def test_the_bundled_model_sounds() -> None:
    if "lm_tiny" not in checkpoint.bundled_names():
        pytest.skip("the bundled weights are not there")
    model = AudioGen.from_pretrained()
    dog, rain = model.generate(["a dog barks", "rain falls"], 2.0)
    assert dog.shape == (1, 2 * model.sample_rate)
    for sound in (dog, rain):
        assert 0.001 < sound.square().mean().sqrt() < 0.7 and sound.abs().max() < 4.0
