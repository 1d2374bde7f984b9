"""The mel spectrogram against transformers' own, and where its frames lie."""

import numpy as np
import pytest
import torch
from transformers.audio_utils import mel_filter_bank, spectrogram

from audiogen.diffusion.mel import MelConfig, log_mel
from audiogen.errors import InputError


def test_equals_an_independent_implementation() -> None:
    config = MelConfig(sample_rate=16000, n_fft=256, hop_length=60, num_mels=20)
    audio = torch.randn(2, 1, 1000, generator=torch.Generator().manual_seed(0)) * 0.1
    filters = mel_filter_bank(129, 20, 0.0, 8000.0, 16000, norm="slaney", mel_scale="slaney")
    found = log_mel(audio, config)
    assert found.shape == (2, 1, 16, 20)
    for row in range(2):
        padded = np.pad(audio[row, 0].numpy(), 98, mode="reflect")
        window = np.hanning(257)[:-1]
        expected = spectrogram(
            padded,
            window,
            256,
            60,
            power=1.0,
            center=False,
            mel_filters=filters,
            mel_floor=1e-5,
            log_mel="log",
        )
        np.testing.assert_allclose(found[row, 0].T.numpy(), expected[:, :16], atol=2e-4)


def test_a_click_is_loudest_in_the_frame_of_its_own_hop() -> None:
    config = MelConfig(n_fft=128, hop_length=32, num_mels=8)
    for frame in (0, 3, 9):
        audio = torch.zeros(1, 1, 320)
        audio[..., frame * 32 + 16] = 1.0
        assert log_mel(audio, config).mean(dim=-1).argmax() == frame


@pytest.mark.parametrize("samples", [32, 40, 64])
def test_what_is_too_short_to_reflect_is_followed_by_zeros(samples: int) -> None:
    config = MelConfig(n_fft=256, hop_length=32, num_mels=8)
    audio = torch.randn(1, 1, samples)
    longer = torch.cat([audio, torch.zeros(1, 1, 113 - samples)], dim=-1)
    found = log_mel(audio, config)
    assert found.shape == (1, 1, samples // 32, 8)
    torch.testing.assert_close(found, log_mel(longer, config)[:, :, : samples // 32])


def test_silence_is_the_floor_and_wrong_sizes_are_named() -> None:
    assert torch.allclose(log_mel(torch.zeros(1, 1, 1600), MelConfig()), torch.tensor(1e-5).log())
    with pytest.raises(InputError, match="hop_length is 161"):
        MelConfig(hop_length=161)
    with pytest.raises(InputError, match="half of 8000 Hz"):
        MelConfig(sample_rate=8000)
