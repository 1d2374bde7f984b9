"""CNN14 of PANNs (Kong et al., arXiv:1912.10211, table 1): an AudioSet tagger that many papers compute FAD and KL with.

The names of the tensors are those of the public checkpoints, so `Cnn14_mAP=0.431.pth` (32 kHz), `Cnn14_16k_mAP=
0.438.pth` and `Cnn14_8k_mAP=0.416.pth` load as they are. `Cnn14_DecisionLevelMax` has the same names but another
pooling: do not give it here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.audio import mel_filterbank
from audiogen.errors import InputError
from audiogen.evaluate.public_weights import read_weights
from audiogen.files import checkpoint

NUM_MELS = 64
NUM_BLOCKS = 6


@dataclass(frozen=True)
class Cnn14Config:
    """Front end and size. width: channels of the first block, each further one has twice as many."""

    sample_rate: int = 32000
    n_fft: int = 1024
    hop_length: int = 320
    f_min: float = 50.0
    f_max: float = 14000.0
    width: int = 64
    num_labels: int = 527


# By the bins of the mel matrix, which is how a file says at which rate it was trained.
FRONT_ENDS = {
    513: Cnn14Config(),
    257: Cnn14Config(sample_rate=16000, n_fft=512, hop_length=160, f_max=8000.0),
    129: Cnn14Config(sample_rate=8000, n_fft=256, hop_length=80, f_max=4000.0),
}


class Cnn14Output(NamedTuple):
    """embedding: [B, 32 * width], 2048 of the public files, not negative. logits: [B, labels]."""

    embedding: Tensor
    logits: Tensor


class Cnn14(nn.Module):
    """Audio -> embedding and logits, for inference (the dropout and masking of training are left out)."""

    def __init__(self, config: Cnn14Config) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = config.sample_rate
        # The front end is two convolutions, whose kernels are the windowed cosines and sines, and a matrix.
        bins = config.n_fft // 2 + 1
        conv = partial(nn.Conv1d, 1, bins, config.n_fft, stride=config.hop_length, bias=False)
        fourier = nn.ModuleDict({"conv_real": conv(), "conv_imag": conv()})
        self.spectrogram_extractor = nn.ModuleDict({"stft": fourier})
        self.logmel_extractor = nn.ParameterDict({"melW": torch.zeros(bins, NUM_MELS)})
        self.bn0 = nn.BatchNorm2d(NUM_MELS)
        widths = [1, *(config.width * 2**number for number in range(NUM_BLOCKS))]
        for number, (before, width) in enumerate(itertools.pairwise(widths), 1):
            block = {
                "conv1": nn.Conv2d(before, width, 3, padding=1, bias=False),
                "conv2": nn.Conv2d(width, width, 3, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(width),
                "bn2": nn.BatchNorm2d(width),
            }
            self.add_module(f"conv_block{number}", nn.ModuleDict(block))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], config.num_labels)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """The fixed front end: a Hann-windowed Fourier transform and Slaney's mel filters of equal area."""
        config, n_fft = self.config, self.config.n_fft
        samples = torch.arange(n_fft, dtype=torch.float64)
        turns = torch.arange(n_fft // 2 + 1, dtype=torch.float64)[:, None] * samples / n_fft  # [bins, n_fft]
        window = torch.hann_window(n_fft, dtype=torch.float64)
        state = self.state_dict()
        state["spectrogram_extractor.stft.conv_real.weight"].copy_(
            (torch.cos(2 * math.pi * turns) * window)[:, None]
        )
        state["spectrogram_extractor.stft.conv_imag.weight"].copy_(
            (-torch.sin(2 * math.pi * turns) * window)[:, None]
        )
        filters = mel_filterbank(config.sample_rate, n_fft, NUM_MELS, config.f_min, config.f_max)
        state["logmel_extractor.melW"].copy_(filters)

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio [B, N], N above n_fft / 2 -> mel power in dB, -100 at least, [B, T, M], T = 1 + N // hop_length."""
        reach = self.config.n_fft // 2  # frames are centred, ends reflected
        padded = F.pad(audio[:, None], (reach, reach), mode="reflect")
        fourier = self.get_submodule("spectrogram_extractor.stft").children()
        real, imaginary = (conv(padded) for conv in fourier)
        power = real.square() + imaginary.square()  # [B, bins, T]
        mel = power.transpose(1, 2) @ self.logmel_extractor["melW"]
        return 10 * mel.clamp(min=1e-10).log10()

    def forward(self, audio: Tensor) -> Cnn14Output:
        """Audio [B, N] at `sample_rate`, of any length: the last pooling is over all of time.

        Five halvings of time need 32 frames (0.31 s); what is shorter is followed by silence.
        """
        audio = F.pad(
            audio, (0, max(0, (2 ** (NUM_BLOCKS - 1) - 1) * self.config.hop_length - audio.shape[-1]))
        )
        x = self.log_mel(audio)[:, None]  # [B, 1, T, M]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, NUM_BLOCKS + 1):
            conv1, conv2, bn1, bn2 = self.get_submodule(f"conv_block{number}").children()
            x = F.relu_(bn2(conv2(F.relu_(bn1(conv1(x))))))  # [B, channels, frames, M]
            if number < NUM_BLOCKS:
                x = F.avg_pool2d(x, 2)
        x = x.mean(3)  # [B, channels, frames]
        embedding = F.relu(self.fc1(x.amax(2) + x.mean(2)))
        return Cnn14Output(embedding, self.fc_audioset(embedding))


def load_cnn14(path: str | Path) -> Cnn14:
    """Read a public CNN14 checkpoint, or a state dict of its layout, in evaluation mode on the CPU.

    Rate and hop follow from the shape of the mel matrix. Raises InputError where the file is not a CNN14.
    """
    tensors = read_weights(path)
    model = Cnn14(_config(tensors, path))
    checkpoint.load_into(model, tensors, path)
    return model.eval().requires_grad_(False)


def _config(tensors: Mapping[str, Tensor], path: str | Path) -> Cnn14Config:
    names = ("logmel_extractor.melW", "conv_block1.conv1.weight", "fc_audioset.weight")
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(
            f"{path} is not a CNN14 of PANNs: it has no {missing[0]}; give Cnn14_mAP=0.431.pth or its kin"
        )
    bins = tensors[names[0]].shape[0]
    if bins not in FRONT_ENDS:
        raise InputError(
            f"{path} has mel filters over {bins} bins; allowed are {', '.join(map(str, FRONT_ENDS))}"
        )
    return replace(FRONT_ENDS[bins], width=len(tensors[names[1]]), num_labels=len(tensors[names[2]]))
