"""What stands at many keys, in columns: a checkpoint asks for tens of thousands, and no object is made for each.

Where a value stands is a source, and so many bytes from somewhere on in it. A source is a data file, the inline values
of a node, or None where nothing stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.format.joined_texts import rows_beside
from ocdbt_py.format.key_column import KeyColumn

__all__ = ["Found", "FoundColumns", "Numbers", "Source"]

Found = bytes | Location | None
"""An inline value, where an out-of-line one lies, or nothing."""

Source = DataFileId | bytes | None

_LOCATION: Final = partial(tuple.__new__, Location)

_MANY = 512
"""Fewer inline values are told apart one by one."""

_TOGETHER = 256 << 10
"""Bytes of inline values that are compared at a time."""

_WORD: Final = 8


class FoundColumns(Sequence[Found]):
    """Answers: number ``i`` is the ``lengths[i]`` bytes at ``offsets[i]`` in ``sources[numbers[i]]``.

    Where ``rows`` is not empty it says where they came from, keys of one ending: these entries of a leaf, then those
    of the next.
    """

    __slots__ = ("lengths", "numbers", "offsets", "rows", "sources")

    def __init__(
        self,
        sources: Sequence[Source],
        numbers: NDArray[np.int64],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
        self.rows: Sequence[tuple[LeafNode, NDArray[np.intp]]] = ()
        self.sources = sources
        self.numbers = numbers
        self.offsets = offsets
        self.lengths = lengths

    @classmethod
    def of(cls, leaf: LeafNode, entries: slice | NDArray[np.intp]) -> FoundColumns:
        """The values of these entries; of -1 there is none."""
        numbers = leaf.file_ids[entries]
        count = len(leaf.files)
        numbers = np.where(numbers < 0, count, numbers)
        if not isinstance(entries, slice):
            numbers[entries < 0] = count + 1
        return cls((*leaf.files, leaf.inline, None), numbers, leaf.offsets[entries], leaf.lengths[entries])

    @classmethod
    def of_each(cls, found: Sequence[Found]) -> FoundColumns:
        """The same of answers that are objects."""
        known: dict[DataFileId, int] = {}
        sources: list[Source] = []
        rows = []
        for value in found:
            source, *row = value if isinstance(value, Location) else (value, 0, len(value or b""))
            rows.append((_numbered(source, known, sources), *row))
        numbers, offsets, lengths = np.array(rows, np.int64).reshape(-1, 3).T
        return cls(sources, numbers, offsets, lengths)

    @classmethod
    def joined(cls, parts: Sequence[FoundColumns]) -> FoundColumns:
        """All answers, one part after the other."""
        known: dict[DataFileId, int] = {}
        sources: list[Source] = []
        numbers = []
        for part in parts:
            places = [_numbered(source, known, sources) for source in part.sources]
            numbers.append(np.array(places, np.int64)[part.numbers])
        offsets, lengths = [part.offsets for part in parts], [part.lengths for part in parts]
        return cls(sources, np.concatenate(numbers), np.concatenate(offsets), np.concatenate(lengths))

    def beside(self, ending: bytes, others: Sequence[bytes], kinds: NDArray[np.int64]) -> FoundColumns | None:
        """What stands at the same keys, but ended by one of the ``others`` instead of ``ending``, one kind for each;
        None where that is not in the next entry. All of it is None where nobody knows the entries.
        """
        parts, start = [], 0
        for leaf, rows in self.rows:
            column = KeyColumn.of(leaf.keys)
            some = kinds[start : start + len(rows)]
            parts.append(FoundColumns.of(leaf, rows_beside(column, rows, ending, others, some)))
            start += len(rows)
        return FoundColumns.joined(parts) if parts else None

    def put(self, places: NDArray[np.intp], others: FoundColumns) -> None:
        """Others in these places. Of columns that are nobody else's, as joined ones are."""
        self.numbers[places] = others.numbers + len(self.sources)
        self.sources = [*self.sources, *others.sources]
        self.offsets[places], self.lengths[places] = others.offsets, others.lengths

    def take(self, order: NDArray[np.intp]) -> FoundColumns:
        """The answers that ``order`` numbers."""
        return FoundColumns(self.sources, self.numbers[order], self.offsets[order], self.lengths[order])

    def alike(self) -> tuple[list[bytes], NDArray[np.int64]] | None:
        """The different values, and which of them each is; None unless all are inline."""
        if not all(type(self.sources[number]) is bytes for number in self._used()):
            return None
        known = Numbers()
        if len(self) < _MANY:
            sources: Sequence[Any] = self.sources
            rows = zip(self.numbers.tolist(), self.offsets.tolist(), self.lengths.tolist(), strict=True)
            each = [known[sources[number][start : start + length]] for number, start, length in rows]
            return list(known), np.array(each, np.int64)
        numbers = np.empty(len(self), np.int64)
        bounds = (self.numbers[1:] != self.numbers[:-1]).nonzero()[0] + 1
        for start, stop in pairwise([0, *bounds.tolist(), len(self)] if len(self) else []):
            source, lengths = self.sources[self.numbers[start]], self.lengths[start:stop]
            assert isinstance(source, bytes)
            for length in set(lengths.tolist()):
                rows = (lengths == length).nonzero()[0] + start
                many = _TOGETHER // (length + 1) + 1
                for low in range(0, len(rows), many):
                    some = rows[low : low + many]
                    numbers[some] = _numbers(source, self.offsets[some], length, known)
        return list(known), numbers

    def _used(self) -> list[int]:
        used: list[int] = np.bincount(self.numbers).nonzero()[0].tolist()
        return used

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Found]:
        starts, lengths = self.offsets.tolist(), self.lengths.tolist()
        rows = zip(map(self.sources.__getitem__, self.numbers.tolist()), starts, lengths, strict=True)
        if all(isinstance(self.sources[number], DataFileId) for number in self._used()):
            return map(_LOCATION, rows)  # in C, for there may be many
        return (_value(source, offset, length) for source, offset, length in rows)

    @overload
    def __getitem__(self, index: int) -> Found: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Found]: ...
    def __getitem__(self, index: int | slice) -> Found | Sequence[Found]:
        if isinstance(index, slice):
            return FoundColumns(self.sources, self.numbers[index], self.offsets[index], self.lengths[index])
        return _value(self.sources[self.numbers[index]], int(self.offsets[index]), int(self.lengths[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Numbers(dict[bytes, int]):
    """Values, numbered as they come."""

    def __missing__(self, value: bytes) -> int:
        number = self[value] = len(self)
        return number


def _numbers(
    source: bytes, offsets: NDArray[np.int64], length: int, known: Numbers
) -> Sequence[int] | NDArray[np.int64]:
    """The numbers of the values of this length at these places, which mostly differ in few bytes, if in any."""
    if not length:
        return [known[b""]] * len(offsets)
    values = np.ndarray((len(source) - length + 1,), f"V{length}", source, 0, (1,))[offsets]
    characters = values.view(np.uint8).reshape(-1, length)
    differing = (characters != characters[0]).any(axis=0).nonzero()[0]
    if len(differing) > _WORD:
        return [known[value] for value in values.tolist()]
    words = np.zeros((len(offsets), _WORD), np.uint8)
    words[:, : len(differing)] = characters[:, differing]
    unlike = words.view(np.uint64)[:, 0]
    distinct = np.array(sorted(set(unlike.tolist())), np.uint64)
    which = distinct.searchsorted(unlike)
    rows = np.empty(len(distinct), np.int64)
    rows[which] = np.arange(len(which))  # any row of each
    return np.array([known[values[row].tobytes()] for row in rows.tolist()], np.int64)[which]


def _numbered(source: Source, known: dict[DataFileId, int], sources: list[Source]) -> int:
    """The number of a source among ``sources``, where it is put unless it is a data file that is there."""
    number = known.setdefault(source, len(sources)) if isinstance(source, DataFileId) else len(sources)
    if number == len(sources):
        sources.append(source)
    return number


def _value(source: Source, offset: int, length: int) -> Found:
    if isinstance(source, DataFileId):
        return Location(source, offset, length)
    return None if source is None else source[offset : offset + length]
