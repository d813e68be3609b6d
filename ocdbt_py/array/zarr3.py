"""The document ``zarr.json`` of a zarr v3 array.

Written as TensorStore writes it, byte for byte: compact JSON, keys sorted, no attributes, nothing that is a default.
Read as TensorStore reads it: members it does not know only where they say ``"must_understand": false``, whole numbers
may be spelled ``4.0``. Stricter in one thing: a member that occurs twice is refused.
"""

from __future__ import annotations

import math
import re
import sys
from functools import lru_cache
from typing import Any, Final

import numpy as np

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.documents import (
    choice,
    decode_object,
    integer,
    integers,
    integers_text,
    member,
    named,
    number_text,
    only,
    shown,
)
from ocdbt_py.array.dtypes import Scalar, dtype_from_name, dtype_name, low_bits, scalar_of
from ocdbt_py.array.sharding import Sharding
from ocdbt_py.array.spec import MAX_BYTES, MAX_RANK, ArraySpec
from ocdbt_py.array.zarr3_codecs import codec_texts, decode_codecs
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, OcdbtError, UnsupportedError

__all__ = ["decode_zarr3", "encode_zarr3", "is_group", "orbax_spec"]

_MAX_DOCUMENT = 1 << 20  # bytes; attributes are the user's, and their size his choice
_CACHED_DOCUMENT = 1 << 14  # bytes; longer ones, which nobody shares, would only fill the cache
_SPECIAL: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_MEMBERS: Final = frozenset(
    (
        *("attributes", "chunk_grid", "chunk_key_encoding", "codecs", "data_type", "dimension_names"),
        *("fill_value", "node_type", "shape", "storage_transformers", "zarr_format"),
    )
)


def orbax_spec(
    shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any], *, compressor: Compressor | None
) -> ArraySpec:
    """An array as Orbax stores it with ``use_zarr3``: each chunk a shard of its own."""
    return ArraySpec(
        shape,
        chunks,
        dtype,
        fill_value=scalar_of(dtype, np.zeros((), dtype)[()].item()),
        compressor=compressor,
        dimension_separator="/",
        zarr_format=3,
        chunk_key_encoding="default",
        sharding=Sharding(chunks),
    )


# --- writing


@lru_cache(maxsize=1024)  # the leaves of a checkpoint share a few specs
def encode_zarr3(spec: ArraySpec) -> bytes:
    """The document TensorStore would write for this array."""
    default = "/" if spec.chunk_key_encoding == "default" else "."
    separator = (
        "" if spec.dimension_separator == default else f'"configuration":{{"separator":"{spec.dimension_separator}"}},'
    )
    fill = 0 if spec.fill_value is None else spec.fill_value
    return (
        f'{{"chunk_grid":{{"configuration":{{"chunk_shape":{integers_text(spec.key_shape)}}},"name":"regular"}},'
        f'"chunk_key_encoding":{{{separator}"name":"{spec.chunk_key_encoding}"}},'
        f'"codecs":[{",".join(codec_texts(spec))}],"data_type":"{dtype_name(spec.dtype)}",'
        f'"fill_value":{_fill_text(spec.dtype, scalar_of(spec.dtype, fill), spec.fill_bits)},"node_type":"array",'
        f'"shape":{integers_text(spec.shape)},"zarr_format":3}}'
    ).encode("ascii")


def _fill_text(dtype: np.dtype[Any], value: Scalar, bits: bytes | None) -> str:
    if bits is None:
        return number_text(0.0 if isinstance(value, float) and value == _least(dtype) else value)
    if dtype.kind == "c":
        half = len(bits) // 2
        part = np.dtype(f"f{half}")
        return f"[{','.join(_fill_text(part, 0.0, bits[at : at + half]) for at in (0, half))}]"
    number, own_bits = _number_of_bits(dtype, bits)
    if own_bits is None:
        return number_text(number)
    return f'"0x{int.from_bytes(bits, sys.byteorder):0{2 * len(bits)}x}"'


# --- reading


def decode_zarr3(data: bytes | memoryview, *, path: str) -> ArraySpec:
    """The array that a document describes; ``path`` is its key, for messages.

    Types, codecs and extensions we have no code for are ``UnsupportedError``, everything else that is wrong is
    ``CorruptDataError``.
    """
    if len(data) > _MAX_DOCUMENT:
        raise CorruptDataError(f"{path} has {len(data)} bytes, more than any array's metadata", path=path)
    try:
        return (_decode if len(data) <= _CACHED_DOCUMENT else _decode.__wrapped__)(bytes(data))
    except OcdbtError as error:
        raise type(error)(f"Array metadata {path}: {error.message}", path=path) from error


def is_group(data: bytes) -> bool:
    """Whether a document describes a group of arrays, and not an array."""
    try:
        return decode_object(data, path="zarr.json", limit=_MAX_DOCUMENT).get("node_type") == "group"
    except CorruptDataError:
        return False


@lru_cache(maxsize=256)
def _decode(data: bytes) -> ArraySpec:
    document = decode_object(data, path="zarr.json", limit=_MAX_DOCUMENT)
    integer(member(document, "zarr_format"), "zarr_format", 3, 3)
    choice(document, "node_type", ("array",))
    shape = integers(document, "shape", 0, MAX_BYTES - 1)
    if len(shape) > MAX_RANK:
        raise CorruptDataError(f"shape has {len(shape)} axes; an array has at most {MAX_RANK}")
    _check_extensions(document, len(shape))
    _, grid = named(member(document, "chunk_grid"), "chunk_grid", ("regular",))
    only(grid, "chunk_grid", "chunk_shape")
    dtype = _data_type(member(document, "data_type"))
    fill, fill_bits = _fill_value(member(document, "fill_value"), dtype)
    encoding, keys = named(member(document, "chunk_key_encoding"), "chunk_key_encoding", ("default", "v2"))
    only(keys, "chunk_key_encoding", "separator")
    default_separator = "/" if encoding == "default" else "."
    key_shape = integers(grid, "chunk_shape", 1, MAX_BYTES - 1)
    if len(key_shape) != len(shape):
        raise CorruptDataError(f"chunk_shape {shown(key_shape)} has not {len(shape)} axes")
    codecs = decode_codecs(member(document, "codecs"), key_shape, dtype.itemsize)
    try:
        return ArraySpec(
            shape=shape,
            chunks=codecs.chunks,
            dtype=dtype,
            order=codecs.order,
            fill_value=fill,
            compressor=codecs.compressor,
            dimension_separator="/" if choice(keys, "separator", (".", "/"), default_separator) == "/" else ".",
            byte_order=codecs.byte_order,
            zarr_format=3,
            chunk_key_encoding="default" if encoding == "default" else "v2",
            checksums=codecs.checksums,
            sharding=codecs.sharding,
            fill_bits=fill_bits,
        )
    except InvalidArgumentError as error:
        raise CorruptDataError(error.message) from error


def _check_extensions(document: dict[str, Any], ndim: int) -> None:
    """What a document may say beyond what the array is."""
    for name in document.keys() - _MEMBERS:
        value = document[name]
        if not isinstance(value, dict) or value.get("must_understand") is not False:
            raise UnsupportedError(
                f"it has the extension {name[:50]!r}, which is not said to be one that may be ignored"
            )
    if not isinstance(document.get("attributes", {}), dict):
        raise CorruptDataError(f"attributes is not an object: {shown(document['attributes'])}")
    transformers = document.get("storage_transformers", [])
    if not isinstance(transformers, list):
        raise CorruptDataError(f"storage_transformers is not a list: {shown(transformers)}")
    if transformers:
        raise UnsupportedError(f"storage_transformers are supported by nobody: {shown(transformers)}")
    names = document.get("dimension_names", [None] * ndim)
    if not isinstance(names, list) or len(names) != ndim or not all(n is None or isinstance(n, str) for n in names):
        raise CorruptDataError(f"dimension_names are not {ndim} names or null: {shown(names)}")
    labels = [name for name in names if name]
    if len(set(labels)) < len(labels):
        raise CorruptDataError(f"dimension_names has one name twice: {shown(names)}")


def _data_type(value: object) -> np.dtype[Any]:
    if isinstance(value, dict) and value.keys() == {"name", "configuration"} and value["configuration"] == {}:
        value = value["name"]
    if isinstance(value, (dict, list)):
        raise UnsupportedError(f"data_type {shown(value)} is not supported")
    if not isinstance(value, str):
        raise CorruptDataError(f"data_type is not a string: {shown(value)}")
    return dtype_from_name(value[:50])  # no name is longer


# --- fill values


def _fill_value(value: object, dtype: np.dtype[Any]) -> tuple[Scalar, bytes | None]:
    """The value, and its bits where it is a not-a-number of its own."""
    if dtype.kind == "b":
        if not isinstance(value, bool):
            raise CorruptDataError(f"fill_value of {dtype} is not true or false: {shown(value)}")
        return value, None
    if dtype.name.startswith(("int", "uint")):
        return integer(value, "fill_value", -MAX_BYTES - 1, 2 * MAX_BYTES + 1), None
    if dtype.kind != "c":
        return _number(value, dtype)
    if not isinstance(value, list) or len(value) != 2:
        raise CorruptDataError(f"fill_value of {dtype} is not two numbers: {shown(value)}")
    part = np.dtype(f"f{dtype.itemsize // 2}")
    (real, real_bits), (imaginary, imaginary_bits) = (_number(half, part) for half in value)
    bits = None
    if real_bits is not None or imaginary_bits is not None:
        bits = (real_bits or part.type(real).tobytes()) + (imaginary_bits or part.type(imaginary).tobytes())
    return complex(real, imaginary), bits


def _number(value: object, dtype: np.dtype[Any]) -> tuple[float, bytes | None]:
    if isinstance(value, str):
        if value in _SPECIAL:
            return _SPECIAL[value], None
        digits = re.fullmatch(r"0x([0-9a-fA-F]+)", value[:40])
        if digits is not None and len(digits[1]) <= 2 * dtype.itemsize:
            return _number_of_bits(dtype, int(digits[1], 16).to_bytes(dtype.itemsize, sys.byteorder))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value) or math.copysign(_least(dtype), value), None
        except OverflowError:
            pass
    raise CorruptDataError(f"fill_value is not a number: {shown(value)}")


def _least(dtype: np.dtype[Any]) -> float:
    """What bits of zero are: zero, but in a type that has none, which spells it ``0.0`` all the same."""
    return float(np.zeros((), dtype))


def _number_of_bits(dtype: np.dtype[Any], bits: bytes) -> tuple[float, bytes | None]:
    """A number, and its bits where they do not follow from it."""
    mask = low_bits(dtype)
    if mask is not None:
        bits = bytes([bits[0] & mask])
    element = np.frombuffer(bits, dtype)
    with np.errstate(invalid="ignore"):
        number = float(element[0])
        number = math.nan if math.isnan(number) else number
        plain = np.array([number]).astype(dtype).tobytes()
    return number, None if plain == bits else bits
