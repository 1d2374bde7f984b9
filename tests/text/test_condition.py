"""Dropping, joining and the absence of conditions mean the same thing everywhere."""

import pytest
import torch

from audiogen.interfaces import Condition
from audiogen.text.condition import drop, null, stack


def example() -> Condition:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    tokens = torch.randn(2, 3, 5, generator=generator) * mask[..., None]
    return Condition(tokens, mask)


def test_dropped_row_is_a_null_row_and_the_other_is_untouched():
    condition = example()
    dropped = drop(condition, torch.tensor([False, True]))
    alone = stack([null(1, 5), Condition(condition.tokens[1:], condition.mask[1:])])
    assert torch.equal(dropped.tokens, alone.tokens)
    assert torch.equal(dropped.mask, alone.mask)


def test_drop_stops_gradients_and_bad_numbers_of_dropped_rows():
    tokens = torch.full((2, 3, 5), torch.nan)
    tokens[1] = 1.0
    tokens.requires_grad_()
    dropped = drop(Condition(tokens, torch.ones(2, 3, dtype=torch.bool)), torch.tensor([False, True]))
    assert not dropped.tokens[0].any()
    dropped.tokens.sum().backward()
    assert tokens.grad is not None
    assert not tokens.grad[0].any() and tokens.grad[1].all()


def test_drop_refuses_a_mask_of_another_shape():
    with pytest.raises(ValueError, match="bool"):
        drop(example(), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="B = 2"):
        drop(example(), torch.tensor([True, True, False]))


def test_stack_pads_with_masked_zeros():
    condition = example()
    short = Condition(condition.tokens[1:, :2], condition.mask[1:, :2])
    joined = stack([condition, short])
    assert joined.tokens.shape == (3, 3, 5)
    assert torch.equal(joined.tokens[2], condition.tokens[1])  # its third position was padding
    assert joined.mask.tolist() == [[True, True, True], [True, True, False], [True, True, False]]
