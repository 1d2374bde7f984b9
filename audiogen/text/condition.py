"""Operations on a batch of conditions: no text at all, making and joining batches, guidance dropout."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from audiogen.interfaces import Condition


def null(batch: int, width: int, device: torch.device | str = "cpu") -> Condition:
    """No text for `batch` rows: zero tokens [B, 1, D] and one valid position a row.

    Cross-attention without biases turns all-zero rows into exactly zero, so this is the unconditional branch
    of classifier-free guidance.
    """
    mask = torch.ones(batch, 1, dtype=torch.bool, device=device)
    return Condition(torch.zeros(batch, 1, width, device=device), mask)


def from_rows(rows: Sequence[Tensor]) -> Condition:
    """Tokens of each row [L, D], L from row to row -> Condition with tokens [B, max L, D], zeros after a row's end."""
    tokens = pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=tokens.device)
    return Condition(tokens, torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None])


def drop(condition: Condition, keep: Tensor) -> Condition:
    """Replace the rows where `keep` (bool [B]) is False by no text, as `null` and a text of None give.

    Dropout for classifier-free guidance. The caller draws `keep` per item; audiocraft draws once per batch.
    """
    if keep.dtype != torch.bool or keep.shape != condition.mask.shape[:1]:
        raise ValueError(
            f"keep is {keep.dtype} {tuple(keep.shape)}; it must be bool [B] with B = {len(condition.mask)}"
        )
    dropped = ~keep.to(condition.tokens.device)
    # no product: a dropped row must be zero even if its embedding is not finite
    tokens = condition.tokens.masked_fill(dropped[:, None, None], 0.0)
    mask = condition.mask & ~dropped[:, None]
    mask[:, 0] |= dropped
    return Condition(tokens, mask)


def stack(conditions: Sequence[Condition]) -> Condition:
    """Join batches along B, padding L to the longest: [B1, L1, D], [B2, L2, D] -> [B1 + B2, max L, D]."""
    if not conditions:
        raise ValueError("stack needs at least one condition")
    length = max(condition.mask.shape[1] for condition in conditions)
    tokens = [F.pad(c.tokens, (0, 0, 0, length - c.tokens.shape[1])) for c in conditions]
    masks = [F.pad(c.mask, (0, length - c.mask.shape[1])) for c in conditions]
    return Condition(torch.cat(tokens), torch.cat(masks))


def pad_like_peers(conditions: Sequence[Condition]) -> Condition:
    """Join batches along B as `stack`, but let every row attend to its padding: the mask is True everywhere.

    The zeros of the padding take a share of each softmax, so a row's result depends on the longest text beside it,
    as in the public AudioGen and MusicGen. Rows without text stay zero, which attention turns into zero.
    """
    joined = stack(conditions)
    return Condition(joined.tokens, torch.ones_like(joined.mask))


def mix(first: Condition, second: Condition, share: float) -> Condition:
    """Between two texts, B rows each: position by position first + share (second - first), [B, max L, D].

    share 0 is the first and 1 the second. A text that has ended counts as zeros, as no text does.
    """
    if share in (0.0, 1.0):
        return second if share else first
    both = stack([first, second])
    tokens, masks = both.tokens.chunk(2), both.mask.chunk(2)
    return Condition(torch.lerp(tokens[0], tokens[1], share), masks[0] | masks[1])
