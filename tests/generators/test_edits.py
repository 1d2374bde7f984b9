"""Sounds made of a given one: several new parts, what extends it, variations, and steps that are repeated."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen import audio
from audiogen.errors import InputError
from audiogen.generate.__main__ import main
from audiogen.generators import load as generators
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Edit, Sampling
from audiogen.spectrogram import mel_filterbank
from tests.generators.test_latent_generator import make

RATE = 16000
FADE = round(0.02 * RATE)
STEPS = Sampling(steps=2)


@pytest.fixture(scope="module")
def system() -> LatentGenerator:
    return LatentGenerator(make("lafma"), "cpu")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32")


def noise(duration_s: float, rate: int = RATE) -> Tensor:
    return 0.1 * torch.randn(1, round(duration_s * rate), generator=torch.Generator().manual_seed(0))


def log_mel(sound: Tensor) -> Tensor:
    """[1, N] -> [M, T]."""
    spectrum = torch.stft(sound[0], 1024, 256, window=torch.hann_window(1024), return_complex=True).abs()
    return (mel_filterbank(RATE, 1024, 64).T @ spectrum + 1e-4).log()


def test_all_samples_between_several_new_parts_are_kept(system: LatentGenerator) -> None:
    given, parts = noise(0.6), ((0.1, 0.2), (0.35, 0.45))
    edit = Edit(given, RATE, inpaint=parts)
    made = system.generate(["a dog barks"], 0.6, edit=edit, sampling=STEPS)[0]
    new = torch.zeros(given.shape[1], dtype=torch.bool)
    for begin, end in parts:
        new[round(begin * RATE) - FADE : round(end * RATE) + FADE] = True
    assert torch.equal(made[:, ~new], given[:, ~new])
    for begin, end in parts:
        part = slice(round(begin * RATE), round(end * RATE))
        assert not torch.equal(made[:, part], given[:, part]) and made[:, part].abs().max() > 1e-4
    first = system.generate(["a dog barks"], 0.6, edit=Edit(given, RATE, inpaint=parts[:1]), sampling=STEPS)
    alone = system.generate(["a dog barks"], 0.6, edit=Edit(given, RATE, inpaint=parts[0]), sampling=STEPS)
    assert torch.equal(first, alone)


@pytest.mark.parametrize(("before_s", "after_s"), [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_a_sound_is_extended_on_either_side_and_stays_as_it_is(
    system: LatentGenerator, before_s: float, after_s: float
) -> None:
    given = noise(0.4)
    edit = Edit(given, RATE, extend_before_s=before_s, extend_s=after_s)
    assert edit.duration_s == pytest.approx(0.4 + before_s + after_s)
    made, other = (
        system.generate([text], edit.duration_s, edit=edit, sampling=STEPS, seed=1)[0]
        for text in ("a dog barks", "rain")
    )
    first = round(before_s * RATE)
    inside = slice(first + FADE * (first > 0), first + given.shape[1] - FADE * (after_s > 0))
    assert torch.equal(made[:, inside], given[:, inside.start - first : inside.stop - first])
    assert made.shape[1] == round(edit.duration_s * RATE)
    for new in ([slice(0, first)] if first else []) + (
        [slice(first + given.shape[1], None)] if after_s else []
    ):
        assert made[:, new].abs().max() > 1e-4 and not torch.equal(made[:, new], other[:, new])


def test_a_language_model_extends_a_sound_at_its_end_as_it_continues_it(model: AudioGen) -> None:
    given = noise(0.2, 8000)
    edit = Edit(given, 8000, extend_s=0.1)
    made = model.generate(["rain"], edit.duration_s, edit=edit, seed=3)
    assert torch.equal(made, model.generate(["rain"], edit.duration_s, prompt=(given, 8000), seed=3))
    assert torch.equal(made[0, :, :1400], given[:, :1400])
    for options, said in (
        ({"inpaint": (0.0, 0.1)}, "inpaint is not for a token language model, which makes a sound from its"),
        ({"extend_before_s": 0.1}, "extend_before is not for .* sees nothing of what follows"),
        ({"strength": 0.5}, "strength is not for a token language model; drop strength"),
        ({"upsample": True}, "upsample is not for"),
        ({"extend_s": 0.1, "inpaint_resample": 2}, "inpaint_resample is not for"),
    ):
        with pytest.raises(InputError, match=said):
            model.generate(["rain"], 0.3, edit=Edit(given, 8000, **options))
    with pytest.raises(InputError, match="prompt and edit both"):
        model.generate(["rain"], 0.3, edit=edit, prompt=(given, 8000))


def test_steps_of_what_is_new_are_repeated(system: LatentGenerator) -> None:
    done: list[float] = []
    given = noise(0.4)
    once, thrice = (
        system.generate(
            ["rain"], 0.4, edit=Edit(given, RATE, inpaint=(0.1, 0.3), inpaint_resample=count), sampling=STEPS,
            progress=done.append,
        )
        for count in (1, 3)
    )  # fmt: skip
    assert len(done) == 2 + 6 and not torch.equal(once, thrice)
    with pytest.raises(InputError, match="steps of the sampler heun cannot be repeated .*; use ddim or ddpm"):
        edit = Edit(given, RATE, inpaint=(0.1, 0.3), inpaint_resample=3)
        system.generate(["rain"], 0.4, edit=edit, sampling=Sampling(steps=2, sampler="heun"))


def test_variations_are_as_near_to_the_sound_as_the_strength_says() -> None:
    """lafma_tiny: four of a rooster at strength 0.4 and 0.8, and four of no sound, by the distance of log-mels."""
    system = generators.load("lafma_tiny", "cpu")
    given = system.generate(["a rooster crows"], 2.0, seed=1)[0]
    texts, wanted = ["a rooster crows"] * 4, log_mel(given)
    distances = []
    for strength in (0.4, 0.8, None):
        edit = None if strength is None else Edit(given, RATE, strength)
        made = system.generate(texts, 2.0, seed=100, edit=edit)
        assert len({float(sound.abs().sum()) for sound in made}) == 4
        distances.append(sum(float((log_mel(sound) - wanted).abs().mean()) for sound in made) / 4)
    assert distances[0] < 0.8 * distances[1] and distances[1] < 0.9 * distances[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inpaint": ((0.1, 0.2), (0.15, 0.3))}, "0.15 s to 0.3 s; .* the part before it ends at 0.2 s"),
        ({"inpaint": ((0.2, 0.3), (0.1, 0.15))}, "it must ascend"),
        ({"extend_s": -1.0}, "extend is -1 s; it must be 0 or more"),
        ({"extend_before_s": float("inf")}, "extend_before is inf s"),
        ({"extend_s": float("nan")}, "extend is nan s"),
        ({"extend_s": 1.0, "strength": 0.5}, "extend keeps the sound, and strength changes it; choose one"),
        ({"extend_s": 1.0, "upsample": True}, "keep different parts of a sound; choose one"),
        ({"inpaint": (0.1, 0.2), "inpaint_resample": 0}, "inpaint_resample is 0; it must be from 1"),
        ({"strength": 0.5, "inpaint_resample": 5}, "inpaint_resample is for inpaint and extend"),
    ],
)
def test_edits_that_cannot_be_meant(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Edit(noise(0.4), RATE, **options)


def test_an_extension_has_one_duration(system: LatentGenerator) -> None:
    with pytest.raises(InputError, match="extended to 0.6 s and 0.5 s are to be made; drop the duration"):
        system.generate(["rain"], 0.5, edit=Edit(noise(0.4), RATE, extend_s=0.2))


def test_the_command_extends_to_a_duration_and_takes_several_parts(
    tiny_latent: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    audio.save("a.wav", noise(0.3), RATE)
    few = ["--steps", "8"]
    common = "--text rain --init a.wav --device cpu --model".split() + [str(tiny_latent)]
    main([*common, *few, "--duration", "0.5", "--extend-before", "0.1", "--out", "to.wav"])
    main([*common, *few, "--extend", "0.1", "--extend-before", "0.1", "--out", "by.wav"])
    assert torch.equal(audio.load("to.wav")[0], audio.load("by.wav")[0])
    parts = ["--inpaint", "0.05:0.1", "--inpaint", "0.15:0.2", "--inpaint-resample", "2"]
    main([*common, *few, *parts, "--out", "parts.wav"])
    sound, _ = audio.load("parts.wav")
    given, _ = audio.load("a.wav")
    kept = torch.ones(given.shape[1], dtype=torch.bool)
    kept[round(0.05 * RATE) - FADE : round(0.1 * RATE) + FADE] = False
    kept[round(0.15 * RATE) - FADE : round(0.2 * RATE) + FADE] = False
    assert torch.equal(sound[:, kept], given[:, kept]) and not torch.equal(sound, given)
    main(
        [
            "--model",
            str(tiny_model),
            "--text",
            "rain",
            "--init",
            "a.wav",
            "--extend",
            "0.1",
            "--out",
            "lm.wav",
        ]
    )
    assert audio.load("lm.wav")[0].shape[1] == round(0.4 * 8000)
    for words, said in (
        (["--extend", "0.1", "--duration", "0.9"], "drop the duration"),
        (["--inpaint", "0.1:0.2", "--stream"], "--init is not for --stream"),
        (["--duration", "0.2"], "nothing is to become of the sound"),
        (
            ["--model", str(tiny_model), "--inpaint", "0.1:0.2"],
            "--inpaint is not for .* sees nothing of what",
        ),
        (
            ["--model", str(tiny_model), "--extend-before", "0.1"],
            "--extend-before is not for .* sees nothing",
        ),
    ):
        with pytest.raises(InputError, match=said):
            main([*common, *words, "--out", "no.wav"])
    assert not Path("no.wav").exists()
