"""tools/stereo.py: its three figures in closed form, and a line for what is no stereo model."""

import pytest
import torch

from audiogen.errors import InputError
from tools.stereo import line, main, stereo


def test_figures_of_sounds_whose_stereo_is_given() -> None:
    noise = torch.randn(2, 50_000, generator=torch.Generator().manual_seed(0))
    both, left = torch.stack([noise[0], noise[0]]), torch.stack([noise[0], 0.5 * noise[0]])
    wide, opposite = noise, torch.stack([noise[0], -noise[0]])
    found = stereo(torch.stack([both, left, wide, opposite]))
    assert found[:, 0].tolist() == pytest.approx([1, 1, 0, -1], abs=0.02)
    assert found[:, 1].tolist() == pytest.approx(
        [0, 1 / 10, 0.5, 1], abs=0.02
    )  # (1 / 4)^2 / ((3 / 4)^2 + (1 / 4)^2)
    assert found[:, 2].tolist() == pytest.approx([0, 6.02, 0, 0], abs=0.1)
    assert "on the same side 1 of 1" in line("x", found, found)


def test_a_mono_model_is_refused() -> None:
    with pytest.raises(InputError, match="lm_tiny has 1 channel; give a model of stereo sounds"):
        main(["--model", "lm_tiny"])
