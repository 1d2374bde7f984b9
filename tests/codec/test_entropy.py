"""Arithmetic coding: inverse pairs, lengths near the entropy, and no decoding of what was not encoded."""

import math

import pytest
import torch
from torch import Tensor

from audiogen.codec.entropy import LEAST, RANGE, ArithmeticDecoder, ArithmeticEncoder, CodingError, cumulative


def distributions(num: int, size: int, sharpness: float) -> Tensor:
    """Random probabilities [num, V]."""
    return (torch.randn(num, size, generator=torch.Generator().manual_seed(size)) * sharpness).softmax(1)


def encode(symbols: list[int], ends: list[list[int]]) -> bytes:
    encoder = ArithmeticEncoder()
    for symbol, row in zip(symbols, ends, strict=True):
        encoder.push(symbol, row)
    return encoder.finish()


def decode(data: bytes, ends: list[list[int]], start: int = 0) -> tuple[list[int], int]:
    decoder = ArithmeticDecoder(data, start)
    return [decoder.pull(row) for row in ends], decoder.finish()


@pytest.mark.parametrize(("size", "sharpness"), [(1, 1.0), (5, 1.0), (37, 5.0), (1024, 4.0), (1024, 40.0)])
def test_what_is_pulled_is_what_was_pushed(size: int, sharpness: float) -> None:
    probabilities = distributions(211, size, sharpness)
    ends = cumulative(probabilities).tolist()
    likely = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(1))[:, 0]
    for symbols in (likely, probabilities.argmin(1)):  # what hardly ever comes must be codable, too
        data = encode(symbols.tolist(), ends)
        assert decode(b"xyz" + data + b"rest", ends, start=3) == (symbols.tolist(), 3 + len(data))


def test_the_shares_fill_the_range_and_none_is_too_small() -> None:
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.5, 0.25]])
    ends = cumulative(probabilities)
    shares = ends.diff(prepend=torch.zeros(2, 1, dtype=torch.int64))
    assert shares[0].tolist()[1:] == [LEAST, LEAST]
    assert shares.min() >= LEAST
    assert ends.max() <= RANGE
    assert torch.allclose(shares / RANGE, probabilities, atol=1e-6)


def test_a_symbol_takes_as_many_bits_as_its_probability_says() -> None:
    probabilities = distributions(4000, 64, 2.0)
    symbols = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(2))
    data = encode(symbols[:, 0].tolist(), cumulative(probabilities).tolist())
    ideal = -probabilities.gather(1, symbols).log2().sum().item()
    assert ideal < 8 * len(data) < 1.001 * ideal + 40


def test_four_equal_shares_are_the_bits_of_the_symbol() -> None:
    ends = [[RANGE // 4, RANGE // 2, RANGE // 4 * 3, RANGE]] * 4
    # Symbols 2, 1, 3, 0 are the bits 10 01 11 00, the first in the lowest place; what is left of the interval is 0.
    assert encode([2, 1, 3, 0], ends)[0] == 0b00111001
    assert encode([2, 1, 3, 0], ends)[1:].count(0) == len(encode([2, 1, 3, 0], ends)) - 1


def test_shares_that_add_up_to_too_much_are_refused() -> None:
    ends = [[RANGE // 2, RANGE + 1]]  # what rounding makes of two symbols at times
    assert decode(encode([0], ends), ends)[0] == [0]
    with pytest.raises(CodingError, match="more than there is"):
        encode([1], ends)


def test_other_distributions_are_noticed() -> None:
    probabilities = distributions(50, 32, 1.0)
    data = encode([7] * 50, cumulative(probabilities).tolist())
    with pytest.raises(CodingError):
        decode(data, cumulative(probabilities.roll(1, 1)).tolist())


def test_every_missing_byte_and_flipped_bit_is_noticed() -> None:
    ends = cumulative(distributions(40, 16, 1.0)).tolist()
    symbols = [5] * 40
    data = encode(symbols, ends)
    for length in range(len(data)):
        with pytest.raises(CodingError):
            decode(data[:length], ends)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert decode(bytes(flipped), ends)[0] != symbols  # only by a chance of 2^-24 does it get here
        except CodingError:
            continue
        pytest.fail(f"bit {bit} flipped was not noticed")


def test_nothing_is_no_bytes() -> None:
    assert encode([], []) == b""
    assert decode(b"", []) == ([], 0)
    assert math.isclose(ArithmeticDecoder(b"\0" * 3).pull([RANGE]), 0)
