"""Files of torch.save as data: nothing in them runs, nothing that was changed goes unnoticed, nothing is copied."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from audiogen.errors import InputError
from audiogen.files.pickles import named_tensors, read_pickle

STATE = {"a.weight": torch.arange(21.0).reshape(7, 3), "b": torch.arange(5).half()}
RELEASE = {
    "best_state": STATE,
    "xp.cfg": "lr: 1\n",
    "version": "1.0",
    "exported": True,
    "more": [1, (2.5, None)],
}


def save(path: Path, contents: Any, zipped: bool = True) -> Path:
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    return path


def refusal(path: Path) -> str:
    """The one line that says why a file is not read."""
    with pytest.raises(InputError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.isprintable()
    return message.removeprefix(str(path))


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_contents_come_back(tmp_path: Path, zipped: bool) -> None:
    read = read_pickle(save(tmp_path / "a.bin", RELEASE, zipped))
    assert read.keys() == RELEASE.keys() and read["more"] == RELEASE["more"] and read["xp.cfg"] == "lr: 1\n"
    for name, tensor in STATE.items():
        assert (
            torch.equal(read["best_state"][name], tensor) and read["best_state"][name].dtype == tensor.dtype
        )


def test_views_ties_and_parameters_come_back(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    contents = OrderedDict(
        whole=whole, row=whole[1], turned=whole.T, own=nn.Parameter(whole[:, 1]), none=whole[:0]
    )
    read = read_pickle(save(tmp_path / "a.th", contents))
    assert list(read) == list(contents)
    assert all(torch.equal(read[name], contents[name]) for name in contents)
    assert read["row"].data_ptr() == read["whole"].data_ptr() + 4 * 4


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.bin", RELEASE)
    tensor = read_pickle(path)["best_state"]["a.weight"]
    tensor += 1.0  # a private page: the file stays as it is
    assert torch.equal(read_pickle(path)["best_state"]["a.weight"], STATE["a.weight"])
    if os.path.exists("/proc/self/maps"):
        assert str(path) in Path("/proc/self/maps").read_text()


class Code:
    def __reduce__(self) -> Any:
        return os.system, ("echo this ran",)


class Own: ...


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Code(), "posix.system"),
        (argparse.Namespace(lr=1), "argparse.Namespace"),
        (nn.Linear(2, 3), "torch.nn.modules.linear.Linear"),
        (Own(), f"{__name__}.Own"),
        (Path("x"), "pathlib"),
        (bytearray(b"x"), "best_state.0 asks for builtins.bytearray"),
        (torch.eye(3).to_sparse(), "best_state.0 is no plain tensor (torch.sparse_coo, cpu)"),
        (torch.empty(3, device="meta"), "best_state.0 is no plain tensor (torch.strided, meta)"),
    ],
)
def test_what_asks_for_more_than_data_is_refused_by_name(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], value: Any, name: str, zipped: bool
) -> None:
    message = refusal(save(tmp_path / "a.pt", {"best_state": [value]}, zipped))
    assert name in message
    assert name.startswith("best") or "asks for" in message
    assert "this ran" not in capfd.readouterr().out


def test_what_else_may_be_named_is_the_callers_choice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"args": argparse.Namespace(lr=1)})
    before = set(torch.serialization.get_safe_globals())
    assert read_pickle(path, also=[argparse.Namespace])["args"].lr == 1
    assert set(torch.serialization.get_safe_globals()) == before
    assert "argparse.Namespace" in refusal(path)


def data_at(path: Path, record: str) -> int:
    """Where the bytes of a zip file's record begin."""
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo(record).header_offset
    header = path.read_bytes()[offset : offset + 30]
    return offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


@pytest.mark.parametrize(("record", "name"), [("0", "best_state.a.weight"), ("1", "best_state.b")])
def test_one_flipped_bit_of_a_weight_is_found_and_its_tensor_named(
    tmp_path: Path, record: str, name: str
) -> None:
    path = save(tmp_path / "a.bin", RELEASE)
    data = bytearray(path.read_bytes())
    data[data_at(path, f"a/data/{record}") + 3] ^= 1
    path.write_bytes(data)
    assert refusal(path) == f" is damaged: {name} is not what was written; download it again"


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused(tmp_path: Path, zipped: bool) -> None:
    path = save(tmp_path / "whole.bin", RELEASE, zipped)
    data = path.read_bytes()
    for length in range(0, len(data), 41):
        cut = tmp_path / "cut.bin"
        cut.write_bytes(data[:length])
        # without checksums, a name that was cut short is an unknown one
        assert "damaged" in refusal(cut) or not zipped, length


def test_no_flipped_bit_of_a_zip_file_gives_other_contents(tmp_path: Path) -> None:
    data = save(tmp_path / "whole.bin", RELEASE).read_bytes()
    path = tmp_path / "flipped.bin"
    refused = 0
    for position in range(0, len(data), 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
        try:
            assert str(read_pickle(path)) == str(RELEASE), position  # padding, dates
        except InputError:
            refused += 1
    assert refused > len(data) / 3 / 4


def test_a_pickle_of_another_protocol_warns_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw.bin").write_bytes(pickle.dumps({"a": 1}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InputError, match="is damaged or no file of torch.save; download it again"):
            read_pickle(tmp_path / "raw.bin")


def test_files_that_are_something_else_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:1\n")
    with zipfile.ZipFile(tmp_path / "other.bin", "w") as archive:
        archive.writestr("readme", "no weights")
    with zipfile.ZipFile(save(tmp_path / "a.bin", STATE)) as source:
        with zipfile.ZipFile(tmp_path / "packed.bin", "w", zipfile.ZIP_DEFLATED) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
    for name, part in {
        "none.bin": "is not there",
        ".": "is a directory",
        "text.bin": "no file of torch.save",
        "other.bin": "no file of torch.save",
        "packed.bin": "is a compressed zip file",
    }.items():
        path = tmp_path / name
        with pytest.raises(InputError, match=part) as caught:
            read_pickle(path)
        assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = save(tmp_path / "a.bin", RELEASE)
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_pickle(path)["best_state"]["a.weight"], STATE["a.weight"])


def test_deep_and_self_referring_contents_end(tmp_path: Path) -> None:
    many: list[Any] = [torch.ones(1)]
    for _ in range(60):  # 2^60 paths to one tensor
        many = [many, many]
    assert len(read_pickle(save(tmp_path / "many.bin", many))) == 2
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    assert list(read_pickle(save(tmp_path / "loop.bin", loop))) == ["loop"]


@pytest.mark.parametrize(
    ("contents", "part"), [([1], "holds a list"), ({"a": 3}, "'a' is a int"), ({3: torch.ones(1)}, "3 is a")]
)
def test_a_state_dict_is_names_with_tensors(tmp_path: Path, contents: Any, part: str) -> None:
    with pytest.raises(InputError, match=part):
        named_tensors(read_pickle(save(tmp_path / "a.bin", contents)), "a.bin")
