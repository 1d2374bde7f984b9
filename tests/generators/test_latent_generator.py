"""Latent-diffusion systems as generators: rows by themselves, sounds made of others, candidates, released files."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen.audio import convert_channels, resample
from audiogen.diffusion.sample import SAMPLINGS
from audiogen.diffusion.sample import Sampling as LatentSampling
from audiogen.diffusion.systems import LatentSystem
from audiogen.errors import InputError
from audiogen.files import writing
from audiogen.generators import load as generators
from audiogen.generators.facts import facts
from audiogen.generators.latent import LatentGenerator
from audiogen.interfaces import Edit, Sampling
from audiogen.models.find import bundled, find
from audiogen.models.latent_codecs import load_autoencoder
from audiogen.models.released import load_released
from audiogen.models.systems import Released
from audiogen.text.clap import Clap
from audiogen.text.vocabulary import train_vocabulary
from tests import random_t5
from tests.diffusion.tiny_encoders import write_clap
from tests.diffusion.tiny_systems import CAPTIONS, RECIPES, tiny
from tools import bundle

RATES = {name: 8000 if name in ("stable_audio", "stable_audio_3", "tangoflux") else 16000 for name in RECIPES}


def make(name: str) -> Released:
    """A tiny random system; vocoders of random weights are all but silent, so it is made loud."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        system = LatentSystem(tiny(name), train_vocabulary(CAPTIONS, 40)).eval()
    if system.config.mel_autoencoder is not None:
        for weight in system.autoencoder.vocoder.parameters():
            weight.data.mul_(4.0)
    return Released(system, name, {})


@pytest.fixture(scope="module")
def systems() -> dict[str, LatentGenerator]:
    return {name: LatentGenerator(make(name), "cpu") for name in RECIPES}


def latents_of(generator: LatentGenerator, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All that its autoencoder decodes from now on."""
    seen: list[Tensor] = []
    decode = generator.system.autoencoder.decode

    def watched(latents: Tensor) -> Tensor:
        seen.append(latents)
        return decode(latents)

    monkeypatch.setattr(generator.system.autoencoder, "decode", watched)
    return seen


def clip(rate: int, duration_s: float = 0.2, channels: int = 1) -> Tensor:
    return 0.3 * torch.sin(torch.arange(round(rate * duration_s)) / 4.0).repeat(channels, 1)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_row_is_the_same_to_the_bit_alone_and_in_a_batch(name: str, systems) -> None:
    generator = systems[name]
    texts, durations = ["a dog barks twice", None, "rain"], [0.1, 0.06, 0.1]
    together = generator.generate(
        texts, durations, seed=[4, 9, 6], guidance=3.0, sampling=Sampling(steps=2, negative="a clock")
    )
    assert together.shape == (3, generator.channels, round(0.1 * generator.sample_rate))
    for row, (text, duration, seed) in enumerate(zip(texts, durations, [4, 9, 6], strict=True)):
        alone = generator.generate(
            [text], duration, seed=seed, guidance=3.0, sampling=Sampling(steps=2, negative="a clock")
        )[0]
        assert torch.equal(together[row, :, : alone.shape[-1]], alone) and alone.abs().max() > 1e-4
        assert not together[row, :, alone.shape[-1] :].any()
    others = [
        generator.generate(
            texts[:1],
            0.1,
            sampling=Sampling(steps=2, negative=negative),
            **{"seed": 4, "guidance": 3.0} | change,
        )
        for change, negative in (
            ({"seed": 5}, "a clock"),
            ({}, "rain"),
            ({}, None),
            ({"guidance": 1.0}, None),
        )  # fmt: skip
    ]
    assert not any(torch.equal(other[0], together[0]) for other in others)
    with pytest.raises(InputError, match="a negative text needs guidance, and here that is 1"):
        generator.generate(texts[:1], 0.1, sampling=Sampling(steps=2, negative="rain"), guidance=1.0)


def test_texts_of_one_seed_do_not_share_their_noise(systems) -> None:
    """At guidance 0 the prediction is the one without text: text changes nothing but the noise."""
    flat = {"guidance": 0.0, "sampling": Sampling(steps=2), "seed": [3, 3, 3]}
    dog, rain, again = systems["lafma"].generate(["a dog barks", "rain", "rain"], 0.1, **flat)
    assert not torch.equal(dog, rain) and torch.equal(rain, again)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_rows_that_run_together_as_on_a_gpu_differ_by_rounding_only(name: str, systems, monkeypatch) -> None:
    """Texts of different lengths, two lengths of sound, and a part that is kept."""
    generator = systems[name]
    edit = Edit(
        clip(generator.sample_rate, 0.2, generator.channels), generator.sample_rate, inpaint=(0.02, 0.07)
    )
    for given in (None, edit):
        sampling = Sampling(steps=2, negative="a clock ticks, then rain")
        settings = {"seed": 3, "guidance": 3.0, "sampling": sampling, "edit": given}
        request = (["a dog barks twice", None, "rain"], [0.1, 0.16, 0.1])
        alone = generator.generate(*request, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(generator, "batch_size", 8)
            together = generator.generate(*request, **settings)
        assert (alone - together).norm() < 1e-4 * alone.norm()


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_what_it_says_of_itself(name: str, systems) -> None:
    generator = systems[name]
    own = SAMPLINGS[name]
    assert generator.sampling() == own and generator.steps_at_most(None) == own.steps
    assert generator.guidance == own.guidance
    others = {"ddim": "dpm++", "ddpm": "ddim", "dpm++sde": "ddim", "euler": "heun", "ping_pong": "euler"}
    other = others[own.sampler]
    assert generator.sampling(7, other, 2.0) == dataclasses.replace(
        own, sampler=other, steps=7, guidance=2.0, eta=0.0
    )
    assert (
        generator.num_evaluations(0.2, 1.0, 7) == 7 and generator.num_evaluations(0.2, 3.0) == 2 * own.steps
    )
    assert generator.num_parameters == sum(p.numel() for p in generator.system.parameters())
    for steps in (1, 2, 167, 600):  # 167 and 600 leave a gap in the grid of ddim and ddpm
        assert 0 < generator.sampling(generator.steps_at_most(steps)).steps <= steps
    identity = generator.identity()
    weight = next(iter(generator.system.denoiser.parameters()))
    weight.data.view(-1)[0] += 1
    changed = generator.identity()
    weight.data.view(-1)[0] -= 1
    assert changed != identity


def test_gaps_in_a_grid_of_steps(systems) -> None:
    assert systems["audioldm"].steps_at_most(167) == 166 and systems["lafma"].steps_at_most(167) == 167


def test_progress_goes_to_the_end_over_all_rows(systems) -> None:
    shares: list[float] = []
    systems["lafma"].generate(
        ["a dog", "rain"], [0.1, 0.2], sampling=Sampling(steps=2), progress=shares.append
    )
    assert shares == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", ["lafma", "stable_audio"])
def test_strength_goes_from_the_reconstruction_to_a_fresh_sound(name: str, systems) -> None:
    generator = systems[name]
    sound = clip(generator.sample_rate, 0.2, generator.channels)
    # as many frames as are generated, which a UNet rounds up
    missing = generator.num_frames(0.2) * generator.system.autoencoder.hop_length - sound.shape[-1]
    expected = generator.reconstruct(torch.nn.functional.pad(sound, (0, missing))[None])[
        0, :, : sound.shape[-1]
    ]

    def changed(strength: float) -> Tensor:
        edit = Edit(sound, generator.sample_rate, strength)
        return generator.generate(["rain"], 0.2, seed=3, sampling=Sampling(steps=4), edit=edit)[0]

    assert torch.equal(changed(0.0), expected)
    assert torch.equal(changed(1.0), generator.generate(["rain"], 0.2, seed=3, sampling=Sampling(steps=4))[0])
    assert not torch.equal(changed(0.5), changed(1.0)) and not torch.equal(changed(0.5), expected)


@pytest.mark.parametrize("name", ["tango", "lafma", "tangoflux"])
def test_inpainting_leaves_the_other_latents_as_they_were(name: str, systems, monkeypatch) -> None:
    generator = systems[name]
    seen = latents_of(generator, monkeypatch)
    sound = clip(44100, 0.2, 2)
    generator.generate(["rain"], 0.2, edit=Edit(sound, 44100, strength=0.0))
    generator.generate(
        ["rain", "a dog"], 0.2, sampling=Sampling(steps=2), edit=Edit(sound, 44100, inpaint=(0.0512, 0.0987))
    )
    kept, *inpainted = seen
    rate = generator.sample_rate / generator.system.autoencoder.hop_length
    new = torch.arange(kept.shape[2])
    new = (new + 1 > 0.0512 * rate) & (new < 0.0987 * rate)
    assert len(inpainted) == 2 and 0 < new.sum() < len(new)
    for latents in inpainted:
        assert torch.equal(latents[:, :, ~new], kept[:, :, ~new])
        assert (latents[:, :, new] != kept[:, :, new]).all()
    assert not torch.equal(inpainted[0], inpainted[1])


@pytest.mark.parametrize("name", ["lafma", "stable_audio"])
def test_inpainting_keeps_the_samples_outside_of_the_new_part(name: str, systems) -> None:
    """To the bit, at the model's rate and channels, but for fades of 20 ms."""
    generator, sound = systems[name], 3 * clip(44100, 0.3, 2)
    rate, down_db = generator.sample_rate, [7.0]
    made = generator.generate(
        ["rain", "a dog"], 0.3, edit=Edit(sound, 44100, inpaint=(0.1, 0.2)), sampling=Sampling(steps=2),
        turned_down_db=down_db,
    )  # fmt: skip
    kept = convert_channels(resample(sound, 44100, rate), generator.channels)
    assert made.shape[-1] == kept.shape[-1] and len(down_db) == 2
    for row in made:
        for part in (slice(0, round(0.08 * rate)), slice(round(0.22 * rate), None)):
            assert torch.equal(row[:, part], kept[:, part])
        assert not torch.allclose(row, kept, atol=0.01)


def test_a_loud_system_gives_nothing_past_full_scale(systems, monkeypatch) -> None:
    generator, down_db = systems["lafma"], []
    decode = generator.system.autoencoder.decode
    monkeypatch.setattr(generator.system.autoencoder, "decode", lambda latents: 1e4 * decode(latents))
    sounds = generator.generate(["rain", "a dog"], 0.1, sampling=Sampling(steps=2), turned_down_db=down_db)
    assert torch.equal(sounds.abs().amax((1, 2)), torch.ones(2)) and len(down_db) == 2 and min(down_db) > 0


def test_guidance_rescale_is_an_option_and_a_setting_of_the_system() -> None:
    generator = LatentGenerator(make("lafma"), "cpu")
    asked = [
        generator.generate(["rain"], 0.1, sampling=Sampling(steps=4, guidance_rescale=share))
        for share in (None, 0.0, 1.0)
    ]
    assert torch.equal(asked[0], asked[1]) and not torch.equal(asked[1], asked[2])
    own = dataclasses.replace(make("lafma"), sampling=LatentSampling("euler", 4, 3.0, guidance_rescale=1.0))
    assert torch.equal(LatentGenerator(own, "cpu").generate(["rain"], 0.1), asked[2])


def test_upsampling_makes_the_highest_quarter_of_the_bands_new(systems, monkeypatch) -> None:
    generator = systems["audioldm2"]
    seen = latents_of(generator, monkeypatch)
    edit = Edit(clip(8000), 8000, upsample=True)
    generator.generate([None], 0.2, edit=dataclasses.replace(edit, strength=0.0, upsample=False))
    generator.generate([None], 0.2, sampling=Sampling(steps=2), edit=edit)
    kept, made = seen
    assert torch.equal(kept[..., :6], made[..., :6]) and (kept[..., 6:] != made[..., 6:]).all()
    with pytest.raises(InputError, match="upsample is for systems over mel spectrograms"):
        systems["stable_audio"].generate([None], 0.2, edit=edit)


def test_candidates_are_ranked_by_clap(systems, tmp_path: Path) -> None:
    scorer = Clap(str(write_clap(tmp_path, 12)))
    generator = LatentGenerator(make("lafma"), "cpu", clap=scorer)
    text = "a dog barks"
    alone = [
        generator.generate([text], 0.1, seed=2 + number * 2**40, sampling=Sampling(steps=2))[0]
        for number in range(4)
    ]
    scores = scorer.embed_audio(torch.stack(alone), 16000) @ scorer.embed_text([text])[0]
    best = generator.generate(
        ["rain", text], [0.06, 0.1], seed=[5, 2], sampling=Sampling(steps=2, candidates=4)
    )
    assert torch.equal(best[1], alone[int(scores.argmax())])
    for candidates in (0, 65):
        with pytest.raises(InputError, match=f"candidates is {candidates}; it must be from 1 to 64"):
            generator.generate([text], 0.1, sampling=Sampling(candidates=candidates))
    with pytest.raises(InputError, match="ranked by their text, and there is none"):
        generator.generate([None], 0.1, sampling=Sampling(candidates=2))
    with pytest.raises(InputError, match="CLAP model with an audio branch, which this system lacks"):
        systems["lafma"].generate([text], 0.1, sampling=Sampling(candidates=2))


def test_number_types_that_cannot_be() -> None:
    for dtype, said in (("int4", "dtype is 'int4'"), ("float16", "float16 is for GPUs")):
        with pytest.raises(InputError, match=said):
            LatentGenerator(make("tangoflux"), "cpu", dtype)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_saved_and_opened_it_makes_the_same_sound(name: str, systems, tmp_path: Path) -> None:
    systems[name].save_pretrained(tmp_path / "model")
    again = generators.load(tmp_path / "model", "cpu")
    assert isinstance(again, LatentGenerator) and find(tmp_path / "model").path == tmp_path / "model"
    assert again.identity() == systems[name].identity()
    found = facts(find(tmp_path / "model"))
    for key in ("family", "sample_rate", "channels", "latent_rate", "max_duration_s"):
        assert getattr(found, key) == getattr(again, key)
    assert found.defaults.startswith(f"guidance {again.guidance:g}, {again.sampling().steps} steps of ")
    expected = systems[name].generate(["rain"], 0.1, sampling=Sampling(steps=2))
    assert torch.equal(again.generate(["rain"], 0.1, sampling=Sampling(steps=2)), expected)


def test_its_own_sampling_is_the_default_and_travels(tmp_path: Path) -> None:
    own, authors = LatentSampling("heun", 3, 1.5), LatentGenerator(make("lafma"), "cpu")
    generator = LatentGenerator(dataclasses.replace(make("lafma"), sampling=own), "cpu")
    assert generator.sampling() == own and (generator.steps_at_most(None), generator.guidance) == (3, 1.5)
    assert generator.sampling(7, "euler", 2.0) == LatentSampling("euler", 7, 2.0)
    generator.save_pretrained(tmp_path / "a")
    again = generators.load(tmp_path / "a", "cpu")
    again.save_pretrained(tmp_path / "b")
    for found in (again, generators.load(tmp_path / "b", "cpu")):
        assert found.sampling() == own and found.identity() == generator.identity()
    sound = again.generate(["rain"], 0.1)
    asked = {"sampling": Sampling(steps=3, sampler="heun"), "guidance": 1.5}
    assert torch.equal(sound, authors.generate(["rain"], 0.1, **asked))
    assert not torch.equal(sound, again.generate(["rain"], 0.1, sampling=Sampling(steps=2)))
    assert generator.identity() != authors.identity()
    authors.save_pretrained(tmp_path / "authors")  # theirs is not written: as in a released directory
    assert "sampling" not in json.loads((tmp_path / "authors" / "system.json").read_text())


def test_a_bundled_system_is_opened_by_its_name(tmp_path: Path, monkeypatch) -> None:
    """In half precision, with everything it needs, from every place that takes a model."""
    monkeypatch.setattr(bundle, "WEIGHTS", tmp_path)
    monkeypatch.setattr("audiogen.models.find.weights_folder", lambda: tmp_path)
    run, system = tmp_path / "runs" / "best", LatentGenerator(make("lafma"))
    system.save_pretrained(run)
    writing.write_json(run / "info.json", {"step": 7, "valid/loss": 0.5, "host": "mine"})
    assert bundle.main([str(run), "small"]) == 0
    assert bundled() == ["small"]
    assert writing.read_json(tmp_path / "small" / "info.json") == {"step": 7, "valid/loss": 0.5}
    stored = [path.stat().st_size for path in (tmp_path / "small").rglob("*.safetensors")]
    assert sum(stored) < 0.6 * sum(path.stat().st_size for path in run.rglob("*.safetensors"))
    opened = generators.load("small", device="cpu")
    assert isinstance(opened, LatentGenerator) and find("small").path == tmp_path / "small"
    expected, found = (
        each.generate(CAPTIONS[:1], 0.1, sampling=Sampling(steps=3)) for each in (system, opened)
    )
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())
    scale = load_autoencoder("small").scale_factor
    torch.testing.assert_close(scale, system.system.autoencoder.scale_factor.cpu())
    with pytest.raises(InputError, match="did you mean 'small'"):
        generators.load("smal", device="cpu")


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"steps": 0}, "0 sampling steps"),
        ({"sampler": "ddim"}, "'ddim' does not fit a flow process; use euler or heun"),
        ({"steps": 25.5}, "sampling.steps"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"step": 3}, "did you mean 'steps'"),
        (7, "sampling: got 7, expected a mapping"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused_when_it_is_opened(
    sampling: object, said: str, tiny_latent: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_latent, tmp_path / "m")
    path = tmp_path / "m" / "system.json"
    given = {"sampler": "euler", **sampling} if isinstance(sampling, dict) else sampling
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling": given}))
    with pytest.raises(InputError, match=said) as caught:
        generators.load(tmp_path / "m", "cpu")
    assert "system.json" in str(caught.value)


def test_a_folder_in_place_of_the_vocabulary_is_refused(tiny_latent: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_latent, tmp_path / "m")
    (tmp_path / "m" / "text" / "vocabulary.model").unlink()
    (tmp_path / "m" / "text" / "vocabulary.model").mkdir()
    with pytest.raises(InputError, match=r"vocabulary\.model is a folder"):
        generators.load(tmp_path / "m", "cpu")


def test_a_system_that_lacks_a_component_is_refused(systems, tmp_path: Path) -> None:
    systems["lafma"].save_pretrained(tmp_path / "model")
    for component in ("vae", "vocoder", "unet", "text", "model_index.json"):
        shutil.copytree(tmp_path / "model", tmp_path / component)
        path = tmp_path / component / component
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(InputError, match=component):
            generators.load(tmp_path / component, "cpu")


def test_options_of_another_family_are_refused(systems, tiny_model: Path, tmp_path: Path) -> None:
    systems["tango"].save_pretrained(tmp_path)
    for options, said in (({"adapter": "x"}, "x holds no adapter"), ({"packed": True}, "packed is not for")):
        with pytest.raises(InputError, match=said):
            generators.load(tmp_path, "cpu", **options)
    for options, said in (({"heads": (2,)}, "heads is not for"), ({"clap": "x"}, "clap is not for")):
        with pytest.raises(InputError, match=said):
            generators.load(tiny_model, "cpu", **options)


def test_models_of_the_hub_of_either_family(
    tiny_latent: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the cache, as all tests are offline: which family a model is of is read from the names of its files."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, folder in (("latent", tiny_latent), ("tokens", tiny_model)):
        repository = tmp_path / f"models--org--{name}"
        shutil.copytree(folder, repository / "snapshots" / "abc")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("abc")
    assert (find("org/latent").kind, find("org/tokens").kind) == ("system", "token_lm")
    for name, folder in (("org/latent", tiny_latent), ("org/tokens", tiny_model)):
        model = generators.load(name, "cpu")
        assert model.identity() == generators.load(folder, "cpu").identity()
        assert find(name).path.name == "abc"
    with pytest.raises(InputError, match="^org/nothing cannot be fetched"):
        generators.load("org/nothing", "cpu")


@pytest.mark.parametrize("kind", ["audioldm", "audioldm2", "lafma", "stable_audio", "tango"])
def test_released_files_generate_with_text_encoders_of_choice(
    kind: str, shared: Path, tmp_path: Path
) -> None:
    """They only name theirs: T5, CLAP for AudioLDM, both for AudioLDM 2."""
    folder = shared / "fixtures" / f"{kind}_tiny"
    config = load_released(folder).system.config.conditioner
    encoder = tmp_path / "encoder"
    if config.text is None:
        write_clap(encoder, config.clap_dim)
    else:
        random_t5.write(encoder, config.text.width)
    generator = generators.load(folder, "cpu", text_encoder=str(encoder))
    assert isinstance(generator, LatentGenerator) and generator.name == kind
    if kind == "audioldm2":
        generator.system.conditioner.clap.name = str(write_clap(tmp_path / "clap", config.clap_dim))
    duration = min(0.16, generator.max_duration_s)
    sound = generator.generate(["a dog"], duration, sampling=Sampling(steps=2))
    assert (
        sound.shape == (1, generator.channels, round(duration * generator.sample_rate))
        and sound.isfinite().all()
    )
    trained = sum(parameter.numel() for parameter in generator.system.parameters())
    assert generator.num_parameters > trained  # the encoders run, too
    if kind == "lafma":
        other = generators.load(folder, "cpu", text_encoder=str(encoder), heads=(2, 2))
        assert generator.notes[0].endswith("num_heads of exp_config_lfm.json")
        assert other.notes[0] == "attention heads (2, 2): as given"
        assert not torch.equal(other.generate(["a dog"], duration, sampling=Sampling(steps=2)), sound)


def test_stable_audio_always_generates_its_whole_window(shared: Path, tmp_path: Path) -> None:
    folder = shared / "fixtures" / "stable_audio_tiny"
    generator = generators.load(folder, "cpu", text_encoder=str(random_t5.write(tmp_path / "t5", 768)))
    assert isinstance(generator, LatentGenerator)
    assert generator.window_s == generator.max_duration_s == 768 / 44100
    assert generator.num_frames(0.01) == 768 // generator.system.autoencoder.hop_length
    with pytest.raises(InputError, match="at most 0.0174"):
        generator.num_frames(0.02)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"strength": -0.1}, "strength is -0.1; it must be from 0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"strength": float("nan")}, "strength is nan"),
        ({}, "nothing is to become of the sound"),
        ({"inpaint": (0.1, 0.3)}, "within the sound, 0 to 0.2 s"),
        ({"inpaint": (0.1, 0.1)}, "it must ascend"),
        ({"inpaint": (float("nan"), 0.1)}, "it must ascend"),
        ({"inpaint": (0.0, 0.1), "upsample": True}, "choose one"),
        ({"strength": 0.5, "sample_rate": 0}, "has 0 Hz"),
        ({"strength": 0.5, "audio": torch.zeros(0)}, r"has shape \[0\]"),
        ({"strength": 0.5, "audio": torch.full((1, 9), torch.nan)}, "not finite"),
    ],
)
def test_edits_that_cannot_be_meant(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Edit(**{"audio": clip(8000), "sample_rate": 8000} | options)


def test_requests_that_cannot_be_met(systems) -> None:
    generator = systems["lafma"]
    edit = Edit(clip(8000), 8000, inpaint=(0.1, 0.2))
    for duration, said in (
        (0.5, "has 0.2 s and 0.5 s are to be made"),
        (0.15, "within the sound, 0 to 0.15 s"),
    ):
        with pytest.raises(InputError, match=said):
            generator.generate(["rain"], duration, edit=edit)
    for options, said in (
        ({"sampling": Sampling(sampler="ddim")}, "'ddim' does not fit a flow process; use euler or heun"),
        ({"sampling": Sampling(steps=0)}, "0 sampling steps"),
        ({"duration_s": 61.0}, "at most 60 s"),
        ({"duration_s": float("nan")}, "duration is nan"),
        ({"guidance": float("inf")}, "guidance is inf"),
        ({"prompt": (clip(8000), 8000)}, "prompt is not for a latent-diffusion system; drop prompt"),
        ({"sampling": Sampling(top_k=0)}, "top_k is not for a latent-diffusion system"),
        ({"sampling": Sampling(peer_padding=True)}, "peer_padding is not for a latent-diffusion system"),
    ):
        with pytest.raises(InputError, match=said):
            generator.generate(["rain"], **options)
    with pytest.raises(InputError, match="stream is not for a latent-diffusion system; use generate"):
        generator.stream("rain")
    with pytest.raises(InputError, match="no systems of the kind 'foo'"):
        LatentGenerator(dataclasses.replace(make("lafma"), name="foo"), "cpu")
    with pytest.raises(InputError, match="process"):
        LatentGenerator(dataclasses.replace(make("lafma"), process={"beta_max": 1}), "cpu")
