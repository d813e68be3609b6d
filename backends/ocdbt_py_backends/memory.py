"""Files in the memory of this process: those of fsspec's ``MemoryFileSystem``, which sees the same ones.

The token of a content is a number given to the file object when it is first met, and its size. Replacing a file through
fsspec puts another object in its place, and so changes the token, which changes again as that object is filled. Only a
change in place that keeps the size goes unnoticed, and files are not changed in place here.

One lock guards every store, for the moments in which names change; bytes are copied outside of it, and fsspec, which
does not know the lock, changes names in single steps. A store cannot be shared with another process: a fork has its own
copy from then on.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, Literal

import fsspec
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
    WaitTimeoutError,
)
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
    Growing,
    Hold,
    Listed,
    Note,
    Read,
    TakenNote,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py.storage.refusals import changed, taken, too_short

_CAPABILITIES = Capabilities(
    cas=True,
    create=True,
    atomic_write=True,
    ranges=True,
    list=True,
    rename=True,
    hold=True,
    writable=True,
)

_SERIAL = "_ocdbt_py_serial"
_serials = count(1)


class _Turns:
    """Who may change names now: anybody, but not a file that is held. ``changed`` is the lock of all stores."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        self.changed = threading.Condition()
        self.held: set[tuple[int, str]] = set()


_turns = _Turns()
os.register_at_fork(after_in_child=_turns.renew)  # the threads that hold anything are not in the child


class MemoryStorage:
    """The files of ``fs``, a ``MemoryFileSystem``. Safe for threads. Paths begin with ``/``, as in its store."""

    def __init__(self, fs: MemoryFileSystem | None = None) -> None:
        self._fs = fsspec.filesystem("memory") if fs is None else fs

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[MemoryStorage, str]:
        """``storage_options`` are those of ``MemoryFileSystem``; ``settings`` mean nothing here."""
        return cls.from_fs(fsspec.filesystem("memory", **storage_options), url, settings)

    @classmethod
    def from_fs(cls, fs: MemoryFileSystem, path: str, settings: Settings) -> tuple[MemoryStorage, str]:
        return cls(fs), fs._strip_protocol(path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MemoryStorage) and self._fs.store is other._fs.store

    def __hash__(self) -> int:
        return id(self._fs.store)

    def __repr__(self) -> str:
        return "MemoryStorage()"

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    def describe(self, path: str) -> str:
        return "memory:/" + safe_path(path)

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        file = self._file(path)
        token = _token(file)
        if unless is not None and unless == token:
            return UNCHANGED
        with file.getbuffer() as content:
            return Read(bytes(content[start:stop]), token, len(content))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        found = []
        for path, start, stop in ranges:
            with self._file(path).getbuffer() as content:
                _check_within(path, len(content), start, stop)
                found.append(bytes(content[start:stop]))
        return found

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        for path, start, buffer in fillings:
            with self._file(path).getbuffer() as content:
                _check_within(path, len(content), start, start + len(buffer))
                buffer[:] = content[start : start + len(buffer)]

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Files in memory are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        with _turns.changed:
            files = [(path, file) for path, file in list(self._fs.store.items()) if path.startswith(prefix)]
            empty = [f"{path}/" for path in self._fs.pseudo_dirs if f"{path}/".startswith(prefix)]
        directories = set()
        for path, file in files:
            end = path.find("/", len(prefix))
            if deep or end < 0:
                yield Listed(path, file.size)
            else:
                directories.add(path[: end + 1])
        if not deep:
            directories.update(path[: end + 1] for path in empty if (end := path.find("/", len(prefix))) >= 0)
            yield from (Listed(path, None) for path in directories)

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        file = self._new_file(path, buffers)
        with self._turn(path):
            return self._replace(file, if_version)

    def create(self, path: str) -> Writer:
        return _NewFile(self, self._new_file(path, ()))

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        new = self.create(path)
        new.write(buffers)
        new.close()

    def grow(self, path: str) -> Growing:
        raise UnsupportedError("Files in memory do not grow; put another one")

    @contextmanager
    def hold(self, path: str, timeout: float, note: Note | None = None) -> Iterator[Hold]:
        """A second writer in the same thread waits too, and so for ever: write through the :class:`Hold`."""
        turn = (id(self._fs.store), path)
        with self._turn(path, timeout):
            _turns.held.add(turn)
        try:
            yield _Held(self, path)
        finally:
            with _turns.changed:
                _turns.held.discard(turn)
                _turns.changed.notify_all()

    def delete(self, path: str) -> None:
        if not path.endswith("/"):
            with self._turn(path):
                self._fs.store.pop(path, None)
            return
        if not path.strip("/"):
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        with _turns.changed:
            for file in [file for file in list(self._fs.store) if file.startswith(path)]:
                del self._fs.store[file]
            self._fs.pseudo_dirs[:] = [name for name in self._fs.pseudo_dirs if not f"{name}/".startswith(path)]

    def rename(self, source: str, target: str) -> None:
        source, target = source.rstrip("/") + "/", target.rstrip("/") + "/"
        store, directories = self._fs.store, self._fs.pseudo_dirs
        with _turns.changed:
            files = [path for path in list(store) if path.startswith(source)]
            below = [path for path in directories if f"{path}/".startswith(source)]
            if not files and not below:
                raise PathNotFoundError(f"There is no directory {source}", path=source)
            if target[:-1] in store or any(path.startswith(target) for path in list(store)):
                raise AlreadyExistsError(f"{target} is there and not an empty directory", path=target)
            if target.startswith(source):
                raise StorageError(f"{source} cannot be moved into itself", path=target)
            self._check_parents(target[:-1])
            for path in files:
                file = store[target + path[len(source) :]] = store.pop(path)
                file.path = target + path[len(source) :]
            for path in below:
                directories.remove(path)
                moved = (target + f"{path}/"[len(source) :])[:-1]
                if moved not in directories:
                    directories.append(moved)

    def sync(self, paths: Iterable[str]) -> None:
        """Memory does not outlive the process, and nothing here claims that."""

    @contextmanager
    def _turn(self, path: str, timeout: float | None = None) -> Iterator[None]:
        """The lock, at a moment when nobody holds the file."""
        turn = (id(self._fs.store), path)
        deadline = None if timeout is None else time.monotonic() + timeout
        with _turns.changed:
            while turn in _turns.held:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise WaitTimeoutError(
                        f"Waited {timeout} seconds for {path}: another writer holds it", kind="lock-timeout"
                    )
                _turns.changed.wait(left)
            yield

    def _file(self, path: str) -> MemoryFile:
        file = self._fs.store.get(path)
        if file is None:
            raise PathNotFoundError(f"There is no {self.describe(path)}", path=path)
        return file

    def _new_file(self, path: str, buffers: Iterable[Buffer]) -> MemoryFile:
        """Seen by nobody yet."""
        self._check_parents(path)
        return MemoryFile(self._fs, path, b"".join(buffers))

    def _check_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in self._fs.store:
                raise StorageError(f"{path} cannot be made: {parent} is a file", kind="not-a-directory", path=path)
            parent = parent.rpartition("/")[0]

    def _replace(self, file: MemoryFile, if_version: Token | Condition) -> Token:
        """Give the file its name; the caller has the lock."""
        path = file.path
        old = self._fs.store.get(path)
        current = None if old is None else _token(old)
        if if_version is not ANY and current != (None if if_version is ABSENT else if_version):
            raise changed(path, path)
        if path in self._fs.pseudo_dirs:
            raise StorageError(f"{path} is a directory, where a file is expected", kind="not-a-file", path=path)
        file.commit()
        return _token(file)


class _Held:
    """A :class:`~ocdbt_py.storage.protocol.Hold`."""

    def __init__(self, storage: MemoryStorage, path: str) -> None:
        self._storage = storage
        self._path = path

    def write(self, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        return self.begin(buffers)(if_version)

    def take_notes(self, expected: int = 0, patience: float = 0.0) -> Sequence[TakenNote]:
        return ()

    def begin(self, buffers: Sequence[Buffer]) -> Callable[[Token | Condition], Token]:
        file = self._storage._new_file(self._path, buffers)

        def put_in_place(if_version: Token | Condition) -> Token:
            with _turns.changed:
                return self._storage._replace(file, if_version)

        return put_in_place


class _NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`."""

    def __init__(self, storage: MemoryStorage, file: MemoryFile) -> None:
        self._storage = storage
        self._file: MemoryFile | None = file

    def write(self, buffers: Sequence[Buffer]) -> None:
        if self._file is None:
            raise InvalidArgumentError("This file is closed")
        for buffer in buffers:
            self._file.write(buffer)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is None:
            raise InvalidArgumentError("This file is closed")
        try:
            with self._storage._turn(file.path):
                self._storage._replace(file, ABSENT)
        except ConflictError as error:
            raise taken(file.path, file.path) from error

    def abort(self) -> None:
        self._file = None


def _token(file: MemoryFile) -> Token:
    serial = file.__dict__.get(_SERIAL)
    if serial is None:
        serial = file.__dict__.setdefault(_SERIAL, next(_serials))
    return serial, file.size


def _check_within(path: str, size: int, start: int, stop: int) -> None:
    if stop > size:
        raise too_short(path, path, start, stop, size)
