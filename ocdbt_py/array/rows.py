"""Arrays alike in one memory, made many at a time.

To make an array of a place in memory, NumPy takes half a microsecond, which a checkpoint of tens of thousands of small
ones is felt to take. To make one of a row of another array it takes a fifth of that. So here is an array whose rows
overlap: it has one at each place where an array could begin, and those wanted are its rows.

To find out which are alike takes longer than to make a few.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.spec import ArraySpec

__all__ = ["arrays_at", "arrays_in", "rows_alike"]

_MANY: Final = 24
"""Fewer arrays alike are made one by one."""

_MANY_OF_ALL: Final = 256
"""The same of arrays of which nobody knows which are alike."""

_SMALL: Final = 1 << 20
"""Bytes; of larger arrays the making is no matter. And all rows together are no more than NumPy can count."""

_MOST_AXES: Final = 31
"""Of an array, so that its rows' own has no more than NumPy 1 allows."""


def arrays_in(
    memories: Mapping[int, NDArray[np.uint8]] | Sequence[NDArray[np.uint8]],
    specs: Sequence[ArraySpec],
    numbers: NDArray[np.int64],
    kinds: NDArray[np.int64],
    offsets: NDArray[np.int64],
    names: NDArray[np.int64],
) -> dict[int, NDArray[Any]]:
    """By name the views, in C order, of the arrays that lie at these offsets in the memories of these numbers, each of
    one of the specs. Each must lie within its memory.
    """
    if len(names) < _MANY_OF_ALL:
        rows = zip(names.tolist(), numbers.tolist(), kinds.tolist(), offsets.tolist(), strict=True)
        return {
            name: np.ndarray(specs[kind].shape, specs[kind].dtype, memories[number], offset)
            for name, number, kind, offset in rows
        }
    arrays: dict[int, NDArray[Any]] = {}
    for alike in rows_alike(numbers, kinds):
        memory, spec = memories[int(numbers[alike[0]])], specs[int(kinds[alike[0]])]
        made = arrays_at(memory, offsets[alike], spec.shape, spec.dtype)
        arrays.update(zip(names[alike].tolist(), made, strict=True))
    return arrays


def arrays_at(
    memory: NDArray[np.uint8], offsets: NDArray[np.int64], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """Views of ``memory``, in C order, one at each of these offsets. Each array must lie within it."""
    first = np.ndarray(shape, dtype, memory, int(offsets[0]))
    if len(offsets) < _MANY or first.nbytes > _SMALL or len(shape) > _MOST_AXES:
        return (np.ndarray(shape, dtype, memory, offset) for offset in offsets.tolist())
    start = int(offsets.min())
    distances = offsets - start
    step = int(np.gcd.reduce(distances)) or 1
    places = distances // step
    rows = np.ndarray((int(places.max()) + 1, *shape), dtype, memory, start, (step, *first.strides))
    return map(rows.__getitem__, zip(places.tolist(), repeat(...)))  # without ... one of rank 0 would be a number


def rows_alike(first: NDArray[np.int64], second: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """The numbers of the rows that are equal in both columns, for all that these hold; in order."""
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    bounds = ((first[1:] != first[:-1]) | (second[1:] != second[:-1])).nonzero()[0] + 1
    starts = [0, *bounds.tolist()]
    return [order[start:stop] for start, stop in zip(starts, [*starts[1:], len(order)], strict=True) if start < stop]
