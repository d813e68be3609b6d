"""Files of a server that speaks SFTP, which fsspec's ``sftp`` filesystem connects to.

From below: :mod:`~ocdbt_py_backends.sftp_packets`, :mod:`~ocdbt_py_backends.sftp_conversation` and
:mod:`~ocdbt_py_backends.sftp_session` are the protocol; :mod:`~ocdbt_py_backends.sftp_connection` and
:mod:`~ocdbt_py_backends.sftp_attempts` keep sessions, and replace what broke;
:mod:`~ocdbt_py_backends.sftp_directories`, :mod:`~ocdbt_py_backends.sftp_reading` and
:mod:`~ocdbt_py_backends.sftp_writing` do what a storage does; and this module is one.

SFTP has no compare-and-swap, but its rename refuses a name that is taken. So any number of writers may create files,
and databases here have numbered manifests. Some servers other than OpenSSH rename onto what is there; a database that
is opened for writing finds that out first. Which version of a file is replaced is looked up before, and so only the
caller's word that nobody else writes is safe.

``sync`` has the server wait for its disk where it can (OpenSSH). ``durable`` is not promised: only a connection tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal
from urllib.parse import unquote

from ocdbt_py.errors import InvalidArgumentError, PathNotFoundError, StorageError, UnsupportedError
from ocdbt_py.storage.location import Settings, safe_path
from ocdbt_py.storage.protocol import (
    ANY,
    Buffer,
    ByteRange,
    Capabilities,
    Condition,
    Filling,
    Growing,
    Hold,
    Listed,
    Note,
    Read,
    Storage,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py_backends.sftp_attempts import Attempts
from ocdbt_py_backends.sftp_connection import Make, filesystem_class, quick_transport
from ocdbt_py_backends.sftp_directories import Directories, remove
from ocdbt_py_backends.sftp_reading import Reading
from ocdbt_py_backends.sftp_session import Session
from ocdbt_py_backends.sftp_writing import TEMPORARY, NewFile, Writing

__all__ = ["SFTPStorage"]

_CAPABILITIES = Capabilities(
    create=True,
    atomic_write=True,
    ranges=True,
    list=True,
    rename=True,
    writable=True,
    conditions_unproven=True,
)


class SFTPStorage:
    """Files of one account on one server. Paths are absolute. Safe for threads and forks; connects when first used."""

    def __init__(self, make: Make, settings: Settings, fs: Any = None):
        self._make = make
        self._settings = settings
        self._attempts = Attempts(make, self.describe, fs)
        self._directories = Directories(self.describe, durable=settings.durable)
        self._reading = Reading(self._attempts)
        self._writing = Writing(self._attempts, self._reading, self._directories, durable=settings.durable)

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
        return self._reading.read(path, start, stop, unless=unless)

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        return self._reading.read_many(ranges)

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._reading.read_many_into(fillings)

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Files on a server are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        directory, _, stem = prefix.rpartition("/")
        return self._list(directory, stem, deep, ())

    def _list(self, directory: str, stem: str, deep: bool, followed: tuple[str, ...]) -> Iterator[Listed]:
        for name, attributes, real in self._attempts.do(
            directory, lambda session: self._directories.entries(session, directory, stem)
        ):
            path = f"{directory}/{name}"
            if name.endswith(TEMPORARY):
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
        return self._writing.write(path, buffers, if_version)

    def create(self, path: str) -> Writer:
        return NewFile(self._writing, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._writing.put(path, buffers)

    def delete(self, path: str) -> None:
        if not path.strip("/"):
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        if path.endswith("/"):
            self._attempts.do(path, lambda session: self._directories.delete(session, path.rstrip("/")))
        else:
            self._attempts.do(path, lambda session: remove(session, [path]))

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

        self._attempts.do(source, move)
        self._writing.sync_names([target, source])

    def sync(self, paths: Iterable[str]) -> None:
        self._writing.sync(paths)

    def grow(self, path: str) -> Growing:
        raise UnsupportedError("Files on a server do not grow here; put another one")

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers on a server do not wait for each other; a refused rename decides")


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
