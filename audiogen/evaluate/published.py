"""Networks that many papers compute FAD and KL with, read from the files that their authors published.

CNN14 of PANNs (Kong et al., arXiv:1912.10211, table 1) is an AudioSet tagger: `Cnn14_mAP=0.431.pth` (32 kHz),
`Cnn14_16k_mAP=0.438.pth` and `Cnn14_8k_mAP=0.416.pth` load as they are. `Cnn14_DecisionLevelMax` has the same names
but another pooling: do not give it here. VGGish (Hershey et al., arXiv:1609.09430) gives 128 numbers for each 0.96 s,
with which FAD was first defined; the names of its tensors are those of the public PyTorch port
(`vggish-10086976.pth`). Files are read as plain tensors; no code in them is ever run.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank

from audiogen.errors import InputError, opening
from audiogen.files import checkpoint, pickles

# What rebuilds NumPy's arrays and numbers from their bytes, and nothing else. Files of before 2023 name these by
# NumPy's old module; public CNN14 files need them, as they hold the sampler of the training beside the weights.
_ARRAY, _NUMBER = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
_NUMPY: list[Any] = [np.ndarray, np.generic, np.dtype, *{type(np.dtype(code)) for code in "?bhilqBHILQefd"}]
_NUMPY += [(_ARRAY, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
_NUMPY += [(_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]

NUM_MELS = 64  # of both
NUM_BLOCKS = 6  # of CNN14
RATES = {513: 32000, 257: 16000, 129: 8000}  # of CNN14, Hz, by the bins of a file's mel matrix
WINDOW, HOP, N_FFT = 400, 160, 512  # of VGGish, samples at 16 kHz: frames of 25 ms, every 10 ms
FRAMES = 96  # of one of VGGish's examples
EXAMPLE = (FRAMES - 1) * HOP + WINDOW  # samples that an example draws on: 0.975 s
PCA_RANGE = 2.0  # whitened components are cut off at plus and minus this, and stored in 8 bits


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """A .safetensors or .npz file, or one written by `torch.save`, of any version -> its tensors by name, on the CPU.

    Of a training checkpoint `{"model": state_dict, ...}` only the model is returned. Raises InputError where the
    file is missing, damaged, or cannot be read without running code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return checkpoint.read_tensors(path)
    if path.suffix == ".npz":
        with opening(str(path), "download it again"), np.load(path) as arrays:
            contents: Any = dict(arrays)
    else:
        contents = pickles.read_pickle(path, also=_NUMPY)
    for key in ("model", "state_dict"):
        if isinstance(contents, dict) and isinstance(contents.get(key), dict):
            contents = contents[key]
    if not isinstance(contents, dict):
        raise InputError(f"{path} holds a {type(contents).__name__}; names with tensors are needed")
    arrays = {name: value for name, value in contents.items() if isinstance(value, (Tensor, np.ndarray))}
    return {str(name): torch.as_tensor(value) for name, value in arrays.items()}


def _sizes(tensors: Mapping[str, Tensor], names: tuple[str, ...], path: str | Path, what: str) -> list[int]:
    """The first size of some tensors; InputError, which says what the file should be, where one is missing."""
    if missing := [name for name in names if name not in tensors]:
        raise InputError(f"{path} is not a {what.format(missing[0])}")
    return [len(tensors[name]) for name in names]


# ------------------------------------------------------------------------------------------------------ PANNs


class Cnn14(nn.Module):
    """Audio -> embedding and logits, for inference (the dropout and masking of training are left out)."""

    def __init__(self, sample_rate: int = 32000, width: int = 64, num_labels: int = 527) -> None:
        """width: channels of the first block, each further one has twice as many."""
        super().__init__()
        self.sample_rate = sample_rate
        self.n_fft, self.hop_length = sample_rate * 4 // 125, sample_rate // 100  # samples: 32 ms, 10 ms
        # The front end is two convolutions, whose kernels are the windowed cosines and sines, and a matrix.
        bins = self.n_fft // 2 + 1
        conv = partial(nn.Conv1d, 1, bins, self.n_fft, stride=self.hop_length, bias=False)
        fourier = nn.ModuleDict({"conv_real": conv(), "conv_imag": conv()})
        self.spectrogram_extractor = nn.ModuleDict({"stft": fourier})
        self.logmel_extractor = nn.ParameterDict({"melW": torch.zeros(bins, NUM_MELS)})
        self.bn0 = nn.BatchNorm2d(NUM_MELS)
        widths = [1, *(width * 2**number for number in range(NUM_BLOCKS))]
        for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
            block = {
                "conv1": nn.Conv2d(before, after, 3, padding=1, bias=False),
                "conv2": nn.Conv2d(after, after, 3, padding=1, bias=False),
                "bn1": nn.BatchNorm2d(after),
                "bn2": nn.BatchNorm2d(after),
            }
            self.add_module(f"conv_block{number}", nn.ModuleDict(block))
        self.fc1 = nn.Linear(widths[-1], widths[-1])
        self.fc_audioset = nn.Linear(widths[-1], num_labels)

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio [B, N], N above n_fft / 2 -> mel power in dB, -100 at least, [B, T, M], T = 1 + N // hop_length."""
        reach = self.n_fft // 2  # frames are centred, ends reflected
        padded = F.pad(audio[:, None], (reach, reach), mode="reflect")
        fourier = self.get_submodule("spectrogram_extractor.stft").children()
        real, imaginary = (conv(padded) for conv in fourier)
        power = real.square() + imaginary.square()  # [B, bins, T]
        mel = power.transpose(1, 2) @ self.logmel_extractor["melW"]
        return 10 * mel.clamp(min=1e-10).log10()

    def forward(self, audio: Tensor) -> tuple[Tensor, Tensor]:
        """Audio [B, N] at `sample_rate` -> embedding [B, 32 * width], not negative, and logits [B, labels].

        Any N: the last pooling is over all of time. Five halvings of time need 32 frames (0.31 s); what is shorter is
        followed by silence.
        """
        least = (2 ** (NUM_BLOCKS - 1) - 1) * self.hop_length
        x = self.log_mel(F.pad(audio, (0, max(0, least - audio.shape[-1]))))[:, None]  # [B, 1, T, M]
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        for number in range(1, NUM_BLOCKS + 1):
            conv1, conv2, bn1, bn2 = self.get_submodule(f"conv_block{number}").children()
            x = F.relu_(bn2(conv2(F.relu_(bn1(conv1(x))))))  # [B, channels, frames, M]
            if number < NUM_BLOCKS:
                x = F.avg_pool2d(x, 2)
        x = x.mean(3)  # [B, channels, frames]
        embedding = F.relu(self.fc1(x.amax(2) + x.mean(2)))
        return embedding, self.fc_audioset(embedding)


def load_cnn14(path: str | Path) -> Cnn14:
    """Read a public CNN14 checkpoint, or a state dict of its layout, in evaluation mode on the CPU.

    Rate and hop follow from the shape of the mel matrix. Raises InputError where the file is not a CNN14.
    """
    tensors = read_weights(path)
    names = ("logmel_extractor.melW", "conv_block1.conv1.weight", "fc_audioset.weight")
    what = "CNN14 of PANNs: it has no {}; give Cnn14_mAP=0.431.pth or its kin"
    bins, width, num_labels = _sizes(tensors, names, path, what)
    if bins not in RATES:
        raise InputError(f"{path} has mel filters over {bins} bins; allowed are {', '.join(map(str, RATES))}")
    model = Cnn14(RATES[bins], width, num_labels)
    checkpoint.load_into(model, tensors, path)
    return model.eval().requires_grad_(False)


# ----------------------------------------------------------------------------------------------------- VGGish


class Pca(nn.Module):
    """The whitening and 8-bit rounding of the released AudioSet features."""

    matrix: Tensor
    mean: Tensor

    def __init__(self, matrix: Tensor, mean: Tensor) -> None:
        """matrix: [D, D], one component a row. mean: [D]."""
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("mean", mean)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embeddings [..., D] -> whole numbers from 0 to 255 [..., D], as float32."""
        whitened = (embedding - self.mean) @ self.matrix.T
        scaled = (whitened.clamp(-PCA_RANGE, PCA_RANGE) + PCA_RANGE) * (255 / (2 * PCA_RANGE))
        return scaled.round()


class Vggish(nn.Module):
    """Audio -> an embedding for each example of 0.96 s.

    The embedding is the last layer before any activation, as Google released and used it for FAD (arXiv:1812.08466);
    the port adds a rectifier, which changes every distance.
    """

    sample_rate = 16000
    mel: Tensor

    def __init__(self, width: int = 64, hidden: int = 4096, dim: int = 128) -> None:
        """width: channels of the first convolution. hidden: features of the linear layers. dim: D."""
        super().__init__()
        # [bins, M], from 125 to 7500 Hz: triangles over mel, not over Hz as elsewhere, that peak at 1
        triangles = partial(mel_filter_bank, mel_scale="kaldi", triangularize_in_mel_space=True)
        mel = triangles(N_FFT // 2 + 1, NUM_MELS, 125.0, 7500.0, self.sample_rate)
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)
        layers: list[nn.Module] = []
        before = 1
        for convolutions in ((1,), (2,), (4, 4), (8, 8)):
            for factor in convolutions:
                layers += [nn.Conv2d(before, factor * width, 3, padding=1), nn.ReLU()]
                before = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        flat = before * (FRAMES // 16) * (NUM_MELS // 16)
        self.embeddings = nn.Sequential(
            nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, dim)
        )
        self.pca: Pca | None = None

    def log_mel(self, audio: Tensor) -> Tensor:
        """Audio [B, N], N at least 400 -> ln(mel magnitude + 0.01) [B, T, M], T = 1 + (N - 400) // 160; no padding."""
        window = torch.hann_window(WINDOW, device=audio.device)
        spectrum = torch.fft.rfft(audio.unfold(-1, WINDOW, HOP) * window, N_FFT).abs()  # [B, T, bins]
        return (spectrum @ self.mel + 0.01).log()

    def forward(self, audio: Tensor) -> Tensor:
        """Audio [B, N] at 16 kHz -> [B, examples, D].

        Examples follow one another without overlap; an unfinished last one is dropped, as in the original. Only a
        sound shorter than one example (0.975 s) is completed with silence.
        """
        mel = self.log_mel(F.pad(audio, (0, max(0, EXAMPLE - audio.shape[-1]))))
        mel = mel[:, : mel.shape[1] // FRAMES * FRAMES]
        x = rearrange(mel, "b (e t) m -> (b e) 1 t m", t=FRAMES)
        x = rearrange(self.features(x), "n c t m -> n (t m c)")  # channels last, as in TensorFlow
        embedding = rearrange(self.embeddings(x), "(b e) d -> b e d", b=audio.shape[0])
        return embedding if self.pca is None else self.pca(embedding)


def load_vggish(path: str | Path, pca_path: str | Path | None = None) -> Vggish:
    """Read a public VGGish state dict, in evaluation mode on the CPU.

    pca_path: `vggish_pca_params` (.npz or .pth), for what the AudioSet release holds instead of the embedding; FAD
    is computed without. Raises InputError where a file is missing or of another kind.
    """
    # the port's own state dict may hold its post-processing too
    tensors = {name: tensor for name, tensor in read_weights(path).items() if not name.startswith("pproc.")}
    names = ("features.0.weight", "embeddings.0.weight", "embeddings.4.weight")
    what = "VGGish: it has no {}; give vggish-10086976.pth of torchvggish"
    model = Vggish(*(sizes := _sizes(tensors, names, path, what)))
    checkpoint.load_into(model, tensors, path)
    model.pca = None if pca_path is None else read_pca(pca_path, sizes[-1])
    return model.eval().requires_grad_(False)


def read_pca(path: str | Path, dim: int = 128) -> Pca:
    """Whitening parameters: pca_eigen_vectors [D, D] and pca_means [D] or [D, 1]."""
    tensors = read_weights(path)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    means = tensors.get("pca_means", torch.empty(0))
    if shapes.get("pca_eigen_vectors") != [dim, dim] or means.numel() != dim:
        needed = f"pca_eigen_vectors [{dim}, {dim}] and pca_means [{dim}]"
        raise InputError(f"{path} has {shapes or 'no tensors'}; {needed} are needed")
    return Pca(tensors["pca_eigen_vectors"].float(), means.float().flatten())
