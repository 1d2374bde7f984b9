"""Two folders of sounds: equal ones, different ones, and what is wrong with a folder said in one line."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiogen import audio
from audiogen.errors import InputError
from audiogen.evaluate.embedders import load_embedder
from audiogen.evaluate.files import FilesEvaluation, run
from audiogen.evaluate.metrics import Interval, frechet_distance, kernel_distance, label_kl


@pytest.fixture
def real(labelled: Path, tmp_path: Path) -> Path:
    """The 18 labelled sounds."""
    shutil.copytree(labelled.parent, tmp_path / "real")
    return tmp_path / "real"


@pytest.fixture
def compare(tiny_tagger: str, tmp_path: Path):
    """Run the evaluation -> (the generated row by the figure's short name, warnings)."""

    def command(reference: Path, generated: Path, **settings: Any) -> tuple[dict[str, Any], list[str]]:
        warnings: list[str] = []
        evaluation = FilesEvaluation(
            reference, generated, (tiny_tagger,), device="cpu", out=tmp_path / "out", **settings
        )
        rows = run(evaluation, warnings.append).rows
        return {key.split()[0]: cell for key, cell in rows[-1].items()}, warnings

    return command


def test_a_folder_against_its_copy(compare, real: Path, tmp_path: Path) -> None:
    shutil.copytree(real, tmp_path / "copy")
    row, warnings = compare(real, tmp_path / "copy")
    assert not warnings
    assert row["n"] == 18
    assert row["fad"].value == pytest.approx(0, abs=1e-9) and row["kl"].high == pytest.approx(0, abs=1e-9)
    assert row["kd"].value < 0  # of one set with itself the unbiased estimate is below 0
    assert [row[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md", "report.json", "report.html"}


def test_the_figures_are_those_of_the_metrics(
    compare, real: Path, tmp_path: Path, labelled: Path, tiny_tagger: str
) -> None:
    """Also over other rates, channels, formats and suffixes: the embedder gets what a listener gets."""
    other = tmp_path / "other"
    for number, path in enumerate(sorted(real.glob("*.wav"))):
        sound, _ = audio.load(path)
        loud = audio.resample(sound.flip(-1), 8000, (16000, 22050, 8000)[number % 3])
        audio.save(
            other / "inside" / f"{path.stem}.flac", loud.expand(2, -1), (16000, 22050, 8000)[number % 3]
        )
    row, warnings = compare(real, other)
    assert not warnings  # paired by file name, wherever the file lies

    embedder = load_embedder(tiny_tagger)
    a, b = (
        [embedder.embed(audio.load(path, 8000)[0][None]) for path in sorted(folder.rglob(pattern))]
        for folder, pattern in ((real, "*.wav"), (other, "*.flac"))
    )
    x, y = (np.concatenate([each.embeddings for each in side]) for side in (a, b))
    assert row["fad"].value == pytest.approx(frechet_distance(x, y), rel=1e-4)
    assert row["kd"].value == pytest.approx(kernel_distance(x, y), rel=1e-4, abs=1e-4)
    p, q = (np.concatenate([each.probabilities for each in side]) for side in (a, b))
    assert row["kl"].value == pytest.approx(label_kl(p, q).mean(), rel=1e-4)
    for name in ("fad", "fad_inf", "kd", "kl", "is"):
        assert row[name].low <= row[name].value <= row[name].high and row[name].low < row[name].high


def test_worse_sounds_score_worse(compare, real: Path, tmp_path: Path) -> None:
    for name, noise in (("near", 0.003), ("far", 0.3)):
        for number, path in enumerate(sorted(real.glob("*.wav"))):
            sound, _ = audio.load(path)
            random = torch.Generator().manual_seed(number)
            audio.save(
                tmp_path / name / path.name, sound + noise * torch.randn(sound.shape, generator=random), 8000
            )
    near, far = (compare(real, tmp_path / name)[0] for name in ("near", "far"))
    for figure in ("fad", "kd", "kl"):
        assert near[figure].value < far[figure].value, figure


def test_the_report_names_the_embedder_and_its_weights(
    compare, real: Path, tiny_tagger: str, tmp_path: Path
) -> None:
    compare(real, real)
    identity = load_embedder(tiny_tagger).identity
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    keys = [column["key"] for column in report["columns"]]
    assert f"fad tagger_x {identity}" in keys and f"is tagger_x {identity}" in keys
    assert any(identity in note and "tagger_x" in note for note in report["notes"])
    assert report["rows"][0]["n"] == 9 and report["rows"][1]["n"] == 18
    assert report["rows"][0][f"fad tagger_x {identity}"]["value"] > 0  # real sounds are not the same twice


def test_what_is_odd_is_warned_of(compare, real: Path, tmp_path: Path) -> None:
    assert compare(real, real)[1] == ["both folders are the same one: FAD and KL are 0"]

    other = tmp_path / "other"
    shutil.copytree(real, other)
    (other / "tone_0.wav").rename(other / "other.wav")
    audio.save(other / "noise_1.wav", torch.zeros(1, 3200), 8000)
    audio.save(other / "noise_2.wav", torch.full((1, 3200), 0.25), 8000)
    row, warnings = compare(real, other)
    assert len(warnings) == 2
    assert warnings[0].startswith("only 17 names are in both folders (18 in ")
    assert warnings[1].startswith("2 of 18 clips are silent or constant, the first is ")
    assert "noise_1" in warnings[1]
    assert row["kl"].value > 0

    for number, path in enumerate(sorted(other.glob("*.wav"))):
        path.rename(other / f"take{number}.wav")
    row, warnings = compare(real, other)
    assert "no file has the same name in both folders: no pairs, so no KL" in warnings and "kl" not in row
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["notes"]
    assert [note for note in notes if note.startswith("Warning: ")] == [
        f"Warning: {said}" for said in warnings
    ]


def test_sounds_that_lack_a_part_of_the_embedders_input_are_warned_of(
    compare, real: Path, tmp_path: Path
) -> None:
    """The embedder reads 8 kHz: 4 kHz lacks half of that, 16 kHz nothing."""
    for rate in (4000, 16000):
        for path in real.glob("*.wav"):
            sound = audio.resample(audio.load(path)[0], 8000, rate)
            audio.save(tmp_path / str(rate) / path.name, sound, rate)
    assert not compare(real, tmp_path / "16000")[1]
    assert not compare(tmp_path / "4000", tmp_path / "4000" / ".." / "4000")[1][1:]  # alike on both sides
    (said,) = compare(real, tmp_path / "4000")[1]
    assert said.startswith("sample rates begin at 8000 Hz in ") and "and at 4000 Hz in " in said
    assert said.endswith("tagger_x reads 8000 Hz: figures will depend on bandwidth")


def test_lengths_that_differ_are_warned_of(compare, real: Path, tmp_path: Path) -> None:
    for path in real.glob("*.wav"):
        audio.save(tmp_path / "long" / path.name, audio.load(path)[0].repeat(1, 3), 8000)
    _, warnings = compare(real, tmp_path / "long")
    assert len(warnings) == 1 and "longer than 0.4 s in" in warnings[0] and "than 1.2 s" in warnings[0]
    row, warnings = compare(real, tmp_path / "long", duration_s=0.4)
    assert not warnings and row["fad"].value == pytest.approx(0, abs=1e-9)


def test_too_few_clips_leave_figures_out(compare, real: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        shutil.copy(real / f"tone_{number}.wav", few)
    row, warnings = compare(real, few)
    assert row["fad"] is None and row["density"] is None
    assert isinstance(row["kd"], Interval) and row["kl"].value == pytest.approx(0, abs=1e-9)
    said = [message for message in warnings if "too few" in message]
    assert len(said) == 2  # one for each cause
    assert said[1].startswith("no precision, recall, density, coverage by tagger_x: 3 generated clips")
    assert any(
        "fad by tagger_x" in message and "3 generated clips are too few" in message for message in said
    )
    assert math.isfinite(row["is"].value)

    for path in list(few.iterdir())[1:]:
        path.unlink()
    with pytest.raises(InputError, match="one sound is no set"):
        compare(real, few)


def test_bad_folders_are_one_line_and_write_nothing(compare, real: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        compare(real, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no sound files"):
        compare(tmp_path / "empty", real)
    (real / "broken.wav").write_bytes(b"RIFF, but no sound")
    with pytest.raises(InputError, match="broken.wav: not a sound file"):
        compare(real, real)
    (real / "broken.wav").unlink()
    import soundfile

    soundfile.write(real / "nan.wav", np.full(800, np.nan, dtype=np.float32), 8000, subtype="FLOAT")
    with pytest.raises(InputError, match="nan.wav: holds samples that are not finite"):
        compare(real, real)
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_said(compare, real: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="duration_s is -1.0; it must be in"):
        compare(real, real, duration_s=-1.0)
    with pytest.raises(InputError, match="no embedder is called 'tagger_big'"):
        run(FilesEvaluation(real, real, ("tagger_big",), out=tmp_path / "out"), print)
    with pytest.raises(InputError, match="--embedder names one twice"):
        FilesEvaluation(real, real, ("tagger_tiny", "tagger_tiny"))


def test_intervals_end_where_a_figure_does(compare, real: Path, tmp_path: Path) -> None:
    """Half samples of 18 clips, laid around a coverage near 0, would reach below it."""
    for number, path in enumerate(sorted(real.glob("*.wav"))):
        noise = 0.1 * torch.randn(1, 3200, generator=torch.Generator().manual_seed(number))
        audio.save(tmp_path / "noise" / path.name, noise if number % 6 else audio.load(path)[0], 8000)
    row, _ = compare(real, tmp_path / "noise")
    for name in ("precision", "recall", "coverage"):
        assert 0 <= row[name].low <= row[name].value <= row[name].high <= 1, name
    assert 0 <= row["fad"].low < row["fad"].high and row["density"].low >= 0 and row["is"].low >= 1
