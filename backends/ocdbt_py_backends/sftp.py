"""Files of a server that speaks SFTP. fsspec's ``sftp`` filesystem makes the connection
(:mod:`ocdbt_py_backends.sftp_connection`); what moves over it is in :mod:`ocdbt_py_backends.sftp_session`.

SFTP has no compare-and-swap, but its rename refuses a name that is taken, and OpenSSH decides that atomically (by
``link``). So a new file is uploaded under a temporary name, which listings leave out, and then renamed: any number of
writers may create files, and databases here have numbered manifests. Some other servers rename onto what is there; a
database that is opened for writing finds that out first. A file is *replaced* by OpenSSH's ``posix-rename``, atomic for
readers; which version it replaces is looked up before, and so only the caller's word that nobody else writes is safe.

A connection that broke is made again, and what was under way is done again from where nothing is uncertain: a write has
its offset, and whether a rename happened is seen by whether the temporary name is still there.

``sync`` has the server wait for its disk where it can (OpenSSH). ``durable`` is not promised: only a connection tells.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar
from urllib.parse import unquote

from ocdbt_py.errors import (
    ConflictError,
    CorruptDataError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.coalesce import Fetch, fetches, fill, ranges_of, scatter
from ocdbt_py.storage.location import Settings, safe_path
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
    Storage,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py.storage.refusals import changed, taken, too_short
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.sftp_connection import Connection, Make, filesystem_class, quick_transport
from ocdbt_py_backends.sftp_directories import Directories, remove
from ocdbt_py_backends.sftp_failures import TRANSIENT, refusal
from ocdbt_py_backends.sftp_session import FAILURE, Attributes, Lost, Refused, Session
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, Sightings, digest

ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0

_GAP = 32 << 10
_READ_BYTES = 4 << 20
_READ_TOGETHER = 64
_BYTES_TOGETHER = 16 << 20
_HEAD_BYTES = 32 << 10
_HELD_BYTES = 4 << 20
_UNSTABLE_READS = 5
_MOST_OFFSET = 1 << 63

# As LocalStorage calls its own, so that what reads the same directory on the server itself leaves them out too.
_TEMPORARY = ".__lock"
_SECONDS_APART = 2.0

_CAPABILITIES = Capabilities(
    create=True,
    atomic_write=True,
    ranges=True,
    list=True,
    rename=True,
    writable=True,
    conditions_unproven=True,
)

T = TypeVar("T")


class SFTPStorage:
    """Files of one account on one server. Paths are absolute. Safe for threads and forks; connects when first used."""

    def __init__(self, make: Make, settings: Settings, fs: Any = None):
        self._make = make
        self._settings = settings
        self._sightings = Sightings(_SECONDS_APART)
        self._connection = Connection(make, self.describe, fs)
        self._directories = Directories(self.describe, durable=settings.durable)

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[SFTPStorage, str]:
        """``sftp://[user[:password]@]host[:port]/path``, the path taken literally; options win over what the URL says.

        ``storage_options`` are those of fsspec's ``sftp``, and so paramiko's (``key_filename``, ``timeout``, …).
        """
        authority, _, path = url.partition("://")[2].partition("/")
        user, _, host = authority.rpartition("@")
        host, port = _host_and_port(host)
        name, _, password = user.partition(":")
        found = {"host": host, "port": port, "username": unquote(name), "password": unquote(password)}
        options = {key: value for key, value in found.items() if value} | dict(storage_options)
        if not options.get("host"):
            raise InvalidArgumentError("A URL of an SFTP server names its host: sftp://host/path")
        for limit in ("timeout", "banner_timeout", "auth_timeout"):
            options.setdefault(limit, 20)
        options.setdefault("transport_factory", quick_transport)
        return cls((filesystem_class(), (), options), settings), _path(path)

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[Storage, str]:
        """``fs`` is fsspec's own; another package's ``sftp`` filesystem is served as any filesystem is."""
        if not isinstance(fs, filesystem_class()):
            from ocdbt_py_backends.generic import GenericStorage

            return GenericStorage.from_fs(fs, path, settings)
        make = (type(fs), tuple(fs.storage_args), dict(fs.storage_options))
        return cls(make, settings, fs), _path(fs._strip_protocol(path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SFTPStorage) and self._account() == other._account()

    def __hash__(self) -> int:
        return hash(self._account())

    def __repr__(self) -> str:
        return f"SFTPStorage({self.describe('')})"

    def __getstate__(self) -> tuple[Any, ...]:
        return self._make, self._settings

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        make, settings = state
        self.__init__(make, settings)  # type: ignore[misc]

    def _account(self) -> tuple[str, int, str | None]:
        _, args, options = self._make
        return args[0] if args else options["host"], options.get("port") or 22, options.get("username")

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def describe(self, path: str) -> str:
        host, port, _ = self._account()
        shown = safe_path(path)
        return f"sftp://{f'[{host}]' if ':' in host else host}{'' if port == 22 else f':{port}'}{shown}"

    # --- reading

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

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Files on a server are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        directory, _, stem = prefix.rpartition("/")
        return self._list(directory, stem, deep, ())

    def _read(
        self, session: Session, path: str, start: int, stop: int | None, unless: Token | None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        if isinstance(unless, Seen) and self._sightings.settled(path, unless):
            attributes = session.stat(path)
            if attributes.is_file and _stamp(attributes) == unless.stamp:
                return UNCHANGED
        for _ in range(_UNSTABLE_READS):
            at = time.monotonic()
            handle = session.open(path)
            try:
                attributes, head = session.begin_reading(handle, _HEAD_BYTES)
                if not attributes.is_file or attributes.size is None:
                    raise StorageError(
                        f"{self.describe(path)} is a directory or a device, where a file is expected",
                        kind="not-a-file",
                        path=path,
                    )
                size = attributes.size
                begin, end = start, size if stop is None else min(stop, size)
                if size <= WHOLE_BYTES:
                    begin, end = 0, size
                data = head[begin:end] if end <= len(head) else self._range(session, handle, begin, end)
            finally:
                if session.alive:
                    session.close_handle(handle)
            if len(data) == max(0, end - begin):
                break
        else:
            raise StorageError(f"{self.describe(path)} changes while it is read, again and again", path=path)
        if size > WHOLE_BYTES:
            token = Seen(_stamp(attributes), None)
        else:
            token = Seen(_stamp(attributes), digest(data))
            self._sightings.saw(path, token, at)
            data = data[start:stop]
        return UNCHANGED if token == unless else Read(data, token, size)

    def _range(self, session: Session, handle: bytes, start: int, stop: int) -> bytes:
        data = bytearray(max(0, stop - start))
        (count,) = session.read_into([(handle, start, memoryview(data))])
        return bytes(data[:count])

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
                        raise refusal(handle, self.describe(path), path) from handle
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
        return too_short(self.describe(fetch.path), fetch.path, fetch.start, fetch.stop, size)

    def _list(self, directory: str, stem: str, deep: bool, followed: tuple[str, ...]) -> Iterator[Listed]:
        for name, attributes, real in self._do(
            directory, lambda session: self._directories.entries(session, directory, stem)
        ):
            path = f"{directory}/{name}"
            if name.endswith(_TEMPORARY):
                continue
            if not attributes.is_directory:
                if attributes.is_file and attributes.size is not None:
                    yield Listed(path, attributes.size)
            elif not deep:
                yield Listed(f"{path}/", None)
            elif real is None:
                yield from self._list(path, "", True, followed)
            elif not any(f"{above}/".startswith(f"{real.rstrip('/')}/") for above in (directory, *followed)):
                # else a symbolic link back to where we are
                yield from self._list(path, "", True, (*followed, real))

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """With a token only as safe as the word that nobody else writes: it is compared first, and then replaced."""
        if if_version not in (ANY, ABSENT) and self._token(path) != if_version:
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
            self._sync_names([path])
        except StorageError as error:
            raise StorageError(
                f"{self.describe(path)} was written, but it is not known whether that survives a crash of the server",
                kind="not-durable",
                path=path,
            ) from error
        return Seen(_stamp(attributes), digest(*body.views) if len(body) <= WHOLE_BYTES else None)

    def create(self, path: str) -> Writer:
        return _NewFile(self, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        temporary = _temporary(path)
        try:
            self._do(path, lambda session: self._upload(session, temporary, 0, Body(buffers), path, synced=False))
            self._name_new(temporary, path)
        except BaseException as error:
            self._discard(temporary, error)
            raise

    def delete(self, path: str) -> None:
        if not path.strip("/"):
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        if path.endswith("/"):
            self._do(path, lambda session: self._directories.delete(session, path.rstrip("/")))
        else:
            self._do(path, lambda session: remove(session, [path]))

    def rename(self, source: str, target: str) -> None:
        source, target = source.rstrip("/"), target.rstrip("/")
        again = False

        def move(session: Session) -> None:
            nonlocal again
            attributes = session.found(source)
            if attributes is None and again:
                return  # it happened, and only the answer was lost
            if attributes is None:
                raise PathNotFoundError(f"There is no directory {self.describe(source)}", path=source)
            if not attributes.is_directory:
                raise StorageError(f"{self.describe(source)} is no directory", kind="not-a-directory", path=source)
            again = True
            self._directories.with_parents(session, target, lambda: self._directories.move(session, source, target))

        self._do(source, move)
        self._sync_names([target, source])

    def sync(self, paths: Iterable[str]) -> None:
        """Where the server can (OpenSSH); elsewhere at once."""
        if not self._settings.durable:
            return
        names = iter(list(dict.fromkeys(path.rstrip("/") for path in paths)))
        while together := list(islice(names, _READ_TOGETHER)):
            self._do(together[0], partial(self._sync_files, paths=together))
            self._sync_names(together)

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers on a server do not wait for each other; a refused rename decides")

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
        return session.finish(handle, synced=synced and self._settings.durable)

    def _name_new(self, temporary: str, path: str) -> None:
        if not self._claim(temporary, path):
            raise taken(self.describe(path), path)

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
                    f"{self.describe(path)} cannot be replaced in one step: its server lacks OpenSSH's posix-rename"
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
        for start in range(0, size, _READ_BYTES):
            parts = [self._range(session, handle, start, min(start + _READ_BYTES, size)) for handle in handles]
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

    def _token(self, path: str) -> Token | None:
        try:
            found = self.read(path, 0, 0)
        except PathNotFoundError:
            return None
        return found.token if isinstance(found, Read) else None

    def _sync_files(self, session: Session, paths: Sequence[str]) -> None:
        if session.can_sync:
            session.sync(paths)

    def _sync_names(self, paths: Sequence[str]) -> None:
        if self._settings.durable:
            directories = list(dict.fromkeys(path.rpartition("/")[0] for path in paths))
            self._do(paths[0], lambda session: self._directories.sync(session, directories))

    # --- how

    def _do(self, path: str, work: Callable[[Session], T]) -> T:
        """Let a session do it, and again after the connection broke: ``work`` may be done twice."""
        pause = _FIRST_PAUSE
        for left in reversed(range(ATTEMPTS)):
            try:
                connection = self._process()
                with connection.session(path) as session:
                    return work(session)
            except Refused as error:
                raise refusal(error, self.describe(path), path) from error
            except Lost as error:
                failure = StorageError(
                    f"{self.describe(path)}: {error}; check the network and the server",
                    kind="timeout" if isinstance(error.__cause__, TimeoutError) else "interrupted",
                    path=path,
                )
                if not left:
                    raise failure from error
            except StorageError as error:
                if error.kind not in TRANSIENT or not left:
                    raise
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")

    def _process(self) -> Connection:
        """The connection as this process may use it."""
        if self._connection.pid != os.getpid():
            self._connection.abandon()
            self._connection = Connection(self._make, self.describe)
        return self._connection

    def _changed(self, path: str) -> ConflictError:
        return changed(self.describe(path), path)

    def _write_failed(self, session: Session, error: Refused, path: str, nbytes: int) -> OcdbtError:
        if error.code == FAILURE:
            with suppress(Refused):
                free = session.free_bytes(path.rpartition("/")[0] or "/")
                if free is not None and free < nbytes:
                    message = f"No space is left for {self.describe(path)} on the server; free some, or write elsewhere"
                    return StorageError(message, kind="no-space", path=path)
        return refusal(error, self.describe(path), path)


class _NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: small pieces are held back, as a copy."""

    def __init__(self, storage: SFTPStorage, path: str) -> None:
        self._storage = storage
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
            self._storage._name_new(self._temporary, self._path)
        except BaseException as error:
            self._storage._discard(self._temporary, error)
            raise

    def abort(self) -> None:
        if self._open and self._written:
            self._storage._discard(self._temporary)
        self._open = False

    def _send(self, body: Body) -> None:
        storage, offset = self._storage, self._written
        storage._do(
            self._path,
            lambda session: storage._upload(session, self._temporary, offset, body, self._path, synced=False),
        )
        self._written += len(body)

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")


def _stamp(attributes: Attributes) -> tuple[int | None, int | None]:
    return attributes.size, attributes.modified


def _temporary(path: str) -> str:
    """In the same directory, for a rename moves nothing then; a name as long as the server allows stays possible."""
    return f"{path.rpartition('/')[0]}/{os.urandom(16).hex()}{_TEMPORARY}"


def _path(text: str) -> str:
    """Absolute, and in one spelling. No ``..``: where it leads only the server knows."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgumentError(f"{text} has a .. in it; spell the path on the server without")
    return "".join(f"/{part}" for part in parts)


def _host_and_port(text: str) -> tuple[str, int | None]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise InvalidArgumentError(f"{port!r} is no port of a server")
    return host, int(port) if port else None
