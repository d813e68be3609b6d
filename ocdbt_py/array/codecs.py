"""Compression and checksums of chunks: a fixed list of methods, each decoded into exactly the size declared.

zstd, zlib, gzip and bz2 are read and written; blosc is read where ``numcodecs`` is installed, by its blosc module
directly. Nothing is looked up by a name from a file except in the table below: ``numcodecs`` by id would offer pickle.

A chunk is one frame (stream, member) and nothing after it, as TensorStore demands. Before memory is set aside for a
chunk, :func:`refuse_impossible` asks whether so few bytes can decode to so many; a ratio alone proves nothing,
since zeros compress 30,000 : 1, so for zstd it walks the block headers, which state or bound each block's content.
"""

from __future__ import annotations

import importlib
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from ocdbt_py.array.allocation import allocate
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, UnsupportedError
from ocdbt_py.format.checksum import crc32c

__all__ = [
    "CHECKSUM_BYTES",
    "Compressor",
    "Decoder",
    "Encoder",
    "checked",
    "compressor_from_json",
    "compressor_to_json",
    "refuse_impossible",
    "refuse_too_short",
    "with_checksum",
]

Buffer: TypeAlias = bytes | bytearray | memoryview

CHECKSUM_BYTES: Final = 4
"""What the codec ``crc32c`` of zarr v3 adds: the CRC-32C of the bytes before, little endian."""

LARGE: Final = 24 << 20
"""Bytes of a chunk that is not held whole, unless somebody says otherwise."""

# Lowest and highest level, as TensorStore takes them.
_LEVELS: Final = {"zstd": (-131072, 22), "zlib": (0, 9), "gzip": (0, 9), "bz2": (1, 9), "blosc": (0, 9)}
_BLOSC_MEMBERS: Final = {"clevel": 5, "cname": "lz4", "shuffle": -1, "blocksize": 0}
_BLOSC_INNER: Final = ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
_BLOSC_SNAPPY = 2  # among the high bits of the flags, the third byte

_ZSTD_MAGIC = 0xFD2FB528
_ZSTD_BLOCK = 128 << 10  # bytes a block may hold at most
_RUN = 1  # the kind of block that repeats one byte; 0 is verbatim, 2 compressed
_ZLIB_WINDOW = {"zlib": 15, "gzip": 31}  # zlib's wbits
# Decoded bytes per encoded byte, at most: deflate's is exact, bzip2's is a block of 900 kB after run-length coding
# (259 : 5) in no fewer than 32 bytes.
_HIGHEST_RATIO: Final = {"zlib": 1032, "gzip": 1032, "bz2": 900_000 // 5 * 259 // 32}


@dataclass(frozen=True, slots=True)
class Compressor:
    """A method and its level (1 is Orbax's for zstd). ``checksum``, in each frame, belongs to zstd alone, what comes
    before it to blosc."""

    id: str = "zstd"
    level: int = 1
    cname: str = "lz4"
    shuffle: int = -1
    blocksize: int = 0
    checksum: bool = False

    def __post_init__(self) -> None:
        if self.id not in _LEVELS:
            raise UnsupportedError(f"Compressor {self.id[:50]!r} is not supported. Supported are: {', '.join(_LEVELS)}")
        low, high = _LEVELS[self.id]
        if not low <= self.level <= high:
            raise InvalidArgumentError(f"Level {self.level} of {self.id} is not between {low} and {high}")
        if self.cname not in _BLOSC_INNER or not -1 <= self.shuffle <= 2 or self.blocksize < 0:
            raise InvalidArgumentError(f"Not parameters of blosc: {self.cname!r}, {self.shuffle}, {self.blocksize}")
        if self.checksum and self.id != "zstd":
            raise InvalidArgumentError(f"{self.id} has no checksum to choose")


def compressor_from_json(members: dict[str, Any]) -> Compressor:
    """A ``compressor`` object of a ``.zarray``; members left out have TensorStore's defaults."""
    name = members.get("id")
    if not isinstance(name, str):
        raise CorruptDataError(f"compressor has no id: {str(members)[:60]}")
    defaults = _BLOSC_MEMBERS if name == "blosc" else {"level": 1}
    # numcodecs also writes "checksum" for zstd; the frame says it anyway.
    unknown = members.keys() - {"id", *defaults, "checksum" if name == "zstd" else "id"}
    if name in _LEVELS and unknown:
        raise CorruptDataError(f"compressor {name} has unknown members: {', '.join(sorted(unknown))[:100]}")
    values = {**defaults, **members}
    for member, default in defaults.items():
        value = values[member]
        if isinstance(value, float) and value.is_integer():
            value = values[member] = int(value)
        if type(value) is not type(default):
            raise CorruptDataError(f"{member} of compressor {name} is {str(value)[:60]!r}")
    try:
        if name == "blosc":
            return Compressor(name, values["clevel"], values["cname"], values["shuffle"], values["blocksize"])
        return Compressor(name, values["level"])
    except InvalidArgumentError as error:
        raise CorruptDataError(error.message) from error


def compressor_to_json(compressor: Compressor) -> str:
    """The ``compressor`` object, compact, keys sorted."""
    if compressor.id != "blosc":
        return f'{{"id":"{compressor.id}","level":{compressor.level}}}'
    return (
        f'{{"blocksize":{compressor.blocksize},"clevel":{compressor.level},"cname":"{compressor.cname}",'
        f'"id":"blosc","shuffle":{compressor.shuffle}}}'
    )


def refuse_impossible(compressor: Compressor, data: Buffer, size: int) -> None:
    """``ValueError`` if ``data`` cannot decode to ``size`` bytes, judged without decoding and without allocating."""
    if compressor.id == "zstd":
        highest = _zstd_highest(data)
        if size > highest:
            raise ValueError(f"its zstd frame holds at most {highest} bytes, not {size}")
    elif compressor.id == "blosc":
        if len(data) < 16:
            raise ValueError("it is too short for blosc")
        decoded, encoded = struct.unpack_from("<I4xI", data, 4)
        if (decoded, encoded) != (size, len(data)):
            raise ValueError(f"its blosc header says {encoded} bytes decode to {decoded}, not {len(data)} to {size}")
    elif size > _HIGHEST_RATIO[compressor.id] * len(data):
        raise ValueError(f"{len(data)} bytes of {compressor.id} cannot hold {size}")


def refuse_too_short(compressor: Compressor, length: int, size: int) -> None:
    """As :func:`refuse_impossible` where only the ``length`` of the data is known: a coarse bound."""
    # A block of zstd takes four bytes or more.
    highest = length // 4 * _ZSTD_BLOCK if compressor.id == "zstd" else length * _HIGHEST_RATIO[compressor.id]
    if size > highest:
        raise ValueError(f"{length} bytes of {compressor.id} cannot hold {size}")


class Decoder:
    """Decodes one chunk after the other. Keeps a context and memory between them, so every thread needs its own."""

    def __init__(self) -> None:
        self._zstd: Any = None
        self._room = memoryview(b"")

    def room(self, name: str, size: int) -> memoryview:
        """Memory to decode a chunk of this array into, until the next call."""
        if len(self._room) < size:
            self._room = allocate(name, (size,), np.dtype(np.uint8)).data
        return self._room[:size]

    def decode_into(self, compressor: Compressor, data: Buffer, target: memoryview) -> None:
        """Fill ``target`` (contiguous, format ``B``) with the content of ``data``; any other size is ``ValueError``.

        ``data`` must have passed :func:`refuse_impossible`. After an error ``target`` holds anything.
        """
        if compressor.id == "zstd":
            if self._zstd is None:
                self._zstd = _new_decompressor()
            _zstd_into(self._zstd, data, target)
        elif compressor.id == "blosc":
            _blosc_into(data, target)
        else:
            content = (
                _deflated(compressor.id, data, len(target)) if compressor.id != "bz2" else _bzipped(data, len(target))
            )
            if len(content) != len(target):
                raise ValueError(f"its content has {_more_or(content, target)} bytes, not {len(target)}")
            target[:] = content


class Encoder:
    """Encodes one chunk after the other. Keeps contexts between them, so every thread needs its own.

    ``large``: chunks of more bytes are better encoded in pieces.
    """

    def __init__(self, large: int = LARGE) -> None:
        self.large = large
        self._zstd: dict[Compressor, Any] = {}

    def encode(self, compressor: Compressor, data: Buffer) -> bytes:
        """``data`` compressed: one frame with its content size, as Orbax's, where it is zstd."""
        level = compressor.level
        if compressor.id == "zstd":
            if compressor not in self._zstd:
                self._zstd[compressor] = _new_compressor(level, compressor.checksum)
            return _zstd_frame(self._zstd[compressor], data)
        if compressor.id == "bz2":
            import bz2

            return bz2.compress(data, level)
        if compressor.id in _ZLIB_WINDOW:
            stream = zlib.compressobj(level, wbits=_ZLIB_WINDOW[compressor.id])
            return stream.compress(data) + stream.flush()
        raise UnsupportedError(f"{compressor.id} is only read. Write with zstd, zlib, gzip or bz2")

    def encode_pieces(self, compressor: Compressor, pieces: Iterable[Buffer], size: int) -> Iterator[bytes]:
        """As :meth:`encode`, for ``size`` bytes of data that come in pieces."""
        level = compressor.level
        if compressor.id == "zstd":
            compress, flush = _zstd_stream(level, compressor.checksum, size)
        elif compressor.id == "bz2":
            import bz2

            machine = bz2.BZ2Compressor(level)
            compress, flush = machine.compress, machine.flush
        elif compressor.id in _ZLIB_WINDOW:
            stream = zlib.compressobj(level, wbits=_ZLIB_WINDOW[compressor.id])
            compress, flush = stream.compress, stream.flush
        else:
            raise UnsupportedError(f"{compressor.id} is only read. Write with zstd, zlib, gzip or bz2")
        for piece in pieces:
            yield compress(piece)
        yield flush()


def with_checksum(data: Buffer) -> bytes:
    """``data`` and its CRC-32C."""
    return b"".join((data, crc32c(data).to_bytes(CHECKSUM_BYTES, "little")))


def checked(data: Buffer) -> memoryview:
    """``data`` without the CRC-32C at its end, which is ``ValueError`` if it is another."""
    view = memoryview(data)
    content, stored = view[:-CHECKSUM_BYTES], int.from_bytes(view[-CHECKSUM_BYTES:], "little")
    if len(view) < CHECKSUM_BYTES:
        raise ValueError(f"{len(view)} bytes are no room for a checksum")
    computed = crc32c(content)
    if computed != stored:
        raise ValueError(f"the stored CRC-32C is {stored:08x}, of the bytes it is {computed:08x}")
    return content


def _more_or(content: bytes, target: memoryview) -> str:
    return str(len(content)) if len(content) < len(target) else "more"


def _deflated(name: str, data: Buffer, size: int) -> bytes:
    """At most ``size + 1`` bytes of content."""
    stream = zlib.decompressobj(_ZLIB_WINDOW[name])
    try:
        content = stream.decompress(data, size + 1)
        if len(content) == size and not stream.eof:
            content += stream.decompress(stream.unconsumed_tail, 1)  # reads the checksum
    except zlib.error as error:
        raise ValueError(f"damaged {name} stream ({error})") from error
    _demand_end(len(content) <= size, stream.eof, stream.unused_data)
    return content


def _bzipped(data: Buffer, size: int) -> bytes:
    """At most ``size + 1`` bytes of content."""
    import bz2

    stream = bz2.BZ2Decompressor()
    try:
        content = stream.decompress(data, size + 1)
        while len(content) <= size and not stream.eof and not stream.needs_input:
            content += stream.decompress(b"", size + 1 - len(content))
    except OSError as error:
        raise ValueError(f"damaged bz2 stream ({error})") from error
    _demand_end(len(content) <= size, stream.eof, stream.unused_data)
    return content


def _demand_end(all_read: bool, ended: bool, rest: bytes) -> None:
    if all_read and not ended:
        raise ValueError("it is cut off")
    if rest:
        raise ValueError(f"{len(rest)} bytes follow its end")


def _blosc_into(data: Buffer, target: memoryview) -> None:
    try:
        blosc = importlib.import_module("numcodecs.blosc")
    except ImportError as error:
        raise UnsupportedError(
            "Chunks compressed with blosc need the package numcodecs: pip install numcodecs"
        ) from error
    if data[2] >> 5 == _BLOSC_SNAPPY and "snappy" not in blosc.list_compressors():
        raise UnsupportedError("Chunks compressed with blosc's snappy: this build of numcodecs cannot read them")
    try:
        blosc.decompress(data, target)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"damaged blosc chunk ({error})") from error


def _zstd_highest(data: Buffer) -> int:
    """Bytes that the one frame in ``data`` can hold, from its block headers (RFC 8878, sections 3.1.1.1-2)."""
    end = len(data)
    if end < 6 or int.from_bytes(data[:4], "little") != _ZSTD_MAGIC:
        raise ValueError("it is not a zstd frame")
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    size_width = (single_segment, 2, 4, 8)[descriptor >> 6]
    at = 6 - single_segment + (0, 1, 2, 4)[descriptor & 3]
    stated = int.from_bytes(data[at : at + size_width], "little") + (256 if size_width == 2 else 0)
    at += size_width
    highest = last = 0
    while not last:
        if at + 3 > end:
            raise ValueError("its zstd frame is cut off")
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += 3 + (1 if kind == _RUN else size)
        highest += _ZSTD_BLOCK if kind > _RUN else min(size, _ZSTD_BLOCK)
    at += 4 if descriptor & 4 else 0  # checksum
    if at != end:
        raise ValueError("its zstd frame is cut off" if at > end else f"{end - at} bytes follow its zstd frame")
    return min(stated, highest) if size_width else highest


# The one difference between the standard library's zstd and the package for older Pythons.
if sys.version_info >= (3, 14):
    from compression import zstd as _zstd

    def _new_compressor(level: int, checksum: bool) -> Any:
        parameter = _zstd.CompressionParameter
        return _zstd.ZstdCompressor(
            options={parameter.compression_level: level, parameter.checksum_flag: int(checksum)}
        )

    def _zstd_stream(level: int, checksum: bool, size: int) -> tuple[Callable[[Buffer], bytes], Callable[[], bytes]]:
        compressor = _new_compressor(level, checksum)
        compressor.set_pledged_input_size(size)
        return compressor.compress, compressor.flush

    def _zstd_frame(compressor: Any, data: Buffer) -> bytes:
        compressor.set_pledged_input_size(len(data))
        frame: bytes = compressor.compress(data, compressor.FLUSH_FRAME)
        return frame

    def _new_decompressor() -> Any:
        return None  # an object decodes one frame

    def _zstd_into(decompressor: Any, data: Buffer, target: memoryview) -> None:
        stream = _zstd.ZstdDecompressor()
        try:
            content = stream.decompress(data, len(target) + 1)
        except _zstd.ZstdError as error:
            raise ValueError(f"damaged zstd frame ({error})") from error
        if len(content) != len(target):
            raise ValueError(f"its content has {_more_or(content, target)} bytes, not {len(target)}")
        target[:] = content

else:
    import zstandard as _zstd

    def _new_compressor(level: int, checksum: bool) -> _zstd.ZstdCompressor:
        return _zstd.ZstdCompressor(level=level, write_checksum=checksum)

    def _zstd_stream(level: int, checksum: bool, size: int) -> tuple[Callable[[Buffer], bytes], Callable[[], bytes]]:
        stream = _new_compressor(level, checksum).compressobj(size=size)
        return stream.compress, stream.flush

    def _zstd_frame(compressor: _zstd.ZstdCompressor, data: Buffer) -> bytes:
        return compressor.compress(data)

    def _new_decompressor() -> _zstd.ZstdDecompressor:
        return _zstd.ZstdDecompressor()

    def _zstd_into(decompressor: _zstd.ZstdDecompressor, data: Buffer, target: memoryview) -> None:
        try:
            with decompressor.stream_reader(data) as reader:
                filled = reader.readinto(target)
                extra = reader.read(1)
        except _zstd.ZstdError as error:
            raise ValueError(f"damaged zstd frame ({error})") from error
        if filled < len(target) or extra:
            raise ValueError(f"its content has {'more' if extra else filled} bytes, not {len(target)}")
