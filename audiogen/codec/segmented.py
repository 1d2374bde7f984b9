"""Codecs that code a sound in overlapping segments: EnCodec at 48 kHz (arXiv:2210.13438, 3.1).

Each segment has codes of its own, and a scale where it was divided by its loudness: they are no one sequence, so such a
codec is no `interfaces.Codec` and no language model learns its tokens. Commands that write and read token files take
both kinds, by `in_segments`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from audiogen.codec import stream
from audiogen.codec.model import Codec as ModelCodec
from audiogen.errors import InputError
from audiogen.interfaces import Codec, Segment

MIN_LOUDNESS = 1e-8  # added to the loudness that a segment is divided by, for silence (EnCodec)


class SegmentedCodec:
    """A codec's segments. [B, C, N] -> one `Segment` every `stride_samples`; the last ones are short.

    The last one may even lie within the one before it: the released codecs code it all the same. segment_samples and
    stride_samples are None where a segment is the whole sound. normalised: each segment is divided by its loudness.
    """

    def __init__(
        self,
        codec: Codec,
        segment_samples: int | None = None,
        stride_samples: int | None = None,
        normalised: bool = False,
    ) -> None:
        self.codec = codec
        self.segment_samples, self.stride_samples = segment_samples, stride_samples
        self.normalised = normalised
        self.name, self.identity = codec.name, codec.identity
        self.sample_rate, self.channels, self.hop_length = codec.sample_rate, codec.channels, codec.hop_length
        self.num_codebooks, self.codebook_size = codec.num_codebooks, codec.codebook_size
        self.frame_rate = codec.frame_rate

    @property
    def device(self) -> torch.device:
        return next(self.codec.parameters()).device

    def segment_frames(self, num_samples: int) -> list[int]:
        """Frames of each segment of a sound of that many samples."""
        return [-(-(piece.stop - piece.start) // self.hop_length) for piece in self._cut(num_samples)]

    def _cut(self, num_samples: int) -> list[slice]:
        length, stride = self.segment_samples or num_samples, self.stride_samples or max(1, num_samples)
        starts = range(0, max(1, num_samples), stride)
        return [slice(start, min(start + length, num_samples)) for start in starts]

    @torch.no_grad()
    def encode(self, audio: Tensor, num_codebooks: int | None = None) -> list[Segment]:
        """[B, C, N] -> its segments in their order."""
        return [
            self._encode_segment(audio[..., piece], num_codebooks) for piece in self._cut(audio.shape[-1])
        ]

    def _encode_segment(self, audio: Tensor, num_codebooks: int | None) -> Segment:
        """[B, C, n] -> codes [B, K, t] and scale [B]."""
        if not self.normalised:
            return Segment(self.codec.encode(audio, num_codebooks))
        scale = loudness(audio)
        return Segment(self.codec.encode(audio / scale[:, None, None], num_codebooks), scale)

    @torch.no_grad()
    def decode(self, segments: Sequence[Segment], num_samples: int) -> Tensor:
        """The segments of a sound of N = num_samples -> audio [B, C, N]; where they overlap they are cross-faded.

        A sound that is one segment may come in several blocks of its codes.
        """
        if self.segment_samples is None and segments:
            segments = [Segment(torch.cat([segment.codes for segment in segments], -1), segments[0].scale)]
        frames, given = self.segment_frames(num_samples), [segment.codes.shape[-1] for segment in segments]
        if given != frames:
            raise InputError(
                f"{len(given)} segments of {given[:4]} ... frames are not {num_samples} samples, which are "
                f"{len(frames)} of {frames[:4]} ..."
            )
        pieces = [self._decode_segment(segment) for segment in segments]
        audio = pieces[0] if self.stride_samples is None else overlap_add(pieces, self.stride_samples)
        return audio[..., :num_samples]

    def _decode_segment(self, segment: Segment) -> Tensor:
        """-> audio [B, C, t * hop_length]."""
        codes, scale = segment
        if (scale is None) == self.normalised:
            raise InputError(
                f"scale is {scale}: a normalising codec needs one for each segment, others have none"
            )
        audio = self.codec.decode(codes)
        return audio if scale is None else audio * scale[:, None, None]

    @torch.no_grad()
    def encode_stream(self, blocks: Iterable[Tensor], num_codebooks: int | None = None) -> Iterator[Segment]:
        """Audio blocks [1, C, n] of any lengths -> the segments of the whole signal, or blocks of its one segment."""
        if self.segment_samples is None or self.stride_samples is None:
            for codes in stream.encode_stream(self.codec, blocks, num_codebooks):
                yield Segment(codes)
            return
        buffer: Tensor | None = None  # from the beginning of the next segment on
        for block in blocks:
            buffer = block if buffer is None else torch.cat([buffer, block], -1)
            while buffer.shape[-1] >= self.segment_samples:
                yield self._encode_segment(buffer[..., : self.segment_samples], num_codebooks)
                buffer = buffer[..., self.stride_samples :]
        if buffer is not None and buffer.shape[-1] > 0:
            yield from self.encode(buffer, num_codebooks)

    @torch.no_grad()
    def decode_stream(self, segments: Iterable[Segment], num_samples: int) -> Iterator[Tensor]:
        """What `encode_stream` gave of `num_samples` -> audio [1, C, n]; joined, at least so many samples."""
        if self.segment_samples is None or self.stride_samples is None:
            yield from stream.decode_stream(self.codec, (segment.codes for segment in segments))
            return
        for block in cross_fade(map(self._decode_segment, segments), self.stride_samples):
            yield block[..., :num_samples]  # the last frame may reach beyond the sound
            num_samples -= block.shape[-1]


def as_configured(codec: ModelCodec) -> ModelCodec | SegmentedCodec:
    """A codec as its config says: in segments where that has segment_s."""
    config = codec.config
    if config.segment_s is None:
        return codec
    return SegmentedCodec(codec, config.segment_samples, config.stride_samples, config.normalise)


def in_segments(codec: Codec | SegmentedCodec) -> SegmentedCodec:
    """Either kind of codec as one that gives segments; one that codes a sound whole gives a single one."""
    return codec if isinstance(codec, SegmentedCodec) else SegmentedCodec(codec)


def loudness(audio: Tensor) -> Tensor:
    """Root mean square [B] of the mean of the channels of audio [B, C, N], never 0."""
    return audio.mean(1).square().mean(1).sqrt() + MIN_LOUDNESS


def overlap_add(pieces: Sequence[Tensor], stride: int) -> Tensor:
    """Pieces [B, C, n], one every `stride` samples -> audio [B, C, N] with N = where the last one ends."""
    return torch.cat(list(cross_fade(pieces, stride)), -1)


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
