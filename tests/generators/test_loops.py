"""Loops: the end continues into the beginning, in latents, in the decoders and in what a language model makes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen import audio
from audiogen.diffusion.circle import around, padded, seen_frames, stretched
from audiogen.diffusion.conditioning import Conditioning
from audiogen.diffusion.mel import MelConfig, griffin_lim, log_mel
from audiogen.errors import InputError
from audiogen.generate.__main__ import main
from audiogen.generators import load as generators
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.loops import by_likelihood, closed
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Edit, Sampling
from audiogen.lm.score import log_likelihood
from tests.generators.test_latent_generator import make
from tools.loops import JUMPS, jumps, ranks

RATE = 16000


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32")


def seconds(duration_s: float) -> Tensor:
    return torch.arange(round(duration_s * RATE)) / RATE


def clicks(loop: Tensor) -> float:
    """How many times larger the second difference at the two seams of three rounds is than any other in the loop."""
    bend = loop.double().mean(0).repeat(3).diff(n=2).abs()
    length = loop.shape[-1]
    near = [slice(seam - 4, seam + 2) for seam in (length, 2 * length)]
    return max(float(bend[part].max()) for part in near) / float(bend[50 : length - 50].max())


@pytest.mark.parametrize("name", ["lm_tiny", "lafma_tiny"])
def test_three_rounds_of_a_loop_have_no_click_and_the_sound_without_has(name: str) -> None:
    """Of prompts by a bundled model, all that lasts; the seams are no worse than other places on average."""
    generator = generators.load(name, "cpu")
    texts = [
        "a hum",
        "a siren wails",
        "rain falls",
        "wind blows",
        "an engine runs",
        "sea waves",
        "crickets chirp",
    ]
    texts += ["a helicopter flies", "a dog barks", "a car horn honks"]  # fewer say little: each has one seam
    plain, looped = (
        generator.generate(texts, 2.2, seed=1, sampling=Sampling(loop=loop)) for loop in (False, True)
    )
    assert plain.shape == looped.shape and looped.abs().amax(2).min() > 0.01
    assert max(map(clicks, looped)) < 1.05
    found = torch.stack([ranks(loop, RATE) for loop in looped]).mean(0)
    assert found.max() < 0.9, dict(zip(JUMPS, found.tolist(), strict=True))
    cut = torch.stack([ranks(loop[:, : 2 * RATE], RATE) for loop in plain]).mean(0)
    assert cut.mean() > found.mean()


@pytest.mark.parametrize("name", ["lafma", "stable_audio", "tango"])
def test_a_decoded_loop_begins_anywhere_in_the_same_sound(name: str) -> None:
    """Convolutions see the loop on both sides: rolled latents are the rolled sound, up to norms over all frames."""
    autoencoder = make(name).system.autoencoder
    depth, _, *bins = autoencoder.latent_shape(0.5)
    latents = torch.randn(1, depth, 24, *bins, generator=torch.Generator().manual_seed(0))
    errors = []
    with torch.no_grad():
        for decode in (autoencoder.decode_loop, autoencoder.decode):
            first, rolled = decode(latents), decode(latents.roll(5, 2))
            assert first.shape[-1] == latents.shape[2] * autoencoder.hop_length
            difference = rolled - first.roll(5 * autoencoder.hop_length, -1)
            errors.append(float(difference.abs().max() / first.abs().max()))
    assert errors[0] < 0.1 and errors[0] < 0.3 * errors[1]


def test_griffin_lim_goes_around_a_loop() -> None:
    """A chord whose periods fit the loop: no jump of the waveform at the seam, as there is without."""
    time = seconds(0.5)
    sound = 0.2 * sum(torch.sin(2 * torch.pi * pitch * time) for pitch in (220, 554, 1318))[None, None]
    config = MelConfig(n_fft=512)
    mel = log_mel(sound.repeat(1, 1, 3), config)[:, 0, 50:100]
    looped, plain = (griffin_lim(mel, config, is_loop=loop) for loop in (True, False))
    assert looped.shape == plain.shape == (1, 8000)
    assert clicks(looped) < 1.3 < clicks(plain)
    error = (log_mel(looped[None].repeat(1, 1, 3), config)[:, 0, 50:100] - mel).abs().mean()
    assert error < 0.3


def test_the_network_sees_a_loop_on_both_sides_and_the_prediction_has_no_step() -> None:
    """A network that predicts where in what it sees a frame is: from one frame to the next, also around, by little."""
    seen: list[Tensor] = []

    def place(x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        seen.append(x_t)
        return torch.arange(x_t.shape[2]).float().expand_as(x_t).clone()

    x_t = torch.arange(20.0).expand(1, 2, 20)
    made = around(place, 30)(x_t, torch.zeros(1), Conditioning())
    assert seen[0][0, 0].tolist() == [*range(15, 20), *range(20), *range(5)]
    steps = (made - made.roll(1, 2)).abs()[0, 0]
    assert steps.max() <= 3.01 and made.shape == x_t.shape  # without it the step around the loop is 19
    constant = around(lambda x, t, c: torch.ones_like(x), 47)(x_t, torch.zeros(1), Conditioning())
    assert torch.allclose(constant, torch.ones_like(constant))
    assert padded(x_t, 2)[0, 0].tolist() == [18, 19, *range(20), 0, 1]


def test_how_much_the_network_sees() -> None:
    assert seen_frames(100, 25, 1, None) == 125 and seen_frames(100, 25, 8, None) == 128
    assert seen_frames(10, 25, 1, None) == 20 and seen_frames(100, 25, 1, 256) == 256
    with pytest.raises(
        InputError, match="a loop of 240 latent frames has no room in this system's window of 256"
    ):
        seen_frames(240, 25, 1, 256)


def test_a_loop_of_another_length_is_the_same_sound() -> None:
    time = seconds(1.0)
    sound = torch.sin(2 * torch.pi * 440 * time) + 0.3 * torch.cos(2 * torch.pi * 1000 * time)
    longer = stretched(sound, 16100)
    place = torch.arange(16100) / 16100
    wanted = torch.sin(2 * torch.pi * 440 * place) + 0.3 * torch.cos(2 * torch.pi * 1000 * place)
    assert torch.allclose(longer, wanted, atol=2e-3) and stretched(sound, 16000) is sound


def test_the_seam_is_where_a_sound_repeats_itself() -> None:
    """Noise that from sample 20,000 on repeats what it was 16,000 before; and other noise, which keeps its level."""
    noise = torch.randn(1, 40000, generator=torch.Generator().manual_seed(0))
    sound = noise[:, :26000].clone()
    sound[:, 20000:] = sound[:, 4000:10000]
    loop = closed(sound, 16000, RATE)
    (found,) = (sound[0].unfold(0, 20, 1) == loop[0, 8000:8020]).all(1).nonzero()
    begin = int(found) - 8000
    assert 4000 <= begin <= 10000 - 3200 and torch.allclose(loop, sound[:, begin : begin + 16000], atol=2e-3)
    level = closed(noise, 20000, RATE)[:, :3200].unfold(1, 400, 400).square().mean(2)
    assert 0.7 < level.min() and level.max() < 1.4
    assert torch.equal(closed(noise, 40000, RATE), noise)


def test_of_the_seams_that_fit_best_the_likeliest_is_taken(model: AudioGen) -> None:
    """Seams of four frames fit alike; the language model's own likelihood decides, and inside of a frame the fit."""
    hop, length = model.codec.hop_length, 20
    codes = torch.randint(11, (3, 35), generator=torch.Generator().manual_seed(0))
    (condition,) = model._conditions(["rain"], Sampling())
    unlike = torch.ones(12 * hop)
    places = [1 * hop + 7, 4 * hop + 1, 5 * hop + 70, 9 * hop]
    unlike[places] = torch.tensor([0.30, 0.20, 0.25, 0.22])
    choose = by_likelihood(model.decoder, condition, codes, length * hop + 3, model.codec, model.max_frames)
    begins = [place // hop for place in places]
    rows = [
        torch.cat([codes[:, begin : begin + length], codes[:, begin : begin + 20]], 1) for begin in begins
    ]
    best = int(log_likelihood(model.decoder, condition, torch.stack(rows), 20).argmax())
    assert choose(unlike) == places[best]
    unlike[places[best]] = 1.0
    assert choose(unlike) != places[best]


def test_a_row_is_the_same_loop_alone_and_in_a_batch(model: AudioGen) -> None:
    system = LatentGenerator(make("lafma"), "cpu")
    for generator, sampling in ((model, Sampling(loop=True)), (system, Sampling(loop=True, steps=2))):
        rows = generator.generate(["rain", "a dog barks"], [0.4, 0.3], seed=[1, 2], sampling=sampling)
        (alone,) = generator.generate(["a dog barks"], 0.3, seed=2, sampling=sampling)
        assert torch.equal(rows[1, :, : alone.shape[1]], alone) and not rows[1, :, alone.shape[1] :].any()
        assert alone.shape[1] == round(0.3 * generator.sample_rate)
        ordered = Sampling(loop=True, steps=sampling.steps, in_order=True)
        (both,) = generator.generate(["a dog barks, then rain"], 0.4, seed=2, sampling=ordered)
        assert both.shape[1] == round(0.4 * generator.sample_rate) and both.abs().max() > 1e-4


def test_what_has_a_beginning_is_no_loop(model: AudioGen) -> None:
    loop, sound = Sampling(loop=True), torch.full((1, 800), 0.1)
    with pytest.raises(InputError, match="a loop is a new sound, made whole; drop prompt or loop"):
        model.generate(["rain"], 0.5, prompt=(sound, 8000), sampling=loop)
    with pytest.raises(InputError, match="drop edit or loop"):
        model.generate(["rain"], 0.2, edit=Edit(sound, 8000, extend_s=0.1), sampling=loop)
    with pytest.raises(InputError, match="drop stream or loop"):
        model.stream("rain", 0.5, sampling=loop)
    with pytest.raises(InputError, match="schedule and loop cannot be joined"):
        model.generate(["rain"], 0.5, sampling=Sampling(loop=True, schedule=((0.2, "dog"),)))


def test_the_command_makes_a_loop(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--device", "cpu", "--duration", "0.4", "--text", "rain"]
    main([*common, "--loop", "--out", "loop.wav"])
    assert audio.load("loop.wav")[0].shape == (1, 3200)
    for words in (["--stream"], ["--init", "loop.wav", "--extend", "1"], ["--continue-from", "loop.wav"]):
        with pytest.raises(InputError, match="--loop is for a new sound made whole; drop"):
            main([*common, "--loop", *words, "--out", "no.wav"])


def test_jumps_are_measured_where_they_are() -> None:
    """A step of the level, of the spectrum and of the waveform in the middle of a steady sound."""
    time, middle = seconds(1.0), 8000
    tone = 0.2 * torch.sin(2 * torch.pi * 250 * time)
    places = torch.arange(2000, 14001, 100)
    louder, other, broken = tone.clone(), tone.clone(), tone.clone()
    louder[middle:] *= 4
    other[middle:] = 0.2 * torch.sin(2 * torch.pi * 2000 * time[middle:])
    broken[middle:] = tone[middle - 32 : -32]
    for number, sound in enumerate((louder, other, broken)):
        assert abs(int(places[jumps(sound, places, RATE)[:, number].argmax()]) - middle) <= 400
    assert ranks(tone[None, :8000], RATE)[2] < 0.9 < ranks(tone[None, :7984], RATE)[2]
