"""Parts of one encoding, by processes that say nothing to each other: merged they are the shards of one process."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audiogen.codec.parts import Part, choose_part
from audiogen.data.shards import ShardReader, ShardWriter
from audiogen.errors import InputError
from tests.codec.conftest import Run, tree, write_sound

COUNT, BROKEN = 11, 4
Encode = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven sounds, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(COUNT):
        write_sound(folder / f"{number:02d}.wav", 400 * (1 + number % 3), seed=number)
    (folder / f"{BROKEN:02d}.wav").write_bytes(b"no sound")
    return folder


@pytest.fixture
def encode(run: Run, sounds: Path, codec: str, tmp_path: Path) -> Encode:
    """Encodes the sounds to shards of two clips in a folder -> (status, standard error)."""

    def encode(out: str, *options: object, inputs: Path = sounds) -> tuple[int, str]:
        given = ("encode", inputs, "-o", tmp_path / out, "--codec", codec, "--shards", 2, *options)
        status, _, errors = run(*given)
        return status, errors

    return encode


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in tree(folder)}


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_merged_parts_are_the_shards_of_one_process(
    encode: Encode, run: Run, tmp_path: Path, count: int
) -> None:
    assert encode("whole")[0] == 2  # for the broken one
    numbers = list(range(1, count + 1))
    random.Random(0).shuffle(numbers)
    for number in numbers:
        status, errors = encode("parts", "--part", f"{number}/{count}")
        assert status == 2 * (f"{BROKEN:02d}.wav" in errors)
    assert not (tmp_path / "parts" / "index.json").exists()
    status, out, errors = run("merge", tmp_path / "parts")
    assert (
        status == 0 and "10 clips in shards; 1 could not be encoded" in out and f"{BROKEN:02d}.wav" in errors
    )
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert len(ShardReader(tmp_path / "parts")) == COUNT - 1


def test_a_part_that_was_killed_goes_on_and_more_sounds_are_merged_to_the_others(
    encode: Encode,
    run: Run,
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = tmp_path / "first"
    shutil.copytree(sounds, first)
    (first / f"{BROKEN:02d}.wav").unlink()
    encode("parts", "--part", "1/2", inputs=first)
    index = tmp_path / "parts" / "part-1-of-2" / "index.json"
    whole = json.loads(index.read_text())
    index.write_text(json.dumps(whole | {"shards": whole["shards"][:1]}))  # killed in its second shard
    assert "missing: 2" in run("merge", tmp_path / "parts")[2]
    assert encode("parts", "--part", "2/2", inputs=first)[0] == 0
    status, _, errors = run("merge", tmp_path / "parts")
    assert status == 2 and "is not finished (2 of 6 clips)" in errors
    assert encode("parts", "--part", "1/2", inputs=first)[0] == 0
    assert json.loads(index.read_text()) == whole

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "_write_index", killed)
        assert run("merge", tmp_path / "parts")[0] == 130
    assert run("merge", tmp_path / "parts")[0] == 0
    encode("whole", inputs=first)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert "holds no parts" in run("merge", tmp_path / "parts")[2]
    write_sound(first / "more.wav", 400, seed=99)
    for number in (1, 2, 3):
        assert encode("parts", "--part", f"{number}/3", inputs=first)[0] == 0
    assert run("merge", tmp_path / "parts")[0] == 0
    encode("whole", inputs=first)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")


def test_parts_that_are_not_of_one_whole(encode: Encode, run: Run, sounds: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(sounds, fewer)
    (fewer / f"{BROKEN:02d}.wav").unlink()
    encode("parts", "--part", "1/2")
    encode("parts", "--part", "2/2", inputs=fewer)
    assert "not parts of the same sounds" in run("merge", tmp_path / "parts")[2]
    assert "begun as a part of other sounds" in encode("parts", "--part", "1/2", inputs=fewer)[1]
    encode("parts", "--part", "3/3")
    assert "parts of 2 and 3" in run("merge", tmp_path / "parts")[2]
    shutil.rmtree(tmp_path / "parts")
    encode("parts", "--part", "1/2")
    encode("parts", "--part", "2/2", "--bandwidth", "0.6")
    assert "holds tokens of" in run("merge", tmp_path / "parts")[2]


def test_processes_of_one_machine(encode: Encode, run: Run, codec: str, sounds: Path, tmp_path: Path) -> None:
    encode("whole")
    status, errors = encode("parts", "--workers", 2)
    assert status == 2 and "1 clips could not be encoded" in errors and f"{BROKEN:02d}.wav" in errors
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    files = ("encode", sounds, "--codec", codec)
    run(*files, "-o", tmp_path / "one")
    assert run(*files, "-o", tmp_path / "two", "--workers", 2)[0] == 2
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    status, _, errors = run(
        "encode", tmp_path / "nosuch", "-o", tmp_path / "x", "--workers", 2, "--shards", 2
    )
    assert status == 2 and "no such file or folder" in errors.splitlines()[-1]
    assert "drop it, or --part" in encode("x", "--workers", 2, "--part", "1/2")[1]


def test_which_part_it_is() -> None:
    assert choose_part(None, {}) is None and choose_part(None, {"WORLD_SIZE": "1", "RANK": "0"}) is None
    assert choose_part("2/8", {"WORLD_SIZE": "4", "RANK": "0"}) == Part(2, 8)
    assert choose_part(None, {"WORLD_SIZE": "4", "RANK": "0"}) == Part(1, 4)
    array = {"SLURM_ARRAY_TASK_COUNT": "5", "SLURM_ARRAY_TASK_ID": "14", "SLURM_ARRAY_TASK_MIN": "10"}
    assert choose_part(None, array) == Part(5, 5)
    for given in ("0/4", "5/4", "1", "a/b", "1/0", "-1/4", ""):
        with pytest.raises(InputError, match="--part is"):
            choose_part(given, {})
    with pytest.raises(InputError, match="name no part"):
        choose_part(None, {"WORLD_SIZE": "4"})
    items = list(range(10))
    assert sorted(item for number in (1, 2, 3) for item in Part(number, 3)(items)) == items
