"""Nodes of the B-tree, as columns: a leaf may hold a million entries, and no object is made for each.

A leaf maps keys to values, inline or in data files; an interior node maps the lowest key of each child to the child
and its statistics. Nodes below the root leave out the prefix their parent entry carries; in memory keys are full.

Integers that are places (lengths, offsets, file numbers) are ``int64``, because the format bounds them by 2**63 - 1.
Statistics are ``uint64``: readers take them as they are, whatever 64-bit number is stored.

Which entries go into which node, and the rules between a node and its parent, are the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.config import Zstd
from ocdbt_py.format.datafile import MAX_OFFSET, DataFileId, Location, decode_file_table, encode_file_table
from ocdbt_py.format.envelope import BTREE_NODE_MAGIC, DEFAULT_LIMIT, decode_envelope, encode_envelope
from ocdbt_py.format.keys import decode_keys, encode_keys
from ocdbt_py.format.primitives import Reader, encode_varint, encode_varint_column

__all__ = [
    "MAX_ENTRIES",
    "MAX_INLINE_LENGTH",
    "InteriorNode",
    "LeafNode",
    "decode_btree_node",
    "encode_interior_node",
    "encode_leaf_node",
]

MAX_ENTRIES: Final = 1 << 20
MAX_INLINE_LENGTH: Final = 1 << 20

_INDIRECT: Final = 1  # kind of a value; 0 is inline


@dataclass(frozen=True, slots=True, eq=False)
class LeafNode:
    """Entries in strictly increasing order of their keys; those of a large leaf are a column, cut when asked for.

    ``file_ids`` are indices into ``files``, or -1 for an inline value; ``offsets`` are those in the data file, or in
    ``inline``. ``files`` may hold unused or repeated entries, and ``inline`` more than is referenced, in any order.
    """

    keys: Sequence[bytes]
    lengths: NDArray[np.int64]
    file_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    inline: bytes
    files: tuple[DataFileId, ...]

    @property
    def height(self) -> int:
        return 0

    def value(self, entry: int) -> bytes | Location:
        """The inline value of an entry, or where its value is."""
        file_id, offset, length = int(self.file_ids[entry]), int(self.offsets[entry]), int(self.lengths[entry])
        if file_id < 0:
            return self.inline[offset : offset + length]
        return Location(self.files[file_id], offset, length)


@dataclass(frozen=True, slots=True, eq=False)
class InteriorNode:
    """Children in strictly increasing order of their keys, which are inclusive lower bounds.

    Each child leaves out the first ``subtree_prefix_lengths`` bytes of its entry's (full) key.
    """

    height: int
    keys: Sequence[bytes]
    subtree_prefix_lengths: NDArray[np.int64]
    file_ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    num_keys: NDArray[np.uint64]
    num_tree_bytes: NDArray[np.uint64]
    num_indirect_value_bytes: NDArray[np.uint64]
    files: tuple[DataFileId, ...]

    def location(self, entry: int) -> Location:
        """Where the child of an entry is."""
        return Location(self.files[int(self.file_ids[entry])], int(self.offsets[entry]), int(self.lengths[entry]))


# Reading


def decode_btree_node(
    data: bytes | memoryview, *, base_path: bytes = b"", prefix: bytes = b"", limit: int = DEFAULT_LIMIT
) -> LeafNode | InteriorNode:
    """The node ``data`` holds, with full keys and combined base paths.

    ``prefix`` is the implicit prefix and ``base_path`` the transitive base path, both from the reference that was
    followed. ``limit`` bounds the bytes of memory that the decoded keys, and the body itself, may take.
    """
    body = decode_envelope(BTREE_NODE_MAGIC, data, limit=limit)
    reader = Reader(body, "B-tree node", budget=limit)
    height = reader.byte("height")
    files = decode_file_table(reader, base_path)
    at = reader.position
    count = reader.varint("number of entries", 32)
    if not 1 <= count <= MAX_ENTRIES:
        raise reader.error(f"{count} entries, outside 1..{MAX_ENTRIES}", at)
    keys, subtree_prefix_lengths = decode_keys(reader, count, prefix, interior=height > 0)
    if height == 0:
        node: LeafNode | InteriorNode = _decode_values(reader, keys, files)
    else:
        node = _decode_children(reader, height, keys, subtree_prefix_lengths, files)
    reader.finish()
    return node


def _decode_values(reader: Reader, keys: Sequence[bytes], files: tuple[DataFileId, ...]) -> LeafNode:
    count = len(keys)
    at = reader.position
    lengths = reader.varints(count, "value_length")
    kinds = reader.take(count, "value_kind")
    if kinds.translate(None, b"\0\1"):
        entry = next(entry for entry, kind in enumerate(kinds) if kind > _INDIRECT)
        raise reader.error(f"unknown kind {kinds[entry]} of value {entry}", reader.position - count + entry)
    indirect = np.frombuffer(kinds, np.bool_)
    num_indirect = kinds.count(_INDIRECT)
    file_ids = np.full(count, -1, np.int64)
    offsets = np.zeros(count, np.int64)
    if num_indirect:
        file_ids[indirect], offsets[indirect], _ = _decode_locations(reader, num_indirect, files, lengths[indirect])
    inline = b""
    if num_indirect < count:
        inline_lengths = np.where(indirect, np.uint64(0), lengths) if num_indirect else lengths
        if int(inline_lengths.max()) > MAX_INLINE_LENGTH:
            entry = int(inline_lengths.argmax())
            raise reader.error(f"inline value {entry} has {lengths[entry]} bytes, more than {MAX_INLINE_LENGTH}", at)
        ends = np.cumsum(inline_lengths.view(np.int64))
        offsets = np.where(indirect, offsets, ends - inline_lengths.view(np.int64))
        inline = reader.take(int(ends[-1]), "inline values")
    return LeafNode(keys, lengths.view(np.int64), file_ids, offsets, inline, files)


def _decode_locations(
    reader: Reader, count: int, files: tuple[DataFileId, ...], lengths: NDArray[np.uint64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """File numbers, offsets and lengths; the lengths are read last unless they are known already."""
    at = reader.position
    file_ids = reader.varints(count, "data_file_id")
    if int(file_ids.max()) >= len(files):
        raise reader.error(f"data file {file_ids.max()} of a table of {len(files)}", at)
    at = reader.position
    offsets = reader.varints(count, "data_file_offset")
    if lengths is None:
        lengths = reader.varints(count, "data_file_length")
    highest = np.uint64(MAX_OFFSET)
    # Their sum may not fit 64 bits.
    excess = (lengths > highest) | (offsets > highest - np.minimum(lengths, highest))
    if excess.any():
        number = int(excess.argmax())
        raise reader.error(
            f"reference {number}: offset {offsets[number]} and length {lengths[number]} exceed {MAX_OFFSET}", at
        )
    return file_ids.view(np.int64), offsets.view(np.int64), lengths.view(np.int64)


def _decode_children(
    reader: Reader,
    height: int,
    keys: Sequence[bytes],
    subtree_prefix_lengths: NDArray[np.int64],
    files: tuple[DataFileId, ...],
) -> InteriorNode:
    count = len(keys)
    file_ids, offsets, lengths = _decode_locations(reader, count, files, None)
    return InteriorNode(
        height=height,
        keys=keys,
        subtree_prefix_lengths=subtree_prefix_lengths,
        file_ids=file_ids,
        offsets=offsets,
        lengths=lengths,
        num_keys=reader.varints(count, "num_keys"),
        num_tree_bytes=reader.varints(count, "num_tree_bytes"),
        num_indirect_value_bytes=reader.varints(count, "num_indirect_value_bytes"),
        files=files,
    )


# Writing


def encode_leaf_node(node: LeafNode, *, excluded: int = 0, compression: Zstd | None) -> bytes:
    """The object TensorStore would write; the first ``excluded`` bytes of the keys are left out.

    ``InvalidArgumentError`` if a rule of the format is broken.
    """
    _check_columns(node.keys, node.lengths, node.file_ids, node.offsets)
    indirect = node.file_ids >= 0
    file_ids, offsets = node.file_ids[indirect], node.offsets[indirect]
    _check_locations(offsets, node.lengths[indirect])
    is_inline = ~indirect
    inline = _gather(node.inline, node.offsets[is_inline], node.lengths[is_inline])
    table, file_ids = _encode_files(node.files, file_ids)
    return _encode_node(
        0,
        table,
        len(node.keys),
        encode_keys(node.keys, excluded),
        (
            encode_varint_column(node.lengths),
            indirect.tobytes(),
            encode_varint_column(file_ids),
            encode_varint_column(offsets),
            inline,
        ),
        compression,
    )


def encode_interior_node(node: InteriorNode, *, excluded: int = 0, compression: Zstd | None) -> bytes:
    """The object TensorStore would write; the first ``excluded`` bytes of the keys are left out.

    ``InvalidArgumentError`` if a rule of the format is broken.
    """
    if not 1 <= node.height <= 255:
        raise InvalidArgumentError(f"Height {node.height} of an interior node is outside 1..255")
    _check_columns(
        node.keys,
        node.subtree_prefix_lengths,
        node.file_ids,
        node.offsets,
        node.lengths,
        node.num_keys,
        node.num_tree_bytes,
        node.num_indirect_value_bytes,
    )
    _check_locations(node.offsets, node.lengths)
    table, file_ids = _encode_files(node.files, node.file_ids)
    return _encode_node(
        node.height,
        table,
        len(node.keys),
        encode_keys(node.keys, excluded, node.subtree_prefix_lengths),
        (
            encode_varint_column(file_ids),
            encode_varint_column(node.offsets),
            encode_varint_column(node.lengths),
            encode_varint_column(node.num_keys),
            encode_varint_column(node.num_tree_bytes),
            encode_varint_column(node.num_indirect_value_bytes),
        ),
        compression,
    )


def _encode_node(
    height: int,
    table: bytes,
    count: int,
    keys: Iterable[bytes],
    values: Iterable[bytes],
    compression: Zstd | None,
) -> bytes:
    body = b"".join((bytes((height,)), table, encode_varint(count), *keys, *values))
    return encode_envelope(BTREE_NODE_MAGIC, body, compression)


def _check_columns(keys: Sequence[bytes], *columns: NDArray[Any]) -> None:
    if not 1 <= len(keys) <= MAX_ENTRIES:
        raise InvalidArgumentError(f"B-tree node of {len(keys)} entries, outside 1..{MAX_ENTRIES}")
    if any(len(column) != len(keys) for column in columns):
        raise InvalidArgumentError(f"B-tree node of {len(keys)} keys with columns of another length")


def _check_locations(offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
    if not len(offsets):
        return
    bad = (offsets < 0) | (lengths < 0) | (offsets > MAX_OFFSET - np.maximum(lengths, 0))
    if bad.any():
        entry = int(bad.argmax())
        raise InvalidArgumentError(
            f"Reference with offset {offsets[entry]} and length {lengths[entry]} is outside 0..{MAX_OFFSET}"
        )


def _encode_files(files: tuple[DataFileId, ...], file_ids: NDArray[np.int64]) -> tuple[bytes, NDArray[np.int64]]:
    """The canonical table of the files that are used, and their numbers in it."""
    if not len(file_ids):
        return encode_file_table(())[0], file_ids
    if not 0 <= int(file_ids.min()) <= int(file_ids.max()) < len(files):
        raise InvalidArgumentError(f"A file number is outside the {len(files)} files of the node")
    used = np.bincount(file_ids, minlength=len(files)).nonzero()[0].tolist()
    table, numbers = encode_file_table(files[file_id] for file_id in used)
    renumbered = np.zeros(len(files), np.int64)
    for file_id in used:
        renumbered[file_id] = numbers[files[file_id]]
    return table, renumbered[file_ids]


def _gather(data: bytes, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> bytes:
    """The inline values one after the other; a slice if they lie so already."""
    if not len(offsets):
        return b""
    ends = offsets + lengths
    if int(offsets.min()) < 0 or int(lengths.min()) < 0 or int(ends.max()) > len(data):
        raise InvalidArgumentError(f"An inline value lies outside the {len(data)} inline bytes of the node")
    if int(lengths.max()) > MAX_INLINE_LENGTH:
        raise InvalidArgumentError(f"Inline value of {lengths.max()} bytes exceeds {MAX_INLINE_LENGTH}")
    if (offsets[1:] == ends[:-1]).all():
        return data[int(offsets[0]) : int(ends[-1])]
    return b"".join([data[start:end] for start, end in zip(offsets.tolist(), ends.tolist(), strict=True)])
