"""What every bucket behind an asynchronous fsspec filesystem does alike; each store adds how it spells its requests.

A subclass writes a handful of coroutines (``_get``, ``_put``, ...), each one request made once and without retrying,
and :meth:`ObjectStore._failure`, which turns what they raise into our errors. Everything else is here:

* **Waiting.** Coroutines run in fsspec's event loop; callers are threads, and wait. Each request has a time limit.
* **Retries.** What may pass (kinds in :data:`TRANSIENT`) is tried again, a bounded number of times, with growing,
  jittered pauses; the last error is the one that is raised. A conditional write whose answer was lost is *not* tried
  again: only its caller can find out whether it happened (``StorageError``, kind ``ambiguous``). A new file is: whether
  the one that is there is ours is seen from its content, and so two writers of equal content may both have made it.
* **Bounded memory and requests.** At most :data:`SLOTS` requests at a time, of at most :data:`READ_BYTES` each way;
  uploads are cut from the caller's memoryviews and not copied.
* **Forks.** Neither the loop nor the connections outlive a fork; a child makes a filesystem of its own.

A bucket has no directories: paths are ``bucket/key``, ``delete("a/")`` removes what starts so, and nothing is renamed.
"""

from __future__ import annotations

import asyncio
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
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
    Note,
    Read,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py.storage.refusals import changed, taken, too_short
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather, run

__all__ = ["AMBIGUOUS", "TRANSIENT", "Body", "ObjectStore", "OutOfRange", "Upload", "bucket_capabilities"]

SLOTS = 12
"""Requests at a time, of one storage in one process."""

READ_BYTES = 4 << 20
"""One request reads at most so much; times :data:`SLOTS` it is the memory that reading takes beside the result."""

GAP = 64 << 10
"""So many bytes that nobody asked for are fetched rather than making another request."""

PART_BYTES = 16 << 20
"""Of an upload in parts."""

SINGLE_BYTES = 64 << 20
"""What a store takes well in one request, where it says nothing else."""

_DELETED_AT_ONCE = 1000

_MOST_PARTS = 10_000

_LARGEST = 1 << 50
"""No object is so large. Servers that read a number beyond 64 bits in a header answer in strange ways."""

ATTEMPTS = 6

_SLOWEST = 256 << 10
"""A request may take its :attr:`ObjectStore.patience`, and a second more for each so many bytes it moves."""

TRANSIENT = frozenset({"throttled", "unreachable", "unavailable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which the same request may succeed: too many requests (429, SlowDown); no
connection, so nothing was sent; 5xx; the connection broke, or no answer came, after the request was sent."""

AMBIGUOUS = frozenset({"unavailable", "interrupted", "timeout"})
"""Those of :data:`TRANSIENT` after which a write may have happened."""

T = TypeVar("T")


def bucket_capabilities(
    *, endpoint: str, conditions_unproven: bool, writable: bool = True, file_bytes: int = 32 << 20, parallel: int = 4
) -> Capabilities:
    """What every bucket can do, and what the stores differ in."""
    return Capabilities(
        cas=True,
        create=True,
        atomic_write=True,
        ranges=True,
        list=True,
        writable=writable,
        conditions_unproven=conditions_unproven,
        endpoint=endpoint,
        file_bytes=file_bytes,
        parallel=parallel,
    )


class Upload(Protocol):
    """One object uploaded in parts, which nobody sees before :meth:`complete`."""

    async def part(self, number: int, body: Body) -> None:
        """Upload part ``number`` (from 1); all are equally large, a multiple of :data:`PART_BYTES`, but the last.

        May be asked again for one.
        """

    async def complete(self) -> None:
        """Make the object of all parts. ``ConflictError`` where the name is taken, if the store can tell.

        Asked again when an answer was lost: an object that this upload made is none that was there before.
        """

    async def abort(self) -> None:
        """Leave nothing behind."""


class ObjectStore(ABC):
    """See the module. ``fs`` is a filesystem of the store's kind, made for threads (not ``asynchronous``)."""

    parallel_parts: ClassVar[int] = 4
    """Parts of one upload sent at a time; 1 where they must come in order."""

    single_bytes: ClassVar[int] = SINGLE_BYTES
    """Files up to this size are uploaded in one request, larger ones in parts."""

    first_pause: ClassVar[float] = 0.1
    longest_pause: ClassVar[float] = 3.0
    """Seconds between two attempts; each pause is twice the one before, and up to half of it is left to chance."""

    patience: ClassVar[float] = 60.0
    """Seconds after which an attempt that moves few bytes has failed."""

    def __init__(self, fs: Any) -> None:
        self._given = fs
        self._process = _Process(fs)

    # --- what one store does in its own way

    # Each is one request, made once. A client library that cannot be kept from retrying turns an applied write whose
    # answer was lost into an unmet condition: where that may have happened, _failure says "ambiguous".

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
        """One page of a listing, and what asks for the next one (None: this is the last; ``after`` None: the first).

        An object whose name ends in ``/`` stands in it as a file.
        """

    @abstractmethod
    def _failure(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        """What an exception of the coroutines above means; ``condition`` is that of the write it came from, else ANY.

        ``PathNotFoundError``; ``ConflictError`` (:meth:`_changed`); ``StoragePermissionError``; else ``StorageError``
        with one of the kinds of :data:`TRANSIENT`, or ``ambiguous``, ``credentials``, ``no-such-bucket``, or the
        default. No message holds credentials, a query or another party's text that may hold them.
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
        for i, result in enumerate(results):  # one by one, so that no more than one is held twice
            if not isinstance(result, bytes):
                results[i] = bytes(result)
        return cast(list[bytes], results)

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._fetch(ranges_of(fillings), lambda fetch, data: fill(fetch, data, fillings))

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Objects in a bucket are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        # programs that know directories make objects that end in a slash, and those are none of ours
        return (item for item in self._everything(prefix, deep) if item.size is None or not item.path.endswith("/"))

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
        if not path.strip("/").partition("/")[2]:
            raise InvalidArgumentError(f"{self.describe(path)} is a whole bucket, which is not deleted")
        names: Iterator[str] = iter([path])
        if path.endswith("/"):
            names = (item.path for item in self._everything(path, True))
        while some := list(islice(names, _DELETED_AT_ONCE)):
            self._run(self._attempts(partial(self._delete, some), path))

    def rename(self, source: str, target: str) -> None:
        raise UnsupportedError(f"Nothing is renamed in a bucket ({self.describe(source)}); copy it")

    def sync(self, paths: Iterable[str]) -> None:  # noqa: B027
        """What a bucket has acknowledged is durable already."""

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers of an object do not wait for each other; a conditional write decides")

    # --- how

    def _changed(self, path: str) -> ConflictError:
        return changed(self.describe(path), path)

    def _taken(self, path: str) -> AlreadyExistsError:
        return taken(self.describe(path), path)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run in the filesystem's loop, and wait."""
        return run(self.fs.loop, work)

    async def _attempts(
        self,
        request: Callable[[], Awaitable[T]],
        path: str,
        condition: Token | Condition = ANY,
        nbytes: int = 0,
        *,
        resolved: bool = False,
    ) -> T:
        """Make a request, and again while that may help.

        ``resolved``: a conditional request is also made again when its answer was lost, since the caller can tell what
        came of it. From then on an unmet condition says nothing, and is ``ambiguous`` too.
        """
        pause = self.first_pause
        lost = False
        for attempt in range(1, ATTEMPTS + 1):
            try:
                async with self._process.slots, asyncio.timeout(self.patience + nbytes / _SLOWEST):
                    return await request()
            except OutOfRange:
                raise
            except Exception as error:
                failure = self._translated(error, path, condition)
                lost = lost or (condition is not ANY and failure.kind in {*AMBIGUOUS, "ambiguous"})
                again = failure.kind in TRANSIENT or failure.kind == "ambiguous"
                if not again or attempt == ATTEMPTS or (lost and not resolved):
                    if attempt > 1 and again:
                        failure.message += f" (tried {attempt} times)"
                    if lost and (again or isinstance(failure, ConflictError)):
                        failure = StorageError(
                            f"{failure.message}; whether the write took place is not known", kind="ambiguous", path=path
                        )
                    raise failure from (None if failure is error else error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, self.longest_pause)
        raise AssertionError("the last attempt returns or raises")

    def _translated(self, error: Exception, path: str, condition: Token | Condition) -> OcdbtError:
        if isinstance(error, OcdbtError):
            return error
        if type(error) is TimeoutError:  # our own limit; libraries have subclasses, some of which mean: not connected
            return StorageError(f"{self.describe(path)}: no answer in time", kind="timeout", path=path)
        return self._failure(error, path, condition)

    def _everything(self, prefix: str, deep: bool) -> Iterator[Listed]:
        after = None
        while True:
            page, after = self._run(self._attempts(partial(self._page, prefix, deep, after), prefix))
            yield from page
            if after is None:
                return

    async def _read(self, path: str, start: int, stop: int | None, unless: Token | None) -> Read | Unchanged:
        async def get(start: int, stop: int | None) -> Read | Unchanged:
            if start >= _LARGEST:
                raise OutOfRange
            moved = READ_BYTES if stop is None else min(stop - start, SINGLE_BYTES)
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
                raise too_short(self.describe(fetch.path), fetch.path, fetch.start, fetch.stop, found.size)
            take(fetch, found.data)

        jobs = [lambda fetch=fetch: one(fetch) for fetch in requests]
        if jobs:
            self._run(gather(jobs, SLOTS))

    async def _put_new(self, path: str, body: Body) -> None:
        if len(body) > self.single_bytes:
            upload = await self._attempts(lambda: self._begin(path), path)
            size = PART_BYTES * -(-len(body) // (PART_BYTES * _MOST_PARTS))
            await self._upload(path, upload, list(enumerate(body.parts(size), 1)))
            await self._complete(path, upload)
            return
        try:
            await self._attempts(lambda: self._put(path, body, ABSENT), path, ABSENT, len(body), resolved=True)
        except (ConflictError, StorageError) as error:
            # A conflict may be a lie: aiohttp repeats a PUT by itself when a connection that it kept breaks.
            if isinstance(error, StorageError) and error.kind != "ambiguous":
                raise
            try:
                ours = await self._holds(path, body)
            except OcdbtError:
                raise error from error.__cause__  # which says more than that nothing could be seen of it
            if not ours:
                raise self._taken(path) from error

    async def _holds(self, path: str, body: Body) -> bool:
        """Whether an object is what we wanted to put: an attempt whose answer was lost."""
        found = await self._read(path, 0, 1, None)
        if not isinstance(found, Read) or found.size != len(body):
            return False
        at, token = 0, found.token
        for part in body.parts(READ_BYTES):
            found = await self._read(path, at, at + len(part), None)
            if not isinstance(found, Read) or found.token != token or found.data != part.joined():
                return False
            at += len(part)
        return True

    async def _upload(self, path: str, upload: Upload, parts: Sequence[tuple[int, Body]]) -> None:
        jobs = [
            lambda number=number, body=body: self._attempts(lambda: upload.part(number, body), path, nbytes=len(body))
            for number, body in parts
        ]
        try:
            await gather(jobs, self.parallel_parts)
        except BaseException:
            await self._abandon(path, upload)
            raise

    async def _complete(self, path: str, upload: Upload) -> None:
        try:
            await self._attempts(upload.complete, path)
        except ConflictError as error:
            await self._abandon(path, upload)
            raise self._taken(path) from error
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
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._demand_open()
        body = Body(buffers)
        if len(self._held) + len(body) < PART_BYTES:
            for view in body.views:
                self._held += view
            return
        body = Body([self._held, *body.views])
        self._held = bytearray()
        numbered = []
        for part in body.parts(PART_BYTES):
            if len(part) < PART_BYTES:
                for view in part.views:
                    self._held += view
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
        store._run(store._complete(self._path, self._upload))

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


def _check_is_object(path: str) -> None:
    bucket, _, key = path.partition("/")
    if not bucket or not key:
        raise InvalidArgumentError(f"{path!r} is no object in a bucket: it takes a bucket and a key")
