"""Arithmetic coding of integers under given distributions, bit for bit as in `.ecdc` files.

The coder holds an interval of whole numbers. A symbol narrows it to that symbol's share of its distribution; bits that
both ends have in common are final and leave; when the interval is narrower than 2^24 it takes bits in. Encoder and
decoder must see the same distribution to the last bit: it is rounded (`cumulative`), which evens out most of the
differences between machines, yet not those that fall on either side of a rounding step.
Source: the `encodec` package, whose files this reads and writes (its rounding is part of the format).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import ceil, floor

import numpy as np
from torch import Tensor

RANGE_BITS = 24
RANGE = 1 << RANGE_BITS
STEP = 1e-8  # probabilities are rounded down to multiples of this
LEAST = 2  # the share of the rarest symbol, of RANGE


class CodingError(ValueError):
    """The bits cannot come from these distributions, or end early; or nothing can be written under them."""


def cumulative(probabilities: Tensor) -> Tensor:
    """Float32 probabilities [..., V] -> int64 [..., V]: where each symbol's share of 2^24 ends.

    Every share is at least 2. The operations and their order are the format's: in float64, or with the factors
    multiplied beforehand, other files come out. Float32 rounds up at times: shares of two or three symbols may add up
    to 2^24 + 1, which the coders refuse when it matters; 1024 symbols lose far more to rounding down.
    """
    size = probabilities.shape[-1]
    rounded = (probabilities / STEP).floor() * STEP
    shares = ((1 - LEAST * size / RANGE) * RANGE * rounded).floor().long() + LEAST
    return shares.cumsum(-1)


class _Interval:
    """The numbers low..high, both included, whose first bits are settled and gone; `num_bits` are left of each."""

    def __init__(self) -> None:
        self.low, self.high, self.num_bits = 0, 0, 0

    def share(self, symbol: int, ends: Sequence[int]) -> tuple[int, int]:
        """First and last number of a symbol's share."""
        # A float product as in the format, also where it rounds (widths above 2^53).
        scale = (self.high - self.low + 1) / RANGE
        first = ends[symbol - 1] if symbol else 0
        return self.low + ceil(first * scale), self.low + floor((ends[symbol] - 1) * scale)

    def narrow(self, low: int, high: int) -> list[int]:
        """Make low..high the interval; -> the bits that are settled by it, the highest first."""
        if high >> self.num_bits:
            raise CodingError("the shares of a distribution add up to more than there is")
        num_settled = self.num_bits - (low ^ high).bit_length()
        settled = low >> (self.num_bits - num_settled)
        self.num_bits -= num_settled
        mask = (1 << self.num_bits) - 1
        self.low, self.high = low & mask, high & mask
        return [settled >> bit & 1 for bit in reversed(range(num_settled))]

    @property
    def is_narrow(self) -> bool:
        return self.high - self.low + 1 < RANGE

    def widen(self) -> None:
        """Take in one bit."""
        self.low, self.high, self.num_bits = 2 * self.low, 2 * self.high + 1, self.num_bits + 1


class ArithmeticEncoder:
    """`push` symbols, then `finish` gives their bytes: the first bit is the lowest of the first byte."""

    def __init__(self) -> None:
        self._interval = _Interval()
        self._bits: list[int] = []

    def push(self, symbol: int, ends: Sequence[int]) -> None:
        """One symbol and its distribution, a row of `cumulative` as a list."""
        interval = self._interval
        while interval.is_narrow:
            interval.widen()
        self._bits += interval.narrow(*interval.share(symbol, ends))

    def finish(self) -> bytes:
        """Of all numbers left the lowest is written, and zeros to the end of the byte."""
        interval = self._interval
        bits = self._bits + [interval.low >> bit & 1 for bit in reversed(range(interval.num_bits))]
        return np.packbits(np.array(bits, np.uint8), bitorder="little").tobytes()


class ArithmeticDecoder:
    """`pull` as many symbols as were pushed, then `finish`. `start`: the first byte in `data` that it reads."""

    def __init__(self, data: bytes, start: int = 0) -> None:
        self._data, self._position = data, 8 * start
        self._interval = _Interval()
        self._value = 0

    def pull(self, ends: Sequence[int]) -> int:
        """The next symbol under a distribution as in `push`; CodingError where there is none."""
        interval = self._interval
        while interval.is_narrow:
            interval.widen()
            self._value = 2 * self._value + self._bit()
        # The last share that does not begin above the value; it may end below it, for shares leave small gaps.
        symbol = (
            bisect_right(range(len(ends)), self._value, key=lambda index: interval.share(index, ends)[0]) - 1
        )
        low, high = interval.share(symbol, ends)
        if self._value > high:
            raise CodingError("a number between the shares of two symbols")
        interval.narrow(low, high)
        self._value &= (1 << interval.num_bits) - 1
        return symbol

    def finish(self) -> int:
        """-> the byte after the last one of these symbols.

        CodingError where the encoder would have ended otherwise: it writes the lowest number of its interval and pads
        with zeros. Symbols decoded under other distributions pass this by a chance of about 2^-24.
        """
        if self._value != self._interval.low:
            raise CodingError("the last bits are not the end that the encoder writes")
        while self._position % 8:
            if self._bit():
                raise CodingError("the last byte is not padded with zeros")
        return self._position // 8

    def _bit(self) -> int:
        byte, bit = divmod(self._position, 8)
        if byte >= len(self._data):
            raise CodingError("the bits end before the symbols")
        self._position += 1
        return self._data[byte] >> bit & 1
