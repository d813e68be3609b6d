"""Arrays to the keys and values that store them.

The bytes are the array's own where they can be: a C-contiguous little-endian array in one uncompressed chunk is handed
out as a view of its memory, whatever its element type. Anything else (strides, another byte order, several chunks,
compression, shards) costs memory for one chunk or shard at a time; a large one can be had in pieces. Which chunks are
encoded by which thread is the caller's business: :func:`encode_chunk` is safe to call from many, each with an encoder
of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Encoder, with_checksum
from ocdbt_py.array.dtypes import dtype_name, low_bits
from ocdbt_py.array.metadata import encode_metadata
from ocdbt_py.array.sharding import axes_of, encode_index, encode_shard
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["Pieces", "encode_array", "encode_chunk", "encode_large_chunk"]

Buffer: TypeAlias = bytes | bytearray | memoryview

_PIECE = 4 << 20


class Pieces:
    """A value that is too large to be made whole. Each pass over it makes it anew."""

    def __init__(self, make: Callable[[], Iterator[Buffer]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Buffer]:
        return self._make()


def encode_array(
    name: str, array: NDArray[Any], spec: ArraySpec, *, encoder: Encoder | None = None
) -> Iterator[tuple[bytes, Buffer]]:
    """The array's document, then its chunks, or shards, in C order, each as (key, value).

    ``array`` has the shape and dtype of ``spec``, in any byte order, order and strides. A value may be a view of the
    array: it holds what the array holds when it is looked at. An array with an axis of size 0 has no chunks.
    """
    if array.shape != spec.shape or dtype_name(array.dtype) != dtype_name(spec.dtype):
        raise InvalidArgumentError(
            f"Array {name!r} has shape {array.shape} and dtype {array.dtype}, "
            f"its metadata says {spec.shape} and {spec.dtype}"
        )
    return _encode(name, array, spec, encoder or Encoder())


def _encode(name: str, array: NDArray[Any], spec: ArraySpec, encoder: Encoder) -> Iterator[tuple[bytes, Buffer]]:
    yield array_key(name, spec.metadata_key), encode_metadata(spec)
    for index in np.ndindex(spec.grid):
        yield array_key(name, spec.chunk_key(index)), encode_chunk(array, spec, index, encoder)


def encode_large_chunk(array: NDArray[Any], spec: ArraySpec, index: Sequence[int], encoder: Encoder) -> Buffer | Pieces:
    """As :func:`encode_chunk`, but in pieces if that would take more memory than ``encoder`` is to take."""
    if spec.chunk_nbytes > encoder.large and _comes_in_pieces(array, spec):
        return Pieces(partial(_pieces, array, spec, tuple(index), encoder))
    return encode_chunk(array, spec, index, encoder)


def encode_chunk(array: NDArray[Any], spec: ArraySpec, index: Sequence[int], encoder: Encoder) -> Buffer:
    """The value under one key: a chunk, padded to full size where it sticks out (with the fill value, or zeros), or a
    shard, which leaves out chunks that lie outside the array."""
    sharding = spec.sharding
    if sharding is None:
        return _encode_chunk(array, spec, index, encoder)
    if spec.key_shape == spec.chunks:
        return encode_shard([_encode_chunk(array, spec, index, encoder)], sharding)
    axes = axes_of(sharding.order, spec.ndim)
    payloads: list[Buffer | None] = []
    for turned in np.ndindex(*(spec.key_grid[axis] for axis in axes)):
        chunk = [number * count for number, count in zip(index, spec.key_grid, strict=True)]
        for axis, number in zip(axes, turned, strict=True):
            chunk[axis] += number
        inside = all(number * size < end for number, size, end in zip(chunk, spec.chunks, spec.shape, strict=True))
        payloads.append(_encode_chunk(array, spec, chunk, encoder) if inside else None)
    return encode_shard(payloads, sharding)


def _encode_chunk(array: NDArray[Any], spec: ArraySpec, index: Sequence[int], encoder: Encoder) -> Buffer:
    data: Buffer = _as_stored(_part(array, spec, index), spec).reshape(-1).view(np.uint8).data
    inside, outside = spec.checksums
    if spec.compressor is not None:
        data = encoder.encode(spec.compressor, with_checksum(data) if inside else data)
    return with_checksum(data) if outside else data


def _part(array: NDArray[Any], spec: ArraySpec, index: Sequence[int]) -> NDArray[Any]:
    """What lies in a chunk."""
    if spec.chunks == spec.shape:
        return array
    starts = [number * chunk for number, chunk in zip(index, spec.chunks, strict=True)]
    return array[tuple(slice(start, start + chunk) for start, chunk in zip(starts, spec.chunks, strict=True))]


def _comes_in_pieces(array: NDArray[Any], spec: ArraySpec) -> bool:
    """Whether a chunk is made in pieces: where it would take memory, and nothing has to be known of it beforehand."""
    sharding = spec.sharding
    if any(spec.checksums) or (sharding is not None and (spec.key_shape != spec.chunks or sharding.index_at_start)):
        return False
    if spec.compressor is not None or sharding is not None:
        return True
    as_it_lies = array.transpose(spec.axes).flags.c_contiguous and array.dtype.isnative and low_bits(spec.dtype) is None
    return not (spec.is_one_chunk and as_it_lies and spec.stored_dtype.isnative)


def _pieces(array: NDArray[Any], spec: ArraySpec, index: Sequence[int], encoder: Encoder) -> Iterator[Buffer]:
    """A chunk, or a shard of one, with the same bytes as if it were made whole."""
    plain = _plain_pieces(_part(array, spec, index), spec)
    encoded = plain if spec.compressor is None else encoder.encode_pieces(spec.compressor, plain, spec.chunk_nbytes)
    length = 0
    for piece in encoded:
        length += len(piece)
        yield piece
    if spec.sharding is not None:
        yield encode_index([length], spec.sharding)


def _plain_pieces(part: NDArray[Any], spec: ArraySpec) -> Iterator[Buffer]:
    """The elements of a chunk as they are stored, some at a time."""
    turned = part.transpose(spec.axes)
    shape = tuple(spec.chunks[axis] for axis in spec.axes)
    for slab in _rows(shape, spec.dtype.itemsize):
        index = (*slab, *(slice(0, size) for size in shape[len(slab) :]))
        inside = _elements(turned[index], spec)
        sizes = tuple(each.stop - each.start for each in index)
        if inside.shape == sizes:
            stored = np.asarray(inside, spec.stored_dtype, order="C")
        else:
            stored = np.full(sizes, spec.fill_element, spec.stored_dtype)
            stored[tuple(map(slice, inside.shape))] = inside
        yield stored.reshape(-1).view(np.uint8).data


def _rows(shape: Sequence[int], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """A chunk in parts whose bytes are consecutive."""
    if math.prod(shape) * itemsize <= _PIECE:
        yield ()
        return
    row = math.prod(shape[1:]) * itemsize
    if row > _PIECE:
        for number in range(shape[0]):
            for rest in _rows(shape[1:], itemsize):
                yield slice(number, number + 1), *rest
        return
    count = _PIECE // row
    for start in range(0, shape[0], count):
        yield (slice(start, min(start + count, shape[0])),)


def _as_stored(part: NDArray[Any], spec: ArraySpec) -> NDArray[Any]:
    """The elements of a whole chunk, its axes in the order they are stored in; shares memory where it can."""
    stored = spec.stored_dtype
    part = _elements(part, spec)
    axes = spec.axes
    whole = part.shape == spec.chunks
    part = part.transpose(axes)
    if whole:
        return np.asarray(part, stored, order="C")
    padded = np.full([spec.chunks[axis] for axis in axes], spec.fill_element, stored)
    padded[tuple(map(slice, part.shape))] = part
    return padded


def _elements(part: NDArray[Any], spec: ArraySpec) -> NDArray[Any]:
    """The elements as they are stored, but for the byte order; shares memory where it can."""
    stored = spec.stored_dtype
    if stored.kind == "u" and spec.dtype.kind != "u":
        part = part.view(stored.newbyteorder("="))
    mask = low_bits(spec.dtype)
    if mask is not None:
        part = part & np.uint8(mask)
    elif spec.dtype.kind == "b" and part.size and part.max() > 1:
        part = (part != 0).view(np.uint8)  # a view of other bytes as bool; true is stored as 1 and nothing else
    return part
