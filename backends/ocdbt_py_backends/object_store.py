"""What every bucket behind an asynchronous fsspec filesystem does alike; each store adds how it spells its requests.

A subclass writes a handful of coroutines (``_get``, ``_put``, ...), each one request made once and without retrying,
and :meth:`ObjectStore._failure`, which turns what they raise into our errors. Everything else is here:

* **Waiting.** Coroutines run in fsspec's event loop; callers are threads, and wait. Each request has a time limit.
* **Retries.** What may pass (kinds in :data:`TRANSIENT`) is tried again, a bounded number of times, with growing,
  jittered pauses; the last error is the one that is raised. A conditional write whose answer was lost is *not* tried
  again: only its caller can find out whether it happened (``StorageError``, kind ``ambiguous``).
* **Bounded memory and requests.** At most :data:`SLOTS` requests at a time, of at most :data:`READ_BYTES` each way;
  uploads are cut from the caller's memoryviews and not copied.
* **Forks.** Neither the loop nor the connections outlive a fork; a child makes a filesystem of its own.

A bucket has no directories: paths are ``bucket/key``, ``delete("a/")`` removes what starts so, and nothing is renamed.
"""

from __future__ import annotations

import asyncio
import io
import os
import random
import threading
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import fsspec.asyn

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptDataError,
    InvalidArgumentError,
    OcdbtError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.coalesce import fetches, fill, ranges_of, scatter
from ocdbt_py.storage.protocol import (
    ABSENT,
    ANY,
    UNCHANGED,
    Buffer,
    ByteRange,
    Capabilities,
    Condition,
    Filling,
    Hold,
    Listed,
    Read,
    Token,
    Unchanged,
    Writer,
)

__all__ = ["AMBIGUOUS", "TRANSIENT", "Body", "ObjectStore", "OutOfRange", "Upload"]

SLOTS = 12
"""Requests at a time, of one storage in one process."""

READ_BYTES = 4 << 20
"""One request reads at most so much; times :data:`SLOTS` it is the memory that reading takes beside the result."""

GAP = 64 << 10
"""So many bytes that nobody asked for are fetched rather than making another request."""

PART_BYTES = 16 << 20
"""Of an upload in parts."""

SINGLE_BYTES = 64 << 20
"""Files up to this size are uploaded in one request, larger ones in parts."""

_DELETED_AT_ONCE = 1000

ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0

_PATIENCE = 60.0
_SLOWEST = 256 << 10
"""A request may take so many seconds, and one more for each so many bytes it moves."""

TRANSIENT = frozenset({"throttled", "unreachable", "unavailable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which the same request may succeed: too many requests (429, SlowDown); no
connection, so nothing was sent; 5xx; the connection broke, or no answer came, after the request was sent."""

AMBIGUOUS = frozenset({"unavailable", "interrupted", "timeout"})
"""Those of :data:`TRANSIENT` after which a write may have happened."""

T = TypeVar("T")


class Body:
    """What is uploaded: buffers in a row, never joined unless asked to."""

    def __init__(self, buffers: Iterable[Buffer]) -> None:
        self.views = [memoryview(buffer) for buffer in buffers if len(buffer)]
        self.size = sum(map(len, self.views))

    def __len__(self) -> int:
        return self.size

    def joined(self) -> bytes:
        """A copy in one piece."""
        return b"".join(self.views)

    def reader(self) -> io.BufferedIOBase:
        """A seekable file that reads from the buffers."""
        return _BodyReader(self)

    def pieces(self, most: int) -> Iterator[memoryview]:
        """All of it, in views of at most ``most`` bytes."""
        for view in self.views:
            for start in range(0, len(view), most):
                yield view[start : start + most]

    def parts(self, most: int) -> Iterator[Body]:
        """All of it, in bodies of exactly ``most`` bytes but the last."""
        views: list[memoryview] = []
        held = 0
        for view in self.views:
            while len(view):
                taken = view[: most - held]
                views.append(taken)
                held += len(taken)
                view = view[len(taken) :]
                if held == most:
                    yield Body(views)
                    views, held = [], 0
        if views:
            yield Body(views)


class _BodyReader(io.BufferedIOBase):
    def __init__(self, body: Body) -> None:
        self._body = body
        self._at = 0
        self._starts = [0]
        for view in body.views:
            self._starts.append(self._starts[-1] + len(view))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def __len__(self) -> int:
        return self._body.size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._body.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._body.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        found = []
        while wanted:
            i = self._view_at(self._at)
            begin = self._at - self._starts[i]
            piece = self._body.views[i][begin : begin + wanted]
            found.append(piece)
            self._at += len(piece)
            wanted -= len(piece)
        return b"".join(found)

    read1 = read

    def _view_at(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1


class Upload(Protocol):
    """One object uploaded in parts, which nobody sees before :meth:`complete`."""

    async def part(self, number: int, body: Body) -> None:
        """Upload part ``number`` (from 1); all have :data:`PART_BYTES` but the last. May be asked again for one."""

    async def complete(self) -> None:
        """Make the object of all parts. ``ConflictError`` where the name is taken, if the store can tell."""

    async def abort(self) -> None:
        """Leave nothing behind."""


class ObjectStore(ABC):
    """See the module. ``fs`` is a filesystem of the store's kind, made for threads (not ``asynchronous``)."""

    parallel_parts: ClassVar[int] = 4
    """Parts of one upload sent at a time; 1 where they must come in order."""

    def __init__(self, fs: Any) -> None:
        self._given = fs
        self._process = _Process(fs)

    # --- what one store does in its own way

    @abstractmethod
    async def _get(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        """One GET of ``[start, stop)`` (``start < stop``; stop None: to the end), conditional on ``unless``.

        Cut at the end of the object; data is empty when ``start`` is its size or more, where the store tells the size
        and token then, else :class:`OutOfRange` is raised.
        """

    @abstractmethod
    async def _put(self, path: str, body: Body, condition: Token | Condition) -> Token:
        """One PUT of the whole object."""

    @abstractmethod
    async def _begin(self, path: str) -> Upload:
        """Begin an upload in parts of an object that must not exist."""

    @abstractmethod
    async def _delete(self, paths: Sequence[str]) -> None:
        """Remove objects, in as few requests as it takes; those that are not there are fine."""

    @abstractmethod
    async def _page(self, prefix: str, deep: bool, after: Any) -> tuple[list[Listed], Any]:
        """One page of a listing, and what asks for the next one (None: this is the last; ``after`` None: the first)."""

    @abstractmethod
    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        """What an exception of the coroutines above means; ``condition`` is that of the write it came from, else ANY.

        ``PathNotFoundError``; ``ConflictError`` (:meth:`_changed`); ``StoragePermissionError``; else ``StorageError``
        with one of the kinds of :data:`TRANSIENT`, or ``credentials``, ``no-such-bucket``, or the default. No message
        holds credentials, a query or another party's text that may hold them.
        """

    @abstractmethod
    def _identity(self) -> tuple[Any, ...]:
        """Equal for storages in which the same path is the same object: the kind, the endpoint, the account."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    def describe(self, path: str) -> str: ...

    # --- identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_process"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = _Process(self._given)

    @property
    def fs(self) -> Any:
        """The filesystem, as this process may use it."""
        if self._process.pid != os.getpid():
            # connections, the loop and what waits in it stayed with the parent
            given = self._given
            renewed = type(given)(*given.storage_args, **{**given.storage_options, "skip_instance_cache": True})
            self._process = _Process(renewed)
        return self._process.fs

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        _check_is_object(path)
        return self._run(self._read(path, start, stop, unless))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes | bytearray] = [b""] * len(ranges)
        self._fetch(ranges, lambda fetch, data: scatter(fetch, data, ranges, results))
        return [result if isinstance(result, bytes) else bytes(result) for result in results]

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._fetch(ranges_of(fillings), lambda fetch, data: fill(fetch, data, fillings))

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Objects in a bucket are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        after = None
        while True:
            page, after = self._run(self._attempts(partial(self._page, prefix, deep, after), prefix))
            yield from page
            if after is None:
                return

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        _check_is_object(path)
        body = Body(buffers)
        return self._run(self._attempts(lambda: self._put(path, body, if_version), path, if_version, len(body)))

    def create(self, path: str) -> Writer:
        _check_is_object(path)
        return _NewObject(self, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        _check_is_object(path)
        body = Body(buffers)
        self._run(self._put_new(path, body))

    def delete(self, path: str) -> None:
        if not path.endswith("/"):
            self._run(self._attempts(partial(self._delete, [path]), path))
            return
        if "/" not in path.strip("/"):
            raise InvalidArgumentError(f"{self.describe(path)} is a whole bucket, which is not deleted")
        names: list[str] = []
        for item in self.list(path, deep=True):
            names.append(item.path)
            if len(names) == _DELETED_AT_ONCE:
                self._run(self._attempts(partial(self._delete, names), path))
                names = []
        if names:
            self._run(self._attempts(partial(self._delete, names), path))

    def rename(self, source: str, target: str) -> None:
        raise UnsupportedError(f"Nothing is renamed in a bucket ({self.describe(source)}); copy it")

    def sync(self, paths: Iterable[str]) -> None:  # noqa: B027
        """What a bucket has acknowledged is durable already."""

    def hold(self, path: str, timeout: float) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers of an object do not wait for each other; a conditional write decides")

    # --- how

    def _changed(self, path: str) -> ConflictError:
        return ConflictError(
            f"{self.describe(path)} is not what the write was to replace: another writer was faster",
            kind="condition",
            path=path,
        )

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the filesystem's loop, and wait."""
        loop = self.fs.loop
        if threading.current_thread() is fsspec.asyn.iothread[0]:
            work.close()
            raise InvalidArgumentError("This was called in fsspec's own event loop, which it would wait for forever")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # of a wait that the user interrupted; it does nothing to one that is over
            raise

    async def _attempts(
        self,
        request: Callable[[], Awaitable[T]],
        path: str,
        condition: Token | Condition = ANY,
        nbytes: int = 0,
    ) -> T:
        """Make a request, and again while that may help."""
        pause = _FIRST_PAUSE
        for left in reversed(range(ATTEMPTS)):
            try:
                async with self._process.slots, asyncio.timeout(_PATIENCE + nbytes / _SLOWEST):
                    return await request()
            except OutOfRange:
                raise
            except Exception as error:
                failure = self._translated(error, path, condition)
                if failure.kind in AMBIGUOUS and condition is not ANY:
                    failure.kind = "ambiguous"
                if failure.kind not in TRANSIENT or not left:
                    raise failure from (None if failure is error else error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    def _translated(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        if isinstance(error, OcdbtError):
            return error
        if isinstance(error, TimeoutError):
            return StorageError(f"{self.describe(path)}: no answer in time", kind="timeout", path=path)
        return self._failure(error, path, condition)

    async def _read(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        async def get(start: int, stop: int | None) -> Read | Unchanged:
            moved = READ_BYTES if stop is None else stop - start
            return await self._attempts(lambda: self._get(path, start, stop, unless), path, nbytes=moved)

        if stop is not None and stop <= start:
            found = await self._read(path, start, start + 1, unless)
            return Read(b"", found.token, found.size) if isinstance(found, Read) else found
        try:
            return await get(start, stop)
        except OutOfRange:
            pass
        # The answer told neither size nor token: ask for the first byte, and if there is none, for everything.
        try:
            found = await get(0, 1) if start else await get(0, None)
        except OutOfRange:
            found = await get(0, None)
        return Read(b"", found.token, found.size) if isinstance(found, Read) else found

    def _fetch(self, ranges: Sequence[ByteRange], take: Callable[[Any, bytes], None]) -> None:
        """Read the ranges in as few requests as it takes, several at a time, and hand over each answer."""
        requests = fetches(ranges, gap=GAP, most=READ_BYTES)

        async def one(fetch: Any) -> None:
            found = await self._read(fetch.path, fetch.start, fetch.stop, None)
            assert found is not UNCHANGED
            if len(found.data) < fetch.stop - fetch.start:
                raise CorruptDataError(
                    f"{fetch.path} ends at byte {found.size}, but bytes {fetch.start} to {fetch.stop} of it are "
                    "needed; it was cut or is another one",
                    path=fetch.path,
                    offset=fetch.start,
                )
            take(fetch, found.data)

        jobs = [lambda fetch=fetch: one(fetch) for fetch in requests]
        if jobs:
            self._run(_gather(jobs))

    async def _put_new(self, path: str, body: Body) -> None:
        if len(body) > SINGLE_BYTES:
            upload = await self._attempts(lambda: self._begin(path), path)
            await self._upload(path, upload, list(enumerate(body.parts(PART_BYTES), 1)))
            await self._complete(path, upload, len(body))
            return
        try:
            try:
                await self._attempts(lambda: self._put(path, body, ABSENT), path, ABSENT, len(body))
            except StorageError as error:
                if error.kind != "ambiguous":
                    raise
                await self._attempts(lambda: self._put(path, body, ABSENT), path, ABSENT, len(body))
        except ConflictError as error:
            if not await self._holds(path, body):
                raise AlreadyExistsError(f"{self.describe(path)} is there already", path=path) from error

    async def _holds(self, path: str, body: Body) -> bool:
        """Whether an object is what we wanted to put: an attempt whose answer was lost, perhaps behind our back."""
        found = await self._read(path, 0, len(body) or None, None)
        return isinstance(found, Read) and found.size == len(body) and found.data == body.joined()

    async def _upload(self, path: str, upload: Upload, parts: Sequence[tuple[int, Body]]) -> None:
        jobs = [
            lambda number=number, body=body: self._attempts(lambda: upload.part(number, body), path, nbytes=len(body))
            for number, body in parts
        ]
        try:
            await _gather(jobs, self.parallel_parts)
        except BaseException:
            await self._abandon(path, upload)
            raise

    async def _complete(self, path: str, upload: Upload, size: int) -> None:
        try:
            await self._attempts(upload.complete, path)
        except ConflictError as error:
            raise AlreadyExistsError(f"{self.describe(path)} is there already", path=path) from error
        except BaseException:
            await self._abandon(path, upload)
            raise

    async def _abandon(self, path: str, upload: Upload) -> None:
        """As far as the storage lets us; the first error is the one that matters."""
        with suppress(OcdbtError):
            await self._attempts(upload.abort, path)


class OutOfRange(Exception):
    """A range begins at the end of its object or beyond, and the answer told no more than that."""


class _NewObject:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: what is less than a part is held back, as a copy."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store = store
        self._path = path
        self._held = bytearray()
        self._upload: Upload | None = None
        self._parts = 0
        self._size = 0
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._demand_open()
        body = Body(buffers)
        self._size += len(body)
        if len(self._held) + len(body) < PART_BYTES:
            for view in body.views:
                self._held += view
            return
        body = Body([self._held, *body.views])
        self._held = bytearray()
        numbered = []
        for part in body.parts(PART_BYTES):
            if len(part) < PART_BYTES:
                self._held += part.joined()
                break
            self._parts += 1
            numbered.append((self._parts, part))
        self._store._run(self._send(numbered))

    async def _send(self, parts: Sequence[tuple[int, Body]]) -> None:
        store, path = self._store, self._path
        if self._upload is None:
            self._upload = await store._attempts(lambda: store._begin(path), path)
        await store._upload(path, self._upload, parts)

    def close(self) -> None:
        self._demand_open()
        self._open = False
        store, rest = self._store, Body([self._held])
        if self._upload is None:
            store._run(store._put_new(self._path, rest))
            return
        if len(rest):
            store._run(self._send([(self._parts + 1, rest)]))
        store._run(store._complete(self._path, self._upload, self._size))

    def abort(self) -> None:
        upload, self._upload = self._upload, None
        if self._open and upload is not None:
            self._store._run(self._store._abandon(self._path, upload))
        self._open = False
        self._held = bytearray()

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")


class _Process:
    """What belongs to one process: its filesystem, and the slots for its requests, which belong to that one's loop."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        self.pid = os.getpid()
        self.slots = asyncio.Semaphore(SLOTS)


async def _gather(jobs: Sequence[Callable[[], Awaitable[None]]], workers: int = SLOTS) -> None:
    """Do all of them, so many at a time; the first error ends the others."""
    waiting = iter(jobs)

    async def work() -> None:
        for job in waiting:
            await job()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(workers, len(jobs))):
                group.create_task(work())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__


def _check_is_object(path: str) -> None:
    bucket, _, key = path.partition("/")
    if not bucket or not key:
        raise InvalidArgumentError(f"{path!r} is no object in a bucket: it takes a bucket and a key")
