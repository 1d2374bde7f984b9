"""Mel filters, log-mel and pictures."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from audiogen import spectrogram
from audiogen.errors import InputError


def test_mel_filters_equal_an_independent_implementation() -> None:
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(257, 40, 50.0, 7600.0, 16000, norm="slaney", mel_scale="slaney")
    ours = spectrogram.mel_filterbank(16000, 512, 40, 50.0, 7600.0)
    assert ours.shape == (257, 40)
    torch.testing.assert_close(ours, torch.from_numpy(theirs).float(), rtol=1e-4, atol=1e-7)
    with pytest.raises(InputError, match="does not fit 16000 Hz"):
        spectrogram.mel_filterbank(16000, 512, 40, 0.0, 9000.0)


def test_log_mel_shows_the_tone_and_passes_gradient() -> None:
    sound = torch.tensor([[500.0], [4000.0]]) * torch.arange(8000) / 16000  # turns
    sound = torch.sin(2 * math.pi * sound)[:, None].requires_grad_()  # [2, 1, N]
    mel = spectrogram.log_mel(sound, 16000, n_fft=512, hop_length=128, n_mels=40)
    assert mel.shape == (2, 1, 40, 1 + 8000 // 128)
    centre = (spectrogram.mel_filterbank(16000, 512, 40) * torch.linspace(0, 8000, 257)[:, None]).sum(0)
    centre = centre / spectrogram.mel_filterbank(16000, 512, 40).sum(0)
    loudest = centre[mel[:, 0, :, 30].argmax(-1)]
    assert loudest[0] == pytest.approx(500, rel=0.1) and loudest[1] == pytest.approx(4000, rel=0.1)
    mel.sum().backward()
    assert sound.grad is not None and sound.grad.isfinite().all()
    assert spectrogram.log_mel(torch.zeros(1, 1, 4000), 16000).min() == pytest.approx(math.log(1e-5))


@pytest.mark.parametrize("num", [1, 500, 40_000])
def test_a_spectrogram_is_a_picture(tmp_path: Path, num: int) -> None:
    from matplotlib.image import imread

    path = spectrogram.save_spectrogram(
        tmp_path / "p" / "x.png", 0.1 * torch.randn(2, num), 16000, "rain, $5 & more"
    )
    picture = imread(path)
    assert picture.shape[0] > 200 and picture.shape[1] > 600
    assert np.ptp(picture[..., :3]) > 0.5


def test_a_picture_has_low_frequencies_below_and_time_from_left_to_right() -> None:
    wave = torch.zeros(1, 16000)
    time = torch.arange(8000) / 16000
    wave[0, 8000:] = 0.5 * torch.sin(2 * math.pi * 300 * time)
    pixels = matplotlib.image.imread(io.BytesIO(spectrogram.picture(wave, 16000)), format="png")[..., :3].sum(
        -1
    )
    height, width = pixels.shape
    row, column = np.unravel_index(pixels.argmax(), pixels.shape)
    assert row > 0.8 * height and column >= 0.5 * width - 2
    assert pixels[:, : width // 2 - 3].max() == pixels.min()  # silence is dark


def test_a_picture_with_a_waveform_shows_where_it_is_loud() -> None:
    wave = torch.zeros(2, 16000)
    wave[:, 8000:] = 0.5 * torch.sin(torch.arange(8000) / 3)
    png = spectrogram.picture(wave, 16000, columns=40, bands=20, strip=30)
    pixels = matplotlib.image.imread(io.BytesIO(png), format="png")[..., :3].sum(-1)
    assert pixels.shape == (50, 40)
    bright = (pixels[:30] > pixels.min()).sum(0)  # rows of the strip
    assert (bright[:19] <= 2).all() and ((bright[21:] >= 13) & (bright[21:] <= 17)).all()
