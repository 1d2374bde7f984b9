"""What `audiogen.info` says of bundled models, of models without a record, and of what is no generator."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from audiogen import __main__ as audiogen_main
from audiogen.errors import run_command
from audiogen.files import hub
from audiogen.info import describe
from audiogen.info.__main__ import main
from audiogen.models import listing
from audiogen.models.find import bundled, weights_folder
from tests.files import test_hub_faults as fake
from tests.files.test_hub_faults import server as server  # a fixture
from tools import random_release


def test_the_bundled_models_say_what_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(main, ["--words"]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    for text, name, family in ((first, "lafma_tiny", "latent flow"), (second, "lm_tiny", "token LM")):
        lines = dict(line.split(": ", 1) for line in text.splitlines())
        assert lines["model"] == name and lines["family"].startswith(family)
        assert lines["sound"].startswith("16000 Hz, 1 channel, up to") and lines["licence"] == "mit"
        assert ("--stream" in lines["own options"]) is (family == "token LM")
        assert not any(key.endswith("_q0") for key in lines)
        assert {"barks", "rain"} <= set(lines["words"].partition(": ")[2].split())
        assert " kinds, by tagger_tiny: " in lines["makes"]
        assert list(lines)[:3] == ["model", "makes", "seldom makes"]
    assert run_command(main, ["lm_tiny"]) == 0
    assert "\nwords: 301: --words lists them\n" in capsys.readouterr().out


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
    (model / "model.safetensors").write_bytes(b"")  # weights are not read
    lines = describe.describe(str(model))
    assert lines["directory"] == str(model) and "words" in lines and "makes" not in lines


def test_a_release_is_described_by_its_settings(tmp_path: Path) -> None:
    random_release.build(tmp_path / "release", random_release.SIZES["tiny"])
    lines = describe.describe(str(tmp_path / "release"))
    assert lines["family"] == "token LM" and lines["generates"] == "50 Hz x 4"
    assert (
        lines["sizes"].endswith("text encoder google-t5/t5-small")
        and "layout of audiocraft" in lines["on disk"]
    )
    assert lines["licence"] == "not stated in its files" and "words" not in lines


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


def test_the_card_is_printed_on_demand_and_json_has_the_same_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(main, ["lm_tiny", "--card"]) == 0
    text = capsys.readouterr().out
    assert (weights_folder() / "lm_tiny" / "README.md").read_text() in text
    assert run_command(main, ["lm_tiny", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert all(f"{key}: {value}\n" in text for key, value in model.items())


MUSICGEN = {"model_type": "musicgen", "audio_encoder": {"sampling_rate": 32000}}


def test_of_a_model_on_the_hub_the_settings_alone_are_downloaded(
    server: fake.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
        "config.json": json.dumps(MUSICGEN).encode(),
        "model.safetensors": b"weights",
    }
    monkeypatch.setattr(fake, "FILES", files)
    lines = describe.describe("org/name")
    assert lines["family"] == "token LM" and lines["sound"] == "32000 Hz"
    assert lines["licence"] == "cc-by-nc-4.0" and lines["on disk"].startswith("settings alone")
    assert {name for what, name, _ in server.asked if what == "get"} == {"README.md", "config.json"}
    assert "org/name" not in {model.name for model in listing.models()}, "no whole model"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert run_command(main, ["org/name"]) == 2


def test_models_are_those_of_the_package_and_of_the_cache(
    server: fake.Hub, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = Path(hub.constants.HF_HUB_CACHE)
    for name, revision, commit in (("org--tiny", "main", "a" * 40), ("org--tiny", "refs/pr/1", "b" * 40)):
        folder = cache / f"models--{name}"
        shutil.copytree(tiny_model, folder / "snapshots" / commit)
        (folder / "refs" / revision).parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs" / revision).write_text(commit)
    (cache / "models--bert" / "refs").mkdir(parents=True)
    (cache / "models--org--bert" / "snapshots" / "c").mkdir(parents=True)
    (cache / "models--org--bert" / "snapshots" / "c" / "config.json").write_text('{"model_type": "bert"}')
    (cache / "models--org--bert" / "refs").mkdir()
    (cache / "models--org--bert" / "refs" / "main").write_text("c")
    assert run_command(audiogen_main.main, ["models", "--json"]) == 0
    found = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert list(found) == [*bundled(), "org/tiny", "org/tiny@refs/pr/1"]
    assert (found["lm_tiny"]["family"], found["lm_tiny"]["sample_rate"]) == ("token LM", 16000)
    assert found["lafma_tiny"]["family"] == "latent flow" and found["codec_tiny"]["licence"] == "mit"
    size = sum(path.stat().st_size for path in tiny_model.rglob("*") if path.is_file())
    rate = json.loads((tiny_model / "codec" / "config.json").read_text())["config"]["sample_rate"]
    assert (found["org/tiny"]["size"], found["org/tiny"]["sample_rate"]) == (size, rate)
    assert run_command(audiogen_main.main, ["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("name") and len(lines) == len(found) + 1


def test_a_language_model_is_described_without_diffusers() -> None:
    code = (
        "from audiogen.__main__ import main; main(['info', 'lm_tiny']); import sys; "
        "assert not {'diffusers', 'torch._dynamo', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_models_are_listed_without_torch() -> None:
    code = (
        "from audiogen.__main__ import main; main(['models']); import sys; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
