"""The codecs of the `encodec` package, full-size, random weights: its file loads here, and both compute the same."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from audiogen.codec import ecdc
from audiogen.codec.segmented import SegmentedCodec, in_segments
from audiogen.interfaces import Segment
from audiogen.models.build import load_codec
from tests import encodec_package

BANDWIDTHS_KBPS = (3.0, 12.0)
LENGTHS = {  # samples: less than a frame, and an odd length; at 48 kHz two segments, the second one short
    "encodec_24khz": (100, 12345),
    "encodec_48khz": (100, 50001),
}


class Case(NamedTuple):
    """A codec, loaded from the package's file, beside what the package made of sounds in `folder`."""

    name: str
    folder: Path
    codec: SegmentedCodec
    theirs: dict[str, Tensor]

    def segments(self, sound: int, bandwidth: int) -> list[Segment]:
        start, indices = (
            f"{sound}.{bandwidth}.",
            range(replace(self.codec.header, num_samples=LENGTHS[self.name][sound]).num_segments),
        )
        scales = [self.theirs.get(f"scale{start}{index}") for index in indices]
        return [
            Segment(self.theirs[f"codes{start}{index}"], None if scale is None else scale[:, 0])
            for index, scale in zip(indices, scales, strict=True)
        ]


@pytest.fixture(scope="module", params=list(LENGTHS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    encodec_package.run("code", folder, name=name, num_samples=LENGTHS[name], bandwidths=BANDWIDTHS_KBPS)
    codec = in_segments(load_codec(folder / encodec_package.CODEC_FILES[name]))
    return Case(name, folder, codec, load_file(folder / "theirs.safetensors"))


each_sound = pytest.mark.parametrize(("sound", "bandwidth"), [(0, 0), (1, 0), (1, 1)])


def test_what_the_file_does_not_say_is_filled_in(case: Case) -> None:
    assert ecdc.model_name(case.codec.header) == case.name
    codebooks = [case.segments(1, bandwidth)[0].codes.shape[1] for bandwidth in range(2)]
    assert [case.codec.bandwidths_kbps[num - 1] for num in codebooks] == list(BANDWIDTHS_KBPS)
    assert getattr(case.codec.codec, "stateful", None) == (case.name == "encodec_24khz")


@each_sound
def test_codes_are_equal(case: Case, sound: int, bandwidth: int) -> None:
    expected = case.segments(sound, bandwidth)
    ours = case.codec.encode(case.theirs[f"audio{sound}"], expected[0].codes.shape[1])
    assert len(ours) == len(expected)
    for segment, other in zip(ours, expected, strict=True):
        assert torch.equal(segment.codes, other.codes)
        assert (segment.scale is None) == (other.scale is None)
        if segment.scale is not None and other.scale is not None:
            assert torch.allclose(segment.scale, other.scale, rtol=1e-5)


@each_sound
def test_decoded_audio_is_equal(case: Case, sound: int, bandwidth: int) -> None:
    expected = case.theirs[f"decoded{sound}.{bandwidth}"]
    ours = case.codec.decode(case.segments(sound, bandwidth), expected.shape[-1])
    assert expected.std() > 0.05
    assert (ours - expected).abs().max() < 1e-4


@each_sound
def test_ecdc_files_of_the_package_decode_to_its_samples(case: Case, sound: int, bandwidth: int) -> None:
    header, segments = ecdc.read_ecdc(case.folder / f"theirs{sound}.{bandwidth}.ecdc")
    ours = case.codec.decode(segments, header.num_samples)
    assert (ours - case.theirs[f"decoded{sound}.{bandwidth}"]).abs().max() < 1e-4


def test_the_package_decodes_ours(case: Case) -> None:
    expected = {}
    for sound, num_samples in enumerate(LENGTHS[case.name]):
        audio, num_codebooks = case.theirs[f"audio{sound}"], 3  # what the package itself never writes
        segments = case.codec.encode(audio, num_codebooks)
        header = replace(ecdc.MODELS[case.name], num_samples=num_samples, num_codebooks=num_codebooks)
        ecdc.write_ecdc(case.folder / f"ours{sound}.ecdc", header, segments)
        expected[f"ours{sound}"] = case.codec.decode(segments, num_samples)[0]
    encodec_package.run("decompress", case.folder, name=case.name)
    theirs = load_file(case.folder / "decompressed.safetensors")
    assert theirs.keys() == expected.keys()
    for key, audio in expected.items():
        assert theirs[key].shape == audio.shape
        assert (theirs[key] - audio).abs().max() < 1e-4
