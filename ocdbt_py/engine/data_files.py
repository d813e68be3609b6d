"""Values and nodes into data files: every append gets a file name and an offset at once, the bytes follow.

There is one open file per distinct name prefix. Buffers are remembered, not copied. A file that is closed before too
much is held for it is put in one call, straight from them; a longer one is written in runs. A file is seen by nobody
before it is closed, and named by nothing before the manifest. Files over 4 MiB end on a multiple of 4096 bytes, in
zeros, as TensorStore's do ("Files of a database").

**Where each request costs milliseconds** (``Capabilities.parallel``) files are cut where the storage likes it, and each
is put in the background while the next one is filled. What the caller lends (``borrowed``: memory that is there anyway
and does not change until the end) may all be under way at once; of what exists only to be written, as encoded chunks
and nodes do, at most :data:`PENDING_BYTES` are held.

What a small commit writes goes behind that of the one before it, where the storage can do that
(:mod:`ocdbt_py.engine.growing_files`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.errors import AlreadyExistsError, OcdbtError
from ocdbt_py.format.datafile import NO_FILE, DataFileId, Location
from ocdbt_py.storage.background import Background, each
from ocdbt_py.storage.protocol import Buffer, Growing, Storage, Writer

if TYPE_CHECKING:
    from ocdbt_py.engine.growing_files import GrowingFiles

PADDED_FROM = 4 << 20
PAGE = 4096
PENDING_BYTES = 48 << 20
"""So much may be remembered before it is written, of what is not borrowed."""
RUN_BYTES = 2 << 20
"""Long files are written in multiples of this, to multiples of it: a system that caches files in huge pages puts each
into one of them, in half the time that it takes for many small ones."""

NameSource = Callable[[], str]


def random_name() -> str:
    """32 hex digits from the operating system: forked processes share the state of ``random`` and would collide."""
    return os.urandom(16).hex()


class _OpenFile:
    def __init__(self, base: str, name: str, growing: Growing | None = None) -> None:
        self.id = DataFileId(b"", name.encode("utf-8", "surrogateescape"))
        self.name = name
        self.path = f"{base}/{name}"
        self.growing = growing
        self.size = growing.size if growing is not None else 0
        self.pending: list[Buffer] = []
        self.pending_bytes = 0
        self.owned_bytes = 0
        self.writer: Writer | None = None


class DataFiles:
    """The data files that one commit writes below ``base`` (a path in ``storage``, without a trailing slash).

    ``growing`` are those to append to instead.
    """

    def __init__(
        self,
        storage: Storage,
        base: str,
        target_size: int,
        names: NameSource = random_name,
        pending_bytes: int = PENDING_BYTES,
        growing: GrowingFiles | None = None,
    ) -> None:
        capabilities = storage.capabilities
        self._storage = storage
        self._base = base
        self._names = names
        self._most_pending = pending_bytes
        # Where files are put in the background, another is begun after so many bytes that are not borrowed: one is
        # being filled while others are on their way.
        self._cut = pending_bytes // 4
        self._parallel = capabilities.parallel
        self._uploads = Background(self._parallel, pending_bytes - pending_bytes // 4) if self._parallel > 1 else None
        sizes = [size for size in (target_size, capabilities.file_bytes if self._uploads else 0) if size]
        self._target = min(sizes, default=0)
        self._growing = growing
        self._open: dict[str, _OpenFile] = {}
        self._grown: list[tuple[str, _OpenFile, Growing]] = []
        self._closed: list[str] = []
        self._unsynced: list[str] = []

    def append(self, prefix: str, data: Buffer, *, borrowed: bool = False, alignment: int = 1) -> Location:
        """Where ``data`` will stand, in a file whose name starts with ``prefix``; it must not change until written.

        It begins on a multiple of ``alignment``, zeros before it.
        """
        length = len(data)
        if not length:
            return Location(NO_FILE, 0, 0)  # nothing to fetch, so no file; as TensorStore would refer to it
        file = self._file(prefix, alignment)
        location = Location(file.id, file.size, length)
        file.pending.append(data)
        self._grow(prefix, file, length, borrowed)
        return location

    def _grow(self, prefix: str, file: _OpenFile, length: int, borrowed: bool) -> None:
        """So much was appended; write it, or begin to, if it is time for that."""
        file.pending_bytes += length
        file.size += length
        if not borrowed:
            file.owned_bytes += length
        if self._target and file.size >= self._target:
            self._close(prefix)
        elif self._uploads is not None:
            if file.owned_bytes >= self._cut:
                self._close(prefix)
        elif file.owned_bytes >= self._most_pending:
            self._drain_runs(file)

    def append_all(
        self, prefix: str, values: Sequence[Buffer], *, borrowed: bool = False, alignment: int = 1
    ) -> tuple[DataFileId, NDArray[np.int64], NDArray[np.int64]]:
        """As :meth:`append`, for many values, none of them empty, in one file: that, their offsets and lengths."""
        file = self._file(prefix, alignment)
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        gaps = -lengths % alignment
        gaps[-1] = 0  # which the next value brings along
        steps = lengths + gaps
        offsets = file.size + np.cumsum(steps) - steps
        if gaps.any():
            for value, gap in zip(values, gaps.tolist(), strict=True):
                file.pending.append(value)
                if gap:
                    file.pending.append(bytes(gap))
        else:
            file.pending += values
        self._grow(prefix, file, int(steps.sum()), borrowed)
        return file.id, offsets, lengths

    def append_pieces(self, prefix: str, pieces: Iterable[Buffer], *, alignment: int = 1) -> Location:
        """As :meth:`append`, for a value that is too large to be held: written as its pieces come, a run at a time."""
        file = self._file(prefix, alignment)
        start = file.size
        for piece in pieces:
            file.pending.append(piece)
            file.pending_bytes += len(piece)
            file.owned_bytes += len(piece)
            file.size += len(piece)
            if file.owned_bytes >= self._cut:
                self._drain_runs(file)
        location = Location(file.id, start, file.size - start)
        if (self._target and file.size >= self._target) or self._uploads is not None:
            self._close(prefix)
        return location

    def _file(self, prefix: str, alignment: int) -> _OpenFile:
        """The open file of a prefix, its end on a multiple of ``alignment``."""
        file = self._open.get(prefix)
        if file is None:
            file = self._open[prefix] = self._begun(prefix)
        if gap := -file.size % alignment:
            file.pending.append(bytes(gap))
            file.pending_bytes += gap
            file.size += gap
        return file

    def _begun(self, prefix: str) -> _OpenFile:
        if self._growing is None:
            return _OpenFile(self._base, prefix + self._names())
        file = _OpenFile(self._base, *self._growing.take(prefix))
        if not file.size:
            self._closed.append(file.path)  # so far, nobody refers to it
        return file

    @property
    def pending_bytes(self) -> int:
        """Appended and not yet handed to the storage."""
        return sum(file.pending_bytes for file in self._open.values())

    def drain(self) -> None:
        """Hand what was appended so far to the storage, or begin to."""
        for prefix, file in list(self._open.items()):
            if self._uploads is not None:
                self._close(prefix)
            else:
                self._drain(file)

    def drain_runs(self) -> None:
        """The same, but for the end of each file, which is better written together with what comes."""
        if self._uploads is not None:
            self.drain()
        for file in self._open.values():
            self._drain_runs(file)

    def begin_flush(self) -> None:
        """Let what goes into files that grow be on its way to the disk."""
        for prefix, file in list(self._open.items()):
            if file.growing is not None:
                self._close(prefix)

    def flush(self) -> None:
        """Close every file and wait until all of them would survive a crash."""
        for prefix in list(self._open):
            self._close(prefix)
        if self._uploads is not None:
            self._uploads.wait()
        if self._unsynced:
            self._storage.sync(self._unsynced)
            self._unsynced = []
        while self._grown:
            prefix, file, growing = self._grown[-1]
            growing.sync()
            if self._growing is not None:
                self._growing.keep(prefix, file.name, growing)
            self._grown.pop()

    def keep(self) -> list[str]:
        """The files begun so far, which :meth:`abort` leaves alone from now on: a manifest may refer to them."""
        kept, self._closed = self._closed, []
        return kept

    def disown(self, kept: list[str]) -> None:
        """No manifest refers to them after all."""
        self._closed += kept

    def abort(self) -> None:
        """Remove what was written, as far as the storage lets us: it may be what failed, and garbage harms nobody.

        Returns when nothing is under way any more, so that borrowed memory is the caller's again.
        """
        for file in self._open.values():
            if file.writer is not None:
                with suppress(OcdbtError):
                    file.writer.abort()
            if file.growing is not None:
                file.growing.close()
        self._open.clear()
        for _, _, growing in self._grown:
            growing.close()
        self._grown.clear()
        if self._uploads is not None:
            self._uploads.settle()
        each(self._remove, self._closed, self._parallel)
        self._closed.clear()
        self._unsynced.clear()

    def _remove(self, path: str) -> None:
        with suppress(OcdbtError):
            self._storage.delete(path)

    def _drain_runs(self, file: _OpenFile) -> None:
        rest = file.size % RUN_BYTES
        if file.pending_bytes > rest:
            self._drain(file, rest)

    def _drain(self, file: _OpenFile, rest: int = 0) -> None:
        """All but so many bytes at the end."""
        pending, left = _cut(file.pending, file.pending_bytes - rest) if rest else (file.pending, [])
        if file.growing is not None:
            file.growing.append(pending)
        else:
            if file.writer is None:
                file.writer = self._storage.create(file.path)
            if pending:
                file.writer.write(pending)
        file.pending, file.pending_bytes, file.owned_bytes = left, rest, min(rest, file.owned_bytes)

    def _close(self, prefix: str) -> None:
        file = self._open[prefix]
        if file.growing is not None:
            self._drain(file)
            del self._open[prefix]
            self._grown.append((prefix, file, file.growing))
            return
        if file.size > PADDED_FROM and file.size % PAGE:
            file.pending.append(bytes(-file.size % PAGE))
        if file.writer is not None:
            self._drain(file)
            file.writer.close()
            self._closed.append(file.path)
        elif self._uploads is not None:
            self._uploads.start(partial(self._put, file.path, file.pending), file.owned_bytes)
        else:
            self._put(file.path, file.pending)
        del self._open[prefix]
        self._unsynced.append(file.path)

    def _put(self, path: str, buffers: list[Buffer]) -> None:
        try:
            self._storage.put(path, buffers)
        except AlreadyExistsError:
            raise  # somebody else's, which is not ours to remove
        except BaseException:
            self._closed.append(path)  # perhaps it happened
            raise
        self._closed.append(path)


def _cut(buffers: Sequence[Buffer], size: int) -> tuple[list[Buffer], list[Buffer]]:
    """The first so many bytes, and the others."""
    for number, buffer in enumerate(buffers):
        if len(buffer) > size:
            view = memoryview(buffer)
            return [*buffers[:number], view[:size]], [view[size:], *buffers[number + 1 :]]
        size -= len(buffer)
    return list(buffers), []
