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
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, TypeVar

from ocdbt_py.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
    WaitTimeoutError,
)
from ocdbt_py.storage.background import each, processors
from ocdbt_py.storage.location import DEFAULT_SETTINGS, Settings, safe_path
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
from ocdbt_py.storage.refusals import changed, too_short
from ocdbt_py_backends.local_courtesy import give_way, look_around, stay_away
from ocdbt_py_backends.local_errors import Translated, translated
from ocdbt_py_backends.local_files import (
    append,
    begin_to_write_back,
    fsync,
    give_new_name,
    in_runs,
    new_name,
    new_named,
    new_unnamed,
    open_file,
    read_at,
    reserve,
    stamp,
)
from ocdbt_py_backends.local_growing import GrowingFile
from ocdbt_py_backends.local_lock import SUFFIX, Lock
from ocdbt_py_backends.local_notes import LeftNote, ring_next, take_notes
from ocdbt_py_backends.local_notes import TakenNote as LocalNote
from ocdbt_py_backends.local_syncing import Syncing

T = TypeVar("T")

_URL = re.compile(r"(?:file|local):(?://|(?=/))")

# Waits for a few files of one disk overlap, those for many hardly do, those for a server all; a thread costs as much as
# a short wait.
_SYNC_THREADS = 4
_SYNCS_A_THREAD = 4
# Less than this is on the disk in a moment once somebody waits for it.
_WRITTEN_BACK = 4 << 20
# For less than this, room is found faster than it is asked for.
_RESERVED = 1 << 20
# So much is written between two looks at what the disk could have begun with.
_RUN = 16 << 20
# Reading is mostly the system finding new pages for the buffers, which threads do beside each other.
_READ_THREADS = 4
_READ_A_THREAD = 8 << 20
# A read costs about as much as copying this many bytes; above the second number the copy of a merged read is felt.
_MERGED_GAP = 4096
_MERGED_BYTES = 128 << 10


class LocalStorage:
    """The files of this machine. Paths are absolute. Safe for threads and forks, picklable, without any state.

    ``settings.locking`` ``"none"`` gives up ``cas`` and ``hold``; ``settings.durable`` False every wait for the disk.
    """

    def __init__(self, settings: Settings = DEFAULT_SETTINGS) -> None:
        self._settings = settings
        self._durable = settings.durable
        self._capabilities = _capabilities(settings.locking != "none", settings.durable)

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[LocalStorage, str]:
        """``url`` is ``file://…``, ``local://…`` or a path, taken literally (no percent codes), as fsspec does.

        fsspec's options for local files decide how its own calls behave, and have no meaning here.
        """
        path = url if url.startswith("/") else os.path.expanduser(_URL.sub("", url, count=1))
        try:
            if ".." in path and ".." in path.split("/"):
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
        return safe_path(path) or "/"

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        with Translated(path, reading=True):
            if unless is not None and _token(os.stat(path)) == unless:
                return UNCHANGED
            fd, status = open_file(path)
            try:
                size = status.st_size
                end = size if stop is None else min(stop, size)
                return Read(read_at(fd, start, end - start) if end > start else b"", _token(status), size)
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
            with Translated(path, reading=True):
                fd, status = open_file(path)
                try:
                    for begin, end, run in _runs(indices, ranges):
                        _check_within(path, status, begin, end)
                        data = read_at(fd, begin, end - begin)
                        if len(data) < end - begin:
                            raise too_short(path, path, begin, end, begin + len(data))
                        for index in run:
                            _, start, stop = ranges[index]
                            found[index] = data[start - begin : stop - begin]
                finally:
                    os.close(fd)
        return found

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        """One open for consecutive buffers of one file; of many bytes, one for each thread."""
        shares = _shares(fillings)
        each(self._fill, shares, len(shares))

    def _fill(self, fillings: Sequence[Filling]) -> None:
        for path, group in groupby(fillings, key=itemgetter(0)):
            with Translated(path, reading=True):
                fd, status = open_file(path)
                try:
                    for _, start, buffer in group:
                        _check_within(path, status, start, start + len(buffer))
                        while buffer:
                            count = os.preadv(fd, [buffer], start)
                            if not count:
                                raise too_short(path, path, start, start + len(buffer), start)
                            buffer, start = buffer[count:], start + count
                finally:
                    os.close(fd)

    def map(self, path: str) -> memoryview:
        with Translated(path, reading=True):
            fd, status = open_file(path)
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
        with Translated(directory, reading=True):
            try:
                if deep:
                    identity = os.stat(directory or "/")
                    if (identity.st_dev, identity.st_ino) in above:
                        return  # a symbolic link to a directory we are in
                    above = (*above, (identity.st_dev, identity.st_ino))
                with os.scandir(directory or "/") as found:
                    entries = [entry for entry in found if entry.name.startswith(stem)]
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            path = f"{directory}/{entry.name}"
            if entry.name.endswith(SUFFIX):
                continue
            try:
                status = None if entry.is_dir() else entry.stat()
            except FileNotFoundError:
                continue  # removed meanwhile, or a link to nothing
            except OSError as error:
                raise translated(error, path, reading=True) from error
            if status is None and deep:
                yield from self._list(path, "", True, above)
            elif status is None:
                yield Listed(path + "/", None)
            elif stat.S_ISREG(status.st_mode):
                yield Listed(path, status.st_size)

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        with Translated(path):
            lock = self._acquired(path, None)
            try:
                return self._replace(self._begun(path, buffers, lock), if_version)
            finally:
                lock.release()

    def create(self, path: str) -> Writer:
        with Translated(path):
            fd, temporary = self._with_parents(path, lambda: new_unnamed(path))
            return _NewFile(path, fd, temporary, _WRITTEN_BACK if self._durable else None)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        new = self.create(path)
        try:
            new.write(buffers)
            new.close()
        except BaseException:
            new.abort()
            raise

    def grow(self, path: str) -> Growing:
        with Translated(path):
            return self._with_parents(path, lambda: GrowingFile(path, durable=self._durable))

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        """A second writer in the same thread waits too, and so for ever: write through the :class:`Hold`."""
        if not self._capabilities.hold:
            raise UnsupportedError("locking='none' cannot make other writers wait; use locking='os'")
        return _Held(self, path, timeout, note)

    def delete(self, path: str) -> None:
        with Translated(path):
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
        with Translated(source):
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
        files = dict.fromkeys(path.rstrip("/") for path in paths)
        directories = Syncing(partial(each, _sync, dict.fromkeys(map(os.path.dirname, files)), 1))
        try:
            each(_sync, files, min(_SYNC_THREADS, len(files) // _SYNCS_A_THREAD))
        finally:
            directories.settle()
        directories.wait()

    def _acquired(self, path: str, timeout: float | None) -> Lock:
        lock = Lock(path, self._settings.locking)
        self._with_parents(path, lambda: lock.acquire(timeout))
        return lock

    def _begun(self, path: str, buffers: Sequence[Buffer], lock: Lock) -> _NewFile:
        """What is to replace ``path``, under a name that listings leave out, already on its way to the disk."""
        if lock.fd >= 0:
            new = _NewFile(path, *lock.give_file(), is_lock=True)
        else:
            new = _NewFile(path, *self._with_parents(path, lambda: new_named(path)))
        try:
            new.write(buffers)
            old = _stat(path)
            new.modified = stamp(new.fd, 0 if old is None else old.st_mtime_ns)
            if self._durable:
                new.begin_to_sync()
        except BaseException:
            new.abort()
            raise
        return new

    def _replace(self, new: _NewFile, if_version: Token | Condition) -> Token:
        """Put it in its place, for the holder of the lock."""
        path, replaced = new.path, -1
        try:
            old = _stat(path)
            if if_version is not ANY and (None if old is None else _token(old)) != (
                None if if_version is ABSENT else if_version
            ):
                raise changed(path, path)
            if old is not None and old.st_mtime_ns >= new.modified.st_mtime_ns:  # replaced by one who takes no lock
                new.modified = stamp(new.fd, old.st_mtime_ns)
                if self._durable:
                    os.fsync(new.fd)
            new.wait_for_sync()
            if old is not None and self._durable and hasattr(os, "O_PATH"):
                with suppress(OSError):  # then it is freed here
                    replaced = os.open(path, os.O_PATH)
            new.give_name(may_replace=if_version is not ABSENT)
        except FileExistsError as error:
            raise changed(path, path) from error
        finally:
            if replaced >= 0:
                Syncing.close(replaced)
            new.abort()
        try:
            self._sync_directory(os.path.dirname(path))
        except OSError as error:
            raise StorageError(
                f"{path} was replaced, but it is not known whether that survives a crash: {error.strerror}",
                kind="not-durable",
                path=path,
            ) from error
        return _token(new.modified)

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
            fsync(directory or "/")


class _Held:
    """A :class:`~ocdbt_py.storage.protocol.Hold`."""

    def __init__(self, storage: LocalStorage, path: str, timeout: float, note: Note | None) -> None:
        self._storage = storage
        self._path = path
        self._timeout = timeout
        self._note = note
        self._begun: _NewFile | None = None
        self._taken: list[LocalNote] = []

    def __enter__(self) -> _Held:
        give_way(self._path, self._timeout)
        with Translated(self._path):
            if self._note is None or self._storage._settings.locking != "os":
                self._lock = self._storage._acquired(self._path, self._timeout)
            else:
                self._wait_with(self._note)
        self._since = time.monotonic()
        return self

    def _wait_with(self, note: Note) -> None:
        left = LeftNote(self._path, note)
        self._lock = lock = Lock(self._path, self._storage._settings.locking)
        try:
            if not left.is_done_within(min(note.patience, self._timeout)):
                self._storage._with_parents(self._path, lambda: lock.acquire(self._timeout, left))
        except WaitTimeoutError as error:
            left.end()
            if note.taken and not note.done:
                raise StorageError(
                    f"Another writer has taken this write along and does not say whether it happened ({error.message})",
                    kind="ambiguous",
                    path=self._path,
                ) from error
            if not note.done:
                raise
        finally:
            left.end()
        if note.done:
            lock.release()
            if left.away:
                stay_away(self._path, left.away)

    def __exit__(self, *_: object) -> None:
        with Translated(self._path):
            try:
                away = 0.0
                if self._begun is not None and self._lock.fd >= 0:
                    away = look_around(self._path, self._lock.fd, time.monotonic() - self._since)
                for note in self._taken:
                    note.close(away, len(self._taken))
                if self._begun is not None:
                    self._begun.abort()
                if away:
                    stay_away(self._path, away)
            finally:
                was_held = self._lock.fd >= 0
                self._lock.release()
                for note in self._taken:
                    note.ring()
                if was_held:
                    ring_next(self._path)

    def take_notes(self, expected: int = 0, patience: float = 0.0) -> Sequence[TakenNote]:
        with Translated(self._path):
            taken = take_notes(self._path, expected, patience)
        self._taken += taken
        return taken

    def write(self, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        return self.begin(buffers)(if_version)

    def begin(self, buffers: Sequence[Buffer]) -> Callable[[Token | Condition], Token]:
        if self._begun is not None:
            raise InvalidArgumentError("A hold is for one write")
        with Translated(self._path):
            self._begun = new = self._storage._begun(self._path, buffers, self._lock)

        def put_in_place(if_version: Token | Condition) -> Token:
            with Translated(self._path):
                return self._storage._replace(new, if_version)

        return put_in_place


class _NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`. ``temporary`` is the name the open file has so far, if any.

    The disk is set to work as soon as so many bytes have been written, ``write_back``, and not at the end with all.
    ``is_lock``: that name is the lock of the path, which nobody else replaces before it is given up.
    """

    modified: os.stat_result

    def __init__(
        self, path: str, fd: int, temporary: str | None, write_back: int | None = None, is_lock: bool = False
    ) -> None:
        self.path = path
        self.fd = fd
        self._temporary = temporary
        self._is_lock = is_lock
        self._write_back = write_back
        self._size = self._begun = 0
        self._sync: Syncing | None = None

    def begin_to_sync(self) -> None:
        self._sync = Syncing(partial(os.fsync, self.fd))

    def wait_for_sync(self) -> None:
        if self._sync is not None:
            self._sync.wait()

    def write(self, buffers: Sequence[Buffer]) -> None:
        with Translated(self.path):
            nbytes = sum(map(len, buffers))
            for run in in_runs(buffers, _RUN) if nbytes > _RUN else [buffers]:
                if nbytes >= _RESERVED and not self._is_lock:
                    reserve(self.fd, self._size, sum(map(len, run)))
                self._size += append(self.fd, run)
                if self._write_back is not None and self._size - self._begun >= self._write_back:
                    begin_to_write_back(self.fd, self._begun, self._size)
                    self._begun = self._size

    def close(self) -> None:
        with Translated(self.path):
            try:
                self.give_name(may_replace=False)
            finally:
                self.abort()

    def give_name(self, *, may_replace: bool) -> None:
        """The file is seen from now on; ``FileExistsError``."""
        if self._temporary is None:
            # src_dir_fd is not used with an absolute path, but it is what makes Python follow the link
            os.link(f"/proc/self/fd/{self.fd}", self.path, src_dir_fd=self.fd, follow_symlinks=True)
            return
        if may_replace:
            os.rename(self._temporary, self.path)
        else:
            if self._is_lock:  # a second link to it would be there for the next holder to write into, after a crash
                name = new_name(self.path)
                os.rename(self._temporary, name)
                self._temporary = name
            give_new_name(self._temporary, self.path)
        self._temporary = None

    def abort(self) -> None:
        with Translated(self.path):
            if self._temporary is not None:
                with suppress(FileNotFoundError):
                    os.unlink(self._temporary)
                self._temporary = None
            if self.fd >= 0:
                if self._sync is not None:
                    self._sync.forget()
                fd, self.fd = self.fd, -1
                os.close(fd)


@cache
def _capabilities(locks: bool, durable: bool) -> Capabilities:
    return Capabilities(
        cas=locks,
        create=True,
        atomic_write=True,
        ranges=True,
        list=True,
        rename=True,
        map=True,
        hold=locks,
        grow=True,
        durable=durable,
        writable=True,
    )


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _token(status: os.stat_result) -> Token:
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _check_within(path: str, status: os.stat_result, start: int, stop: int) -> None:
    if stop > status.st_size:
        raise too_short(path, path, start, stop, status.st_size)


def _shares(fillings: Sequence[Filling]) -> list[Sequence[Filling]]:
    """What each of a few threads fills, in order and all alike in bytes; large buffers are cut."""
    total = sum(len(buffer) for _, _, buffer in fillings)
    count = min(_READ_THREADS, processors(), total // _READ_A_THREAD)
    if count < 2:
        return [fillings]
    each_bytes = -(-total // count)
    shares: list[list[Filling]] = [[]]
    room = each_bytes
    for path, start, buffer in fillings:
        while len(buffer) > room:
            shares[-1].append((path, start, buffer[:room]))
            buffer, start = buffer[room:], start + room
            shares.append([])
            room = each_bytes
        shares[-1].append((path, start, buffer))
        room -= len(buffer)
    return [*shares]


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


def _sync(path: str) -> None:
    with Translated(path):
        fsync(path or "/")
