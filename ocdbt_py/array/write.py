"""Arrays to the keys and values that store them.

The bytes are the array's own where they can be: a C-contiguous little-endian array in one uncompressed chunk is handed
out as a view of its memory, whatever its element type. Anything else (strides, another byte order, several chunks,
compression) costs memory for one chunk at a time. Which chunks are encoded by which thread is the caller's business:
:func:`encode_chunk` is safe to call from many, each with an encoder of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Encoder
from ocdbt_py.array.dtypes import dtype_name, low_bits
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.zarr2 import encode_zarray
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["encode_array", "encode_chunk"]

Buffer: TypeAlias = bytes | memoryview


def encode_array(
    name: str, array: NDArray[Any], spec: ArraySpec, *, encoder: Encoder | None = None
) -> Iterator[tuple[bytes, Buffer]]:
    """The array's document, then its chunks in C order, each as (key, value).

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
    yield array_key(name, spec.metadata_key), encode_zarray(spec)
    for index in np.ndindex(spec.grid):
        yield array_key(name, spec.chunk_key(index)), encode_chunk(array, spec, index, encoder)


def encode_chunk(array: NDArray[Any], spec: ArraySpec, index: Sequence[int], encoder: Encoder) -> Buffer:
    """The value of one chunk of the array, padded to full size where it sticks out (with the fill value, or zeros)."""
    part = array
    if spec.chunks != spec.shape:
        starts = [number * chunk for number, chunk in zip(index, spec.chunks, strict=True)]
        part = array[tuple(slice(start, start + chunk) for start, chunk in zip(starts, spec.chunks, strict=True))]
    stored = _as_stored(part, spec)
    data = (stored.T if spec.order == "F" else stored).reshape(-1).view(np.uint8).data
    return data if spec.compressor is None else encoder.encode(spec.compressor, data)


def _as_stored(part: NDArray[Any], spec: ArraySpec) -> NDArray[Any]:
    """The elements of a whole chunk, contiguous in its order and in stored form; shares memory where it can."""
    stored = spec.stored_dtype
    if stored.kind == "u" and spec.dtype.kind != "u":
        part = part.view(stored.newbyteorder("="))
    mask = low_bits(spec.dtype)
    if mask is not None:
        part = part & np.uint8(mask)
    elif spec.dtype.kind == "b" and part.size and part.max() > 1:
        part = (part != 0).view(np.uint8)  # a view of other bytes as bool; true is stored as 1 and nothing else
    if part.shape == spec.chunks:
        return np.asarray(part, stored, order=spec.order)
    padded = np.full(spec.chunks, spec.fill_element, stored, order=spec.order)
    padded[tuple(map(slice, part.shape))] = part
    return padded
