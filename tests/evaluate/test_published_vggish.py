"""VGGish: the front end in closed form, the trunk against plain functions on the public names, whitening."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from audiogen.errors import InputError
from audiogen.evaluate.published import EXAMPLE, FRAMES, HOP, Pca, Vggish, load_vggish, read_pca


def small(seed: int = 0) -> Vggish:
    torch.manual_seed(seed)
    model = Vggish(width=3, hidden=10, dim=6)
    for name, tensor in model.named_parameters():
        torch.nn.init.normal_(tensor, std=0.2 if name.endswith("weight") else 0.1)
    return model.eval().requires_grad_(False)


def log_mel(audio: np.ndarray) -> np.ndarray:
    """[T, 64] in NumPy from the definitions of the original, in float64."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frames = np.stack([audio[start : start + 400] * window for start in range(0, len(audio) - 399, 160)])
    magnitudes = np.abs(np.fft.rfft(frames, 512))
    mel = [1127 * math.log(1 + hertz / 700) for hertz in np.arange(257) * 16000 / 512]
    low, high = (1127 * math.log(1 + hertz / 700) for hertz in (125, 7500))
    step = (high - low) / 65
    bands = []
    for band in range(64):
        centre = low + (band + 1) * step
        triangle = np.maximum(0, 1 - np.abs(np.array(mel) - centre) / step)
        triangle[0] = 0
        bands.append(magnitudes @ triangle)
    return np.log(np.stack(bands, -1) + 0.01)


def test_log_mel_is_the_definition():
    audio = torch.randn(2, 5321, generator=torch.Generator().manual_seed(1)) * 0.2
    mel = small().log_mel(audio)
    assert mel.shape == (2, 1 + (5321 - 400) // 160, 64)
    np.testing.assert_allclose(mel[1].numpy(), log_mel(audio[1].double().numpy()), atol=1e-4)
    silence = small().log_mel(torch.zeros(1, 400))
    torch.testing.assert_close(silence, torch.full((1, 1, 64), math.log(0.01)))


def test_the_trunk_is_what_the_names_say_and_ends_before_the_rectifier():
    model, audio = small(), torch.randn(2, EXAMPLE, generator=torch.Generator().manual_seed(2))
    state = model.state_dict()
    x = model.log_mel(audio)[:, None]
    for number, pooled in ((0, True), (3, True), (6, False), (8, True), (11, False), (13, True)):
        x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1)
        x = x.clamp(min=0)
        if pooled:
            x = x.unflatten(3, (-1, 2)).amax(4).unflatten(2, (-1, 2)).amax(3)
    assert x.shape == (2, 24, 6, 4)
    x = x.permute(0, 2, 3, 1).reshape(2, -1)  # time, mel, channel: TensorFlow's order
    for number in (0, 2, 4):
        x = x @ state[f"embeddings.{number}.weight"].T + state[f"embeddings.{number}.bias"]
        x = x.clamp(min=0) if number < 4 else x
    assert (x < 0).any()
    torch.testing.assert_close(model(audio)[:, 0], x, atol=1e-5, rtol=1e-4)


def test_examples_follow_one_another_and_the_unfinished_last_one_is_dropped():
    model = small()
    audio = torch.randn(1, 3 * FRAMES * HOP, generator=torch.Generator().manual_seed(3))
    whole = model(audio)
    assert whole.shape == (1, 2, 6)  # the third lacks the 240 samples that its last frame reaches on
    complete = model(F.pad(audio, (0, 240)))
    assert complete.shape == (1, 3, 6)
    for example in range(2):
        start = example * FRAMES * HOP
        alone = model(audio[:, start : start + EXAMPLE])
        torch.testing.assert_close(whole[:, example], alone[:, 0], atol=1e-5, rtol=1e-4)
    short = model(audio[:, :5000])
    assert torch.equal(short, model(F.pad(audio[:, :5000], (0, EXAMPLE - 5000))))


def test_a_batch_is_its_rows():
    model, audio = small(), torch.randn(3, 2 * EXAMPLE, generator=torch.Generator().manual_seed(4))
    together = model(audio)
    for row in range(3):
        torch.testing.assert_close(together[row], model(audio[row : row + 1])[0], atol=1e-5, rtol=1e-4)


def test_the_public_size_and_names():
    def published(hidden: int) -> dict[str, tuple[int, ...]]:
        convolutions = {
            0: (1, 64),
            3: (64, 128),
            6: (128, 256),
            8: (256, 256),
            11: (256, 512),
            13: (512, 512),
        }
        linear = {0: (12288, hidden), 2: (hidden, hidden), 4: (hidden, 128)}
        layers = {f"features.{n}": (*channels[::-1], 3, 3) for n, channels in convolutions.items()}
        layers |= {f"embeddings.{n}": widths[::-1] for n, widths in linear.items()}
        weights = {f"{name}.weight": shape for name, shape in layers.items()}
        return weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()}

    model = Vggish(hidden=9)  # 4096 takes a second to fill
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == published(9)
    assert sum(math.prod(shape) for shape in published(4096).values()) == 72_141_184


def test_a_file_is_read_back_with_its_whitening(tmp_path):
    model, audio = small(), torch.randn(2, EXAMPLE + 9, generator=torch.Generator().manual_seed(5))
    torch.save({**model.state_dict(), "pproc.pca_matrix": torch.eye(6)}, tmp_path / "vggish.pth")
    matrix, mean = torch.randn(6, 6), torch.randn(6)
    np.savez(tmp_path / "pca.npz", pca_eigen_vectors=matrix.numpy(), pca_means=mean.numpy()[:, None])
    torch.save({"pca_eigen_vectors": matrix.numpy(), "pca_means": mean.numpy()}, tmp_path / "pca.pth")
    assert torch.equal(load_vggish(tmp_path / "vggish.pth")(audio), model(audio))
    for name in ("pca.npz", "pca.pth"):
        whitened = load_vggish(tmp_path / "vggish.pth", tmp_path / name)(audio)
        expected = torch.stack([matrix @ (row - mean) for row in model(audio)[:, 0]])
        expected = ((expected.clamp(-2, 2) + 2) * 255 / 4).round()
        torch.testing.assert_close(whitened[:, 0], expected, atol=1.001, rtol=0)  # a tie may round either way
        assert (whitened[:, 0] == expected).float().mean() > 0.9


def test_whitening_ends_at_0_and_255():
    pca = Pca(torch.eye(3), torch.tensor([1.0, 0.0, 0.0]))
    assert pca(torch.tensor([1.0, 5.0, -5.0])).tolist() == [128.0, 255.0, 0.0]  # 127.5 rounds to even


def test_what_is_no_vggish_is_refused_with_what_is_wrong(tmp_path):
    state = dict(small().state_dict())
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({k: v for k, v in state.items() if k != "features.8.bias"}, tmp_path / "half.safetensors")
    with pytest.raises(InputError, match="not a VGGish: it has no features.0.weight"):
        load_vggish(tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=r"missing features\.8\.bias"):
        load_vggish(tmp_path / "half.safetensors")
    with pytest.raises(InputError, match=r"pca_eigen_vectors \[6, 6\] and pca_means \[6\] are needed"):
        read_pca(tmp_path / "other.safetensors", 6)
