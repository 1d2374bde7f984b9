"""What a token file says about its codes: whose they are, and how many."""

from __future__ import annotations

from dataclasses import dataclass, fields

from audiogen.errors import InputError

VERSION, SEGMENTED_VERSION = 1, 2  # of the file format: without segments, and with
SCALE_BYTES = 4  # a float32


@dataclass(frozen=True)
class TokenHeader:
    """What a token file says about its codes.

    codec, identity: name of the codec and hash of its weights; the name is a hint, the hash decides.
    sample_rate: Hz, of the codec. channels: of the codec's audio.
    num_samples: exact length of the clip at `sample_rate`; 0 while it is being written.
    num_codebooks: how many are stored, at most those that the codec has.
    source_sample_rate, source_num_samples: the recording before it was resampled, None where unknown.
    segment_samples, stride_samples: of a codec that works on segments; None of one that takes the clip as a whole.
    normalised: each segment was divided by its loudness, and has its scale in the file.
    """

    codec: str
    identity: str
    sample_rate: int
    channels: int
    num_samples: int
    num_codebooks: int
    codebook_size: int
    hop_length: int
    source_sample_rate: int | None = None
    source_num_samples: int | None = None
    segment_samples: int | None = None
    stride_samples: int | None = None
    normalised: bool = False

    def __post_init__(self) -> None:
        for name in ("codec", "identity"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"token header: {name} is {getattr(self, name)!r}; it must be text")
        for field in fields(self)[2:-1]:
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            least = 0 if field.name == "num_samples" else 1
            if type(value) is not int or value < least:
                raise InputError(f"token header: {field.name} is {value!r}; allowed: integers from {least}")
        if type(self.normalised) is not bool:
            raise InputError(f"token header: normalised is {self.normalised!r}; allowed: true, false")
        segment, stride = self.segment_samples or 1, self.stride_samples or 1
        paired = (self.segment_samples is None) == (self.stride_samples is None)
        if not paired or not stride <= segment <= 2 * stride + 1:  # half of an odd number is rounded down
            raise InputError(
                f"token header: segment_samples is {self.segment_samples}, stride_samples {self.stride_samples}; "
                "allowed: both or neither, a stride of half a segment to a whole one"
            )
        if self.normalised and self.segment_samples is None:
            raise InputError("token header: normalised goes with segment_samples only")

    @property
    def version(self) -> int:
        """Of the file format."""
        return VERSION if self.segment_samples is None else SEGMENTED_VERSION

    @property
    def num_segments(self) -> int:
        """One begins every `stride_samples`, as long as there is sound."""
        return 1 if self.stride_samples is None else -(-self.num_samples // self.stride_samples)

    def segment_frames(self, index: int) -> int:
        """Frames of a segment: ceil(its samples / hop_length); those that end with the clip are shorter."""
        start = index * (self.stride_samples or 0)
        num_samples = min(self.segment_samples or self.num_samples, self.num_samples - start)
        return -(-num_samples // self.hop_length)

    @property
    def num_frames(self) -> int:
        """T, summed over the segments; ceil(num_samples / hop_length) where the clip is one piece."""
        if self.segment_samples is None:
            return self.segment_frames(0)
        assert self.stride_samples is not None
        # Not by a loop over all: the numbers may come from a forged header.
        num_whole = max(0, (self.num_samples - self.segment_samples) // self.stride_samples + 1)
        cut = range(num_whole, self.num_segments)  # two or three, as segments overlap by half at most
        return num_whole * -(-self.segment_samples // self.hop_length) + sum(map(self.segment_frames, cut))

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop_length

    @property
    def duration_s(self) -> float:
        return self.num_samples / self.sample_rate

    @property
    def bits_per_code(self) -> int:
        """ceil(log2 V)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bandwidth_kbps(self) -> float:
        return bandwidth_kbps(self.frame_rate, self.num_codebooks, self.codebook_size)

    @property
    def num_bytes(self) -> int:
        """Of the packed codes."""
        return -(-self.num_frames * self.num_codebooks * self.bits_per_code // 8)

    @property
    def num_scale_bytes(self) -> int:
        """Of the scales after them."""
        return SCALE_BYTES * self.num_segments if self.normalised else 0


def bandwidth_kbps(frame_rate: float, num_codebooks: int, codebook_size: int) -> float:
    """Thousand bits a second that the packed codes take."""
    return frame_rate * num_codebooks * (codebook_size - 1).bit_length() / 1000
