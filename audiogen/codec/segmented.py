"""Codecs that code a sound in overlapping segments: EnCodec at 48 kHz (arXiv:2210.13438, 3.1).

Each segment has codes of its own, and a scale where it was divided by its loudness: they are no one sequence, so such a
codec is no `interfaces.Codec` and no language model learns its tokens. Commands that write and read token files take
both kinds, by `in_segments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen.codec import stream
from audiogen.codec.model import Codec as ModelCodec
from audiogen.codec.tokens import TokenHeader
from audiogen.errors import InputError
from audiogen.interfaces import Codec, Segment, check_samples

MIN_LOUDNESS = 1e-8  # added to the loudness that a segment is divided by, for silence (EnCodec)


class SegmentedCodec:
    """A codec's segments. [B, C, N] -> one `Segment` every `stride_samples`; the last ones are short.

    The last one may even lie within the one before it: the released codecs code it all the same. segment_samples and
    stride_samples are None where a segment is the whole sound. normalised: each segment is divided by its loudness.
    header: of the tokens that it makes with all its codebooks; num_samples is a placeholder.
    """

    def __init__(
        self,
        codec: Codec,
        segment_samples: int | None = None,
        stride_samples: int | None = None,
        normalised: bool = False,
    ) -> None:
        self.codec, self.name, self.identity = codec, codec.name, codec.identity
        self.sample_rate, self.channels = codec.sample_rate, codec.channels
        self.header = TokenHeader(
            codec=codec.name,
            identity=codec.identity,
            sample_rate=codec.sample_rate,
            channels=codec.channels,
            num_samples=1,
            num_codebooks=codec.num_codebooks,
            codebook_size=codec.codebook_size,
            hop_length=codec.hop_length,
            segment_samples=segment_samples,
            stride_samples=stride_samples,
            normalised=normalised,
        )

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    def is_compatible(self, identity: str, num_codebooks: int) -> bool:
        """As `interfaces.Codec`."""
        return self.codec.is_compatible(identity, num_codebooks)

    @property
    def bandwidths_kbps(self) -> list[float]:
        """Of the first codebook, of the first two, ... of all."""
        counts = range(1, self.header.num_codebooks + 1)
        return [replace(self.header, num_codebooks=count).bandwidth_kbps for count in counts]

    @torch.no_grad()
    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> list[Segment]:
        """[B, C, N] -> its segments in their order."""
        num_samples = audio.shape[-1]
        length = self.header.segment_samples
        stride = self.header.stride_samples or max(1, num_samples)
        pieces = (audio[..., start:][..., :length] for start in range(0, max(1, num_samples), stride))
        return [self._encode_segment(piece, num_codebooks) for piece in pieces]

    def _encode_segment(self, audio: Tensor, num_codebooks: int | None) -> Segment:
        """[B, C, n] -> codes [B, K, t] and scale [B]."""
        if not self.header.normalised:
            return Segment(self.codec.encode(audio, num_codebooks))
        check_samples(audio, "the audio")  # here: divided by an infinite loudness, it would be silence
        scale = loudness(audio)
        return Segment(self.codec.encode(audio / scale[:, None, None], num_codebooks), scale)

    @torch.no_grad()
    def decode(self, segments: Sequence[Segment], num_samples: int) -> Tensor:
        """The segments of a sound of N = num_samples -> audio [B, C, N]; where they overlap they are cross-faded.

        A sound that is one segment may come in several blocks of its codes.
        """
        header = replace(self.header, num_samples=num_samples)
        if header.segment_samples is None and segments:
            segments = [Segment(torch.cat([segment.codes for segment in segments], -1), segments[0].scale)]
        frames = list(header.segment_frames())
        given = [segment.codes.shape[-1] for segment in segments]
        if given != frames:
            raise InputError(
                f"{len(given)} segments of {given[:4]} ... frames are not {num_samples} samples, which are "
                f"{len(frames)} of {frames[:4]} ..."
            )
        pieces: Iterable[Tensor] = map(self._decode_segment, segments)
        if header.stride_samples is not None:
            pieces = cross_fade(pieces, header.stride_samples)
        return torch.cat(list(pieces), -1)[..., :num_samples]

    def _decode_segment(self, segment: Segment) -> Tensor:
        """-> audio [B, C, t * hop_length]."""
        codes, scale = segment
        if (scale is None) == self.header.normalised:
            raise InputError(
                f"scale is {scale}: a normalising codec needs one for each segment, others have none"
            )
        audio = self.codec.decode(codes)
        return audio if scale is None else audio * scale[:, None, None]

    @torch.no_grad()
    def encode_stream(self, blocks: Iterable[Tensor], num_codebooks: int | None = None) -> Iterator[Segment]:
        """Audio blocks [1, C, n] of any lengths -> the segments of the whole signal, or blocks of its one segment."""
        length, stride = self.header.segment_samples, self.header.stride_samples
        if length is None or stride is None:
            for codes in stream.encode_stream(self.codec, blocks, num_codebooks):
                yield Segment(codes)
            return
        buffer: Tensor | None = None  # from the beginning of the next segment on
        for block in blocks:
            buffer = block if buffer is None else torch.cat([buffer, block], -1)
            while buffer.shape[-1] >= length:
                yield self._encode_segment(buffer[..., :length], num_codebooks)
                buffer = buffer[..., stride:]
        if buffer is not None and buffer.shape[-1] > 0:
            yield from self.encode(buffer, num_codebooks)

    @torch.no_grad()
    def decode_stream(self, segments: Iterable[Segment], num_samples: int) -> Iterator[Tensor]:
        """What `encode_stream` gave of `num_samples` -> audio [1, C, n]; joined, at least so many samples."""
        if self.header.stride_samples is None:
            yield from stream.decode_stream(self.codec, (segment.codes for segment in segments))
            return
        for block in cross_fade(map(self._decode_segment, segments), self.header.stride_samples):
            yield block[..., :num_samples]  # the last frame may reach beyond the sound
            num_samples -= block.shape[-1]


def as_configured(codec: ModelCodec) -> ModelCodec | SegmentedCodec:
    """A codec as its config says: in segments where that has segment_s."""
    config = codec.config
    if config.segment_s is None:
        return codec
    segment_samples = int(config.segment_s * config.sample_rate)
    stride_samples = max(1, int((1 - config.segment_overlap) * segment_samples))
    return SegmentedCodec(codec, segment_samples, stride_samples, config.normalise)


def in_segments(codec: Codec | SegmentedCodec) -> SegmentedCodec:
    """Either kind of codec as one that gives segments; one that codes a sound whole gives a single one."""
    return codec if isinstance(codec, SegmentedCodec) else SegmentedCodec(codec)


def loudness(audio: Tensor) -> Tensor:
    """Root mean square [B] of the mean of the channels of audio [B, C, N], never 0."""
    return audio.mean(1).square().mean(1).sqrt() + MIN_LOUDNESS


def cross_fade(pieces: Iterable[Tensor], stride: int) -> Iterator[Tensor]:
    """Pieces [B, C, n], one every `stride` samples -> the audio [B, C, stride] that each one completes, then the rest.

    The weight of each sample of a piece rises to the middle of the first piece and falls again; the sum is divided by
    the sum of the weights, so that one piece alone stays as it is and two cross-fade linearly, as in EnCodec.
    """
    audio: Tensor | None = None  # [B, C, n]: the weighted sum from the beginning of the next piece on
    for piece in pieces:
        if audio is None:
            position = torch.linspace(0, 1, piece.shape[-1] + 2, device=piece.device, dtype=piece.dtype)[1:-1]
            weights = 0.5 - (position - 0.5).abs()  # [n], above 0
            audio, total = piece[..., :0], weights[:0]
        else:
            yield audio[..., :stride] / total[:stride]
            audio, total = audio[..., stride:], total[stride:]
        missing = max(0, piece.shape[-1] - audio.shape[-1])
        audio, total = F.pad(audio, (0, missing)), F.pad(total, (0, missing))
        weight = weights[: piece.shape[-1]]
        audio[..., : len(weight)] += weight * piece
        total[: len(weight)] += weight
    if audio is not None:
        yield audio / total
