"""How the arrays of a new checkpoint are stored: the shape of their chunks, and whether they are compressed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Compressor, Encoder
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["MAX_CHUNK_BYTES", "Encoding", "chunk_shape"]

MAX_CHUNK_BYTES = 1 << 31
"""A larger array is cut even if nobody asked: Orbax cuts at the size of a data file ("Chunk shape")."""

_ORBAX_LEVEL = 1
_WORTH_TRYING = 4096
"""Bytes below which an array stays as it is: a frame saves next to nothing, and costs each reader a decompression."""

_WORTH_KEEPING = 0.7
"""Compressed to more than this part of its size, an array is better left as it is: it can be mapped and sliced."""

_SAMPLES = 8
_SAMPLE_BYTES = 16 << 10

Choice = Callable[[NDArray[Any]], Compressor | None]


class Encoding:
    """What ``compression=`` and ``chunk_bytes=`` mean for each array.

    ``compression``: ``"auto"`` (zstd where a sample of the array says that it pays), ``"zstd"``, ``"zstd:LEVEL"`` or
    None. ``chunk_bytes``: chunks hold at most so many bytes before compression; None keeps arrays whole.
    """

    def __init__(self, compression: str | None = "auto", chunk_bytes: int | None = None) -> None:
        if chunk_bytes is not None and (type(chunk_bytes) is not int or chunk_bytes < 1):
            raise InvalidArgumentError(f"chunk_bytes is a positive number of bytes, not {chunk_bytes!r}")
        self._chunk_bytes = chunk_bytes
        self._choose = _compression(compression)
        self._specs: dict[tuple[Any, ...], ArraySpec] = {}

    def spec(self, array: NDArray[Any]) -> ArraySpec:
        """How ``array`` is to be stored. Arrays alike get the same object."""
        compressor = self._choose(array)
        key = (array.shape, array.dtype, compressor)
        spec = self._specs.get(key)
        if spec is None:
            target = min(self._chunk_bytes or MAX_CHUNK_BYTES, MAX_CHUNK_BYTES)
            chunks = chunk_shape(array.shape, array.dtype.itemsize, target)
            spec = self._specs[key] = ArraySpec(array.shape, chunks, array.dtype, compressor=compressor)
        return spec


def chunk_shape(shape: tuple[int, ...], itemsize: int, target: int) -> tuple[int, ...]:
    """The chunks Orbax would cut an unsharded array into: the longest axis goes to its next smaller divisor until a
    chunk takes at most ``target`` bytes. An axis without elements counts as one.

    >>> chunk_shape((64, 96), 4, 1024)
    (16, 16)
    """
    if target < itemsize:
        raise InvalidArgumentError(f"chunk_bytes={target} is less than one element, which takes {itemsize} bytes")
    chunks = [max(size, 1) for size in shape]
    while math.prod(chunks) * itemsize > target:
        axis = max(range(len(chunks)), key=chunks.__getitem__)
        chunks[axis] = _next_divisor(shape[axis], chunks[axis])
    return tuple(chunks)


def _next_divisor(size: int, below: int) -> int:
    """The greatest divisor of ``size`` that is less than ``below``, itself a divisor."""
    quotient = size // below + 1
    while quotient * quotient <= size:
        if size % quotient == 0:
            return size // quotient
        quotient += 1
    return next(divisor for divisor in range(min(below - 1, math.isqrt(size)), 0, -1) if size % divisor == 0)


def _compression(compression: str | None) -> Choice:
    if compression is None:
        return lambda array: None
    if compression == "auto":
        return _Sampled()
    method, colon, level = compression.partition(":") if isinstance(compression, str) else ("", "", "")
    try:
        if method == "zstd":
            always = Compressor("zstd", int(level) if colon else _ORBAX_LEVEL)
            return lambda array: always
    except ValueError:  # no number, or no level of zstd
        pass
    raise InvalidArgumentError(
        f'compression is "auto", "zstd", "zstd:LEVEL" with a level from -131072 to 22, or None, not {compression!r}'
    )


class _Sampled:
    """Compresses a few pieces of an array to see whether the whole is worth it."""

    def __init__(self) -> None:
        self._encoder = Encoder()
        self._zstd = Compressor("zstd", _ORBAX_LEVEL)

    def __call__(self, array: NDArray[Any]) -> Compressor | None:
        if array.nbytes < _WORTH_TRYING:
            return None
        sample = _sample(array)
        encoded = self._encoder.encode(self._zstd, sample)
        return self._zstd if len(encoded) <= _WORTH_KEEPING * len(sample) else None


def _sample(array: NDArray[Any]) -> bytes:
    """Up to eight pieces of 16 KiB, spread over the array."""
    size = _SAMPLE_BYTES // array.itemsize
    if array.size <= _SAMPLES * size:
        return array.tobytes()
    step = (array.size - size) // (_SAMPLES - 1)
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    return b"".join([np.asarray(flat[i * step : i * step + size]).tobytes() for i in range(_SAMPLES)])
