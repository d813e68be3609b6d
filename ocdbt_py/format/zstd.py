"""The zstd frames inside envelopes: the same bytes TensorStore writes, and a reader that cannot be flooded.

The reference compresses through a streaming writer with a buffer of 4096 bytes (format document, "zstd on writing"),
so a short body is one call, which records the content size, and a longer one is a stream of unknown size. The bytes
also depend on the release of libzstd: 1.5.7 wrote what the conformance tests compare with.

This is the one place that chooses the library: the standard one from Python 3.14, ``zstandard`` before. Contexts must
not be shared between threads: each thread keeps one of the default level, and one to read with, until it has held much;
others are made anew for each call.
"""

from __future__ import annotations

import io
import sys
import threading

__all__ = ["LIBRARY_VERSION", "MAX_LEVEL", "MIN_LEVEL", "compress", "decompress"]

MIN_LEVEL = -131072
MAX_LEVEL = 22

_ONE_CALL = 4096  # bytes; the reference's buffer
_MAGIC = b"\x28\xb5\x2f\xfd"
# 128 MiB, what level 22 needs. The reference reads larger windows (no level makes them); a few bytes could then ask for
# 2 GiB of memory.
_MAX_WINDOW_LOG = 27
_GROWTH_LOG2 = 15  # a block of four bytes may stand for 128 KiB
_BUFFER = 32768  # bytes of content; larger ones are asked of the system each time, and given back
_PIECES = (64, 32768)  # bytes; smallest and largest pieces fed to a decompressor, which gives all they stand for

if sys.version_info >= (3, 14):
    from compression import zstd as _zstd

    LIBRARY_VERSION: tuple[int, int, int] = _zstd.zstd_version_info
    _Error = _zstd.ZstdError
    _OPTIONS = {_zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}

    def _one_call(body: bytes, level: int) -> bytes:
        return _zstd.compress(body, level)

    def _stream(body: bytes, level: int) -> bytes:
        compressor = _zstd.ZstdCompressor(level)
        return compressor.compress(body) + compressor.flush()

    def _decompressor() -> _zstd.ZstdDecompressor:
        return _zstd.ZstdDecompressor(options=_OPTIONS)

    def _forget() -> None:
        pass

else:
    import zstandard as _zstd

    LIBRARY_VERSION: tuple[int, int, int] = _zstd.ZSTD_VERSION
    _Error = _zstd.ZstdError

    _kept = threading.local()

    def _context(level: int) -> _zstd.ZstdCompressor:
        # To set one up takes several times as long as to compress a small node; the default's take little memory.
        if level:
            return _zstd.ZstdCompressor(level=level)
        if not hasattr(_kept, "context"):
            _kept.context = _zstd.ZstdCompressor(level=0)
        context: _zstd.ZstdCompressor = _kept.context
        return context

    def _one_call(body: bytes, level: int) -> bytes:
        return _context(level).compress(body)

    def _stream(body: bytes, level: int) -> bytes:
        compressor = _context(level).compressobj()
        return compressor.compress(body) + compressor.flush()

    def _decompressor() -> _zstd.ZstdDecompressionObj:
        if not hasattr(_kept, "decompressor"):
            _kept.decompressor = _zstd.ZstdDecompressor(max_window_size=1 << _MAX_WINDOW_LOG)
        decompressor: _zstd.ZstdDecompressor = _kept.decompressor
        return decompressor.decompressobj(_BUFFER)

    def _forget() -> None:
        del _kept.decompressor


def compress(body: bytes, level: int) -> bytes:
    """One zstd frame holding ``body``; level 0 is zstd's default."""
    return _one_call(body, level) if len(body) <= _ONE_CALL else _stream(body, level)


def decompress(data: bytes | memoryview, limit: int) -> bytes:
    """The content of exactly one frame, at most ``limit`` bytes of it; anything else is a ``ValueError``.

    Frames with and without a content size or a checksum are read; frames after the first, bytes after the frame, and
    skippable frames are not allowed (format document, "Envelope").
    """
    if bytes(data[:4]) != _MAGIC:
        raise ValueError("not a zstd frame")
    decompressor = _decompressor()
    smallest, largest = _PIECES
    content = b""
    body: io.BytesIO | None = None  # grows where it is; takes its first bytes, and gives up all of them, without a copy
    size = start = 0
    try:
        while start < len(data) and not decompressor.eof:
            stop = start + min(max(limit - size >> _GROWTH_LOG2, smallest), largest)
            if size and body is None:
                body = io.BytesIO(content)
                body.seek(size)
            content = decompressor.decompress(data[start:stop])
            if body is not None:
                body.write(content)
            size += len(content)
            if size > limit:
                raise ValueError(f"more than {limit} bytes when decompressed")
            start = stop
    except _Error as error:
        raise ValueError(f"damaged zstd frame ({error})") from error
    finally:
        if size > _BUFFER:
            _forget()
    if not decompressor.eof:
        raise ValueError("the zstd frame is cut off")
    if extra := len(decompressor.unused_data) + len(data[start:]):
        raise ValueError(f"{extra} bytes after the end of the zstd frame")
    return content if body is None else body.getvalue()
