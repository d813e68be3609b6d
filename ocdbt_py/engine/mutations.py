"""What one commit changes, and the same as sorted columns with every value in its place.

:class:`Mutations` is filled in the order of the calls; a later one wins. :class:`Staged` is made once per commit and
reused by every retry: values longer than the database's inline limit have been appended to data files, the others lie
in one string.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from operator import eq, lt
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.engine.columns import INLINE
from ocdbt_py.engine.data_files import DataFiles
from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.keys import MAX_KEY_LENGTH
from ocdbt_py.storage.protocol import Buffer

_BLOCK = 8192  # values; so many small ones stay in a processor's cache
_FEW = 64
_FEW_BYTES = 64 << 10


class Deferred(NamedTuple):
    """A value to be fetched only when it is put in its place, so that a copy of many need not hold all of them."""

    load: Callable[[], Buffer]


Value = Buffer | Location | Deferred
"""The bytes of a value, where they lie already, or how to get them."""


class KeyRange(NamedTuple):
    """Keys ``start <= key < stop``; ``stop`` None means to the end."""

    start: bytes
    stop: bytes | None

    @classmethod
    def of_prefix(cls, prefix: bytes) -> KeyRange:
        """All keys that start with ``prefix``."""
        stem = prefix.rstrip(b"\xff")
        return cls(prefix, stem[:-1] + bytes([stem[-1] + 1]) if stem else None)

    def intersect(self, start: bytes, stop: bytes | None) -> KeyRange | None:
        """The part inside ``[start, stop)``, None when there is none."""
        low = max(self.start, start)
        high = self.stop if stop is None else stop if self.stop is None else min(self.stop, stop)
        return KeyRange(low, high) if high is None or low < high else None

    def covers(self, start: bytes, stop: bytes | None) -> bool:
        return self.start <= start and (self.stop is None or (stop is not None and stop <= self.stop))


class Untouched(enum.Enum):
    """Said of a key by mutations that leave it alone."""

    UNTOUCHED = "untouched"


UNTOUCHED: Literal[Untouched.UNTOUCHED] = Untouched.UNTOUCHED


class Mutations:
    """Puts, deletes and delete-ranges, the later ones over the earlier ones."""

    __slots__ = ("_ranges", "_values", "deferred")

    def __init__(self) -> None:
        self._values: dict[bytes, Value | None] = {}
        self._ranges: list[KeyRange] = []
        self.deferred = False
        """Whether any value is yet to be fetched."""

    def __bool__(self) -> bool:
        return bool(self._values or self._ranges)

    def put(self, key: bytes, value: Value) -> None:
        self._values[checked_key(key)] = value
        self.deferred = self.deferred or isinstance(value, Deferred)

    def update(self, values: Mapping[bytes, Buffer]) -> None:
        if max(map(len, values), default=0) > MAX_KEY_LENGTH:
            checked_key(max(values, key=len))
        if self._values:
            self._values.update(values)
        else:
            self._values = dict(values)  # which takes a dictionary over as it is

    def delete(self, key: bytes) -> None:
        self._values[checked_key(key)] = None

    def delete_range(self, start: bytes, stop: bytes | None) -> None:
        if stop is not None and start >= stop:
            return
        for key in [key for key in self._values if start <= key and (stop is None or key < stop)]:
            del self._values[key]
        merged = KeyRange(start, stop)
        apart = []
        for other in self._ranges:
            touches = (other.stop is None or merged.start <= other.stop) and (
                merged.stop is None or other.start <= merged.stop
            )
            if not touches:
                apart.append(other)
                continue
            open_ended = merged.stop is None or other.stop is None
            merged = KeyRange(
                min(merged.start, other.start),
                None if open_ended else max(merged.stop, other.stop),  # type: ignore[type-var]
            )
        self._ranges = sorted([*apart, merged], key=lambda r: r.start)

    def merge(self, later: Mutations) -> None:
        """Add what ``later`` says, over what was said here."""
        for key_range in later._ranges:
            self.delete_range(*key_range)
        self._values.update(later._values)
        self.deferred = self.deferred or later.deferred

    @property
    def are_few(self) -> bool:
        """Whether there are hardly any, all of them with values that are short and at hand."""
        values = self._values.values()
        return len(values) <= _FEW and not self.deferred and sum(len(value or b"") for value in values) <= _FEW_BYTES

    def overlay(self, key: bytes) -> Value | Untouched | None:
        """The value that a key gets here, None if it is deleted, UNTOUCHED if nothing is said of it."""
        if key in self._values:
            return self._values[key]
        return None if self.in_ranges(key) else UNTOUCHED

    def in_ranges(self, key: bytes) -> bool:
        """Whether a range is emptied in which the key lies."""
        at = bisect_right(self._ranges, key, key=lambda each: each.start) - 1
        return at >= 0 and ((stop := self._ranges[at].stop) is None or key < stop)

    def touched(self, start: bytes, stop: bytes | None) -> list[tuple[bytes, Value | None]]:
        """The keys in ``[start, stop)`` that are put or deleted by name, in order."""
        return sorted(
            (key, value) for key, value in self._values.items() if start <= key and (stop is None or key < stop)
        )

    @property
    def ranges(self) -> list[KeyRange]:
        """The ranges that are emptied, in order, apart from each other; puts inside them hold."""
        return list(self._ranges)

    def stage(self, max_inline: int, prefix: str, data_files: DataFiles) -> Staged:
        """Sort, and put every value in its place: inline up to ``max_inline`` bytes, else behind ``prefix``."""
        return stage(self._values, self._ranges, max_inline, prefix, data_files)


def checked_key(key: bytes) -> bytes:
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidArgumentError(
            f"A key of {len(key)} bytes is longer than the format's limit of {MAX_KEY_LENGTH}", key=bytes(key[:64])
        )
    return key


class Staged(NamedTuple):
    """Sorted mutations. ``keys[i]`` is put, with entry ``put_ranks[i]`` of ``puts``, or deleted.

    ``put_ranks`` has one element more than ``keys``: entries of ``puts`` before mutation ``i``. ``values`` is what
    was asked for.
    """

    keys: list[bytes]
    put_ranks: NDArray[np.int64]
    puts: LeafNode
    ranges: list[KeyRange]
    values: Mapping[bytes, Value | None]

    def find(self, key: bytes, value: Value) -> bytes | Location | None:
        """Where this very value was put; None if another one came over it in the same commit."""
        if self.values.get(key) is not value:
            return None
        at = bisect_left(self.puts.keys, key)
        return self.puts.value(at) if at < len(self.puts.keys) and self.puts.keys[at] == key else None

    def placed(self) -> dict[bytes, bytes | Location | None]:
        """The keys in order, each with its value or where that lies, None if it is deleted."""
        ranks = self.put_ranks.tolist()
        return {
            key: self.puts.value(rank) if rank < following else None
            for key, rank, following in zip(self.keys, ranks, ranks[1:], strict=False)
        }

    def joined(
        self, changes: Mapping[bytes, bytes | None], max_inline: int, prefix: str, data_files: DataFiles
    ) -> Staged:
        """The same with changes that come after them; values that are in their places stay there."""
        return stage({**self.placed(), **changes}, self.ranges, max_inline, prefix, data_files)

    def span(self, start: bytes, stop: bytes | None, low: int = 0, high: int | None = None) -> tuple[int, int]:
        """The mutations of keys in ``[start, stop)``, searched between ``low`` and ``high``."""
        high = len(self.keys) if high is None else high
        first = bisect_left(self.keys, start, low, high)
        return first, high if stop is None else bisect_left(self.keys, stop, first, high)

    def puts_in(self, low: int, high: int) -> LeafNode:
        """The entries put by mutations ``[low, high)``, with no more of the inline values than they need."""
        first, last = int(self.put_ranks[low]), int(self.put_ranks[high])
        puts = self.puts
        if first == 0 and last == len(puts.keys):
            return puts
        file_ids, offsets, lengths = puts.file_ids[first:last], puts.offsets[first:last], puts.lengths[first:last]
        inline = np.flatnonzero(file_ids == INLINE)
        begin = end = 0
        if len(inline):  # staged in key order, so a run of entries is a run of bytes
            begin = int(offsets[inline[0]])
            end = int(offsets[inline[-1]] + lengths[inline[-1]])
        return LeafNode(
            keys=puts.keys[first:last],
            lengths=lengths,
            file_ids=file_ids,
            offsets=np.where(file_ids == INLINE, offsets - begin, offsets),
            inline=puts.inline[begin:end],
            files=puts.files,
        )


def stage(
    values: Mapping[bytes, Value | None],
    ranges: Iterable[KeyRange],
    max_inline: int,
    prefix: str,
    data_files: DataFiles,
) -> Staged:
    # By number: to look each value up by its key takes several times as long as the sorting.
    names, found = list(values), list(values.values())
    order = sorted(range(len(names)), key=names.__getitem__)
    keys = list(map(names.__getitem__, order))
    short = _short(found, order, max_inline)
    if short is not None:  # as in most commits, and without a step for each
        sizes, inline_bytes = short
        puts = LeafNode(
            keys=keys,
            lengths=sizes,
            file_ids=np.full(len(keys), INLINE, np.int64),
            offsets=np.cumsum(sizes) - sizes,
            inline=inline_bytes,
            files=(),
        )
        return Staged(keys=keys, put_ranks=np.arange(len(keys) + 1), puts=puts, ranges=list(ranges), values=values)
    found = list(map(found.__getitem__, order))
    lengths: list[int] = []
    file_ids: list[int] = []
    offsets: list[int] = []
    inline: list[Buffer] = []
    inline_size = 0
    files: dict[DataFileId, int] = {}
    deleted: list[int] = []
    for index, value in enumerate(found):
        if value is None:
            deleted.append(index)
            continue
        held = not isinstance(value, Deferred)  # in ``values``, whether or not it has been written
        if isinstance(value, Deferred):
            value = value.load()
        if not isinstance(value, Location):
            length = len(value)
            if length <= max_inline:
                lengths.append(length)
                file_ids.append(INLINE)
                offsets.append(inline_size)
                inline.append(value)
                inline_size += length
                continue
            value = data_files.append(prefix, value, borrowed=held)
        lengths.append(value.length)
        file_ids.append(files.setdefault(value.file, len(files)))
        offsets.append(value.offset)
    is_put = np.ones(len(keys), bool)
    is_put[deleted] = False
    put_ranks = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(is_put, out=put_ranks[1:])
    put_keys = keys
    if deleted:
        put_keys = [key for key, value in zip(keys, found, strict=True) if value is not None]
    puts = LeafNode(
        keys=put_keys,
        lengths=np.array(lengths, np.int64),
        file_ids=np.array(file_ids, np.int64),
        offsets=np.array(offsets, np.int64),
        inline=b"".join(inline),
        files=tuple(files),
    )
    return Staged(keys=keys, put_ranks=put_ranks, puts=puts, ranges=list(ranges), values=values)


def stage_puts(puts: LeafNode) -> Staged:
    """Puts alone, as columns in any order; of those of one key the last counts."""
    names = keys = puts.keys
    if not all(map(lt, names, islice(names, 1, None))):
        order = sorted(range(len(names)), key=names.__getitem__)  # stable
        keys = [names[i] for i in order]
        if any(map(eq, keys, islice(keys, 1, None))):
            after = [*order[1:], -1]
            order = [i for i, next_ in zip(order, after, strict=True) if next_ < 0 or names[i] != names[next_]]
            keys = [names[i] for i in order]
        at = np.array(order, np.int64)
        puts = replace(puts, keys=keys, lengths=puts.lengths[at], file_ids=puts.file_ids[at], offsets=puts.offsets[at])
    return Staged(keys=list(keys), put_ranks=np.arange(len(keys) + 1), puts=puts, ranges=[], values={})


def _short(values: Sequence[Any], order: Sequence[int], max_inline: int) -> tuple[NDArray[np.int64], bytes] | None:
    """The lengths of the values and their bytes, in this order; None unless all are bytes that stay inline.

    A block at a time: a value is fetched from memory once, not for each of the steps.
    """
    sizes = np.empty(len(order), np.int64)
    pieces = []
    try:
        for start in range(0, len(order), _BLOCK):
            block = list(map(values.__getitem__, order[start : start + _BLOCK]))
            sizes[start : start + _BLOCK] = lengths = np.fromiter(map(len, block), np.int64, len(block))
            if int(lengths.max()) > max_inline:
                return None
            pieces.append(b"".join(block))
    except TypeError:  # something else than bytes
        return None
    return sizes, b"".join(pieces)
