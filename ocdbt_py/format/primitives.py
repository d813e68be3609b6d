"""Integers on the wire, one at a time and by the column, and the reader every decoder is built on.

Everything below the envelope is columnar: one field of all entries, then the next field. A column of a few values is
read and written in plain Python, a longer one with NumPy; a leaf may hold a million entries, and most hold three.

A :class:`Reader` never believes a count: what the bytes at hand cannot hold is refused before anything is allocated,
and what may grow beyond them (shared prefixes, tables of small objects) is charged to a budget first.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import CorruptDataError, InvalidArgumentError

__all__ = ["BODY_START", "MAX_U64", "Reader", "encode_u64_column", "encode_varint", "encode_varint_column"]

MAX_U64: Final = 2**64 - 1

BODY_START: Final = 14
"""Where a body begins in its object. Positions in messages count from the object's first byte, as the dumps in the
format document do; those in a compressed body count as if it were stored uncompressed."""

_SHORT = 64  # values; below it a loop beats the fixed cost of NumPy's calls
_LONGEST = {16: 5, 32: 5, 64: 10}  # bytes; a 16-bit field is a 32-bit varint with a bound


@lru_cache(maxsize=4096)  # a manifest says again what the one before said, but for one version of sixteen
def encode_varint(value: int) -> bytes:
    """``value`` as an unsigned LEB128 number, in the shortest form.

    >>> encode_varint(300).hex()
    'ac02'
    """
    if not 0 <= value <= MAX_U64:
        raise InvalidArgumentError(f"{value} is not an unsigned 64-bit number")
    if value < 128:
        return bytes((value,))
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_varint_column(values: Sequence[int] | NDArray[np.integer]) -> bytes:
    """The varints of all ``values``, one after the other. Arrays must not hold negative numbers."""
    if not len(values):
        return b""
    if len(values) <= _SHORT:
        return b"".join(map(encode_varint, values.tolist() if isinstance(values, np.ndarray) else values))
    if not isinstance(values, np.ndarray) and not (min(values) >= 0 and max(values) <= MAX_U64):
        raise InvalidArgumentError("A number of the column is not an unsigned 64-bit number")
    column = np.asarray(values, np.uint64)
    highest = int(column.max())
    if highest < 128:
        return column.astype(np.uint8).tobytes()
    width = (highest.bit_length() + 6) // 7
    matrix = np.empty((len(column), width), np.uint8)
    used = np.empty((len(column), width), np.bool_)
    rest = column
    used[:, 0] = True
    for place in range(width):
        higher = rest >> np.uint64(7)
        more = higher != 0
        matrix[:, place] = rest.astype(np.uint8) & 127 | more.view(np.uint8) << 7
        if place + 1 < width:
            used[:, place + 1] = more
        rest = higher
    return matrix[used].tobytes()


def encode_u64_column(values: Sequence[int]) -> bytes:
    """Fixed-width little-endian numbers, one after the other."""
    try:
        return struct.pack(f"<{len(values)}Q", *values)
    except struct.error:
        wrong = next(value for value in values if not 0 <= value <= MAX_U64)
        raise InvalidArgumentError(f"{wrong} is not an unsigned 64-bit number") from None


class Reader:
    """A body being read from front to back.

    ``what`` opens every message; ``budget`` bounds, in bytes, what the decoded value may take beyond ``data``.
    """

    __slots__ = ("_array", "budget", "data", "position", "start", "what")

    def __init__(self, data: bytes, what: str, *, start: int = BODY_START, budget: int = 1 << 30) -> None:
        self.data = data
        self.what = what
        self.start = start
        self.budget = budget
        self.position = 0
        self._array: NDArray[np.uint8] | None = None

    def error(self, message: str, at: int | None = None) -> CorruptDataError:
        """The error to raise for a fault at ``at`` (a position in ``data``), or where the reader stands."""
        offset = self.start + (self.position if at is None else at)
        return CorruptDataError(f"{self.what}: {message} (at byte {offset})", offset=offset)

    @property
    def remaining(self) -> int:
        return len(self.data) - self.position

    def charge(self, size: int, what: str) -> None:
        """Sets aside ``size`` bytes for ``what``, before they are allocated."""
        if size > self.budget:
            raise self.error(f"{what} need {size} bytes of memory, beyond the limit; raise the limit to read it anyway")
        self.budget -= size

    def take(self, size: int, what: str) -> bytes:
        """The next ``size`` bytes."""
        if size > self.remaining:
            raise self.error(f"{what}: {size} bytes announced, {self.remaining} left")
        start = self.position
        self.position = start + size
        return self.data[start : self.position]

    def byte(self, what: str) -> int:
        return self.take(1, what)[0]

    def finish(self) -> None:
        """Nothing may be left."""
        if self.remaining:
            raise self.error(f"{self.remaining} bytes after the end of the data")

    def varint(self, what: str, bits: int = 64) -> int:
        """One number of at most ``bits`` bits. Longer spellings than needed are legal (format document, "Envelope")."""
        position = self.position
        if position < len(self.data) and (first := self.data[position]) < 128:
            self.position = position + 1
            return first
        return self._plain(1, what, bits)[0]

    def varint_list(self, count: int, what: str, bits: int = 64) -> list[int]:
        """``count`` numbers of at most ``bits`` bits."""
        self._hold(count, what)
        window = self.data[self.position : self.position + count]
        if window.isascii():
            self.position += count
            return list(window)
        if count > _SHORT:
            values: list[int] = self._column(count, what, bits).tolist()
            return values
        return self._plain(count, what, bits)

    def varints(self, count: int, what: str, bits: int = 64) -> NDArray[np.uint64]:
        """``count`` numbers of at most ``bits`` bits, as an array."""
        if count > _SHORT:
            return self._column(count, what, bits)
        return np.array(self.varint_list(count, what, bits), np.uint64)

    def u64_list(self, count: int, what: str) -> list[int]:
        """``count`` fixed-width little-endian numbers."""
        return list(struct.unpack(f"<{count}Q", self.take(8 * count, what)))

    def _hold(self, count: int, what: str) -> None:
        if count > self.remaining:
            raise self.error(f"{what}: {count} values announced, {self.remaining} bytes left")

    def _plain(self, count: int, what: str, bits: int) -> list[int]:
        data, position, longest = self.data, self.position, _LONGEST[bits]
        values = []
        for _ in range(count):
            begin = position
            value = shift = 0
            while True:
                if position >= len(data):
                    raise self.error(f"{what}: the data ends inside a number", begin)
                if position - begin >= longest:
                    raise self.error(f"{what}: a number of more than {longest} bytes", begin)
                byte = data[position]
                position += 1
                value |= (byte & 127) << shift
                if byte < 128:
                    break
                shift += 7
            if value >> bits:
                raise self.error(f"{what}: {value} does not fit {bits} bits", begin)
            values.append(value)
        self.position = position
        return values

    def _column(self, count: int, what: str, bits: int) -> NDArray[np.uint64]:
        self._hold(count, what)
        if self._array is None:
            self._array = np.frombuffer(self.data, np.uint8)
        begin = self.position
        window = self._array[begin : begin + count]
        if int(window.max()) < 128:
            self.position = begin + count
            return window.astype(np.uint64)
        longest = _LONGEST[bits]
        reach = 2 * count
        while True:
            window = self._array[begin : begin + reach]
            ends = (window < 128).nonzero()[0]
            if len(ends) >= count or reach >= longest * count or begin + reach >= len(self.data):
                break
            reach = min(2 * reach, longest * count)
        ends = ends[:count]
        widths = ends.copy()
        widths[1:] -= ends[:-1]
        widths[:1] += 1
        if len(ends) < count or (width := int(widths.max())) > longest:
            self._plain(count, what, bits)  # finds the first faulty number and raises
            raise AssertionError("unreachable")
        starts = ends + 1 - widths
        values: NDArray[np.uint64] = (window[starts] & 127).astype(np.uint64)
        for place in range(1, width):
            longer = (widths > place).nonzero()[0]
            group = window[starts[longer] + place].astype(np.uint64) & np.uint64(127)
            if place == longest - 1 and int(group.max()) >> (64 if bits == 64 else 32) - 7 * place:
                self._plain(count, what, bits)
                raise AssertionError("unreachable")
            values[longer] |= group << np.uint64(7 * place)
        if bits != 64 and int(values.max()) >> bits:
            self._plain(count, what, bits)
            raise AssertionError("unreachable")
        self.position = begin + int(ends[-1]) + 1
        return values
