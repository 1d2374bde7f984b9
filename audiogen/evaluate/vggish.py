"""VGGish (Hershey et al., arXiv:1609.09430): 128 numbers for each 0.96 s, with which FAD was first defined.

The names of the tensors are those of the public PyTorch port (`vggish-10086976.pth`: features.*, embeddings.*). The
embedding is the last layer before any activation, as Google released and used it for FAD (arXiv:1812.08466); the
port adds a rectifier, which changes every distance.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.evaluate.public_weights import read_weights
from audiogen.files import checkpoint

SAMPLE_RATE = 16000
WINDOW, HOP, N_FFT = 400, 160, 512  # samples: frames of 25 ms, every 10 ms
NUM_MELS, F_MIN, F_MAX = 64, 125.0, 7500.0
FRAMES = 96  # of an example
EXAMPLE = (FRAMES - 1) * HOP + WINDOW  # samples that an example draws on: 0.975 s
PCA_RANGE = 2.0  # whitened components are cut off at plus and minus this, and stored in 8 bits


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


def mel_matrix() -> Tensor:
    """Triangles over the mel scale 1127 ln(1 + f / 700), [bins, M]: straight in mel, not in Hz as elsewhere.

    They peak at 1; the bin of 0 Hz counts nowhere.
    """

    low, high = (1127 * math.log1p(hz / 700) for hz in (F_MIN, F_MAX))
    edges = torch.linspace(low, high, NUM_MELS + 2, dtype=torch.float64)
    hertz = torch.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)[:, None]
    bins = 1127 * torch.log1p(hertz / 700)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)).clamp(min=0)
    filters[0] = 0
    return filters.float()


class Vggish(nn.Module):
    """Audio -> an embedding for each example of 0.96 s."""

    sample_rate = SAMPLE_RATE
    mel: Tensor

    def __init__(self, width: int = 64, hidden: int = 4096, dim: int = 128) -> None:
        """width: channels of the first convolution. hidden: features of the linear layers. dim: D."""
        super().__init__()
        self.register_buffer("mel", mel_matrix(), persistent=False)
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
        audio = F.pad(audio, (0, max(0, EXAMPLE - audio.shape[-1])))
        mel = self.log_mel(audio)
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
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(
            f"{path} is not a VGGish: it has no {missing[0]}; give vggish-10086976.pth of torchvggish"
        )
    width, hidden, dim = (tensors[name].shape[0] for name in names)
    model = Vggish(width, hidden, dim)
    checkpoint.load_into(model, tensors, path)
    model.pca = None if pca_path is None else read_pca(pca_path, dim)
    return model.eval().requires_grad_(False)


def read_pca(path: str | Path, dim: int = 128) -> Pca:
    """Whitening parameters: pca_eigen_vectors [D, D] and pca_means [D] or [D, 1]."""
    tensors = read_weights(path)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if (
        shapes.get("pca_eigen_vectors") != [dim, dim]
        or tensors.get("pca_means", torch.empty(0)).numel() != dim
    ):
        raise InputError(
            f"{path} has {shapes or 'no tensors'}; pca_eigen_vectors [{dim}, {dim}] and pca_means [{dim}] are needed"
        )
    return Pca(tensors["pca_eigen_vectors"].float(), tensors["pca_means"].float().flatten())
