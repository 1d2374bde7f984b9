"""What identifies a sound that is encoded."""

import os
from pathlib import Path

from audiogen.codec import transcode
from audiogen.codec.transcode import Sound


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
