"""Chunks that are too large to be held: fetched in parts, decoded as they come, and placed where they belong.

Orbax's chunk often is the whole array. Decoded, it lands in the array as it is, or, where elements have to be picked or
turned around, passes through a window, a slab of the chunk at a time. zstd, zlib, gzip, bz2 and plain bytes stream;
blosc, and chunks with a checksum of their own around or inside, are for those who can hold them.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from ocdbt_py.array.codecs import Compressor
from ocdbt_py.array.values import Request, Values

if sys.version_info >= (3, 14):
    from compression import zstd as _zstd
else:
    import zstandard as _zstd

__all__ = ["Slab", "Source", "Stream", "can_stream", "open_stream", "slabs"]

_FED_AT_ONCE = 64 << 10  # encoded bytes
_TAKEN_AT_ONCE = 1 << 20  # decoded bytes, where they cannot be decoded in place
_STREAMED = ("zstd", "zlib", "gzip", "bz2")
_ZLIB_WINDOW = {"zlib": 15, "gzip": 31}


def can_stream(compressor: Compressor | None, checksums: tuple[bool, bool]) -> bool:
    """Whether chunks of this kind can be decoded without being held."""
    return not any(checksums) and (compressor is None or compressor.id in _STREAMED)


class Source:
    """The bytes of a request, from front to back, fetched ``at_once`` at a time. The last byte comes alone: whoever
    never asks for it had enough before."""

    def __init__(self, values: Values, request: Request, size: int, at_once: int) -> None:
        self._values = values
        self._key, self._at = (request[0], request[1]) if isinstance(request, tuple) else (request, 0)
        self._stop = self._at + size
        self._buffer = memoryview(bytearray(min(at_once, size)))
        self._held = self._buffer[:0]

    @property
    def left(self) -> int:
        """Bytes that nobody has asked for."""
        return self._stop - self._at + len(self._held)

    def read(self, size: int = -1) -> memoryview:
        """Some of the next bytes; none at the end."""
        if not self._held:
            buffer = self._buffer[: self._stop - self._at]
            self.readinto(buffer)
            self._held = buffer
        size = len(self._held) if size < 0 else min(size, len(self._held))
        if size > 1 and size == self.left:
            size -= 1
        data, self._held = self._held[:size], self._held[size:]
        return data

    def readinto(self, buffer: memoryview) -> None:
        """The next bytes, past what :meth:`read` holds, straight to where they belong."""
        if len(buffer):
            request = (self._key, self._at, self._at + len(buffer))
            self._values.read_many_into([request], lambda sizes: [buffer])
            self._at += len(buffer)


class Stream(Protocol):
    """What a chunk decodes to, from front to back."""

    def fill(self, buffer: memoryview) -> None:
        """The next bytes; ``ValueError`` if there are fewer, or they are damaged."""

    def end(self) -> None:
        """There is nothing more; else ``ValueError``."""


def open_stream(compressor: Compressor | None, source: Source) -> Stream:
    """The content of a chunk, one frame (stream, member) and nothing after it."""
    if compressor is None:
        return _Plain(source)
    if compressor.id == "zstd":
        return _Zstd(source)
    return _Pulled(compressor.id, source)


class _Plain:
    def __init__(self, source: Source) -> None:
        self._source = source

    def fill(self, buffer: memoryview) -> None:
        self._source.readinto(buffer)

    def end(self) -> None:
        if self._source.left:
            raise ValueError(f"{self._source.left} bytes too many")


class _Pulled:
    """Decompressors that give a limited number of bytes for what they are fed."""

    def __init__(self, name: str, source: Source) -> None:
        self._name = name
        self._source = source
        self._decompress, self._has_ended = _puller(name)

    def _pull(self, limit: int) -> bytes:
        while not self._has_ended():
            try:
                data = self._decompress(self._source, limit)
            except (OSError, zlib.error) as error:
                raise ValueError(f"damaged {self._name} stream ({error})") from error
            if data:
                return data
            if not self._source.left and not self._has_ended():
                raise ValueError("it is cut off")
        return b""

    def fill(self, buffer: memoryview) -> None:
        filled = 0
        while filled < len(buffer):
            data = self._pull(min(len(buffer) - filled, _TAKEN_AT_ONCE))
            if not data:
                raise ValueError(f"its content ends {len(buffer) - filled} bytes early")
            buffer[filled : filled + len(data)] = data
            filled += len(data)

    def end(self) -> None:
        if self._pull(1):
            raise ValueError("its content has more bytes than the array's metadata says")
        if self._source.left:
            raise ValueError(f"{self._source.left} bytes follow its end")


def _puller(name: str) -> tuple[Callable[[Source, int], bytes], Callable[[], bool]]:
    """How to get some bytes, and whether the end was seen."""
    if name in _ZLIB_WINDOW:
        inflate = zlib.decompressobj(_ZLIB_WINDOW[name])

        def inflated(source: Source, limit: int) -> bytes:
            return inflate.decompress(inflate.unconsumed_tail or source.read(_FED_AT_ONCE), limit)

        return inflated, lambda: inflate.eof
    import bz2

    machine: Any = bz2.BZ2Decompressor()

    def decompressed(source: Source, limit: int) -> bytes:
        data: bytes = machine.decompress(source.read(_FED_AT_ONCE) if machine.needs_input else b"", limit)
        return data

    return decompressed, lambda: machine.eof


if sys.version_info >= (3, 14):

    class _Zstd(_Pulled):
        def __init__(self, source: Source) -> None:
            self._name = "zstd"
            self._source = source
            machine = _zstd.ZstdDecompressor()

            def decompressed(source: Source, limit: int) -> bytes:
                try:
                    return machine.decompress(source.read(_FED_AT_ONCE) if machine.needs_input else b"", limit)
                except _zstd.ZstdError as error:
                    raise OSError(str(error)) from error

            self._decompress, self._has_ended = decompressed, lambda: machine.eof

else:

    class _Zstd:
        def __init__(self, source: Source) -> None:
            self._source = source
            file: Any = source  # as far as is needed
            self._reader = _zstd.ZstdDecompressor().stream_reader(
                file, read_size=_FED_AT_ONCE, read_across_frames=False
            )

        def fill(self, buffer: memoryview) -> None:
            filled = 0
            while filled < len(buffer):
                try:
                    count = self._reader.readinto(buffer[filled:])
                except _zstd.ZstdError as error:
                    raise ValueError(f"damaged zstd frame ({error})") from error
                if not count:
                    raise ValueError(f"its content ends {len(buffer) - filled} bytes early")
                filled += count

        def end(self) -> None:
            try:
                extra = self._reader.read(1)
            except _zstd.ZstdError as error:
                raise ValueError(f"damaged zstd frame ({error})") from error
            if extra:
                raise ValueError("its content has more bytes than the array's metadata says")
            if self._source.left:
                raise ValueError(f"{self._source.left} bytes follow its zstd frame")


class Slab(NamedTuple):
    """Elements of a chunk that lie within ``extent`` bytes from ``offset``, and where they go."""

    offset: int
    extent: int
    shape: tuple[int, ...]
    target: tuple[slice, ...]


def slabs(offset: int, shape: Sequence[int], strides: Sequence[int], itemsize: int, limit: int) -> Iterator[Slab]:
    """Elements of a chunk, ``strides`` bytes apart, in slabs of at most ``limit`` bytes, in the order of their bytes.

    >>> [slab.offset for slab in slabs(4, (3, 2), (100, 8), 8, 120)]
    [4, 204]
    """
    yield from _slabs(offset, tuple(shape), strides, itemsize, limit, tuple(slice(0, size) for size in shape))


def _slabs(
    offset: int,
    shape: tuple[int, ...],
    strides: Sequence[int],
    itemsize: int,
    limit: int,
    target: tuple[slice, ...],
) -> Iterator[Slab]:
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + itemsize
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if extent <= limit or not axes:
        yield Slab(offset, extent, shape, target)
        return
    axis = max(axes, key=strides.__getitem__)
    stride = strides[axis]
    inside = extent - (shape[axis] - 1) * stride
    count = max(1, (limit - inside) // stride + 1)
    for start in range(0, shape[axis], count):
        size = min(count, shape[axis] - start)
        first = target[axis].start + start
        yield from _slabs(
            offset + start * stride,
            (*shape[:axis], size, *shape[axis + 1 :]),
            strides,
            itemsize,
            limit,
            (*target[:axis], slice(first, first + size), *target[axis + 1 :]),
        )
