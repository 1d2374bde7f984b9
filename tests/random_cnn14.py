"""CNN14 with random weights behind the front end that the public files hold."""

import math

import torch

from audiogen.evaluate.published import NUM_MELS, Cnn14
from audiogen.spectrogram import mel_filterbank

RANGES_HZ = {32000: (50.0, 14000.0), 16000: (50.0, 8000.0), 8000: (50.0, 4000.0)}  # of the mel filters


def make(sample_rate: int, width: int, num_labels: int) -> Cnn14:
    """The fixed front end: a Hann-windowed Fourier transform and Slaney's mel filters of equal area."""
    model = Cnn14(sample_rate, width, num_labels)
    n_fft = model.n_fft
    samples = torch.arange(n_fft, dtype=torch.float64)
    turns = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * samples / n_fft  # [bins, n_fft]
    window = torch.hann_window(n_fft, dtype=torch.float64)
    state = model.state_dict()
    for name, wave in (("real", torch.cos(2 * math.pi * turns)), ("imag", -torch.sin(2 * math.pi * turns))):
        state[f"spectrogram_extractor.stft.conv_{name}.weight"].copy_((wave * window)[:, None])
    filters = mel_filterbank(sample_rate, n_fft, NUM_MELS, *RANGES_HZ[sample_rate])
    state["logmel_extractor.melW"].copy_(filters)
    return model
