"""How the arrays of a new checkpoint are stored: the shape of their chunks, and whether they are compressed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ocdbt_py.array.codecs import Compressor, Encoder
from ocdbt_py.array.spec import ArraySpec
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["MAX_CHUNK_BYTES", "WORTH_TRYING", "Encoding", "chunk_shape"]

MAX_CHUNK_BYTES = 1 << 31
"""A larger array is cut even if nobody asked: Orbax cuts at the size of a data file ("Chunk shape")."""

COMPRESSED_CHUNK_BYTES = 16 << 20
"""So large are the chunks of a large compressed array: few of them are held at a time, and several threads decode."""

_SMALLEST_CUT = 1 << 20
"""Where the lengths of the axes leave only chunks smaller than this, a compressed array stays whole."""

_ORBAX_LEVELS = {2: 1, 3: 3}
"""Of zstd, by the format of zarr."""

WORTH_TRYING = 4096
"""Bytes below which an array stays as it is: a frame saves next to nothing, and costs each reader a decompression."""

_WORTH_KEEPING = 0.7
"""Compressed to more than this part of its size, an array is better left as it is: it can be mapped and sliced."""

_SAMPLES = 8
_SAMPLE_BYTES = 4 << 10

_SAMPLED_TOGETHER = 32
_SMALL_SAMPLE_BYTES = 4 << 10


class Encoding:
    """What ``compression=`` and ``chunk_bytes=`` mean for each array.

    ``compression``: ``"auto"`` (zstd where a sample of the array says that it pays), ``"zstd"``, ``"zstd:LEVEL"`` or
    None. ``chunk_bytes``: chunks hold at most so many bytes before compression; None cuts only large compressed arrays.
    ``zarr_format``: 2 or 3. ``is_sampled``: whether what is in an array decides if it is compressed.
    """

    def __init__(
        self, compression: str | None = "auto", chunk_bytes: int | None = None, zarr_format: Literal[2, 3] = 2
    ) -> None:
        if chunk_bytes is not None and (type(chunk_bytes) is not int or chunk_bytes < 1):
            raise InvalidArgumentError(f"chunk_bytes is a positive number of bytes, not {chunk_bytes!r}")
        if not isinstance(zarr_format, int) or zarr_format not in _ORBAX_LEVELS:
            raise InvalidArgumentError(f"zarr_format is 2 or 3, not {zarr_format!r}")
        self.zarr_format = zarr_format
        self._chunk_bytes = chunk_bytes
        self._compressor, self.is_sampled = _compression(compression, _ORBAX_LEVELS[zarr_format])
        self._encoder = Encoder()
        self._specs: dict[tuple[Any, ...], ArraySpec] = {}

    def spec(self, array: NDArray[Any]) -> ArraySpec:
        """How ``array`` is to be stored. Arrays alike get the same object."""
        return self.spec_for(array.shape, array.dtype, is_compressed=self.compresses(array))

    @property
    def compresses_all(self) -> bool:
        """Whether every array is to be compressed, whatever is in it."""
        return self._compressor is not None and not self.is_sampled

    def compresses(self, array: NDArray[Any]) -> bool:
        """Whether ``array`` is to be compressed."""
        if self._compressor is None or not self.is_sampled:
            return self._compressor is not None
        if array.nbytes < WORTH_TRYING:
            return False
        return self._pays(_sample(array))

    def compresses_together(self, arrays: Sequence[ArrayLike]) -> bool:
        """Whether to compress these, many small ones of one dtype. Some are looked at, spread over them: what is in one
        is much like what is in the next, and to look at each takes longer than to write it."""
        if self._compressor is None or not self.is_sampled:
            return self._compressor is not None
        step = -(-len(arrays) // _SAMPLED_TOGETHER)
        return self._pays(b"".join([np.asarray(array).tobytes()[:_SMALL_SAMPLE_BYTES] for array in arrays[::step]]))

    def _pays(self, sample: bytes) -> bool:
        assert self._compressor is not None
        return len(self._encoder.encode(self._compressor, sample)) <= _WORTH_KEEPING * len(sample)

    def spec_for(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        is_compressed: bool,
        write_shape: tuple[int, ...] | None = None,
    ) -> ArraySpec:
        """How an array is stored of which each writer writes ``write_shape`` (None: one writes it whole)."""
        key = (shape, dtype, is_compressed, write_shape)
        spec = self._specs.get(key)
        if spec is None:
            chunks = self._chunks(shape, write_shape or shape, dtype.itemsize, is_compressed)
            make = ArraySpec if self.zarr_format == 2 else _zarr3()
            compressor = self._compressor if is_compressed else None
            spec = self._specs[key] = make(shape, chunks, dtype, compressor=compressor)
        return spec

    def _chunks(
        self, shape: tuple[int, ...], write_shape: tuple[int, ...], itemsize: int, is_compressed: bool
    ) -> tuple[int, ...]:
        if is_compressed and self._chunk_bytes is None:
            chunks = _slabs(write_shape, itemsize, COMPRESSED_CHUNK_BYTES)
            if math.prod(chunks) >= min(math.prod(write_shape), _SMALLEST_CUT // itemsize):
                return chunks
        target = min(self._chunk_bytes or MAX_CHUNK_BYTES, MAX_CHUNK_BYTES)
        return chunk_shape(shape, itemsize, target, write_shape)


def _zarr3() -> Callable[..., ArraySpec]:
    from ocdbt_py.array.zarr3 import orbax_spec

    return orbax_spec


def chunk_shape(
    shape: tuple[int, ...], itemsize: int, target: int, write_shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """The chunks Orbax would cut an array into of which ``write_shape`` is written at a time (None: all of it).

    The longest axis goes to its next smaller divisor until a chunk takes at most ``target`` bytes; axes that are cut
    already, between writers, before the others. An axis without elements counts as one.

    >>> chunk_shape((64, 96), 4, 1024)
    (16, 16)
    >>> chunk_shape((64, 96), 4, 512, (32, 48))
    (8, 16)
    """
    if target < itemsize:
        raise InvalidArgumentError(f"chunk_bytes={target} is less than one element, which takes {itemsize} bytes")
    whole = [max(size, 1) for size in write_shape or shape]
    chunks = list(whole)
    cut = [axis for axis, (size, part) in enumerate(zip(shape, whole, strict=True)) if part < size]
    while math.prod(chunks) * itemsize > target:
        axes = [axis for axis in cut if chunks[axis] > 1] or range(len(chunks))
        axis = max(axes, key=chunks.__getitem__)
        chunks[axis] = _next_divisor(whole[axis], chunks[axis])
    return tuple(chunks)


def _slabs(write_shape: tuple[int, ...], itemsize: int, target: int) -> tuple[int, ...]:
    """Chunks of at most ``target`` bytes that are cut along the first axes, as few as will do: what is decoded from one
    lies in the array in one piece.

    >>> _slabs((64, 96, 8), 4, 1 << 15)
    (8, 96, 8)
    """
    chunks = [max(size, 1) for size in write_shape]
    for axis, size in enumerate(chunks):
        while chunks[axis] > 1 and math.prod(chunks) * itemsize > target:
            chunks[axis] = _next_divisor(size, chunks[axis])
    return tuple(chunks)


def _next_divisor(size: int, below: int) -> int:
    """The greatest divisor of ``size`` that is less than ``below``, itself a divisor."""
    quotient = size // below + 1
    while quotient * quotient <= size:
        if size % quotient == 0:
            return size // quotient
        quotient += 1
    return next(divisor for divisor in range(min(below - 1, math.isqrt(size)), 0, -1) if size % divisor == 0)


def _compression(compression: str | None, default_level: int) -> tuple[Compressor | None, bool]:
    """The compressor, and whether each array is asked if it pays."""
    if compression is None:
        return None, False
    if compression == "auto":
        return Compressor("zstd", default_level), True
    method, colon, level = compression.partition(":") if isinstance(compression, str) else ("", "", "")
    try:
        if method == "zstd":
            return Compressor("zstd", int(level) if colon else default_level), False
    except ValueError:  # no number, or no level of zstd
        pass
    raise InvalidArgumentError(
        f'compression is "auto", "zstd", "zstd:LEVEL" with a level from -131072 to 22, or None, not {compression!r}'
    )


def _sample(array: NDArray[Any]) -> bytes:
    """Up to eight pieces of 4 KiB, spread over the array."""
    size = _SAMPLE_BYTES // array.itemsize
    if array.size <= _SAMPLES * size:
        return array.tobytes()
    step = (array.size - size) // (_SAMPLES - 1)
    flat = array.reshape(-1) if array.flags.c_contiguous else array.flat
    return b"".join([np.asarray(flat[i * step : i * step + size]).tobytes() for i in range(_SAMPLES)])
