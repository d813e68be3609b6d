"""What writers who wait for a local file leave for the one who may replace it: a file each, in a directory of its own.

A writer that finds the lock of a file ``K`` taken may put a note into ``K_notes.__lock/``, and then waits for the lock
or for the word that its note is done. Whoever holds the lock may take a note, by removing its name: of two that try,
and of a writer that takes its note back, one succeeds. From then on both have the file open, and what they still have
to say to each other stands in it:

    away            f64     seconds to stay away from the lock, for the sake of others
    done            u8      1: the holder has done what the note asks for
    promise size    u8
    promise         48 bytes    how to find out whether it was done, should the holder not live to say so
    size            u32     of what follows
    note

A writer holds the system's lock of its note for as long as it waits, so that the note of a dead one is known. A crash
of the machine ends all of this, and so nothing is synced. Where the system does not know files without a name
(``O_TMPFILE``) nobody leaves notes.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress

from ocdbt_py.errors import StorageError
from ocdbt_py.storage.protocol import Note
from ocdbt_py_backends.local_lock import SUFFIX, lock_open_file, unlock_open_file

__all__ = ["LeftNote", "TakenNote", "take_notes"]

_HEADER = struct.Struct("<dBB48sI")
_AWAY = struct.Struct("<d")
_DONE_AT = 8
_PROMISE_AT = 9
_MOST_BYTES = 64 << 10
"""A longer note is not taken; its writer waits for its turn."""

_MOST_NOTES = 64
_ATTEMPTS = 3
"""To leave a note in a directory that others remove when they find it empty."""

_PAUSE = 0.0001
_STALE = 60.0
"""Seconds; an older note is left alone. Its writer may be dead and the lock kept by a child that it forked."""


def _directory(path: str) -> str:
    return f"{path}_notes{SUFFIX}"


class LeftNote:
    """The side of the writer who waits. All of it is of no consequence if it fails: then the note is just not taken."""

    def __init__(self, path: str, note: Note) -> None:
        self._directory = _directory(path)
        self._note = note
        self._name = ""
        self._fd = -1
        self.away = 0.0

    def is_done(self) -> bool:
        """Called while waiting; the first time it leaves the note."""
        if self._name:
            return self._fd >= 0 and os.pread(self._fd, 1, _DONE_AT) == b"\1"
        self._name = f"{self._directory}/{os.urandom(8).hex()}{SUFFIX}"
        data = self._note.write()
        if len(data) <= _MOST_BYTES and hasattr(os, "O_TMPFILE"):
            with suppress(OSError, StorageError):
                self._leave(_HEADER.pack(0.0, 0, 0, b"", len(data)) + data)
        return False

    def end(self) -> None:
        """No more waiting: take the note back, or else learn what was said to it."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        try:
            os.unlink(self._name)
        except FileNotFoundError:
            self.away, done, size, promise, _ = _HEADER.unpack(os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0"))
            self._note.taken, self._note.done, self._note.promise = True, bool(done), promise[:size]
        finally:
            unlock_open_file(fd)
            os.close(fd)
            with suppress(OSError):
                os.rmdir(self._directory)  # the last one to leave can

    def _leave(self, content: bytes) -> None:
        """It has its name only when it is whole and locked."""
        for _ in range(_ATTEMPTS):
            fd = -1
            try:
                fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR, 0o666)
                if lock_open_file(fd):
                    os.pwrite(fd, content, 0)
                    os.link(f"/proc/self/fd/{fd}", self._name, src_dir_fd=fd, follow_symlinks=True)
                    self._fd, fd = fd, -1
                return
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(self._directory)
            finally:
                if fd >= 0:
                    os.close(fd)


class TakenNote:
    """A :class:`~ocdbt_py.storage.protocol.TakenNote`."""

    def __init__(self, fd: int, data: bytes) -> None:
        self.data = data
        self._fd = fd
        self._is_done = False

    def promise(self, token: bytes) -> None:
        os.pwrite(self._fd, bytes((len(token),)) + token, _PROMISE_AT)

    def done(self) -> None:
        self._is_done = True

    def close(self, away: float = 0.0) -> None:
        """Say so, and for how many seconds to stay away from the lock."""
        if self._is_done:
            with suppress(OSError):  # its writer then finds out by the promise
                os.pwrite(self._fd, _AWAY.pack(away) + b"\1", 0)
        os.close(self._fd)


def take_notes(path: str, expected: int, patience: float) -> list[TakenNote]:
    """For the holder of the lock of ``path``: the notes that are there, which nobody else can take now.

    Unless so many as expected are there it waits for them, up to ``patience`` seconds.
    """
    directory = _directory(path)
    names = _listed(directory)
    deadline = time.monotonic() + patience
    while len(names) < expected and time.monotonic() < deadline:
        time.sleep(_PAUSE)
        names = _listed(directory)
    if not names:
        with suppress(OSError):
            os.rmdir(directory)  # the last one to leave may have been killed
    taken = []
    for name in names[:_MOST_NOTES]:
        with suppress(OSError):  # taken back meanwhile, or another user's
            found = _take(f"{directory}/{name}")
            if found is not None:
                taken.append(found)
    return taken


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _take(name: str) -> TakenNote | None:
    fd = os.open(name, os.O_RDWR)
    try:
        if lock_open_file(fd):  # nobody waits for what it says
            unlock_open_file(fd)
            os.unlink(name)
            with suppress(OSError):
                os.rmdir(os.path.dirname(name))
        elif time.time() - os.fstat(fd).st_mtime < _STALE:
            data = os.pread(fd, _HEADER.size + _MOST_BYTES, 0)
            os.unlink(name)
            note, fd = TakenNote(fd, data[_HEADER.size :]), -1
            return note
    finally:
        if fd >= 0:
            os.close(fd)
    return None
