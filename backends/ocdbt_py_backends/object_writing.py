"""A new object in a bucket: put in one request where it is small, in parts where not, and seen when it is whole.

Parts are cut from the caller's memoryviews and not copied. The request that makes the object is tried again also when
its answer was lost: whether the object that is there is ours is seen from its content, and so two writers of equal
content may both have made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from ocdbt_py.errors import ConflictError, InvalidArgumentError, OcdbtError, StorageError
from ocdbt_py.storage.protocol import ABSENT, Buffer, Read
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.event_loop import gather
from ocdbt_py_backends.object_requests import READ_BYTES, Requests, Upload

__all__ = ["PART_BYTES", "NewObject", "put_new"]

PART_BYTES = 16 << 20
"""Of an upload in parts; larger ones are a multiple of it."""

_MOST_PARTS = 10_000


async def put_new(store: Requests, path: str, body: Body) -> None:
    """Make an object; ``AlreadyExistsError`` where there is one."""
    if len(body) > store.single_bytes:
        upload = await store._attempts(lambda: store._begin(path), path)
        size = PART_BYTES * -(-len(body) // (PART_BYTES * _MOST_PARTS))
        await _send(store, path, upload, list(enumerate(body.parts(size), 1)))
        await _complete(store, path, upload)
        return
    try:
        await store._attempts(lambda: store._put(path, body, ABSENT), path, ABSENT, len(body), resolved=True)
    except (ConflictError, StorageError) as error:
        # A conflict may be a lie: aiohttp repeats a PUT by itself when a connection that it kept breaks.
        if isinstance(error, StorageError) and error.kind != "ambiguous":
            raise
        try:
            ours = await _holds(store, path, body)
        except OcdbtError:
            raise error from error.__cause__  # which says more than that nothing could be seen of it
        if not ours:
            raise store._taken(path) from error


async def _holds(store: Requests, path: str, body: Body) -> bool:
    """Whether an object is what we wanted to put: an attempt whose answer was lost."""
    found = await store._read(path, 0, 1, None)
    if not isinstance(found, Read) or found.size != len(body):
        return False
    at, token = 0, found.token
    for part in body.parts(READ_BYTES):
        found = await store._read(path, at, at + len(part), None)
        if not isinstance(found, Read) or found.token != token or found.data != part.joined():
            return False
        at += len(part)
    return True


async def _send(store: Requests, path: str, upload: Upload, parts: Sequence[tuple[int, Body]]) -> None:
    jobs = [
        lambda number=number, body=body: store._attempts(lambda: upload.part(number, body), path, nbytes=len(body))
        for number, body in parts
    ]
    try:
        await gather(jobs, store.parallel_parts)
    except BaseException:
        await _abandon(store, path, upload)
        raise


async def _complete(store: Requests, path: str, upload: Upload) -> None:
    try:
        await store._attempts(upload.complete, path)
    except ConflictError as error:
        await _abandon(store, path, upload)
        raise store._taken(path) from error
    except BaseException:
        await _abandon(store, path, upload)
        raise


async def _abandon(store: Requests, path: str, upload: Upload) -> None:
    """As far as the storage lets us; the first error is the one that matters."""
    with suppress(OcdbtError):
        await store._attempts(upload.abort, path)


class NewObject:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: what is less than a part is held back, as a copy."""

    def __init__(self, store: Requests, path: str) -> None:
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
        await _send(store, path, self._upload, parts)

    def close(self) -> None:
        self._demand_open()
        self._open = False
        store, rest = self._store, Body([self._held])
        if self._upload is None:
            store._run(put_new(store, self._path, rest))
            return
        if len(rest):
            store._run(self._send([(self._parts + 1, rest)]))
        store._run(_complete(store, self._path, self._upload))

    def abort(self) -> None:
        upload, self._upload = self._upload, None
        if self._open and upload is not None:
            self._store._run(_abandon(self._store, self._path, upload))
        self._open = False
        self._held = bytearray()

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")
