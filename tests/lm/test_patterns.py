"""Patterns: every code has one place, the inverse is exact, and nothing is predicted from its own future."""

import pytest
import torch

from audiogen.errors import InputError
from audiogen.lm.patterns import PATTERNS, deinterleave, interleave, make_pattern

PAD = 99


@pytest.mark.parametrize("num_frames", [0, 1, 7])
@pytest.mark.parametrize("num_codebooks", [1, 3])
@pytest.mark.parametrize("name", PATTERNS)
def test_deinterleave_inverts_interleave(name: str, num_codebooks: int, num_frames: int) -> None:
    codes = torch.randint(0, 50, (2, num_codebooks, num_frames), generator=torch.Generator().manual_seed(0))
    pattern = make_pattern(name, num_codebooks, num_frames)
    steps = interleave(codes, pattern, PAD)
    assert torch.equal(deinterleave(steps, pattern), codes)
    assert (steps[:, :, 0] == PAD).all()
    assert (steps != PAD).sum() == codes.numel()  # each code once, special tokens elsewhere


@pytest.mark.parametrize("name", PATTERNS)
def test_frames_of_a_codebook_stay_in_order(name: str) -> None:
    pattern = make_pattern(name, 3, 7)
    assert (pattern.step.diff(dim=1) > 0).all()
    assert (pattern.step.diff(dim=0) >= 0).all()  # and a finer codebook never precedes a coarser one


def test_deinterleave_keeps_trailing_axes() -> None:
    pattern = make_pattern("delay", 3, 7)
    steps = interleave(torch.arange(42).view(2, 3, 7), pattern, PAD)
    logits = torch.stack([steps, -steps], dim=-1)
    assert torch.equal(deinterleave(logits, pattern)[..., 1], -deinterleave(steps, pattern))


def test_layouts_written_out() -> None:
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6], [7, 8, 9]]])
    _ = PAD
    assert interleave(codes, make_pattern("delay", 3, 3), PAD).tolist() == [
        [[_, 1, 2, 3, _, _], [_, _, 4, 5, 6, _], [_, _, _, 7, 8, 9]]
    ]
    assert interleave(codes, make_pattern("delay", 3, 3, [0, 0, 1]), PAD).tolist() == [
        [[_, 1, 2, 3, _], [_, 4, 5, 6, _], [_, _, 7, 8, 9]]
    ]
    assert interleave(codes, make_pattern("parallel", 3, 3), PAD).tolist() == [
        [[_, 1, 2, 3], [_, 4, 5, 6], [_, 7, 8, 9]]
    ]
    assert interleave(codes, make_pattern("flatten", 3, 3), PAD).tolist() == [
        [[_, 1, _, _, 2, _, _, 3, _, _], [_, _, 4, _, _, 5, _, _, 6, _], [_, _, _, 7, _, _, 8, _, _, 9]]
    ]
    assert interleave(codes, make_pattern("coarse_first", 3, 3), PAD).tolist() == [
        [[_, 1, 2, 3, _, _, _], [_, _, _, _, 4, 5, 6], [_, _, _, _, 7, 8, 9]]
    ]


def test_unknown_pattern_names_the_allowed_ones() -> None:
    with pytest.raises(
        InputError, match="'delayed' is unknown; allowed: delay, parallel, flatten, coarse_first"
    ):
        make_pattern("delayed", 3, 7)
