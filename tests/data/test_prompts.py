"""Prompt files: three formats, one meaning, and the line of what is wrong."""

from pathlib import Path

import pytest

from audiogen.data.prompts import Prompt, read_prompts
from audiogen.errors import InputError


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def test_the_formats_say_the_same(tmp_path: Path) -> None:
    plain = written(tmp_path, "a.txt", "a dog barks\r\n\n  rain, then a 🐶 \n")
    table = written(tmp_path, "a.csv", '\ufefftext, seed\na dog barks,\n\n"rain, then a 🐶",\n')
    lines = written(
        tmp_path, "a.jsonl", '{"caption": "a dog barks", "seed": null}\n\n{"prompt": "rain, then a 🐶"}'
    )
    expected = [Prompt("a dog barks"), Prompt("rain, then a 🐶")]
    assert read_prompts(plain) == read_prompts(table) == read_prompts(lines) == expected


def test_duration_and_seed_of_a_line(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", "seed,text,duration\n7,a dog barks,2.5\n,rain,\n")
    lines = written(
        tmp_path, "a.jsonl", '{"text": "a dog barks", "seed": 7, "duration": 2.5}\n{"text": "rain"}\n'
    )
    assert read_prompts(table) == read_prompts(lines) == [Prompt("a dog barks", 2.5, 7), Prompt("rain")]


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_tables_by_whatever_parts_their_columns(tmp_path: Path, name: str, mark: str) -> None:
    rows = [
        ["Name", "caption", "guidance", "negative", "model", "duration", "seed"],
        ["bark", '"a dog; it barks, twice"', "2.5", "rain", "runs/mine", "1.5", "7"],
        ["", "rain", "", "", "", "", ""],
    ]
    table = written(tmp_path, name, "\r\n".join(mark.join(row) for row in rows))
    keys = ("text", "duration_s", "seed", "guidance", "negative", "model", "name")
    full = dict(zip(keys, ("a dog; it barks, twice", 1.5, 7, 2.5, "rain", "runs/mine", "bark"), strict=True))
    lines = written(
        tmp_path,
        "a.jsonl",
        '{"name": "bark", "text": "a dog; it barks, twice", "guidance": 2.5, "negative": "rain", "model": "runs/mine", '
        '"duration": 1.5, "seed": 7}\n{"text": "rain"}',
    )
    assert read_prompts(table) == read_prompts(lines) == [Prompt(**full), Prompt("rain")]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "\n \n", "holds no prompts"),
        ("a.csv", "", "a.csv:1: columns none; expected one of text, prompt, caption"),
        ("a.csv", "audio,words\na.wav,rain\n", "columns audio, words; expected one of text, prompt"),
        ("a.csv", "text\nrain\nrain, then wind\n", "a.csv:3: has not 1 columns; quote texts"),
        ("a.csv", 'text\n"rain', "is not CSV"),
        ("a.csv", "text,seed\nrain,x\n", "a.csv:2: has seed 'x', expected a whole number"),
        ("a.csv", "text,seed\n,3\n", "a.csv:2: no text"),
        ("a.jsonl", '{"text": "rain"}\n{"text": \n', "a.jsonl:2: is not JSON"),
        ("a.jsonl", '["rain"]\n', "a.jsonl:1: is list, expected an object with the key text"),
        ("a.jsonl", '{"text": "rain"}\n\n{"text": " "}\n', "a.jsonl:3: no text"),
        ("a.jsonl", '{"text": 5}\n', "a.jsonl:1: no text"),
        (
            "a.jsonl",
            '{"text": "rain", "duration": -1}\n',
            "a.jsonl:1: has duration -1, expected a positive number",
        ),
        (
            "a.jsonl",
            '{"text": "rain", "duration": Infinity}\n',
            "a.jsonl:1: has duration inf, expected a positive number",
        ),
        ("a.jsonl", '{"text": "rain", "seed": 1.5}\n', "a.jsonl:1: has seed 1.5, expected a whole number"),
        ("a.json", "[]", "read from .txt, .csv, .tsv, .jsonl files"),
        ("a.csv", "text,sed\nrain,\nwind,\n", "a.csv:1: has 'sed', which is not read; did you mean 'seed'"),
        ("a.csv", "text,seed,\nrain,3,\nwind,4,x\n", "a.csv:3: has '', which is not read"),
        ("a.csv", "text;seeds\nrain;3\n", "a.csv:1: has 'seeds', which is not read; did you mean 'seed'"),
        ("a.csv", "text;seed\nrain;3;4\n", "a.csv:2: has not 2 columns; quote texts that hold semicolons"),
        ("a.jsonl", '{"text": "rain", "length": 3}', "a.jsonl:1: has 'length', which is not read; "),
        (
            "a.jsonl",
            '{"text": "rain", "guidance": "much"}',
            "a.jsonl:1: has guidance 'much', expected a number",
        ),
        ("a.jsonl", '{"text": "rain", "guidance": NaN}', "has guidance nan, expected a number"),
        ("a.jsonl", '{"text": "rain", "negative": 3}', "has negative 3, expected words"),
        ("a.jsonl", '{"text": "rain", "model": " "}', "has model ' ', expected words"),
        ("a.jsonl", '{"text": "rain", "seed": -1}', "has seed -1; it must be from 0"),
        ("a.csv", "text,name\nrain,../a\n", "a.csv:2: has name '../a'; a file's name has"),
        ("a.csv", "text,name\nrain,.a\n", "has name '.a'"),
        ("a.csv", f"text,name\nrain,{'é' * 101}\n", "at most 200 bytes"),
        ("a.jsonl", '{"text": "rain \\ud800"}', "a.jsonl:1: the text .* which is no text"),
        ("a.csv", "text\nra\0in\n", "a.csv:2: "),
        ("a.txt", "rain\0\n", "a.txt:1: the text .* which is no text"),
        ("a.txt", "rain " * 200_000, "a.txt:1: .*1000000 characters|a.txt:1: .*999999 characters"),
        ("a.csv", "text\n" + "rain " * 200_000, "a.csv:2: is not CSV .field larger"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_prompts(written(tmp_path, name, content))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        read_prompts(tmp_path / "b.txt")
