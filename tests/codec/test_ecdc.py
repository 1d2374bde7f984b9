"""`.ecdc` files: bytes by hand and by the `encodec` package, inverse pairs, and one line for every damage."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from audiogen.codec import ecdc
from audiogen.codec.tokens import TokenHeader
from audiogen.errors import InputError
from audiogen.interfaces import Segment
from tests import encodec_package

MONO, STEREO = "encodec_24khz", "encodec_48khz"


def make_header(model: str, num_samples: int, num_codebooks: int) -> TokenHeader:
    model_sizes = ecdc.MODELS.get(model, TokenHeader(model, "", 32000, 1, 1, 4, 1024, 320))
    return replace(model_sizes, num_samples=num_samples, num_codebooks=num_codebooks)


def segment_frames(model: str, num_samples: int) -> list[int]:
    header = make_header(model, num_samples, 1)
    return list(header.segment_frames())


def make_segments(model: str, num_samples: int, num_codebooks: int) -> list[Segment]:
    generator = torch.Generator().manual_seed(num_samples)
    segments = []
    for num_frames in segment_frames(model, num_samples):
        codes = torch.randint(1024, (1, num_codebooks, num_frames), generator=generator)
        segments.append(Segment(codes, torch.rand(1, generator=generator) + 0.1 if model == STEREO else None))
    return segments


def assert_same(read: list[Segment], expected: list[Segment]) -> None:
    assert len(read) == len(expected)
    for ours, theirs in zip(read, expected, strict=True):
        assert torch.equal(ours.codes, theirs.codes)
        assert (ours.scale is None and theirs.scale is None) or torch.equal(ours.scale, theirs.scale)  # type: ignore


def with_header(stated: Any, data: bytes = b"", version: int = 0, magic: bytes = b"ECDC") -> bytes:
    text = stated if isinstance(stated, bytes) else json.dumps(stated).encode()
    return magic + struct.pack(">BI", version, len(text)) + text + data


def test_the_bytes_of_a_small_file_by_hand(tmp_path: Path) -> None:
    codes = torch.tensor([[[1, 1023], [512, 3]]])  # frame 0: 1 and 512; frame 1: 1023 and 3
    ecdc.write_ecdc(tmp_path / "a.ecdc", make_header(MONO, 600, 2), [Segment(codes)])
    number = 1 | 512 << 10 | 1023 << 20 | 3 << 30
    text = b'{"m": "encodec_24khz", "al": 600, "nc": 2, "lm": false}'
    expected = b"ECDC\0" + bytes([0, 0, 0, len(text)]) + text + number.to_bytes(5, "little")
    assert (tmp_path / "a.ecdc").read_bytes() == expected
    codes, scale = torch.tensor([[[5], [1], [1000]]]), torch.tensor([0.5])
    ecdc.write_ecdc(tmp_path / "b.ecdc", make_header(STEREO, 1, 3), [Segment(codes, scale)])
    assert (
        (tmp_path / "b.ecdc")
        .read_bytes()
        .endswith(b"}" + struct.pack(">f", 0.5) + (5 | 1 << 10 | 1000 << 20).to_bytes(4, "little"))
    )


@pytest.mark.parametrize(
    ("model", "num_samples"),
    [(MONO, 1), (MONO, 320 * 17 + 1), (STEREO, 100), (STEREO, 47521), (STEREO, 97000)],
)
def test_round_trip(tmp_path: Path, model: str, num_samples: int) -> None:
    path = tmp_path / "a.ecdc"
    segments = make_segments(model, num_samples, 3)
    ecdc.write_ecdc(path, make_header(model, num_samples, 3), segments)
    header, read = ecdc.read_ecdc(path)
    assert header == ecdc.read_header(path)
    assert header == make_header(model, num_samples, 3)
    assert header.duration_s == num_samples / (24000 if model == MONO else 48000)
    assert_same(read, segments)


def test_segments_of_48_khz_begin_every_99_hundredths() -> None:
    # At 48000 samples the second segment lies within the first, and is coded all the same.
    assert segment_frames(STEREO, 48000) == [150, 2]
    assert segment_frames(STEREO, 47520) == [149]
    assert segment_frames(STEREO, 3 * 47520 + 1) == [150, 150, 149, 1]


@pytest.mark.parametrize(
    ("model", "num_samples"),
    # 6720 is a length that the package fails to read.
    [(MONO, 320 * 280 - 3), (MONO, 6720), (STEREO, 320 * 7), (STEREO, 2 * 47520 + 5)],
)
def test_bytes_are_those_of_the_encodec_package(tmp_path: Path, model: str, num_samples: int) -> None:
    segments = make_segments(model, num_samples, 3)
    tensors = {f"codes{i}": segment.codes for i, segment in enumerate(segments)}
    tensors |= {f"scale{i}": s.scale[:, None] for i, s in enumerate(segments) if s.scale is not None}
    save_file(tensors, tmp_path / "codes.safetensors")
    encodec_package.run("compress", tmp_path, name=model, num_samples=num_samples)
    theirs, ours = tmp_path / "plain.ecdc", tmp_path / "ours.ecdc"
    ecdc.write_ecdc(ours, make_header(model, num_samples, 3), segments)
    assert ours.read_bytes() == theirs.read_bytes()
    assert_same(ecdc.read_ecdc(theirs)[1], segments)
    for read in (ecdc.read_ecdc, ecdc.read_header):
        with pytest.raises(InputError, match=r"coded\.ecdc is coded with the language model .* without --lm"):
            read(tmp_path / "coded.ecdc")


# ------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(("model", "num_samples"), [(MONO, 320 * 5), (STEREO, 47521)])
def test_truncated_anywhere_or_longer_is_an_error(tmp_path: Path, model: str, num_samples: int) -> None:
    path = tmp_path / "a.ecdc"
    ecdc.write_ecdc(path, make_header(model, num_samples, 1), make_segments(model, num_samples, 1))
    data = path.read_bytes()
    for damaged in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.ecdc") as error:
            ecdc.read_ecdc(path)
        assert "\n" not in str(error.value)


HEADER = {"m": MONO, "al": 320, "nc": 1, "lm": False}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "does not begin with ECDC"),
        (with_header(HEADER, magic=b"RIFF"), "does not begin with ECDC"),
        (
            with_header(HEADER, b"\0\0", version=1),
            "version 1; this program reads 0: decode it with the version of encodec that",
        ),
        (b"ECDC\0\xff\xff\xff\xff{}", "header of 4294967295 bytes"),
        (with_header(b'{"m": "enc'), "bad header"),
        (with_header(b"\xff\xfe"), "bad header"),
        (with_header(b"[" * 60000), "bad header"),
        (with_header([1, 2]), "bad header"),
        (with_header({"m": MONO, "nc": 1, "lm": False}), "no 'al'"),
        (with_header({**HEADER, "m": "encodec_32khz"}), "allowed: encodec_24khz, encodec_48khz"),
        (with_header({**HEADER, "m": [MONO]}), "bad header"),
        (with_header({**HEADER, "al": 0}), "num_samples 0"),
        (with_header({**HEADER, "al": -1}), "num_samples -1"),
        (with_header({**HEADER, "al": True}), "num_samples True"),
        (with_header({**HEADER, "al": 320.0}), "num_samples 320.0"),
        (with_header({**HEADER, "al": 10**4000}), "num_samples"),
        (with_header({**HEADER, "al": 1 << 48}), "truncated"),
        (with_header({**HEADER, "m": STEREO, "al": 1 << 48}), "truncated"),
        (with_header({**HEADER, "nc": 33}), "from 1 to 32"),
        (with_header({**HEADER, "m": STEREO, "nc": 17}), "from 1 to 16"),
        (with_header({**HEADER, "lm": 0}), "lm 0"),
        (with_header({**HEADER, "m": STEREO}, struct.pack(">f", float("nan")) + b"\0\0"), "scale is nan"),
        (with_header({**HEADER, "m": STEREO}, struct.pack(">f", -1.0) + b"\0\0"), "scale is -1.0"),
    ],
)
def test_a_forged_file_is_one_line_and_allocates_nothing(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.ecdc"
    path.write_bytes(data)
    tracemalloc.start()
    with pytest.raises(InputError, match=reason) as error:
        ecdc.read_ecdc(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "a.ecdc" in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
    assert peak < 5e6


def test_the_header_is_read_without_the_codes(tmp_path: Path) -> None:
    path = tmp_path / "a.ecdc"
    path.write_bytes(with_header(HEADER))
    os.truncate(path, 10_000_000)
    tracemalloc.start()
    assert ecdc.read_header(path) == make_header(MONO, 320, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_memory_does_not_grow_with_the_length_of_what_is_written(tmp_path: Path) -> None:
    (block,) = make_segments(MONO, 24000, 32)  # a second
    peaks = []
    for seconds in (200, 800):  # 200 are 0.6 MB of packed codes
        header = make_header(MONO, seconds * 24000, 32)
        tracemalloc.start()
        ecdc.write_ecdc(tmp_path / "a.ecdc", header, (Segment(block.codes) for _ in range(seconds)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e5


def test_a_missing_file_or_folder_is_named(tmp_path: Path) -> None:
    for read in (ecdc.read_ecdc, ecdc.read_header):
        for path in (tmp_path / "none.ecdc", tmp_path):
            with pytest.raises(InputError, match="cannot be read"):
                read(path)


def test_a_file_coded_with_the_language_model_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.ecdc"
    path.write_bytes(with_header({**HEADER, "lm": True}, bytes(9)))
    for read in (ecdc.read_ecdc, ecdc.read_header):
        with pytest.raises(
            InputError, match="decode it with that package, or encode .* without --lm"
        ) as error:
            read(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: ("encodec_32khz", 640, 3, s), "allowed: encodec_24khz"),
        (lambda s: (MONO, 641, 3, s), r"of \[2\] frames; 641 samples are 1 of \[3\]"),
        (lambda s: (MONO, 640, 3, s + s), r"1 segments of \[4\] frames; 640 samples"),
        (lambda s: (MONO, 640, 3, []), r"of \[0\] frames"),
        (lambda s: (MONO, 640, 2, s), r"shape \[1, 3, 2\]; expected \[1, 2, t\]"),
        (
            lambda s: (MONO, 640, 3, [Segment(s[0].codes + 1024)]),
            r"codes lie in 1\d+\.\.\d+; 0\.\.1023 is allowed",
        ),
        (lambda s: (MONO, 640, 3, [Segment(s[0].codes - 1024)]), "codes lie in -"),
        (lambda s: (MONO, 640, 3, [Segment(s[0].codes, torch.ones(1))]), "None is needed"),
        (lambda s: (STEREO, 640, 3, s), "a number is needed"),
        (
            lambda s: (STEREO, 640, 3, [Segment(s[0].codes.expand(2, 3, 2), torch.ones(2))]),
            r"expected \[1, 3, t\]",
        ),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(
    tmp_path: Path, change: Callable[[list[Segment]], tuple[str, int, int, list[Segment]]], reason: str
) -> None:
    path = tmp_path / "a.ecdc"
    *sizes, segments = change(make_segments(MONO, 640, 3))
    with pytest.raises(InputError, match=rf"a\.ecdc: cannot be written: .*{reason}"):
        ecdc.write_ecdc(path, make_header(*sizes), segments)
    assert list(tmp_path.iterdir()) == []


def test_a_sound_in_one_piece_may_come_in_blocks(tmp_path: Path) -> None:
    (whole,) = make_segments(MONO, 3200, 3)
    blocks = (Segment(codes) for codes in whole.codes.split([1, 0, 9], -1))
    ecdc.write_ecdc(tmp_path / "a.ecdc", make_header(MONO, 3200, 3), blocks)
    assert_same(ecdc.read_ecdc(tmp_path / "a.ecdc")[1], [whole])


def test_only_two_codecs_have_a_name() -> None:
    mono = TokenHeader("own", "0123", 24000, 1, 600, 32, 1024, 320)
    assert ecdc.model_name(mono) == MONO
    stereo = {"sample_rate": 48000, "channels": 2, "num_codebooks": 16, "segment_samples": 48000}
    stereo |= {"stride_samples": 47520, "normalised": True}
    assert ecdc.model_name(replace(mono, **stereo)) == STEREO  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"codec own \(24000 Hz, 1 channels, 4 codebooks of 1024\)"):
        ecdc.model_name(replace(mono, num_codebooks=4))
