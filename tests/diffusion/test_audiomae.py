"""AudioMAE as AudioLDM 2 uses it: kaldi's log-mel, timm's tensors by name, features in order of time and bins."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from audiogen.audio import resample
from audiogen.diffusion.loa import FLOOR, fbank, load_audiomae, mel_triangles, normalised, pool
from audiogen.errors import InputError
from tests.diffusion.tiny_encoders import write_audiomae


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """256 frames by 128 bins: 16 x 8 patches, two vectors; five blocks of two heads."""
    return write_audiomae(tmp_path_factory.mktemp("audiomae"), width=128, num_blocks=5, num_patches=128)


def tone(hz: float, num_samples: int = 8000) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hz * torch.arange(num_samples) / 16000)


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # 128 of them are narrower than the lowest bins
def test_log_mel_is_kaldis() -> None:
    sound = tone(700.0) + 0.05 * torch.randn(8000, generator=torch.Generator().manual_seed(0)) + 0.1
    filters = mel_filter_bank(
        257, 128, 20, 8000, 16000, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    expected = spectrogram(
        (sound - sound.mean()).numpy(),
        window_function(400, "hann", periodic=False),
        frame_length=400,
        hop_length=160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=FLOOR,
        remove_dc_offset=True,
    )
    torch.testing.assert_close(fbank(sound[None])[0], torch.from_numpy(expected.T), atol=2e-3, rtol=0)


@pytest.mark.parametrize("hz", [1000.0, 2500.0, 5000.0])
def test_a_tone_is_loudest_in_the_bin_of_its_mel(hz: float) -> None:
    mel, low, high = (1127 * math.log1p(f / 700) for f in (hz, 20.0, 8000.0))
    place = (mel - low) / (high - low) * 129 - 1
    assert (fbank(tone(hz)[None]).mean(1).argmax() - place).abs() < 1


def test_filters_sum_to_one_between_the_outer_centres_and_a_shift_of_a_hop_is_one_of_a_frame() -> None:
    torch.testing.assert_close(mel_triangles()[4:250].sum(1), torch.ones(246))
    sounds = torch.stack([tone(400.0) * torch.linspace(0, 1, 8000), torch.randn(8000)])
    found = fbank(sounds)
    assert found.shape == (2, 48, 128)
    torch.testing.assert_close(fbank(sounds[:, 160:]), found[:, 1:], atol=2e-3, rtol=0)
    assert (fbank(torch.full((1, 400), 0.5)) == math.log(FLOOR)).all()  # a constant is silence


def test_missing_frames_are_zeros_before_scaling_and_the_rest_is_cut() -> None:
    features = torch.randn(2, 3, 128)
    found = normalised(features, 5)
    torch.testing.assert_close(found[:, :3] * 9.1379948 - 4.2677393, features)
    torch.testing.assert_close(found[:, 3:], torch.full((2, 2, 128), 4.2677393 / 9.1379948))
    torch.testing.assert_close(normalised(features, 2), found[:, :2])


def test_features_are_those_of_the_tensors_by_timms_names(folder: Path) -> None:
    """Written out from the file: patches by hand, heads by hand, the mean of the last three blocks."""
    of = load_file(folder / "model.safetensors")
    spectrogram = torch.randn(2, 256, 128)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ of[f"{name}.weight"].T + of[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return (
            x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * of[f"{name}.weight"] + of[f"{name}.bias"]
        )

    x = torch.empty(2, 16, 8, 128)
    for time in range(16):
        for bins in range(8):
            patch = spectrogram[:, 16 * time : 16 * time + 16, 16 * bins : 16 * bins + 16].flatten(1)
            x[:, time, bins] = (
                patch @ of["patch_embed.proj.weight"].flatten(1).T + of["patch_embed.proj.bias"]
            )
    x = torch.cat([of["cls_token"].expand(2, 1, 128), x.reshape(2, 128, 128)], dim=1) + of["pos_embed"]
    normed = []
    for block in range(5):
        name = f"blocks.{block}"
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").split(128, dim=-1)
        heads = [
            (q[..., part] @ k[..., part].mT / 8).softmax(-1) @ v[..., part]
            for part in (slice(0, 64), slice(64, 128))
        ]
        x = x + linear(torch.cat(heads, dim=-1), f"{name}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
        normed.append(norm(x, "norm"))
    expected = (sum(normed[-3:]) / 3)[:, 1:].reshape(2, 16, 8, 128)
    with torch.no_grad():
        torch.testing.assert_close(load_audiomae(str(folder))(spectrogram), expected, atol=1e-4, rtol=1e-4)


def test_vectors_are_of_mono_at_16_khz_with_silence_after_a_short_sound(folder: Path) -> None:
    model = load_audiomae(str(folder))
    audio = 0.1 * torch.randn(3, 2, 20000, generator=torch.Generator().manual_seed(1))  # 0.83 s of 2.56 s
    found = model.vectors(audio, 24000)
    assert found.shape == (3, 2, 128)
    mono = F.pad(resample(audio.mean(1), 24000, 16000), (0, 60000))[:, : 256 * 160]
    with torch.no_grad():
        torch.testing.assert_close(found, pool(model(normalised(fbank(mono), 256)).movedim(-1, 1), 2, 128))
    torch.testing.assert_close(model.vectors(audio[1:2], 24000), found[1:2], atol=1e-5, rtol=1e-5)
    long = torch.cat([mono, torch.randn(3, 5000)], dim=1)[:, None]
    torch.testing.assert_close(model.vectors(long, 16000), found, atol=1e-5, rtol=1e-5)


def test_the_final_norm_may_have_timms_other_name(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: t
        for name, t in tensors.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    spectrogram = torch.randn(1, 256, 128)
    with torch.no_grad():
        assert torch.equal(load_audiomae(str(tmp_path))(spectrogram), load_audiomae(str(folder))(spectrogram))


@pytest.mark.parametrize(
    ("without", "more", "message"),
    [
        ("blocks.1.mlp.fc2.bias", {}, "missing blocks.1.linear2.bias"),
        ("", {"head.weight": torch.zeros(5, 128)}, "unexpected head.weight"),
        ("pos_embed", {}, "holds no AudioMAE encoder in timm's layout: pos_embed"),
        (
            "",
            {"pos_embed": torch.zeros(1, 128, 128)},
            "128 positions of width 128; .* one, and 64 or a multiple",
        ),
        (
            "",
            {"patch_embed.proj.weight": torch.zeros(128, 3, 16, 16)},
            r"patches.weight is \[128, 3, 16, 16\]",
        ),
    ],
)
def test_other_tensors_are_refused_in_one_line(
    without: str, more: dict[str, Tensor], message: str, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: t for name, t in tensors.items() if name != without} | more, tmp_path / "model.safetensors"
    )
    with pytest.raises(InputError, match=message) as caught:
        load_audiomae(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a hub id"):
        load_audiomae("audiomae")
    with pytest.raises(InputError, match=r"model.safetensors does not exist"):
        load_audiomae(str(tmp_path))
