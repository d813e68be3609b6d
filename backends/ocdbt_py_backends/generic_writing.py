"""What is written to any filesystem of fsspec: a file comes into being whole, or is replaced whole, as far as it can.

It gets a temporary name, which listings leave out, and is moved, where the server is known to move in one step;
elsewhere it is written under its own name, which for object stores is one step too.

Nothing of fsspec's is conditional: conditions are looked up, then written. Only the caller's word that nobody else
writes (``single_writer=True``) makes that safe.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ocdbt_py.errors import InvalidArgumentError, OcdbtError, StorageError
from ocdbt_py.storage.protocol import ABSENT, ANY, Buffer, Condition, Token
from ocdbt_py.storage.refusals import changed, taken
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.generic_attempts import Attempts
from ocdbt_py_backends.generic_directories import Directories
from ocdbt_py_backends.generic_filesystem import MOVES, PIECE_BYTES, let_go, upload
from ocdbt_py_backends.generic_reading import Reading
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, digest

__all__ = ["TEMPORARY", "NewFile", "Writing"]

TEMPORARY = ".__lock"


class Writing:
    """The part of :class:`~ocdbt_py.storage.protocol.Storage` that writes; ``protocol`` is the filesystem's."""

    def __init__(self, attempts: Attempts, directories: Directories, reading: Reading, protocol: str) -> None:
        self._attempts = attempts
        self._describe = attempts.describe
        self._directories = directories
        self._reading = reading
        self._move = MOVES.get(protocol)

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """Conditions are looked up first: only as safe as the word that nobody else writes."""
        if if_version is not ANY:
            current = self._reading.token(path)
            if current != (None if if_version is ABSENT else if_version):
                raise changed(self._describe(path), path)
        body = Body(buffers)
        self._attempts.do(path, lambda fs: self._write(fs, path, body), reading=False)
        stamp, _ = self._attempts.do(path, lambda fs: self._reading.look(fs, path))
        return Seen(stamp, digest(*body.views) if len(body) <= WHOLE_BYTES else None)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._demand_absent(path)
        body = Body(buffers)
        self._attempts.do(path, lambda fs: self._write(fs, path, body), reading=False)

    def _demand_absent(self, path: str) -> None:
        if self._attempts.do(path, lambda fs: self._directories.there(fs, path)) is not None:
            raise taken(self._describe(path), path)

    def _write(self, fs: Any, path: str, body: Body) -> None:
        """Replace or make a file; done twice, it comes to the same."""
        name = self._name_for(path)
        try:
            self._directories.with_parents(fs, path, lambda: upload(fs, name, body))
            self._finish(fs, name, path)
        except BaseException:
            if name != path:
                with suppress(Exception):
                    fs.rm_file(name)
            raise

    def _name_for(self, path: str) -> str:
        """What a file is called until it is whole."""
        if self._move is None:
            return path
        directory, separator, _ = path.rpartition("/")
        return f"{directory}{separator}{os.urandom(16).hex()}{TEMPORARY}"

    def _finish(self, fs: Any, name: str, path: str) -> None:
        if self._move is None:
            return
        try:
            self._move(fs, name, path)
        except Exception:
            if self._directories.there(fs, path) is None:
                raise
            fs.rm_file(path)  # a server that moves onto no file
            self._move(fs, name, path)


class NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: what is small is held back, as a copy, and sent at once."""

    def __init__(self, writing: Writing, path: str) -> None:
        writing._demand_absent(path)
        self._writing = writing
        self._path = path
        self._name = writing._name_for(path)
        self._held = bytearray()
        self._file: Any = None
        self._fs: Any = None
        self._open = True

    def write(self, buffers: Sequence[Buffer]) -> None:
        self._demand_open()
        body = Body(buffers)
        if self._file is None and len(self._held) + len(body) < PIECE_BYTES:
            for view in body.views:
                self._held += view
            return
        with self._in_use() as fs:
            if self._file is None:
                parent = self._path.rpartition("/")[0]
                if parent.strip("/") and self._writing._directories.there(fs, parent) is None:
                    fs.makedirs(parent, exist_ok=True)
                self._file = fs.open(self._name, "wb")
            for piece in Body([bytes(self._held), *body.views]).pieces(PIECE_BYTES):
                self._file.write(piece)
            self._held.clear()

    def close(self) -> None:
        self._demand_open()
        writing = self._writing
        if self._file is None:
            self._open = False
            writing.put(self._path, [self._held])
            return
        try:
            with self._in_use() as fs:
                self._file.close()
                if self._name != self._path and writing._directories.there(fs, self._path) is not None:
                    raise taken(writing._describe(self._path), self._path)
                writing._finish(fs, self._name, self._path)
            self._open = False
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        if not self._open:
            return
        self._open = False
        file, self._file = self._file, None
        if file is not None:
            with suppress(Exception):
                let_go(file)
            with suppress(OcdbtError):
                self._writing._attempts.do(self._path, lambda fs: self._writing._directories.remove(fs, self._name))

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        """The filesystem on which the file was begun; what was sent through another is lost with it."""
        writing, path = self._writing, self._path
        try:
            with writing._attempts.used(path) as fs:
                if self._fs is None:
                    self._fs = fs
                if self._fs is not fs:
                    raise StorageError(
                        f"{writing._describe(path)}: the connection broke while the file was written; write it again",
                        kind="interrupted",
                        path=path,
                    )
                yield fs
        except Exception as error:
            failure = writing._attempts.translated(error, path, reading=False)
            raise failure from (None if failure is error else error)

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")
