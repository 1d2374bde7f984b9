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
    table = written(tmp_path, "a.csv", '\ufefftext, note\na dog barks,x\n\n"rain, then a 🐶",\n')
    lines = written(
        tmp_path, "a.jsonl", '{"caption": "a dog barks", "x": 1}\n\n{"prompt": "rain, then a 🐶"}'
    )
    expected = [Prompt("a dog barks"), Prompt("rain, then a 🐶")]
    assert read_prompts(plain) == read_prompts(table) == read_prompts(lines) == expected


def test_duration_and_seed_of_a_line(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", "seed,text,duration\n7,a dog barks,2.5\n,rain,\n")
    lines = written(
        tmp_path, "a.jsonl", '{"text": "a dog barks", "seed": 7, "duration": 2.5}\n{"text": "rain"}\n'
    )
    assert read_prompts(table) == read_prompts(lines) == [Prompt("a dog barks", 2.5, 7), Prompt("rain")]


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
        ("a.json", "[]", "read from .txt, .csv, .jsonl files"),
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
