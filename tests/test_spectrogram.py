"""Mel filters, log-mel and pictures."""

from __future__ import annotations

import math
from pathlib import Path

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
