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

from audiogen import distributed
from audiogen.spectrogram import mel_filterbank

AdversarialKind = Literal["hinge", "lsgan"]

# Of `log_magnitude_distance` (docs/LOG.md has the trials).
BIN_WEIGHT = 0.3
TILES = ((1, 5), (4, 1), (4, 5), (12, 3))  # frames and bins that are averaged together
LOG_FLOOR = 1e-3  # -60 dB: added to magnitudes before the logarithm, so that silence does not dominate
MEL_FLOOR = 1e-5  # -100 dB


def adversarial_generator(logits: Sequence[Tensor], kind: AdversarialKind = "hinge") -> Tensor:
    """Scores of the generator's output, any shapes, towards 1 -> scalar: mean over the discriminators."""
    hinge = kind == "hinge"
    errors = [1 - score.float() for score in logits]
    return _mean([torch.relu(error).mean() if hinge else error.square().mean() for error in errors])


def adversarial_discriminator(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], kind: AdversarialKind = "hinge"
) -> Tensor:
    """Real scores towards 1, fake ones towards -1 (hinge) or 0 (least squares) -> scalar, mean over discriminators."""
    terms = []
    for real, fake in zip(real_logits, fake_logits, strict=True):
        real, fake = real.float(), fake.float()
        if kind == "hinge":
            terms.append(torch.relu(1 - real).mean() + torch.relu(1 + fake).mean())
        else:
            terms.append((1 - real).square().mean() + fake.square().mean())
    return _mean(terms)


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over discriminators and layers of |real - fake| relative to the mean |real| -> scalar; real is detached."""
    pairs = [pair for layers in zip(real, fake, strict=True) for pair in zip(*layers, strict=True)]
    sizes = torch.stack([r.detach().float().abs().mean() for r, _ in pairs])
    sizes = distributed.all_reduce_sum(sizes) / distributed.world()  # of the whole batch
    sizes = sizes.clamp(min=1e-6)  # where all features are 0
    terms = [(r.detach().float() - f.float()).abs().mean() for r, f in pairs]
    return _mean([term / size for term, size in zip(terms, sizes, strict=True)])


def _mean(terms: list[Tensor]) -> Tensor:  # scalars -> scalar
    return torch.stack(terms).mean()


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # what is cached during inference must serve training as well
def _mel_basis(sample_rate: int, n_fft: int, num_mels: int, device: str) -> tuple[Tensor, Tensor]:
    """Window [n_fft] and mel matrix [F, M]; constants, so sharing them between calls is safe."""
    return (
        torch.hann_window(n_fft, device=device),
        mel_filterbank(sample_rate, n_fft, num_mels).to(device),
    )


def mel_magnitude(audio: Tensor, sample_rate: int, n_fft: int, num_mels: int) -> Tensor:
    """[B, C, N] -> mel-weighted magnitude spectrogram [B, C, M, time], float32, with hops of n_fft / 4."""
    window, basis = _mel_basis(sample_rate, n_fft, num_mels, str(audio.device))
    with torch.autocast(audio.device.type, enabled=False):
        spectrum = torch.stft(
            rearrange(audio.float(), "b c n -> (b c) n"),
            n_fft,
            n_fft // 4,
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
    floor: float = MEL_FLOOR,
) -> Tensor:
    """Distance of audio [B, C, N] from a target -> scalar: L1 of mel magnitudes, and L1 and RMS error of their logs.

    Mean over the window lengths. The root of the mean square is per frame over the mel bands (spectral convergence of
    the log spectrum). Short windows have n_fft / 4 bands at most: of more, some would be empty.
    """
    terms = []
    for n_fft in n_ffts:
        mels = min(num_mels, n_fft // 4)
        a = mel_magnitude(audio, sample_rate, n_fft, mels)  # [B, C, M, time]
        b = mel_magnitude(target, sample_rate, n_fft, mels)
        gap = torch.log(a.clamp(min=floor)) - torch.log(b.clamp(min=floor))
        rms = torch.sqrt(gap.square().mean(-2) + 1e-8).mean()  # 1e-8: the root's gradient is infinite at 0
        terms.append((a - b).abs().mean() + gap.abs().mean() + rms)
    return _mean(terms)


def with_middle_and_side(audio: Tensor) -> Tensor:
    """Stereo [B, 2, N] -> [B, 4, N], with (L + R) / 2 and (L - R) / 2; other sounds as they are.

    Magnitudes of each channel alone do not change with the sign or the delay of one of them: what the two share shows
    in the magnitudes of their sum and difference (Steinmetz et al., arXiv:2010.10291).
    """
    if audio.shape[1] != 2:
        return audio
    left, right = audio.unbind(1)
    return torch.stack([left, right, (left + right) / 2, (left - right) / 2], 1)


def log_magnitude_distance(
    log_magnitude: Tensor, target: Tensor, sample_rate: int, num_mels: int = 80
) -> Tensor:
    """L1 between log magnitudes [B, C, T, F] -> scalar: bin by bin, in mel bands, and in `TILES`.

    Single bins show harmonics, but most of their variance is the randomness of noise, which a few kbit/s cannot carry;
    with this loss alone a codec spends its bits on it. Tiles average the randomness out and keep partials, envelopes
    and beats. Mel bands keep the level: the best log magnitude of noise in a single bin is its median, which is below
    its power. docs/LOG.md has the figures.
    """
    _, basis = _mel_basis(sample_rate, 2 * (target.shape[-1] - 1), num_mels, str(target.device))
    magnitude, wanted = torch.exp(log_magnitude), torch.exp(target)
    # [.., M]
    loss = BIN_WEIGHT * (log_magnitude - target).abs().mean() + _log_l1(magnitude @ basis, wanted @ basis)
    for frames, bins in TILES:
        tile = min(frames, target.shape[-2]), bins
        loss = loss + _log_l1(*(F.avg_pool2d(x.flatten(0, 1)[:, None], tile) for x in (magnitude, wanted)))
    return loss


def _log_l1(a: Tensor, b: Tensor) -> Tensor:  # magnitudes of any shape -> scalar
    return (torch.log(a + LOG_FLOOR) - torch.log(b + LOG_FLOOR)).abs().mean()


def mel_distance(audio: Tensor, target: Tensor, sample_rate: int) -> Tensor:
    """Log-mel distance of audio [B, C, N] per item [B]: mean |difference| of natural-log mel magnitudes.

    80 bands, windows of 1024 samples with hop 256, floor -100 dB.
    """
    a = mel_magnitude(audio, sample_rate, 1024, 80).clamp(min=MEL_FLOOR).log()
    b = mel_magnitude(target, sample_rate, 1024, 80).clamp(min=MEL_FLOOR).log()
    return (a - b).abs().mean((1, 2, 3))


def si_sdr(audio: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio of audio [B, C, N], dB per item [B] (arXiv:1811.02508)."""
    a = audio.float() - audio.float().mean(-1, keepdim=True)
    t = target.float() - target.float().mean(-1, keepdim=True)
    # 1e-8: silence gives a finite value
    scale = (a * t).sum((1, 2), keepdim=True) / t.square().sum((1, 2), keepdim=True).clamp(min=1e-8)
    signal = scale * t
    noise = (a - signal).square().sum((1, 2))
    return 10 * torch.log10(signal.square().sum((1, 2)).clamp(min=1e-8) / noise.clamp(min=1e-8))
