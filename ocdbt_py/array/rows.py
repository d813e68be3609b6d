"""Arrays in one memory, made many at a time.

To make an array of a place in memory, NumPy takes half a microsecond, which a checkpoint of tens of thousands of small
ones is felt to take. To make one of a row of another array it takes a sixth of that. So here is, for each kind of
array, one whose rows overlap: it has one at each byte where such an array could begin, and those wanted are its rows.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, Sequence
from operator import getitem
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.spec import ArraySpec

__all__ = ["ArrayColumns", "arrays_in"]

_MANY: Final = 256
"""Fewer arrays are made one by one."""

_MOST_BYTES: Final = 1 << 62
"""All rows of an array together have no more than NumPy can count, though they are the same bytes."""

_MOST_AXES: Final = 31
"""Of an array, so that its rows' own has no more than NumPy 1 allows."""


class ArrayColumns(Mapping[int, NDArray[Any]]):
    """Arrays by number: ``arrays[row]`` is that of ``indices[row]``."""

    __slots__ = ("_by_index", "arrays", "indices")

    def __init__(self, indices: Sequence[int], arrays: Sequence[NDArray[Any]]) -> None:
        self.indices = indices
        self.arrays = arrays
        self._by_index: dict[int, NDArray[Any]] | None = None

    def _all(self) -> dict[int, NDArray[Any]]:
        """Made when single ones are asked for."""
        if self._by_index is None:
            self._by_index = dict(zip(self.indices, self.arrays, strict=True))
        return self._by_index

    def __getitem__(self, index: int) -> NDArray[Any]:
        return self._all()[index]

    def __contains__(self, index: object) -> bool:
        return index in self._all()

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def items(self) -> ItemsView[int, NDArray[Any]]:
        return self._all().items()


def arrays_in(
    memories: Mapping[int, NDArray[np.uint8]] | Sequence[NDArray[np.uint8]],
    specs: Sequence[ArraySpec],
    numbers: NDArray[np.int64],
    kinds: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> list[NDArray[Any]]:
    """The views, in C order, of the arrays that lie at these offsets in the memories of these numbers, each of one of
    the specs. Each must lie within its memory.
    """
    if len(offsets) < _MANY:
        rows = zip(numbers.tolist(), kinds.tolist(), offsets.tolist(), strict=True)
        return [np.ndarray(specs[kind].shape, specs[kind].dtype, memories[number], at) for number, kind, at in rows]
    together = numbers * len(specs) + kinds
    counts = np.bincount(together)
    sources: list[Any] = [None] * len(counts)
    places = offsets
    for each in counts.nonzero()[0].tolist():
        memory, spec = memories[each // len(specs)], specs[each % len(specs)]
        first: NDArray[Any] = np.ndarray(spec.shape, spec.dtype, memory)
        count = len(memory) - first.nbytes + 1
        if 0 < spec.ndim <= _MOST_AXES and count * first.nbytes < _MOST_BYTES:
            sources[each] = np.ndarray((count, *spec.shape), spec.dtype, memory, 0, (1, *first.strides))
        else:  # a row of one of rank 0 would be a number
            alike = (together == each).nonzero()[0]
            sources[each] = [np.ndarray(spec.shape, spec.dtype, memory, at) for at in offsets[alike].tolist()]
            places = places.copy() if places is offsets else places
            places[alike] = np.arange(len(alike))
    return list(map(getitem, map(sources.__getitem__, together.tolist()), places.tolist()))
