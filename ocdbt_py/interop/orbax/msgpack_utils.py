"""Trees of arrays as msgpack, the form of Flax's files and of Orbax's in old releases: ``ocp.msgpack_utils``.

Arrays are the extension type 1, complex numbers 2, NumPy's numbers 3, tuples 4; reading is
:mod:`ocdbt_py.checkpoint.msgpack`'s. One value of msgpack has less than 4 GiB and Flax allows 1 GiB for an array, so a
larger one is a dict of pieces.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

from ocdbt_py.array.dtypes import dtype_from_name
from ocdbt_py.checkpoint.msgpack import StoredArray, decode_msgpack
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, InvalidTypeError

__all__ = ["MAX_CHUNK_SIZE", "msgpack_restore", "msgpack_serialize"]

MAX_CHUNK_SIZE: Final = 1 << 30
"""Bytes of an array that stands in one piece."""

_CHUNKED = "__msgpack_chunked_array__"


def msgpack_serialize(pytree: Any, in_place: bool = False) -> bytes:
    """A tree of dicts, lists, tuples, numbers, ``str``, ``bytes``, None and arrays as msgpack.

    Keys of dicts come sorted, or with ``in_place`` as they are; the tree is not changed in either case. Raises
    :class:`InvalidTypeError`, a ``ValueError``, for anything else.
    """
    return b"".join(_packed(pytree if in_place else _sorted(pytree)))


def _sorted(value: Any) -> Any:
    if type(value) is dict:
        return {key: _sorted(value[key]) for key in sorted(value)}
    if type(value) in (list, tuple):
        return type(value)(_sorted(each) for each in value)
    return value


def _packed(value: Any) -> Iterator[bytes]:
    kind = type(value)
    if value is None:
        yield b"\xc0"
    elif kind is bool:
        yield b"\xc3" if value else b"\xc2"
    elif kind is int:
        yield _integer(value)
    elif kind is float:
        yield struct.pack(">Bd", 0xCB, value)
    elif kind is str:
        data = value.encode()
        yield _head(len(data), (0xA0, 32), (0xD9, 0xDA, 0xDB)) + data
    elif kind is bytes:
        yield _head(len(value), None, (0xC4, 0xC5, 0xC6)) + value
    elif kind is dict:
        yield _head(len(value), (0x80, 16), (None, 0xDE, 0xDF))
        for key, each in value.items():
            yield from _packed(key)
            yield from _packed(each)
    elif kind is list:
        yield from _packed_list(value)
    elif kind is complex:
        yield _extension(2, b"".join(_packed_list([value.real, value.imag])))
    elif isinstance(value, tuple):
        yield _extension(4, b"".join(_packed_list(list(value))))
    elif isinstance(value, np.generic):
        yield _extension(3, _array(np.asarray(value)))
    elif hasattr(value, "__array__") and hasattr(value, "dtype"):
        array = np.asarray(value)
        if array.nbytes > MAX_CHUNK_SIZE:
            yield from _packed(_in_pieces(array))
        else:
            yield _extension(1, _array(array))
    else:
        raise InvalidTypeError(f"msgpack holds dicts, lists, tuples, arrays and plain values, not {kind.__name__}")


def _packed_list(values: list[Any]) -> Iterator[bytes]:
    yield _head(len(values), (0x90, 16), (None, 0xDC, 0xDD))
    for each in values:
        yield from _packed(each)


def _integer(value: int) -> bytes:
    """In as few bytes as it takes."""
    if -32 <= value < 128:
        return struct.pack("b" if value < 0 else "B", value)
    sizes = ((0xCC, "B"), (0xCD, "H"), (0xCE, "I"), (0xCF, "Q")) if value >= 0 else (
        (0xD0, "b"), (0xD1, "h"), (0xD2, "i"), (0xD3, "q")
    )  # fmt: skip
    for code, size in sizes:
        try:
            return struct.pack(f">B{size}", code, value)
        except struct.error:
            continue
    raise InvalidArgumentError(f"{value} has more than 64 bits")


def _head(length: int, short: tuple[int, int] | None, codes: tuple[int | None, int, int]) -> bytes:
    """The code and the length of a value."""
    if short is not None and length < short[1]:
        return bytes([short[0] | length])
    for code, size, limit in zip(codes, "BHI", (1 << 8, 1 << 16, 1 << 32), strict=True):
        if code is not None and length < limit:
            return struct.pack(f">B{size}", code, length)
    raise InvalidArgumentError(f"A value of msgpack has less than 4 GiB, and this has {length} bytes or elements")


_FIXED_EXT: Final = {1: 0xD4, 2: 0xD5, 4: 0xD6, 8: 0xD7, 16: 0xD8}


def _extension(number: int, data: bytes) -> bytes:
    code = _FIXED_EXT.get(len(data))
    head = bytes([code]) if code is not None else _head(len(data), None, (0xC7, 0xC8, 0xC9))
    return head + bytes([number]) + data


def _array(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype.hasobject or array.dtype.fields is not None:
        raise InvalidTypeError(f"msgpack holds arrays of numbers, and this is one of {array.dtype}")
    return b"".join(_packed_list([list(array.shape), array.dtype.name, array.tobytes("C")]))


def _in_pieces(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    flat = array.reshape(-1)
    step = max(1, MAX_CHUNK_SIZE // array.dtype.itemsize)
    pieces = [flat[start : start + step] for start in range(0, flat.size, step)]
    return {_CHUNKED: True, "shape": _numbered(array.shape), "chunks": _numbered(pieces)}


def _numbered(values: Any) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def msgpack_restore(encoded_pytree: bytes) -> Any:
    """The tree that :func:`msgpack_serialize`, Flax or Orbax made. Raises :class:`CorruptDataError`."""
    try:
        return _restored(decode_msgpack(bytes(encoded_pytree), "msgpack"))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CorruptDataError):
            raise
        raise CorruptDataError(f"The msgpack has an array that is none: {error}"[:300]) from None


def _restored(value: Any) -> Any:
    if isinstance(value, StoredArray):
        dtype = dtype_from_name(value.dtype)
        array = np.frombuffer(value.data, dtype)
        if array.size != math.prod(value.shape):
            raise CorruptDataError(f"The msgpack has an array of the shape {value.shape} with {array.size} elements")
        array = array.reshape(value.shape)
        return array[()] if value.is_number else array
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, list):
        return [_restored(each) for each in value]
    if isinstance(value, tuple):
        return tuple(_restored(each) for each in value)
    if isinstance(value, dict):
        found = {key: _restored(each) for key, each in value.items()}
        return _joined(found) if _CHUNKED in found else found
    return value


def _joined(found: dict[str, Any]) -> Any:
    shape = [found["shape"][str(i)] for i in range(len(found["shape"]))]
    return np.concatenate([found["chunks"][str(i)] for i in range(len(found["chunks"]))]).reshape(shape)
