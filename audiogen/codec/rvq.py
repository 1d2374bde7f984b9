"""Residual vector quantisation with EMA codebooks (SoundStream arXiv:2107.03312, 3.3; EnCodec arXiv:2210.13438, 3.2).

Each codebook quantises what the ones before it left over, so every prefix of the codebooks is a bandwidth.
Codebooks are buffers: they follow the data by exponential moving averages, not by gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiogen import distributed

SEARCHED_AT_ONCE = 64  # frames of a beam search, whose errors then stay in a processor's cache


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the closest codeword: [n, D], [V, D] -> int64 [n]. Needs an [n, V] product, never [n, V, D]."""
    vectors, codebook = vectors.float(), codebook.float()
    # |v - c|^2 without |v|^2, which is the same for every codeword.
    return (codebook.square().sum(1) - 2.0 * vectors @ codebook.T).argmin(1)


def search(vectors: Tensor, codebooks: Sequence[Tensor], beam: int) -> Tensor:
    """Codewords whose sum is near, by a beam search: [n, D], K of [V, D] -> int64 codes [n, K].

    After each codebook the `beam` best sums so far are kept, so that a codeword that is not the nearest can be chosen
    for what later ones make of it (Liu et al., arXiv:1509.05195, multi-path encoding). Needs [n, beam * V].
    """
    residual = vectors.float()[:, None]  # [n, kept, D]
    error = residual.new_zeros(residual.shape[:2])  # [n, kept]: |r|^2 less that of the vector itself
    codes = torch.empty(*residual.shape[:2], 0, dtype=torch.int64, device=residual.device)  # [n, kept, k]
    for codebook in codebooks:
        codebook = codebook.float()
        # |r - c|^2 = |r|^2 + |c|^2 - 2 r c, of every kept sum and every codeword.
        errors = (codebook.square().sum(1) - 2.0 * residual @ codebook.T + error[..., None]).flatten(1)
        error, chosen = errors.topk(min(beam, errors.shape[1]), largest=False)
        parent, code = chosen // len(codebook), chosen % len(codebook)  # [n, kept]
        residual = _rows(residual, parent) - F.embedding(code, codebook)
        codes = torch.cat([_rows(codes, parent), code[..., None]], -1)
    return codes[:, 0]


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """[n, m, d], [n, k] -> of each of the n the rows `index` [n, k, d]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def assign_sums(vectors: Tensor, codes: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """How many vectors each code holds [V], and their sum [V, D]; summed over all ranks."""
    counts = torch.bincount(codes, minlength=num_codes).to(vectors.dtype)
    sums = vectors.new_zeros(num_codes, vectors.shape[1]).index_add_(0, codes, vectors)
    return distributed.all_reduce_sum(counts), distributed.all_reduce_sum(sums)


def kmeans(vectors: Tensor, num_codes: int, num_iterations: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm: [n, D] -> means [V, D] and their counts [V]. Empty clusters keep their mean.

    With fewer vectors than codes some start equal; dead-code replacement separates them as training goes on.
    """
    means = sample(vectors, num_codes)
    if means is None:
        raise ValueError("k-means got no vectors, in any process")
    counts = vectors.new_zeros(num_codes)
    for _ in range(num_iterations):
        counts, sums = assign_sums(vectors, nearest(vectors, means), num_codes)
        means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
    return means, counts


def sample(vectors: Tensor, num: int) -> Tensor | None:
    """`num` of the vectors [n, D] of all processes, without replacement where there are enough -> [num, D].

    The same in every process, and as in one that has all the vectors, in the order of the processes. None if there are
    none; a process may have none, for with few clips a codebook may be in use in one and not in another.
    """
    counts = torch.zeros(distributed.world(), device=vectors.device, dtype=torch.int64)
    counts[distributed.rank()] = vectors.shape[0]
    ends = distributed.all_reduce_sum(counts).cumsum(0).tolist()
    total, first = ends[-1], ends[distributed.rank()] - vectors.shape[0]
    if not total:
        return None
    picks = torch.randperm(total)[:num] if total >= num else torch.randint(total, (num,))
    picks = distributed.broadcast(picks.to(vectors.device)) - first
    own = (picks >= 0) & (picks < vectors.shape[0])
    found = vectors.new_zeros(num, vectors.shape[1])
    found[own] = vectors[picks[own]]
    return distributed.all_reduce_sum(found)


class Codebook(nn.Module):
    """One vector quantiser of V codewords of width D.

    Buffers: codewords [V, D]; usage [V], the moving average of how many vectors each holds; initialised. The moving
    average of the vectors' sums, which both papers keep beside them, is codewords times usage.
    """

    def __init__(
        self, num_codes: int, dim: int, decay: float, dead_below: float, kmeans_iterations: int
    ) -> None:
        super().__init__()
        self.decay, self.dead_below, self.kmeans_iterations = decay, dead_below, kmeans_iterations
        bound = dim**-0.5  # used only when a codec runs untrained: k-means replaces it
        self.register_buffer("codewords", torch.empty(num_codes, dim).uniform_(-bound, bound))
        self.register_buffer("usage", torch.zeros(num_codes))
        self.register_buffer("initialised", torch.tensor(False))

    codewords: Tensor
    usage: Tensor
    initialised: Tensor

    @torch.no_grad()
    def update(self, vectors: Tensor, codes: Tensor) -> None:
        """Move the codewords towards the vectors [n, D] assigned to them by `codes` [n]; revive dead ones."""
        num_codes = self.codewords.shape[0]
        counts, sums = assign_sums(vectors, codes, num_codes)
        sums = torch.lerp(self.codewords * self.usage[:, None], sums, 1 - self.decay)
        self.usage.lerp_(counts, 1 - self.decay)
        dead = self.usage < self.dead_below
        fresh = sample(vectors, num_codes) if bool(dead.any()) else None
        if fresh is not None:
            sums = torch.where(dead[:, None], fresh * self.dead_below, sums)
            self.usage.copy_(torch.where(dead, torch.full_like(self.usage, self.dead_below), self.usage))
        held = self.usage > 0  # with dead_below 0 a codeword may hold nothing: it stays
        self.codewords.copy_(torch.where(held[:, None], sums / self.usage[:, None], self.codewords))

    @torch.no_grad()
    def initialise(self, vectors: Tensor) -> None:
        """K-means on the first training batch [n, D]."""
        means, counts = kmeans(vectors, self.codewords.shape[0], self.kmeans_iterations)
        self.codewords.copy_(means)
        self.usage.copy_(counts.clamp(min=self.dead_below))  # an empty cluster is not replaced at once
        self.initialised.fill_(True)


@dataclass(frozen=True)
class Quantised:
    """What the quantiser returns.

    latents: sum of the chosen codewords [B, D, T], straight-through in training. codes: int64 [B, K, T].
    commitment_loss: scalar.
    """

    latents: Tensor
    codes: Tensor
    commitment_loss: Tensor


class ResidualQuantizer(nn.Module):
    """K codebooks in sequence on latents [B, D, T]."""

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        dim: int,
        decay: float = 0.99,
        dead_below: float = 2.0,
        kmeans_iterations: int = 50,
    ) -> None:
        super().__init__()
        self.codebooks = nn.ModuleList(
            Codebook(codebook_size, dim, decay, dead_below, kmeans_iterations) for _ in range(num_codebooks)
        )
        self.num_frozen = 0  # the first codebooks that do not learn in training mode either

    @property
    def books(self) -> list[Codebook]:
        """The codebooks, typed."""
        return [book for book in self.codebooks if isinstance(book, Codebook)]

    def forward(self, latents: Tensor, num_codebooks: int | Tensor | None = None) -> Quantised:
        """Quantise [B, D, T]; in training mode the codebooks learn from the items that use them.

        num_codebooks: how many each item uses, an int or int64 [B]; None is all.
        """
        x = latents.float().transpose(1, 2)  # [B, T, D]
        batch, frames, dim = x.shape
        total = len(self.codebooks)
        limit = torch.as_tensor(total if num_codebooks is None else num_codebooks, device=x.device).expand(
            batch
        )
        residual, quantised = x, torch.zeros_like(x)
        codes, losses = [], []
        for k, book in enumerate(self.books):
            active = limit > k  # [B]
            flat = residual.detach()[active].reshape(-1, dim)
            learning = self.training and k >= self.num_frozen
            if learning and not book.initialised and distributed.any_process(len(flat) > 0):
                book.initialise(flat)
            code = nearest(residual.detach().reshape(-1, dim), book.codewords).view(batch, frames)
            chosen = F.embedding(code, book.codewords)  # [B, T, D]
            gate = active[:, None, None].to(x.dtype)
            error = (chosen - residual).square().mean((1, 2))  # [B]; the gradient reaches the encoder only
            count = active.sum().float()
            if self.training:  # of all processes, over which the loss is averaged
                count = distributed.all_reduce_sum(count) / distributed.world()
            losses.append((error * active).sum() / count.clamp(min=1 / distributed.world()))
            if learning:
                book.update(flat, code[active].reshape(-1))
            quantised = quantised + gate * chosen
            residual = residual - chosen
            codes.append(code)
        if self.training:
            # Straight-through: the decoder's gradient skips the rounding.
            quantised = x + (quantised - x).detach()
        commitment = torch.stack(losses).mean()
        return Quantised(quantised.transpose(1, 2), torch.stack(codes, 1), commitment)

    def encode(self, latents: Tensor, num_codebooks: int, beam: int = 1) -> Tensor:
        """[B, D, T] -> int64 codes [B, num_codebooks, T].

        beam: 1 takes the nearest codeword of each codebook in turn. More search for codewords whose sum is nearest (see
        `search`): a smaller error, in more time.
        """
        if beam > 1:
            frames = latents.float().transpose(1, 2)  # [B, T, D]
            books = [book.codewords for book in self.books[:num_codebooks]]
            found = [search(part, books, beam) for part in frames.flatten(0, 1).split(SEARCHED_AT_ONCE)]
            return torch.cat(found).unflatten(0, frames.shape[:2]).transpose(1, 2)
        residual = latents.float().transpose(1, 2)  # [B, T, D]
        codes = []
        for book in self.books[:num_codebooks]:
            code = nearest(residual.reshape(-1, residual.shape[-1]), book.codewords).view(residual.shape[:2])
            residual = residual - F.embedding(code, book.codewords)
            codes.append(code)
        return torch.stack(codes, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """int64 codes [B, K, T], K at most the number of codebooks -> latents [B, D, T]."""
        books = self.books[: codes.shape[1]]
        chosen = [F.embedding(codes[:, k], book.codewords) for k, book in enumerate(books)]  # K of [B, T, D]
        return torch.stack(chosen).sum(0).transpose(1, 2)
