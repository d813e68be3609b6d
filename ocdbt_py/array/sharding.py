"""Shards of zarr v3: several chunks under one key, and an index that says where each of them lies.

    one shard     payload, payload, …, index          or the index first
    the index     offset and length of each chunk, two uint64 each, and the CRC-32C of them all

A shard may hold its chunks in any order, leave out some, and have gaps; only the index counts. Orbax writes shards of
one chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import CHECKSUM_BYTES, checked, with_checksum
from ocdbt_py.array.dtypes import ByteOrder

__all__ = [
    "AxisOrder",
    "Sharding",
    "axes_of",
    "decode_index",
    "encode_index",
    "encode_shard",
    "only_chunk",
    "place_in_shard",
]

AxisOrder: TypeAlias = Literal["C", "F"] | tuple[int, ...]
"""Which axes go outermost: ``C`` the first ones, ``F`` the last ones, or all of them, outermost first."""

ABSENT: Final = (1 << 64) - 1
"""Offset and length of a chunk that a shard leaves out."""

_ENTRY_BYTES = 16

Buffer: TypeAlias = bytes | bytearray | memoryview


class Sharding(NamedTuple):
    """``shape`` of a shard is a multiple of a chunk's along each axis; ``order`` is that of the chunks in the index."""

    shape: tuple[int, ...]
    index_at_start: bool = False
    index_byte_order: ByteOrder = "<"
    index_checksum: bool = True
    order: AxisOrder = "C"

    def grid(self, chunks: Sequence[int]) -> tuple[int, ...]:
        """Chunks along each axis of a shard."""
        return tuple(size // chunk for size, chunk in zip(self.shape, chunks, strict=True))

    def index_nbytes(self, chunks: Sequence[int]) -> int:
        """Bytes of the index where chunks have this shape."""
        return _ENTRY_BYTES * math.prod(self.grid(chunks)) + CHECKSUM_BYTES * self.index_checksum


def axes_of(order: AxisOrder, ndim: int) -> tuple[int, ...]:
    """The axes, outermost first.

    >>> axes_of("F", 3)
    (2, 1, 0)
    """
    if isinstance(order, tuple):
        return order
    return tuple(range(ndim)) if order == "C" else tuple(reversed(range(ndim)))


def decode_index(data: Buffer, sharding: Sharding, nbytes: int) -> NDArray[np.uint64]:
    """Offset and length of each chunk, one row each, in the order of the index; ``ValueError`` if it is damaged."""
    if len(data) != nbytes:
        raise ValueError(f"its shard index has {len(data)} bytes, not {nbytes}")
    if sharding.index_checksum:
        try:
            data = checked(data)
        except ValueError as error:
            raise ValueError(f"in its shard index, {error}") from error
    return np.frombuffer(data, f"{sharding.index_byte_order}u8").reshape(-1, 2)


def place_in_shard(index: NDArray[np.uint64], number: int) -> tuple[int, int] | None:
    """Begin and end of a chunk in its shard, None if it is left out."""
    offset, length = index[number].tolist()
    return None if offset == length == ABSENT else (offset, offset + length)


def only_chunk(shard: memoryview, sharding: Sharding, nbytes: int) -> memoryview | None:
    """The chunk of a shard that has but one; None if it is left out, ``ValueError`` if the shard is damaged.

    ``nbytes`` is the size of the index here and above.
    """
    index = decode_index(shard[:nbytes] if sharding.index_at_start else shard[-nbytes:], sharding, nbytes)
    place = place_in_shard(index, 0)
    if place is not None and place[1] > len(shard):
        raise ValueError(f"its shard index says that it lies at {place[0]}:{place[1]} of {len(shard)} bytes")
    return None if place is None else shard[place[0] : place[1]]


def encode_index(lengths: Sequence[int | None], sharding: Sharding) -> bytes:
    """The index of a shard whose chunks lie one after the other and have these lengths; None is left out."""
    entries = np.empty((len(lengths), 2), f"{sharding.index_byte_order}u8")
    at = (entries.nbytes + CHECKSUM_BYTES * sharding.index_checksum) * sharding.index_at_start
    for number, length in enumerate(lengths):
        entries[number] = (ABSENT, ABSENT) if length is None else (at, length)
        at += length or 0
    index: bytes = entries.tobytes()
    return with_checksum(index) if sharding.index_checksum else index


def encode_shard(payloads: Sequence[Buffer | None], sharding: Sharding) -> Buffer:
    """A shard of these encoded chunks, which are in the order of the index; None is left out."""
    lengths = [None if payload is None else len(payload) for payload in payloads]
    index = encode_index(lengths, sharding)
    size = sum(length for length in lengths if length is not None) + len(index)
    shard: NDArray[Any] = np.empty(size, np.uint8)
    view = shard.data
    at = 0
    for part in (index, *payloads) if sharding.index_at_start else (*payloads, index):
        if part is not None:
            view[at : at + len(part)] = part
            at += len(part)
    return view
