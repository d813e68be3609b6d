"""What is read from any filesystem of fsspec: a file with its token, and many ranges in few requests.

fsspec has no bytes and version from one response. So a read looks before and after and starts over when the two differ;
tokens are those of :mod:`ocdbt_py_backends.sightings`.

Filesystems made for many requests at a time are asked for several ranges together; of all others each file is one
stream (:mod:`ocdbt_py_backends.generic_streams`), and what came before a connection broke is not asked for again.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

from fsspec.asyn import AsyncFileSystem

from ocdbt_py.errors import StorageError
from ocdbt_py.storage.coalesce import Fetch, fetches, fill, landing, ranges_of, runs, scatter
from ocdbt_py.storage.protocol import UNCHANGED, ByteRange, Filling, Read, Token, Unchanged
from ocdbt_py.storage.refusals import too_short
from ocdbt_py_backends.generic_attempts import TRANSIENT, Attempts
from ocdbt_py_backends.generic_directories import Directories
from ocdbt_py_backends.generic_streams import stream_of
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, Sightings, digest, token_of

__all__ = ["Reading"]

_GAP = 64 << 10
_READ_BYTES = 4 << 20
_READ_TOGETHER = 8
_TURN_BYTES = 64 << 20
_UNSTABLE_READS = 5

# FTP servers without MLSD tell times to the minute.
_SECONDS_APART = 120.0

_STAMPS = (
    *("ETag", "etag", "version_id", "generation", "checksum", "md5", "sha", "sha256", "content_hash", "CRC", "unique"),
    *("mtime", "modify", "modified", "LastModified", "last_modified", "updated", "created", "ino"),
)
"""What different filesystems call what changes with a file's content."""

Take: TypeAlias = Callable[[Fetch, bytes], None]
Land: TypeAlias = Callable[[Fetch], memoryview | None]


class Reading:
    """The part of :class:`~ocdbt_py.storage.protocol.Storage` that reads."""

    def __init__(self, attempts: Attempts, directories: Directories, *, frozen: bool) -> None:
        self._attempts = attempts
        self._describe = attempts.describe
        self._directories = directories
        self._frozen = frozen
        self.sightings = Sightings(_SECONDS_APART)

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        return self._attempts.do(path, lambda fs: self._read(fs, path, start, stop, unless))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes | bytearray] = [b""] * len(ranges)
        self._fetch(ranges, lambda fetch, data: scatter(fetch, data, ranges, results))
        return [result if isinstance(result, bytes) else bytes(result) for result in results]

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._fetch(
            ranges_of(fillings), lambda fetch, data: fill(fetch, data, fillings), lambda fetch: landing(fetch, fillings)
        )

    def token(self, path: str) -> Token | None:
        return token_of(self.read, path)

    def look(self, fs: Any, path: str) -> tuple[tuple[Hashable, ...], int]:
        """What tells this content of a file from another (its size first), and its size."""
        info = self._directories.info(fs, path)
        size = info.get("size")
        if info.get("type") == "directory" or size is None:
            raise StorageError(
                f"{self._describe(path)} is a directory, or of unknown size, where a file is expected",
                kind="not-a-file",
                path=path,
            )
        return (size, *((name, str(info[name])) for name in _STAMPS if info.get(name) is not None)), size

    def _read(
        self, fs: Any, path: str, start: int, stop: int | None, unless: Token | None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        for _ in range(_UNSTABLE_READS):
            at = time.monotonic()
            stamp, size = self.look(fs, path)
            if isinstance(unless, Seen) and unless.stamp == stamp and self.sightings.settled(path, unless):
                return UNCHANGED
            whole = size <= WHOLE_BYTES
            begin, end = (0, size) if whole else (start, size if stop is None else min(stop, size))
            data = bytes(fs.cat_file(path, start=begin, end=end)) if begin < end else b""
            if len(data) == max(0, end - begin) and (self._frozen or self.look(fs, path)[0] == stamp):
                break
        else:
            raise StorageError(f"{self._describe(path)} changes while it is read, again and again", path=path)
        token = Seen(stamp, digest(data) if whole else None)
        if whole:
            if self._frozen or stamp[1:]:  # a size alone settles nothing
                self.sightings.saw(path, token, at)
            data = data[start:stop]
        return UNCHANGED if token == unless else Read(data, token, size)

    def _fetch(self, ranges: Sequence[ByteRange], take: Take, land: Land = lambda fetch: None) -> None:
        """``take`` gets each answer, but for those whose place ``land`` knows."""
        requests = fetches(ranges, gap=_GAP, most=_READ_BYTES)
        if isinstance(self._attempts.fs, AsyncFileSystem):
            for begin in range(0, len(requests), _READ_TOGETHER):
                together = requests[begin : begin + _READ_TOGETHER]
                answers = self._attempts.do(together[0].path, partial(self._cat_together, wanted=together))
                for fetch, data in zip(together, answers, strict=True):
                    take(fetch, data)
            return
        for run in runs(requests, most=_TURN_BYTES):
            left = deque(run)
            self._attempts.do(run[0].path, partial(self._cat_in_turn, left=left, take=take, land=land), left=left)

    def _cat_in_turn(self, fs: Any, left: deque[Fetch], take: Take, land: Land) -> None:
        """All that is ``left`` to fetch of one file; what is here is left no more."""
        if not left:
            return  # it was the end of the stream that failed
        failure: Exception | None = None
        try:
            with stream_of(fs, left[0].path) as read_into:
                while left:
                    fetch = left[0]
                    place = land(fetch)
                    buffer = memoryview(bytearray(fetch.stop - fetch.start)) if place is None else place
                    if read_into(fetch.start, buffer) != len(buffer):
                        break
                    if place is None:
                        take(fetch, bytes(buffer))
                    left.popleft()
        except Exception as error:
            failure = error
        if left:
            self._judged(fs, left[0], failure)
        elif failure is not None:
            raise failure

    def _cat_together(self, fs: Any, wanted: Sequence[Fetch]) -> Sequence[bytes]:
        paths, starts, ends = zip(*((fetch.path, fetch.start, fetch.stop) for fetch in wanted), strict=True)
        answers = fs.cat_ranges([*paths], [*starts], [*ends], on_error="return")
        return [self._judged(fs, fetch, answer) for fetch, answer in zip(wanted, answers, strict=True)]

    def _judged(self, fs: Any, fetch: Fetch, answer: Any) -> bytes:
        """An answer as it should be, or why it is not: filesystems differ in what they do beyond the end of a file."""
        if isinstance(answer, bytes | bytearray) and len(answer) == fetch.stop - fetch.start:
            return bytes(answer)
        error = answer if isinstance(answer, Exception) else None
        if error is not None and self._attempts.translated(error, fetch.path, reading=True).kind in TRANSIENT:
            raise error
        _, size = self.look(fs, fetch.path)
        if fetch.stop <= size:
            raise error or StorageError(
                f"{self._describe(fetch.path)}: the answer was cut short", kind="interrupted", path=fetch.path
            )
        raise too_short(self._describe(fetch.path), fetch.path, fetch.start, fetch.stop, size)
