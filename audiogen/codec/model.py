"""The codec: an encoder and a decoder by choice (`seanet` or `spectral`) around one residual quantiser."""

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Literal

import torch
from torch import Tensor, nn

from audiogen.codec.conv import PaddedConv1d, PaddedConvTranspose1d
from audiogen.codec.losses import log_magnitude_distance
from audiogen.codec.rvq import ResidualQuantizer
from audiogen.codec.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder
from audiogen.codec.spectral import SpectralConfig, SpectralDecoder, SpectralEncoder, context_frames
from audiogen.errors import InputError
from audiogen.interfaces import CodecOutput


@dataclass(frozen=True)
class CodecConfig:
    """arch chooses which of `seanet` and `spectral` is used; the other is ignored.

    dead_below: a codeword whose moving average of vectors per batch falls below this is replaced. Even use gives
        batch * frames / codebook_size, so small batches want it well below the 2 of EnCodec.
    """

    sample_rate: int = 16000
    channels: int = 1
    arch: Literal["seanet", "spectral"] = "seanet"
    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    latent_dim: int = 128
    num_codebooks: int = 4
    codebook_size: int = 2048
    codebook_decay: float = 0.99
    dead_below: float = 2.0
    kmeans_iterations: int = 50

    def __post_init__(self) -> None:
        for name in ("sample_rate", "channels", "latent_dim", "num_codebooks", "codebook_size"):
            if getattr(self, name) < 1:
                raise InputError(f"model.{name} is {getattr(self, name)}: a positive integer is allowed")
        if self.arch not in ("seanet", "spectral"):
            raise InputError(f"model.arch is {self.arch!r}: seanet or spectral is allowed")
        if self.arch == "spectral" and self.latent_dim % self.spectral.frames_per_latent:
            raise InputError(
                f"model.latent_dim is {self.latent_dim}: a multiple of spectral.frames_per_latent="
                f"{self.spectral.frames_per_latent} is allowed"
            )
        if not 0 < self.codebook_decay < 1:
            raise InputError(f"model.codebook_decay is {self.codebook_decay}: between 0 and 1 is allowed")

    @property
    def hop_length(self) -> int:
        if self.arch == "seanet":
            return prod(self.seanet.ratios)
        return self.spectral.hop_length * self.spectral.frames_per_latent


class Codec(nn.Module):
    """Implements `interfaces.Codec`. Weight norm is not applied here: see `conv.add_weight_norm`."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        self.sample_rate, self.channels, self.hop_length = (
            config.sample_rate,
            config.channels,
            config.hop_length,
        )
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.name, self.identity = "", ""  # set by `pretrained.load_codec`
        if config.arch == "seanet":
            self.encoder: nn.Module = SeanetEncoder(config.seanet, config.channels, config.latent_dim)
            self.decoder: nn.Module = SeanetDecoder(config.seanet, config.channels, config.latent_dim)
        else:
            self.encoder = SpectralEncoder(config.spectral, config.channels, config.latent_dim)
            self.decoder = SpectralDecoder(config.spectral, config.channels, config.latent_dim)
        self.quantizer = ResidualQuantizer(
            config.num_codebooks,
            config.codebook_size,
            config.latent_dim,
            config.codebook_decay,
            config.dead_below,
            config.kmeans_iterations,
        )

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def causal(self) -> bool:
        """True where encoder and decoder never look ahead, so that they run live (`stream.py`)."""
        return (
            self.config.arch == "seanet"
            and self.config.seanet.causal
            and self.config.seanet.trim_right_ratio == 1
        )

    def bandwidth_kbps(self, num_codebooks: int) -> float:
        """Bits a second of that many codebooks, stored without entropy coding, in kbit/s."""
        return num_codebooks * self.frame_rate * ceil(torch.tensor(self.codebook_size).log2().item()) / 1000

    def forward(
        self, audio: Tensor, num_codebooks: int | Tensor | None = None, reconstruct: bool = True
    ) -> CodecOutput:
        """Training forward: [B, C, N] -> reconstruction of the same length, codes, losses.

        num_codebooks: an int, or one per item [B]; None is all. In training mode the codebooks learn from the batch.
        reconstruct: False spares a spectral decoder the synthesis, when its spectral loss is all that is wanted.
        """
        self._check_audio(audio)
        latents = self.encoder(audio)
        quantised = self.quantizer(latents, num_codebooks)
        decoded: Tensor | None
        spectra, target = None, None
        if isinstance(self.encoder, SpectralEncoder) and isinstance(self.decoder, SpectralDecoder):
            spectra = self.decoder.log_magnitude(quantised.latents)
            target = self.encoder.log_magnitude(audio)
            loss = log_magnitude_distance(spectra, target, self.sample_rate)
            decoded = self.decoder.synthesise(spectra)[..., : audio.shape[-1]] if reconstruct else None
        else:
            loss = latents.new_zeros(())
            decoded = self.decoder(quantised.latents)[..., : audio.shape[-1]]
        return CodecOutput(
            decoded, quantised.codes, quantised.commitment_loss, latents, loss, spectra, target
        )

    @torch.no_grad()
    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> Tensor:
        self._check_audio(audio)
        return self.quantizer.encode(self.encoder(audio), self._check_codebooks(num_codebooks))

    @torch.no_grad()
    def decode(self, codes: Tensor, first_frame: int = 0) -> Tensor:
        """As `interfaces.Codec`; `first_frame` says where in a longer sound the codes begin, for windows of it."""
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.num_codebooks or codes.shape[2] < 1:
            raise InputError(
                f"codes have shape {list(codes.shape)}: [B, 1 to {self.num_codebooks}, T] is allowed"
            )
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise InputError(
                f"codes lie in {int(codes.min())}..{int(codes.max())}: 0..{self.codebook_size - 1} is allowed; "
                "do they come from another codec?"
            )
        latents = self.quantizer.decode(codes)
        if isinstance(self.decoder, SpectralDecoder):
            return self.decoder(latents, first_frame)
        return self.decoder(latents)

    def _check_audio(self, audio: Tensor) -> None:
        if audio.dim() != 3 or audio.shape[1] != self.channels or audio.shape[2] < 1:
            raise InputError(f"audio has shape {list(audio.shape)}: [B, {self.channels}, N >= 1] is allowed")

    def _check_codebooks(self, num_codebooks: int | None) -> int:
        if num_codebooks is None:
            return self.num_codebooks
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise InputError(f"num_codebooks is {num_codebooks}: 1 to {self.num_codebooks} is allowed")
        return num_codebooks

    @cached_property
    def context_frames(self) -> int:
        """One-sided receptive field of encoder and decoder, in frames.

        A window that sees this much beyond its body gives the codes and the audio of the whole. An LSTM never
        forgets entirely; it gets 4 s of warm-up.
        """
        if self.config.arch == "spectral":
            return context_frames(self.config.spectral)
        frames = max(
            _reach(self.encoder, 1, self.hop_length), _reach(self.decoder, self.hop_length, self.hop_length)
        )
        return frames + (ceil(4 * self.frame_rate) if self.config.seanet.lstm else 0)


def _reach(stack: nn.Module, step: int, hop: int) -> int:
    """Upper bound on one side of a SEANet stack's receptive field, in frames; its input is `step` samples apart."""
    samples = 0
    for layer in stack.modules():
        if isinstance(layer, PaddedConv1d):
            samples += (layer.span - 1) * step
            step *= layer.stride
        elif isinstance(layer, PaddedConvTranspose1d):
            samples += step * 2
            step //= layer.convtr.stride[0]
    return ceil(samples / hop) + 1
