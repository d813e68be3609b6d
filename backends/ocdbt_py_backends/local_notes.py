"""What writers who wait for a local file leave for the one who may replace it: a file each, in a directory of its own.

A writer that finds the lock of a file ``K`` taken may put a note there, and then waits for the lock or for the word
that its note is done. Whoever holds the lock may take a note, by removing its name: of two that try, and of a writer
that takes its note back, one succeeds. From then on both have the file open, and what they still have to say to each
other stands in it:

    away            f64     seconds to stay away from the lock, for the sake of others
    done            u8      1: the holder has done what the note asks for
    company         u8      how many notes that holder took
    promise size    u8
    promise         48 bytes    how to find out whether it was done, should the holder not live to say so
    size            u32     of what follows
    note

Beside each note ``N`` is its bell ``N.bell``, a named pipe in which the writer waits, for as long as it has it open: to
look again and again whether it is done would take from the holder the processor that it needs. It is rung by whoever
has taken the note, at the end, and for the first of those who were left out when the lock is free. A bell that nobody
listens to says that the writer is dead.

A crash of the machine ends all of this, and all writers who can meet are on one machine. So it lies in memory, in a
directory for each place of a ``K``: to make and remove such files on a disk takes longer than to write them. Where
there is no such memory (``/dev/shm``), or the system does not know files without a name (``O_TMPFILE``), nobody leaves
notes; and users do not read each other's.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import time
from contextlib import suppress

from ocdbt_py.errors import StorageError
from ocdbt_py.storage.protocol import Note
from ocdbt_py_backends.local_lock import SUFFIX

__all__ = ["LeftNote", "TakenNote", "notes_directory", "ring_next", "take_notes"]

_MEMORY = "/dev/shm"
_BELL = ".bell"
_LONGEST_NAME = 100

_HEADER = struct.Struct("<dBBB48sI")
_SAID = struct.Struct("<dBB")
_DONE_AT = 8
_PROMISE_AT = 10
_MOST_BYTES = 64 << 10
"""A longer note is not taken; its writer waits for its turn."""

_MOST_NOTES = 64
_ATTEMPTS = 3
"""To leave a note in a directory that others remove when they find it empty."""

_IN_HAND = 0.05
"""Seconds that one whose note has been taken lets pass before asking for the lock: whoever took it may be dead."""

_PAUSE = 0.00003
_STALE = 60.0
"""Seconds; an older note is left alone. Its writer may be dead and its bell kept by a child that it forked."""


def notes_directory(path: str) -> str:
    """Where notes for the file ``path`` are left; the name says which directory that is in, whatever it is called.

    ``OSError`` where the file's name leaves no room for that.
    """
    parent, _, name = path.rpartition("/")
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise OSError(errno.ENAMETOOLONG, "Nobody leaves notes for a name this long", path)
    status = os.stat(parent or "/")
    return f"{_MEMORY}/ocdbt_py-{os.getuid()}-{status.st_dev:x}-{status.st_ino:x}-{name}{SUFFIX}"


def _check(directory: str) -> None:
    """Raises ``OSError`` unless it is there and ours: anybody may make one of this name, and notes are obeyed."""
    status = os.lstat(directory)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{directory} is not ours")


class LeftNote:
    """The side of the writer who waits. All of it is of no consequence if it fails: then the note is just not taken."""

    def __init__(self, path: str, note: Note) -> None:
        self._path = path
        self._note = note
        self._directory = self._name = ""
        self._fd = self._bell = -1
        self.away = 0.0

    def is_done(self) -> bool:
        """Called while waiting; the first time it leaves the note."""
        if self._name:
            return self._fd >= 0 and os.pread(self._fd, 1, _DONE_AT) == b"\1"
        self._name = os.urandom(8).hex()
        data = self._note.write()
        if len(data) <= _MOST_BYTES and hasattr(os, "O_TMPFILE"):
            with suppress(OSError, StorageError):
                self._directory = notes_directory(self._path)
                self._leave(_HEADER.pack(0.0, 0, 0, 0, b"", len(data)) + data)
        return False

    def is_done_within(self, seconds: float) -> bool:
        """Whether somebody does it without our asking for the lock; no wait where nobody would say so."""
        if seconds <= 0:
            return False
        deadline, is_extended = time.monotonic() + seconds, False
        while not self.is_done():
            left = deadline - time.monotonic()
            if not self.listens or (left <= 0 and (is_extended or not self._is_taken())):
                return False
            if left <= 0:
                deadline, is_extended, left = deadline + _IN_HAND, True, left + _IN_HAND
            self.wait(left)
        return True

    def _is_taken(self) -> bool:
        return self._fd >= 0 and not os.fstat(self._fd).st_nlink

    def wait(self, seconds: float) -> None:
        """Until it is worth looking again, and not longer than so many seconds."""
        if self._bell < 0:
            time.sleep(seconds)
            return
        listening = select.poll()
        listening.register(self._bell, select.POLLIN)
        if listening.poll(seconds * 1000):
            with suppress(BlockingIOError):
                os.read(self._bell, 64)

    @property
    def listens(self) -> bool:
        """Whether somebody may end a wait."""
        return self._bell >= 0

    def end(self) -> None:
        """No more waiting: take the note back, or else learn what was said to it."""
        if self._fd < 0:
            return
        fd, self._fd = self._fd, -1
        name = f"{self._directory}/{self._name}"
        try:
            os.unlink(name)
        except FileNotFoundError:
            said = os.pread(fd, _HEADER.size, 0).ljust(_HEADER.size, b"\0")
            self.away, done, company, size, promise, _ = _HEADER.unpack(said)
            self._note.taken, self._note.done, self._note.promise = True, bool(done), promise[:size]
            self._note.company = company
        finally:
            os.close(fd)
            self._unhang(name)

    def _leave(self, content: bytes) -> None:
        """It has its name only when it is whole, and its bell hangs."""
        name = f"{self._directory}/{self._name}"
        for _ in range(_ATTEMPTS):
            try:
                _check(self._directory)
                os.mkfifo(name + _BELL, 0o600)
                break
            except FileNotFoundError:
                with suppress(FileExistsError):
                    os.mkdir(self._directory, 0o700)
        else:
            return
        fd = -1
        try:
            # for writing too, or it would be as if it had been rung to the end once the first one has rung it
            self._bell = os.open(name + _BELL, os.O_RDWR | os.O_NONBLOCK)
            fd = os.open(self._directory, os.O_TMPFILE | os.O_RDWR, 0o600)
            os.pwrite(fd, content, 0)
            os.link(f"/proc/self/fd/{fd}", name, src_dir_fd=fd, follow_symlinks=True)
            self._fd, fd = fd, -1
        finally:
            if self._fd < 0:
                if fd >= 0:
                    os.close(fd)
                self._unhang(name)

    def _unhang(self, name: str) -> None:
        if self._bell >= 0:
            bell, self._bell = self._bell, -1
            os.close(bell)
        with suppress(FileNotFoundError):  # a holder took it for one that nobody listens to
            os.unlink(name + _BELL)
        with suppress(OSError):
            os.rmdir(self._directory)  # the last one to leave can


class TakenNote:
    """A :class:`~ocdbt_py.storage.protocol.TakenNote`."""

    def __init__(self, fd: int, bell: int, data: bytes) -> None:
        self.data = data
        self._fd = fd
        self._bell = bell
        self._is_done = False

    def promise(self, token: bytes) -> None:
        os.pwrite(self._fd, bytes((len(token),)) + token, _PROMISE_AT)

    def done(self) -> None:
        self._is_done = True

    def close(self, away: float = 0.0, company: int = 1) -> None:
        """Say so, and for how many seconds to stay away from the lock."""
        if self._is_done:
            with suppress(OSError):  # its writer then finds out by the promise
                os.pwrite(self._fd, _SAID.pack(away, 1, min(company, 255)), 0)
        os.close(self._fd)

    def ring(self) -> None:
        """Have its writer look."""
        with suppress(OSError):  # it does not wait any more
            os.write(self._bell, b"!")
        os.close(self._bell)


def take_notes(path: str, expected: int, patience: float) -> list[TakenNote]:
    """For the holder of the lock of ``path``: the notes that are there, which nobody else can take now.

    Unless so many as expected are there it waits for them, up to ``patience`` seconds.
    """
    try:
        directory = notes_directory(path)
    except OSError:
        return []
    names = _listed(directory)
    if expected:
        deadline = time.monotonic() + patience
        while len(_notes(names)) < expected and time.monotonic() < deadline:
            time.sleep(_PAUSE)
            names = _listed(directory)
    if not names:
        return []
    taken = []
    for name in _notes(names)[:_MOST_NOTES]:
        with suppress(OSError):  # taken back meanwhile
            found = _take(f"{directory}/{name}")
            if found is not None:
                taken.append(found)
    for name in _lost_bells(names):
        with suppress(OSError):
            os.close(_bell_of(f"{directory}/{name.removesuffix(_BELL)}"))
    with suppress(OSError):
        os.rmdir(directory)  # the last one to leave may have been killed
    return taken


def ring_next(path: str) -> None:
    """The lock of ``path`` is free: one of those who wait for it may have it at once."""
    with suppress(OSError):
        directory = notes_directory(path)
        for name in _notes(_listed(directory)):
            bell = _bell_of(f"{directory}/{name}")
            if bell >= 0:
                os.write(bell, b"!")
                os.close(bell)
                return


def _listed(directory: str) -> list[str]:
    try:
        names = os.listdir(directory)
        if names:
            _check(directory)
        return names
    except OSError:
        return []


def _notes(names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(_BELL)]


def _lost_bells(names: list[str]) -> list[str]:
    """Of writers that have been killed, or of which the note was taken and not yet its bell."""
    there = set(names)
    return [name for name in names if name.endswith(_BELL) and name.removesuffix(_BELL) not in there]


def _bell_of(name: str) -> int:
    """The bell of a note, open; -1 if nobody listens to it, and then it is removed."""
    try:
        return os.open(name + _BELL, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        with suppress(OSError):
            os.unlink(name + _BELL)
        return -1


def _take(name: str) -> TakenNote | None:
    fd, bell = os.open(name, os.O_RDWR), -1
    try:
        bell = _bell_of(name)
        if bell < 0:  # nobody waits for what it says
            os.unlink(name)
        elif time.time() - os.fstat(fd).st_mtime < _STALE:
            data = os.pread(fd, _HEADER.size + _MOST_BYTES, 0)
            os.unlink(name)
            note, fd, bell = TakenNote(fd, bell, data[_HEADER.size :]), -1, -1
            return note
    finally:
        for each in (fd, bell):
            if each >= 0:
                os.close(each)
    return None
