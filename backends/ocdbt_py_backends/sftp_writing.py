"""Files of an SFTP server written: under a temporary name first, which listings leave out, and then renamed.

SFTP's rename refuses a name that is taken, and OpenSSH decides that atomically (by ``link``): so a new file comes into
being, whoever else makes one of that name. A file is *replaced* by OpenSSH's ``posix-rename``, atomic for readers.

After a connection broke nothing is uncertain: a write has its offset, and whether a rename happened is seen by whether
the temporary name is still there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TypeVar

from ocdbt_py.errors import ConflictError, InvalidArgumentError, OcdbtError, StorageError, UnsupportedError
from ocdbt_py.storage.protocol import ABSENT, ANY, Buffer, Condition, Token
from ocdbt_py.storage.refusals import changed, taken
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.sftp_attempts import Attempts
from ocdbt_py_backends.sftp_conversation import FAILURE, Refused
from ocdbt_py_backends.sftp_directories import Directories, remove
from ocdbt_py_backends.sftp_failures import TRANSIENT, refusal
from ocdbt_py_backends.sftp_packets import Attributes
from ocdbt_py_backends.sftp_reading import Reading, read_range, stamp
from ocdbt_py_backends.sftp_session import Session
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, digest

__all__ = ["TEMPORARY", "NewFile", "Writing"]

# As LocalStorage calls its own, so that what reads the same directory on the server itself leaves them out too.
TEMPORARY = ".__lock"

_HELD_BYTES = 4 << 20
_COMPARED_BYTES = 4 << 20
_SYNCED_TOGETHER = 64

T = TypeVar("T")


class Writing:
    """The part of :class:`~ocdbt_py.storage.protocol.Storage` that writes, and waits for the disk if ``durable``."""

    def __init__(self, attempts: Attempts, reading: Reading, directories: Directories, *, durable: bool) -> None:
        self._do = attempts.do
        self._describe = attempts.describe
        self._reading = reading
        self._directories = directories
        self._durable = durable

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """With a token only as safe as the word that nobody else writes: it is compared first, and then replaced."""
        if if_version not in (ANY, ABSENT) and self._reading.token(path) != if_version:
            raise self._changed(path)
        body = Body(buffers)
        temporary = _temporary(path)
        try:
            attributes = self._do(path, lambda session: self._upload(session, temporary, 0, body, path))
            if if_version is not ABSENT:
                self._replace(temporary, path)
            elif not self._claim(temporary, path):
                raise self._changed(path)
        except BaseException as error:
            self._discard(temporary, error)
            raise
        try:
            self.sync_names([path])
        except StorageError as error:
            raise StorageError(
                f"{self._describe(path)} was written, but it is not known whether that survives a crash of the server",
                kind="not-durable",
                path=path,
            ) from error
        return Seen(stamp(attributes), digest(*body.views) if len(body) <= WHOLE_BYTES else None)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        temporary = _temporary(path)
        try:
            self._do(path, lambda session: self._upload(session, temporary, 0, Body(buffers), path, synced=False))
            self._name_new(temporary, path)
        except BaseException as error:
            self._discard(temporary, error)
            raise

    def sync(self, paths: Iterable[str]) -> None:
        """Where the server can (OpenSSH); elsewhere at once."""
        if not self._durable:
            return
        names = iter(list(dict.fromkeys(path.rstrip("/") for path in paths)))
        while together := list(islice(names, _SYNCED_TOGETHER)):
            self._do(together[0], partial(self._sync_files, paths=together))
            self.sync_names(together)

    def sync_names(self, paths: Sequence[str]) -> None:
        if self._durable:
            directories = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
            self._do(paths[0], lambda session: self._directories.sync(session, directories))

    def _sync_files(self, session: Session, paths: Sequence[str]) -> None:
        if session.can_sync:
            session.sync(paths)

    def _upload(
        self, session: Session, temporary: str, offset: int, body: Body, path: str, *, synced: bool = True
    ) -> Attributes:
        """Write to a file of a name that only we know; at offset 0 it begins anew, with the directories above it."""
        if offset:
            handle = session.open_for_writing(temporary, new=False)
        else:
            handle = self._directories.with_parents(
                session, path, lambda: session.open_for_writing(temporary, new=True)
            )
        try:
            session.write(handle, offset, body)
        except Refused as error:
            session.close_handle(handle)
            raise self._write_failed(session, error, path, len(body)) from error
        return session.finish(handle, synced=synced and self._durable)

    def _name_new(self, temporary: str, path: str) -> None:
        if not self._claim(temporary, path):
            raise taken(self._describe(path), path)

    def _claim(self, temporary: str, path: str) -> bool:
        """Give a complete file its name, unless that is taken: False. The temporary name is then still there."""
        again = False

        def claim(session: Session) -> bool:
            nonlocal again
            if again and session.found(temporary) is None:
                return True  # nobody else takes that name away: it happened, and only the answer was lost
            before, again = again, True
            try:
                session.rename(temporary, path)
            except Refused:
                if session.found(path) is None:
                    raise
                if not (before and self._same(session, temporary, path)):
                    return False
                remove(session, [temporary])  # the server was stopped between the two steps of its rename
            return True

        return self._settled(path, lambda: self._do(path, claim), lambda: again)

    def _replace(self, temporary: str, path: str) -> None:
        again = False

        def replace(session: Session) -> None:
            nonlocal again
            if again and session.found(temporary) is None:
                return
            again = True
            if session.can_replace:
                session.replace(temporary, path)
                return
            try:
                session.rename(temporary, path)
            except Refused as error:
                if session.found(path) is None:
                    raise
                raise UnsupportedError(
                    f"{self._describe(path)} cannot be replaced in one step: its server lacks OpenSSH's posix-rename"
                ) from error

        self._settled(path, lambda: self._do(path, replace), lambda: again)

    def _settled(self, path: str, work: Callable[[], T], begun: Callable[[], bool]) -> T:
        """Do the step that makes a write seen; where it cannot be known whether it happened, say so."""
        try:
            return work()
        except StorageError as error:
            if error.kind in TRANSIENT and begun():
                error.kind = "ambiguous"
            raise

    def _same(self, session: Session, one: str, other: str) -> bool:
        """Whether two files hold the same bytes."""
        size = session.stat(one).size
        if size is None or size != session.stat(other).size:
            return False
        handles = [session.open(one), session.open(other)]
        for start in range(0, size, _COMPARED_BYTES):
            parts = [read_range(session, handle, start, min(start + _COMPARED_BYTES, size)) for handle in handles]
            if parts[0] != parts[1]:
                break
        else:
            start = size
        session.close_handle(*handles)
        return start >= size

    def _discard(self, temporary: str, error: BaseException | None = None) -> None:
        """As far as the server lets us; the error that led here is the one that matters."""
        if isinstance(error, StorageError) and error.kind in (*TRANSIENT, "ambiguous"):
            return  # there is no connection, or it may be the new file that still has this name
        with suppress(OcdbtError):
            self._do(temporary, lambda session: remove(session, [temporary]))

    def _write_failed(self, session: Session, error: Refused, path: str, nbytes: int) -> OcdbtError:
        if error.code == FAILURE:
            with suppress(Refused):
                free = session.free_bytes(path.rpartition("/")[0] or "/")
                if free is not None and free < nbytes:
                    message = (
                        f"No space is left for {self._describe(path)} on the server; free some, or write elsewhere"
                    )
                    return StorageError(message, kind="no-space", path=path)
        return refusal(error, self._describe(path), path)

    def _changed(self, path: str) -> ConflictError:
        return changed(self._describe(path), path)


class NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: small pieces are held back, as a copy."""

    def __init__(self, writing: Writing, path: str) -> None:
        self._writing = writing
        self._path = path
        self._temporary = _temporary(path)
        self._held = bytearray()
        self._written = 0
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._demand_open()
        body = Body(buffers)
        if len(self._held) + len(body) >= _HELD_BYTES:
            self._send(Body([bytes(self._held), *body.views]))
            self._held.clear()
            return
        for view in body.views:
            self._held += view

    def close(self) -> None:
        self._demand_open()
        self._open = False
        try:
            if self._held or not self._written:
                self._send(Body([bytes(self._held)]))
            self._writing._name_new(self._temporary, self._path)
        except BaseException as error:
            self._writing._discard(self._temporary, error)
            raise

    def abort(self) -> None:
        if self._open and self._written:
            self._writing._discard(self._temporary)
        self._open = False

    def _send(self, body: Body) -> None:
        writing, offset = self._writing, self._written
        writing._do(
            self._path,
            lambda session: writing._upload(session, self._temporary, offset, body, self._path, synced=False),
        )
        self._written += len(body)

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")


def _temporary(path: str) -> str:
    """In the same directory, for a rename moves nothing then; a name as long as the server allows stays possible."""
    return f"{path.rpartition('/')[0]}/{os.urandom(16).hex()}{TEMPORARY}"
