"""Files of the local machine, shared with any number of other writers, TensorStore's file driver among them.

A file is replaced by renaming a new one onto it, under the lock of :mod:`ocdbt_py_backends.local_lock`; readers take no
lock, since whatever they opened stays whole. The token of a content is (device, inode, time of modification), as in
TensorStore. Inodes are used again at once, so that the time alone tells two contents apart: we set it, always later.

A new file has no name before it is complete, where the system can do that (``O_TMPFILE``), and so leaves nothing behind
after a crash. Elsewhere it has a name that listings leave out.

What is not here: Windows (no ``pread``, other locks), sparse files, and any wait for the disk other than in
:meth:`LocalStorage.sync` and for the small files of :meth:`LocalStorage.write`.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import shutil
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby, islice
from operator import itemgetter
from types import TracebackType
from typing import Any, Literal, TypeVar

from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    CorruptDataError,
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedError,
)
from ocdbt_py.storage.location import DEFAULT_SETTINGS, Settings
from ocdbt_py.storage.protocol import (
    ABSENT,
    ANY,
    UNCHANGED,
    Buffer,
    ByteRange,
    Capabilities,
    Condition,
    Filling,
    Hold,
    Listed,
    Read,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py_backends.local_lock import SUFFIX, Lock

T = TypeVar("T")

_URL = re.compile(r"(?:file|local):(?://|(?=/))")

_BUFFERS_A_CALL = os.sysconf("SC_IOV_MAX")
# Waits for one disk hardly overlap, those for a server do; a thread costs as much as a short wait.
_SYNC_THREADS = 4
_SYNCS_A_THREAD = 4
# A read costs about as much as copying this many bytes; above the second number the copy of a merged read is felt.
_MERGED_GAP = 4096
_MERGED_BYTES = 128 << 10

_NO_UNNAMED_FILES = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
_TIME_STEPS = (1, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000)
"""Nanoseconds between two contents of a file; filesystems cut times to as little as two seconds (FAT)."""


class LocalStorage:
    """The files of this machine. Paths are absolute. Safe for threads and forks, picklable, without any state.

    ``settings.locking`` ``"none"`` gives up ``cas`` and ``hold``; ``settings.durable`` False every wait for the disk.
    """

    def __init__(self, settings: Settings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._durable = settings.durable
        locks = settings.locking != "none"
        self._capabilities = Capabilities(
            cas=locks,
            create=True,
            atomic_write=True,
            ranges=True,
            list=True,
            rename=True,
            map=True,
            hold=locks,
            durable=settings.durable,
            writable=True,
        )

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[LocalStorage, str]:
        """``url`` is ``file://…``, ``local://…`` or a path, taken literally (no percent codes), as fsspec does.

        fsspec's options for local files decide how its own calls behave, and have no meaning here.
        """
        path = os.path.expanduser(_URL.sub("", url, count=1))
        try:
            if ".." in path.split("/"):
                path = os.path.realpath(path)  # textually, "link/.." would be the wrong directory
            path = os.path.abspath(path).strip("/")
        except FileNotFoundError as error:
            message = f"{path} is relative to a working directory that is gone; give an absolute path"
            raise PathNotFoundError(message, path=path) from error
        return cls(settings), f"/{path}" if path else ""

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[LocalStorage, str]:
        return cls.from_url(path, {}, settings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalStorage)

    def __hash__(self) -> int:
        return hash(LocalStorage)

    def __repr__(self) -> str:
        return f"LocalStorage({self._settings})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._settings,)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self, path: str) -> str:
        return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") or "/"

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        with _Translated(path, reading=True):
            if unless is not None and _token(os.stat(path)) == unless:
                return UNCHANGED
            fd, status = _open(path)
            try:
                size = status.st_size
                end = size if stop is None else min(stop, size)
                return Read(_pread(fd, start, end - start) if end > start else b"", _token(status), size)
            finally:
                os.close(fd)

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """One open a file, and neighbouring small ranges in one read."""
        by_path: dict[str, list[int]] = {}
        for index, (path, _, _) in enumerate(ranges):
            by_path.setdefault(path, []).append(index)
        found = [b""] * len(ranges)
        for path, indices in by_path.items():
            indices.sort(key=lambda index: ranges[index][1])
            with _Translated(path, reading=True):
                fd, status = _open(path)
                try:
                    for begin, end, run in _runs(indices, ranges):
                        _check_within(path, status, begin, end)
                        data = _pread(fd, begin, end - begin)
                        if len(data) < end - begin:
                            raise _too_short(path, begin, end, begin + len(data))
                        for index in run:
                            _, start, stop = ranges[index]
                            found[index] = data[start - begin : stop - begin]
                finally:
                    os.close(fd)
        return found

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        """One open for consecutive buffers of one file."""
        for path, group in groupby(fillings, key=itemgetter(0)):
            with _Translated(path, reading=True):
                fd, status = _open(path)
                try:
                    for _, start, buffer in group:
                        _check_within(path, status, start, start + len(buffer))
                        while buffer:
                            count = os.preadv(fd, [buffer], start)
                            if not count:
                                raise _too_short(path, start, start + len(buffer), start)
                            buffer, start = buffer[count:], start + count
                finally:
                    os.close(fd)

    def map(self, path: str) -> memoryview:
        with _Translated(path, reading=True):
            fd, status = _open(path)
            try:
                if not status.st_size:
                    return memoryview(bytearray())  # nothing cannot be mapped
                return memoryview(mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))
            finally:
                os.close(fd)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        directory, _, stem = prefix.rpartition("/")
        return self._list(directory, stem, deep, ())

    def _list(self, directory: str, stem: str, deep: bool, above: tuple[tuple[int, int], ...]) -> Iterator[Listed]:
        with _Translated(directory, reading=True):
            try:
                identity = os.stat(directory or "/")
                here = (identity.st_dev, identity.st_ino)
                if here in above:
                    return  # a symbolic link to a directory we are in
                with os.scandir(directory or "/") as found:
                    entries = [entry for entry in found if entry.name.startswith(stem)]
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            path = f"{directory}/{entry.name}"
            if entry.name.endswith(SUFFIX):
                continue
            with _Translated(path, reading=True):
                try:
                    status = None if entry.is_dir() else entry.stat()
                except FileNotFoundError:
                    continue  # removed meanwhile, or a link to nothing
            if status is None and deep:
                yield from self._list(path, "", True, (*above, here))
            elif status is None:
                yield Listed(path + "/", None)
            elif stat.S_ISREG(status.st_mode):
                yield Listed(path, status.st_size)

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        with _Translated(path):
            lock = self._acquired(path, None)
            try:
                return self._replace(path, buffers, if_version)
            finally:
                lock.release()

    def create(self, path: str) -> Writer:
        with _Translated(path):
            return _NewFile(path, *self._with_parents(path, lambda: _unnamed(path)))

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        new = self.create(path)
        try:
            new.write(buffers)
            new.close()
        except BaseException:
            new.abort()
            raise

    @contextmanager
    def hold(self, path: str, timeout: float) -> Iterator[Hold]:
        """A second writer in the same thread waits too, and so for ever: write through the :class:`Hold`."""
        if not self._capabilities.hold:
            raise UnsupportedError("locking='none' cannot make other writers wait; use locking='os'")
        with _Translated(path):
            lock = self._acquired(path, timeout)
        try:
            yield _Held(self, path)
        finally:
            with _Translated(path):
                lock.release()

    def delete(self, path: str) -> None:
        with _Translated(path):
            if path.endswith("/"):
                self._delete_tree(path.rstrip("/"))
                return
            lock = Lock(path, self._settings.locking)
            try:
                os.lstat(path)  # nothing there: no lock, which would need a directory to lie in
                lock.acquire()
            except (FileNotFoundError, NotADirectoryError):
                return
            try:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                    self._sync_directory(os.path.dirname(path))
            finally:
                lock.release()

    def rename(self, source: str, target: str) -> None:
        source, target = source.rstrip("/"), target.rstrip("/")
        with _Translated(source):
            if not stat.S_ISDIR(os.stat(source).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "Not a directory", source)
            try:
                self._with_parents(target, lambda: os.rename(source, target))
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR) and os.path.lexists(target):
                    raise AlreadyExistsError(f"{target} is there and not an empty directory", path=target) from error
                raise
            self._sync_directory(os.path.dirname(target))
            self._sync_directory(os.path.dirname(source))

    def sync(self, paths: Iterable[str]) -> None:
        if not self._durable:
            return
        files = [path.rstrip("/") for path in paths]
        _in_threads(_sync, dict.fromkeys(files))
        _in_threads(_sync, dict.fromkeys(os.path.dirname(path) for path in files))

    def _acquired(self, path: str, timeout: float | None) -> Lock:
        lock = Lock(path, self._settings.locking)
        self._with_parents(path, lambda: lock.acquire(timeout))
        return lock

    def _replace(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition) -> Token:
        """What :meth:`write` does while it holds the lock."""
        try:
            old = os.stat(path)
        except FileNotFoundError:
            old = None
        if if_version is not ANY and (None if old is None else _token(old)) != (
            None if if_version is ABSENT else if_version
        ):
            raise _changed(path)
        temporary = _temporary_name(path)
        fd = self._with_parents(path, lambda: os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            _write(fd, buffers)
            status = _stamp(fd, 0 if old is None else old.st_mtime_ns)
            if self._durable:
                os.fsync(fd)
            if if_version is ABSENT:
                _name_new(temporary, path)
            else:
                os.rename(temporary, path)
        except BaseException as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            if isinstance(error, FileExistsError):
                raise _changed(path) from error
            raise
        finally:
            os.close(fd)
        try:
            self._sync_directory(os.path.dirname(path))
        except OSError as error:
            raise StorageError(
                f"{path} was replaced, but it is not known whether that survives a crash: {error.strerror}",
                kind="not-durable",
                path=path,
            ) from error
        return _token(status)

    def _with_parents(self, path: str, function: Callable[[], T]) -> T:
        """The result of ``function``, which is tried again with the directories above ``path`` made."""
        try:
            return function()
        except FileNotFoundError:
            self._make_directories(os.path.dirname(path))
            return function()

    def _make_directories(self, directory: str) -> None:
        if os.path.isdir(directory or "/"):
            return
        parent = os.path.dirname(directory)
        self._make_directories(parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        self._sync_directory(parent)

    def _delete_tree(self, directory: str) -> None:
        if not directory:
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        while os.path.lexists(directory):
            with suppress(FileNotFoundError):  # somebody else deletes there too
                shutil.rmtree(directory)
                self._sync_directory(os.path.dirname(directory))

    def _sync_directory(self, directory: str) -> None:
        if self._durable:
            _fsync(directory or "/")


class _Held:
    """A :class:`~ocdbt_py.storage.protocol.Hold`."""

    def __init__(self, storage: LocalStorage, path: str) -> None:
        self._storage = storage
        self._path = path

    def write(self, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        with _Translated(self._path):
            return self._storage._replace(self._path, buffers, if_version)


class _NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`. ``temporary`` is the name the open file has so far, if any."""

    def __init__(self, path: str, fd: int, temporary: str | None) -> None:
        self._path = path
        self._fd = fd
        self._temporary = temporary

    def write(self, buffers: Sequence[Buffer]) -> None:
        with _Translated(self._path):
            _write(self._fd, buffers)

    def close(self) -> None:
        with _Translated(self._path):
            try:
                if self._temporary is not None:
                    _name_new(self._temporary, self._path)
                    self._temporary = None
                else:
                    # src_dir_fd is not used with an absolute path, but it is what makes Python follow the link
                    os.link(f"/proc/self/fd/{self._fd}", self._path, src_dir_fd=self._fd, follow_symlinks=True)
            finally:
                self.abort()

    def abort(self) -> None:
        with _Translated(self._path):
            if self._temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(self._temporary)
                self._temporary = None
            if self._fd >= 0:
                fd, self._fd = self._fd, -1
                os.close(fd)


class _Translated:
    """The border: inside ``OSError``, outside ours. ``reading``: what lies below a file is absent, no obstacle."""

    __slots__ = ("_path", "_reading")

    def __init__(self, path: str, *, reading: bool = False) -> None:
        self._path = path
        self._reading = reading

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, OcdbtError):
            raise _translated(error, self._path, self._reading) from error


def _translated(error: OSError, path: str, reading: bool) -> OcdbtError:
    where = error.filename if isinstance(error.filename, str) else path
    match error:
        case FileNotFoundError():
            return PathNotFoundError(f"There is no {where}", path=path)
        case NotADirectoryError() if reading:
            return PathNotFoundError(f"There is no {where}: one of its parents is a file", path=path)
        case NotADirectoryError():
            return StorageError(
                f"{where} cannot be made, for one of its parents is a file, or it is no directory itself",
                kind="not-a-directory",
                path=path,
            )
        case IsADirectoryError():
            return StorageError(f"{path} is a directory, where a file is expected", kind="not-a-file", path=path)
        case FileExistsError():
            return AlreadyExistsError(f"{path} is there already", path=path)
        case PermissionError():
            return StoragePermissionError(f"{where}: {error.strerror}; check owner and mode", path=path)
        case _:
            return StorageError(f"{where}: {error.strerror or error}", path=path)


def _token(status: os.stat_result) -> Token:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _changed(path: str) -> ConflictError:
    return ConflictError(
        f"{path} is not what the write was to replace: another writer was faster", kind="condition", path=path
    )


def _too_short(path: str, start: int, stop: int, size: int) -> CorruptDataError:
    return CorruptDataError(
        f"{path} ends at byte {size}, but bytes {start} to {stop} of it are needed; the file was cut or is another one",
        path=path,
        offset=start,
    )


def _check_within(path: str, status: os.stat_result, start: int, stop: int) -> None:
    if stop > status.st_size:
        raise _too_short(path, start, stop, status.st_size)


def _open(path: str) -> tuple[int, os.stat_result]:
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


def _pread(fd: int, start: int, length: int) -> bytes:
    """Less than ``length`` bytes only at the end of the file; one call of the system moves at most 2 GiB."""
    data = os.pread(fd, length, start)
    if len(data) == length:
        return data
    parts = [data]
    while parts[-1] and (length := length - len(parts[-1])):
        start += len(parts[-1])
        parts.append(os.pread(fd, length, start))
    return b"".join(parts)


def _runs(indices: Sequence[int], ranges: Sequence[ByteRange]) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Cut ``indices``, ordered by start, where a gap is not worth reading: (start, stop, indices) of one read each."""
    first = 0
    _, begin, end = ranges[indices[0]]
    for position, index in enumerate(indices):
        _, start, stop = ranges[index]
        if start - end > _MERGED_GAP or (stop - begin > _MERGED_BYTES and position > first):
            yield begin, end, indices[first:position]
            first, begin, end = position, start, stop
        end = max(end, stop)
    yield begin, end, indices[first:]


def _write(fd: int, buffers: Sequence[Buffer]) -> None:
    """Append all of them; a call takes a bounded number of buffers and may end in the middle of one."""
    pending = deque(buffer for buffer in buffers if len(buffer))
    while pending:
        count = os.writev(fd, list(islice(pending, _BUFFERS_A_CALL)))
        while pending and count >= len(pending[0]):
            count -= len(pending.popleft())
        if count:
            pending[0] = memoryview(pending[0])[count:]


def _stamp(fd: int, before: int) -> os.stat_result:
    """Give the open file the time now, or a later one than ``before`` (nanoseconds)."""
    for step in _TIME_STEPS:
        moment = max(time.time_ns(), before + step)
        os.utime(fd, ns=(moment, moment))
        status = os.fstat(fd)
        if status.st_mtime_ns > before:
            return status
    raise StorageError("This filesystem does not keep times of modification, without which no change can be seen")


def _temporary_name(path: str) -> str:
    return f"{path}_{os.urandom(8).hex()}{SUFFIX}"


def _unnamed(path: str) -> tuple[int, str | None]:
    """A new open file in the directory of ``path``, and its name, where the system does not know files without one."""
    if hasattr(os, "O_TMPFILE") and os.path.exists("/proc/self/fd"):
        try:
            return os.open(os.path.dirname(path) or "/", os.O_TMPFILE | os.O_WRONLY, 0o666), None
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
    name = _temporary_name(path)
    return os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), name


def _name_new(temporary: str, path: str) -> None:
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


def _fsync(path: str) -> None:
    """Of a file or a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync(path: str) -> None:
    with _Translated(path):
        _fsync(path or "/")


def _in_threads(function: Callable[[str], None], items: Iterable[str]) -> None:
    """Call it with each item, a few at a time; the first error is raised when all have ended.

    Threads of our own, not a pool: pools refuse work while the interpreter exits, when the last save may still run.
    """
    pending = deque(items)
    errors: list[BaseException] = []

    def work() -> None:
        while True:
            try:
                item = pending.popleft()
            except IndexError:
                return
            try:
                function(item)
            except BaseException as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(_SYNC_THREADS, len(pending) // _SYNCS_A_THREAD) - 1)]
    with suppress(RuntimeError):  # no more threads: then there are fewer, or only this one
        for thread in threads:
            thread.start()
    work()
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if errors:
        raise errors[0]
