"""Losses of codec training (EnCodec, arXiv:2210.13438, section 3.4) and the distances that validation reports.

Adversarial losses work on raw discriminator scores: hinge or least squares, no logarithm to overflow.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from audiogen.audio import mel_filterbank

AdversarialKind = Literal["hinge", "lsgan"]

# Of `log_magnitude_distance`.
BIN_WEIGHT = 0.3
TILES = ((1, 5), (4, 1), (4, 5), (12, 3))  # frames and bins that are averaged together


def adversarial_generator(logits: Sequence[Tensor], kind: AdversarialKind = "hinge") -> Tensor:
    """The generator wants every score of its output to reach 1: mean over the discriminators."""
    return _mean([_generator_term(score.float(), kind) for score in logits])


def _generator_term(score: Tensor, kind: AdversarialKind) -> Tensor:
    return torch.relu(1 - score).mean() if kind == "hinge" else (1 - score).square().mean()


def adversarial_discriminator(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], kind: AdversarialKind = "hinge"
) -> Tensor:
    """Real scores towards 1, fake ones towards -1 (hinge) or 0 (least squares): mean over the discriminators."""
    terms = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        real, fake = real.float(), fake.float()
        if kind == "hinge":
            terms.append(torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        else:
            terms.append((1 - real).square().mean() + fake.square().mean())
    return _mean(terms)


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over discriminators and layers of |real - fake| relative to the mean |real|; real is a constant."""
    terms = []
    for real_layers, fake_layers in zip(real, fake, strict=True):
        for r, f in zip(real_layers, fake_layers, strict=True):
            r = r.detach().float()
            terms.append((r - f.float()).abs().mean() / r.abs().mean().clamp(min=1e-6))
    return _mean(terms)


def _mean(terms: list[Tensor]) -> Tensor:
    return torch.stack(terms).mean()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached during inference must serve training as well
def _mel_basis(sample_rate: int, n_fft: int, num_mels: int, device: str) -> tuple[Tensor, Tensor]:
    """Window [n_fft] and mel matrix [F, M]; constants, so sharing them between calls is safe."""
    return (
        torch.hann_window(n_fft, device=device),
        mel_filterbank(sample_rate, n_fft, num_mels).to(device),
    )


def mel_magnitude(
    audio: Tensor, sample_rate: int, n_fft: int, num_mels: int, hop_length: int | None = None
) -> Tensor:
    """[B, C, N] -> mel-weighted magnitude spectrogram [B, C, M, time], float32. hop defaults to n_fft / 4."""
    window, basis = _mel_basis(sample_rate, n_fft, num_mels, str(audio.device))
    with torch.autocast(audio.device.type, enabled=False):
        spectrum = torch.stft(
            rearrange(audio.float(), "b c n -> (b c) n"),
            n_fft,
            hop_length or n_fft // 4,
            window=window,
            center=True,
            pad_mode="constant",
            normalized=True,
            return_complex=True,
        )
        # The square root's gradient is infinite at 0: silence would give NaN without the floor.
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-12)
        mel = magnitude.transpose(1, 2) @ basis  # [B * C, time, M]
        return rearrange(mel, "(b c) t m -> b c m t", b=audio.shape[0])


def multi_scale_mel(
    audio: Tensor,
    target: Tensor,
    sample_rate: int,
    n_ffts: Sequence[int] = (64, 128, 256, 512, 1024),
    num_mels: int = 64,
    floor: float = 1e-5,
) -> Tensor:
    """Mean over window lengths of L1 on mel magnitudes plus L1 and root-mean-square error on their logarithms.

    The root of the mean square is taken per frame over the mel bands (spectral convergence of the log spectrum).
    Short windows get n_fft / 4 bands at most: more than that would be empty.
    """
    terms = []
    for n_fft in n_ffts:
        mels = min(num_mels, n_fft // 4)
        a = mel_magnitude(audio, sample_rate, n_fft, mels)
        b = mel_magnitude(target, sample_rate, n_fft, mels)
        gap = torch.log(a.clamp(min=floor)) - torch.log(b.clamp(min=floor))
        rms = torch.sqrt(gap.square().mean(-2) + 1e-8).mean()
        terms.append((a - b).abs().mean() + gap.abs().mean() + rms)
    return _mean(terms)


def log_magnitude_distance(
    log_magnitude: Tensor, target: Tensor, sample_rate: int, num_mels: int = 80
) -> Tensor:
    """How far log magnitudes [B, C, T, F] are off, as L1 of logs: bin by bin, in mel bands, and in `TILES`.

    Bin by bin has the harmonics, but most of it is the chance of noise: a few kbit/s cannot carry that, and spend
    themselves on it where it is all they are asked for. Tiles average the chance out and leave what lasts: partials,
    envelopes, beats. Mel bands have the level: the best log magnitude of noise bin by bin is its median, below its
    power. docs/LOG.md has the figures.
    """
    _, basis = _mel_basis(sample_rate, 2 * (target.shape[-1] - 1), num_mels, str(target.device))
    magnitude, wanted = torch.exp(log_magnitude), torch.exp(target)
    loss = BIN_WEIGHT * (log_magnitude - target).abs().mean() + _log_l1(magnitude @ basis, wanted @ basis)
    for frames, bins in TILES:
        tile = min(frames, target.shape[-2]), bins
        loss = loss + _log_l1(*(F.avg_pool2d(x.flatten(0, 1)[:, None], tile) for x in (magnitude, wanted)))
    return loss


def _log_l1(a: Tensor, b: Tensor) -> Tensor:
    return (torch.log(a + 1e-3) - torch.log(b + 1e-3)).abs().mean()


def mel_distance(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Log-mel distance per item [B]: mean |difference| of natural-log mel magnitudes.

    Floor 1e-5 (-100 dB), 80 bands, windows of 1024 samples with hop 256.
    """
    a = mel_magnitude(audio, sample_rate, 1024, 80).clamp(min=1e-5).log()
    b = mel_magnitude(target, sample_rate, 1024, 80).clamp(min=1e-5).log()
    return (a - b).abs().mean((1, 2, 3))


def si_sdr(audio: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio per item [B], dB (Le Roux et al., arXiv:1811.02508)."""
    a = audio.float() - audio.float().mean(-1, keepdim=True)
    t = target.float() - target.float().mean(-1, keepdim=True)
    scale = (a * t).sum((1, 2), keepdim=True) / t.square().sum((1, 2), keepdim=True).clamp(min=1e-8)
    signal = scale * t
    noise = (a - signal).square().sum((1, 2))
    return 10 * torch.log10(signal.square().sum((1, 2)).clamp(min=1e-8) / noise.clamp(min=1e-8))
