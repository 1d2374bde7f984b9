"""What `audiogen.info` says of bundled models, of models without a record, and of what is no generator."""

import json
import shutil
from pathlib import Path

import pytest

from audiogen.errors import run_command
from audiogen.info import describe
from audiogen.info.__main__ import main
from audiogen.models.find import weights_folder


def test_the_bundled_models_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, []) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    for text, name, family in ((first, "lafma_tiny", "latent flow"), (second, "lm_tiny", "token LM")):
        lines = dict(line.split(": ", 1) for line in text.splitlines())
        assert lines["model"] == name and lines["family"].startswith(family)
        assert lines["sound"].startswith("16000 Hz, 1 channel, up to")
        assert not any(key.endswith("_q0") for key in lines)
        assert {"barks", "rain"} <= set(lines["words"].partition(": ")[2].split())
        assert " kinds, by tagger_tiny: " in lines["makes"]


def test_what_it_makes_is_what_was_counted(tmp_path: Path) -> None:
    counts = {"bell": 3, "cat": 2, "gong": 1, "owl": 0}
    path = tmp_path / "sounds.json"
    path.write_text(json.dumps({"judge": "a_tagger", "takes": 3, "recognised": counts}))
    assert describe.sounds(path) == {
        "makes": "2 of 4 kinds, by a_tagger: bell, cat",
        "seldom makes": "gong, owl",
    }


def test_a_model_of_which_nothing_was_counted_has_no_such_lines(tmp_path: Path) -> None:
    model = shutil.copytree(weights_folder() / "lm_tiny", tmp_path / "model")
    (model / describe.SOUNDS).unlink()
    lines = describe.describe(str(model))
    assert lines["directory"] == str(model) and "words" in lines and "makes" not in lines


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("codec_tiny", "codec_tiny is a codec; python -m audiogen.codec info codec_tiny describes it"),
        ("tagger_tiny", "tagger_tiny holds a tagger"),
        ("nosuch", "nosuch"),
    ],
)
def test_what_is_no_generator_is_said_in_a_line(
    name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(main, [name]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
