"""Any bytes at all: every decoder gives a value or ``CorruptDataError``, and takes no more memory than it says.

Damage is done below the checksum, which would hide it: good bodies are changed and sealed again.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocdbt_py.errors import CorruptDataError
from ocdbt_py.format.btree import InteriorNode, LeafNode, decode_btree_node, encode_interior_node, encode_leaf_node
from ocdbt_py.format.checksum import crc32c
from ocdbt_py.format.config import StoredConfig, Zstd
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.envelope import (
    BTREE_NODE_MAGIC,
    MANIFEST_MAGIC,
    VERSION_NODE_MAGIC,
    decode_envelope,
    encode_envelope,
)
from ocdbt_py.format.manifest import Manifest, decode_manifest, encode_manifest
from ocdbt_py.format.primitives import encode_varint
from ocdbt_py.format.versions import (
    VersionEntry,
    VersionNode,
    VersionNodeReference,
    decode_version_node,
    encode_version_node,
)

DECODERS: dict[int, Callable[..., object]] = {
    MANIFEST_MAGIC: decode_manifest,
    VERSION_NODE_MAGIC: decode_version_node,
    BTREE_NODE_MAGIC: decode_btree_node,
}


def good_objects() -> list[bytes]:
    files = tuple(DataFileId(base, b"d/%02d" % number) for base in (b"", b"x/") for number in range(3))
    version = VersionEntry(17, 1, Location(files[0], 10, 20), 5, 300, 40, 170)
    references = (
        VersionNodeReference(8, Location(files[1], 300, 20), 8, 1, 3),
        VersionNodeReference(12, Location(files[4], 300, 20), 3, 9, 2),
        VersionNodeReference(16, Location(files[4], 200, 20), 4, 13, 1),
    )
    config = StoredConfig(bytes(16), version_tree_arity_log2=1, compression=None)
    empty = VersionEntry(1, 0, None, 0, 0, 0, 1)
    children = tuple(VersionNodeReference(number, references[0].location, 2, number, 0) for number in (2, 4))
    objects = [
        encode_manifest(Manifest(config, (version,), references)),
        encode_version_node(VersionNode(1, 0, (empty, VersionEntry(2, 1, version.root, 1, 2, 3, 4))), None),
        encode_version_node(VersionNode(1, 1, children), None),
    ]
    for count in (3, 100):  # below and above where NumPy takes over
        keys = sorted(b"block_%d/%s" % (number // 2, name) for number in range(count) for name in (b".zarray", b"0"))
        keys = sorted(set(keys))[:count]
        ids = np.arange(len(keys)) % (len(files) + 1) - 1
        lengths = np.arange(len(keys)) % 3
        offsets = np.where(ids < 0, 0, np.arange(len(keys)) * 1000)
        statistics = np.arange(len(keys), dtype=np.uint64) * np.uint64(1 << 50)
        objects.append(encode_leaf_node(LeafNode(keys, lengths, ids, offsets, b"abc", files), compression=None))
        objects.append(
            encode_interior_node(
                InteriorNode(
                    1, keys, lengths, np.maximum(ids, 0), offsets, lengths, statistics, statistics, statistics, files
                ),
                compression=None,
            )
        )
    return objects


GOOD = [(magic, decode_envelope(magic, data)) for data in good_objects() for magic in [int.from_bytes(data[:4], "big")]]

TELLING = [0, 1, 2, 3, 16, 17, 127, 128, 2**14, 65535, 65536, 2**20, 2**20 + 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63]
MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 2**12),
        st.integers(0, 3),  # how many bytes are replaced
        st.binary(max_size=2) | st.sampled_from([encode_varint(number) for number in [*TELLING, 2**64 - 1]]),
    ),
    min_size=1,
    max_size=4,
)


def value_or_corrupt(magic: int, data: bytes) -> None:
    try:
        DECODERS[magic](data)
    except CorruptDataError as error:
        assert error.offset is not None  # noqa: PT017


@given(st.sampled_from(GOOD), MUTATIONS, st.sampled_from([None, Zstd(0)]))
def test_damaged_bodies_are_values_or_corrupt(
    good: tuple[int, bytes], mutations: list[tuple[int, int, bytes]], compression: Zstd | None
) -> None:
    magic, body = good
    for place, removed, inserted in mutations:
        place %= len(body) + 1
        body = body[:place] + inserted + body[place + removed :]
    value_or_corrupt(magic, encode_envelope(magic, body, compression))


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200), st.sampled_from([None, Zstd(0)]))
def test_random_bodies_are_values_or_corrupt(magic: int, body: bytes, compression: Zstd | None) -> None:
    value_or_corrupt(magic, encode_envelope(magic, body, compression))


@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=100), st.booleans())
def test_random_objects_are_corrupt(magic: int, data: bytes, with_magic: bool) -> None:
    data = magic.to_bytes(4, "big") + data if with_magic else data
    value_or_corrupt(magic, data)


@given(st.sampled_from(GOOD), st.binary(min_size=1, max_size=3), st.integers(0, 2**12))
def test_damaged_frames_are_values_or_corrupt(good: tuple[int, bytes], patch: bytes, place: int) -> None:
    magic, body = good
    frame = encode_envelope(magic, body, Zstd(0))[14:-4]
    place %= len(frame)
    damaged = frame[:place] + patch + frame[place + len(patch) :]
    # Sealed as if it were stored, then marked as compressed, the checksum made right again.
    data = bytearray(encode_envelope(magic, damaged, None)[:-4])
    data[13] = 1
    value_or_corrupt(magic, bytes(data) + crc32c(data).to_bytes(4, "little"))


# Bombs

LIMIT = 1 << 25  # bytes; low, so that a test is quick


def longest_keys(count: int) -> bytes:
    """Each key repeats the 65534 bytes of the first and adds one: 4 bytes that stand for 65535."""
    length = encode_varint(65534)
    last_bytes = (bytes(range(256)) * (count // 256 + 1))[: count - 1]
    return encode_varint(count) + length * (count - 1) + length + b"\1" * (count - 1) + b"a" * 65534 + last_bytes


def longest_paths(count: int) -> bytes:
    """Each path is the one before it: 5 bytes that stand for 65535."""
    length = encode_varint(65535)
    return encode_varint(count) + length * (count - 1) + length + bytes(count - 1) + bytes(count) + b"a" * 65535


BOMBS: dict[str, Callable[[], tuple[int, bytes]]] = {
    "keys": lambda: (BTREE_NODE_MAGIC, b"\0\0" + longest_keys(1 << 20)),
    "paths": lambda: (BTREE_NODE_MAGIC, b"\0" + longest_paths(1 << 16)),
    "paths of versions": lambda: (VERSION_NODE_MAGIC, b"\4\0" + longest_paths(1 << 16)),
    "paths of a manifest": lambda: (MANIFEST_MAGIC, bytes(19) + b"\4\0" + longest_paths(1 << 16)),
    "empty paths": lambda: (BTREE_NODE_MAGIC, b"\0" + encode_varint(1 << 23) + bytes(3 << 23)),
    "empty keys": lambda: (BTREE_NODE_MAGIC, b"\0\0" + encode_varint(1 << 20) + bytes(4 << 20)),
    "zeros": lambda: (BTREE_NODE_MAGIC, bytes(2 * LIMIT)),
    "number of files": lambda: (BTREE_NODE_MAGIC, b"\0" + encode_varint(2**64 - 1) + bytes(1000)),
    "number of versions": lambda: (VERSION_NODE_MAGIC, b"\4\0\0" + encode_varint(2**64 - 1) + bytes(1000)),
    "number of children": lambda: (VERSION_NODE_MAGIC, b"\4\1\0" + encode_varint(2**64 - 1) + bytes(1000)),
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("compression", [None, Zstd(1)])
def test_bombs_are_refused_within_the_limit(name: str, compression: Zstd | None) -> None:
    magic, body = BOMBS[name]()
    data = encode_envelope(magic, body, compression)
    tracemalloc.start()
    with pytest.raises(CorruptDataError):
        DECODERS[magic](data, limit=LIMIT)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * LIMIT


def test_keys_take_what_was_charged_for_them() -> None:
    count = 256
    body = b"\0\0" + longest_keys(count) + bytes(count) + bytes(count)
    data = encode_envelope(BTREE_NODE_MAGIC, body, None)
    with pytest.raises(CorruptDataError, match=r"256 keys need \d+ bytes of memory, beyond the limit"):
        decode_btree_node(data, limit=count * 65535)
    enough = count * 65635
    tracemalloc.start()
    node = decode_btree_node(data, limit=enough)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(node.keys) == count
    assert peak < enough + len(data) + 100_000
