"""CRC-32C (Castagnoli), the checksum of every manifest and node.

Raw values carry none (format document, "Files of a database"). The work is done by the ``fastcrc`` package, which takes
any contiguous buffer without copying it, lets other threads run meanwhile, and multiplies polynomials where the
processor can: twice as fast as the instruction that was made for this checksum. There it is called ``iscsi``, after its
first user.
"""

from __future__ import annotations

from fastcrc.crc32 import iscsi

__all__ = ["crc32c"]


def crc32c(data: bytes | bytearray | memoryview, value: int = 0) -> int:
    """The checksum of ``data``; ``value`` is that of the bytes before it.

    >>> hex(crc32c(b"123456789")), crc32c(b"89", crc32c(b"1234567")) == crc32c(b"123456789")
    ('0xe3069283', True)
    """
    return iscsi(data, value)
