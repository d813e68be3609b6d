"""Key columns of B-tree nodes: each key as the length it shares with the one before, and the bytes that follow.

    key_prefix_length   varint 16   all but the first key
    key_suffix_length   varint 16
    subtree_common_prefix_length    varint 16, interior nodes only
    key_suffix          bytes

(Format document, "Keys".) A node leaves out the prefix its parent entry carries; here keys are full on both sides.
A few bytes may unfold to gigabytes, each key repeating the one before, so the sum is known before a key is cut.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.datafile import common_prefix_length
from ocdbt_py.format.primitives import Reader, encode_varint_column

__all__ = ["MAX_KEY_LENGTH", "common_prefix_lengths", "decode_keys", "encode_keys"]

MAX_KEY_LENGTH: Final = 65535

_KEY_OVERHEAD = 64  # what CPython takes for a bytes object and its place in a list, besides the bytes
_FEW = 16  # keys; below it a loop is faster than NumPy
_BLOCK = 4096  # keys compared at once, as rows of a matrix as wide as the longest of them
_WIDEST = 4096  # bytes; keys longer than this are compared one by one


def common_prefix_lengths(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """How many bytes each key shares with the one before it; one less than there are keys.

    >>> common_prefix_lengths([b"app", b"apple", b"b"]).tolist()
    [3, 0]
    """
    if len(keys) < _FEW:
        return np.array([common_prefix_length(a, b) for a, b in pairwise(keys)], np.int64)
    shared = np.empty(len(keys) - 1, np.int64)
    for start in range(0, len(shared), _BLOCK):
        block = keys[start : start + _BLOCK + 1]
        lengths = np.fromiter(map(len, block), np.int64, len(block))
        width = -(-int(lengths.max()) // 8)
        if width > _WIDEST // 8:
            shared[start : start + _BLOCK] = [common_prefix_length(a, b) for a, b in pairwise(block)]
            continue
        # Keys as rows of little-endian words: the lowest set bit of an exclusive or is in the first byte that differs.
        words = np.array(block, f"S{max(8, 8 * width)}").view("<u8").reshape(len(block), -1)
        differences = words[1:] ^ words[:-1]
        first = (differences != 0).argmax(axis=1)
        difference = differences[np.arange(len(differences)), first]
        lowest_bit = difference & (~difference + np.uint64(1))
        byte = np.frexp(lowest_bit.astype(np.float64))[1] - 1 >> 3  # exact: powers of two; 0 gives -1
        # Rows are padded with zeros, so a key may look like its own continuation with zeros: the lengths decide then.
        equal_or_shorter = np.minimum(lengths[1:], lengths[:-1])
        shared[start : start + _BLOCK] = np.where(
            difference == 0, equal_or_shorter, np.minimum(8 * first + byte, equal_or_shorter)
        )
    return shared


def encode_keys(
    keys: Sequence[bytes], excluded: int, subtree_prefix_lengths: NDArray[np.int64] | None = None
) -> list[bytes]:
    """The key columns of a node that leaves out the first ``excluded`` bytes of each key, in pieces.

    ``subtree_prefix_lengths`` belong to interior nodes and, like the keys, count from the beginning of the full key.
    """
    shared = common_prefix_lengths(keys)
    lengths = np.fromiter(map(len, keys), np.int64, len(keys))
    _check_keys(keys, excluded, shared, lengths, subtree_prefix_lengths)
    cuts = np.concatenate(([excluded], shared))
    pieces = [encode_varint_column(shared - excluded), encode_varint_column(lengths - cuts)]
    if subtree_prefix_lengths is not None:
        pieces.append(encode_varint_column(subtree_prefix_lengths - excluded))
    pieces.append(b"".join([key[cut:] for key, cut in zip(keys, cuts.tolist(), strict=True)]))
    return pieces


def _check_keys(
    keys: Sequence[bytes],
    excluded: int,
    shared: NDArray[np.int64],
    lengths: NDArray[np.int64],
    subtree_prefix_lengths: NDArray[np.int64] | None,
) -> None:
    if (longest := int(lengths.max())) > MAX_KEY_LENGTH:
        raise InvalidArgumentError(f"Key of {longest} bytes exceeds {MAX_KEY_LENGTH}")
    if not all(map(operator.lt, keys, islice(keys, 1, None))):
        raise InvalidArgumentError("Keys of a node must be strictly increasing")
    if not 0 <= excluded <= int(shared.min(initial=len(keys[0]))):
        raise InvalidArgumentError(f"The keys do not share the {excluded} bytes to be left out")
    subtree = subtree_prefix_lengths
    if subtree is not None and not ((subtree >= excluded) & (subtree <= lengths)).all():
        raise InvalidArgumentError("A subtree prefix is longer than its key, or shorter than what is left out")


def decode_keys(reader: Reader, count: int, prefix: bytes, *, interior: bool) -> tuple[list[bytes], NDArray[np.int64]]:
    """``count`` full keys at the reader's position, and their full subtree prefix lengths (none unless ``interior``).

    ``prefix`` is what the node leaves out.
    """
    at = reader.position
    shared = [0, *reader.varint_list(count - 1, "key_prefix_length", 16)]
    suffixes = reader.varint_list(count, "key_suffix_length", 16)
    subtree = reader.varints(count if interior else 0, "subtree_common_prefix_length", 16).astype(np.int64)
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
