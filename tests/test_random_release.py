"""Random releases: the released layout to the last name and shape, and loading them takes little beside the weights."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from audiogen import audio
from audiogen.generate.__main__ import main as generate
from audiogen.models.build import load_codec, load_lm
from tools import random_release
from tools.random_release import SIZES, Size

ROOT = Path(__file__).resolve().parent.parent


def test_medium_has_the_numbers_of_the_released_model() -> None:
    shapes = list(random_release.lm_shapes(SIZES["medium"], channels=1))
    assert len(shapes) == 588 and sum(math.prod(shape) for _, shape in shapes) == 1_839_131_136
    codec = sum(math.prod(shape) for _, shape in random_release.codec_shapes(SIZES["medium"]))
    assert 0 < 235_740_815 - 4 * codec < 100_000  # bytes of the released file; the rest is names


def test_names_and_shapes_are_those_of_the_public_implementation(shared: Path) -> None:
    size = Size(64, 3, 4, 96, ("t5-small", 512), 4, 16)
    for file, shapes in {
        "state_dict.bin": random_release.lm_shapes(size, channels=1),
        "compression_state_dict.bin": random_release.codec_shapes(size),
    }.items():
        released = torch.load(shared / "fixtures" / "audiogen_tiny" / file, weights_only=True)["best_state"]
        assert dict(shapes) == {name: tuple(tensor.shape) for name, tensor in released.items()}


@pytest.mark.parametrize("channels", [1, 2])
def test_a_release_generates_sound_with_its_text_encoder(
    tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "release"
    stereo = ["--stereo"] if channels == 2 else []
    assert random_release.main(["build", str(folder), "--size", "tiny", "--text-encoder", *stereo]) == 0
    pretrained = load_lm(folder)
    assert pretrained.lm.config.num_codebooks == 4 * channels and pretrained.max_frames == 500
    assert load_codec(folder, dual_mono=channels == 2).num_codebooks == 4 * channels
    wav = tmp_path / "dog.wav"
    arguments = f"--model {folder} --text-encoder {folder}/text_encoder --duration 0.5 --out {wav}".split()
    assert generate([*arguments, "--text", "a dog barks", "--device", "cpu"]) == 0
    sound, sample_rate = audio.load(wav)
    assert sample_rate == 16000 and sound.shape == (channels, 8000) and bool(sound.std() > 0)
    assert random_release.main(["load", str(folder), "--generate", "0.1"]) == 0
    assert re.search(
        r"weights 0\.\d MB, peak of memory .* ratio .*\n0\.1 s of sound: ", capsys.readouterr().out
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    random_release.build(folder, Size(512, 16, 8, 64, ("t5-small", 512), 4, 16))
    return folder


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from /proc, which Linux has"
)
@pytest.mark.parametrize(
    ("dtype", "way"), [("float32", "--unpacked"), ("bfloat16", "--unpacked"), ("float32", ""), ("int8", "")]
)
def test_loading_takes_little_beside_the_weights(release: Path, dtype: str, way: str) -> None:
    done = subprocess.run(
        [sys.executable, "tools/random_release.py", "load", str(release), "--dtype", dtype, *way.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"weights ([\d.]+) MB, peak of memory ([\d.]+) MB \(([\d.]+) MB before\)", done.stdout)
    assert found, done.stdout
    weights, peak, before = map(float, found.groups())
    assert weights > {"float32": 260, "bfloat16": 130, "int8": 65}[dtype]
    assert (
        peak - before < weights + 100
    )  # 30 to 70 are pages of the file and first steps; a copy adds 70 or more
