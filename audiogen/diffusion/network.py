"""What all denoisers share: the one call, and the check of what they are conditioned on."""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor, nn

from audiogen.device import fast_attention
from audiogen.diffusion.conditioning import Conditioning


class OneStream:
    """A network that attends to one stream of tokens, `cross_dim` wide."""

    cross_dim: int

    @property
    def cross_dims(self) -> tuple[int, ...]:
        return (self.cross_dim,)


class Denoiser(nn.Module):
    """A network and its config, one of `DenoiserConfig`: what a process trains and a sampler calls.

    in_frames: the network takes sequences [B, D, T]; of latents [B, D, T, M] each frame is D * M numbers to it.
    """

    in_frames = False

    def __init__(self, config: Any, network: Any):
        super().__init__()
        self.config, self.network = config, network

    def forward(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """x_t [B, D, T] or [B, D, T, M], t [B] -> prediction, shaped as x_t.

        A conditioning that the network does not have is refused: diffusers would ignore some of it without a word.
        """
        vector = None if conditioning.vector is None else conditioning.vector.shape[-1]
        got = (len(conditioning.streams), vector)
        if got != (needed := (len(self.config.cross_dims), self.config.vector_dim)):
            raise ValueError(
                "the conditioning has {} streams and a vector of {}; ".format(*got)
                + "the denoiser has {} and {}".format(*needed)
            )
        has_bins = self.in_frames and x_t.dim() == 4
        given = rearrange(x_t, "b d t m -> b (d m) t") if has_bins else x_t
        with fast_attention(x_t.device, self.num_positions(given)):
            found = self.predict(given, t, conditioning)
        return rearrange(found, "b (d m) t -> b d t m", m=x_t.shape[-1]) if has_bins else found

    def num_positions(self, x_t: Tensor) -> int:
        """The most that one of the network's layers attends to, of x_t as `predict` takes it: [B, D, T], T of them."""
        return x_t.shape[2]

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The call of the network, with a conditioning that it has: shapes as in `forward`."""
        raise NotImplementedError
