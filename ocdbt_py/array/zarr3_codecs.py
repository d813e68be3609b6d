"""The codecs of a zarr v3 array: the list in its document, and what that says of a chunk.

All ``transpose`` are one order of the axes, ``bytes`` is the byte order, ``sharding_indexed`` how chunks lie together,
with codecs of their own; the rest are a compressor and checksums. The names are the ones in the tables below, and
nothing is looked up by a name from a file anywhere else.

Legal, but written by nobody, and refused as unsupported: two compressors one after the other, two checksums side by
side, shards within shards, an index in another order than its shard's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.documents import choice, integer, integers, integers_text, member, named, number_text, only, shown
from ocdbt_py.array.dtypes import ByteOrder
from ocdbt_py.array.sharding import AxisOrder, Sharding, axes_of
from ocdbt_py.array.spec import MAX_BYTES, ArraySpec
from ocdbt_py.errors import CorruptDataError, UnsupportedError

__all__ = ["Codecs", "codec_texts", "decode_codecs"]

_ARRAY_TO_BYTES: Final = ("bytes", "sharding_indexed")
_COMPRESSORS: Final = ("zstd", "gzip", "blosc")
_CODECS: Final = ("transpose", *_ARRAY_TO_BYTES, *_COMPRESSORS, "crc32c")
_SHUFFLES: Final = ("noshuffle", "shuffle", "bitshuffle")
_BLOSC_METHODS: Final = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_HIGHEST_LEVEL: Final = {"zstd": (-131072, 22), "gzip": (0, 9), "blosc": (0, 9)}
_ENDIAN: Final[dict[str, ByteOrder]] = {"little": "<", "big": ">"}
_CHECKSUM_TEXT: Final = ('{"name":"crc32c"}',)


def codec_texts(spec: ArraySpec) -> list[str]:
    sharding = spec.sharding
    if sharding is None:
        return _chunk_codec_texts(spec, spec.axes)
    outer = axes_of(sharding.order, spec.ndim)
    inner = tuple(outer.index(axis) for axis in spec.axes)
    index = [_bytes_text(8, sharding.index_byte_order), *_CHECKSUM_TEXT[: sharding.index_checksum]]
    at_start = ',"index_location":"start"' if sharding.index_at_start else ""
    return [
        *_transpose_text(outer),
        f'{{"configuration":{{"chunk_shape":{integers_text(tuple(spec.chunks[axis] for axis in outer))},'
        f'"codecs":[{",".join(_chunk_codec_texts(spec, inner))}],"index_codecs":[{",".join(index)}]{at_start}}},'
        '"name":"sharding_indexed"}',
    ]


def _chunk_codec_texts(spec: ArraySpec, axes: tuple[int, ...]) -> list[str]:
    inside, outside = spec.checksums
    texts = [*_transpose_text(axes), _bytes_text(spec.dtype.itemsize, spec.byte_order), *_CHECKSUM_TEXT[:inside]]
    if spec.compressor is not None:
        texts.append(_compressor_text(spec.compressor, spec.dtype.itemsize))
    return [*texts, *_CHECKSUM_TEXT[:outside]]


def _transpose_text(axes: tuple[int, ...]) -> list[str]:
    if axes == tuple(range(len(axes))):
        return []
    return [f'{{"configuration":{{"order":{integers_text(axes)}}},"name":"transpose"}}']


def _bytes_text(itemsize: int, byte_order: ByteOrder) -> str:
    if itemsize == 1:
        return '{"name":"bytes"}'
    return f'{{"configuration":{{"endian":"{"little" if byte_order == "<" else "big"}"}},"name":"bytes"}}'


def _compressor_text(compressor: Compressor, itemsize: int) -> str:
    level = compressor.level
    if compressor.id == "zstd":
        configuration = f'"checksum":{number_text(compressor.checksum)},"level":{level}'
    elif compressor.id == "gzip":
        configuration = f'"level":{level}'
    elif compressor.id == "blosc":
        # -1, zarr v2's "as suits the elements", is bits for bytes and bytes for the rest
        shuffle = (1 if itemsize > 1 else 2) if compressor.shuffle < 0 else compressor.shuffle
        configuration = (
            f'"blocksize":{compressor.blocksize},"clevel":{level},"cname":"{compressor.cname}",'
            f'"shuffle":"{_SHUFFLES[shuffle]}","typesize":{itemsize}'
        )
    else:
        raise UnsupportedError(f"zarr v3 has no codec {compressor.id}. It has: {', '.join(_COMPRESSORS)}")
    return f'{{"configuration":{{{configuration}}},"name":"{compressor.id}"}}'


class Codecs(NamedTuple):
    """What the codecs say of an array, in the words of :class:`ArraySpec`."""

    chunks: tuple[int, ...]
    order: AxisOrder
    byte_order: ByteOrder
    compressor: Compressor | None
    checksums: tuple[bool, bool]
    sharding: Sharding | None = None


def decode_codecs(value: object, key_shape: tuple[int, ...], itemsize: int) -> Codecs:
    """``codecs`` of a document whose ``chunk_shape`` is ``key_shape``, for elements of ``itemsize`` bytes."""
    chain = _chain(value, len(key_shape), itemsize)
    if chain.shards is not None:
        return _sharded(chain, chain.shards, key_shape, itemsize)
    return Codecs(key_shape, _order(chain.axes), chain.byte_order, chain.compressor, chain.checksums)


@dataclass(frozen=True, slots=True)
class _Chain:
    """What a list of codecs does to an array."""

    axes: tuple[int, ...]
    byte_order: ByteOrder = "<"
    compressor: Compressor | None = None
    checksums: tuple[bool, bool] = (False, False)
    shards: dict[str, Any] | None = None
    """The configuration of ``sharding_indexed``, where that takes the place of ``bytes``."""


def _chain(value: object, ndim: int, itemsize: int) -> _Chain:
    """``codecs``: any number of transposes, what makes bytes of elements, what makes bytes of bytes."""
    if not isinstance(value, list):
        raise CorruptDataError(f"codecs is not a list: {shown(value)}")
    codecs = [named(codec, "codec", _CODECS) for codec in value]
    makers = [at for at, (name, _) in enumerate(codecs) if name in _ARRAY_TO_BYTES]
    if len(makers) != 1:
        raise CorruptDataError("codecs do not have exactly one of bytes and sharding_indexed")
    before, (maker, configuration), after = codecs[: makers[0]], codecs[makers[0]], codecs[makers[0] + 1 :]
    axes = tuple(range(ndim))
    for name, transpose in before:
        if name != "transpose":
            raise CorruptDataError(f"codec {name} comes before there are bytes")
        axes = tuple(axes[axis] for axis in _permutation(transpose, ndim))
    if maker == "sharding_indexed":
        if after:
            raise CorruptDataError(
                f"codec {after[0][0]} follows sharding_indexed, so that no part of a shard can be read"
            )
        return _Chain(axes, shards=configuration)
    return _Chain(axes, _byte_order(configuration, itemsize), *_bytes_to_bytes(after, itemsize))


def _permutation(configuration: dict[str, Any], ndim: int) -> tuple[int, ...]:
    only(configuration, "codec transpose", "order")
    order = member(configuration, "order")
    if order in ("C", "F"):
        return axes_of(order, ndim)
    axes = integers(configuration, "order", 0, max(ndim - 1, 0))
    if sorted(axes) != list(range(ndim)):
        raise CorruptDataError(f"order of codec transpose is not one of {ndim} axes: {shown(order)}")
    return axes


def _byte_order(configuration: dict[str, Any], itemsize: int) -> ByteOrder:
    only(configuration, "codec bytes", "endian")
    if "endian" not in configuration and itemsize == 1:
        return "<"
    byte_order = _ENDIAN[choice(configuration, "endian", ("little", "big"))]
    return byte_order if itemsize > 1 else "<"


def _bytes_to_bytes(
    codecs: list[tuple[str, dict[str, Any]]], itemsize: int
) -> tuple[Compressor | None, tuple[bool, bool]]:
    compressor = None
    checksums = [0, 0]  # before and after the compressor
    for name, configuration in codecs:
        if name == "crc32c":
            only(configuration, "codec crc32c")
            checksums[compressor is not None] += 1
        elif name not in _COMPRESSORS:
            raise CorruptDataError(f"codec {name} comes when there are bytes already")
        elif compressor is not None:
            raise UnsupportedError(f"{compressor.id} followed by {name} is not supported; one compressor is")
        else:
            compressor = _compressor(name, configuration)
    if max(checksums) > 1:
        raise UnsupportedError("crc32c after crc32c is not supported; one says as much")
    inside, outside = map(bool, checksums)
    return compressor, (inside, outside) if compressor is not None else (False, inside)


def _compressor(name: str, configuration: dict[str, Any]) -> Compressor:
    what = f"codec {name}"
    level = "clevel" if name == "blosc" else "level"
    lowest, highest = _HIGHEST_LEVEL[name]
    value = integer(member(configuration, level), level, lowest, highest)
    if name == "gzip":
        only(configuration, what, level)
        return Compressor(name, value)
    if name == "zstd":
        only(configuration, what, level, "checksum")
        checksum = configuration.get("checksum", False)
        if not isinstance(checksum, bool):
            raise CorruptDataError(f"checksum of codec zstd is not true or false: {shown(checksum)}")
        return Compressor(name, value, checksum=checksum)
    only(configuration, what, level, "cname", "shuffle", "typesize", "blocksize")
    shuffle = _SHUFFLES.index(choice(configuration, "shuffle", _SHUFFLES))
    if shuffle or "typesize" in configuration:
        integer(member(configuration, "typesize"), "typesize", 1, 255)
    blocksize = integer(member(configuration, "blocksize"), "blocksize", 0, MAX_BYTES)
    return Compressor(name, value, choice(configuration, "cname", _BLOSC_METHODS), shuffle, blocksize)


def _sharded(outer: _Chain, configuration: dict[str, Any], key_shape: tuple[int, ...], itemsize: int) -> Codecs:
    ndim = len(key_shape)
    only(configuration, "codec sharding_indexed", "chunk_shape", "codecs", "index_codecs", "index_location")
    turned = integers(configuration, "chunk_shape", 1, MAX_BYTES - 1)
    if len(turned) != ndim:
        raise CorruptDataError(f"chunk_shape {shown(turned)} of sharding_indexed has not {ndim} axes")
    chunks = [0] * ndim
    for axis, size in zip(outer.axes, turned, strict=True):
        chunks[axis] = size
    inner = _chain(member(configuration, "codecs"), ndim, itemsize)
    index = _chain(member(configuration, "index_codecs"), ndim + 1, 8)
    if inner.shards is not None or index.shards is not None:
        raise UnsupportedError("shards within shards are not supported")
    if index.compressor is not None:
        raise CorruptDataError("index_codecs of sharding_indexed compress, so that its size is not known")
    if index.axes != tuple(range(ndim + 1)):
        raise UnsupportedError("transpose is not supported among index_codecs")
    sharding = Sharding(
        key_shape,
        choice(configuration, "index_location", ("start", "end"), "end") == "start",
        index.byte_order,
        index.checksums[1],
        _order(outer.axes),
    )
    axes = tuple(outer.axes[axis] for axis in inner.axes)
    return Codecs(tuple(chunks), _order(axes), inner.byte_order, inner.compressor, inner.checksums, sharding)


def _order(axes: tuple[int, ...]) -> AxisOrder:
    ndim = len(axes)
    return "C" if axes == axes_of("C", ndim) else "F" if axes == axes_of("F", ndim) else axes
