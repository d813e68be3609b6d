"""Data types by name: the field's names, zarr's spellings, and NumPy's objects.

Two families. NumPy's own types have a byte order in a zarr v2 document (``<f4``); the extension types of ``ml_dtypes``
(bfloat16, the float8 family, types narrower than a byte) are spelled by name alone and are little endian. A type
narrower than a byte takes one byte an element, value in the low bits: they are all that counts on reading, and the
rest is written as zero, which is also how ``ml_dtypes`` keeps them in memory.

Only names in these tables exist here: a name from a file is looked up, never evaluated. ``ml_dtypes`` is imported when
the first of its types is met. Not here: strings, records, times and objects, which no checkpoint stores as arrays.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from ocdbt_py.errors import InvalidArgumentError, UnsupportedError

__all__ = [
    "ByteOrder",
    "Scalar",
    "dtype_from_name",
    "dtype_from_zarr2",
    "dtype_name",
    "low_bits",
    "scalar_of",
    "stored_dtype",
    "zarr2_spelling",
]

ByteOrder: TypeAlias = Literal["<", ">"]
Scalar: TypeAlias = bool | int | float | complex

_NUMPY: Final = {
    "bool": "b1",
    **{f"int{8 * size}": f"i{size}" for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": f"u{size}" for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"f{size}" for size in (2, 4, 8)},
    **{f"complex{8 * size}": f"c{size}" for size in (8, 16)},
}
_NUMPY_NAMES: Final = {code: name for name, code in _NUMPY.items()}

# Name, and how many low bits of a stored byte count where that is fewer than all.
_EXTENSION: Final[dict[str, int | None]] = {
    "bfloat16": None,
    "float8_e3m4": None,
    "float8_e4m3b11fnuz": None,
    "float8_e4m3fn": None,
    "float8_e4m3fnuz": None,
    "float8_e5m2": None,
    "float8_e5m2fnuz": None,
    "float8_e8m0fnu": None,
    "float4_e2m1fn": 4,
    "int4": 4,
    "int2": 2,
}


@lru_cache(maxsize=256)
def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name without byte order: ``float32``, ``bfloat16``, ``int4``. What cannot be stored is ``UnsupportedError``.

    >>> dtype_name(np.dtype(">f4"))
    'float32'
    """
    name = dtype.name
    if name in _NUMPY or name in _EXTENSION:
        return name
    raise UnsupportedError(
        f"Arrays of dtype {dtype} cannot be stored. Convert to one of: {', '.join([*_NUMPY, *_EXTENSION])}"
    )


@lru_cache(maxsize=256)
def dtype_from_name(name: str) -> np.dtype[Any]:
    """The dtype of that name, in this machine's byte order. Unknown names are ``UnsupportedError``."""
    if name in _NUMPY:
        return np.dtype(name)
    if name not in _EXTENSION:
        raise UnsupportedError(f"Data type {name!r} is not known. Known are: {', '.join([*_NUMPY, *_EXTENSION])}")
    try:
        import ml_dtypes
    except ImportError as error:
        raise UnsupportedError(f"Data type {name!r} needs the package ml_dtypes: pip install ml-dtypes") from error
    if not hasattr(ml_dtypes, name):
        raise UnsupportedError(f"Data type {name!r} needs a newer ml_dtypes: pip install -U ml-dtypes")
    dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
    return dtype


def zarr2_spelling(dtype: np.dtype[Any], byte_order: ByteOrder = "<") -> str:
    """What a ``.zarray`` says: ``<f4``, ``|b1``, ``bfloat16``."""
    name = dtype_name(dtype)
    code = _NUMPY.get(name)
    if code is None:
        return name
    return ("|" if dtype.itemsize == 1 else byte_order) + code


def dtype_from_zarr2(text: str) -> tuple[np.dtype[Any], ByteOrder]:
    """The dtype in this machine's byte order, and the order its bytes are stored in (``<`` where there is none).

    As TensorStore, one-byte types are taken with any of ``|<>``, the others with ``<`` or ``>``.
    """
    if text in _EXTENSION:
        return dtype_from_name(text), "<"
    order, name = text[:1], _NUMPY_NAMES.get(text[1:])
    if name is not None and order:
        dtype = dtype_from_name(name)
        if order in ("<>" if dtype.itemsize > 1 else "<>|"):
            return dtype, ">" if order == ">" and dtype.itemsize > 1 else "<"
    raise UnsupportedError(
        f"zarr data type {text[:50]!r} is not supported. Supported are <, > or | before "
        f"{', '.join(_NUMPY.values())}, and {', '.join(_EXTENSION)}"
    )


@lru_cache(maxsize=256)
def stored_dtype(dtype: np.dtype[Any], byte_order: ByteOrder = "<") -> np.dtype[Any]:
    """How the elements lie in a chunk: the dtype in that byte order; extension types and bool as unsigned integers."""
    if dtype.name in _EXTENSION or dtype == np.bool_:
        return np.dtype(f"{byte_order}u{dtype.itemsize}")
    return dtype.newbyteorder(byte_order)


@lru_cache(maxsize=256)
def low_bits(dtype: np.dtype[Any]) -> int | None:
    """The mask of the bits that count in a stored byte, or None where all do."""
    bits = _EXTENSION.get(dtype.name)
    return None if bits is None else (1 << bits) - 1


def scalar_of(dtype: np.dtype[Any], value: object) -> Scalar:
    """``value`` as the Python number that an element of ``dtype`` can hold, rounded where it is floating.

    Not-a-number is always the one object ``math.nan``, so that equal metadata compares equal.
    """
    name = dtype_name(dtype)
    try:
        if name == "bool":
            if isinstance(value, (bool, np.bool_)):
                return bool(value)
        elif name.startswith(("int", "uint")):
            if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
                element = np.array(int(value)).astype(dtype)
                if int(element) == value:
                    return int(value)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                number = np.asarray(value, np.complex128 if dtype.kind == "c" else np.float64).astype(dtype)
            if dtype.kind == "c":
                return complex(number[()])
            rounded = float(number[()])
            return math.nan if math.isnan(rounded) else rounded
    except (OverflowError, TypeError, ValueError):
        pass
    raise InvalidArgumentError(f"{value!r} is not a value of {name}")
