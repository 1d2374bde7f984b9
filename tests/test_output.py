"""`--json` prints one object and nothing else on standard output; `--quiet` prints nothing where nothing is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audiogen import audio, command
from audiogen.__main__ import main
from audiogen.codec.tokens import read_header
from audiogen.errors import run_command

RATE = 16000


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Three tones of 0.3 s, and a file that is no sound."""
    for number in (1, 2, 3):
        tone = torch.sin(torch.arange(RATE * 3 // 10) * 0.1 * number)[None]
        audio.save(tmp_path / "sounds" / f"tone{number}.wav", tone, RATE)
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"RIFF")
    return tmp_path / "sounds"


@pytest.fixture
def result(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def run(*argv: object, status: int = 0) -> Any:
        assert run_command(main, [str(word) for word in argv]) == status
        out, err = capsys.readouterr()
        assert out.count("\n") == 1, (out, err)
        return json.loads(out)

    return run


GENERATE = ("generate", "--text", "rain", "--text", "a dog", "--duration", "0.1", "--dtype", "float32")


def test_generate(tmp_path: Path, result: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    got = result(*GENERATE, "--seed", "7", "--top-k", "9", "--out", tmp_path, "--json")
    assert [sound["text"] for sound in got["sounds"]] == ["rain", "a dog"]
    for sound in got["sounds"]:
        path = Path(sound["path"])
        samples, rate = audio.load(path)
        assert samples.shape[1] == round(sound["duration_s"] * rate) and Path(sound["picture"]).is_file()
        level_db = 10 * torch.log10(samples.square().mean()).item()
        assert sound["level_db"] == pytest.approx(level_db, abs=0.1)  # the file has 16 bits
        assert (sound["seed"], sound["guidance"], sound["top_k"], sound["model"]) == (7, 3.0, 9, "lm_tiny")
        assert "temperature" not in sound
    assert got["sound_s"] == pytest.approx(0.2) and got["spent_s"] > 0
    assert got["models"][0]["sample_rate"] == RATE
    assert run_command(main, [*GENERATE, "--out", str(tmp_path), "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert run_command(main, [*GENERATE[:3], "--stream", "--out", "-", "--json"]) == 2
    assert "drop one of the two" in capsys.readouterr().err


def test_generate_streamed(tmp_path: Path, result: Callable[..., Any]) -> None:
    got = result(*GENERATE[:3], "--duration", "0.1", "--stream", "--out", tmp_path / "a.wav", "--json")
    (sound,) = got["sounds"]
    assert sound["path"] == str(tmp_path / "a.wav") and sound["duration_s"] == 0.1 and sound["first_s"] > 0


@pytest.mark.parametrize("workers", [1, 2])
def test_encode_and_decode(sounds: Path, tmp_path: Path, result: Callable[..., Any], workers: int) -> None:
    encode = ("codec", "encode", sounds, "-o", tmp_path / "tokens", "--json", "--workers", workers)
    got = result(*encode, status=2)
    assert (got["encoded"], got["kept"], len(got["failed"])) == (3, 0, 1)
    assert "broken.wav" in next(iter(got["failed"].values()))
    assert got["sound_s"] == pytest.approx(0.9) and got["out"] == str(tmp_path / "tokens")
    assert read_header(tmp_path / "tokens" / "tone1.agtok").num_samples == RATE * 3 // 10
    if workers == 1:
        assert result(*encode, status=2)["kept"] == 3
    assert result("codec", "decode", tmp_path / "tokens", "-o", tmp_path / "back", "--json")["decoded"] == 3


def test_evaluate(sounds: Path, tmp_path: Path, result: Callable[..., Any]) -> None:
    (sounds / "broken.wav").unlink()
    evaluate = ("evaluate", "files", "--reference", sounds, "--generated", sounds, "--out", tmp_path / "out")
    got = result(*evaluate, "--json")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert got == {"out": str(tmp_path / "out"), "failures": {}, **report}


class Terminal:
    """What tqdm asks of a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


@pytest.mark.parametrize("quiet", [False, True])
def test_bars_are_drawn_on_terminals_unless_quiet(quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from tqdm import tqdm

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with command.output(False, quiet):
        list(tqdm(range(3), "counting", disable=None))
    assert ("counting" in terminal.text) is not quiet
