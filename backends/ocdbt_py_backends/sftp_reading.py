"""What is read from an SFTP server: a file with its token, and many ranges of many files at a time.

A server tells the size of a file and a time in seconds; so tokens are those of :mod:`ocdbt_py_backends.sightings`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from ocdbt_py.errors import CorruptDataError, StorageError
from ocdbt_py.storage.coalesce import Fetch, fetches, fill, ranges_of, scatter
from ocdbt_py.storage.protocol import UNCHANGED, ByteRange, Filling, Read, Token, Unchanged
from ocdbt_py.storage.refusals import too_short
from ocdbt_py_backends.sftp_attempts import Attempts
from ocdbt_py_backends.sftp_conversation import Refused
from ocdbt_py_backends.sftp_failures import refusal
from ocdbt_py_backends.sftp_packets import Attributes
from ocdbt_py_backends.sftp_session import Session
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, Sightings, digest, token_of

__all__ = ["Reading", "read_range", "stamp"]

_GAP = 32 << 10
_READ_BYTES = 4 << 20
_READ_TOGETHER = 64
_BYTES_TOGETHER = 16 << 20
_HEAD_BYTES = 32 << 10
_UNSTABLE_READS = 5
_MOST_OFFSET = 1 << 63
_SECONDS_APART = 2.0


class Reading:
    """The part of :class:`~ocdbt_py.storage.protocol.Storage` that reads."""

    def __init__(self, attempts: Attempts) -> None:
        self._do = attempts.do
        self._describe = attempts.describe
        self.sightings = Sightings(_SECONDS_APART)

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        return self._do(path, lambda session: self._read(session, path, start, stop, unless))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes | bytearray] = [b""] * len(ranges)

        def place(fetch: Fetch) -> memoryview:
            return memoryview(bytearray(fetch.stop - fetch.start))

        self._fetch(ranges, place, lambda fetch, view: scatter(fetch, bytes(view), ranges, results))
        return [result if isinstance(result, bytes) else bytes(result) for result in results]

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        """Straight into the buffers where a request serves one alone."""

        def place(fetch: Fetch) -> memoryview:
            if len(fetch.serves) > 1:
                return memoryview(bytearray(fetch.stop - fetch.start))
            _, start, buffer = fillings[fetch.serves[0]]
            return buffer[fetch.start - start : fetch.stop - start]

        def take(fetch: Fetch, view: memoryview) -> None:
            if len(fetch.serves) > 1:
                fill(fetch, bytes(view), fillings)

        self._fetch(ranges_of(fillings), place, take)

    def token(self, path: str) -> Token | None:
        return token_of(self.read, path)

    def _read(
        self, session: Session, path: str, start: int, stop: int | None, unless: Token | None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        if isinstance(unless, Seen) and self.sightings.settled(path, unless):
            attributes = session.stat(path)
            if attributes.is_file and stamp(attributes) == unless.stamp:
                return UNCHANGED
        for _ in range(_UNSTABLE_READS):
            at = time.monotonic()
            handle = session.open(path)
            try:
                attributes, head = session.begin_reading(handle, _HEAD_BYTES)
                if not attributes.is_file or attributes.size is None:
                    raise StorageError(
                        f"{self._describe(path)} is a directory or a device, where a file is expected",
                        kind="not-a-file",
                        path=path,
                    )
                size = attributes.size
                begin, end = start, size if stop is None else min(stop, size)
                if size <= WHOLE_BYTES:
                    begin, end = 0, size
                data = head[begin:end] if end <= len(head) else read_range(session, handle, begin, end)
            finally:
                if session.alive:
                    session.close_handle(handle)
            if len(data) == max(0, end - begin):
                break
        else:
            raise StorageError(f"{self._describe(path)} changes while it is read, again and again", path=path)
        if size > WHOLE_BYTES:
            token = Seen(stamp(attributes), None)
        else:
            token = Seen(stamp(attributes), digest(data))
            self.sightings.saw(path, token, at)
            data = data[start:stop]
        return UNCHANGED if token == unless else Read(data, token, size)

    def _fetch(
        self,
        ranges: Sequence[ByteRange],
        place: Callable[[Fetch], memoryview],
        take: Callable[[Fetch, memoryview], None],
    ) -> None:
        """Read all ranges, some together, each into the memory that ``place`` gives, and hand it over."""
        together: list[Fetch] = []
        nbytes = 0
        for fetch in fetches(ranges, gap=_GAP, most=_READ_BYTES):
            if fetch.stop > _MOST_OFFSET:  # the protocol has no words for it
                attributes = self._do(fetch.path, partial(Session.stat, path=fetch.path))
                raise self._too_short(fetch, attributes.size)
            if len(together) == _READ_TOGETHER or nbytes + fetch.stop - fetch.start > _BYTES_TOGETHER:
                self._fetch_together(together, place, take)
                together, nbytes = [], 0
            together.append(fetch)
            nbytes += fetch.stop - fetch.start
        if together:
            self._fetch_together(together, place, take)

    def _fetch_together(
        self,
        wanted: Sequence[Fetch],
        place: Callable[[Fetch], memoryview],
        take: Callable[[Fetch, memoryview], None],
    ) -> None:
        views = [place(fetch) for fetch in wanted]
        paths = list(dict.fromkeys(fetch.path for fetch in wanted))

        def read(session: Session) -> None:
            handles = dict(zip(paths, session.open_many(paths), strict=True))
            opened = {path: handle for path, handle in handles.items() if isinstance(handle, bytes)}
            try:
                for path, handle in handles.items():
                    if isinstance(handle, Refused):
                        raise refusal(handle, self._describe(path), path) from handle
                counts = session.read_into(
                    [(opened[fetch.path], fetch.start, view) for fetch, view in zip(wanted, views, strict=True)]
                )
                short = [fetch for fetch, view, count in zip(wanted, views, counts, strict=True) if count < len(view)]
                if short:
                    raise self._too_short(short[0], session.stat(short[0].path).size)
            except Refused:
                for fetch in wanted:  # far beyond the end a server may refuse rather than answer that nothing is there
                    attributes = session.found(fetch.path)
                    if attributes is not None and (attributes.size or 0) < fetch.stop:
                        raise self._too_short(fetch, attributes.size) from None
                raise
            finally:
                if session.alive:
                    session.close_handle(*opened.values())

        self._do(wanted[0].path, read)
        for fetch, view in zip(wanted, views, strict=True):
            take(fetch, view)

    def _too_short(self, fetch: Fetch, size: int | None) -> CorruptDataError:
        return too_short(self._describe(fetch.path), fetch.path, fetch.start, fetch.stop, size)


def read_range(session: Session, handle: bytes, start: int, stop: int) -> bytes:
    data = bytearray(max(0, stop - start))
    (count,) = session.read_into([(handle, start, memoryview(data))])
    return bytes(data[:count])


def stamp(attributes: Attributes) -> tuple[int | None, int | None]:
    return attributes.size, attributes.modified
