"""Loudness and shape by the command: what is in the file, settings of each row, and what is refused before any work."""

import json
from pathlib import Path

import pyloudnorm
import pytest
import soundfile
import torch

from audiogen import audio
from audiogen.data.prompts import read_prompts
from audiogen.errors import InputError, run_command
from audiogen.generate.__main__ import main
from audiogen.generate.options import ROW_OPTIONS


@pytest.fixture
def run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Run the command in an empty folder with the tiny model -> (status, stdout, lines of stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, list[str]]:
        common = ["--model", str(tiny_model), "--device", "cpu", "--duration", "0.5", "--overwrite"]
        status = run_command(main, [*common, *words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return command


def test_a_file_has_the_loudness_the_rate_and_the_width_that_were_asked_for(run) -> None:
    words = (
        "--text rain --loudness -20 --fade-out 0.05 --stereo-width 0.4 --sample-rate 48000 --json --out a.wav"
    )
    status, out, err = run(*words.split())
    assert status == 0 and not any("error" in line for line in err)
    samples, rate = soundfile.read("a.wav", always_2d=True)
    assert (rate, samples.shape) == (48_000, (24_000, 2))
    assert abs(pyloudnorm.Meter(rate).integrated_loudness(samples) + 20) < 0.2
    assert abs(samples).max() < 10 ** (-1 / 20) and abs(samples[-1]).max() < 1e-3
    (fact,) = json.loads(out)["sounds"]
    assert abs(fact["loudness"] + 20) < 0.1 and fact["sample_rate"] == 48_000 and fact["duration_s"] == 0.5
    assert Path("a.png").is_file()
    assert run("--text", "rain", "--out", "plain.wav")[0] == 0
    plain, _ = audio.load("plain.wav", 48_000)
    mono = audio.convert_channels(audio.load("a.wav")[0], 1)[:, :20_000]
    likeness = torch.corrcoef(torch.cat([plain[:, :20_000], mono]))[0, 1]
    assert likeness > 0.999  # one sound, at two levels


def test_each_row_has_settings_of_its_own(run) -> None:
    rows = [
        {"text": "rain", "loudness": -30, "name": "a", "trim_silence": False},
        {"text": "rain", "name": "b", "sample_rate": 16000, "fade_in": 0.4},
        {"text": "rain", "name": "c", "temperature": 0.5, "in_order": "no"},
    ]
    Path("p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [",".join(str(row.get(key, "")) for key in columns) for row in rows]
    Path("p.csv").write_text("\n".join([",".join(columns), *lines]) + "\n")
    assert read_prompts(Path("p.csv"), ROW_OPTIONS) == read_prompts(Path("p.jsonl"), ROW_OPTIONS)
    assert run("--prompts", "p.csv", "--out", "table", "--loudness", "-25")[0] == 0
    alone = {
        "a": "--loudness -30",
        "b": "--loudness -25 --sample-rate 16000 --fade-in 0.4",
        "c": "--loudness -25 --temperature 0.5 --in-order no",
    }
    for name, words in alone.items():
        assert run("--text", "rain", "--out", f"{name}.wav", *words.split())[0] == 0
        assert Path(f"{name}.wav").read_bytes() == Path(f"table/{name}.wav").read_bytes()


def test_a_loudness_that_is_not_reached_is_a_warning_that_names_the_file(run, monkeypatch) -> None:
    monkeypatch.setattr("audiogen.finish.MOST_ROUNDS", 1)
    status, _, err = run("--text", "rain", "--loudness", "-5", "--peak", "-20", "--out", "a.wav")
    assert status == 0
    assert any(line.startswith("warning: a.wav: ") and "LUFS in place of -5" in line for line in err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--loudness 3", "--loudness is 3.0; it must be from -70 to -5 LUFS"),
        ("--stereo-width 2", "--stereo-width is 2.0"),
        ("--fade-in 0.3 --fade-out 0.3", "take 0.6 s together, and the sound has 0.5 s; give shorter fades"),
        ("--sample-rate 44000 --format mp3", "mp3 has no sample rate 44000 Hz; allowed are 8000, 11025"),
        ("--loudness -23 --stream", "--loudness is for whole sounds, and --stream writes one piece by piece"),
        ("--trim-silence --stream --out -", "--trim-silence is for whole sounds"),
    ],
)
def test_what_cannot_be_costs_a_line_and_leaves_nothing(run, words: str, message: str) -> None:
    status, out, err = run("--text", "rain", *words.split())
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and message in err[0]
    assert list(Path().rglob("*.*")) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loudness": "loud"}, "p.jsonl:2: has loudness 'loud', expected a number"),
        ({"loudness": 9}, "p.jsonl:2: --loudness is 9.0; it must be from -70 to -5 LUFS"),
        ({"trim_silence": "maybe"}, "p.jsonl:2: has trim_silence 'maybe', expected yes or no"),
        ({"steps": 2.5}, "p.jsonl:2: has steps 2.5, expected a whole number"),
        ({"in_order": "perhaps"}, "p.jsonl:2: has in_order 'perhaps', expected yes or no"),
        ({"lowdness": -23}, "p.jsonl:2: has 'lowdness', which is not read; did you mean 'loudness'"),
        ({"steps": 8}, "--steps is not for "),
    ],
)
def test_a_row_that_cannot_be_is_named(run, fields: dict[str, object], message: str) -> None:
    Path("p.jsonl").write_text('{"text": "a"}\n' + json.dumps({"text": "b", **fields}))
    status, _, err = run("--prompts", "p.jsonl", "--out", "o")
    assert (status, len(err)) == (2, 1) and message in err[0] and not Path("o").exists()


def test_one_row_with_a_shape_is_not_streamed(run) -> None:
    Path("p.jsonl").write_text('{"text": "a", "fade_in": 0.1}')
    status, _, err = run("--prompts", "p.jsonl", "--stream", "--out", "a.wav")
    assert status == 2 and "--fade-in is for whole sounds" in err[0]


def test_fields_of_options_are_refused_where_they_are_not_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"text": "a", "loudness": -23}')
    with pytest.raises(InputError, match="has 'loudness', which is not read"):
        read_prompts(path)
