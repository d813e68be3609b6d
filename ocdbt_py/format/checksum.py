"""CRC-32C (Castagnoli), the checksum of every manifest and node.

Raw values carry none (format document, "Files of a database"). The work is done by the ``crc32c`` package, which
takes any contiguous buffer without copying it.
"""

from __future__ import annotations

import crc32c as _package

__all__ = ["crc32c"]


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The checksum of ``data``; ``value`` is that of the bytes before it.

    >>> hex(crc32c(b"123456789")), crc32c(b"89", crc32c(b"1234567")) == crc32c(b"123456789")
    ('0xe3069283', True)
    """
    checksum: int = _package.crc32c(data, value)
    return checksum
