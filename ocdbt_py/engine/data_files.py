"""Values and nodes into data files: every append gets a file name and an offset at once, the bytes follow.

There is one open file per distinct name prefix. Buffers are remembered, not copied, and handed to the storage in long
runs; a file is seen by nobody before it is closed, and named by nothing before the manifest. Files over 4 MiB end on a
multiple of 4096 bytes, in zeros, as TensorStore's do ("Files of a database").
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from ocdbt_py.errors import OcdbtError
from ocdbt_py.format.datafile import NO_FILE, DataFileId, Location
from ocdbt_py.storage.protocol import Buffer, Storage, Writer

PADDED_FROM = 4 << 20
PAGE = 4096
PENDING_BYTES = 64 << 20
"""So much may be remembered before it is written, when the buffers are our own (nodes and copies of small values)."""

NameSource = Callable[[], str]


def random_name() -> str:
    """32 hex digits from the operating system: forked processes share the state of ``random`` and would collide."""
    return os.urandom(16).hex()


@dataclass(slots=True)
class _OpenFile:
    id: DataFileId
    path: str
    size: int = 0
    pending: list[Buffer] = field(default_factory=list)
    pending_bytes: int = 0
    writer: Writer | None = None


class DataFiles:
    """The data files that one commit writes below ``base`` (a path in ``storage``, without a trailing slash)."""

    def __init__(self, storage: Storage, base: str, target_size: int, names: NameSource = random_name) -> None:
        self._storage = storage
        self._base = base
        self._target = target_size
        self._names = names
        self._open: dict[str, _OpenFile] = {}
        self._closed: list[str] = []
        self._unsynced: list[str] = []

    def append(self, prefix: str, data: Buffer) -> Location:
        """Where ``data`` will stand, in a file whose name starts with ``prefix``; it must not change until written."""
        length = len(data)
        if not length:
            return Location(NO_FILE, 0, 0)  # nothing to fetch, so no file; as TensorStore would refer to it
        file = self._open.get(prefix)
        if file is None:
            name = prefix + self._names()
            relative = name.encode("utf-8", "surrogateescape")
            file = self._open[prefix] = _OpenFile(DataFileId(b"", relative), f"{self._base}/{name}")
        location = Location(file.id, file.size, length)
        file.pending.append(data)
        file.pending_bytes += length
        file.size += length
        if self._target and file.size >= self._target:
            self._close(prefix)
        elif file.pending_bytes >= PENDING_BYTES:
            self._drain(file)
        return location

    @property
    def pending_bytes(self) -> int:
        """Appended and not yet handed to the storage."""
        return sum(file.pending_bytes for file in self._open.values())

    def drain(self) -> None:
        """Hand what was appended so far to the storage; the buffers are free again. The files stay open."""
        for file in self._open.values():
            self._drain(file)

    def flush(self) -> None:
        """Close every file and wait until all of them would survive a crash."""
        for prefix in list(self._open):
            self._close(prefix)
        if self._unsynced:
            self._storage.sync(self._unsynced)
            self._unsynced = []

    def keep(self) -> list[str]:
        """The files closed so far, which :meth:`abort` leaves alone from now on: a manifest may refer to them."""
        kept, self._closed = self._closed, []
        return kept

    def disown(self, kept: list[str]) -> None:
        """No manifest refers to them after all."""
        self._closed += kept

    def abort(self) -> None:
        """Remove what was written, as far as the storage lets us: it may be what failed, and garbage harms nobody."""
        for file in self._open.values():
            if file.writer is not None:
                with suppress(OcdbtError):
                    file.writer.abort()
        self._open.clear()
        for path in self._closed:
            with suppress(OcdbtError):
                self._storage.delete(path)
        self._closed.clear()
        self._unsynced.clear()

    def _drain(self, file: _OpenFile) -> None:
        if file.writer is None:
            file.writer = self._storage.create(file.path)
        if file.pending:
            file.writer.write(file.pending)
            file.pending, file.pending_bytes = [], 0

    def _close(self, prefix: str) -> None:
        file = self._open[prefix]
        if file.size > PADDED_FROM and file.size % PAGE:
            file.pending.append(bytes(-file.size % PAGE))
        self._drain(file)
        assert file.writer is not None
        file.writer.close()
        del self._open[prefix]
        self._closed.append(file.path)
        self._unsynced.append(file.path)
