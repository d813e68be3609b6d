"""Single files by way of the system: each call made as often as it takes, and with what not every filesystem can do.

Errors are plain ``OSError``; the callers turn them into ours.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

from ocdbt_py.errors import StorageError
from ocdbt_py.storage.protocol import Buffer
from ocdbt_py_backends.local_lock import SUFFIX

_BUFFERS_A_CALL = os.sysconf("SC_IOV_MAX")
_NO_UNNAMED_FILES = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TIME_STEPS = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
"""Nanoseconds between two contents of a file; filesystems cut times to as little as two seconds (FAT)."""


def open_file(path: str) -> tuple[int, os.stat_result]:
    """A file open for reading. Nothing but a regular file, and no wait for the writer of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            return fd, status
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", path)
        raise OSError(errno.EINVAL, "is a device, pipe or socket, where a file is expected", path)
    except BaseException:
        os.close(fd)
        raise


def read_at(fd: int, start: int, length: int) -> bytes:
    """Less than ``length`` bytes only at the end of the file; one call of the system moves at most 2 GiB."""
    data = os.pread(fd, length, start)
    if len(data) == length:
        return data
    parts = [data]
    while parts[-1] and (length := length - len(parts[-1])):
        start += len(parts[-1])
        parts.append(os.pread(fd, length, start))
    return b"".join(parts)


def in_runs(buffers: Sequence[Buffer], most: int) -> Iterator[list[Buffer]]:
    """The same bytes in runs of ``most``, the last one shorter; long buffers are cut."""
    run: list[Buffer] = []
    room = most
    for buffer in buffers:
        while len(buffer) > room:
            view = memoryview(buffer)
            yield [*run, view[:room]]
            run, buffer, room = [], view[room:], most
        run.append(buffer)
        room -= len(buffer)
    yield run


def append(fd: int, buffers: Sequence[Buffer]) -> int:
    """Append all of them, so many bytes; a call takes a bounded number of buffers and may end in the middle of one."""
    total = 0
    pending = deque(buffer for buffer in buffers if len(buffer))
    while pending:
        count = os.writev(fd, list(islice(pending, _BUFFERS_A_CALL)))
        total += count
        while pending and count >= len(pending[0]):
            count -= len(pending.popleft())
        if count:
            pending[0] = memoryview(pending[0])[count:]
    return total


def reserve(fd: int, start: int, length: int) -> None:
    """Have room on the disk for what is to be written there next: to ask for it once costs a writer half of what it
    costs the system to find it page by page. Where that cannot be done, writing goes on without."""
    if not hasattr(os, "posix_fallocate"):
        return
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    # The C library would imitate it by a write to each block, where the filesystem cannot do it, but not to append.
    fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
    try:
        os.posix_fallocate(fd, start, length)
    except OSError:  # a full disk among others, of which the write will tell
        pass
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def begin_to_write_back(fd: int, start: int, stop: int) -> None:
    """Have what was just written there put on the disk, without a wait."""
    if hasattr(os, "posix_fadvise"):
        # Linux begins to write what is asked to leave its memory, and keeps what it could not drop at once.
        os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_DONTNEED)


def stamp(fd: int, before: int) -> os.stat_result:
    """Give the open file the time now, or a later one than ``before`` (nanoseconds)."""
    for step in _TIME_STEPS:
        moment = max(time.time_ns(), before + step)
        os.utime(fd, ns=(moment, moment))
        status = os.fstat(fd)
        if status.st_mtime_ns > before:
            return status
    raise StorageError("This filesystem does not keep times of modification, without which no change can be seen")


def new_unnamed(path: str) -> tuple[int, str | None]:
    """A new open file in the directory of ``path``, and its name, where the system does not know files without one."""
    if hasattr(os, "O_TMPFILE") and os.path.exists("/proc/self/fd"):
        try:
            return os.open(os.path.dirname(path) or "/", os.O_TMPFILE | os.O_WRONLY, 0o666), None
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
    return new_named(path)


def new_named(path: str) -> tuple[int, str]:
    """A new open file beside ``path``, and its name."""
    name = new_name(path)
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), name


def new_name(path: str) -> str:
    """Beside ``path``, and left out by listings."""
    return f"{path}_{os.urandom(8).hex()}{SUFFIX}"


def give_new_name(temporary: str, path: str) -> None:
    """Rename, but never onto a file that is there: ``FileExistsError``."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # empty for a moment, but ours
        os.rename(temporary, path)
    else:
        os.unlink(temporary)


def fsync(path: str) -> None:
    """Of a file or a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
