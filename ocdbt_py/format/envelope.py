"""What stands around every manifest and node: magic, length, format version, compression, checksum.

    magic        u32 big-endian        which structure this is
    length       u64 little-endian     of the whole object, magic and checksum included
    version      varint                0
    compression  varint                0 none, 1 one zstd frame
    body                               compressed if so
    crc          u32 little-endian     CRC-32C of everything before it

(Format document, "Envelope".) The checksum is compared before the body is looked at, so that damage is reported as
damage; whoever forges bytes with a right checksum meets the rules of the structure itself.
"""

from __future__ import annotations

import struct
from typing import Final

from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format import zstd
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.config import Zstd
from ocdbt_py.format.primitives import Reader

__all__ = [
    "BTREE_NODE_MAGIC",
    "DEFAULT_LIMIT",
    "MANIFEST_MAGIC",
    "VERSION_NODE_MAGIC",
    "decode_envelope",
    "encode_envelope",
]

MANIFEST_MAGIC: Final = 0x0CDB3A2A
VERSION_NODE_MAGIC: Final = 0x0CDB1234
BTREE_NODE_MAGIC: Final = 0x0CDB20DE

DEFAULT_LIMIT: Final = 1 << 30
"""Bytes one decoded object may take, unless the caller allows more."""

_STRUCTURES = {MANIFEST_MAGIC: "Manifest", VERSION_NODE_MAGIC: "Version tree node", BTREE_NODE_MAGIC: "B-tree node"}
_MIN_LENGTH = 16
_FIXED = 12  # magic and length
_VARINTS = 10  # two 32-bit varints at their longest


def encode_envelope(magic: int, body: bytes, compression: Zstd | None) -> bytes:
    """The object that holds ``body``; zstd frames are TensorStore's to the byte (given its libzstd)."""
    if compression is not None:
        body = zstd.compress(body, compression.level)
    method = 0 if compression is None else 1
    header = struct.pack(">I", magic) + struct.pack("<QBB", _MIN_LENGTH + 2 + len(body), 0, method)
    checksum = crc32c(body, crc32c(header))
    return b"".join((header, body, struct.pack("<I", checksum)))


def decode_envelope(magic: int, data: bytes | memoryview, *, limit: int = DEFAULT_LIMIT) -> bytes:
    """The body of the object ``data``, checked and decompressed, of at most ``limit`` bytes.

    ``data`` is exactly the object, as its reference delimits it: bytes too many are as wrong as bytes missing.
    """
    what = _STRUCTURES[magic]
    size = len(data)

    def error(message: str, offset: int) -> CorruptDataError:
        return CorruptDataError(f"{what}: {message} (at byte {offset})", offset=offset)

    if size < _MIN_LENGTH:
        raise error(f"{size} bytes, shorter than the shortest possible ({_MIN_LENGTH})", 0)
    found, length = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:_FIXED], "little")
    if found != magic:
        other = f" (a {_STRUCTURES[found].lower()})" if found in _STRUCTURES else ""
        raise error(f"starts with {found:08x}{other} instead of {magic:08x}", 0)
    if length != size:
        raise error(f"states a length of {length} bytes but has {size}", 4)
    stored, computed = int.from_bytes(data[-4:], "little"), crc32c(data[: size - 4])
    if stored != computed:
        raise error(f"checksum mismatch: stored {stored:08x}, computed {computed:08x}", size - 4)
    header = Reader(bytes(data[_FIXED : min(_FIXED + _VARINTS, size - 4)]), what, start=_FIXED)
    if version := header.varint("format version", 32):
        raise error(f"format version {version} is newer than this reader (0)", _FIXED)
    method_at = _FIXED + header.position
    method = header.varint("compression method", 32)
    body = data[_FIXED + header.position : size - 4]
    if method == 0:
        if len(body) > limit:
            raise error(f"{len(body)} bytes, beyond the limit of {limit}; raise the limit to read it anyway", method_at)
        return bytes(body)
    if method != 1:
        raise error(f"unknown compression method {method}", method_at)
    try:
        return zstd.decompress(body, limit)
    except ValueError as cause:
        raise error(str(cause), _FIXED + header.position) from cause
