"""A language model that was trained for it makes parts of a sound anew; the rest of the samples are the file's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.errors import InputError
from audiogen.generate.__main__ import main
from audiogen.generators import level
from audiogen.generators.facts import facts
from audiogen.generators.given import gaps
from audiogen.generators.level import FADE_S
from audiogen.generators.load import load
from audiogen.generators.token import AudioGen
from audiogen.interfaces import Edit, Sampling
from audiogen.models.find import find
from audiogen.serve.engine import Worker
from audiogen.serve.orders import Order

RATE = 8000
SOUND = 0.3 * torch.randn(1, 4000, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
FADE = round(FADE_S * RATE)


@pytest.fixture(scope="module")
def infills(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, as if it had been trained to fill gaps."""
    folder = tmp_path_factory.mktemp("infills") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["lm"]["infills"] = True
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(infills: Path) -> AudioGen:
    return AudioGen.from_pretrained(infills, "cpu", "float32")


def test_all_samples_outside_the_parts_are_the_files(model: AudioGen) -> None:
    """Borders within a frame of 80 samples; a sound of 50 frames, 40 of which the model sees."""
    edit = Edit(SOUND, RATE, inpaint=((0.1012, 0.2), (0.45, 0.4999)))
    down_db: list[float] = []
    made = model.generate(["rain"], edit.duration_s, seed=1, edit=edit, turned_down_db=down_db)[0]
    assert made.shape == SOUND.shape and len(down_db) == 1
    kept = torch.ones(4000, dtype=torch.bool)
    for begin, end in ((810, 1600), (3600, 3999)):
        kept[begin - FADE : end + FADE] = False
    assert torch.equal(made[:, kept], SOUND[:, kept])
    for begin, end in ((810, 1600), (3600, 3999)):
        assert (made[:, begin:end] - SOUND[:, begin:end]).abs().mean() > 0.05


def test_a_row_depends_on_its_text_and_seed_alone(model: AudioGen) -> None:
    edit = Edit(SOUND[:, :2400], RATE, inpaint=(0.1, 0.2))
    rows = model.generate(["rain", "a dog barks", None], edit.duration_s, seed=[1, 2, 3], edit=edit)
    alone = model.generate(["a dog barks"], edit.duration_s, seed=2, edit=edit)
    assert torch.equal(rows[1], alone[0]) and not torch.equal(rows[0], rows[1])
    again = model.generate(["a dog barks"], edit.duration_s, seed=5, edit=edit)
    assert not torch.equal(again, alone)


def test_the_frames_of_a_part_cover_it() -> None:
    parts = [
        level.Kept(SOUND, begin, end, RATE, 80)
        for begin, end in ((0, 80), (79, 81), (160, 160), (3999, 4000))
    ]
    assert gaps(parts, 50) == [(0, 1), (0, 2), (2, 3), (49, 50)]


@pytest.mark.parametrize(
    ("more", "sampling", "line"),
    [
        ({"strength": 0.5}, Sampling(), "strength is not for a token language model; drop strength"),
        ({"extend_s": 0.1}, Sampling(), "extend is not for parts that a language model makes anew; drop"),
        ({"inpaint_resample": 2}, Sampling(), "inpaint_resample is not for a token language model"),
        ({}, Sampling(schedule=((0.1, "dog"),)), "schedule is not for parts that a language model makes anew"),
        ({}, Sampling(loop=True), "a loop is a new sound, made whole; drop edit or loop"),
        ({"inpaint": (0.0, 0.41)}, Sampling(), "a part of 41 frames .* this model sees 40 frames"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_is_refused(
    model: AudioGen, more: dict[str, object], sampling: Sampling, line: str
) -> None:
    edit = Edit(SOUND, RATE, **{"inpaint": (0.1, 0.2), **more})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=line):
        model.generate(["rain"], edit.duration_s, edit=edit, sampling=sampling)


def test_other_models_are_refused_by_what_would_help(infills: Path, tiny_model: Path) -> None:
    without = load(tiny_model, "cpu", "float32")
    line = "inpaint is not for a token language model, .* sees nothing of what follows .recipe=lm_tiny_infill trains"
    with pytest.raises(InputError, match=line):
        without.generate(["rain"], 0.5, edit=Edit(SOUND, RATE, inpaint=(0.1, 0.2)))
    assert "inpaint" in facts(find(infills)).options
    assert "inpaint" not in facts(find(tiny_model)).options


def test_the_command_and_the_server_take_it(
    infills: Path, tiny_model: Path, model: AudioGen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    audio.save("a.wav", SOUND[:, :2400], RATE)
    given = ["--device", "cpu", "--text", "rain", "--init", "a.wav", "--inpaint", "0.1:0.2"]
    main(["--model", str(infills), *given, "--out", "made.wav"])
    made, given_sound = audio.load("made.wav")[0], audio.load("a.wav")[0]
    assert made.shape == (1, 2400) and torch.equal(made[:, : 800 - FADE], given_sound[:, : 800 - FADE])
    with pytest.raises(InputError, match="--inpaint is not for .* sees nothing of what follows"):
        main(["--model", str(tiny_model), *given, "--out", "no.wav"])
    worker = Worker("tiny", model, 1, 4)
    try:
        edit = Edit(SOUND, RATE, inpaint=(0.1, 0.2))
        worker.check(Order("rain", edit.duration_s, 0, edit=edit))
        with pytest.raises(InputError, match="extend is not for parts"):
            worker.check(Order("rain", 0.6, 0, edit=replace(edit, extend_s=0.1)))
    finally:
        worker.stop(1.0)
