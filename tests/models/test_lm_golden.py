"""A tiny AudioGen release, opened as any model is, gives what the public implementation computed from it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from audiogen.interfaces import Condition
from audiogen.lm.model import TokenLM, teacher_forcing
from audiogen.lm.patterns import deinterleave, interleave
from audiogen.lm.sample import TokenRequest, TokenSampling, generate_tokens
from audiogen.models.build import load_lm
from audiogen.text.condition import null

GREEDY = TokenSampling(temperature=0)


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[TokenLM, Condition, dict[str, Tensor]]:
    folder = shared / "fixtures" / "audiogen_tiny"
    loaded = load_lm(folder)
    expected = load_file(folder / "expected.safetensors")
    with torch.no_grad():
        tokens = loaded.conditioner.output_proj(expected["text_features"])
    return loaded.lm, Condition(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool)), expected


def rows(condition: Condition, count: int) -> Condition:
    return Condition(condition.tokens.expand(count, -1, -1), condition.mask.expand(count, -1))


def test_delay_interleaving(golden: tuple[TokenLM, Condition, dict[str, Tensor]]) -> None:
    lm, _, expected = golden
    steps = interleave(expected["lm_codes"], lm.config.pattern_of(12), lm.special)
    assert torch.equal(steps, expected["lm_steps"])
    assert torch.equal(steps[0] != lm.special, expected["lm_step_mask"].bool())


def test_logits(golden: tuple[TokenLM, Condition, dict[str, Tensor]]) -> None:
    lm, text, expected = golden
    with torch.no_grad():
        with_text = lm(expected["lm_steps"], rows(text, 2))
        torch.testing.assert_close(with_text, expected["logits_text"], atol=1e-4, rtol=0)
        for no_text in (None, null(2, 64)):
            without = lm(expected["lm_steps"], no_text)
            torch.testing.assert_close(without, expected["logits_null"], atol=1e-4, rtol=0)
    assert (expected["logits_text"] - expected["logits_null"]).abs().max() > 0.1  # the text does something


def test_training_logits_are_ours_before_the_tail(
    golden: tuple[TokenLM, Condition, dict[str, Tensor]],
) -> None:
    lm, text, expected = golden
    example = teacher_forcing(lm, expected["lm_codes"])
    with torch.no_grad():
        logits = lm(example.inputs, rows(text, 2))
    predicted = F.pad(logits, (0, 0, 1, 0))  # those at step s predict step s + 1
    pattern = lm.config.pattern_of(12)
    aligned = deinterleave(predicted, pattern)
    theirs = expected["train_mask"].bool()
    assert torch.equal(theirs[0], pattern.step <= 12)  # they leave out the steps after T
    torch.testing.assert_close(aligned[theirs], expected["train_logits"][theirs], atol=1e-4, rtol=0)


def test_greedy_generation_and_continuation(golden: tuple[TokenLM, Condition, dict[str, Tensor]]) -> None:
    lm, text, expected = golden
    codes = generate_tokens(lm, TokenRequest(text, 12, guidance=3.0, seeds=[0]), GREEDY)
    assert torch.equal(codes, expected["greedy_codes"])
    request = TokenRequest(text, 12, [0], guidance=3.0, prompt=expected["prompt_codes"])
    continued = generate_tokens(lm, request, GREEDY)
    assert torch.equal(continued, expected["continued_codes"])
