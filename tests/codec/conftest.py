"""A small codec, and its command."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from audiogen.codec.__main__ import main
from audiogen.codec.model import Codec, CodecConfig
from audiogen.codec.spectral import SpectralConfig
from audiogen.errors import run_command
from audiogen.models.own import save_codec
from audiogen.native.library import library

RATE = 4000
SPECTRAL = SpectralConfig(n_fft=160, hop_length=40, width=8, num_encoder_blocks=1, num_decoder_blocks=1)
CONFIG = CodecConfig(RATE, 1, "spectral", spectral=SPECTRAL, latent_dim=6, num_codebooks=3, codebook_size=50)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny codec with random weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    save_codec(directory, Codec(CONFIG), {"step": 7, "recipe": {"out": "runs/tiny"}})
    return str(directory)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command -> (exit status, stdout, stderr)."""
    library()  # is built now: that says so once
    capsys.readouterr()

    def command(*argv: object) -> tuple[int, str, str]:
        status = run_command(main, [str(word) for word in argv])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return command


def write_sound(path: Path, num_frames: int, rate: int = 8000, channels: int = 1, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).uniform(-0.5, 0.5, (num_frames, channels))
    soundfile.write(path, samples, rate)
    return path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
