"""The document ``.zarray`` of a zarr v2 array.

Written as TensorStore and Orbax write it, byte for byte: compact JSON, keys sorted, no attributes. Read as TensorStore
reads it: every member but ``dimension_separator`` must be there, members it does not know are passed over, whole
numbers may be spelled ``4.0``. Stricter in one thing: a member that occurs twice is refused, because two readers might
pick different ones.
"""

from __future__ import annotations

import binascii
import math
import re
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ocdbt_py.array.codecs import Compressor, compressor_from_json, compressor_to_json
from ocdbt_py.array.documents import choice, decode_object, integer, integers, integers_text, member, number_text, shown
from ocdbt_py.array.dtypes import Scalar, dtype_from_zarr2, stored_dtype, zarr2_spelling
from ocdbt_py.array.spec import MAX_BYTES, ArraySpec
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, OcdbtError, UnsupportedError

__all__ = ["decode_zarray", "encode_zarray"]

_MAX_DOCUMENT = 1 << 16  # bytes; a rank of 32, indented generously, takes four thousand
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DECIMAL = r"-?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?"


@lru_cache(maxsize=1024)  # the leaves of a checkpoint share a few specs
def encode_zarray(spec: ArraySpec) -> bytes:
    """The document TensorStore would write for this array.

    >>> encode_zarray(ArraySpec((4,), (4,), np.dtype("float32")))[:40]
    b'{"chunks":[4],"compressor":null,"dimensi'
    """
    fill = "null" if spec.fill_value is None else number_text(spec.fill_value)
    compressor = "null" if spec.compressor is None else compressor_to_json(spec.compressor)
    return (
        f'{{"chunks":{integers_text(spec.chunks)},"compressor":{compressor},'
        f'"dimension_separator":"{spec.dimension_separator}","dtype":"{zarr2_spelling(spec.dtype, spec.byte_order)}",'
        f'"fill_value":{fill},"filters":null,"order":"{spec.order}",'
        f'"shape":{integers_text(spec.shape)},"zarr_format":2}}'
    ).encode("ascii")


def decode_zarray(data: bytes | memoryview, *, path: str) -> ArraySpec:
    """The array that a document describes; ``path`` is its key, for messages.

    Filters, structured types and other types and compressors we have no code for are ``UnsupportedError``, everything
    else that is wrong is ``CorruptDataError``.
    """
    if len(data) > _MAX_DOCUMENT:
        raise CorruptDataError(f"{path} has {len(data)} bytes, more than any array's metadata", path=path)
    try:
        return _decode(bytes(data))
    except OcdbtError as error:
        raise type(error)(f"Array metadata {path}: {error.message}", path=path) from error


@lru_cache(maxsize=256)
def _decode(data: bytes) -> ArraySpec:
    document = decode_object(data, path=".zarray", limit=_MAX_DOCUMENT)
    integer(member(document, "zarr_format"), "zarr_format", 2, 2)
    shape = integers(document, "shape", 0, MAX_BYTES - 1)
    chunks = integers(document, "chunks", 1, MAX_BYTES - 1)
    if (filters := member(document, "filters")) not in (None, []):
        if not isinstance(filters, list):
            raise CorruptDataError(f"filters is neither null nor a list: {shown(filters)}")
        raise UnsupportedError(f"it was written with filters, which neither we nor TensorStore read: {shown(filters)}")
    spelling = member(document, "dtype")
    if isinstance(spelling, list):
        raise UnsupportedError(f"structured data types are not supported: {shown(spelling)}")
    if not isinstance(spelling, str):
        raise CorruptDataError(f"dtype is not a string: {shown(spelling)}")
    dtype, byte_order = dtype_from_zarr2(spelling)
    compressor = member(document, "compressor")
    try:
        return ArraySpec(
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            order="F" if choice(document, "order", ("C", "F")) == "F" else "C",
            fill_value=_fill_value(member(document, "fill_value"), stored_dtype(dtype, byte_order), dtype),
            compressor=None if compressor is None else _compressor(compressor),
            dimension_separator="/" if choice(document, "dimension_separator", (".", "/"), ".") == "/" else ".",
            byte_order=byte_order,
        )
    except InvalidArgumentError as error:
        raise CorruptDataError(error.message) from error


def _compressor(value: object) -> Compressor:
    if not isinstance(value, dict):
        raise CorruptDataError(f"compressor is neither null nor an object: {shown(value)}")
    return compressor_from_json(value)


def _fill_value(value: object, stored: np.dtype[Any], dtype: np.dtype[Any]) -> Scalar | None:
    if value is None:
        return None
    if dtype.kind == "c":
        if isinstance(value, list) and len(value) == 2:
            return complex(_number(value[0]), _number(value[1]))
        if isinstance(value, str):
            try:
                return complex(np.frombuffer(binascii.a2b_base64(value, strict_mode=True), stored, 1)[0])
            except ValueError as error:  # binascii.Error is one
                raise CorruptDataError(f"fill_value is not {dtype.itemsize} bytes of base64") from error
        raise CorruptDataError(f"fill_value of {dtype} is neither two numbers nor base64: {shown(value)}")
    if dtype.kind == "b":
        if not isinstance(value, bool):
            raise CorruptDataError(f"fill_value of {dtype} is not true or false: {shown(value)}")
        return value
    if dtype.name.startswith(("int", "uint")):
        return integer(value, "fill_value", -MAX_BYTES - 1, 2 * MAX_BYTES + 1)
    return _number(value)


def _number(value: object) -> float:
    if isinstance(value, str):
        if value in _SPECIAL:
            return _SPECIAL[value]
        if re.fullmatch(_DECIMAL, value):
            return float(value)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise CorruptDataError(f"fill_value is not a number: {shown(value)}")
