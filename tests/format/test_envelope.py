"""The envelope: its bytes, and each rule broken alone, with a right checksum wherever the checksum is not the point."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format import zstd
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.config import Zstd
from ocdbt_py.format.envelope import (
    BTREE_NODE_MAGIC,
    MANIFEST_MAGIC,
    VERSION_NODE_MAGIC,
    decode_envelope,
    encode_envelope,
)

MAGICS = {"0cdb3a2a": MANIFEST_MAGIC, "0cdb1234": VERSION_NODE_MAGIC, "0cdb20de": BTREE_NODE_MAGIC}


def sealed(header: str, body: bytes) -> bytes:
    """The header in hex, the length put in for LENGTH, and the checksum appended."""
    length = len(bytes.fromhex(header.replace("LENGTH", "00" * 8))) + len(body) + 4
    data = bytes.fromhex(header.replace("LENGTH", struct.pack("<Q", length).hex())) + body
    return data + struct.pack("<I", crc32c(data))


@pytest.mark.parametrize("magic", MAGICS)
def test_an_uncompressed_body_stands_in_the_open(magic: str) -> None:
    data = sealed(magic + "LENGTH" + "00" + "00", b"body")
    assert encode_envelope(MAGICS[magic], b"body", None) == data
    assert decode_envelope(MAGICS[magic], data) == b"body"


def test_a_compressed_body_is_one_frame() -> None:
    data = sealed("0cdb3a2a" + "LENGTH" + "00" + "01", zstd.compress(b"body", 7))
    assert encode_envelope(MANIFEST_MAGIC, b"body", Zstd(7)) == data
    assert decode_envelope(MANIFEST_MAGIC, data) == b"body"


@given(st.sampled_from(sorted(MAGICS.values())), st.binary(), st.none() | st.builds(Zstd, st.integers(-7, 22)))
def test_a_body_survives_the_round_trip(magic: int, body: bytes, compression: Zstd | None) -> None:
    data = encode_envelope(magic, body, compression)
    assert decode_envelope(magic, data) == body
    assert decode_envelope(magic, memoryview(data)) == body


def test_version_and_method_may_be_spelled_longer_than_needed() -> None:
    assert decode_envelope(MANIFEST_MAGIC, sealed("0cdb3a2a LENGTH 8000 808080 8000", b"body")) == b"body"


GOOD = sealed("0cdb3a2a LENGTH 00 00", b"body")


@pytest.mark.parametrize(
    ("data", "message", "offset"),
    [
        (b"", "0 bytes, shorter than the shortest possible", 0),
        (GOOD[:15], "15 bytes, shorter than the shortest possible", 0),
        (sealed("61626364 LENGTH 00 00", b"body"), "starts with 61626364 instead of 0cdb3a2a", 0),
        (sealed("2a3adb0c LENGTH 00 00", b"body"), "starts with 2a3adb0c instead of 0cdb3a2a", 0),
        (sealed("0cdb20de LENGTH 00 00", b"body"), r"starts with 0cdb20de \(a b-tree node\)", 0),
        (sealed("0cdb3a2a 1700000000000000 00 00", b"body"), "states a length of 23 bytes but has 22", 4),
        (sealed("0cdb3a2a 0000000000000016 00 00", b"body"), "states a length of .* but has 22", 4),
        (GOOD + b"x", "states a length of 22 bytes but has 23", 4),
        (GOOD[:-1], "states a length of 22 bytes but has 21", 4),
        (GOOD[:-4] + bytes(4), "checksum mismatch: stored 00000000, computed", 18),
        (GOOD[:-1] + bytes([GOOD[-1] ^ 1]), "checksum mismatch", 18),
        (GOOD[:15] + b"X" + GOOD[16:], "checksum mismatch", 18),
        (sealed("0cdb3a2a LENGTH 01 00", b"body"), r"format version 1 is newer than this reader \(0\)", 12),
        (sealed("0cdb3a2a LENGTH 8080808010 00", b""), "format version: 4294967296 does not fit 32 bits", 12),
        (sealed("0cdb3a2a LENGTH 808080808000 00", b""), "format version: a number of more than 5 bytes", 12),
        (sealed("0cdb3a2a LENGTH 00 02", b"body"), "unknown compression method 2", 13),
        (sealed("0cdb3a2a LENGTH 8000 02", b"body"), "unknown compression method 2", 14),
        (sealed("0cdb3a2a LENGTH 00", b""), "compression method: the data ends inside a number", 13),
        (sealed("0cdb3a2a LENGTH 00 01", b"body"), "not a zstd frame", 14),
        (sealed("0cdb3a2a LENGTH 00 01", b""), "not a zstd frame", 14),
        (sealed("0cdb3a2a LENGTH 00 01", zstd.compress(b"body", 0) + b"x"), "1 bytes after the end", 14),
    ],
)
def test_a_broken_rule_is_named_with_its_place(data: bytes, message: str, offset: int) -> None:
    with pytest.raises(CorruptDataError, match=f"Manifest: .*{message}") as caught:
        decode_envelope(MANIFEST_MAGIC, data)
    assert caught.value.offset == offset


@pytest.mark.parametrize("compression", [None, Zstd(0)])
def test_a_body_beyond_the_limit_is_refused(compression: Zstd | None) -> None:
    data = encode_envelope(BTREE_NODE_MAGIC, bytes(1000), compression)
    assert decode_envelope(BTREE_NODE_MAGIC, data, limit=1000) == bytes(1000)
    with pytest.raises(CorruptDataError, match="999"):
        decode_envelope(BTREE_NODE_MAGIC, data, limit=999)
