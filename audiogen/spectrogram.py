"""Spectrograms of waveforms: mel filters, log-mel magnitudes, pictures."""

import math
import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from audiogen.errors import InputError
from audiogen.files.writing import replacing
from audiogen.interfaces import check_samples


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached during inference must serve training as well
def mel_filterbank(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None
) -> Tensor:
    """Triangular mel filters [F, M] for F = n_fft // 2 + 1 bins; cached, so do not write into the result.

    Slaney's, as librosa's by default: linear below 1 kHz (mel 15), logarithmic above, each triangle of the same area.
    """
    f_max = sample_rate / 2 if f_max is None else f_max
    if n_mels < 1 or not 0 <= f_min < f_max <= sample_rate / 2:
        raise InputError(f"mel of {n_mels} bins, {f_min:g} to {f_max:g} Hz, does not fit {sample_rate} Hz")

    def to_mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mel = torch.linspace(to_mel(f_min), to_mel(f_max), n_mels + 2, dtype=torch.float64)
    edges = torch.where(mel < 15, mel * 200 / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]  # [F, 1]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)  # [F, M]
    return (filters * (2 / (right - left))).float()


def log_mel(
    audio: Tensor,
    sample_rate: int,
    n_fft: int = 1024,
    hop_length: int = 256,
    n_mels: int = 80,
    floor: float = 1e-5,
) -> Tensor:
    """Natural log of the mel magnitudes of audio [B, C, N] -> [B, C, M, T], T = 1 + N // hop_length; differentiable.

    Hann window of n_fft, frames centred with zeros beyond the ends; magnitudes below `floor` count as floor.
    """
    flat = audio.float().reshape(-1, audio.shape[-1])
    window = torch.hann_window(n_fft, device=audio.device)
    spectrum = torch.stft(
        flat, n_fft, hop_length, window=window, pad_mode="constant", return_complex=True
    ).abs()
    mel = mel_filterbank(sample_rate, n_fft, n_mels).to(audio.device).T @ spectrum  # [B * C, M, T]
    return mel.clamp(min=floor).log().reshape(*audio.shape[:-1], n_mels, -1)


def save_spectrogram(
    path: str | os.PathLike[str], audio: Tensor, sample_rate: int, title: str = "", overwrite: bool = True
) -> Path:
    """Draw the spectrogram (dB, 80 dB of range) of audio [C, N], channels averaged, as a PNG; whole or not at all.

    Without `overwrite` a file that exists is an InputError.
    """
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    target = Path(path)
    check_samples(audio, f"{target}: the sound")
    mono = audio.detach().to("cpu", torch.float32).mean(0)
    n_fft = 1024 if sample_rate >= 16_000 else 512
    hop = max(n_fft // 4, mono.numel() // 2000)  # about 2,000 columns at most: more cannot be seen
    spectrum = torch.stft(
        mono, n_fft, hop, window=torch.hann_window(n_fft), pad_mode="constant", return_complex=True
    ).abs()
    decibel = 20 * torch.log10(spectrum.clamp(min=1e-10) / (n_fft / 4))  # 0 dB is a full-scale sine
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    extent = (0.0, mono.numel() / sample_rate, 0.0, sample_rate / 2000)  # s, kHz
    image = axes.imshow(
        decibel.numpy(), cmap="magma", vmin=-100, vmax=-20, origin="lower", aspect="auto", extent=extent
    )
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    axes.set_title(title, fontsize=10, loc="left", wrap=True, parse_math=False)
    figure.colorbar(image, ax=axes, label="level (dB)")
    with replacing(target, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return target
