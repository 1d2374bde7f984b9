"""The codec: an encoder and a decoder by choice (`seanet` or `spectral`) around one residual quantiser."""

from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Annotated, Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from audiogen.codec.conv import StreamState
from audiogen.codec.losses import log_magnitude_distance
from audiogen.codec.rvq import ResidualQuantizer
from audiogen.codec.seanet import SeanetConfig, lookahead_samples, seanet_decoder, seanet_encoder
from audiogen.codec.spectral import SpectralConfig, SpectralDecoder, SpectralEncoder
from audiogen.config import Positive, Range, check_ranges
from audiogen.errors import InputError
from audiogen.files import checkpoint
from audiogen.interfaces import CodecOutput, check_samples
from audiogen.packed import can_pack, pack


@dataclass(frozen=True)
class CodecConfig:
    """arch chooses which of `seanet` and `spectral` is used; the other is ignored.

    dead_below: a codeword whose moving average of vectors per batch falls below this is replaced. Even use gives
        batch * frames / codebook_size, so small batches want it well below the 2 of EnCodec. codebook_decay and
        kmeans_iterations are EnCodec's as well.
    dual_mono: a mono model codes the two channels each by itself; the codebooks alternate, left 0, right 0, left 1,
        right 1 ..., and num_codebooks counts both.
    segment_s, segment_overlap, normalise: of a `SegmentedCodec` around this one. Seconds of audio that are coded at a
        time, None for the whole sound; the share of a segment that the next one covers again, in which they are
        cross-faded; each segment is divided by its loudness, which is kept beside its codes.
    """

    sample_rate: Positive = 16000
    channels: Positive = 1
    arch: Literal["seanet", "spectral"] = "seanet"
    seanet: SeanetConfig = field(default_factory=SeanetConfig)
    spectral: SpectralConfig = field(default_factory=SpectralConfig)
    latent_dim: Positive = 128
    num_codebooks: Positive = 4
    codebook_size: Positive = 2048
    codebook_decay: Annotated[float, Range(0, 1, above=True, below=True)] = 0.99
    dead_below: float = 2.0
    kmeans_iterations: int = 50
    dual_mono: bool = False
    segment_s: float | None = None
    segment_overlap: float = 0.0
    normalise: bool = False

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.arch == "spectral" and self.latent_dim % self.spectral.frames_per_latent:
            raise InputError(
                f"latent_dim is {self.latent_dim}; it must be a multiple of spectral.frames_per_latent="
                f"{self.spectral.frames_per_latent}"
            )
        if self.dual_mono and (self.channels != 2 or self.num_codebooks % 2 or self.segment_s is not None):
            raise InputError(
                f"dual_mono is true with channels={self.channels}, num_codebooks={self.num_codebooks}, "
                f"segment_s={self.segment_s}: 2 channels, an even number and null are allowed"
            )
        if self.segment_s is None:
            if self.normalise or self.segment_overlap:
                raise InputError("normalise and segment_overlap go with segment_s: set it, too")
        elif not 0 <= self.segment_overlap <= 0.5 or not 1 <= self.segment_s * self.sample_rate < 2**31:
            raise InputError(
                f"segment_s is {self.segment_s}, segment_overlap {self.segment_overlap}: at least a sample and 0 to "
                "0.5 are allowed"
            )

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
        self.sample_rate, self.channels = config.sample_rate, config.channels
        self.hop_length = config.hop_length
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.name, self.identity = "", ""  # set by the function that opens a codec
        self.beam = 1  # sums of codewords that `encode` keeps in its search, see `ResidualQuantizer.encode`
        self.dtype: torch.dtype | None = None  # of packed weights, see `freeze`; None: it has none
        self.packed: set[nn.Module] = set()  # which of encoder and decoder have packed weights already
        # With dual_mono two streams, the channels, pass through the same weights as rows of a batch.
        self.streams = 2 if config.dual_mono else 1
        channels = config.channels // self.streams
        if config.arch == "seanet":
            self.encoder: nn.Module = seanet_encoder(config.seanet, channels, config.latent_dim)
            self.decoder: nn.Module = seanet_decoder(config.seanet, channels, config.latent_dim)
        else:
            self.encoder = SpectralEncoder(config.spectral, channels, config.latent_dim)
            self.decoder = SpectralDecoder(config.spectral, channels, config.latent_dim)
        self.quantizer = ResidualQuantizer(
            config.num_codebooks // self.streams,
            config.codebook_size,
            config.latent_dim,
            config.codebook_decay,
            config.dead_below,
            config.kmeans_iterations,
        )

    @torch.no_grad()
    def encode(
        self,
        audio: Tensor,
        num_codebooks: int | None = None,
        state: StreamState | None = None,
        last: bool = False,
    ) -> Tensor:
        """As `interfaces.Codec`; with `state`, the next block [B, C, n] -> the codes [B, K, t] that it determines.

        state: {} at the start of a sound; the layers keep in it what later blocks need. last: the sound ends with this
        block, which may be empty. All blocks' codes, of which one may have none, are those of the whole.
        """
        check_audio(audio, self.channels, at_least=1 if state is None else 0)
        check_samples(audio, "the audio")
        count = self._check_codebooks(num_codebooks)
        audio = rearrange(audio, "b (s c) n -> (b s) c n", s=self.streams)
        block: tuple[Any, ...] = ()
        if state is not None:
            self._check_stateful()
            block = state, last
        latents = self._compute(self.encoder, audio, *block)  # [B * streams, D, T]
        codes = self.quantizer.encode(latents, count // self.streams, self.beam)
        return rearrange(codes, "(b s) k t -> b (k s) t", s=self.streams)

    @torch.no_grad()
    def decode(
        self, codes: Tensor, first_frame: int = 0, state: StreamState | None = None, last: bool = False
    ) -> Tensor:
        """As `interfaces.Codec`; with `state`, the next block [B, K, t] -> the audio [B, C, n] that it determines."""
        if state is None or codes.shape[-1] > 0:
            check_codes(codes, self.num_codebooks, self.codebook_size)
            self._check_codebooks(codes.shape[1])
        codes = rearrange(codes, "b (k s) t -> (b s) k t", s=self.streams)
        block: tuple[Any, ...] = () if state is None else (state, last)
        if isinstance(self.decoder, SpectralDecoder):  # the only one that depends on the position: its phases
            block = (first_frame, *block)
        elif state is not None:
            self._check_stateful()
        audio = self._compute(self.decoder, self.quantizer.decode(codes), *block)
        return rearrange(audio, "(b s) c n -> b (s c) n", s=self.streams)

    def _check_stateful(self) -> None:
        if not self.stateful:
            why = (
                "the encoder of a spectral codec"
                if self.config.arch == "spectral"
                else "a codec with group norm"
            )
            raise InputError(
                f"{why} keeps no state from block to block: use the functions of codec/stream.py"
            )

    def _compute(self, stack: nn.Module, x: Tensor, *block: Any) -> Tensor:
        """Encoder or decoder of x [B, C, N] or [B, D, T], in the number type of `freeze` -> float32."""
        if self.dtype is not None:
            if stack not in self.packed:  # at the first use: many commands use one of the two only
                pack(stack, self.dtype)
                self.packed.add(stack)
            x = x.to(self.dtype)
        y: Tensor = stack(x, *block)
        return y.float()

    def forward(
        self, audio: Tensor, num_codebooks: int | Tensor | None = None, reconstruct: bool = True
    ) -> CodecOutput:
        """Training forward: [B, C, N] -> reconstruction of the same length, codes, losses.

        num_codebooks: an int, or one per item [B]; None is all. In training mode the codebooks learn from the batch.
        reconstruct: False leaves out the synthesis of a spectral decoder, when only its spectral loss is wanted.
        """
        check_audio(audio, self.channels)
        if self.config.segment_s is not None or self.config.dual_mono:
            raise InputError(
                "a codec with segment_s or dual_mono encodes and decodes, but is not trained; set neither"
            )
        decoded: Tensor | None
        spectra, target = None, None
        if isinstance(self.encoder, SpectralEncoder) and isinstance(self.decoder, SpectralDecoder):
            target = self.encoder.log_magnitude(audio)  # [B, C, spectra, F]
            quantised = self.quantizer(self.encoder.encode(target), num_codebooks)
            spectra = self.decoder.log_magnitude(quantised.latents)
            loss = log_magnitude_distance(spectra, target, self.sample_rate)
            decoded = self.decoder.synthesise(spectra)[..., : audio.shape[-1]] if reconstruct else None
        else:
            quantised = self.quantizer(self.encoder(audio), num_codebooks)  # of latents [B, D, T]
            loss = audio.new_zeros(())
            decoded = self.decoder(quantised.latents)[..., : audio.shape[-1]]
        return CodecOutput(decoded, quantised.codes, quantised.commitment_loss, loss, spectra, target)

    def freeze(self, dtype: torch.dtype) -> None:
        """For inference only: it computes with packed copies of its weights where there are kernels for them.

        dtype: what encoder and decoder compute in; the codebooks, audio and what is saved remain float32. Copies are
        made at first use; `train()` drops them. InputError where this codec does not compute in it; all have float32.
        """
        self.eval().requires_grad_(False)
        device = next(self.parameters()).device
        # Not with group norm, whose sums over a whole sound turn other rounding into other codes. A spectral codec has
        # float32 alone: most of its time goes to Fourier transforms.
        has_kernels = self.stateful or (self.config.arch == "spectral" and dtype == torch.float32)
        packs = has_kernels and can_pack(device, dtype)
        if not packs and dtype != torch.float32:
            raise InputError(
                f"codec {self.name or 'given'} does not compute in {str(dtype)[6:]} on {device}: float32 is "
                "allowed, and bfloat16 for SEANet without group norm on a CPU"
            )
        self._unpack()
        self.dtype = dtype if packs else None

    def train(self, mode: bool = True) -> "Codec":
        """As of any module; the packed weights of `freeze` are dropped, because the others are about to change."""
        if mode:
            self._unpack()
        return super().train(mode)

    def _unpack(self) -> None:
        for stack in self.packed:
            pack(stack, None)
        self.packed, self.dtype = set(), None

    def meaning(self, num_codebooks: int | None = None) -> dict[str, Tensor]:
        """The weights that its codes depend on: the encoder's and the codewords (plain weights: no weight norm).

        num_codebooks: of each stream, whose codes are meant; None is all.
        """
        kept = {f"encoder.{name}": weight for name, weight in self.encoder.state_dict().items()}
        for k, book in enumerate(self.quantizer.books[:num_codebooks]):
            kept[f"quantizer.codebooks.{k}.codewords"] = book.codewords
        if self.config.dual_mono:  # the same weights, and codes of two channels
            kept["dual_mono"] = torch.tensor(True)
        return kept

    def is_compatible(self, identity: str, num_codebooks: int) -> bool:
        """Whether its first codes of a frame are those of the codec `identity`.

        That one may have had fewer codebooks, if `num_codebooks` or more: training adds to them (`more_codebooks`).
        """
        fewest = -(-num_codebooks // self.streams)
        prefixes = range(fewest, len(self.quantizer.books))
        return identity == self.identity or any(
            identity == checkpoint.identity(self.meaning(count)) for count in prefixes
        )

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def stateful(self) -> bool:
        """True where it runs block by block, with `state`: SEANet without group norm, which is over all of a sound."""
        return self.config.arch == "seanet" and self.config.seanet.norm == "none"

    @property
    def decodes_in_blocks(self) -> bool:
        """True where `decode` takes a `state`."""
        return self.stateful or self.config.arch == "spectral"

    @property
    def context_frames(self) -> int:
        """As `interfaces.Codec`: the one-sided receptive field. A stateful codec needs no windows."""
        if self.config.arch == "spectral":
            return self.config.spectral.context_frames
        if self.config.seanet.norm == "group":
            raise InputError(
                "group norm is over all of a sound: this codec has no windows, encode it in one call"
            )
        return 0

    @cached_property
    def lookahead_frames(self) -> int:
        """Frames that must follow one before all of its audio is determined.

        Reflection delays only the first frames more: its layers need what they are to reflect.
        """
        if not self.stateful:
            return self.context_frames
        return ceil(lookahead_samples(self.decoder) / self.hop_length)

    def _check_codebooks(self, num_codebooks: int | None) -> int:
        count = check_codebooks(num_codebooks, self.num_codebooks)
        if count % self.streams:
            raise InputError(f"num_codebooks is {num_codebooks}: with dual_mono an even number is allowed")
        return count


def check_audio(audio: Tensor, channels: int, at_least: int = 1) -> None:
    """InputError for what is not audio [B, C, N] for a codec."""
    if audio.dim() != 3 or audio.shape[1] != channels or audio.shape[2] < at_least:
        raise InputError(f"audio has shape {list(audio.shape)}: [B, {channels}, N >= {at_least}] is allowed")


def check_codebooks(num_codebooks: int | None, available: int) -> int:
    """How many codebooks are asked for; None is all that there are."""
    if num_codebooks is None:
        return available
    if not 1 <= num_codebooks <= available:
        raise InputError(f"num_codebooks is {num_codebooks}: 1 to {available} is allowed")
    return num_codebooks


def check_codes(codes: Tensor, num_codebooks: int, codebook_size: int) -> None:
    """InputError for what is not codes [B, K, T] of a codec."""
    if codes.dim() != 3 or not 1 <= codes.shape[1] <= num_codebooks or codes.shape[2] < 1:
        raise InputError(f"codes have shape {list(codes.shape)}: [B, 1 to {num_codebooks}, T] is allowed")
    if codes.min() < 0 or codes.max() >= codebook_size:
        raise InputError(
            f"codes lie in {int(codes.min())}..{int(codes.max())}: 0..{codebook_size - 1} is allowed; "
            "do they come from another codec?"
        )
