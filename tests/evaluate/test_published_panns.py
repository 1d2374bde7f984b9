"""CNN14: the front end in closed form, the trunk against plain functions on the public names, real sizes."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.evaluate.published import RATES, Cnn14, load_cnn14
from tests import random_cnn14

SMALL_16K = (16000, 2, 5)  # rate, width, labels


def small(sample_rate: int = 16000, width: int = 2, num_labels: int = 5, seed: int = 0) -> Cnn14:
    """Random weights, and batch norms that are not the identity."""
    torch.manual_seed(seed)
    model = random_cnn14.make(sample_rate, width, num_labels)
    for name, tensor in model.state_dict().items():
        if "bn" in name and tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        if ".conv" in name and name.startswith("conv_block"):
            tensor.mul_(2.4)  # else the signal halves in each of twelve layers
    model.bn0.running_mean.fill_(-40.0)
    model.bn0.running_var.fill_(400.0)
    return model.eval().requires_grad_(False)


def mel_decibels(
    audio: np.ndarray, rate: int, n_fft: int, hop: int, f_min: float, f_max: float
) -> np.ndarray:
    """Log mel [T, 64] in NumPy, from the definitions: reflected ends, periodic Hann, Slaney's scale and norm."""
    padded = np.pad(audio, n_fft // 2, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    frames = [padded[start : start + n_fft] * window for start in range(0, len(audio) + 1, hop)]
    power = np.abs(np.fft.rfft(np.stack(frames))) ** 2  # [T, bins]

    def mel(hz):
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000, 6.4)

    def hertz(value):
        return value * 200 / 3 if value < 15 else 1000 * 6.4 ** ((value - 15) / 27)

    edges = [hertz(value) for value in np.linspace(mel(f_min), mel(f_max), 66)]
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    bands = []
    for left, centre, right in zip(edges, edges[1:], edges[2:], strict=False):
        triangle = np.interp(bins, [left, centre, right], [0, 1, 0], left=0, right=0)
        bands.append(power @ triangle * 2 / (right - left))
    return 10 * np.log10(np.maximum(np.stack(bands, -1), 1e-10))


@pytest.mark.parametrize(
    ("rate", "n_fft", "hop", "f_max"),
    [(32000, 1024, 320, 14000.0), (16000, 512, 160, 8000.0), (8000, 256, 80, 4000.0)],
)
def test_log_mel_is_the_definition(rate, n_fft, hop, f_max):
    audio = torch.randn(2, 3001, generator=torch.Generator().manual_seed(1)) * 0.1
    mel = random_cnn14.make(rate, 1, 5).log_mel(audio).detach().numpy()  # [B, T, M]
    expected = mel_decibels(audio[1].double().numpy(), rate, n_fft, hop, 50.0, f_max)
    assert mel.shape == (2, 1 + 3001 // hop, 64)
    np.testing.assert_allclose(mel[1], expected, atol=2e-3)


def test_silence_is_at_the_floor_and_level_is_in_decibels():
    model = random_cnn14.make(*SMALL_16K)
    assert torch.equal(model.log_mel(torch.zeros(1, 4000)), torch.full((1, 26, 64), -100.0))
    audio = torch.randn(1, 4000, generator=torch.Generator().manual_seed(2))
    difference = model.log_mel(audio) - model.log_mel(audio / 10)
    torch.testing.assert_close(difference, torch.full_like(difference, 20.0), atol=1e-3, rtol=0)


def by_hand(state: dict[str, torch.Tensor], mel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The network as the paper draws it, from the public names of its tensors: mel [B, T, M]."""

    def norm(x, name):
        mean, var, weight, bias = (
            state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        shape = (1, -1, 1, 1)
        return (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt() * weight.view(shape) + bias.view(
            shape
        )

    x = norm(mel.permute(0, 2, 1)[..., None], "bn0")[..., 0].permute(0, 2, 1)[:, None]  # [B, 1, T, M]
    for block in range(1, 7):
        for layer in (1, 2):
            x = F.conv2d(x, state[f"conv_block{block}.conv{layer}.weight"], padding=1)
            x = norm(x, f"conv_block{block}.bn{layer}").clamp(min=0)
        if block < 6:
            even = x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
            x = even.unflatten(3, (-1, 2)).mean(4).unflatten(2, (-1, 2)).mean(3)
    x = x.mean(3)
    pooled = x.max(2).values + x.mean(2)
    embedding = (pooled @ state["fc1.weight"].T + state["fc1.bias"]).clamp(min=0)
    return embedding, embedding @ state["fc_audioset.weight"].T + state["fc_audioset.bias"]


def test_the_trunk_is_what_the_names_say():
    model = small()
    audio = torch.randn(2, 16000, generator=torch.Generator().manual_seed(3)) * 0.3
    output = model(audio)
    embedding, logits = by_hand(model.state_dict(), model.log_mel(audio))
    assert output[0].shape == (2, 64) and output[1].shape == (2, 5)
    assert output[0].std() > 1e-3
    torch.testing.assert_close(output[0], embedding, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output[1], logits, atol=1e-5, rtol=1e-4)


def test_a_batch_is_its_rows_and_short_sounds_are_followed_by_silence():
    model = small()
    audio = torch.randn(3, 7000, generator=torch.Generator().manual_seed(4))
    together = model(audio)
    for row in range(3):
        alone = model(audio[row : row + 1])
        torch.testing.assert_close(together[0][row], alone[0][0], atol=1e-5, rtol=1e-4)
    short = model(audio[:, :100])
    assert short[0].isfinite().all()
    assert torch.equal(short[1], model(F.pad(audio[:, :100], (0, 31 * 160 - 100)))[1])


def test_the_public_size_and_names():
    state = Cnn14(width=2).state_dict()  # the public 64 only makes it slower
    blocks = [
        f"conv_block{block}.{name}"
        for block in range(1, 7)
        for name in [f"conv{layer}.weight" for layer in (1, 2)]
        + [
            f"bn{layer}.{part}"
            for layer in (1, 2)
            for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ]
    ]
    norm = [
        f"bn0.{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    ]
    heads = [f"{layer}.{part}" for layer in ("fc1", "fc_audioset") for part in ("weight", "bias")]
    front = [
        "spectrogram_extractor.stft.conv_real.weight",
        "spectrogram_extractor.stft.conv_imag.weight",
        "logmel_extractor.melW",
    ]
    assert set(state) == {*blocks, *norm, *heads, *front}
    assert state[front[0]].shape == state[front[1]].shape == (513, 1, 1024)
    assert state[front[2]].shape == (513, 64)
    assert state["conv_block6.conv1.weight"].shape == (64, 32, 3, 3)
    assert state["fc1.weight"].shape == (64, 64) and state["fc_audioset.weight"].shape == (527, 64)


def test_files_tell_their_rate_and_size(tmp_path):
    audio = torch.randn(1, 9000, generator=torch.Generator().manual_seed(5))
    for bins, rate in RATES.items():
        model = small(rate, num_labels=7)
        path = tmp_path / f"{bins}.pth"
        torch.save({"iteration": 1, "model": model.state_dict(), "sampler": {"queue": [1, 2]}}, path)
        loaded = load_cnn14(path)
        assert loaded.sample_rate == rate and not loaded.training
        assert torch.equal(loaded(audio)[0], model(audio)[0])


def test_what_is_no_cnn14_is_refused_with_what_is_wrong(tmp_path):
    state = dict(small().state_dict())
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({**state, "logmel_extractor.melW": torch.zeros(100, 64)}, tmp_path / "bins.safetensors")
    save_file({k: v for k, v in state.items() if k != "fc1.bias"}, tmp_path / "half.safetensors")
    for name, message in {
        "other": "not a CNN14 of PANNs: it has no logmel_extractor.melW",
        "bins": "over 100 bins; allowed are 513, 257, 129",
        "half": "missing fc1.bias",
    }.items():
        with pytest.raises(InputError, match=message):
            load_cnn14(tmp_path / f"{name}.safetensors")
