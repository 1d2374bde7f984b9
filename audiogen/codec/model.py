"""The codec: an encoder and a decoder by choice (`seanet` or `spectral`) around one residual quantiser.

It runs on a sound as a whole, or, if `segment_s` is set, on segments of it (EnCodec arXiv:2210.13438, 3.1 at 48 kHz).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import ceil, prod
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from audiogen.codec.conv import StreamState
from audiogen.codec.losses import log_magnitude_distance
from audiogen.codec.packed import can_pack, pack
from audiogen.codec.rvq import ResidualQuantizer
from audiogen.codec.seanet import SeanetConfig, SeanetDecoder, SeanetEncoder, held_samples, reach
from audiogen.codec.segments import cut, loudness, overlap_add
from audiogen.codec.spectral import SpectralConfig, SpectralDecoder, SpectralEncoder, context_frames
from audiogen.errors import InputError
from audiogen.interfaces import CodecOutput, Segment


@dataclass(frozen=True)
class CodecConfig:
    """arch chooses which of `seanet` and `spectral` is used; the other is ignored.

    dead_below: a codeword whose moving average of vectors per batch falls below this is replaced. Even use gives
        batch * frames / codebook_size, so small batches want it well below the 2 of EnCodec.
    dual_mono: a mono model codes the two channels each by itself; the codebooks alternate, left 0, right 0, left 1,
        right 1 ..., and num_codebooks counts both.
    segment_s: seconds of audio that are coded at a time; None is the whole sound. segment_overlap: the share of a
        segment that the next one covers again, in which they are cross-faded.
    normalise: each segment is divided by its loudness, which is kept beside its codes.
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
    dual_mono: bool = False
    segment_s: float | None = None
    segment_overlap: float = 0.0
    normalise: bool = False

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
        self._check_segments()

    def _check_segments(self) -> None:
        if self.dual_mono and (self.channels != 2 or self.num_codebooks % 2 or self.segment_s is not None):
            raise InputError(
                f"model.dual_mono is true with channels={self.channels}, num_codebooks={self.num_codebooks}, "
                f"segment_s={self.segment_s}: 2 channels, an even number and null are allowed"
            )
        if self.segment_s is None:
            if self.normalise or self.segment_overlap:
                raise InputError(
                    "model.normalise and model.segment_overlap go with model.segment_s: set it, too"
                )
        elif not 0 <= self.segment_overlap <= 0.5 or not 1 <= self.segment_s * self.sample_rate < 2**31:
            raise InputError(
                f"model.segment_s is {self.segment_s}, model.segment_overlap {self.segment_overlap}: at least a sample "
                "and 0 to 0.5 are allowed"
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
        self.sample_rate, self.channels, self.hop_length = (
            config.sample_rate,
            config.channels,
            config.hop_length,
        )
        self.num_codebooks, self.codebook_size = config.num_codebooks, config.codebook_size
        self.name, self.identity = "", ""  # set by `pretrained.load_codec`
        self.dtype: torch.dtype | None = None  # see `freeze`
        self.packed: set[nn.Module] = set()  # those of encoder and decoder that have packed weights by now
        streams = 2 if config.dual_mono else 1  # coded by the same weights
        channels = config.channels // streams
        if config.arch == "seanet":
            self.encoder: nn.Module = SeanetEncoder(config.seanet, channels, config.latent_dim)
            self.decoder: nn.Module = SeanetDecoder(config.seanet, channels, config.latent_dim)
        else:
            self.encoder = SpectralEncoder(config.spectral, channels, config.latent_dim)
            self.decoder = SpectralDecoder(config.spectral, channels, config.latent_dim)
        self.quantizer = ResidualQuantizer(
            config.num_codebooks // streams,
            config.codebook_size,
            config.latent_dim,
            config.codebook_decay,
            config.dead_below,
            config.kmeans_iterations,
        )

    def freeze(self, dtype: torch.dtype) -> None:
        """For inference alone: the weights stay as they are, and where it `packs` it runs by packed copies of them.

        dtype: what encoder and decoder compute in; the codebooks, audio and what is saved remain float32. Copies are
        made at first use, the encoder's and the decoder's each by itself. `train()` ends it. InputError where this
        codec does not compute so: all have float32.
        """
        self.eval().requires_grad_(False)
        packs = self.packs(dtype)
        if not packs and dtype != torch.float32:
            raise InputError(
                f"codec {self.name or 'given'} does not compute in {str(dtype)[6:]} on {self._device}: float32 is "
                "allowed, and bfloat16 for SEANet without group norm on a CPU"
            )
        self._unpack()
        self.dtype = dtype if packs else None

    def packs(self, dtype: torch.dtype) -> bool:
        """Whether there are kernels for packed weights where it is, on a CPU.

        Not with group norm, whose sums over a whole sound turn other rounding into other codes. A spectral codec has
        float32 alone: most of its time goes to Fourier transforms.
        """
        if self.config.arch == "spectral":
            return dtype == torch.float32 and can_pack(self._device, dtype)
        return self.config.seanet.norm == "none" and can_pack(self._device, dtype)

    @property
    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def train(self, mode: bool = True) -> "Codec":
        """As of any module; the packed weights of `freeze` are dropped, for the others are to change."""
        if mode:
            self._unpack()
        return super().train(mode)

    def _unpack(self) -> None:
        for stack in self.packed:
            pack(stack, None)
        self.packed, self.dtype = set(), None

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def causal(self) -> bool:
        """True where encoder and decoder never look ahead."""
        return self.stateful and self.config.seanet.causal and self.config.seanet.trim_right_ratio == 1

    @property
    def stateful(self) -> bool:
        """True where it runs block by block, by `encode_block` and `decode_block`: a SEANet that takes a whole sound.

        Not with group norm, which is over all of a sound.
        """
        return self.config.arch == "seanet" and self.config.seanet.norm == "none" and not self.segmented

    @property
    def segmented(self) -> bool:
        """True where it works on segments of fixed length, by `encode_segments` and `decode_segments` alone."""
        return self.config.segment_s is not None

    @property
    def normalised(self) -> bool:
        """Each segment was divided by its loudness."""
        return self.config.normalise

    @property
    def segment_samples(self) -> int | None:
        """Samples of a segment; None for a codec that takes a sound as a whole."""
        return None if self.config.segment_s is None else int(self.config.segment_s * self.sample_rate)

    @property
    def stride_samples(self) -> int | None:
        """A segment begins every so many samples; None as `segment_samples`."""
        if self.segment_samples is None:
            return None
        return max(1, int((1 - self.config.segment_overlap) * self.segment_samples))

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
        if self.segmented or self.config.dual_mono:
            raise InputError(
                "a codec with segment_s or dual_mono encodes and decodes, but is not trained; set neither"
            )
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
        """As `interfaces.Codec`."""
        self._check_whole("encode_segments")
        self._check_audio(audio)
        return self._encode(audio, self._check_codebooks(num_codebooks))

    @torch.no_grad()
    def decode(self, codes: Tensor, first_frame: int = 0) -> Tensor:
        """As `interfaces.Codec`."""
        self._check_whole("decode_segments")
        self._check_codes(codes)
        return self._decode(codes, first_frame)

    @torch.no_grad()
    def encode_block(
        self, audio: Tensor, state: StreamState, num_codebooks: int | None = None, last: bool = False
    ) -> Tensor:
        """The next block [B, C, n] of a sound -> the codes [B, K, t] that are determined now, t may be 0.

        state: {} at the begin of a sound; what the layers remember is left in it. last: the sound ends with this block,
        which may be empty. All blocks' codes are those that `encode` makes of the whole.
        """
        self._check_stateful()
        return self._encode(audio, self._check_codebooks(num_codebooks), state, last)

    @torch.no_grad()
    def decode_block(self, codes: Tensor, state: StreamState, last: bool = False) -> Tensor:
        """The next block of codes [B, K, t] -> the audio [B, C, n] that is determined now; as `encode_block`."""
        self._check_stateful()
        if codes.shape[-1] > 0:
            self._check_codes(codes)
        return self._decode(codes, 0, state, last)

    def segment_frames(self, num_samples: int) -> list[int]:
        """Frames of each segment of a sound of that many samples; the last ones may be short."""
        return [-(-(piece.stop - piece.start) // self.hop_length) for piece in self._cut(num_samples)]

    def _cut(self, num_samples: int) -> list[slice]:
        return cut(num_samples, self.segment_samples or num_samples, self.stride_samples or num_samples)

    @torch.no_grad()
    def encode_segments(self, audio: Tensor, num_codebooks: int | None = None) -> list[Segment]:
        """[B, C, N] -> its segments in their order; one if the codec is not segmented."""
        self._check_audio(audio)
        count = self._check_codebooks(num_codebooks)
        return [self._encode_segment(audio[..., piece], count) for piece in self._cut(audio.shape[-1])]

    def _encode_segment(self, audio: Tensor, count: int) -> Segment:
        if not self.config.normalise:
            return Segment(self._encode(audio, count))
        scale = loudness(audio)
        return Segment(self._encode(audio / scale[:, None, None], count), scale)

    @torch.no_grad()
    def decode_segments(self, segments: Sequence[Segment], num_samples: int) -> Tensor:
        """The segments of a sound of N = num_samples -> audio [B, C, N]; where they overlap they are cross-faded."""
        frames = self.segment_frames(num_samples)
        if [segment.codes.shape[-1] for segment in segments] != frames:
            raise InputError(
                f"{len(segments)} segments of {[segment.codes.shape[-1] for segment in segments][:4]} ... frames are "
                f"not {num_samples} samples, which are {len(frames)} of {frames[:4]} ..."
            )
        pieces = []
        for codes, scale in segments:
            self._check_codes(codes)
            if (scale is None) == self.config.normalise:
                raise InputError(
                    f"scale is {scale}: a normalising codec needs one a segment, any other has none"
                )
            piece = self._decode(codes)
            pieces.append(piece if scale is None else piece * scale[:, None, None])
        audio = pieces[0] if self.stride_samples is None else overlap_add(pieces, self.stride_samples)
        return audio[..., :num_samples]

    def _encode(
        self, audio: Tensor, count: int, state: StreamState | None = None, last: bool = False
    ) -> Tensor:
        """Audio [B, C, N] -> codes [B, count, T]."""
        if self.config.dual_mono:
            audio, count = rearrange(audio, "b c n -> (b c) 1 n"), count // 2
        latents = self._run(self.encoder, audio, 0, state, last)
        codes = self.quantizer.encode(latents, count)
        return rearrange(codes, "(b c) k t -> b (k c) t", c=2) if self.config.dual_mono else codes

    def _decode(
        self, codes: Tensor, first_frame: int = 0, state: StreamState | None = None, last: bool = False
    ) -> Tensor:
        """Codes [B, K, T], checked -> audio [B, C, T * hop_length]."""
        if self.config.dual_mono:
            codes = rearrange(codes, "b (k c) t -> (b c) k t", c=2)
        audio = self._run(self.decoder, self.quantizer.decode(codes), first_frame, state, last)
        return rearrange(audio, "(b c) 1 n -> b c n", c=2) if self.config.dual_mono else audio

    def _run(
        self, stack: nn.Module, x: Tensor, first_frame: int, state: StreamState | None, last: bool
    ) -> Tensor:
        """Encoder or decoder as `freeze` has it -> float32."""
        if self.dtype is not None:
            if stack not in self.packed:
                pack(stack, self.dtype)
                self.packed.add(stack)
            x = x.to(self.dtype)
        if isinstance(stack, SpectralEncoder):
            return stack(x)
        y: Tensor = stack(x, first_frame) if isinstance(stack, SpectralDecoder) else stack(x, state, last)
        return y.float()

    def _check_stateful(self) -> None:
        self._check_whole("encode_segments and decode_segments")
        if not self.stateful:
            why = "a spectral codec" if self.config.arch == "spectral" else "a codec with group norm"
            raise InputError(
                f"{why} keeps no state from block to block: use the functions of codec/stream.py"
            )

    def _check_whole(self, instead: str) -> None:
        if self.segmented:
            raise InputError(
                f"this codec works on segments of {self.config.segment_s:g} s, which are no one sequence of codes: "
                f"use {instead} or token files; a language model needs another codec"
            )

    def _check_codes(self, codes: Tensor) -> None:
        if codes.dim() != 3 or not 1 <= codes.shape[1] <= self.num_codebooks or codes.shape[2] < 1:
            raise InputError(
                f"codes have shape {list(codes.shape)}: [B, 1 to {self.num_codebooks}, T] is allowed"
            )
        self._check_codebooks(codes.shape[1])
        if codes.min() < 0 or codes.max() >= self.codebook_size:
            raise InputError(
                f"codes lie in {int(codes.min())}..{int(codes.max())}: 0..{self.codebook_size - 1} is allowed; "
                "do they come from another codec?"
            )

    def _check_audio(self, audio: Tensor) -> None:
        if audio.dim() != 3 or audio.shape[1] != self.channels or audio.shape[2] < 1:
            raise InputError(f"audio has shape {list(audio.shape)}: [B, {self.channels}, N >= 1] is allowed")

    def _check_codebooks(self, num_codebooks: int | None) -> int:
        if num_codebooks is None:
            return self.num_codebooks
        if not 1 <= num_codebooks <= self.num_codebooks:
            raise InputError(f"num_codebooks is {num_codebooks}: 1 to {self.num_codebooks} is allowed")
        if self.config.dual_mono and num_codebooks % 2:
            raise InputError(f"num_codebooks is {num_codebooks}: with dual_mono an even number is allowed")
        return num_codebooks

    @cached_property
    def context_frames(self) -> int:
        """One-sided receptive field of encoder and decoder, in frames.

        A window that sees this much beyond its body gives the codes and the audio of the whole. An LSTM never
        forgets entirely; it gets 4 s of warm-up. A stateful codec needs no windows.
        """
        self._check_whole("encode_segments")
        if self.config.arch == "seanet" and self.config.seanet.norm == "group":
            raise InputError(
                "group norm is over all of a sound: this codec has no windows, encode it in one call"
            )
        if self.config.arch == "spectral":
            return context_frames(self.config.spectral)
        frames = max(
            reach(self.encoder, 1, self.hop_length), reach(self.decoder, self.hop_length, self.hop_length)
        )
        return frames + (ceil(4 * self.frame_rate) if self.config.seanet.lstm else 0)

    @cached_property
    def lookahead_frames(self) -> int:
        """Frames that must follow one before all of its audio is determined.

        Reflection delays only the first frames more: its layers need what they are to reflect.
        """
        if not self.stateful:
            return self.context_frames
        return ceil(held_samples(self.decoder) / self.hop_length)
