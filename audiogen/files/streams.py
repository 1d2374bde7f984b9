"""MPEG audio frames and Ogg links: what such files hold, which their first header does not say.

libsndfile takes the length of an MP3 without a Xing tag from a guess, and reads only the first of joined sounds.
Both formats are chains of small parts, each with a header that has its size; here they are walked.
"""

import io
import itertools
import mmap
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

# ISO/IEC 11172-3 (2.4.2.3) and 13818-3. The header's version bits -> rates in Hz; MPEG 2.5 (0) is Fraunhofer's.
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
# (version 1 or not, layer) -> kbit/s, by the header's bitrate bits from 1 to 14.
KBPS = {
    (True, 1): range(32, 449, 32),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
MAX_RATIO = (
    56  # of the bitrates of two frames of one kind, 448 to 8 kbit/s: a guessed length is off by no more
)


class Frame(NamedTuple):
    """The header of an MPEG frame: bytes with the header, samples per channel, and what is the same in all frames."""

    size: int
    samples: int
    kind: tuple[int, int, int]  # bits of version, layer, rate


def frame_at(data: mmap.mmap | bytes, position: int) -> Frame | None:
    """The frame that begins at a byte, or None where no frame can begin."""
    head = data[position : position + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bitrate, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    bits_per_s = 1000 * KBPS[version == 3, layer][bitrate - 1]
    slot = 4 if layer == 1 else 1  # bytes
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    slots = samples * bits_per_s // (8 * slot * RATES[version][rate]) + (head[2] >> 1 & 1)
    return Frame(slots * slot, samples, (version, layer, rate))


def is_mpeg(data: mmap.mmap | bytes) -> bool:
    """Whether a file begins as MPEG audio does, or as a WAV file that holds MPEG audio (codes 0x50 and 0x55)."""
    in_wav = data[:4] == b"RIFF" and data[12:16] == b"fmt " and data[20:22] in (b"\x50\0", b"\x55\0")
    return in_wav or data[:3] == b"ID3" or frame_at(data, 0) is not None


def mpeg_frames(data: mmap.mmap | bytes) -> Iterator[tuple[int, Frame]]:
    """Walk the frames of an MPEG file -> (byte where it begins, frame). What lies between them is passed over.

    A first frame counts where another of its kind follows, so that no chance bytes are taken for sound.
    """
    position, kind = 0, None
    while 0 <= position <= len(data) - 4:
        frame = frame_at(data, position)
        if data[position : position + 3] == b"ID3":
            size = data[position + 6 : position + 10]  # four times seven bits
            position += 10 + sum(byte << 7 * (3 - k) for k, byte in enumerate(size))
        elif (
            frame
            and position + frame.size <= len(data)
            and frame.kind == (kind or _next_kind(data, position, frame))
        ):
            yield position, frame
            position, kind = position + frame.size, frame.kind
        else:
            position = data.find(b"\xff", position + 1)


def _next_kind(data: mmap.mmap | bytes, position: int, frame: Frame) -> tuple[int, int, int] | None:
    follower = frame_at(data, position + frame.size)
    return follower and follower.kind


def tag_at(data: mmap.mmap | bytes, position: int) -> tuple[int, int] | None:
    """(frames, bytes) in the tag of the frame at a byte, 0 for what it leaves out; None without a tag.

    Xing and Info lie behind the side information, 9 to 32 bytes by version and channels; VBRI behind 32 bytes.
    """
    head = data[position : position + 64]
    for name in (b"Xing", b"Info"):
        at = head.find(name)
        if at in (13, 21, 36):
            fields = data[position + at + 4 : position + at + 16]
            flags, *numbers = (int.from_bytes(fields[k : k + 4], "big") for k in range(0, 12, 4))
            frames = numbers.pop(0) if flags & 1 else 0
            return frames, numbers.pop(0) if flags & 2 else 0
    if head[36:40] == b"VBRI":
        return int.from_bytes(head[50:54], "big"), int.from_bytes(head[46:50], "big")
    return None


def ogg_links(data: mmap.mmap | bytes) -> list[tuple[int, int]]:
    """The spans of bytes of the sounds that an Ogg file holds one after the other (RFC 3533, chaining)."""
    starts, position, beginning = [], 0, False
    while data[position : position + 4] == b"OggS" and position + 27 <= len(data):
        first = bool(data[position + 5] & 2)  # the page begins a stream
        if first and not beginning:  # several that begin together are multiplexed: one link
            starts.append(position)
        beginning = first
        segments = data[position + 26]
        position += 27 + segments + sum(data[position + 27 : position + 27 + segments])
    return list(zip(starts, [*starts[1:], len(data)][: len(starts)], strict=True))


class Spans(io.RawIOBase):
    """Spans of bytes of a file as a file of its own; `head` replaces its first bytes, zeros fill it up to `size`."""

    def __init__(
        self, data: mmap.mmap | bytes, spans: Iterable[tuple[int, int]], size: int = 0, head: bytes = b""
    ) -> None:
        self.data, self.head, self.position = data, head, 0
        self.spans: list[tuple[int, int]] = []
        for start, stop in spans:
            if self.spans and self.spans[-1][1] == start:
                start = self.spans.pop()[0]
            self.spans.append((start, stop))
        self.ends = list(itertools.accumulate(stop - start for start, stop in self.spans))
        self.size = max(size, self.ends[-1])

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as the file goes -> the number of bytes."""
        wanted = min(len(buffer), max(0, self.size - self.position))
        filled = 0
        while filled < wanted:
            index = bisect_right(self.ends, self.position)
            if self.position < len(self.head):
                piece = self.head[self.position : self.position + wanted - filled]
            elif index == len(self.spans):
                piece = bytes(wanted - filled)
            else:
                at = self.spans[index][1] - (self.ends[index] - self.position)
                piece = self.data[at : min(self.spans[index][1], at + wanted - filled)]
            buffer[filled : filled + len(piece)] = piece
            filled += len(piece)
            self.position += len(piece)
        return filled
