"""Log-likelihood of given codes by steps of any decoder, against one pass over the whole sequence."""

import pytest
import torch

from audiogen.interfaces import Condition
from audiogen.lm.kernels.native import NativeLM
from audiogen.lm.kernels.packed import PackedLM
from audiogen.lm.model import LMConfig, TokenLM, teacher_forcing
from audiogen.lm.patterns import PATTERNS, deinterleave
from audiogen.lm.sample import Decoder
from audiogen.lm.score import log_likelihood
from audiogen.native.library import library


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_mean_of_what_follows_given_what_is_before(pattern: str) -> None:
    torch.manual_seed(0)
    lm = TokenLM(LMConfig(3, 11, 8, num_layers=2, num_heads=2, pattern=pattern)).eval()  # type: ignore[arg-type]
    codes = torch.randint(11, (4, 3, 9))
    text = Condition(torch.randn(1, 2, 8), torch.ones(1, 2, dtype=torch.bool))
    inputs = teacher_forcing(lm, codes).inputs
    rows = Condition(text.tokens.expand(4, -1, -1), text.mask.expand(4, -1))
    with torch.no_grad():
        logits = lm(inputs, rows)  # of step s + 1
    logits = torch.cat([logits[:, :, :1], logits], 2)
    each = deinterleave(logits, lm.config.pattern_of(9)).log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    decoders: list[Decoder] = [lm, PackedLM(lm)] + [NativeLM(lm)] * (library() is not None)
    for decoder in decoders:
        for given in (0, 5):
            found = log_likelihood(decoder, text, codes, given)
            assert torch.allclose(found, each[:, :, given:].mean((1, 2)), atol=1e-4), (decoder, given)
