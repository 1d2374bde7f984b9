"""`make weights` goes on where it was stopped: a stage that is complete is not run again. Python is a script here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKE = shutil.which("make")
PYTHON = """#!/bin/sh
echo "$*" >> commands
case "$*" in *"$FAILS"*) exit 1;; esac
"""

pytestmark = pytest.mark.skipif(MAKE is None or os.name != "posix", reason="needs make and a shell")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile, with an environment whose Python writes down what it is given, and fails where $FAILS is in it."""
    for name in ("Makefile", "pyproject.toml", "constraints-cpu.txt", "tools/weights.mk"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("audiogen/weights", "esc10", ".venv/bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "esc10/manifest.jsonl").write_text("{}\n")
    (tmp_path / ".venv/bin/python").write_text(PYTHON)
    (tmp_path / ".venv/bin/python").chmod(0o755)
    (tmp_path / ".venv/.installed").touch()
    return tmp_path


def make(project: Path, fails: str, *words: str, goal: str = "weights") -> tuple[int, list[str], str]:
    """-> (status, the commands that Python was given, stderr)."""
    (project / "commands").write_text("")
    assert MAKE is not None
    run = subprocess.run(
        [MAKE, "--directory", str(project), goal, *words],
        env=os.environ | {"FAILS": fails, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
    )
    return run.returncode, (project / "commands").read_text().splitlines(), run.stderr


def test_it_goes_on_at_the_stage_that_was_stopped(project: Path) -> None:
    status, whole, _ = make(project, "no such word", "ESC10=esc10")
    assert status == 0 and len(whole) > 20
    shutil.rmtree(project / "runs")
    status, first, _ = make(project, "recipe=lm_tiny", "ESC10=esc10")
    assert status == 2 and "recipe=lm_tiny" in first[-1] and len(first) < len(whole)
    status, second, _ = make(project, "no such word", "ESC10=esc10")
    assert status == 0 and second[0] == first[-1]
    assert sorted([*first[:-1], *second]) == sorted(whole)
    status, third, _ = make(project, "no such word", "ESC10=esc10")
    assert status == 0 and ["tools/attribution.py" in line for line in third] == [True]


@pytest.mark.parametrize("goal", ["codec_tiny_last", "lafma_tiny_last", "lafma_tiny_student", "sounds"])
def test_each_model_has_what_it_is_made_from(project: Path, goal: str) -> None:
    """Asked for alone, a stage is made after all that it names."""
    status, lines, _ = make(project, "no such word", "ESC10=esc10", goal=f"runs/stages/{goal}")
    assert status == 0

    def at(*words: str) -> int:
        return next(
            (n for n, line in enumerate(lines) if all(word in line.split() for word in words)), len(lines)
        )

    origins = 0
    for number, line in enumerate(lines):
        needs = [
            at("tools/pairs.py", f"runs/{name}") for name in ("pairs", "parts") if f"runs/{name}/" in line
        ]
        if "recipe=lafma_tiny" in line.split():
            needs.append(at("recipe=mel_autoencoder_tiny"))
        if "recipe=lm_tiny" in line.split() or "init_from=codec_tiny" in line.split():
            needs.append(at("tools/bundle.py", "runs/codec_tiny/best"))
        for word in line.split():
            name, _, origin = word.partition("=runs/")
            if name in ("init_from", "student_from"):
                recipe = at("recipe=lafma_tiny") if origin == "lafma_tiny" else at(f"recipe={origin}")
                needs.append(
                    min(recipe, at(f"out=runs/{origin}"), at("tools/bundle.py", origin.split("/")[-1]))
                )
                origins += 1
        assert all(need < number for need in needs), line
    assert origins or goal == "codec_tiny_last"
    if goal in (
        "codec_tiny_last",
        "sounds",
    ):  # the language model is trained on the codec's tokens before it changes
        assert at("recipe=lm_tiny") < at("recipe=codec_tiny_decoder")
    if goal == "sounds":
        assert at("tools/bundle.py", "tagger_tiny") < at("tools/which_sounds.py", "lafma_tiny") < len(lines)


def test_without_the_recordings_it_says_what_to_give(project: Path) -> None:
    status, lines, said = make(project, "no such word")
    assert (status, lines) == (2, [])
    assert "error: make weights ESC10=folder, the folder of manifest.jsonl" in said
