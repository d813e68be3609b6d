"""What a stored array is, whatever document says so: shape, chunks, element type, compression, key of each chunk.

An :class:`ArraySpec` is what ``decode_zarray`` and ``decode_zarr3`` return; reading and writing work from it alone. It
is checked when made, so no other module asks again whether shape and chunks fit together.
"""

from __future__ import annotations

import math
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.dtypes import ByteOrder, Scalar, dtype_from_name, dtype_name, low_bits, scalar_of, stored_dtype
from ocdbt_py.array.sharding import AxisOrder, Sharding, axes_of
from ocdbt_py.errors import InvalidArgumentError

if TYPE_CHECKING:
    from ocdbt_py.engine.found import FoundColumns

__all__ = ["MAX_BYTES", "MAX_RANK", "ArraySpec", "SpecColumns", "array_key", "array_keys"]

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


def array_keys(names: Sequence[str], file: str) -> list[bytes]:
    """The keys of that file of many arrays."""
    keys: list[bytes] = []
    for start in range(0, len(names), _TOGETHER):
        some = names[start : start + _TOGETHER]
        try:
            made = f"{f'/{file}{_APART}'.join(some)}/{file}".encode().split(_APART.encode())
        except UnicodeEncodeError:
            made = []
        # else one of them is the top, has that character, or none that UTF-8 can hold
        is_usual = len(made) == len(some) and "" not in some
        keys += made if is_usual else [array_key(name, file) for name in some]
    return keys


_APART = "\0"

_TOGETHER = 1024
"""Names of which keys are made at a time: their text is small enough for memory that was used before."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array as stored.

    ``dtype`` is the type in memory, in this machine's byte order; ``byte_order`` that of the stored bytes.
    ``fill_value`` is what a missing chunk reads as; None reads as zero. ``fill_bits``: the bytes of that element in
    this machine's byte order, where it is a not-a-number unlike others or a negative zero. ``chunks`` is the shape of
    what is encoded as one; with ``sharding``, several of them may lie under one key. ``checksums``: whether a CRC-32C
    follows a chunk's elements before they are compressed, and whether one follows what is stored.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    order: AxisOrder = "C"
    fill_value: Scalar | None = None
    compressor: Compressor | None = None
    dimension_separator: Literal[".", "/"] = "."
    byte_order: ByteOrder = "<"
    zarr_format: Literal[2, 3] = 2
    chunk_key_encoding: Literal["v2", "default"] = "v2"
    checksums: tuple[bool, bool] = (False, False)
    sharding: Sharding | None = None
    fill_bits: bytes | None = None

    # What follows from the above, and is asked for with every chunk.
    chunk_nbytes: int = field(init=False, repr=False, compare=False)
    """Bytes of every chunk when decoded, those that stick out of the array included."""
    chunk_strides: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Bytes from one element of a decoded chunk to the next along each axis."""
    key_shape: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Shape of what lies under one key: a shard, or a chunk."""
    key_grid: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Chunks under one key, along each axis."""
    index_nbytes: int = field(init=False, repr=False, compare=False)
    """Bytes of the index of a shard, 0 where there are none."""
    index_strides: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """From one chunk of a shard to the next along each axis, in rows of the shard's index."""
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
        strides, nbytes = _strides(self.order, chunks, dtype.itemsize)
        if nbytes > MAX_BYTES:
            raise InvalidArgumentError(f"A chunk of {chunks} elements of {dtype} is too large")
        if self.checksums[0] and self.compressor is None:
            raise InvalidArgumentError("A chunk that is not compressed has one checksum, of what is stored")
        sharding = self.sharding
        if sharding is not None:
            _check_sharding(sharding, chunks, dtype.itemsize)
        key_grid = (1,) * len(chunks) if sharding is None else sharding.grid(chunks)
        fill = None if self.fill_value is None else scalar_of(dtype, self.fill_value)
        fill_bits = _bits_of_negative_zero(dtype, fill) if self.fill_bits is None else self.fill_bits
        for name, value in (
            ("dtype", dtype),
            ("fill_value", fill),
            ("fill_bits", fill_bits),
            ("chunk_nbytes", nbytes),
            ("chunk_strides", strides),
            ("key_shape", chunks if sharding is None else sharding.shape),
            ("key_grid", key_grid),
            ("index_nbytes", 0 if sharding is None else sharding.index_nbytes(chunks)),
            ("index_strides", key_grid if sharding is None else _strides(sharding.order, key_grid, 1)[0]),
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
        if self.fill_bits is not None:
            return np.frombuffer(self.fill_bits, self.stored_dtype.newbyteorder("=")).reshape(())
        element = np.asarray(0 if self.fill_value is None else self.fill_value).astype(self.dtype)
        return element.view(self.stored_dtype.newbyteorder("="))

    @property
    def grid(self) -> tuple[int, ...]:
        """Keys along each axis: chunks, or shards."""
        return tuple(-(-size // part) for size, part in zip(self.shape, self.key_shape, strict=True))

    @property
    def is_raw(self) -> bool:
        """Whether the elements of a chunk are stored as such, so that a range of them can be read."""
        return self.compressor is None and not self.checksums[1]

    @property
    def is_one_chunk(self) -> bool:
        """Whether the array is one chunk, and alone under its key."""
        return self.chunks == self.shape == self.key_shape

    @property
    def is_plain(self) -> bool:
        """Whether the bytes of its one chunk are the array's in memory, in C order. Booleans never are: a stored one
        may be any byte, and NumPy trusts it to be 0 or 1."""
        return self.is_raw and self.is_one_chunk and self.lies_as_stored and self.dtype.kind != "b"

    @property
    def lies_as_stored(self) -> bool:
        """Whether the elements of a decoded chunk are those in memory, in C order."""
        return self.stored_dtype.isnative and (self.order == "C" or self.ndim <= 1) and low_bits(self.dtype) is None

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes as a chunk has them, outermost first."""
        return axes_of(self.order, len(self.shape))

    @property
    def metadata_key(self) -> str:
        """The file of the array's document, below its name."""
        return ".zarray" if self.zarr_format == 2 else "zarr.json"

    def chunk_key(self, index: Sequence[int]) -> str:
        """The file of one chunk or shard, below the array's name; that of an array of rank 0 is ``0``, or ``c``."""
        if self.chunk_key_encoding == "default":
            return self.dimension_separator.join(["c", *map(str, index)])
        return self.dimension_separator.join(map(str, index)) if index else "0"


class SpecColumns(Mapping[int, ArraySpec]):
    """By number the specs of many arrays, of which those alike share one: ``distinct[kinds[row]]`` is that of array
    ``indices[row]``. ``documents``: where those were found that say so, if it is known."""

    __slots__ = ("_specs", "distinct", "documents", "indices", "kinds")

    def __init__(
        self,
        indices: Sequence[int],
        distinct: Sequence[ArraySpec],
        kinds: Sequence[int] | NDArray[np.int64],
        documents: FoundColumns | None = None,
    ) -> None:
        self.documents = documents
        self.indices = indices
        self.distinct = distinct
        self.kinds = kinds
        self._specs: dict[int, ArraySpec] | None = None

    @classmethod
    def of(cls, specs: Mapping[int, ArraySpec]) -> SpecColumns:
        if isinstance(specs, SpecColumns):
            return specs
        distinct = {id(spec): spec for spec in specs.values()}
        numbers = dict(zip(distinct, range(len(distinct)), strict=True))
        return cls(list(specs), list(distinct.values()), [numbers[id(spec)] for spec in specs.values()])

    @property
    def _by_index(self) -> dict[int, ArraySpec]:
        """Made when single ones are asked for."""
        if self._specs is None:
            kinds = np.asarray(self.kinds, np.int64).tolist()
            self._specs = dict(zip(self.indices, map(self.distinct.__getitem__, kinds), strict=True))
        return self._specs

    def __getitem__(self, index: int) -> ArraySpec:
        return self._by_index[index]

    def __contains__(self, index: object) -> bool:
        return index in self._by_index

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def values(self) -> ValuesView[ArraySpec]:
        return self._by_index.values()

    def items(self) -> ItemsView[int, ArraySpec]:
        return self._by_index.items()


def _strides(order: AxisOrder, shape: Sequence[int], itemsize: int) -> tuple[tuple[int, ...], int]:
    """From one element to the next along each axis, and the size of all."""
    axes = axes_of(order, len(shape))
    if isinstance(order, tuple) and sorted(axes) != list(range(len(shape))):
        raise InvalidArgumentError(f"{order} is not an order of {len(shape)} axes")
    strides = [0] * len(shape)
    for axis in reversed(axes):
        strides[axis] = itemsize
        itemsize *= shape[axis]
    return tuple(strides), itemsize


def _bits_of_negative_zero(dtype: np.dtype[Any], value: Scalar | None) -> bytes | None:
    """Negative zero equals zero, and yet two arrays with these are not alike."""
    if value is None:
        return None
    parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
    if any(isinstance(part, float) and part == 0 and math.copysign(1, part) < 0 for part in parts):
        return np.array([value]).astype(dtype).tobytes()
    return None


def _check_sharding(sharding: Sharding, chunks: tuple[int, ...], itemsize: int) -> None:
    shape = sharding.shape
    if len(shape) != len(chunks) or any(size < 1 or size % chunk for size, chunk in zip(shape, chunks, strict=True)):
        raise InvalidArgumentError(f"Shards {shape} are not whole multiples of chunks {chunks}")
    if math.prod(shape) * itemsize > MAX_BYTES or sharding.index_nbytes(chunks) > MAX_BYTES:
        raise InvalidArgumentError(f"A shard of {shape} elements in chunks of {chunks} is too large")
