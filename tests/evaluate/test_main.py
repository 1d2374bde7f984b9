"""The command: what it writes and prints, its exit status, and that bad input costs one line."""

import json
import re
import shutil
from pathlib import Path

import pytest

from audiogen.errors import InputError, run_command
from audiogen.evaluate.__main__ import main, read_filters, read_list
from audiogen.models.find import bundled


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in an empty folder -> (status, lines of stdout, lines of stderr)."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def command(*words: str | Path) -> tuple[int, list[str], list[str]]:
        status = run_command(main, [str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err.splitlines()

    return command


def said(lines: list[str]) -> list[str]:
    """Errors and warnings, without what progress bars leave on stderr."""
    return [line for line in lines if line.startswith(("error: ", "warning: "))]


def test_two_folders(run, labelled: Path, tiny_tagger: str) -> None:
    shutil.copytree(labelled.parent, "other")
    status, out, err = run(
        "files", "--reference", labelled.parent, "--generated", "other", "--embedder", tiny_tagger
    )
    assert status == 0 and not said(err)
    assert out[0].startswith("| Set") and "FAD (tagger_x)" in out[0] and len(out) == 5
    assert out[-1].startswith("evaluation/files/report.md")
    report = json.loads(Path("evaluation/files/report.json").read_text())
    assert report["notes"][0].startswith("Command: `python -m audiogen.evaluate files --reference ")


def test_a_comparison(run, labelled: Path, tiny_tagger: str, tiny_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    (broken / "codec" / "model.safetensors").write_bytes(b"cut short")
    words = ["--data", labelled, "--where", "fold=0", "--where", "label=tone,noise", "--num-clips", "2"]
    words += ["--duration", "0.4", "--embedder", tiny_tagger, "--out", "result", "--device", "cpu"]
    status, out, err = run("compare", "--model", tiny_model, "--model", broken, *words)
    assert status == 1  # one system failed, and the other finished
    names = [line.split("|")[1].strip(" *") for line in out if line.startswith("|")]
    assert names[2:] == [
        "ground truth",
        f"{tiny_model.name}, codec alone",
        tiny_model.name,
        "broken",
        "captions shuffled",
    ]
    errors = [line for line in said(err) if line.startswith("error: ")]
    assert len(errors) == 1 and re.match(r"error: broken failed: .*model.safetensors is damaged", errors[0])
    assert Path("result/report.html").is_file()
    rows = {row["system"]: row for row in json.loads(Path("result/report.json").read_text())["rows"]}
    assert rows[tiny_model.name]["n"] == 2 and "failed: " in rows["broken"]["remark"]


def test_released_models_are_compared_too(run, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "musicgen"}))
    status, _, err = run("compare", "--model", tmp_path, "--data", "absent.jsonl")
    assert status == 2 and len(err) == 1 and "absent.jsonl: cannot be read" in err[0]


def test_codecs(run, labelled: Path, tiny_tagger: str, tiny_model: Path) -> None:
    words = ["--data", labelled, "--where", "fold=0", "--num-clips", "3", "--opus", "", "--num-sounds", "1"]
    status, out, err = run("codec", "--codec", tiny_model / "codec", *words, "--embedder", tiny_tagger)
    assert status == 0 and not [line for line in said(err) if line.startswith("error")]
    assert out[0].startswith("| System")
    assert len(out) == 2 + 1 + 3 + 1 + 1  # originals, 1 to 3 codebooks, a search
    report = json.loads(Path("evaluation/codec/report.json").read_text())
    assert [row["codebooks"] for row in report["rows"][1:]] == [1, 2, 3, 3]
    status, without, _ = run("codec", "--codec", tiny_model / "codec", *words, "--beam", "1")
    assert status == 0 and len(without) == len(out) - 1
    assert report["notes"][0].startswith("Command: `python -m audiogen.evaluate codec --codec ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("files --reference . --generated absent", "no sound files"),
        ("compare --model lm_tinny --data absent.jsonl", "neither a directory nor a bundled model"),
        ("compare --model lm_tiny --data absent.jsonl", "cannot be read"),
        ("compare --model lm_tiny --data a.jsonl --seeds 0,x", "--seeds 0,x: give int values"),
        ("compare --model lm_tiny --data a.jsonl --where fold", "--where fold: give a field and its values"),
        ("compare --model lm_tiny --data a.jsonl --budget-s 1 --steps 2", "exclude each other"),
        ("codec --data absent.jsonl", "no such manifest"),
        ("codec --data a.jsonl --beam 0", "beam is 0"),
        ("codec --data a.jsonl --opus loud", "--opus loud: give float values"),
        ("files --reference . --generated . --out file/inside", "is not a folder that can be written to"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, words: str, message: str) -> None:
    Path("file").touch()
    status, out, err = run(*words.split())
    assert status == 2 and not out
    assert len(err) == 1 and err[0].startswith("error: ") and message in err[0]
    assert [path.name for path in Path().iterdir()] == ["file"]


def test_words_of_the_user_are_read() -> None:
    assert read_filters("--where", ["fold=1, 2", "label=dog bark"]) == {
        "fold": ("1", "2"),
        "label": ("dog bark",),
    }
    with pytest.raises(InputError, match="names fold twice; give its values in one, as in fold=1,2"):
        read_filters("--where", ["fold=1", "fold=2"])
    for wrong in ("fold=", "=1", "fold=,"):
        with pytest.raises(InputError, match="give a field and its values"):
            read_filters("--where", [wrong])
    assert read_list("--seeds", "0, 1 2,", int) == (0, 1, 2)
    assert read_list("--opus", "", float) == ()


def test_a_bundled_model_and_real_recordings(run, shared: Path) -> None:

    if not {"lm_tiny", "tagger_tiny"} <= set(bundled()):
        pytest.skip("the bundled weights are not there")
    manifest = shared / "data" / "esc10" / "manifest.jsonl"
    words = ["--where", "fold=4", "--num-clips", "2", "--duration", "1", "--num-sounds", "1"]
    status, out, _ = run("compare", "--model", "lm_tiny", "--data", manifest, *words)
    assert status == 0 and any("Label accuracy (tagger_tiny)" in line for line in out)
