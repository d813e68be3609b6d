"""CRC-32C: the test vectors of RFC 3720, appendix B.4."""

from __future__ import annotations

import pytest

from ocdbt_py.format.checksum import crc32c


@pytest.mark.parametrize(
    ("data", "checksum"),
    [
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(reversed(range(32))), 0x113FDB5C),
    ],
)
def test_the_checksum_is_that_of_the_standard(data: bytes, checksum: int) -> None:
    assert crc32c(data) == checksum
    assert crc32c(memoryview(data)) == checksum
    assert crc32c(data[7:], crc32c(data[:7])) == checksum
