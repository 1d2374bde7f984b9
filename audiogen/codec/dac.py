"""Descript's audio codec (arXiv:2306.06546) as `transformers` has it, behind the interface of our own.

It encodes and decodes; it is not trained here. Mono, 16, 24 or 44.1 kHz, one sequence of codes for the whole sound.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from math import ceil, prod
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audiogen.codec.model import check_audio, check_codebooks, check_codes
from audiogen.config import Range, check_ranges
from audiogen.errors import InputError
from audiogen.interfaces import check_samples
from audiogen.packed import can_pack, pack, use_conv1d
from audiogen.snake import use_snakes

Size = Annotated[int, Range(1, 1 << 18)]  # a product of three does not overflow 64 bits


@dataclass(frozen=True)
class DacSizes:
    """The keys of `transformers.DacConfig` that determine the architecture, under their names and defaults there."""

    sampling_rate: Size = 16000
    encoder_hidden_size: Size = 64
    downsampling_ratios: tuple[Size, ...] = (2, 4, 5, 8)
    decoder_hidden_size: Size = 1536
    n_codebooks: Size = 12
    codebook_size: Size = 1024
    codebook_dim: Size = 8

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.downsampling_ratios:
            raise InputError("downsampling_ratios is (); it must list at least one factor")
        if self.codebook_size & (self.codebook_size - 1):
            raise InputError(f"codebook_size is {self.codebook_size}; it must be a power of 2")
        halvings = 2 ** len(self.downsampling_ratios)
        if self.decoder_hidden_size % halvings:
            raise InputError(
                f"decoder_hidden_size is {self.decoder_hidden_size}; it must be a multiple of {halvings}, as each of "
                "downsampling_ratios halves it"
            )

    @property
    def hop_length(self) -> int:
        return prod(self.downsampling_ratios)


class DacCodec(nn.Module):
    """Implements `interfaces.Codec`; its tensors have the names that `transformers.DacModel` gives them."""

    channels = 1

    def __init__(self, config: DacSizes) -> None:
        # Here, because transformers takes seconds to import and the bundled codecs do not need it.
        from transformers import DacConfig, DacModel
        from transformers.models.dac.modeling_dac import Snake1d

        super().__init__()
        self.config = config
        self.sample_rate, self.hop_length = config.sampling_rate, config.hop_length
        self.num_codebooks, self.codebook_size = config.n_codebooks, config.codebook_size
        self.name, self.identity = "", ""  # set by what loads it
        model = DacModel(DacConfig(**{field.name: getattr(config, field.name) for field in fields(config)}))
        self.encoder, self.decoder, self.quantizer = model.encoder, model.decoder, model.quantizer
        for stack in (self.encoder, self.decoder):
            use_snakes(stack, Snake1d)
            use_conv1d(stack)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> DacCodec:
        """Stays in evaluation mode: in training its quantiser leaves out codebooks at random."""
        return super().train(False)

    def freeze(self, dtype: torch.dtype) -> None:
        """As `interfaces.Codec`: what encoder and decoder compute in, by packed copies of their weights.

        In float32 the decoder alone has copies: the encoder gains nothing by them.
        """
        packs = can_pack(next(self.parameters()).device, dtype)
        if not packs and dtype != torch.float32:
            raise InputError(
                f"codec {self.name or 'given'} does not compute in {str(dtype)[6:]} here: float32 is allowed, and "
                "bfloat16 on a CPU for which PyTorch has kernels"
            )
        for stack in (self.encoder, self.decoder):
            gains = packs and (stack is self.decoder or dtype != torch.float32)
            pack(stack, dtype if gains else None)

    def meaning(self) -> dict[str, Tensor]:
        """The weights that its codes depend on: all but the decoder's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("decoder.")}

    def is_compatible(self, identity: str, num_codebooks: int) -> bool:
        """As `interfaces.Codec`; nothing adds codebooks to a DAC."""
        return identity == self.identity

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @torch.no_grad()
    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        """As `interfaces.Codec`; zeros fill the last frame."""
        check_audio(audio, self.channels)
        check_samples(audio, "the audio")
        count = check_codebooks(num_codebooks, self.num_codebooks)
        whole = F.pad(audio, (0, -audio.shape[-1] % self.hop_length))
        return self.quantizer(self.encoder(whole).float(), count)[1]

    @torch.no_grad()
    def decode(self, codes: Tensor, first_frame: int = 0) -> Tensor:
        """As `interfaces.Codec`.

        Where a ratio is odd the network gives a few samples less than T * hop_length (8 with ratios 8, 5, 4, 2):
        zeros at the end make up for them. first_frame: has no effect.
        """
        check_codes(codes, self.num_codebooks, self.codebook_size)
        audio = self.decoder(self.quantizer.from_codes(codes)[0]).float()  # [B, 1, at most T * hop_length]
        return F.pad(audio, (0, codes.shape[-1] * self.hop_length - audio.shape[-1]))

    @cached_property
    def context_frames(self) -> int:
        """One-sided receptive field of encoder and decoder, in frames."""
        samples = max(_reach(self.encoder, 1), _reach(self.decoder, self.hop_length))
        return ceil(samples / self.hop_length) + 1

    @property
    def lookahead_frames(self) -> int:
        """It runs over windows."""
        return self.context_frames


def _reach(stack: nn.Module, step: int) -> int:
    """Upper bound on one side of a stack's receptive field, in samples; its input is `step` samples apart.

    Of its convolutions, in the order in which they run.
    """
    samples = 0
    for layer in stack.modules():
        if isinstance(layer, nn.Conv1d):
            span = layer.dilation[0] * (layer.kernel_size[0] - 1)
            padding = int(layer.padding[0])
            samples += max(padding, span - padding) * step
            step *= layer.stride[0]
        elif isinstance(layer, nn.ConvTranspose1d):
            samples += 2 * step  # a kernel is two strides long
            step //= layer.stride[0]
    return samples
