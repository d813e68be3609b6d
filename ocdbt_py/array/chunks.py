"""From a NumPy index to chunks, and inside them to the bytes that are needed.

    index  --select-->  Selection  --pieces-->  one Piece per chunk  --spans-->  byte ranges of a chunk, and where
                                                                                 their elements go

Everything works on the *box*: the selected positions with one axis per array axis, in ascending order. NumPy's result
differs from the box only in which axes are dropped, added or turned around, so it is the same memory seen through
another view (:meth:`Selection.box`), and no other function knows of negative steps, ``None`` or ``...``.

All enumeration is lazy: a document may claim an axis of 2**60 chunks, and looking at the first must not cost more than
the first.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from types import EllipsisType
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import InvalidTypeError

__all__ = [
    "MERGE_GAP",
    "Axis",
    "BasicIndex",
    "Index",
    "Piece",
    "Selection",
    "Span",
    "piece_count",
    "pieces",
    "pieces_within",
    "select",
    "spans",
]

BasicIndex: TypeAlias = int | np.integer[Any] | slice | EllipsisType | None
Index: TypeAlias = BasicIndex | tuple[BasicIndex, ...]

MERGE_GAP: Final = 8192
"""Bytes. Two ranges with no more than this between them are fetched as one: finding, cutting and placing a range costs
microseconds, in which a disk or memory gives this much. What a remote store would rather merge, its layer does."""


class Axis(NamedTuple):
    """The positions ``start, start + step, …``, ``size`` of them, of one axis. ``step`` is positive."""

    start: int
    size: int
    step: int


class Selection(NamedTuple):
    """A basic index applied to a shape. ``shape`` is the result's; ``scalar`` says that NumPy would give a scalar."""

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]
    view: tuple[BasicIndex, ...]
    scalar: bool

    def box(self, result: NDArray[Any]) -> NDArray[Any]:
        """``result``, an array of ``shape``, seen as the box. Shares its memory."""
        box: NDArray[Any] = result[self.view]
        return box


class Piece(NamedTuple):
    """What one chunk contributes: positions inside it, and the part of the box they fill."""

    chunk: tuple[int, ...]
    inside: tuple[Axis, ...]
    target: tuple[slice, ...]


class Span(NamedTuple):
    """Bytes ``[start, stop)`` of a decoded chunk; the wanted elements in them; the part of the box they fill.

    ``shape`` is the target's; element ``i, j`` lies at byte ``offset + i * strides[0] + j * strides[1]`` of the span.
    """

    start: int
    stop: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    target: tuple[slice, ...]


def select(index: Index, shape: Sequence[int]) -> Selection:
    """Resolve integers, slices, ``...`` and ``None`` as NumPy does, with its errors (IndexError, and a step of 0).

    Lists, arrays and booleans (fancy indexing) are ``InvalidTypeError``.
    """
    items = index if isinstance(index, tuple) else (index,)
    consumed = sum(item is not None and item is not Ellipsis for item in items)
    ellipses = sum(item is Ellipsis for item in items)
    if ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if consumed > len(shape):
        raise IndexError(f"too many indices for array: array is {len(shape)}-dimensional, but {consumed} were indexed")
    rest = [slice(None)] * (len(shape) - consumed)
    expanded: list[BasicIndex] = []
    for item in items:
        expanded += rest if item is Ellipsis else [item]
    if not ellipses:
        expanded += rest

    axes: list[Axis] = []
    result: list[int] = []
    view: list[BasicIndex] = []
    scalar = not ellipses
    for item in expanded:
        if item is None:
            result.append(1)
            view.append(0)
            scalar = False
        elif isinstance(item, slice):
            axis, ascending = _slice_axis(item, shape[len(axes)])
            axes.append(axis)
            result.append(axis.size)
            view.append(slice(None) if ascending else slice(None, None, -1))
            scalar = False
        else:
            axes.append(Axis(_position(item, len(axes), shape[len(axes)]), 1, 1))
            view.append(None)
    view.append(Ellipsis)  # or indexing an array of rank 0 would give a scalar
    return Selection(tuple(axes), tuple(result), tuple(view), scalar)


def _slice_axis(item: slice, size: int) -> tuple[Axis, bool]:
    start, stop, step = item.indices(size)
    count = len(range(start, stop, step))
    if step > 0:
        return Axis(start, count, step), True
    return Axis(start + (count - 1) * step if count else 0, count, -step), False


def _position(item: object, axis: int, size: int) -> int:
    if isinstance(item, (bool, np.bool_, list, tuple, range)) or (isinstance(item, np.ndarray) and item.ndim):
        raise InvalidTypeError(
            f"Stored arrays take integers, slices, ... and None as indices, not {type(item).__name__}. "
            "Read first, then index the NumPy array: a.read()[index]"
        )
    try:
        position = operator.index(item)  # type: ignore[arg-type]
    except TypeError:
        raise IndexError(
            "only integers, slices (`:`), ellipsis (`...`) and numpy.newaxis (`None`) are valid indices"
        ) from None
    if not -size <= position < size:
        raise IndexError(f"index {position} is out of bounds for axis {axis} with size {size}")
    return position + size if position < 0 else position


def piece_count(selection: Selection, chunks: Sequence[int]) -> int:
    """How many pieces there are, counted without visiting them."""
    return math.prod(_chunk_count(axis, chunk) for axis, chunk in zip(selection.axes, chunks, strict=True))


def _chunk_count(axis: Axis, chunk: int) -> int:
    if axis.size == 0 or axis.step >= chunk:
        return axis.size
    return (axis.start + (axis.size - 1) * axis.step) // chunk - axis.start // chunk + 1


def pieces(selection: Selection, chunks: Sequence[int]) -> Iterator[Piece]:
    """The chunks that hold selected positions, in C order of the grid. None if nothing is selected."""
    if all(axis.size for axis in selection.axes):
        for chunk, inside, target in _grid(selection.axes, chunks):
            yield Piece(chunk, inside, target)


def pieces_within(piece: Piece, chunks: Sequence[int]) -> Iterator[Piece]:
    """What the chunks of a shard contribute to a piece of it; ``chunk`` is then the chunk's place in the shard."""
    for chunk, inside, target in _grid(piece.inside, chunks):
        shifted = (
            slice(whole.start + part.start, whole.start + part.stop)
            for whole, part in zip(piece.target, target, strict=True)
        )
        yield Piece(chunk, inside, tuple(shifted))


def _grid(
    axes: Sequence[Axis], chunks: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[Axis, ...], tuple[slice, ...]]]:
    if not axes:
        yield (), (), ()
        return
    for number, inside, target in _along(axes[0], chunks[0]):
        for numbers, insides, targets in _grid(axes[1:], chunks[1:]):
            yield (number, *numbers), (inside, *insides), (target, *targets)


def _along(axis: Axis, chunk: int) -> Iterator[tuple[int, Axis, slice]]:
    done = 0
    while done < axis.size:
        number, start = divmod(axis.start + done * axis.step, chunk)
        count = min(axis.size - done, (chunk - 1 - start) // axis.step + 1)
        yield number, Axis(start, count, axis.step), slice(done, done + count)
        done += count


def spans(piece: Piece, chunk_strides: Sequence[int], itemsize: int) -> Iterator[Span]:
    """The byte ranges of an uncompressed chunk that hold the piece, ranges near each other merged.

    From the innermost axis outwards, positions join into one range while the gap between neighbours is at most
    ``MERGE_GAP``; every combination of positions of the axes further out is a range of its own.
    """
    steps = [axis.step * stride for axis, stride in zip(piece.inside, chunk_strides, strict=True)]
    base = sum(axis.start * stride for axis, stride in zip(piece.inside, chunk_strides, strict=True))
    length = itemsize
    apart: list[int] = []  # axes whose positions are ranges of their own, outermost first
    for axis in sorted(range(len(steps)), key=chunk_strides.__getitem__):
        count = piece.inside[axis].size
        if count > 1 and steps[axis] - length > MERGE_GAP:  # true of all axes further out, too
            apart.insert(0, axis)
        else:
            length += (count - 1) * steps[axis]
    shape = [axis.size for axis in piece.inside]
    if not apart:
        yield Span(base, base + length, 0, tuple(shape), tuple(steps), piece.target)
        return
    counts = [shape[axis] for axis in apart]
    for axis in apart:
        shape[axis] = 1
    target = list(piece.target)
    for number in range(math.prod(counts)):
        start = base
        rest = number
        for axis, count in zip(reversed(apart), reversed(counts), strict=True):
            rest, position = divmod(rest, count)
            start += position * steps[axis]
            first = piece.target[axis].start + position
            target[axis] = slice(first, first + 1)
        yield Span(start, start + length, 0, tuple(shape), tuple(steps), tuple(target))
