"""A second opinion beside the tagger: statistics of log-mel spectra, and a support vector machine that labels by them.

No network and nothing trained beforehand: the machine is fitted to the reference clips of an evaluation, so nothing it
was trained with is what a model was trained with, unless the reference is. `statistics` alone serves distances of sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import reduce
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F

from audiogen.codec.losses import MEL_FLOOR, mel_magnitude
from audiogen.errors import InputError
from audiogen.evaluate.metrics import Array

RATE, N_FFT = 16000, 1024  # Hz; samples of a window, whose hop is a quarter
MELS, BANDS = 64, 16  # of the spectrum; of the statistics
OCTAVES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # Hz, where each octave of modulation begins
LEAST = 2048  # samples: shorter clips are followed by silence, for changes over time need frames
# Spread of each statistic over real recordings (ESC-10), so that all count alike in distances.
SPREADS = {"mean": 2.0, "std": 0.7, "over time": 0.1, "over bands": 0.25, "modulation": 1.3}
FOLDS = 5  # of the cross-validation
PENALTY = 10.0  # C of the support vector machine; 3 is within 0.03 on ESC-10
ADVICE = "pip install '.[judge]' in the checkout adds a second opinion on label accuracy, by a support vector machine"


def statistics(audio: Tensor) -> Tensor:
    """Mono audio [B, N] at `RATE` -> [B, 69]: level and spread of 16 bands, how they change, how fast they pulse.

    Of natural-log mel magnitudes: mean and standard deviation over time by band, mean absolute change from frame to
    frame by band, the same from band to band, and the log power of modulation in octaves from 0.5 to 32 Hz.
    """
    audio = F.pad(audio.float(), (0, max(0, LEAST - audio.shape[-1])))
    mel = mel_magnitude(audio[:, None], RATE, N_FFT, MELS)[:, 0].clamp(min=MEL_FLOOR).log()  # [B, M, T]
    bands = reduce(mel, "b (band m) t -> b band t", "mean", band=BANDS)
    frames = bands.shape[-1]
    swing = bands - bands.mean(-1, keepdim=True)
    power = (torch.fft.rfft(swing).abs() / frames).square().mean(1)  # [B, frequency of modulation]
    hz = torch.arange(power.shape[-1], device=power.device) * RATE / (N_FFT // 4 * frames)
    octaves = [power[:, (low <= hz) & (hz < 2 * low)].sum(-1) for low in OCTAVES]
    found = {
        "mean": bands.mean(-1),
        "std": bands.std(-1, correction=0),
        "over time": bands.diff(dim=-1).abs().mean(-1),
        "over bands": bands.diff(dim=1).abs().mean(-1),
        "modulation": torch.log(torch.stack(octaves, -1) + 1e-4),
    }
    return torch.cat([values / SPREADS[name] for name, values in found.items()], -1)


class Judge(NamedTuple):
    """Support vector machines that label embeddings: one fitted to all reference clips, and one without each fold.

    models: by fold, None for all. folds: by recording. accuracy: share of the `num` reference clips that the machine
    without their recording labels right.
    """

    models: dict[int | None, Any]
    folds: dict[str, int]
    labels: frozenset[str]
    accuracy: float
    num: int

    def right(self, embeddings: ArrayLike, groups: Sequence[str], wanted: Sequence[str | None]) -> Array:
        """1 where a clip of embeddings [n, D] gets the label wanted [n], else 0; NaN where no reference clip has it.

        groups: the recording that each clip is, or that its prompt describes: a machine fitted to it has no say.
        """
        folds = [self.folds.get(group) for group in groups]
        rows_of = np.asarray(embeddings, dtype=np.float64)
        found = np.full(len(rows_of), np.nan)
        for fold in set(folds):
            rows = np.array([number for number, other in enumerate(folds) if other == fold])
            given = self.models[fold].predict(rows_of[rows])
            for row, label in zip(rows, given, strict=True):
                if wanted[row] in self.labels:
                    found[row] = label == wanted[row]
        return found


def fit_judge(embeddings: ArrayLike, labels: Sequence[str | None], groups: Sequence[str]) -> Judge:
    """Fit to labelled clips [n, D] and their recordings. InputError where scikit-learn or enough clips are missing."""
    try:
        from sklearn.model_selection import GroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError:
        raise InputError(ADVICE) from None
    kept = [number for number, label in enumerate(labels) if label is not None]
    x = np.asarray(embeddings, dtype=np.float64)[kept]
    y = np.array([str(labels[number]) for number in kept])
    recordings = np.array([groups[number] for number in kept])
    num_folds = min(FOLDS, len(set(recordings)))
    splits = list(GroupKFold(num_folds).split(x, y, recordings)) if num_folds > 1 else []
    if not splits or any(len(set(y[rest])) < 2 for rest, _ in splits):
        raise InputError("no second opinion on labels: the reference needs recordings of two labels at least")

    def fit(rows: Any) -> Any:
        return make_pipeline(StandardScaler(), SVC(C=PENALTY)).fit(x[rows], y[rows])

    models: dict[int | None, Any] = {None: fit(slice(None))}
    folds: dict[str, int] = {}
    right = 0
    for fold, (rest, held) in enumerate(splits):
        models[fold] = fit(rest)
        folds |= dict.fromkeys(recordings[held].tolist(), fold)
        right += int((models[fold].predict(x[held]) == y[held]).sum())
    return Judge(models, folds, frozenset(y.tolist()), right / len(y), len(y))
