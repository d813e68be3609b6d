"""Whose turn it is to replace a local file: the lock protocol of TensorStore's file driver, so that both may write.

The lock of a file ``K`` is the file ``K.__lock``. In mode ``os`` a writer

    opens it, creating it       takes the open-file-description lock of the whole file
    opens the name again        another inode: the lock was used up by its holder, so start over with the new one

and then may check ``K`` and replace it by ``K.__lock`` itself, into which it wrote the new content, or else remove
``K.__lock`` while still holding it. Only the holder may do that, so whoever passed the second check is alone. When a
holder dies, the kernel frees its lock. In mode ``lockfile`` to create the file is to hold the lock, and nothing frees
it after a crash. Mode ``none`` excludes nobody. Modes do not see each other: all writers of a database must use the
same one.

A lock file that had a life of its own would be one file more to make and to remove for each write, and to make a file
takes ext4 the longer the more were removed of late.

Open-file-description locks, because POSIX record locks go with any ``close`` in the process and do not exclude threads,
and on Linux ``flock`` does not exclude TensorStore. Where the kernel has none, ``flock``, as TensorStore does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from contextlib import suppress
from typing import Protocol

from ocdbt_py.errors import StorageError, WaitTimeoutError

SUFFIX = ".__lock"
"""Ends the name of every lock and temporary file; TensorStore's listings leave such names out, and so do ours."""

LOCKFILE_PATIENCE = 60.0
"""Seconds that mode ``lockfile`` waits where the caller sets no limit: the holder may be dead."""

_FIRST_PAUSE = 0.0002
_LONGEST_PAUSE = 0.001
_LISTENING = 0.003
"""Of one who is told when it is its turn, unless those before it are another program's, or die."""

_OFD_SETLK = getattr(fcntl, "F_OFD_SETLK", None)
_OFD_SETLKW = getattr(fcntl, "F_OFD_SETLKW", None)
# struct flock: type, whence, start, length (0: to the end, wherever that is), pid (0 for this kind of lock)
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
_NOTHING = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0)


class Lock:
    """The lock of the file ``path``, held from :meth:`acquire` to :meth:`release`. Raises plain ``OSError`` too.

    ``fd`` is the open lock file while it is held, -1 otherwise, and always in mode ``none``.
    """

    def __init__(self, path: str, locking: str) -> None:
        self._name = path + SUFFIX
        self._locking = locking
        self._is_named = True
        self.fd = -1

    def acquire(self, timeout: float | None = None, waiting: Waiting | None = None) -> None:
        """Wait for ``timeout`` seconds, or as long as it takes; :class:`WaitTimeoutError` after that.

        ``waiting`` is asked before and after each pause of a wait in mode ``os`` that has a ``timeout``, and pauses; if
        it says that it is done, the wait is over and nothing is held.
        """
        if self._locking == "os":
            self.fd = self._acquire_os(timeout, waiting or _Alone())
        elif self._locking == "lockfile":
            self.fd = self._acquire_lockfile(LOCKFILE_PATIENCE if timeout is None else timeout)

    def give_file(self) -> tuple[int, str]:
        """The lock file, open once more, and its name, under which nobody else can have it until it is renamed to what
        is locked, or removed: before the release, and by the caller.
        """
        fd = os.dup(self.fd)
        self._is_named = False
        return fd, self._name

    def release(self) -> None:
        if self.fd < 0:
            return
        fd, self.fd = self.fd, -1
        try:
            if self._is_named:
                # A lock file that stays is in nobody's way but in mode "lockfile"; or the whole directory was removed.
                with suppress(OSError if self._locking == "os" else FileNotFoundError):
                    os.unlink(self._name)
        finally:
            if self._locking == "os":
                unlock_open_file(fd)
            os.close(fd)

    def _acquire_os(self, timeout: float | None, waiting: Waiting) -> int:
        pauses = _Pauses(timeout, self._name, "another writer holds its lock")
        fd = self._open()
        while True:
            try:
                if timeout is None:
                    _lock(fd, wait=True)
                else:
                    # A blocking wait could not end in time, and a thread left in one would take the lock one day.
                    while not _lock(fd, wait=False):
                        if not waiting.is_done():
                            pauses.wait(waiting)
                        if waiting.is_done():
                            os.close(fd)
                            return -1
                again = self._open()
            except BaseException:
                unlock_open_file(fd)
                os.close(fd)
                raise
            held, named = os.fstat(fd), os.fstat(again)
            if os.path.samestat(held, named):
                os.close(again)
                break
            unlock_open_file(fd)
            os.close(fd)
            fd = again
        if held.st_size:
            # who writes the new content into this file does not look whether a crash has left something in it
            os.ftruncate(fd, 0)
        return fd

    def _acquire_lockfile(self, timeout: float) -> int:
        pauses = _Pauses(timeout, self._name, "it is there; if the writer that made it is dead, remove it")
        while True:
            try:
                return os.open(self._name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            except FileExistsError:
                pauses.wait(_Alone())

    def _open(self) -> int:
        return os.open(self._name, os.O_CREAT | os.O_WRONLY, 0o666)


class Waiting(Protocol):
    """What goes on while the lock is waited for."""

    def is_done(self) -> bool:
        """Whether there is nothing to wait for any more."""

    def wait(self, seconds: float) -> None:
        """Until it is worth looking again, and not longer than so many seconds."""

    @property
    def listens(self) -> bool:
        """Whether somebody may end a wait."""


class _Alone:
    """A wait that nobody else knows of."""

    listens = False

    def is_done(self) -> bool:
        return False

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)


class _Pauses:
    """Longer and longer sleeps, up to a deadline."""

    def __init__(self, timeout: float | None, name: str, reason: str) -> None:
        self._timeout = timeout
        self._deadline = time.monotonic() + (timeout or 0.0)
        self._message = f"Waited {timeout} seconds for {name}: {reason}"
        self._pause = _FIRST_PAUSE

    def wait(self, waiting: Waiting) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(self._message, kind="lock-timeout")
        waiting.wait(min(_LISTENING if waiting.listens else self._pause, left))
        self._pause = min(1.1 * self._pause, _LONGEST_PAUSE)


def _lock(fd: int, *, wait: bool) -> bool:
    """Whether the lock is ours now; always, when waiting."""
    try:
        if _OFD_SETLK is None or _OFD_SETLKW is None:
            return _flock(fd, wait)
        try:
            fcntl.fcntl(fd, _OFD_SETLKW if wait else _OFD_SETLK, _WHOLE_FILE)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTSUP):
                return _flock(fd, wait)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        return True
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS):
            raise StorageError(
                f"This filesystem has no file locks ({error.strerror}); use locking='lockfile' in every writer, or "
                "locking='none' if there is only one",
                kind="no-locks",
            ) from error
        raise


def _flock(fd: int, wait: bool) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def unlock_open_file(fd: int) -> None:
    """Unlock, though a close follows: a child forked meanwhile has the same open file, and would keep the lock."""
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    if _OFD_SETLK is not None:
        with suppress(OSError):
            fcntl.fcntl(fd, _OFD_SETLK, _NOTHING)
