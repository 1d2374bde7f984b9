"""`--report`: a page with every sound of the command, its player and its settings."""

import re
from pathlib import Path

import pytest

from audiogen.errors import run_command
from audiogen.generate.__main__ import main

SHORT = ["--duration", "0.1", "--dtype", "float32"]


def test_the_page_has_every_sound_with_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sounds"
    argv = ["--text", "rain <b>", "--text", "a dog", "--num-samples", "2", "--seed", "1234", "--top-k", "9"]
    argv += [*SHORT, "--out", str(out), "--report"]
    assert run_command(main, argv) == 0
    assert str(out / "report.html") in capsys.readouterr().out.splitlines()
    page = (out / "report.html").read_text()
    assert len(re.findall('<audio [^>]*src="data:audio/ogg', page)) == 4
    assert len(re.findall('<img alt="Spectrogram', page)) == 4
    assert "<h3>rain &lt;b&gt;</h3>" in page and "<h3>a dog</h3>" in page and "rain <b>" not in page
    for path in out.glob("*.wav"):
        assert path.name in page
    assert ">1234</td>" in page and ">1235</td>" in page and "Top k" in page and "Temperature" not in page
    assert "--num-samples 2 --seed 1234" in page and "arrow points" not in page
    assert run_command(main, argv) == 2
    for path in (*out.glob("*.wav"), *out.glob("*.png")):
        path.unlink()
    assert run_command(main, argv) == 2
    assert "report.html exists; choose another --out, or replace with --overwrite" in capsys.readouterr().err


def test_beside_one_sound_the_page_has_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--text", "rain", *SHORT, "--stream", "--report", "--out"]
    assert run_command(main, [*argv, str(tmp_path / "rain.wav")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"rain.wav", "rain.html"}
    assert run_command(main, [*argv, "-"]) == 2
    assert "--report shows sound files, and --out - writes none" in capsys.readouterr().err
