"""What a stored array is, whatever document says so: shape, chunks, element type, compression, key of each chunk.

An :class:`ArraySpec` is what ``decode_zarray`` returns and ``encode_zarray`` takes; reading and writing work from it
alone. It is checked when made, so no other module asks again whether shape and chunks fit together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import ByteOrder, Scalar, dtype_from_name, dtype_name, scalar_of, stored_dtype
from ocdbt_py.errors import InvalidArgumentError

__all__ = ["MAX_BYTES", "MAX_RANK", "ArraySpec", "array_key"]

MAX_RANK: Final = 32
"""Axes of an array; TensorStore's bound, and NumPy's before release 2."""

MAX_BYTES: Final = 2**63 - 1
"""Bytes of a chunk, and elements along an axis."""


def array_key(name: str, file: str) -> bytes:
    """The key of an array's document or chunk: ``name/file``, or ``file`` alone for the array without a name."""
    try:
        return (f"{name}/{file}" if name else file).encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"Array name {name!r} is not text that UTF-8 can hold") from error


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array as stored.

    ``dtype`` is the type in memory, in this machine's byte order; ``byte_order`` that of the stored bytes.
    ``fill_value`` is what a missing chunk reads as; None reads as zero.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"] = "C"
    fill_value: Scalar | None = None
    compressor: Compressor | None = None
    dimension_separator: Literal[".", "/"] = "."
    byte_order: ByteOrder = "<"
    zarr_format: int = 2

    # What follows from the above, and is asked for with every chunk.
    chunk_nbytes: int = field(init=False, repr=False, compare=False)
    """Bytes of every chunk when decoded, those that stick out of the array included."""
    chunk_strides: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Bytes from one element of a decoded chunk to the next along each axis."""
    stored_dtype: np.dtype[Any] = field(init=False, repr=False, compare=False)
    """As the elements lie in a chunk; see :func:`ocdbt_py.array.dtypes.stored_dtype`."""

    def __post_init__(self) -> None:
        shape, chunks = self.shape, self.chunks
        if len(chunks) != len(shape):
            raise InvalidArgumentError(
                f"Chunks {chunks} have {len(chunks)} axes, the array's shape {shape} {len(shape)}"
            )
        if len(shape) > MAX_RANK:
            raise InvalidArgumentError(f"An array of {len(shape)} axes cannot be stored; at most {MAX_RANK}")
        if shape and (min(shape) < 0 or max(shape) >= MAX_BYTES):
            raise InvalidArgumentError(f"{shape} is not the shape of an array")
        if chunks and min(chunks) < 1:
            raise InvalidArgumentError(f"Chunks {chunks} are not all 1 or more")
        dtype = dtype_from_name(dtype_name(self.dtype))
        strides = [0] * len(shape)
        nbytes = dtype.itemsize
        for axis in range(len(shape)) if self.order == "F" else reversed(range(len(shape))):
            strides[axis] = nbytes
            nbytes *= chunks[axis]
        if nbytes > MAX_BYTES:
            raise InvalidArgumentError(f"A chunk of {chunks} elements of {dtype} is too large")
        fill = None if self.fill_value is None else scalar_of(dtype, self.fill_value)
        for name, value in (
            ("dtype", dtype),
            ("fill_value", fill),
            ("chunk_nbytes", nbytes),
            ("chunk_strides", tuple(strides)),
            ("stored_dtype", stored_dtype(dtype, self.byte_order)),
        ):
            object.__setattr__(self, name, value)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Elements of the array."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return self.size * self.dtype.itemsize

    @property
    def fill_element(self) -> NDArray[Any]:
        """The fill value as one stored element (rank 0, but in this machine's byte order); zero if there is none."""
        element = np.asarray(0 if self.fill_value is None else self.fill_value).astype(self.dtype)
        return element.view(self.stored_dtype.newbyteorder("="))

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunks along each axis."""
        return tuple(-(-size // chunk) for size, chunk in zip(self.shape, self.chunks, strict=True))

    @property
    def metadata_key(self) -> str:
        """The file of the array's document, below its name."""
        return ".zarray"

    def chunk_key(self, index: Sequence[int]) -> str:
        """The file of one chunk, below the array's name; the only chunk of an array of rank 0 is ``0``."""
        return self.dimension_separator.join(map(str, index)) if index else "0"
