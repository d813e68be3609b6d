"""Many texts as one: the keys of a checkpoint's arrays are found in a node without an object for each.

Names come joined by a character that none of them has, and a node has its keys as a :class:`KeyColumn`. To tell that
the one are in the other, in order, takes no key: both say how many bytes each shares with the one before, and what is
behind those is compared eight bytes at a time, for all of them at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.key_column import KeyColumn

__all__ = ["JoinedKeys", "JoinedTexts", "rows_beside", "rows_of"]

_WORD: Final = 8
_LONGEST: Final = 2 * _WORD
"""Bytes of an ending that is looked for, its first not counted in one behind a name."""


class JoinedTexts:
    """At least one text, joined by the byte ``separator``, which is in none of them."""

    def __init__(self, joined: bytes, separator: bytes) -> None:
        self._padded = b"".join((separator * _WORD, joined, separator * _WORD))
        self.separator = separator
        behind = (self.characters[_WORD:-_WORD] == ord(separator)).nonzero()[0]
        self.starts = np.append(0, behind + 1)
        self.ends = np.append(behind, len(joined))
        self._alike: JoinedTexts | None = None

    @property
    def joined(self) -> bytes:
        return self._padded[_WORD:-_WORD]

    @property
    def characters(self) -> NDArray[np.uint8]:
        """All of them, with so many before and behind that a word can be taken anywhere."""
        return np.frombuffer(self._padded, np.uint8)

    def replaced(self, old: bytes, new: bytes) -> JoinedTexts:
        """The same with another byte instead of one, which is in none of them."""
        made = object.__new__(JoinedTexts)
        vars(made).update(vars(self), _padded=self._padded.replace(old, new), _alike=self)
        return made

    @cached_property
    def shared(self) -> NDArray[np.int64]:
        """How many bytes each shares with the one before; the first none."""
        if self._alike is not None:
            return self._alike.shared
        starts, ends = self.starts, self.ends
        shared = np.zeros(len(starts), np.int64)
        limits = np.minimum(ends[1:] - starts[1:], ends[:-1] - starts[:-1])
        shared[1:] = _alike(self.characters, starts[1:], self.characters, starts[:-1], limits)
        return shared

    def are_increasing(self, lowest: int = 0) -> NDArray[np.bool_]:
        """Whether each but the first is greater than the one before, by a byte that is not less than ``lowest``."""
        here = self.characters[_WORD:][(self.starts + self.shared)[1:]]
        before = self.characters[_WORD:][self.starts[:-1] + self.shared[1:]]
        is_greater: NDArray[np.bool_] = here > np.maximum(before, max(ord(self.separator), lowest - 1))
        return is_greater

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> bytes:
        return self._padded[_WORD + int(self.starts[index]) : _WORD + int(self.ends[index])]


class JoinedKeys(Sequence[bytes]):
    """Each of these names with ``ending`` behind it; of them those ``[low, high)``."""

    __slots__ = ("ending", "high", "low", "names")

    def __init__(self, names: JoinedTexts, ending: bytes, low: int = 0, high: int | None = None) -> None:
        self.names = names
        self.ending = ending
        self.low = low
        self.high = len(names) if high is None else high

    def __len__(self) -> int:
        return self.high - self.low

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | Sequence[bytes]:
        places = range(self.low, self.high)[index]
        if isinstance(places, int):
            return self.names[places] + self.ending
        if places.step == 1:
            return JoinedKeys(self.names, self.ending, places.start, max(places.start, places.stop))
        return list(self)[index]

    def __iter__(self) -> Iterator[bytes]:
        ending = self.ending
        return iter([name + ending for name in self.names.joined.split(self.names.separator)[self.low : self.high]])


def rows_of(column: KeyColumn, keys: JoinedKeys) -> NDArray[np.intp] | None:
    """Where these keys are in the column, if they come in its order, and it can be told at a glance; else None."""
    names, mark, ending = keys.names, keys.ending[:1], keys.ending[1:]
    if not 0 < len(ending) <= _LONGEST or not len(keys):
        return None
    suffixes = _padded(column.suffixes)
    rows = _ends_so(suffixes, column.starts[1:], ending).nonzero()[0]
    if len(rows) > len(keys):
        low, high = column.search(keys[0]), column.search(keys[-1])
        rows = rows[(rows >= low) & (rows <= high)]
    if len(rows) != len(keys) or column[int(rows[0])] != keys[0]:
        return None
    if len(rows) == 1:
        return rows
    # What a key does not share with the one before stands in its own row; or in the first between them, with which it
    # shares its name and the mark.
    shared = np.append(column.shared, 0)
    least = np.minimum.reduceat(shared[: int(rows[-1]) + 1], rows[:-1] + 1)
    rows_left = rows[1:]
    carriers = np.where(shared[rows_left] == least, rows_left, rows[:-1] + 1)
    is_own = carriers == rows_left
    to_carrier = np.minimum.reduceat(shared, np.stack((carriers + ~is_own, rows_left + 1), 1).ravel())[::2]
    here = slice(keys.low + 1, keys.high)
    lengths = names.ends[here] - names.starts[here]
    sizes = column.sizes
    rest = lengths - least
    is_so = (shared[carriers] == least) & (least <= names.shared[here]) & (is_own | (to_carrier > lengths))
    is_so &= (sizes[carriers] > rest) & (sizes[rows_left] >= len(ending))
    is_so &= column.lengths[rows_left] == lengths + len(keys.ending)
    if not is_so.all():
        return None
    starts = column.starts[carriers]
    is_so = suffixes[_WORD:][starts + rest] == ord(mark)
    is_so &= _alike(suffixes, starts, names.characters, names.starts[here] + least, rest) == rest
    return rows if is_so.all() else None


def rows_beside(
    column: KeyColumn, rows: NDArray[np.intp], ending: bytes, others: Sequence[bytes], kinds: NDArray[np.int64]
) -> NDArray[np.intp]:
    """Where the keys are that end with ``others[kind]`` where those of the rows, one kind for each, have ``ending``.

    Only the row behind each is looked at, or that before it, whichever the order of keys makes the nearer; -1 where it
    is another's.
    """
    found = np.full(len(rows), -1, np.intp)
    suffixes = _padded(column.suffixes)
    lengths = column.lengths
    sizes = column.sizes
    for kind, other in enumerate(others):
        if not 0 < len(other) <= _LONGEST:
            continue
        of_kind = (kinds == kind).nonzero()[0]
        step = 1 if other > ending else -1
        beside = rows[of_kind] + step
        inside = (beside >= 0) & (beside < len(column))
        of_kind, beside = of_kind[inside], beside[inside]
        kept = lengths[rows[of_kind]] - len(ending)
        is_so = (column.shared[np.maximum(beside, beside - step)] >= kept) & (sizes[beside] >= len(other))
        is_so &= (lengths[beside] == kept + len(other)) & _ends_so(suffixes, column.starts[beside + 1], other)
        found[of_kind[is_so]] = beside[is_so]
    return found


def _padded(data: bytes) -> NDArray[np.uint8]:
    """With so much before and behind that a word can be taken anywhere."""
    return np.frombuffer(b"".join((bytes(_WORD), data, bytes(_WORD))), np.uint8)


def _words(padded: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The eight bytes from each place on, which overlap. The first are those before the data."""
    return np.ndarray((len(padded) - _WORD + 1,), "<u8", padded, 0, (1,))


def _ends_so(padded: NDArray[np.uint8], ends: NDArray[np.int64], ending: bytes) -> NDArray[np.bool_]:
    """Of what ends at these places of the data, whether it has this ending."""
    words, size = _words(padded), len(ending)
    last = np.uint64(int.from_bytes(ending[-_WORD:], "little"))
    is_so: NDArray[np.bool_]
    if size < _WORD:
        is_so = words[ends] >> np.uint64(8 * (_WORD - size)) == last
        return is_so
    first = np.uint64(int.from_bytes(ending[:_WORD], "little"))
    is_so = (words[ends] == last) & (words[ends + (_WORD - size)] == first)
    return is_so


def _alike(
    first: NDArray[np.uint8],
    first_starts: NDArray[np.int64],
    second: NDArray[np.uint8],
    second_starts: NDArray[np.int64],
    limits: NDArray[np.int64],
) -> NDArray[np.int64]:
    """How many bytes are the same from these places of the two data on, and no more than so many."""
    first_words, second_words = _words(first)[_WORD:], _words(second)[_WORD:]
    alike = limits.copy()
    rows, at = limits.nonzero()[0], 0
    while len(rows):
        difference = first_words[first_starts[rows] + at] ^ second_words[second_starts[rows] + at]
        differs = difference != 0
        lowest_bit = difference & (~difference + np.uint64(1))
        byte = np.frexp(lowest_bit.astype(np.float64))[1] - 1 >> 3  # exact: powers of two
        ends = rows[differs]
        alike[ends] = np.minimum(at + byte[differs], limits[ends])
        at += _WORD
        rows = rows[~differs & (limits[rows] > at)]
    return alike
