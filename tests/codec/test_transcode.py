"""What identifies a sound that is encoded, and saving while the next ones are."""

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from tqdm import tqdm

from audiogen.codec import report, transcode
from audiogen.codec.tokens import TokenHeader
from audiogen.codec.transcode import Clip, Sound
from audiogen.files.writing import StorageError


def test_a_file_is_read_once_for_the_checksums_of_all_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(bytes(1000))
    parts = [Sound(str(start), Path("a"), path, float(start), 1.0) for start in range(5)]
    whole = Sound("a", Path("a"), path)
    before = transcode._file_checksum.cache_info().misses
    sums = {part.checksum() for part in (*parts, whole)}
    assert len(sums) == 6 and transcode._file_checksum.cache_info().misses == before + 1
    path.write_bytes(b"1" * 1000)
    os.utime(path, (1, 1))
    assert sums.isdisjoint({part.checksum() for part in (*parts, whole)})


def test_a_clip_is_saved_while_the_next_one_is_converted_and_a_fault_ends_the_run() -> None:
    converted = threading.Event()

    def clips() -> Iterator[Clip[Tensor]]:
        yield clip("a")
        converted.set()  # the second is asked for before the first is saved
        yield clip("b")

    def clip(key: str) -> Clip[Tensor]:
        return Clip(key, header, [torch.zeros(1, 8)])

    def save(found: Clip[Tensor]) -> None:
        assert found.key == "b" or converted.wait(10)
        assert threading.current_thread() is not threading.main_thread()
        saved.append(found.key)

    header = TokenHeader("codec", "", 8000, 1, 8, 2, 16, 8)
    saved: list[str] = []
    with tqdm(disable=True) as bar:
        counts = report.Counts(bar)
        assert counts.each(clips(), save) == {} and counts.num_done == 2 and saved == ["a", "b"]

        def full(found: Clip[Tensor]) -> None:
            raise StorageError("no space")

        with pytest.raises(StorageError, match="no space"):
            report.Counts(bar).each(itertools.repeat(clip("a")), full)
