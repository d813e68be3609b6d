"""What stands at many keys, in columns: a checkpoint asks for tens of thousands, and no object is made for each.

Where a value stands is a source, and so many bytes from somewhere on in it. A source is a data file, the inline values
of a node, or None where nothing stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from operator import getitem
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.datafile import DataFileId, Location

__all__ = ["Found", "FoundColumns", "Numbers", "Source"]

Found = bytes | Location | None
"""An inline value, where an out-of-line one lies, or nothing."""

Source = DataFileId | bytes | None

_LOCATION: Final = partial(tuple.__new__, Location)

_TOGETHER = 1024
"""Inline values, whose places are numbers of Python's at a time while those alike are found out."""


class FoundColumns(Sequence[Found]):
    """Answers: number ``i`` is the ``lengths[i]`` bytes at ``offsets[i]`` in ``sources[numbers[i]]``."""

    __slots__ = ("lengths", "numbers", "offsets", "sources")

    def __init__(
        self,
        sources: Sequence[Source],
        numbers: NDArray[np.int64],
        offsets: NDArray[np.int64],
        lengths: NDArray[np.int64],
    ) -> None:
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

    def take(self, order: NDArray[np.intp]) -> FoundColumns:
        """The answers that ``order`` numbers."""
        return FoundColumns(self.sources, self.numbers[order], self.offsets[order], self.lengths[order])

    def alike(self) -> tuple[list[bytes], list[int]] | None:
        """The different values, in the order of their first places, and which of them each is; None unless all are
        inline."""
        if not all(type(source) is bytes for source in self._used()):
            return None
        known = Numbers()
        numbers: list[int] = []
        for start in range(0, len(self), _TOGETHER):
            numbers += map(known.__getitem__, self._inline(slice(start, start + _TOGETHER)))
        return list(known), numbers

    def _inline(self, rows: slice) -> Iterator[bytes]:
        starts = self.offsets[rows]
        places = map(slice, starts.tolist(), (starts + self.lengths[rows]).tolist())
        return map(getitem, map(self.sources.__getitem__, self.numbers[rows].tolist()), places)  # type: ignore[arg-type]

    def _used(self) -> list[Source]:
        return [self.sources[number] for number in np.bincount(self.numbers).nonzero()[0].tolist()]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Found]:
        starts, lengths = self.offsets.tolist(), self.lengths.tolist()
        rows = zip(map(self.sources.__getitem__, self.numbers.tolist()), starts, lengths, strict=True)
        if all(isinstance(source, DataFileId) for source in self._used()):
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
