"""Texts that change while a sound lasts, by a schedule or while it is made, and sounds between two texts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from audiogen import audio
from audiogen.diffusion.timeline import shares
from audiogen.errors import InputError
from audiogen.generate.__main__ import main
from audiogen.generators import load as generators
from audiogen.generators.latent import LatentGenerator
from audiogen.generators.live import Texts
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Condition, Generator, Sampling
from audiogen.models.own import load_tagger
from audiogen.text.condition import mix
from audiogen.text.schedule import read_schedule
from tests.generators.test_latent_generator import make

RATE = 8000  # of the tiny language model
PAIRS = [  # text and kind of what comes first, and of what comes then
    ("rain falls", "rain", "a rooster crows", "rooster"),
    ("sea waves", "sea waves", "a dog barks", "dog bark"),
    ("a clock ticks", "clock tick", "rain falls", "rain"),
]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> AudioGen:
    return AudioGen.from_pretrained(tiny_model, "cpu", "float32")


@pytest.fixture(scope="module")
def system() -> LatentGenerator:
    return LatentGenerator(make("lafma"), "cpu")


@pytest.fixture(scope="module")
def probability() -> Callable[[Tensor, str], float]:
    """Of a kind in a sound [C, N] at 16 kHz, by tagger_tiny."""
    tagger = load_tagger("tagger_tiny")
    group = tagger.group("esc10")
    names = [label.partition("/")[2] for label in tagger.labels[group]]

    @torch.no_grad()
    def of(sound: Tensor, kind: str) -> float:
        return float(tagger(sound).logits[0, group].softmax(-1)[names.index(kind)])

    return of


def test_a_language_models_sound_is_the_same_up_to_the_new_text_and_another_after_it(model: AudioGen) -> None:
    plain, changed = (
        torch.cat(
            list(model.stream("rain", 1.0, seed=3, sampling=Sampling(schedule=schedule), chunk_s=0.05)), -1
        )
        for schedule in (None, ((0.6, "a dog barks"),))
    )
    # what follows a frame is in its sound as far as the codec looks ahead; a loud block is turned down as a whole
    same = round(0.55 * RATE) - model.codec.lookahead_frames * model.codec.hop_length
    assert same > 1000 and torch.equal(plain[..., :same], changed[..., :same])
    assert not torch.equal(plain[..., same:], changed[..., same:])
    both = Sampling(schedule=((0.6, "a dog barks"), (0.8, "rain")))
    streamed = torch.cat(list(model.stream("rain", 1.0, seed=3, sampling=both, chunk_s=0.1)), -1)
    whole = model.generate(["rain", "a clock"], [1.0, 0.9], seed=[3, 5], sampling=both)
    assert torch.allclose(streamed, whole[0], atol=1e-6)
    alone = model.generate(["a clock"], 0.9, seed=5, sampling=both)
    assert torch.equal(whole[1, :, : alone.shape[-1]], alone[0])


def test_what_is_sent_to_a_stream_changes_what_comes_and_nothing_that_came(model: AudioGen) -> None:
    plain = list(model.stream("rain", 1.0, seed=3, chunk_s=0.1))
    stream = model.stream("rain", 1.0, seed=3, chunk_s=0.1)
    before = [next(stream) for _ in range(4)]
    stream.send("a dog barks")
    after = list(stream)
    assert all(torch.equal(*pair) for pair in zip(before, plain, strict=False))
    assert [piece.shape for piece in before + after] == [piece.shape for piece in plain]
    assert not torch.equal(torch.cat(after, -1), torch.cat(plain[4:], -1))
    endless = model.stream("rain", seed=3, chunk_s=0.1)
    next(endless)
    for text in ("a dog barks", "rain", "a clock"):
        endless.send(text)
        assert next(endless).shape == (1, 800)
    endless.close()
    for text, said in ((" ", "the text to go on with is ' '; give words"), (None, "is None; give words")):
        with pytest.raises(InputError, match=said):
            stream.send(text)  # type: ignore[arg-type]
    ordered = model.stream("a dog barks, then rain", 0.4, sampling=Sampling(in_order=True))
    with pytest.raises(InputError, match="made in order cannot change; give Sampling"):
        ordered.send("rain")


def test_a_text_takes_over_in_mixtures_from_the_frame_of_its_second() -> None:
    """The first number of each condition: 0 at first, 1 from frame 25 on, by three mixtures; then what is sent."""
    texts = Texts(
        lambda text: Condition(torch.full((1, 1, 1), float(text)), torch.ones(1, 1, dtype=torch.bool)),
        Condition(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool)), 25.0, 0.48, [(1.0, "1")],
    )  # fmt: skip
    given = {frame: text.tokens.item() for frame in range(50) if (text := texts(frame)) is not None}
    assert given == {25: 0.25, 28: 0.5, 31: 0.75, 34: 1.0}
    texts.send("5")
    given = {frame: text.tokens.item() for frame in range(60, 75) if (text := texts(frame)) is not None}
    assert given == {60: 2.0, 63: 3.0, 66: 4.0, 69: 5.0}


def test_a_condition_between_two_is_the_mean_of_their_tokens() -> None:
    first = Condition(torch.ones(1, 2, 3), torch.tensor([[True, True]]))
    second = Condition(torch.full((1, 1, 3), 5.0), torch.tensor([[True]]))
    between = mix(first, second, 0.25)
    assert between.tokens[0, :, 0].tolist() == [2.0, 0.75] and between.mask.all()
    assert mix(first, second, 0.0) is first and mix(first, second, 1.0) is second


def test_in_latents_each_text_has_its_frames() -> None:
    parts = shares([4.0, 8.0], 12, 2.0)
    assert torch.equal(parts.sum(0), torch.ones(12))
    assert parts[0].tolist() == [1, 1, 1, 0.75, 0.25, 0, 0, 0, 0, 0, 0, 0]
    assert parts[2].tolist() == [0] * 7 + [0.25, 0.75, 1, 1, 1]
    assert shares([4.0], 8, 0.0)[0].tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize("name", ["lm_tiny", "lafma_tiny"])
def test_the_bundled_models_make_the_new_kind_after_the_change(name: str, probability) -> None:
    """Of three pairs, from half a second after the change, with it and without."""
    generator = generators.load(name, "cpu")
    before = changed = without = 0.0
    for seed, (first, kind, second, new) in enumerate(PAIRS):
        made, plain = (
            generator.generate([first], 5.0, seed=seed, sampling=Sampling(schedule=schedule))[0]
            for schedule in (((2.0, second),), None)
        )
        before += probability(made[:, :32000], kind) / len(PAIRS)
        changed += probability(made[:, 40000:], new) / len(PAIRS)
        without += probability(plain[:, 40000:], new) / len(PAIRS)
    assert before > 0.5 and changed > 0.4 and without < 0.1


@pytest.mark.parametrize("name", ["lm_tiny", "lafma_tiny"])
def test_a_morph_goes_from_one_kind_to_the_other(name: str, probability) -> None:
    generator = generators.load(name, "cpu")
    sums = []
    for share in (0.0, 0.5, 1.0):
        first = second = 0.0
        for seed, (text, kind, other, new) in enumerate(PAIRS):
            (made,) = generator.generate([text], 3.0, seed=seed, sampling=Sampling(to=other, morph=share))
            first += probability(made, kind)
            second += probability(made, new)
        sums.append((first, second))
    assert sums[0][0] > sums[1][0] > sums[2][0] and sums[0][1] < sums[1][1] < sums[2][1]
    assert sums[0][0] > 1.8 and sums[2][1] > 1.5


@pytest.mark.parametrize("family", ["model", "system"])
def test_a_morph_begins_at_the_text_and_is_a_sound_of_its_own(family: str, request) -> None:
    generator: Generator = request.getfixturevalue(family)
    steps = Sampling() if family == "model" else Sampling(steps=2)
    plain = generator.generate(["rain"], 0.2, seed=3, sampling=steps)
    made = []
    for share in (0.0, None, 0.8):
        sampling = Sampling(steps=steps.steps, to="a dog barks twice", morph=share)
        made.append(generator.generate(["rain"], 0.2, seed=3, sampling=sampling))
    assert torch.equal(made[0], plain)
    assert not torch.equal(made[1], plain) and not torch.equal(made[1], made[2])
    half = Sampling(steps=steps.steps, to="a dog barks twice", morph=0.5)
    assert torch.equal(made[1], generator.generate(["rain"], 0.2, seed=3, sampling=half))


def test_a_latent_system_takes_a_schedule_for_rows_of_any_length(system: LatentGenerator) -> None:
    schedule = Sampling(steps=2, schedule=((0.3, "a dog barks"),), crossfade_s=0.1)
    together = system.generate(["rain", "a clock"], [0.6, 0.5], seed=[1, 2], sampling=schedule)
    alone = system.generate(["a clock"], 0.5, seed=2, sampling=schedule)
    assert torch.equal(together[1, :, : alone.shape[-1]], alone[0])
    assert not torch.equal(
        alone,
        system.generate(["a clock"], 0.5, seed=2, sampling=Sampling(steps=2, schedule=((0.4, "rain"),))),
    )


def test_schedules_are_read() -> None:
    assert read_schedule("0:rain; 8:thunder;15.5:rain, birds: far") == (
        (0.0, "rain"), (8.0, "thunder"), (15.5, "rain, birds: far"),
    )  # fmt: skip
    for text in ("rain", "0:rain;", "a:rain", "1:", "nan:rain", ""):
        with pytest.raises(InputError, match=r"--schedule has .*; give SECONDS:TEXT with ; between"):
            read_schedule(text)


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(schedule=()), "schedule is empty"),
        (Sampling(schedule=((0.1, " "),)), "schedule: text 0 is empty"),
        (Sampling(schedule=((0.0, "rain"),)), "'rain' begins at 0 s; it must come after 0 s"),
        (Sampling(schedule=((0.1, "rain"), (0.1, "dog"))), "'dog' begins at 0.1 s; it must come after 0.1 s"),
        (Sampling(schedule=((0.5, "rain"),)), "before the end of the sound, 0.3 s"),
        (Sampling(schedule=((float("nan"), "rain"),)), "begins at nan s"),
        (Sampling(crossfade_s=1.0), "crossfade is between the texts of a schedule, and there is none"),
        (Sampling(schedule=((0.1, "rain"),), crossfade_s=-1.0), "crossfade is -1 s"),
        (Sampling(morph=0.5), "morph is between two texts, and there is one"),
        (Sampling(to="dog", morph=1.5), "morph is 1.5; it must be from 0"),
        (Sampling(to=" "), "the text to morph to is empty"),
        (Sampling(to="dog", schedule=((0.1, "rain"),)), "schedule and to cannot be joined"),
    ],
)
def test_what_cannot_be_asked_for(
    model: AudioGen, system: LatentGenerator, sampling: Sampling, said: str
) -> None:
    for generator in (model, system):
        with pytest.raises(InputError, match=said):
            generator.generate(["rain"], 0.3, sampling=sampling)
    with pytest.raises(InputError, match="to needs a text to begin from"):
        model.generate([None], 0.3, sampling=Sampling(to="dog"))


def test_the_command_takes_a_schedule_and_a_morph(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "--device", "cpu", "--dtype", "float32", "--seed", "3"]
    main([*common, "--schedule", "0:rain; 0.2:a dog barks", "--duration", "0.4", "--out", "a.wav"])
    main([*common, "--text", "rain", "--schedule", "0.2:a dog barks", "--duration", "0.4", "--out", "b.wav"])
    main(
        [*common, "--schedule", "0:rain; 0.2:a dog barks", "--duration", "0.4", "--stream", "--out", "c.wav"]
    )
    assert Path("a.wav").read_bytes() == Path("b.wav").read_bytes()
    whole, streamed = audio.load("a.wav")[0], audio.load("c.wav")[0]
    assert torch.allclose(whole, streamed, atol=1e-4)
    main([*common, "--schedule", "0:rain; 0.1:a dog barks", "--out", "d.wav"])
    assert audio.load("d.wav")[0].shape[1] == round(5.1 * RATE)
    main(
        [*common, "--text", "rain", "--to", "a dog", "--morph", "0.3", "--duration", "0.2", "--out", "m.wav"]
    )
    for words, said in (
        (["--schedule", "0:rain"], "--schedule has one text; give a second"),
        (["--schedule", "0:rain; 1:dog", "--text", "a"], "so have --text and --prompts; give one of them"),
        (["--text", "rain", "--morph", "0.5"], "give that as --to TEXT"),
        (["--text", "rain", "--schedule", "9:dog", "--duration", "5"], "before the end of the sound, 5 s"),
    ):
        with pytest.raises(InputError, match=said):
            main([*common, *words, "--out", "no.wav"])


def test_no_text_is_encoded_while_a_stream_goes_on() -> None:
    """The text is encoded by the caller of `send`: the stream asks for nothing but what is there."""
    encoded: list[str] = []

    def encode(text: str) -> Condition:
        encoded.append(text)
        return Condition(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))

    texts = Texts(encode, encode("rain"), 25.0)
    texts.send("dog")
    assert len(encoded) == 2
    assert [texts(frame) is not None for frame in range(12)].count(True) == 4 and len(encoded) == 2
