"""Metadata of sound files, on its way into them and back: what libsndfile leaves out, or writes differently each time.

WAV: a LIST chunk of INFO strings, iXML and XMP after the samples. MP3: an ID3v2.4 tag before them. Ogg: the comment
header (RFC 7845, Vorbis I 5), and serial numbers that do not depend on the time, so that the same sound is the same
bytes. FLAC: libsndfile's own strings.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO, NamedTuple
from xml.sax.saxutils import escape

SERIAL = 1  # of an Ogg stream; libsndfile draws it from the clock
LONGEST_TITLE = 200  # characters
MOST_WAV_BYTES = 2**32 - 2**20  # sizes in WAV have 32 bits
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Tags(NamedTuple):
    """title, software, comment: as programs show them. source_type: IPTC's address for where the sound comes from.

    xmp: an XMP packet, or "".
    """

    title: str
    software: str
    comment: str
    source_type: str
    xmp: str = ""


class Tagged(io.RawIOBase):
    """A new file for libsndfile, which passes through here. tags: None writes none.

    kind: wav, flac, ogg or mp3. `strings` are for libsndfile. `finish` comes after it has closed.
    """

    def __init__(self, file: Any, kind: str, tags: Tags | None):
        super().__init__()
        self.file, self.kind, self.tags, self.skip = file, kind, tags, 0
        self.pages = OggPages(tags) if kind == "ogg" else None
        if kind == "mp3" and tags is not None:
            self.skip = file.write(id3(tags))

    @property
    def strings(self) -> dict[str, str]:
        """Attributes of soundfile.SoundFile."""
        if self.kind != "flac" or self.tags is None:
            return {}
        title, software, comment, source_type, _ = self.tags
        found = {"title": title, "software": software, "comment": comment}
        found["genre"] = f"AI-generated ({source_type})"
        return {name: text for name, text in found.items() if text}  # an empty one damages the file

    def write(self, data: Any) -> int:
        """-> the number of bytes."""
        if self.pages is None:
            return int(self.file.write(data))
        self.pages.received += len(data)
        for page in self.pages.feed(bytes(data)):
            self.file.write(page)
        return len(data)

    def readinto(self, buffer: Any) -> int:
        """-> the number of bytes."""
        return int(self.file.readinto(buffer))

    def seek(self, offset: int, whence: int = 0) -> int:
        """-> the position; of Ogg, which is written from its beginning to its end, that where it is."""
        if self.pages is not None:
            return self.pages.received
        return int(self.file.seek(offset + self.skip if whence == 0 else offset, whence)) - self.skip

    def finish(self) -> None:
        """What comes after the samples."""
        if self.kind != "wav" or self.tags is None:
            return
        size = self.file.seek(0, 2)
        if size > MOST_WAV_BYTES:
            return
        self.file.write(b"\0" * (size % 2) + wav_chunks(self.tags))
        size = self.file.seek(0, 2)
        self.file.seek(4)
        self.file.write(struct.pack("<I", size - 8))
        self.file.seek(0, 2)


# ------------------------------------------------------------------------------------------------------------ WAV


def wav_chunks(tags: Tags) -> bytes:
    """LIST of INFO strings, iXML and XMP (`_PMX`), each of an even length."""
    title, software, comment, source_type, xmp = tags
    info = {"INAM": title, "ISFT": software, "ICMT": comment, "IKEY": "AI-generated", "ISRC": source_type}
    strings = b"".join(_chunk(key, text.encode() + b"\0") for key, text in info.items() if text)
    ixml = (
        '<?xml version="1.0" encoding="UTF-8"?><BWFXML><IXML_VERSION>2.10</IXML_VERSION>'
        f"<NOTE>{escape(source_type)}</NOTE><USER>{escape(comment)}</USER></BWFXML>"
    )
    others = {"iXML": ixml, "_PMX": xmp}
    return _chunk("LIST", b"INFO" + strings) + b"".join(
        _chunk(key, text.encode()) for key, text in others.items() if text
    )


def _chunk(key: str, data: bytes) -> bytes:
    return key.encode() + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def wav_comment(file: BinaryIO) -> str | None:
    """The comment of a WAV file, by its chunks; None where there is none."""
    if file.read(4) not in (b"RIFF", b"RF64") or file.read(8)[4:] != b"WAVE":
        return None
    while len(head := file.read(8)) == 8:
        key, size = head[:4], struct.unpack("<I", head[4:])[0]
        if key == b"LIST" and file.read(4) == b"INFO":
            data, place = file.read(size - 4), 0
            while place + 8 <= len(data):
                name, length = data[place : place + 4], struct.unpack("<I", data[place + 4 : place + 8])[0]
                if name == b"ICMT":
                    return data[place + 8 : place + 8 + length].rstrip(b"\0").decode(errors="replace")
                place += 8 + length + length % 2
            file.seek(size % 2, 1)
        else:
            file.seek(size + size % 2 - (4 if key == b"LIST" else 0), 1)
    return None


# ------------------------------------------------------------------------------------------------------------ MP3


def id3(tags: Tags) -> bytes:
    """An ID3v2.4 tag with its texts in UTF-8."""
    title, software, comment, source_type, xmp = (text.encode() for text in tags)
    frames = {
        b"TIT2": b"\3" + title if title else b"",
        b"TSSE": b"\3" + software,
        b"COMM": b"\3eng\0" + comment,
        b"TXXX": b"\3DigitalSourceType\0" + source_type,
        b"PRIV": b"XMP\0" + xmp if xmp else b"",
    }
    body = b"".join(key + _synchsafe(len(data)) + b"\0\0" + data for key, data in frames.items() if data)
    body += bytes(10)  # padding: ExifTool wants room for another frame's header after the last one
    return b"ID3\4\0\0" + _synchsafe(len(body)) + body


def _synchsafe(number: int) -> bytes:
    """Four times seven bits, so that no byte looks like the beginning of a frame of sound."""
    return bytes(number >> shift & 127 for shift in (21, 14, 7, 0))


# ------------------------------------------------------------------------------------------------------------ Ogg


class OggPages:
    """Ogg pages of a Vorbis or Opus stream as they come: comments replaced, serial and page numbers and sums anew.

    received: bytes of libsndfile's.
    """

    def __init__(self, tags: Tags | None):
        self.tags, self.received = tags, 0
        self._data, self._number = b"", 0
        self._packet, self._packets = b"", list[bytes]()
        self._headers = 0  # packets that come before those of sound

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The next bytes -> the pages that are whole."""
        self._data += data
        while len(self._data) >= 27:
            count = self._data[26]
            size = 27 + count + sum(self._data[27 : 27 + count])
            if len(self._data) < 27 + count or len(self._data) < size:
                return
            page, self._data = self._data[:size], self._data[size:]
            yield from self._take(page)

    def _take(self, page: bytes) -> Iterator[bytes]:
        count = page[26]
        lacing, body = page[27 : 27 + count], page[27 + count :]
        if self._number == 0:
            self._headers = 2 if body.startswith(b"\1vorbis") else 1
        elif len(self._packets) < self._headers and self.tags is not None:
            place = 0
            for length in lacing:
                self._packet += body[place : place + length]
                place += length
                if length < 255:
                    self._packets.append(self._packet)
                    self._packet = b""
            if len(self._packets) >= self._headers:  # libsndfile begins the sound on a new page
                yield from self._pages([comments(self._packets[0], self.tags), *self._packets[1:]])
            return
        yield self._numbered(page)

    def _pages(self, packets: list[bytes]) -> Iterator[bytes]:
        """Header packets, of position 0, on pages of up to 255 segments."""
        lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
        body, continued = b"".join(packets), 0
        while lacing:
            some, lacing = lacing[:255], lacing[255:]
            position = -1 if all(length == 255 for length in some) else 0  # no packet ends on it
            head = struct.pack("<4sBBqIIIB", b"OggS", 0, continued, position, 0, 0, 0, len(some))
            yield self._numbered(head + some + body[: sum(some)])
            body, continued = body[sum(some) :], int(some[-1] == 255)

    def _numbered(self, page: bytes) -> bytes:
        page = page[:14] + struct.pack("<III", SERIAL, self._number, 0) + page[26:]
        self._number += 1
        return page[:22] + struct.pack("<I", checksum(page)) + page[26:]


def checksum(page: bytes) -> int:
    """Ogg's CRC: zlib's polynomial with the bits of bytes and result in the other order, from 0."""
    found = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(found.to_bytes(4, "little").translate(_REVERSED), "big")


def comments(packet: bytes, tags: Tags) -> bytes:
    """A comment packet with the vendor of another and these comments."""
    begin = packet[:7] if packet.startswith(b"\3vorbis") else packet[:8]  # OpusTags
    (length,) = struct.unpack("<I", packet[len(begin) : len(begin) + 4])
    vendor = packet[len(begin) : len(begin) + 4 + length]
    title, software, comment, source_type, _ = tags
    fields = {"TITLE": title, "ENCODER": software, "COMMENT": comment, "DIGITALSOURCETYPE": source_type}
    entries = [f"{key}={text}".encode() for key, text in fields.items() if text]
    listed = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    end = b"\1" if len(begin) == 7 else b""  # Vorbis's framing bit
    return begin + vendor + struct.pack("<I", len(entries)) + listed + end


def ogg_comment(file: BinaryIO) -> str | None:
    """The comment of an Ogg file: of its second packet; None where there is none."""
    packet, number = b"", 0
    while (head := file.read(27))[:4] == b"OggS" and len(head) == 27:
        lacing = file.read(head[26])
        for length in lacing:
            packet += file.read(length)
            if length == 255:
                continue
            number += 1
            if number == 2:
                return _comment_of(packet)
            packet = b""
    return None


def _comment_of(packet: bytes) -> str | None:
    place = 7 if packet.startswith(b"\3vorbis") else 8
    with suppress(struct.error):
        place += 4 + struct.unpack_from("<I", packet, place)[0]
        (count,) = struct.unpack_from("<I", packet, place)
        place += 4
        for _ in range(min(count, len(packet))):
            (length,) = struct.unpack_from("<I", packet, place)
            key, _, text = packet[place + 4 : place + 4 + length].decode(errors="replace").partition("=")
            if key.upper() == "COMMENT":
                return text
            place += 4 + length
    return None
