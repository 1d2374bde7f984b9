"""Models and training states on disk: exact, whole or absent, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from audiogen.errors import InputError
from audiogen.files import checkpoint, writing


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3), "half": torch.ones(2).half()}


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint.save_model(tmp_path / "m", "codec", {"x": [1, 2]}, tensors(), {"step": 7})
    assert checkpoint.read_config(tmp_path / "m", "codec") == {
        "kind": "codec",
        "format": 1,
        "config": {"x": [1, 2]},
        "info": {"step": 7},
    }
    loaded = checkpoint.load_tensors(tmp_path / "m")
    assert equal(dict(sorted(loaded.items())), tensors())
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors"]


def test_others_may_read_a_model_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.save_model(tmp_path / "m", "codec", {}, tensors())
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()} == {0o640}


def test_views_and_tied_weights_are_stored_by_value(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    checkpoint.write_tensors(
        tmp_path / "t.safetensors", {"a": whole[2:4], "b": whole, "c": whole, "d": whole[::2]}
    )
    loaded = checkpoint.read_tensors(tmp_path / "t.safetensors")
    assert equal(
        {key: loaded[key] for key in "abcd"},
        {"a": whole[2:4], "b": whole, "c": whole, "d": whole[::2].clone()},
    )


def test_state_comes_back_with_its_types(tmp_path: Path) -> None:
    state = {
        "optimizer": {"state": {0: {"step": torch.tensor(2.0)}, 1: {}}, "groups": [{"betas": (0.9, 0.95)}]},
        "empty": torch.zeros(0, 3),
        "best": None,
        "values": [1, 2.5, float("inf"), 0.1 + 0.2, True, "x/y", ("tuple",)],
        "a/b": torch.tensor(True),
    }
    checkpoint.save_state(tmp_path / "run" / "s", state)
    assert equal(checkpoint.load_state(tmp_path / "run" / "s"), state)


def test_state_refuses_what_would_need_pickle(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state/a: cannot be stored without pickle: set"):
        checkpoint.save_state(tmp_path / "s", {"a": {1, 2}})


def test_steps_are_listed_and_pruned(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (5, 100, 20):
        checkpoint.save_state(checkpoint.step_dir(tmp_path, step), {"step": step})
    (tmp_path / "checkpoints" / "notes.txt").touch()
    assert [step for step, _ in checkpoint.step_dirs(tmp_path)] == [5, 20, 100]
    checkpoint.prune(tmp_path, step=20, keep_last=1)  # that of step 100 was damaged, and undone
    assert [step for step, _ in checkpoint.step_dirs(tmp_path)] == [20]
    found = checkpoint.latest(tmp_path)
    assert found is not None and checkpoint.load_state(found[1]) == {"step": 20}


def die_while_writing(directory: Path, when: int) -> None:
    """Save a state and be killed at the `when`-th flush to disk, with whatever is on disk then."""
    flushes = iter(range(when + 1))
    fsync = os.fsync

    def killer(descriptor: int) -> None:
        if next(flushes) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = killer  # type: ignore[assignment]
    checkpoint.save_state(directory, {"step": 2, "w": torch.full((1000,), 2.0)})


@pytest.mark.parametrize("when", range(5))
@pytest.mark.parametrize("name", ["step_00000002", "step_00000001"])
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, when: int, name: str
) -> None:
    folder = tmp_path / "checkpoints"
    checkpoint.save_state(folder / "step_00000001", {"step": 1, "w": torch.full((1000,), 1.0)})
    process = get_context("fork").Process(target=die_while_writing, args=(folder / name, when))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    for _, path in checkpoint.step_dirs(tmp_path):
        state = checkpoint.load_state(path)
        assert torch.equal(state["w"], torch.full((1000,), float(state["step"])))
    assert checkpoint.latest(tmp_path) is not None
    checkpoint.save_state(folder / "step_00000003", {"step": 3})
    assert not [path for path in os.listdir(folder) if not path.startswith("step_")], "leftovers are cleaned"


def full(descriptor: int) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: writing.write_json(path, {"a": 2}),
        lambda path: checkpoint.write_tensors(path, tensors()),
    ],
    ids=["json", "tensors"],
)
def test_a_failed_write_leaves_the_folder_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    writing.write_json(tmp_path / "a.json", {"a": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(writing.StorageError, match="a.json cannot be written: no space"):
        write(tmp_path / "a.json")
    assert os.listdir(tmp_path) == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_nothing_of_what_was_interrupted(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("one", "two"):
        with writing.replacing(path) as temporary:
            temporary.write_text(text)
            assert temporary.name.startswith(writing.TEMPORARY)
        assert (os.listdir(path.parent), path.read_text()) == (["a.txt"], text)
    for contents in ("", "half"):  # before and after the file is made
        with pytest.raises(error), writing.replacing(path) as temporary:
            if contents:
                temporary.write_text(contents)
            raise error
        assert (os.listdir(path.parent), path.read_text()) == (["a.txt"], "two")


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    name = "ä" * 127 + "x"  # 255 bytes
    writing.write_json(tmp_path / name, 1)
    checkpoint.write_tensors(tmp_path / name, tensors())
    assert os.listdir(tmp_path) == [name]
    one, other = (writing.temporary_path(tmp_path / f"{name[:-1]}{end}") for end in "ab")
    assert one != other  # two writers in one folder do not meet


def broken(name: str) -> Callable[[Path], None]:
    return {
        "missing": lambda path: None,
        "file": lambda path: path.write_text("x"),
        "empty": lambda path: path.mkdir(),
        "pickle": lambda path: (path.mkdir(), (path / "pytorch_model.bin").touch()),
        "no config": lambda path: (good(path), (path / "config.json").unlink()),
        "no weights": lambda path: (good(path), (path / "model.safetensors").unlink()),
        "other kind": lambda path: good(path, "token_lm"),
        "not ours": lambda path: (good(path), (path / "config.json").write_text('{"model_type": "t5"}')),
        "cut config": lambda path: (good(path), (path / "config.json").write_text('{"kind": "co')),
        "newer": lambda path: (
            good(path),
            (path / "config.json").write_text('{"kind": 1, "format": 9, "config": 1}'),
        ),
    }[name]  # type: ignore[return-value]


def good(path: Path, kind: str = "codec") -> None:
    checkpoint.save_model(path, kind, {}, tensors())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist"),
        ("file", "is a file; a model is a directory"),
        ("empty", "not a model directory or was half-written: model.safetensors is missing"),
        ("pickle", r"holds a pickle \(pytorch_model.bin\)"),
        ("no config", "config.json is missing"),
        ("no weights", "model.safetensors is missing"),
        ("other kind", "holds a model of kind 'token_lm'; 'codec' is needed here"),
        ("not ours", "is not audiogen's"),
        ("cut config", r"config\.json cannot be read"),
        ("newer", "has format 9; this version reads 1"),
    ],
)
def test_what_is_wrong_with_a_directory_is_said(tmp_path: Path, name: str, message: str) -> None:
    path = tmp_path / "model"
    broken(name)(path)
    with pytest.raises(InputError, match=message) as caught:
        checkpoint.read_config(path, "codec")
    assert str(path) in str(caught.value)


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    good(tmp_path / "m")
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or half-written"):
        checkpoint.load_tensors(tmp_path / "m")


def test_weights_that_do_not_fit_are_named() -> None:
    module = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False), "b": nn.Linear(1, 1, bias=False)})
    with pytest.raises(
        InputError, match=r"a.weight is \[2, 2\], should make \[2, 3\]; missing b.weight; unexpected c"
    ):
        checkpoint.load_into(module, {"a.weight": torch.zeros(2, 2), "c": torch.zeros(1)}, "m")
    fits = {"a.weight": torch.ones(2, 3), "b.weight": torch.ones(1, 1)}
    checkpoint.load_into(module, fits, "m")
    assert equal(dict(module.state_dict()), fits)


# ------------------------------------------------------------------------------------------ files of tensors


def test_tensors_of_several_files_are_found_by_their_index(tmp_path: Path) -> None:
    first, second = {"a": torch.arange(3.0), "b": torch.ones(2, 2)}, {"c": torch.tensor(5)}
    checkpoint.write_tensors(tmp_path / "m-1.safetensors", first)
    checkpoint.write_tensors(tmp_path / "m-2.safetensors", second)
    index = tmp_path / "m.safetensors.index.json"
    places = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
    writing.write_json(index, {"metadata": {}, "weight_map": places})
    assert equal(checkpoint.read_weights(index), {**first, **second})
    assert equal(checkpoint.read_weights(tmp_path / "m-2.safetensors"), second)
    for wrong, message in {
        "m-1.safetensors": "m-1.safetensors lacks c, which m.safetensors.index.json says is there",
        "m-3.safetensors": "m-3.safetensors does not exist",
        "../m-2.safetensors": "is not an index",
    }.items():
        writing.write_json(index, {"weight_map": {**places, "c": wrong}})
        with pytest.raises(InputError, match=message):
            checkpoint.read_weights(index)
    writing.write_json(index, {"a": 1})
    with pytest.raises(InputError, match="is not an index"):
        checkpoint.read_weights(index)


def test_identity_changes_with_every_difference() -> None:
    base = checkpoint.identity(tensors())
    assert len(base) == 16 and base == checkpoint.identity(dict(reversed(tensors().items())))
    others = [
        {**tensors(), "count": torch.tensor(4)},
        {**tensors(), "count": torch.tensor(3, dtype=torch.int32)},
        {**tensors(), "a.weight": torch.arange(6.0).view(3, 2)},
        {("count2" if key == "count" else key): value for key, value in tensors().items()},
    ]
    assert len({base, *map(checkpoint.identity, others)}) == 5


@pytest.mark.parametrize("structure", ['{"dict": 3}', '{"tensor": "/nosuch"}', "{}", '{"dict": [["a"]]}'])
def test_a_state_whose_files_do_not_fit_is_named(tmp_path: Path, structure: str) -> None:
    checkpoint.save_state(tmp_path / "x", {"a": torch.ones(2)})
    (tmp_path / "x" / checkpoint.CHECKSUMS).unlink()
    (tmp_path / "x" / "state.json").write_text(structure)
    with pytest.raises(InputError, match="x is damaged: state.json and state.safetensors do not fit"):
        checkpoint.load_state(tmp_path / "x")
