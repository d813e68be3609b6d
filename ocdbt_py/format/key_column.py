"""Sorted keys the way a node stores them: the length each shares with the one before, and the bytes that follow.

    key        shared  suffix
    app/a/w    0       app/a/w
    app/a/x    6       x
    app/b      4       b

A leaf may hold a million keys, and whoever reads it mostly wants one, or writes it back with one more. So a column is
cut into keys a run at a time, a run when it is first asked for; the first key of every run is put together at once,
and a search among those finds the run to cut. A column never changes, but what has been cut is kept; and a column of
moderate size that was made from keys keeps them, and hands them on to what is made of it with one key more.
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.format.datafile import common_prefix_length

__all__ = [
    "LARGE",
    "LONG",
    "MANY_SEARCHES",
    "KeyColumn",
    "all_places",
    "cut_for",
    "key_lengths",
    "merge_keys",
    "search",
    "taken_apart",
]

LARGE: Final = 512
"""Keys; so many are cut sooner than a column of them is checked."""

LONG: Final = 64
"""Keys; a column of so many is spliced sooner than made anew."""

_RUN = 256  # keys cut together: about 50 us; and a million keys have 4000 first keys
_FEW = 16  # keys; below it a loop is faster than NumPy
_BLOCK = 4096  # keys compared at once, as rows of a matrix as wide as the longest of them
_KEPT = 4096  # keys that a column keeps whole; a list of so many is copied in 10 us
_WIDEST = 4096  # bytes; keys longer than this are compared one by one
_NARROW = 96  # bytes; of keys not longer than this, suffixes are picked out of the matrix sooner than cut one by one
MANY_SEARCHES: Final = 16  # among so many keys one search each, and a list of all keys is faster
_SPLICED: Final = 8  # of so many keys at most one is new where a column is spliced, not made anew


class KeyColumn(Sequence[bytes]):
    """At least one key, in strictly increasing order.

    The suffix of key ``i`` is ``suffixes[starts[i]:starts[i + 1]]``, and never empty unless the first key is. With the
    key before it shares ``shared[i]`` bytes, not one more; the first shares none.
    """

    __slots__ = ("_cut", "_firsts", "_keys", "_last", "_places", "shared", "starts", "suffixes")

    def __init__(
        self, shared: NDArray[np.int64], starts: NDArray[np.int64], suffixes: bytes, keys: list[bytes] | None = None
    ) -> None:
        self.shared = shared
        self.starts = starts
        self.suffixes = suffixes
        self._firsts: list[bytes] = []  # of the runs; empty until needed
        self._cut: dict[int, list[bytes]] = {}
        self._last: bytes | None = None  # the last key, once it is known
        self._places: dict[bytes, int] | None = None  # of all keys, once so many were searched for
        self._keys = keys if keys is not None and len(keys) <= _KEPT else None  # all of them, and then the rest unused

    @classmethod
    def of(cls, keys: Sequence[bytes]) -> KeyColumn:
        """The column of these keys, if they are not one already; ``InvalidArgumentError`` unless they are strictly
        increasing."""
        if isinstance(keys, KeyColumn):
            return keys
        shared, lengths, suffixes = taken_apart(keys)
        starts = np.zeros(len(keys) + 1, np.int64)
        np.cumsum(lengths - shared, out=starts[1:])
        column = cls(shared, starts, suffixes, list(keys) if len(keys) <= _KEPT else None)
        column._last = keys[-1]
        return column

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Of the suffixes, in bytes."""
        return self.starts[1:] - self.starts[:-1]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of the keys, in bytes."""
        return self.shared + self.sizes

    def search(self, key: bytes) -> int:
        """The index of the first key that is not less than ``key``, as ``bisect_left`` has it."""
        if self._keys is not None:
            return bisect_left(self._keys, key)
        if key <= self[0]:  # as a chunk is behind its document, in the next node
            return 0
        run = bisect_right(self._first_keys(), key) - 1
        return run * _RUN + bisect_left(self._run(run), key)

    @property
    def places(self) -> dict[bytes, int]:
        """The index of each key; made once."""
        if self._places is None:
            # all of them are cut together, unless many were
            is_cut = self._keys is not None or len(self._cut) > len(self) // _RUN // 2
            keys = self if is_cut else self._cut_keys(b"", 0, len(self))
            self._places = dict(zip(keys, range(len(self)), strict=True))
        return self._places

    def part(self, start: int, stop: int) -> KeyColumn:
        """The keys ``[start, stop)``, at least one, as a column of their own."""
        first = self[start]
        behind, end = int(self.starts[start + 1]), int(self.starts[stop])
        shared = self.shared[start:stop].copy()
        starts = self.starts[start : stop + 1] + (len(first) - behind)
        shared[0] = starts[0] = 0
        keys = None if self._keys is None else self._keys[start:stop]
        return KeyColumn(shared, starts, first + self.suffixes[behind:end], keys)

    def __len__(self) -> int:
        return len(self.shared)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if self._keys is not None:
            return self._keys[index]
        places = range(len(self))[index]
        if isinstance(places, int):
            if places == 0:
                return self.suffixes[: int(self.starts[1])]
            if places < len(self) - 1:
                return self._run(places // _RUN)[places % _RUN]
            if self._last is None:
                self._last = self._last_key()
            return self._last
        if places.step != 1:
            return [self[i] for i in places]
        first, behind = places.start // _RUN, -(-places.stop // _RUN)
        keys = list(chain.from_iterable(map(self._run, range(first, behind))))
        return keys[places.start - first * _RUN : places.stop - first * _RUN]

    def __iter__(self) -> Iterator[bytes]:
        if self._keys is not None:
            return iter(self._keys)
        return chain.from_iterable(map(self._run, range(-(-len(self) // _RUN))))

    def _run(self, number: int) -> list[bytes]:
        keys = self._cut.get(number)
        if keys is None:
            start, stop = number * _RUN, min((number + 1) * _RUN, len(self))
            keys = self._cut_keys(self._first_keys()[number], start, stop)
            self._cut[number] = keys
        return keys

    def _cut_keys(self, before: bytes, start: int, stop: int) -> list[bytes]:
        """The keys ``[start, stop)``; ``before`` is any key that shares with the first what that one shares."""
        suffixes, key, begin = self.suffixes, before, int(self.starts[start])
        keys = []
        for same, end in zip(self.shared[start:stop].tolist(), self.starts[start + 1 : stop + 1].tolist(), strict=True):
            key = key[:same] + suffixes[begin:end]
            begin = end
            keys.append(key)
        return keys

    def _last_key(self) -> bytes:
        """Alone, since every node that is read is asked for it: put together from the rows that hold bytes of it."""
        stops = np.minimum.accumulate(np.append(self.lengths[-1], self.shared[:0:-1]))[::-1]
        rows = (self.shared < stops).nonzero()[0]
        begins = self.starts[rows]
        ends = begins + (stops - self.shared)[rows]
        return b"".join([self.suffixes[start:end] for start, end in zip(begins.tolist(), ends.tolist(), strict=True)])

    def _first_keys(self) -> list[bytes]:
        """The first key of each run, put together from the rows of the run before that hold bytes of it."""
        if self._firsts:
            return self._firsts
        key = self.suffixes[: int(self.starts[1])]
        firsts = [key]
        runs = (len(self) - 1) // _RUN
        # One line for each further run: the rows behind the last first key, up to the next, which comes last.
        shared = self.shared[1 : runs * _RUN + 1].reshape(runs, _RUN)
        least = np.minimum.accumulate(shared[:, ::-1], axis=1)[:, ::-1]
        # Of a row's suffix, the first key has what lies before all that the rows in between share.
        stops = np.empty_like(shared)
        stops[:, :-1] = least[:, 1:]
        stops[:, -1] = self.lengths[_RUN::_RUN]
        line, place = np.nonzero(shared < stops)
        begins = self.starts[line * _RUN + place + 1]
        ends = begins + (stops - shared)[line, place]
        pieces = [self.suffixes[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
        bounds = np.searchsorted(line, np.arange(runs + 1)).tolist()
        for (low, high), same in zip(pairwise(bounds), least[:, 0].tolist(), strict=True):
            key = key[:same] + b"".join(pieces[low:high])
            firsts.append(key)
        self._firsts = firsts
        return firsts


def merge_keys(old: Sequence[bytes], new: Sequence[bytes], order: NDArray[np.int64]) -> Sequence[bytes]:
    """The keys that ``order`` numbers: those of ``old`` from 0, then those of ``new``. They must come out increasing.

    A column with few changes is spliced, since a row changes only with its own key or the one before; and where every
    new key is an old one that it replaces, ``old`` itself is the answer.
    """
    if isinstance(old, KeyColumn):
        is_changed = order >= len(old)
        is_changed[:1] |= order[:1] != 0
        is_changed[1:] |= order[1:] != order[:-1] + 1
        changed = is_changed.nonzero()[0]
        if len(changed) * _SPLICED < len(order):
            return _splice(old, new, order, changed)
    keys = [*old, *new]
    return [keys[i] for i in order.tolist()]


def _splice(old: KeyColumn, new: Sequence[bytes], order: NDArray[np.int64], changed: NDArray[np.int64]) -> KeyColumn:
    """``changed`` are the places in ``order`` where something else comes than after the key before in ``old``."""
    count = len(old)

    def numbered(i: int) -> bytes:
        return old[i] if i < count else new[i - count]

    rows, numbers = changed.tolist(), order[changed].tolist()
    if len(order) == count and all(old[row] == numbered(i) for row, i in zip(rows, numbers, strict=True)):
        return old
    shared, sizes = old.shared.take(order, mode="clip"), old.sizes.take(order, mode="clip")
    bounds = [*rows, len(order)]
    pieces = [old.suffixes[: int(old.starts[bounds[0]])]]
    keys = None if old._keys is None else old._keys[: bounds[0]]
    for row, i, following in zip(rows, numbers, bounds[1:], strict=True):
        key = numbered(i)
        same = 0
        if row:
            before = numbered(int(order[row - 1]))
            if before >= key:
                raise _out_of_order()
            same = common_prefix_length(before, key)
        shared[row], sizes[row] = same, len(key) - same
        pieces.append(key[same:])
        behind, end = i + 1, i + following - row  # unless empty, these follow key i in the old column as well
        if behind < end:
            pieces.append(old.suffixes[int(old.starts[behind]) : int(old.starts[end])])
        if keys is not None and old._keys is not None:
            keys.append(key)
            keys += old._keys[behind:end]
    starts = np.zeros(len(order) + 1, np.int64)
    np.cumsum(sizes, out=starts[1:])
    spliced = KeyColumn(shared, starts, b"".join(pieces), keys)
    spliced._last = numbered(int(order[-1]))  # both ends of a node are asked for each time it is written
    return spliced


# Of these the type is asked, not isinstance(), which takes microseconds to tell that a list is none: a sequence of ours
# is of an abstract class, whose registry is looked into.
def search(keys: Sequence[bytes], key: bytes) -> int:
    """The index of the first of ``keys`` that is not less than ``key``; their number if there is none."""
    return keys.search(key) if type(keys) is KeyColumn else bisect_left(keys, key)


def all_places(keys: Sequence[bytes]) -> dict[bytes, int]:
    """The index of each key."""
    return keys.places if type(keys) is KeyColumn else dict(zip(keys, range(len(keys)), strict=True))


def cut_for(searches: int, keys: Sequence[bytes]) -> Sequence[bytes]:
    """``keys``, as a list if so many searches would cut most of them anyway."""
    return list(keys) if searches * MANY_SEARCHES > len(keys) else keys


def key_lengths(keys: Sequence[bytes]) -> NDArray[np.int64]:
    """Of each key, in bytes; a column is not cut for it."""
    return keys.lengths if type(keys) is KeyColumn else np.fromiter(map(len, keys), np.int64, len(keys))


def taken_apart(keys: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64], bytes]:
    """How many bytes each key shares with the one before it, the lengths of the keys, and all that is not shared.

    ``InvalidArgumentError`` unless they are strictly increasing.

    >>> taken_apart([b"app", b"apple", b"b"])
    (array([0, 3, 0]), array([3, 5, 1]), b'appleb')
    """
    shared, lengths = np.zeros(len(keys), np.int64), np.empty(len(keys), np.int64)
    lengths[:1] = list(map(len, keys[:1]))
    pieces = list(keys[:1])
    for start in range(1, len(keys), _BLOCK):
        block = keys[start - 1 : start + _BLOCK]
        if not all(map(operator.lt, block, islice(block, 1, None))):
            raise _out_of_order()
        sizes = np.fromiter(map(len, block), np.int64, len(block))
        lengths[start : start + _BLOCK] = sizes[1:]
        width = -(-int(sizes.max()) // 8) * 8
        if len(block) < _FEW or width > _WIDEST:
            same = np.array([common_prefix_length(a, b) for a, b in pairwise(block)], np.int64)
        else:
            # Keys as rows of little-endian words, padded with zeros.
            words = np.array(block, f"S{max(8, width)}").view("<u8").reshape(len(block), -1)
            same = _shared_by_rows(words, sizes)
        shared[start : start + _BLOCK] = same
        if len(block) < _FEW or width > _NARROW:
            pieces += [key[at:] for key, at in zip(block[1:], same.tolist(), strict=True)]
        else:
            places = np.arange(words.shape[1] * 8, dtype=np.uint8)
            is_suffix = places >= same.astype(np.uint8)[:, np.newaxis]
            is_suffix &= places < sizes[1:].astype(np.uint8)[:, np.newaxis]
            pieces.append(words[1:].view(np.uint8)[is_suffix].tobytes())
    return shared, lengths, b"".join(pieces)


def _shared_by_rows(words: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many bytes each row but the first shares with the one before: the lowest set bit of an exclusive or is in the
    first byte that differs."""
    differences = words[1:] ^ words[:-1]
    first = (differences != 0).argmax(axis=1)
    difference = differences[np.arange(len(differences)), first]
    lowest_bit = difference & (~difference + np.uint64(1))
    byte = np.frexp(lowest_bit.astype(np.float64))[1] - 1 >> 3  # exact: powers of two; 0 gives -1
    # Rows are padded with zeros, so a key may look like its own continuation with zeros: the lengths decide then.
    equal_or_shorter = np.minimum(lengths[1:], lengths[:-1])
    return np.where(difference == 0, equal_or_shorter, np.minimum(8 * first + byte, equal_or_shorter))


def _out_of_order() -> InvalidArgumentError:
    return InvalidArgumentError("Keys of a node must be strictly increasing")
