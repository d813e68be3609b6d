"""The requests of a bucket behind an asynchronous fsspec filesystem: each is made as often as it takes.

A store's own class writes a handful of coroutines (``_get``, ``_put``, ...), each one request made once and without
retrying, and :meth:`Requests._failure`, which turns what they raise into our errors. How they are made is the same for
all stores, and here:

* **Waiting.** Coroutines run in fsspec's event loop; callers are threads, and wait. Each request has a time limit.
* **Retries.** What may pass (kinds in :data:`TRANSIENT`) is tried again, a bounded number of times, with growing,
  jittered pauses; the last error is the one that is raised. A conditional write whose answer was lost is *not* tried
  again: only its caller can find out whether it happened (``StorageError``, kind ``ambiguous``).
* **Bounded memory and requests.** At most :data:`SLOTS` requests at a time, of at most :data:`READ_BYTES` each.
* **Forks.** Neither the loop nor the connections outlive a fork; a child makes a filesystem of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Protocol, TypeVar

from ocdbt_py.errors import AlreadyExistsError, ConflictError, OcdbtError, StorageError
from ocdbt_py.storage.coalesce import fetches
from ocdbt_py.storage.protocol import ANY, UNCHANGED, ByteRange, Condition, Listed, Read, Token, Unchanged
from ocdbt_py.storage.refusals import changed, taken, too_short
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather, run

__all__ = [
    "AMBIGUOUS",
    "ATTEMPTS",
    "GAP",
    "READ_BYTES",
    "SINGLE_BYTES",
    "SLOTS",
    "TRANSIENT",
    "OutOfRange",
    "Requests",
    "Upload",
]

SLOTS = 12
"""Requests at a time, of one storage in one process."""

READ_BYTES = 4 << 20
"""One request reads at most so much; times :data:`SLOTS` it is the memory that reading takes beside the result."""

GAP = 64 << 10
"""So many bytes that nobody asked for are fetched rather than making another request."""

SINGLE_BYTES = 64 << 20
"""What a store takes well in one request, where it says nothing else."""

_LARGEST = 1 << 50
"""No object is so large. Servers that read a number beyond 64 bits in a header answer in strange ways."""

ATTEMPTS = 6

_SLOWEST = 256 << 10
"""A request may take its :attr:`Requests.patience`, and a second more for each so many bytes it moves."""

TRANSIENT = frozenset({"throttled", "unreachable", "unavailable", "interrupted", "timeout"})
"""Kinds of :class:`StorageError` after which the same request may succeed: too many requests (429, SlowDown); no
connection, so nothing was sent; 5xx; the connection broke, or no answer came, after the request was sent."""

AMBIGUOUS = frozenset({"unavailable", "interrupted", "timeout"})
"""Those of :data:`TRANSIENT` after which a write may have happened."""

T = TypeVar("T")


class Upload(Protocol):
    """One object uploaded in parts, which nobody sees before :meth:`complete`."""

    async def part(self, number: int, body: Body) -> None:
        """Upload part ``number`` (from 1); all are equally large, but the last. May be asked again for one."""

    async def complete(self) -> None:
        """Make the object of all parts. ``ConflictError`` where the name is taken, if the store can tell.

        Asked again when an answer was lost: an object that this upload made is none that was there before.
        """

    async def abort(self) -> None:
        """Leave nothing behind."""


class Requests(ABC):
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
    def describe(self, path: str) -> str: ...

    # --- processes

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

    # --- how

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

    def _changed(self, path: str) -> ConflictError:
        return changed(self.describe(path), path)

    def _taken(self, path: str) -> AlreadyExistsError:
        return taken(self.describe(path), path)

    # --- as many as it takes

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

    def _everything(self, prefix: str, deep: bool) -> Iterator[Listed]:
        after = None
        while True:
            page, after = self._run(self._attempts(partial(self._page, prefix, deep, after), prefix))
            yield from page
            if after is None:
                return


class OutOfRange(Exception):
    """A range begins at the end of its object or beyond, and the answer told no more than that."""


class _Process:
    """What belongs to one process: its filesystem, and the slots for its requests, which belong to that one's loop."""

    def __init__(self, fs: Any) -> None:
        self.fs = fs
        self.pid = os.getpid()
        self.slots = asyncio.Semaphore(SLOTS)
