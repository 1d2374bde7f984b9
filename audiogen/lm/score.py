"""How likely given codes are, by the steps of any decoder."""

from __future__ import annotations

import torch
from torch import Tensor

from audiogen.interfaces import Condition
from audiogen.lm.patterns import interleave
from audiogen.lm.sample import Decoder
from audiogen.text.condition import stack


@torch.inference_mode()
def log_likelihood(decoder: Decoder, condition: Condition, codes: Tensor, given: int) -> Tensor:
    """Mean log-likelihood, in nats a code, of codes int64 [B, K, T] from frame `given` on, after those before -> [B].

    condition: the text, one row for all. Without guidance, whose mixture of two models is no likelihood of either. The
    steps run one by one, for decoders give the logits of the last alone; the rows run together.
    """
    pattern = decoder.config.pattern_of(codes.shape[2])
    steps = interleave(codes.to(decoder.device), pattern, decoder.special)  # [B, K, S]
    is_scored = (pattern.frame >= given).to(decoder.device)  # [K, S]
    first = int(pattern.step[:, given:].min())
    cache = decoder.new_cache(stack([condition] * len(codes)), len(codes), pattern.num_steps)
    new, total = steps[..., :first], torch.zeros(len(codes), device=decoder.device)
    for step in range(first, pattern.num_steps):
        logits = decoder.step(new, cache).float()  # [B, K, V]
        own = steps[..., step].clamp(max=logits.shape[-1] - 1)  # the special token is not scored
        each = logits.log_softmax(-1).gather(-1, own[..., None])[..., 0]  # [B, K]
        total += (each * is_scored[:, step]).sum(1)
        new = steps[..., step : step + 1]
    return total.cpu() / int(is_scored.sum())
