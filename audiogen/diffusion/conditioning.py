"""What a denoiser is conditioned on beside the noisy latents, by where it enters the network. Rows are samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen.interfaces import Condition
from audiogen.text import condition


@dataclass(frozen=True)
class Conditioning:
    """The condition of B rows.

    streams: tokens for cross-attention, each a Condition (tokens [B, L, D], mask [B, L]), in the network's order.
    vector: [B, E], joined to the time embedding, or prepended as a global token, as the network does.
    """

    streams: tuple[Condition, ...] = ()
    vector: Tensor | None = None

    @property
    def num_rows(self) -> int | None:
        """B; None where there is no condition at all, which fits any batch."""
        tensors = [tensor for stream in self.streams for tensor in (stream.tokens, stream.mask)]
        counts = {len(tensor) for tensor in (*tensors, self.vector) if tensor is not None}
        if len(counts) > 1:
            raise ValueError(f"the conditioning has {sorted(counts)} rows; all tensors need the same number")
        return counts.pop() if counts else None

    def rows(self, index: Sequence[int] | Tensor) -> Conditioning:
        """These rows [n], in this order: a part of a batch, or rows repeated for several candidates each."""
        at = torch.as_tensor(index)
        return self._map(lambda tensor: tensor[at.to(tensor.device)])

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """Every tensor changed along B or as a whole; tokens [B, L, D] and masks [B, L] alike."""
        return Conditioning(
            tuple(Condition(change(stream.tokens), change(stream.mask)) for stream in self.streams),
            None if self.vector is None else change(self.vector),
        )


def stack(parts: Sequence[Conditioning]) -> Conditioning:
    """Join batches along B, all with the same streams and tensors; token streams are padded to the longest."""
    vectors = [part.vector for part in parts if part.vector is not None]
    counts = {len(part.streams) for part in parts}
    if len(counts) != 1 or len(vectors) not in (0, len(parts)):
        raise ValueError(f"the parts have {counts} streams, {len(vectors)} a vector; all need the same")
    streams = zip(*(part.streams for part in parts), strict=True)
    joined = tuple(condition.stack(rows) for rows in streams)
    return Conditioning(joined, torch.cat(vectors) if vectors else None)


def mix(first: Conditioning, second: Conditioning, share: float) -> Conditioning:
    """Between two conditions of the same streams, B rows each: 0 is the first, 1 the second; see `condition.mix`."""
    pairs = zip(first.streams, second.streams, strict=True)
    vector = None
    if first.vector is not None and second.vector is not None:
        vector = torch.lerp(first.vector, second.vector, share)
    return Conditioning(tuple(condition.mix(*pair, share) for pair in pairs), vector)


def drop(given: Conditioning, keep: Tensor, nothing: Conditioning) -> Conditioning:
    """Rows where `keep` (bool [B]) is False are replaced by those of `nothing`: dropout for guidance, drawn per item.

    nothing: what guidance will move away from, B rows or one for all.
    """
    batch = given.num_rows
    if keep.dtype != torch.bool or keep.shape != (batch,):
        raise ValueError(f"keep is {keep.dtype} {tuple(keep.shape)}; it must be bool [B] with B = {batch}")
    if nothing.num_rows == 1:
        nothing = nothing.rows([0] * len(keep))
    own = torch.arange(len(keep), device=keep.device)
    return stack([given, nothing]).rows(torch.where(keep, own, own + len(keep)))
