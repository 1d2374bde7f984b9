"""Spectrograms of waveforms: mel filters, log-mel magnitudes, pictures."""

import io
import math
import os
import textwrap
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool1d

from audiogen.errors import InputError
from audiogen.files.writing import replacing
from audiogen.interfaces import check_samples

LEVELS_DB = (-75.0, 5.0)  # the same for all pictures, so that a soft sound looks dark; 0 dB: mel magnitude 1
TITLE_LETTERS = 200  # of a large picture: two lines
SHADES = 64  # of a small picture: fewer make a smaller file


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
    figure = Figure(figsize=(8, 3.2))
    axes = figure.add_axes(
        (0.075, 0.15, 0.79, 0.74)
    )  # a layout that measures its texts takes as long as the drawing
    extent = (0.0, mono.numel() / sample_rate, 0.0, sample_rate / 2000)  # s, kHz
    image = axes.imshow(
        decibel.numpy(), cmap="magma", vmin=-100, vmax=-20, origin="lower", aspect="auto", extent=extent
    )
    axes.set(xlabel="time (s)", ylabel="frequency (kHz)")
    title = textwrap.shorten(title, TITLE_LETTERS, placeholder=" ...")
    axes.set_title(title, fontsize=10, loc="left", wrap=True, parse_math=False)
    figure.colorbar(image, cax=figure.add_axes((0.885, 0.15, 0.02, 0.74)), label="level (dB)")
    with replacing(target, overwrite=overwrite) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    return target


def picture(sound: Tensor, sample_rate: int, columns: int = 360, bands: int = 80, strip: int = 0) -> bytes:
    """The mel spectrogram of audio [C, N], channels averaged, as a small PNG without axes: low at the bottom.

    At most so many columns wide. strip: rows above it that show the waveform. `save_spectrogram` draws the large
    picture with axes, of ten times the bytes.
    """
    from matplotlib import colormaps  # slow to import
    from PIL import Image  # of matplotlib's own dependencies: it writes a palette, a third of the bytes

    mono = sound.detach().to("cpu", torch.float32).mean(0, keepdim=True)  # [1, N]
    mel = log_mel(mono[None], sample_rate, n_mels=bands)[0, 0]  # [M, T]
    mel = adaptive_max_pool1d(mel, min(mel.shape[1], columns))
    low, high = LEVELS_DB
    level = (mel * (20 / math.log(10)) - low) / (high - low)  # natural log of a magnitude to dB, then to 0..1
    shades = level.flip(0)
    if strip:
        peaks = adaptive_max_pool1d(
            torch.cat([mono, -mono]), mel.shape[1]
        )  # [2, T]: highest and lowest samples
        rows = torch.linspace(1, -1, strip)[:, None]
        reach = peaks.clamp(min=1 / strip)  # a line in silence
        shades = torch.cat([((rows <= reach[0]) & (rows >= -reach[1])) * 0.8, shades])
    image = Image.fromarray((shades.clamp(0, 1) * (SHADES - 1)).round().to(torch.uint8).numpy())
    palette = colormaps["magma"](torch.linspace(0, 1, SHADES).numpy(), bytes=True)[:, :3]
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
