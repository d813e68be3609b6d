"""Key columns of B-tree nodes: each key as the length it shares with the one before, and the bytes that follow.

    key_prefix_length   varint 16   all but the first key
    key_suffix_length   varint 16
    subtree_common_prefix_length    varint 16, interior nodes only
    key_suffix          bytes

(Format document, "Keys".) A node leaves out the prefix its parent entry carries; here keys are full on both sides.
A few bytes may unfold to gigabytes, each key repeating the one before, so the sum is known before a key is cut.

The keys of a large leaf are checked where they lie and come back as a :class:`KeyColumn`, not cut yet. That takes
shared lengths that are as great as they can be, as every known writer stores them; others are cut at once.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.key_column import LARGE, KeyColumn
from ocdbt_py.format.primitives import Reader, encode_varint_column

__all__ = ["MAX_KEY_LENGTH", "decode_keys", "encode_keys"]

MAX_KEY_LENGTH: Final = 65535

_KEY_OVERHEAD = 64  # what a key takes besides its bytes: CPython's object, its place in a list, its row in a column
_MANY_DEPTHS = 256  # of so many different shared lengths each takes a look at all rows; beyond, cutting is faster


def encode_keys(
    keys: Sequence[bytes], excluded: int, subtree_prefix_lengths: NDArray[np.int64] | None = None
) -> list[bytes]:
    """The key columns of a node that leaves out the first ``excluded`` bytes of each key, in pieces.

    ``subtree_prefix_lengths`` belong to interior nodes and, like the keys, count from the beginning of the full key.
    """
    column = KeyColumn.of(keys)
    lengths = column.lengths
    _check_lengths(column, excluded, lengths, subtree_prefix_lengths)
    sizes = column.sizes
    sizes[0] -= excluded
    pieces = [encode_varint_column(column.shared[1:] - excluded), encode_varint_column(sizes)]
    if subtree_prefix_lengths is not None:
        pieces.append(encode_varint_column(subtree_prefix_lengths - excluded))
    pieces.append(column.suffixes[excluded:])
    return pieces


def _check_lengths(
    column: KeyColumn, excluded: int, lengths: NDArray[np.int64], subtree: NDArray[np.int64] | None
) -> None:
    if (longest := int(lengths.max())) > MAX_KEY_LENGTH:
        raise InvalidArgumentError(f"Key of {longest} bytes exceeds {MAX_KEY_LENGTH}")
    if not 0 <= excluded <= int(column.shared[1:].min(initial=lengths[0])):
        raise InvalidArgumentError(f"The keys do not share the {excluded} bytes to be left out")
    if subtree is not None and not ((subtree >= excluded) & (subtree <= lengths)).all():
        raise InvalidArgumentError("A subtree prefix is longer than its key, or shorter than what is left out")


def decode_keys(
    reader: Reader, count: int, prefix: bytes, *, interior: bool
) -> tuple[Sequence[bytes], NDArray[np.int64]]:
    """``count`` full keys at the reader's position, and their full subtree prefix lengths (none unless ``interior``).

    ``prefix`` is what the node leaves out. The keys of an interior node are a list.
    """
    if count > LARGE and not interior:
        at = reader.position
        column = _decode_column(reader, count, prefix)
        if column is not None:
            return column, np.empty(0, np.int64)
        reader.position = at
    return _decode_list(reader, count, prefix, interior)


def _decode_column(reader: Reader, count: int, prefix: bytes) -> KeyColumn | None:
    """The keys of a leaf, uncut; None unless all is certain to be right."""
    shared = np.zeros(count, np.int64)
    shared[1:] = reader.varints(count - 1, "key_prefix_length", 16)
    sizes = reader.varints(count, "key_suffix_length", 16).view(np.int64)
    starts = np.zeros(count + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    lengths = shared + sizes
    stored = int(starts[-1])
    memory = int(lengths.sum()) + (_KEY_OVERHEAD + len(prefix)) * count
    if (
        stored > reader.remaining
        or memory > reader.budget
        or len(prefix) + int(lengths.max()) > MAX_KEY_LENGTH
        or (shared[1:] > lengths[:-1]).any()
    ):
        return None
    suffixes = reader.take(stored, "key_suffix")
    if not _is_canonical(shared, lengths, starts, np.frombuffer(suffixes, np.uint8)):
        return None
    reader.charge(memory, f"{count} keys")
    if prefix:
        shared[1:] += len(prefix)
        starts[1:] += len(prefix)
        suffixes = prefix + suffixes
    return KeyColumn(shared, starts, suffixes)


def _is_canonical(
    shared: NDArray[np.int64], lengths: NDArray[np.int64], starts: NDArray[np.int64], suffixes: NDArray[np.uint8]
) -> bool:
    """Whether each key is greater than the one before, and shares no byte more with it than is said.

    It then continues the key before, or the first byte of its suffix is greater than the byte there; which the row
    before has, or else the nearest row that shares as little.
    """
    if (shared[1:] == lengths[1:]).any():
        return False
    differing = np.flatnonzero(shared[1:] < lengths[:-1]) + 1
    depth = shared[differing]
    source = differing - 1
    unstored = np.flatnonzero(depth < shared[source])
    depths = np.flatnonzero(np.bincount(depth[unstored]))  # np.unique would import numpy.ma first, for 10 ms
    if len(depths) >= _MANY_DEPTHS:
        return False
    narrow = shared.astype(np.uint16)
    for each in depths.tolist():
        rows = np.flatnonzero(narrow <= each)
        there = unstored[depth[unstored] == each]
        source[there] = rows[np.searchsorted(rows, source[there]) - 1]
    before = suffixes[starts[source] + depth - shared[source]]
    return bool((suffixes[starts[differing]] > before).all())


def _decode_list(reader: Reader, count: int, prefix: bytes, interior: bool) -> tuple[list[bytes], NDArray[np.int64]]:
    at = reader.position
    shared = [0, *reader.varint_list(count - 1, "key_prefix_length", 16)]
    suffixes = reader.varint_list(count, "key_suffix_length", 16)
    subtree = np.empty(0, np.int64)
    if interior:
        subtree = reader.varints(count, "subtree_common_prefix_length", 16).astype(np.int64)
    if (stored := sum(suffixes)) > reader.remaining:
        raise reader.error(f"{stored} bytes of keys announced, {reader.remaining} left")
    total = stored + sum(shared)
    reader.charge(total + (_KEY_OVERHEAD + len(prefix)) * count, f"{count} keys")

    start = reader.position
    data, position, implicit = reader.data, start, len(prefix)
    key = prefix
    keys: list[bytes] = []
    append = keys.append
    for same, more in zip(shared, suffixes, strict=True):
        end = position + more
        key = key[: implicit + same] + data[position:end]
        position = end
        append(key)
    reader.position = position

    # A prefix longer than the key before it makes a key that is too short, and the sum of the lengths shows it.
    lengths = list(map(len, keys))
    if (
        sum(lengths) != total + implicit * count
        or max(lengths) > MAX_KEY_LENGTH
        or not all(map(operator.lt, keys, islice(keys, 1, None)))
    ):
        _raise_key_fault(reader, start, implicit, keys, shared, suffixes)
    if interior:
        excess = subtree + implicit > np.array(lengths, np.int64)
        if excess.any():
            entry = int(excess.argmax())
            length = lengths[entry] - implicit
            raise reader.error(f"subtree prefix of entry {entry} has {subtree[entry]} of {length} bytes", at)
        subtree += implicit
    return keys, subtree


def _raise_key_fault(
    reader: Reader, start: int, implicit: int, keys: list[bytes], shared: list[int], suffixes: list[int]
) -> None:
    """Finds the first of the faults that were noticed over all keys at once."""
    position = start
    previous = -1  # length of the key before, without the implicit prefix
    for number, (key, same, more) in enumerate(zip(keys, shared, suffixes, strict=True)):
        if number and same > previous:
            raise reader.error(f"key {number} shares {same} bytes of a key of {previous}", position)
        if implicit + same + more > MAX_KEY_LENGTH:
            raise reader.error(f"key {number} has {implicit + same + more} bytes, more than {MAX_KEY_LENGTH}", position)
        if number and keys[number - 1] >= key:
            raise reader.error(f"key {number} is not greater than key {number - 1}", position)
        previous = same + more
        position += more
    raise AssertionError("no fault among the keys")
