"""CRC-32C: the test vectors of RFC 3720, appendix B.4."""

from __future__ import annotations

import random

import pytest

from ocdbt_py.format.checksum import crc32c


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, expected: int) -> None:
    assert crc32c(data) == expected
    assert crc32c(memoryview(data)) == expected
    assert crc32c(data[7:], crc32c(data[:7])) == expected


def test_every_length_and_place_in_memory_gives_what_its_bytes_give_one_by_one() -> None:
    data = random.Random(7).randbytes(5000)
    expected = [0]
    for byte in data:
        expected.append(_next(expected[-1], byte))
    assert [crc32c(data[:length]) for length in range(len(data) + 1)] == expected
    for start in range(1, 70):
        assert crc32c(memoryview(data)[start:], expected[start]) == expected[-1]


def _next(checksum: int, byte: int) -> int:
    """By the definition: the polynomial 0x1EDC6F41, reflected, bit by bit."""
    register = checksum ^ 0xFFFFFFFF ^ byte
    for _ in range(8):
        register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF
