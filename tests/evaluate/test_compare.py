"""A comparison: rows between ceilings and a floor, the same when resumed, and what fails said in its row."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiogen import audio
from audiogen.data.manifest import Clip, group_of, read_manifest
from audiogen.errors import InputError
from audiogen.evaluate import compare
from audiogen.evaluate.clips import ceiling_split, choose, label_of, shuffled
from audiogen.evaluate.embedders import Embedded, load_embedder
from audiogen.evaluate.metrics import Interval, prompt_interval
from audiogen.evaluate.scores import key_of, set_cells, take_rows
from audiogen.evaluate.systems import Comparison, consecutive, system_names
from audiogen.generators import load as generators
from audiogen.interfaces import Sampling
from audiogen.models.own import save_tagger
from audiogen.tagger.model import Tagger, TaggerConfig

pytestmark = pytest.mark.filterwarnings("ignore:the text encoder has no token for")

Rows = dict[str, dict[str, Any]]


@pytest.fixture
def comparison(tiny_model: Path, tiny_tagger: str, labelled: Path, tmp_path: Path) -> Comparison:
    """A small one: six prompts of 0.4 s."""
    return Comparison(
        (str(tiny_model),),
        labelled,
        num_clips=6,
        duration_s=0.4,
        embedders=(tiny_tagger,),
        num_sounds=1,
        device="cpu",
        out=tmp_path / "out",
    )


@pytest.fixture(scope="session")
def finished(
    tiny_model: Path, tiny_tagger: str, labelled: Path, tmp_path_factory: pytest.TempPathFactory
) -> Comparison:
    """One that ran: two seeds, order prompts, reference clips of their own fold. Only to be looked at."""
    done = Comparison(
        (str(tiny_model),),
        labelled,
        {"fold": ("0",)},
        {"fold": ("1",)},
        seeds=(0, 3),
        order_prompts=2,
        duration_s=1.3,
        embedders=(tiny_tagger,),
        num_sounds=1,
        device="cpu",
        out=tmp_path_factory.mktemp("finished") / "out",
    )
    assert not compare.run(done, lambda message: None).failures
    return done


def run(comparison: Comparison, **options: Any) -> Rows:
    """Rows by system, cells by the short name of their figure."""
    outcome = compare.run(comparison, lambda message: None, **options)
    return {
        str(row["system"]): {
            key.split()[0] if key.count(" ") == 2 else key: cell for key, cell in row.items()
        }
        for row in outcome.rows
    }


def report_rows(comparison: Comparison) -> Rows:
    report = json.loads((comparison.out / "report.json").read_text())
    return {
        row["system"]: {key.split()[0] if key.count(" ") == 2 else key: cell for key, cell in row.items()}
        for row in report["rows"]
    }


def written(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of writing of every sound below."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*.wav")
    }


# ------------------------------------------------------------------------------------------------- the choice


def test_the_choice_is_balanced_stable_and_a_prefix_of_longer_ones(labelled: Path) -> None:
    clips = read_manifest(labelled)
    prompts = choose(clips, 7)
    assert [prompt.number for prompt in prompts] == list(range(7))
    labels = [label_of(prompt.clip) for prompt in prompts]
    assert sorted(labels.count(label) for label in set(labels)) == [2, 2, 3]
    assert choose(clips[::-1], 7) == prompts
    assert choose(clips)[:7] == prompts and len(choose(clips)) == 18
    assert all(prompt.text in prompt.clip.captions for prompt in prompts)
    assert len({prompt.clip.captions.index(prompt.text) for prompt in choose(clips)}) == 2  # both wordings
    elsewhere = [
        replace(clip, path=f"/elsewhere/{Path(clip.path).parent.name}/{Path(clip.path).name}")
        for clip in clips
    ]
    assert [prompt.text for prompt in choose(elsewhere, 7)] == [prompt.text for prompt in prompts]


def test_what_cannot_be_chosen_is_said(labelled: Path) -> None:
    clips = read_manifest(labelled)
    silent = [replace(clip, captions=()) for clip in clips[:4]]
    assert len(choose(silent + clips[4:])) == 14
    with pytest.raises(InputError, match="none of the 4 clips has a caption"):
        choose(silent)
    with pytest.raises(InputError, match="--num-clips is 15, but 14 of the chosen clips have a caption"):
        choose(silent + clips[4:], 15)


def test_the_ceiling_shares_no_recording_with_its_reference() -> None:
    def tape(number: int) -> Clip:
        return Clip(f"{number}.wav", ("a sound",), fields={"source": f"tape {number // 2}"})

    clips = [tape(number) for number in range(20)]
    prompts = choose(clips)
    few = [prompt for prompt in prompts if prompt.clip in clips[:5]]
    against, measured = ceiling_split(clips, few)  # few: they, against the rest
    assert measured == few and against == clips[6:]  # clip 5 is from the tape of clip 4
    against, measured = ceiling_split(clips, prompts)  # all: one half against the other
    assert len(against) == len(measured) == 10 and all(prompt in prompts for prompt in measured)
    assert not {group_of(clip) for clip in against} & {group_of(prompt.clip) for prompt in measured}
    elsewhere = [Clip(f"other/{number}.wav") for number in range(4)]
    assert ceiling_split(elsewhere, prompts) == (elsewhere, prompts)


def test_shuffling_gives_every_clip_the_caption_of_another() -> None:
    for num in (2, 3, 10):
        assert sorted(shuffled(num)) == list(range(num))
        assert all(number != other for number, other in enumerate(shuffled(num)))
    assert shuffled(1) == [0] and shuffled(0) == []


def test_runs_of_numbers_and_rows_of_takes() -> None:
    assert consecutive([0, 1, 2, 5, 6, 8], 2) == [[0, 1], [2], [5, 6], [8]]
    assert take_rows(np.array([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]
    assert prompt_interval(np.array([0.0, 2.0, 4.0, 4.0]), 2).value == 2.5


def test_an_interval_resamples_prompts_not_takes() -> None:
    """Copies of one take say nothing new: neither the figure nor its interval moves."""
    values = np.random.default_rng(0).normal(size=30)
    assert prompt_interval(np.repeat(values, 4), 4) == pytest.approx(prompt_interval(values))


def test_systems_have_names_of_their_own() -> None:
    assert system_names(["lm_tiny", "runs/mine"]) == ["lm_tiny", "mine"]
    assert system_names(["runs/a/best", "runs/b/best"]) == ["a_best", "b_best"]
    with pytest.raises(InputError, match="--model is given twice"):
        system_names(["lm_tiny", "lm_tiny"])


def test_a_model_here_goes_by_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sounds lie in a folder of that name: `..` would be the report's own."""
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert system_names([".", "../other/", "lm_tiny"]) == ["mine", "other", "lm_tiny"]
    assert system_names([".."]) == [tmp_path.name]


def test_many_takes_of_few_prompts_have_an_interval_where_the_reference_allows(tiny_tagger: str) -> None:
    """4 dimensions need 5 clips: more than half of 8 real ones, though 2 prompts with 4 takes each would do."""
    random, embedder = np.random.default_rng(0), load_embedder(tiny_tagger)
    real, generated = (Embedded(random.normal(size=(n, 4)).astype(np.float32), None) for n in (8, 16))
    fad = set_cells(embedder, real, generated, print, takes=4)[key_of(embedder, "fad")]
    assert isinstance(fad, Interval) and math.isfinite(fad.low) and fad.low < fad.value < fad.high


# --------------------------------------------------------------------------------------------------- the table


def test_rows_columns_and_notes(finished: Comparison, tiny_model: Path) -> None:
    rows, name = report_rows(finished), tiny_model.name
    assert list(rows) == ["ground truth", f"{name}, codec alone", name, "captions shuffled"]
    row, ceiling, floor = rows[name], rows["ground truth"], rows["captions shuffled"]
    assert row["n"] == 18 and ceiling["n"] == floor["n"] == 9 and row["seeds"] == "0,3"
    model = generators.load(tiny_model, "cpu")
    assert row["family"] == "token LM" and row["latent_rate"] == "100 Hz x 3"
    assert row["num_parameters"] == model.num_parameters
    assert row["num_evaluations"] == model.num_evaluations(1.3, 3.0)
    assert row["real_time_factor"] == pytest.approx(row["clip_s"] / 1.3)
    for figure in ("fad", "fad_inf", "kd", "kl", "is", "accuracy", "order", "density", "precision"):
        assert set(row[figure]) == {"value", "low", "high"}, figure
    assert ceiling["kl"]["value"] == pytest.approx(0, abs=1e-6) and floor["kl"]["value"] > 0
    assert ceiling["fad"] == floor["fad"]  # a set has no captions
    assert ceiling["sets"] == floor["sets"] == rows[f"{name}, codec alone"]["sets"] == "9 with 9"
    assert row["sets"] == "18 with 9"
    for entry in rows.values():
        assert entry["both_heard"]["value"] >= entry["order"]["value"] and "in_order" in entry
    report = json.loads((finished.out / "report.json").read_text())
    notes = "\n".join(report["notes"])
    for said in (
        "seeds 0, 3",
        "captions of 9 clips",
        "(fold 0)",
        "9 real clips (fold 1)",
        "Embedder `tagger_x`",
        "Order accuracy",
        row["identity"],
    ):
        assert said in notes, said
    keys = {column["key"] for column in report["columns"]}
    assert {"system", "clip_s", "peak_memory_mb"} < keys and not {"steps", "budget_used", "remark"} & keys
    players = {(sound["row"], sound["prompt"]) for sound in report["sounds"]}
    assert len(players) == 6  # one prompt and one order prompt, each real, by the codec and by the system
    assert all((finished.out / sound["path"]).is_file() for sound in report["sounds"])


def test_sounds_are_those_of_the_generator(finished: Comparison, tiny_model: Path, labelled: Path) -> None:
    """Generated in batches here, alone there; seed 3 of prompt 2 is always the same sound."""
    model, folder = generators.load(tiny_model, "cpu"), finished.out / "clips" / tiny_model.name
    clips = [clip for clip in read_manifest(labelled) if clip.fields["fold"] == 0]
    for number in (0, 2):
        prompt = choose(clips)[number]
        sound = model.generate([prompt.text], 1.3, guidance=3.0, seed=3_000_000 + number)[0]
        kept, sample_rate = audio.load(folder / f"{number:04d}_3.wav")
        assert sample_rate == 8000
        torch.testing.assert_close(kept, sound / max(1, sound.abs().max()), atol=2**-15, rtol=0)
        real, _ = audio.load(prompt.clip.path, 8000, 1)
        kept, _ = audio.load(folder / f"{number:04d}_codec.wav")
        again = model.reconstruct(real[None])[0]
        torch.testing.assert_close(kept, again / max(1, again.abs().max()), atol=2**-15, rtol=0)


def test_a_system_that_copies_is_at_the_ceiling(
    comparison: Comparison, diffusion: Callable[..., Any], labelled: Path
) -> None:
    """Label accuracy, KL and IS of one that plays the real clip of each prompt; distance to a set with itself."""
    everything = replace(comparison, num_clips=None, batch_size=5)
    prompts = choose(read_manifest(labelled))
    sounds = [audio.load(prompt.clip.path)[0] for prompt in prompts]

    class Copy(diffusion):  # type: ignore[misc, valid-type]
        sample_rate = 8000

        def generate(self, texts, duration_s, *, guidance, seed, sampling):
            return torch.stack([sounds[number % 18] for number in range(seed, seed + len(texts))])

    rows = run(everything, open_generator=lambda name, device: Copy())
    row, ceiling = rows[Path(comparison.models[0]).name], rows["ground truth"]
    for figure in ("kl", "accuracy", "is"):
        assert row[figure] == pytest.approx(ceiling[figure], abs=1e-3), figure
    assert row["fad"].value == pytest.approx(0, abs=1e-4) and ceiling["fad"].value > 0
    assert row["coverage"].value == 1


def test_a_second_opinion_and_what_is_learned_by_heart(
    comparison: Comparison, diffusion: Callable[..., Any], labelled: Path
) -> None:
    """One that plays clips of the reference, of other labels than asked for; real clips are judged by other ones."""
    pytest.importorskip("sklearn")
    fold = replace(comparison, num_clips=None, where={"fold": ("0",)}, reference_where={"fold": ("1",)})
    sounds = [audio.load(clip.path)[0] for clip in read_manifest(labelled) if clip.fields["fold"] == 1]
    tones = [sound for number, sound in enumerate(sounds) if number % 3 == 0]

    class ByHeart(diffusion):  # type: ignore[misc, valid-type]
        sample_rate = 8000

        def generate(self, texts, duration_s, *, guidance, seed, sampling):
            return torch.stack([tones[number % 3] for number in range(seed, seed + len(texts))])

    both = replace(fold, embedders=(*comparison.embedders, "logmel"))
    warnings: list[str] = []
    report = compare.run(both, warnings.append, lambda name, device: ByHeart())
    logmel = {
        str(row["system"]): {key.split()[0]: cell for key, cell in row.items() if " logmel " in key}
        for row in report.rows
    }
    real, made = logmel["ground truth"], logmel[Path(comparison.models[0]).name]
    assert real["accuracy"].value == 1 and logmel["captions shuffled"]["accuracy"].value < 0.6
    assert made["accuracy"].value == pytest.approx(1 / 3)  # tones alone
    assert made["near"].value == 1 and real["near"].value < 0.2
    assert any("9 are labelled right" in note and "cross-validation" in note for note in report.notes)
    judged = [warning for warning in warnings if "label accuracies differ by more than 0.1" in warning]
    assert any(warning.startswith("ground truth: ") and "1.00 by logmel" in warning for warning in judged)


def test_labels_that_the_embedder_does_not_know_are_counted(
    comparison: Comparison, diffusion: Callable[..., Any], labelled: Path, tmp_path: Path
) -> None:
    clips = [json.loads(line) for line in labelled.read_text().splitlines()]
    for clip in clips:
        clip["audio"] = str(labelled.parent / clip["audio"])
        clip["label"] = {"tone": "whistle"}.get(clip["label"], clip["label"])
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, clips)))
    warnings: list[str] = []
    compare.run(
        replace(comparison, data=tmp_path / "other.jsonl"), warnings.append, lambda name, device: diffusion()
    )
    assert "label accuracy by tagger_x: 4 of 6 prompts have a label it has as well" in warnings


def test_the_clap_score_is_of_each_sound_with_the_text_it_was_asked_by(
    comparison: Comparison, diffusion: Callable[..., Any], labelled: Path, clap: Path
) -> None:
    """The real clips with their captions, and, in the floor row, with each other's."""
    spec = f"clap:{clap}"
    rows = run(replace(comparison, embedders=(spec,)), open_generator=lambda name, device: diffusion())
    embedder, prompts = load_embedder(spec), choose(read_manifest(labelled), 6)
    embedded = np.stack(
        [
            embedder.embed(audio.load(prompt.clip.path, embedder.sample_rate)[0][None]).embeddings[0]
            for prompt in prompts
        ]
    )
    written = embedder.embed_text([prompt.text for prompt in prompts])
    for name, sounds in {"ground truth": embedded, "captions shuffled": embedded[shuffled(6)]}.items():
        cosines = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(sounds, written, strict=True)
        ]
        assert rows[name]["clap"].value == pytest.approx(np.mean(cosines), abs=1e-5)
    assert rows["ground truth"]["clap"].value != rows["captions shuffled"]["clap"].value
    assert -1 <= rows[Path(comparison.models[0]).name]["clap"].value <= 1


def test_one_prompt_has_no_other_caption_to_be_shuffled_with(
    comparison: Comparison, diffusion: Callable[..., Any]
) -> None:
    one = replace(comparison, num_clips=1, order_prompts=1, duration_s=1.3)
    rows = run(one, open_generator=lambda name, device: diffusion())
    floor, ceiling = rows["captions shuffled"], rows["ground truth"]
    assert floor["n"] == 0 and floor["remark"] == "needs two prompts"
    assert not {"accuracy", "kl", "order"} & set(floor)
    assert {"accuracy", "kl", "order"} <= set(ceiling) and math.isnan(ceiling["order"].low)


# ----------------------------------------------------------------------------------------- resumed, equal time


def test_a_run_that_was_interrupted_goes_on(comparison: Comparison, tiny_model: Path, tmp_path: Path) -> None:
    whole = replace(comparison, out=tmp_path / "whole", seeds=(0, 1))
    expected = run(whole)

    class Stopped(Exception):
        pass

    def stops(name: str, device: str) -> Any:
        model = generators.load(name, device)
        generate, calls = model.generate, []

        def limited(texts: Any, *args: Any, **settings: Any) -> Any:
            calls.append(texts)
            if len(calls) > 5:  # three to measure the cost, then two batches
                raise Stopped("pulled the plug")
            return generate(texts, *args, **settings)

        model.generate = limited  # type: ignore[method-assign]
        return model

    interrupted = replace(whole, out=tmp_path / "parts", batch_size=2)
    assert "failed: Stopped" in run(interrupted, open_generator=stops)[tiny_model.name]["remark"]
    before = written(interrupted.out / "clips")
    assert len([name for name in before if "codec" not in name and name.startswith(tiny_model.name)]) == 4
    rows = run(replace(interrupted, batch_size=4))
    after = written(interrupted.out / "clips")
    assert {name: after[name] for name in before} == before  # nothing is generated twice
    assert {name: sound for name, (sound, _) in after.items()} == {
        name: sound for name, (sound, _) in written(whole.out / "clips").items()
    }
    assert not (interrupted.out / "clips" / tiny_model.name / "failure.txt").exists()
    for figure in ("fad", "kd", "kl", "is", "accuracy"):
        assert rows[tiny_model.name][figure] == expected[tiny_model.name][figure]


def test_other_settings_or_weights_generate_anew(
    comparison: Comparison, tiny_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / tiny_model.name
    shutil.copytree(tiny_model, model)
    comparison = replace(comparison, models=(str(model),), num_clips=3)
    first = run(comparison)
    sounds = written(comparison.out / "clips")
    run(replace(comparison, seeds=(0, 1)))
    more = written(comparison.out / "clips")
    assert {name: more[name] for name in sounds} == sounds and len(more) == len(sounds) + 3
    louder = run(replace(comparison, guidance=6.0))
    assert louder[model.name]["identity"] == first[model.name]["identity"]
    assert written(comparison.out / "clips")[f"{model.name}/0000_0.wav"] != sounds[f"{model.name}/0000_0.wav"]
    from audiogen.files import checkpoint

    tensors = checkpoint.load_tensors(model)
    name = next(name for name in tensors if "heads" in name)
    checkpoint.write_tensors(model / "model.safetensors", {**tensors, name: -tensors[name]})
    changed = run(comparison)
    assert changed[model.name]["identity"] != first[model.name]["identity"]
    assert written(comparison.out / "clips")[f"{model.name}/0000_0.wav"] != sounds[f"{model.name}/0000_0.wav"]


def test_equal_time_and_equal_steps(
    comparison: Comparison, tiny_model: Path, diffusion: Callable[..., Any]
) -> None:
    """0.5 s and 0.125 s a step: a budget of 2 s buys 12 steps, found once and kept when the run is repeated."""
    quick = replace(comparison, models=("quick", "slow"), num_clips=2, budget_s=2.0)
    generator = diffusion()

    def opened(name: str, device: str) -> Any:
        if name == "slow":  # a step alone is over the budget
            generator.fixed_s = 2.5
        else:
            generator.fixed_s = 0.5
        return generator

    rows = run(quick, open_generator=opened, clock=generator.clock)
    assert rows["quick"]["steps"] == 12 and rows["quick"]["budget_used"] == pytest.approx(100)
    assert rows["quick"]["num_evaluations"] == 24 and "remark" not in rows["quick"]
    assert rows["slow"]["steps"] == 1 and rows["slow"]["budget_used"] == pytest.approx(131.25)
    assert rows["slow"]["remark"] == "over the budget"
    num_calls = len(generator.calls)
    generator.step_s = 1.0  # a busier machine: the sounds that are there stay those of 12 steps
    again = run(quick, open_generator=opened, clock=generator.clock)
    assert again["quick"]["steps"] == 12 and len(generator.calls) == num_calls
    equal = run(replace(quick, budget_s=None, steps=7), open_generator=opened, clock=generator.clock)
    assert equal["quick"]["steps"] == equal["slow"]["steps"] == 7


def test_a_system_without_steps_is_run_as_it_is(comparison: Comparison, tiny_model: Path) -> None:
    plenty = run(replace(comparison, num_clips=2, budget_s=1000.0))[tiny_model.name]
    assert plenty["steps"] is None and 0 < plenty["budget_used"] < 100 and "remark" not in plenty
    scarce = run(replace(comparison, num_clips=2, budget_s=1e-6))[tiny_model.name]
    assert scarce["remark"] == "over the budget, and has no steps to save"
    assert run(replace(comparison, num_clips=2, steps=3))[tiny_model.name]["steps"] is None


# --------------------------------------------------------------------------------------------------- bad input


def test_a_model_that_fails_leaves_the_others(
    comparison: Comparison, diffusion: Callable[..., Any], tmp_path: Path
) -> None:
    class Broken(diffusion):  # type: ignore[misc, valid-type]
        def reconstruct(self, audio):
            raise RuntimeError("out of\nmemory")

    class Hollow(diffusion):  # type: ignore[misc, valid-type]
        def generate(self, texts, duration_s, **settings):
            return super().generate(texts, duration_s, **settings) * math.nan

    class Short(diffusion):  # type: ignore[misc, valid-type]
        max_duration_s = 0.1

    kinds = {"broken": Broken, "hollow": Hollow, "short": Short, "whole": diffusion}
    several = replace(comparison, models=tuple(kinds))
    outcome = compare.run(several, lambda message: None, lambda name, device: kinds[name]())
    assert outcome.failures == {
        "broken": "RuntimeError: out of memory",
        "hollow": "the model generates samples that are not finite (NaN or infinity)",
        "short": "generates at most 0.1 s; give a --duration that all models can make",
    }
    rows = report_rows(several)
    assert rows["broken"]["remark"] == "failed: RuntimeError: out of memory"
    assert set(rows["broken"]) == {"system", "remark"}
    assert rows["whole"]["kl"]["value"] > 0
    assert "in reconstruct" in (several.out / "clips" / "broken" / "failure.txt").read_text()


def test_silent_sounds_are_judged_and_warned_of(
    comparison: Comparison, diffusion: Callable[..., Any]
) -> None:
    class Silent(diffusion):  # type: ignore[misc, valid-type]
        def generate(self, texts, duration_s, **settings):
            return super().generate(texts, duration_s, **settings) * 0

    warnings: list[str] = []
    outcome = compare.run(comparison, warnings.append, lambda name, device: Silent())
    assert not outcome.failures
    name = Path(comparison.models[0]).name
    said = [message for message in warnings if f"{name}: 6 of 6 clips are silent or constant" in message]
    assert len(said) == 1 and said[0] in " ".join(
        json.loads((comparison.out / "report.json").read_text())["notes"]
    )


def test_bad_data_is_said_before_anything_is_generated(comparison: Comparison, tmp_path: Path) -> None:
    def refuses(name: str, device: str) -> Any:
        raise AssertionError("a model was opened")

    save_tagger(tmp_path / "deaf", Tagger(TaggerConfig({"esc10": ("tone", "noise")}, dim=4)))
    deaf = f"tagger:{tmp_path / 'deaf'}"

    for change, said in (
        ({"data": tmp_path / "absent.jsonl"}, "cannot be read"),
        ({"where": {"fold": ("7",)}}, "no clip has the value '7'"),
        ({"num_clips": 19}, "--num-clips is 19"),
        ({"embedders": ("clap",)}, "no embedder is called 'clap'"),
        ({"embedders": ("codec:absent",)}, "neither a directory nor a bundled model"),
        ({"embedders": (f"tagger:{comparison.models[0]}",)}, "holds a token language model"),
        ({"order_prompts": 1}, "order prompts need 1.2 s"),
        ({"order_prompts": 1, "duration_s": 1.3, "embedders": ("codec:absent",)}, "neither a directory"),
        (
            {"order_prompts": 1, "duration_s": 1.3, "embedders": (deaf,)},
            "cannot judge order: it has no label",
        ),
    ):
        with pytest.raises(InputError, match=said):
            compare.run(replace(comparison, **change), lambda message: None, refuses)  # type: ignore[arg-type]
    assert not comparison.out.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget_s": 1.0, "steps": 2}, "exclude each other"),
        ({"budget_s": 0.0}, "budget_s is 0.0; it must be"),
        ({"duration_s": math.nan}, "duration_s is nan; it must be"),
        ({"guidance": math.inf}, "--guidance is inf"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"num_clips": 0}, "num_clips is 0; it must be at least 1"),
        ({"order_prompts": -1}, "order_prompts is -1; it must be at least 0"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (0, -1)}, r"seeds\[1\] is -1; it must be at least 0"),
        ({"seeds": (1, 1)}, "--seeds names one twice"),
        ({"models": ()}, "at least one --model"),
        ({"embedders": ("tagger_tiny", "tagger_tiny")}, "--embedder names one twice"),
    ],
)
def test_settings_that_make_no_sense_are_said(
    comparison: Comparison, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        replace(comparison, **change)


def test_short_clips_are_warned_of_and_too_few_leave_figures_out(comparison: Comparison) -> None:
    warnings: list[str] = []
    outcome = compare.run(replace(comparison, duration_s=0.8, num_clips=3), warnings.append)
    assert not outcome.failures
    assert any("18 of 18 real clips are shorter than the 0.8 s" in message for message in warnings)
    [said] = [message for message in warnings if "fad by tagger_x" in message]  # one for all rows
    assert "3 generated clips are too few" in said and outcome.rows[0]["system"] in said
    kd = next(cell for key, cell in outcome.rows[2].items() if key.startswith("kd "))
    assert isinstance(kd, Interval)


def test_latent_diffusion_beside_a_language_model(comparison: Comparison, tiny_latent: Path) -> None:
    """Each opened from its directory; steps as asked, its own or as many as a budget buys are in the report."""
    lm = comparison.models[0]
    both = replace(comparison, models=(lm, str(tiny_latent)), num_clips=2, steps=2, duration_s=0.2)
    rows = run(both)
    assert {
        cells["guidance"]
        for cells in run(replace(both, guidance=1.5, out=both.out / "weak")).values()
        if "guidance" in cells
    } == {1.5}
    row, other = rows[tiny_latent.name], rows[Path(lm).name]
    model = generators.load(tiny_latent, "cpu")
    assert row["family"] == "latent flow" and other["family"] == "token LM"
    assert (row["guidance"], other["guidance"]) == (model.guidance, generators.load(lm, "cpu").guidance)
    notes = (both.out / "report.md").read_text()
    assert "16000 Hz, 2 steps; attention heads (2, 4): those of " in notes
    kept, rate = audio.load(both.out / "clips" / tiny_latent.name / "0000_0.wav")
    text = choose(read_manifest(both.data), 2)[0].text
    expected = model.generate([text], 0.2, seed=0, sampling=Sampling(steps=2))[0]
    assert rate == 16000
    torch.testing.assert_close(kept, audio.below_full_scale(expected), atol=2**-14, rtol=0)
    run(replace(both, models=(str(tiny_latent),), steps=None, budget_s=0.05, out=both.out / "budget"))
    system = json.loads((both.out / "budget" / "clips" / tiny_latent.name / "system.json").read_text())
    assert system["steps"] >= 1 and system["facts"]["budget_s"] == 0.05
