"""What a denoiser is told beside the noisy latents, by the route it takes into the network.

Systems differ in what they condition on and in where it enters; a recipe names the routes. Rows are samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audiogen.interfaces import Condition
from audiogen.text import condition


@dataclass(frozen=True)
class Routes:
    """The condition of B rows.

    cross: streams of tokens for cross-attention, each a Condition (tokens [B, L, D], mask [B, L]), in the
    network's order. vector: [B, E], joined to the time embedding, or prepended as a global token, as the network does.
    channels: [B, D', T] or [B, D', T, M], joined to the latents along their channels.
    """

    cross: tuple[Condition, ...] = ()
    vector: Tensor | None = None
    channels: Tensor | None = None


def num_rows(routes: Routes) -> int | None:
    """B; None where there is no condition at all, which fits any batch."""
    counts = {len(tensor) for tensor in _tensors(routes)}
    if len(counts) > 1:
        raise ValueError(f"the routes have {sorted(counts)} rows; all must have the same number")
    return counts.pop() if counts else None


def stack(parts: Sequence[Routes]) -> Routes:
    """Join batches along B; token streams are padded to the longest. All parts must take the same routes."""
    taken = [(len(part.cross), part.vector is None, part.channels is None) for part in parts]
    if len(set(taken)) != 1:
        raise ValueError(f"(cross streams, no vector, no channels) of the parts are {taken}; they must agree")
    vectors = [part.vector for part in parts if part.vector is not None]
    channels = [part.channels for part in parts if part.channels is not None]
    return Routes(
        cross=tuple(
            condition.stack(streams) for streams in zip(*(part.cross for part in parts), strict=True)
        ),
        vector=torch.cat(vectors) if vectors else None,
        channels=torch.cat(channels) if channels else None,
    )


def rows(routes: Routes, index: Sequence[int] | Tensor) -> Routes:
    """These rows, in this order: a part of a batch, or rows repeated for several candidates each."""
    at = torch.as_tensor(index)
    return _map(routes, lambda tensor: tensor[at.to(tensor.device)])


def null(routes: Routes, vector: bool = False) -> Routes:
    """No text in the shape of these routes: tokens zero, all attended to; a system without its own null text.

    vector: the vector is text, too, and becomes zero; it stays where it is the duration, as do channels.
    """
    cross = tuple(
        Condition(torch.zeros_like(stream.tokens), torch.ones_like(stream.mask)) for stream in routes.cross
    )
    kept = routes.vector
    return Routes(cross, torch.zeros_like(kept) if vector and kept is not None else kept, routes.channels)


def drop(routes: Routes, keep: Tensor, nothing: Routes) -> Routes:
    """Rows where `keep` (bool [B]) is False are replaced by those of `nothing`: dropout for guidance, drawn per item.

    nothing: what guidance will move away from, B rows or one for all.
    """
    batch = num_rows(routes)
    if keep.dtype != torch.bool or keep.shape != (batch,):
        raise ValueError(f"keep is {keep.dtype} {tuple(keep.shape)}; it must be bool [B] with B = {batch}")
    if num_rows(nothing) == 1:
        nothing = rows(nothing, [0] * len(keep))
    place = torch.arange(len(keep), device=keep.device)
    return rows(stack([routes, nothing]), torch.where(keep, place, place + len(keep)))


def _tensors(routes: Routes) -> list[Tensor]:
    tensors = [tensor for stream in routes.cross for tensor in (stream.tokens, stream.mask)]
    return tensors + [tensor for tensor in (routes.vector, routes.channels) if tensor is not None]


def _map(routes: Routes, function: Callable[[Tensor], Tensor]) -> Routes:
    """The routes with every tensor changed; tokens and masks alike, so only what is done along B."""
    return Routes(
        cross=tuple(Condition(function(stream.tokens), function(stream.mask)) for stream in routes.cross),
        vector=None if routes.vector is None else function(routes.vector),
        channels=None if routes.channels is None else function(routes.channels),
    )
