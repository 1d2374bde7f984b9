"""The token file: exact round trips, and nothing but a clear error from a damaged one."""

import errno
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from audiogen.codec import tokens
from audiogen.codec.tokens import (
    TokenHeader,
    pack,
    read_header,
    read_tokens,
    unpack,
    write_tokens,
)
from audiogen.errors import InputError
from audiogen.interfaces import Segment


def make_header(num_samples: int = 2050, **changes: object) -> TokenHeader:
    values = {
        "codec": "tiny",
        "identity": "0123456789abcdef",
        "sample_rate": 16000,
        "channels": 1,
        "num_samples": num_samples,
        "num_codebooks": 3,
        "codebook_size": 1000,
        "hop_length": 320,
    }
    return TokenHeader(**{**values, **changes})  # type: ignore[arg-type]


def write_codes(path: Path, header: TokenHeader, codes: torch.Tensor, *sizes: int) -> None:
    """A clip in one piece, codes [K, T], as one block or in blocks of these sizes."""
    write_tokens(path, header, [Segment(block[None]) for block in codes.split(sizes or codes.shape[1], 1)])


def read_codes(path: Path) -> torch.Tensor:
    """All codes [K, T] of a file."""
    return torch.cat([segment.codes[0] for segment in read_tokens(path)[1]], 1)


def make_codes(header: TokenHeader, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (header.num_codebooks, header.num_frames)
    return torch.randint(header.codebook_size, shape, generator=generator)


@pytest.mark.parametrize("codebook_size", [1, 2, 3, 10, 1000, 1024, 1025, 2048, 65536, 65537, 2**31])
@pytest.mark.parametrize("num_frames", [1, 7, 8, 21])
def test_round_trip_for_any_codebook_size(tmp_path: Path, codebook_size: int, num_frames: int) -> None:
    header = make_header(num_frames * 320 - 5, codebook_size=codebook_size, source_sample_rate=44100)
    codes = make_codes(header)
    codes[:, -1] = codebook_size - 1
    write_codes(tmp_path / "a.agtok", header, codes)
    assert read_header(tmp_path / "a.agtok") == header
    result = read_codes(tmp_path / "a.agtok")
    assert result.dtype == torch.int64
    assert torch.equal(result, codes)


def test_codes_take_ceil_log2_bits_each(tmp_path: Path) -> None:
    header = make_header(320 * 1000)
    write_codes(tmp_path / "a.agtok", header, make_codes(header))
    num_bytes = 3 * 1000 * 10 // 8  # V = 1000 needs 10 bits
    assert header.num_bytes == num_bytes
    assert num_bytes < (tmp_path / "a.agtok").stat().st_size < num_bytes + 400
    assert header.bandwidth_kbps == pytest.approx(50 * 3 * 10 / 1000)


def test_bit_order_is_frame_after_frame_and_lowest_bit_first() -> None:
    codes = np.array([[1, 3], [4, 0]])  # [K=2, T=2]; in order 1, 4, 3, 0 of three bits
    data = pack(codes, 3)
    assert data == bytes([0b11_100_001, 0b000_0])
    assert np.array_equal(unpack(data, 2, 2, 3), codes)


@pytest.mark.parametrize("sizes", [[1] * 21, [20, 1], [8, 8, 5], [3, 0, 18]])
def test_written_in_blocks_is_the_same_file(
    tmp_path: Path, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = make_header(320 * 21)
    codes = make_codes(header)
    write_codes(tmp_path / "whole.agtok", header, codes)
    write_codes(tmp_path / "blocks.agtok", header, codes, *sizes)
    assert (tmp_path / "blocks.agtok").read_bytes() == (tmp_path / "whole.agtok").read_bytes()
    monkeypatch.setattr(tokens, "BLOCK_FRAMES", 8)
    read, blocks = read_tokens(tmp_path / "blocks.agtok")
    assert (read, [segment.codes.shape[-1] for segment in blocks]) == (header, [8, 8, 5])
    assert torch.equal(read_codes(tmp_path / "blocks.agtok"), codes)


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python and NumPy hold while it runs."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_writing_takes_no_more_memory_for_a_longer_clip_and_reading_little_more_than_the_file(
    tmp_path: Path,
) -> None:
    block = make_codes(make_header(320 * 500, num_codebooks=8))
    path = tmp_path / "long.agtok"

    def write(hours: int) -> None:
        header = make_header(hours * 3600 * 16000, num_codebooks=8)
        write_tokens(path, header, (Segment(block[None]) for _ in range(360 * hours)))

    def read() -> None:
        assert sum(int(segment.codes.sum()) for segment in read_tokens(path)[1]) == 1440 * int(block.sum())

    one, four = peak_bytes(lambda: write(1)), peak_bytes(lambda: write(4))
    assert four < one + 1e5  # an hour is 1.8 MB of packed codes
    # File.read joins two buffers, and what it holds is 7.2 MB; the codes are 46 MB as int64.
    assert peak_bytes(read) < 2 * path.stat().st_size + 2e6


def test_every_flipped_byte_and_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.agtok"
    header = make_header(source_sample_rate=44100, source_num_samples=5650)
    write_codes(path, header, make_codes(header))
    data = path.read_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"a\.agtok: "):
                read_tokens(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.agtok: "):
            read_tokens(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(InputError, match="damaged"):
        read_tokens(path)
    path.write_bytes(data)
    assert read_header(path) == header


def forge(path: Path, header: dict[str, object] | str, payload: bytes, version: int = 1) -> None:
    """A file whose checksum is right and whose content is wrong."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    start = tokens.PREFIX.pack(tokens.MAGIC, version, len(text)) + text
    path.write_bytes(start + payload + tokens.CHECKSUM.pack(zlib.crc32(start, zlib.crc32(payload))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 10**15}, "do not hold"),
        ({"hop_length": -1}, "hop_length is -1"),
        ({"sample_rate": "16000"}, "sample_rate: got '16000'"),
        ({"channels": True}, "channels: got True"),
        ({"codec": None}, "codec: got None"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_forged_headers_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    header = {
        "codec": "tiny",
        "identity": "0",
        "sample_rate": 16000,
        "channels": 1,
        "num_samples": 320,
        "num_codebooks": 3,
        "codebook_size": 5,
        "hop_length": 320,
    }
    path = tmp_path / "a.agtok"
    forge(path, header, bytes(2))
    assert read_codes(path).tolist() == [[0], [0], [0]]
    forge(path, {**header, **change}, bytes(2))
    with pytest.raises(InputError, match=message):
        read_codes(path)
    forge(path, header, bytes([0xFF, 0]))  # the code 7 where V is 5
    with pytest.raises(InputError, match="code 7 in a codebook of 5"):
        read_codes(path)
    for text in ("", "[]", "{", "null", '{"codec": "tiny"}'):
        forge(path, text, bytes(2))
        with pytest.raises(InputError, match="bad header"):
            read_codes(path)


def test_messages_for_what_is_no_token_file(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF....WAVE")
    with pytest.raises(InputError, match="not a token file"):
        read_header(tmp_path / "a.wav")
    with pytest.raises(InputError, match="No such file"):
        read_header(tmp_path / "missing.agtok")
    with pytest.raises(InputError, match="Is a directory"):
        read_header(tmp_path)
    (tmp_path / "next.agtok").write_bytes(tokens.PREFIX.pack(tokens.MAGIC, 3, 2) + b"{}")
    with pytest.raises(InputError, match="version 3; this program reads 1 and 2: update audiogen"):
        read_header(tmp_path / "next.agtok")


def no_space(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_nothing_is_written_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = make_header()
    codes = make_codes(header)
    path = tmp_path / "deep" / "a.agtok"
    write_codes(path, header, codes)
    before = path.read_bytes()

    def interrupted() -> Iterator[Segment]:
        yield Segment(codes[None])
        raise KeyboardInterrupt

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", no_space)
        with pytest.raises(InputError, match=r"a\.agtok cannot be written: No space left"):
            write_codes(path, header, codes)
    assert os.listdir(path.parent) == ["a.agtok"]
    for wrong, segments, error, message in [
        (header, interrupted(), KeyboardInterrupt, "^$"),
        (
            make_header(1920),
            [Segment(codes[None])],
            InputError,
            r"of \[7\] frames; 1920 samples are 1 of \[6\]",
        ),
        (header, [Segment(codes[None] + 999)], InputError, r"0\.\.999"),
        (header, [Segment(codes[None, None])], InputError, r"expected \[1, 3, t\]"),
    ]:
        with pytest.raises(error, match=message) as raised:
            write_tokens(path, wrong, segments)
        assert raised.type is KeyboardInterrupt or "a.agtok: cannot be written" in str(raised.value)
        assert os.listdir(path.parent) == ["a.agtok"]
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot be written"):
        write_codes(path / "b.agtok", header, codes)


def make_segments(header: TokenHeader, seed: int = 0) -> list[Segment]:
    """Random codes and scales, cut by the definition: one segment every stride, as long as there is sound."""
    generator = torch.Generator().manual_seed(seed)
    assert header.segment_samples and header.stride_samples
    segments = []
    for start in range(0, header.num_samples, header.stride_samples):
        samples = min(header.segment_samples, header.num_samples - start)
        shape = (1, header.num_codebooks, -(-samples // header.hop_length))
        codes = torch.randint(header.codebook_size, shape, generator=generator)
        scale = torch.rand(1, generator=generator) + 0.1
        segments.append(Segment(codes, scale if header.normalised else None))
    return segments


SEGMENTED = {"hop_length": 20, "segment_samples": 1000, "stride_samples": 990}


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("stride", [500, 990, 1000])
@pytest.mark.parametrize("num_samples", [1, 500, 990, 991, 1000, 1981, 1990, 12345])
def test_segments_and_scales_round_trip(
    tmp_path: Path, num_samples: int, stride: int, normalised: bool
) -> None:
    header = make_header(num_samples, **{**SEGMENTED, "stride_samples": stride, "normalised": normalised})
    segments = make_segments(header)
    assert header.num_segments == len(segments)
    assert header.num_frames == sum(segment.codes.shape[-1] for segment in segments)
    write_tokens(tmp_path / "a.agtok", header, segments)
    read, result = read_tokens(tmp_path / "a.agtok")
    assert read == header and read_header(tmp_path / "a.agtok") == header
    for (codes, scale), (expected, scaled) in zip(result, segments, strict=True):
        assert torch.equal(codes, expected)
        assert (scale is None) == (scaled is None) and (scale is None or torch.equal(scale, scaled))
    joined = torch.cat([segment.codes[0] for segment in segments], 1)
    assert torch.equal(read_codes(tmp_path / "a.agtok"), joined)
    num_scales = len(segments) if normalised else 0
    payload = header.num_bytes + 4 * num_scales
    data = (tmp_path / "a.agtok").read_bytes()
    assert data[4] == 2  # the version: programs from before say that they cannot read it
    scales = b"".join(segment.scale.numpy().tobytes() for segment in segments if segment.scale is not None)
    assert data[-4 - payload : -4] == pack(joined.numpy(), 10) + scales


def test_files_without_segments_are_the_bytes_they_always_were(tmp_path: Path) -> None:
    header = make_header(640, source_sample_rate=44100)
    write_codes(tmp_path / "a.agtok", header, torch.tensor([[1, 2], [3, 4], [5, 999]]))
    text = (
        b'{"codec": "tiny", "identity": "0123456789abcdef", "sample_rate": 16000, "channels": 1, '
        b'"num_samples": 640, "num_codebooks": 3, "codebook_size": 1000, "hop_length": 320, '
        b'"source_sample_rate": 44100}'
    )
    text = text.ljust(len(text) + 20)  # room for more digits
    packed = pack(np.array([[1, 2], [3, 4], [5, 999]]), 10)
    start = b"AGTK\x01" + len(text).to_bytes(4, "little") + text
    crc = zlib.crc32(start, zlib.crc32(packed))
    assert (tmp_path / "a.agtok").read_bytes() == start + packed + crc.to_bytes(4, "little")


def test_every_flipped_byte_of_a_segmented_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.agtok"
    header = make_header(1500, **SEGMENTED, normalised=True)
    write_tokens(path, header, make_segments(header))
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(InputError, match=r"a\.agtok: "):
            read_tokens(path)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"a\.agtok: "):
            read_tokens(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_samples": None}, "both or neither"),
        ({"stride_samples": None}, "both or neither"),
        ({"stride_samples": 1001}, "a stride of half a segment"),
        ({"stride_samples": 1}, "a stride of half a segment"),
        ({"stride_samples": 0}, "stride_samples is 0"),
        ({"normalised": 1}, "normalised: got 1"),
        ({"num_samples": 10**18}, "do not hold"),
        ({"segment_samples": None, "stride_samples": None, "normalised": False}, "version 2 with"),
        ({"segment_samples": None, "stride_samples": None}, "normalised goes with"),
    ],
)
def test_forged_headers_of_segments_are_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    header = make_header(1000, **SEGMENTED, normalised=True)
    write_tokens(tmp_path / "a.agtok", header, make_segments(header))
    values = {key: value for key, value in vars(header).items() if value is not None}
    payload = (tmp_path / "a.agtok").read_bytes()[-4 - header.num_bytes - 8 : -4]
    forge(tmp_path / "a.agtok", values, payload, version=2)
    assert read_header(tmp_path / "a.agtok") == header
    forge(
        tmp_path / "a.agtok",
        {k: v for k, v in {**values, **change}.items() if v is not None},
        payload,
        version=2,
    )
    with pytest.raises(InputError, match=message):
        read_header(tmp_path / "a.agtok")


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_is_no_positive_number_is_refused(tmp_path: Path, scale: float) -> None:
    header = make_header(1000, **SEGMENTED, normalised=True)
    segments = make_segments(header)
    segments[0] = Segment(segments[0].codes, torch.tensor([scale]))
    write_tokens(tmp_path / "a.agtok", header, segments)
    with pytest.raises(InputError, match="a scale is not a positive number"):
        list(read_tokens(tmp_path / "a.agtok")[1])


def test_what_is_no_segment_of_the_header_is_not_written(tmp_path: Path) -> None:
    header = make_header(1981, **SEGMENTED, normalised=True)
    segments = make_segments(header)
    for wrong, message in [
        (segments[:-1], r"got 2 segments of .* samples are 3 of"),
        ([Segment(codes) for codes, _ in segments], "scale is None"),
        (
            [Segment(torch.cat([c for c, _ in segments], -1), segments[0].scale)],
            r"got 1 segments of .* samples are 3 of",
        ),
    ]:
        with pytest.raises(InputError, match=rf"a\.agtok: .*{message}"):
            write_tokens(tmp_path / "a.agtok", header, wrong)
    with pytest.raises(InputError, match=r"a\.agtok: .*scale is"):
        write_tokens(
            tmp_path / "a.agtok",
            make_header(1000),
            make_segments(make_header(1000, **SEGMENTED, normalised=True)),
        )
    assert list(tmp_path.iterdir()) == []
