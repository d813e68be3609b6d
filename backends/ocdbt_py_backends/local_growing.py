"""A local file that its one writer appends to, with one wait for the disk for each time.

A new file is also a new name in a directory, which must be on the disk before anything refers to the file. That is
waited for once. ``fdatasync`` waits for the bytes and the size of the file alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ocdbt_py.storage.protocol import Buffer
from ocdbt_py_backends.local_errors import Translated
from ocdbt_py_backends.local_files import append, fsync
from ocdbt_py_backends.local_syncing import Syncing

__all__ = ["GrowingFile"]


class GrowingFile:
    """A :class:`~ocdbt_py.storage.protocol.Growing`, made with the object; its directory is there."""

    _fd = -1

    def __init__(self, path: str, *, durable: bool) -> None:
        self.size = 0
        self._path = path
        self._durable = durable
        self._is_named = False
        self._syncs: list[Syncing] = []
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)

    def append(self, buffers: Sequence[Buffer]) -> None:
        with Translated(self._path):
            self.size += append(self._fd, buffers)
        if self._durable:
            self._syncs.append(Syncing(self._sync))

    def sync(self) -> None:
        with Translated(self._path):
            while self._syncs:
                self._syncs[-1].wait()
                self._syncs.pop()

    def _sync(self) -> None:
        if self._is_named:
            getattr(os, "fdatasync", os.fsync)(self._fd)
            return
        os.fsync(self._fd)
        fsync(os.path.dirname(self._path))
        self._is_named = True

    def is_there(self) -> bool:
        with Translated(self._path):
            try:
                named = os.stat(self._path)
            except FileNotFoundError:
                return False
            return os.path.samestat(named, os.fstat(self._fd)) and named.st_size == self.size

    def close(self) -> None:
        if self._fd >= 0:
            for sync in self._syncs:
                sync.forget()
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()
