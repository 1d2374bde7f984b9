"""Griffin-Lim's two steps: the kernel and PyTorch against the definition, for sizes that fit no vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audiogen import griffin_lim

# n_fft, hop, frames: factors 2, 3, 4 and 5; a hop that does not divide n_fft; less and more frames than any vector has
SIZES = [(1280, 320, 20), (512, 160, 17), (30, 10, 3), (36, 9, 33), (600, 150, 16), (8, 4, 1), (2, 1, 5)]
OTHERS = [(14, 7, 5), (15, 5, 4)]  # which the kernel does not take


@pytest.fixture(params=["kernel", "PyTorch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "PyTorch":
        monkeypatch.setattr(griffin_lim, "_transform", lambda n_fft, hop: None)
    elif griffin_lim._transform(8, 4) is None:
        pytest.skip("there is no C++ compiler")
    return str(request.param)


def example(n_fft: int, hop: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spectra, magnitudes, sums of before and audio of two rows."""
    torch.manual_seed(0)
    num_bins, length = n_fft // 2 + 1, (count - 1) * hop + n_fft
    spectra = torch.randn(2, 1, count, num_bins, dtype=torch.complex64)
    return (
        spectra,
        torch.rand(2, 1, count, num_bins),
        torch.randn(2, 1, n_fft - hop),
        torch.randn(2, 1, length),
    )


@pytest.mark.parametrize(("n_fft", "hop", "count"), SIZES + OTHERS)
def test_frames_are_added_where_they_belong(way: str, n_fft: int, hop: int, count: int) -> None:
    rotation, magnitude, before, _ = example(n_fft, hop, count)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    frames = torch.fft.irfft(rotation.to(torch.complex128) * magnitude, n_fft) * window
    expected = torch.zeros(2, 1, (count - 1) * hop + n_fft, dtype=torch.float64)
    expected[..., : n_fft - hop] += before
    squares = torch.zeros((count - 1) * hop + n_fft, dtype=torch.float64)
    for t in range(count):
        expected[..., t * hop : t * hop + n_fft] += frames[:, :, t]
        squares[t * hop : t * hop + n_fft] += window.square()
    found = griffin_lim.add_frames(rotation, magnitude, before, n_fft, hop)
    torch.testing.assert_close(found, expected.float(), atol=2e-6, rtol=1e-5)
    weights = griffin_lim.envelope(n_fft, hop, count, torch.device("cpu"))
    torch.testing.assert_close(weights, squares.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("n_fft", "hop", "count"), SIZES + OTHERS)
def test_rotations_go_ahead_of_the_spectra_of_the_sound(way: str, n_fft: int, hop: int, count: int) -> None:
    previous, _, _, audio = example(n_fft, hop, count)
    window = torch.hann_window(n_fft, dtype=torch.float64)
    expected = torch.fft.rfft(audio.double().unfold(-1, n_fft, hop) * window)
    ahead = previous + 1.7 * (expected - previous)
    rotation, consistent = griffin_lim.spectra(audio, previous, n_fft, hop, 0.7)
    torch.testing.assert_close(consistent, expected.to(torch.complex64), atol=2e-5, rtol=1e-5)
    error = (rotation - ahead / ahead.abs()).abs() * ahead.abs()
    assert error.max() < 1e-4
    silent, _ = griffin_lim.spectra(torch.zeros_like(audio), torch.zeros_like(previous), n_fft, hop, 0.7)
    assert silent.abs().max() == 0


@pytest.mark.parametrize("cut", [1, 7, 16, 19])
def test_a_block_has_the_same_bits_as_the_whole(way: str, cut: int) -> None:
    n_fft, hop, count = SIZES[0]
    rotation, magnitude, before, audio = example(n_fft, hop, count)
    whole = griffin_lim.add_frames(rotation, magnitude, before, n_fft, hop)
    first = griffin_lim.add_frames(rotation[:, :, :cut], magnitude[:, :, :cut], before, n_fft, hop)
    second = griffin_lim.add_frames(
        rotation[1:, :, cut:], magnitude[1:, :, cut:], first[1:, :, cut * hop :], n_fft, hop
    )
    assert torch.equal(torch.cat([first[1:, :, : cut * hop], second], -1), whole[1:])
    rotations, _ = griffin_lim.spectra(audio, rotation, n_fft, hop, 0.5)
    later, _ = griffin_lim.spectra(audio[1:, :, cut * hop :], rotation[1:, :, cut:], n_fft, hop, 0.5)
    assert torch.equal(later, rotations[1:, :, cut:])


def test_the_kernel_is_not_asked_for_gradients_or_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(n_fft: int, hop: int) -> None:
        raise AssertionError

    monkeypatch.setattr(griffin_lim, "_transform", refuse)
    rotation, magnitude, before, _ = example(8, 4, 3)
    sums = griffin_lim.add_frames(rotation, magnitude.requires_grad_(), before, 8, 4)
    sums.square().sum().backward()
    assert magnitude.grad is not None and magnitude.grad.abs().sum() > 0
    doubles = magnitude.detach().double(), before.double()
    assert griffin_lim.add_frames(rotation.to(torch.complex128), *doubles, 8, 4).dtype == torch.float64


def test_no_frames_leave_the_sums_as_they_are() -> None:
    before, none = torch.randn(1, 1, 4), torch.zeros(1, 1, 0, 5, dtype=torch.complex64)
    assert torch.equal(griffin_lim.add_frames(none, none.real, before, 8, 4), before)
    assert all(found.shape == none.shape for found in griffin_lim.spectra(before, none, 8, 4, 0.5))
