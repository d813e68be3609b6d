"""Every other filesystem of fsspec: FTP, WebDAV, archives, and what other packages have registered.

Nothing is assumed but fsspec's own interface, and that has neither conditional writes nor bytes and version from one
response. So a read looks before and after and starts over when the two differ, tokens are those of
:mod:`ocdbt_py_backends.sightings`, and conditions of writes are looked up, then written: only the caller's word that
nobody else writes (``single_writer=True``) makes that safe, and the capabilities say so. Checkpoints need no more.

A new file gets a temporary name, which listings leave out, and is moved, where the server is known to move in one
step; elsewhere it is written under its own name, which for object stores is one step too. What is known of single
filesystems stands in :mod:`ocdbt_py_backends.generic_filesystem`.

A filesystem with one connection (ftplib's is a socket and a place in a conversation) is used by one thread at a time;
one that broke is made again, and what only looks or names is asked again. Neither survives a fork.
"""

from __future__ import annotations

import os
import random
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal, TypeAlias, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

from ocdbt_py.errors import (
    InvalidArgumentError,
    OcdbtError,
    PathNotFoundError,
    StorageError,
    UnsupportedError,
)
from ocdbt_py.storage.coalesce import Fetch, fetches, fill, landing, ranges_of, runs, scatter
from ocdbt_py.storage.location import Settings, resolve, safe_path, safe_url
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
    Note,
    Read,
    Storage,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py.storage.refusals import changed, taken, too_short
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.generic_failures import failure_of
from ocdbt_py_backends.generic_filesystem import (
    MOVES,
    PIECE_BYTES,
    installation,
    is_frozen,
    is_writable,
    let_go,
    owned,
    protocol_of,
    renewed,
    turn_on,
    upload,
)
from ocdbt_py_backends.generic_reading import stream_of
from ocdbt_py_backends.sightings import WHOLE_BYTES, Seen, Sightings, digest

ATTEMPTS = 4
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
_TRANSIENT = frozenset({"unreachable", "unavailable", "interrupted", "timeout"})

_GAP = 64 << 10
_READ_BYTES = 4 << 20
_READ_TOGETHER = 8
_TURN_BYTES = 64 << 20
_UNSTABLE_READS = 5
_DEEPEST = 200

_TEMPORARY = ".__lock"
# FTP servers without MLSD tell times to the minute.
_SECONDS_APART = 120.0

_STAMPS = (
    *("ETag", "etag", "version_id", "generation", "checksum", "md5", "sha", "sha256", "content_hash", "CRC", "unique"),
    *("mtime", "modify", "modified", "LastModified", "last_modified", "updated", "created", "ino"),
)
"""What different filesystems call what changes with a file's content."""

T = TypeVar("T")
Take: TypeAlias = Callable[[Fetch, bytes], None]
Land: TypeAlias = Callable[[Fetch], memoryview | None]


class GenericStorage:
    """The files of ``fs``, any filesystem of fsspec. Paths are those of the filesystem, without a trailing slash.

    ``prefix`` and ``suffix`` are what stands around a path in messages.
    """

    def __init__(self, fs: Any, prefix: str, suffix: str = "") -> None:
        self._given = fs
        self._prefix = prefix
        self._suffix = suffix
        self._protocol = protocol_of(fs)
        self._move = MOVES.get(self._protocol)
        self._frozen = is_frozen(fs)
        self._capabilities = Capabilities(ranges=True, list=True, writable=is_writable(fs))
        self._start()

    @property
    def _server(self) -> str:
        """Where the filesystem's URLs do not say it."""
        base = self._given.storage_options.get("base_url")
        return f" to {safe_url(base)}" if isinstance(base, str) else ""

    def _start(self) -> None:
        self._pid = os.getpid()
        self._fs = self._given
        self._sightings = Sightings(_SECONDS_APART)

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[Storage, str]:
        """Any URL of fsspec, chained ones too (``zip://in/it::https://host/a.zip``). The filesystem is made now, and a
        server asked or an archive opened for that, with ``storage_options`` as fsspec takes them.
        """
        shown = safe_url(url)
        try:
            fs, path = fsspec.core.url_to_fs(url, skip_instance_cache=True, **storage_options)
        except ImportError as error:
            raise UnsupportedError(
                f"{shown} needs a package that is not installed: {installation(url, error)}"
            ) from error
        except ValueError as error:
            if "not known" not in str(error):
                raise InvalidArgumentError(f"{shown} is no URL that fsspec understands") from error
            scheme = str(error).rpartition(" ")[2]
            raise UnsupportedError(
                f"Nothing serves {shown}: neither this package (file://, memory://, s3://, gs://, az://, http://, "
                f"sftp://), nor fsspec; a package of others may, by an entry point {scheme} in ocdbt_py.backends"
            ) from error
        except TypeError as error:
            raise InvalidArgumentError(
                f"The filesystem of {shown} takes other storage_options, or needs more: see its documentation in fsspec"
            ) from error
        except Exception as error:
            raise failure_of(error, shown, "") from error
        if protocol_of(fs) == "dir":
            if url.startswith("dir::"):
                path = ""  # fsspec repeats that of the next link
            place = resolve(PurePosixPath(path), fs=fs, settings=settings)
            return place.storage, place.path
        path = path.rstrip("/")
        head, separator, tail = shown.partition("::")
        scheme, _, rest = head.partition("://")
        authority = rest.rstrip("/").removesuffix(path.strip("/")).rstrip("/") if path else rest.rstrip("/")
        return cls(owned(fs), f"{scheme}://{authority}", separator + tail), path

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[Storage, str]:
        host = getattr(fs, "host", None)
        found = cls(fs, f"{protocol_of(fs)}://{host if isinstance(host, str) else ''}")
        return found, fs._strip_protocol(path).rstrip("/")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenericStorage) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash((type(self._given), self._prefix))

    def __repr__(self) -> str:
        return f"GenericStorage({self.describe('')})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_fs", "_pid", "_sightings")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _identity(self) -> tuple[Any, ...]:
        fs = self._given
        options = {name: value for name, value in fs.storage_options.items() if name != "skip_instance_cache"}
        return type(fs), fs.storage_args, options

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def describe(self, path: str) -> str:
        shown = safe_path(path)
        between = "/" if shown and not shown.startswith("/") and not self._prefix.endswith("/") else ""
        return f"{self._prefix}{between}{shown}{self._suffix}"

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        return self._do(path, lambda fs: self._read(fs, path, start, stop, unless))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes | bytearray] = [b""] * len(ranges)
        self._fetch(ranges, lambda fetch, data: scatter(fetch, data, ranges, results))
        return [result if isinstance(result, bytes) else bytes(result) for result in results]

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._fetch(
            ranges_of(fillings), lambda fetch, data: fill(fetch, data, fillings), lambda fetch: landing(fetch, fillings)
        )

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Files of this filesystem are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        directory, _, stem = prefix.rpartition("/")
        return self._list(directory, stem, _DEEPEST if deep else 0)

    def _read(
        self, fs: Any, path: str, start: int, stop: int | None, unless: Token | None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        for _ in range(_UNSTABLE_READS):
            at = time.monotonic()
            stamp, size = self._look(fs, path)
            if isinstance(unless, Seen) and unless.stamp == stamp and self._sightings.settled(path, unless):
                return UNCHANGED
            whole = size <= WHOLE_BYTES
            begin, end = (0, size) if whole else (start, size if stop is None else min(stop, size))
            data = bytes(fs.cat_file(path, start=begin, end=end)) if begin < end else b""
            if len(data) == max(0, end - begin) and (self._frozen or self._look(fs, path)[0] == stamp):
                break
        else:
            raise StorageError(f"{self.describe(path)} changes while it is read, again and again", path=path)
        token = Seen(stamp, digest(data) if whole else None)
        if whole:
            if self._frozen or stamp[1:]:  # a size alone settles nothing
                self._sightings.saw(path, token, at)
            data = data[start:stop]
        return UNCHANGED if token == unless else Read(data, token, size)

    def _look(self, fs: Any, path: str) -> tuple[tuple[Hashable, ...], int]:
        """What tells this content of a file from another (its size first), and its size."""
        info = self._info(fs, path)
        size = info.get("size")
        if info.get("type") == "directory" or size is None:
            raise StorageError(
                f"{self.describe(path)} is a directory, or of unknown size, where a file is expected",
                kind="not-a-file",
                path=path,
            )
        return (size, *((name, str(info[name])) for name in _STAMPS if info.get(name) is not None)), size

    def _info(self, fs: Any, path: str) -> dict[str, Any]:
        if not self._frozen:
            fs.invalidate_cache()
        info: dict[str, Any] = fs.info(path)
        return info

    def _there(self, fs: Any, path: str) -> dict[str, Any] | None:
        """As :meth:`_info`; None where nothing is."""
        try:
            return self._info(fs, path)
        except Exception as error:
            if isinstance(self._translated(error, path, reading=True), PathNotFoundError):
                return None
            raise

    def _fetch(self, ranges: Sequence[ByteRange], take: Take, land: Land = lambda fetch: None) -> None:
        """``take`` gets each answer, but for those whose place ``land`` knows."""
        requests = fetches(ranges, gap=_GAP, most=_READ_BYTES)
        if isinstance(self._fs, AsyncFileSystem):
            for begin in range(0, len(requests), _READ_TOGETHER):
                together = requests[begin : begin + _READ_TOGETHER]
                answers = self._do(together[0].path, partial(self._cat_together, wanted=together))
                for fetch, data in zip(together, answers, strict=True):
                    take(fetch, data)
            return
        for run in runs(requests, most=_TURN_BYTES):
            left = deque(run)
            self._do(run[0].path, partial(self._cat_in_turn, left=left, take=take, land=land), left=left)

    def _cat_in_turn(self, fs: Any, left: deque[Fetch], take: Take, land: Land) -> None:
        """All that is ``left`` to fetch of one file; what is here is left no more."""
        if not left:
            return  # it was the end of the stream that failed
        failure: Exception | None = None
        try:
            with stream_of(fs, left[0].path) as read_into:
                while left:
                    fetch = left[0]
                    place = land(fetch)
                    buffer = memoryview(bytearray(fetch.stop - fetch.start)) if place is None else place
                    if read_into(fetch.start, buffer) != len(buffer):
                        break
                    if place is None:
                        take(fetch, bytes(buffer))
                    left.popleft()
        except Exception as error:
            failure = error
        if left:
            self._judged(fs, left[0], failure)
        elif failure is not None:
            raise failure

    def _cat_together(self, fs: Any, wanted: Sequence[Fetch]) -> Sequence[bytes]:
        paths, starts, ends = zip(*((fetch.path, fetch.start, fetch.stop) for fetch in wanted), strict=True)
        answers = fs.cat_ranges([*paths], [*starts], [*ends], on_error="return")
        return [self._judged(fs, fetch, answer) for fetch, answer in zip(wanted, answers, strict=True)]

    def _judged(self, fs: Any, fetch: Fetch, answer: Any) -> bytes:
        """An answer as it should be, or why it is not: filesystems differ in what they do beyond the end of a file."""
        if isinstance(answer, bytes | bytearray) and len(answer) == fetch.stop - fetch.start:
            return bytes(answer)
        error = answer if isinstance(answer, Exception) else None
        if error is not None and self._translated(error, fetch.path, reading=True).kind in _TRANSIENT:
            raise error
        _, size = self._look(fs, fetch.path)
        if fetch.stop <= size:
            raise error or StorageError(
                f"{self.describe(fetch.path)}: the answer was cut short", kind="interrupted", path=fetch.path
            )
        raise too_short(self.describe(fetch.path), fetch.path, fetch.start, fetch.stop, size)

    def _list(self, directory: str, stem: str, levels: int) -> Iterator[Listed]:
        for name, size in self._do(directory, lambda fs: self._entries(fs, directory)):
            path = f"{directory}/{name}" if directory else name
            if not name.startswith(stem) or name.endswith(_TEMPORARY):
                continue
            if size is not None:
                yield Listed(path, size)
            elif levels:
                yield from self._list(path, "", levels - 1)
            else:
                yield Listed(f"{path}/", None)

    def _entries(self, fs: Any, directory: str) -> Sequence[tuple[str, int | None]]:
        """Names in a directory, and sizes of those that are files."""
        there = self._there(fs, directory) if directory.strip("/") else None
        if directory.strip("/") and (there is None or there.get("type") != "directory"):
            return []  # some filesystems list a file as if it were in itself
        try:
            found = fs.ls(directory or fs.root_marker, detail=True)
        except Exception as error:
            if isinstance(self._translated(error, directory, reading=True), PathNotFoundError):
                return []
            raise
        entries: list[tuple[str, int | None]] = []
        for info in found:
            whole = info["name"].rstrip("/")
            name = whole.rpartition("/")[2]
            if not name or whole.strip("/") == directory.strip("/"):
                continue  # the directory itself
            if info.get("type") == "directory":
                entries.append((name, None))
            elif info.get("size") is not None:
                entries.append((name, info["size"]))
        return entries

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        """Conditions are looked up first: only as safe as the word that nobody else writes."""
        self._demand_writable(path)
        if if_version is not ANY:
            current = self._token(path)
            if current != (None if if_version is ABSENT else if_version):
                raise changed(self.describe(path), path)
        body = Body(buffers)
        self._do(path, lambda fs: self._write(fs, path, body), reading=False)
        stamp, _ = self._do(path, lambda fs: self._look(fs, path))
        return Seen(stamp, digest(*body.views) if len(body) <= WHOLE_BYTES else None)

    def create(self, path: str) -> Writer:
        self._demand_writable(path)
        return _NewFile(self, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._demand_writable(path)
        self._demand_absent(path)
        body = Body(buffers)
        self._do(path, lambda fs: self._write(fs, path, body), reading=False)

    def delete(self, path: str) -> None:
        self._demand_writable(path)
        if not path.strip("/"):
            raise InvalidArgumentError("The root of the filesystem is not deleted")
        if path.endswith("/"):
            self._do(path, lambda fs: self._delete_tree(fs, path.rstrip("/"), _DEEPEST), reading=False)
        else:
            self._do(path, lambda fs: self._remove(fs, path), reading=False)

    def rename(self, source: str, target: str) -> None:
        raise UnsupportedError(f"{self.describe(source)}: not every filesystem moves a directory in one step; copy it")

    def sync(self, paths: Iterable[str]) -> None:
        """fsspec has no words for it: what a server has acknowledged is all there is."""

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers of this filesystem cannot wait for each other")

    def _demand_writable(self, path: str) -> None:
        if not self._capabilities.writable:
            raise UnsupportedError(f"{self.describe(path)} can only be read; write elsewhere and copy it there")

    def _demand_absent(self, path: str) -> None:
        if self._do(path, lambda fs: self._there(fs, path)) is not None:
            raise taken(self.describe(path), path)

    def _token(self, path: str) -> Token | None:
        try:
            found = self.read(path, 0, 0)
        except PathNotFoundError:
            return None
        return found.token if isinstance(found, Read) else None

    def _write(self, fs: Any, path: str, body: Body) -> None:
        """Replace or make a file; done twice, it comes to the same."""
        name = self._name_for(path)
        try:
            self._with_parents(fs, path, lambda: upload(fs, name, body))
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
        return f"{directory}{separator}{os.urandom(16).hex()}{_TEMPORARY}"

    def _finish(self, fs: Any, name: str, path: str) -> None:
        if self._move is None:
            return
        try:
            self._move(fs, name, path)
        except Exception:
            if self._there(fs, path) is None:
                raise
            fs.rm_file(path)  # a server that moves onto no file
            self._move(fs, name, path)

    def _with_parents(self, fs: Any, path: str, function: Callable[[], T]) -> T:
        """The result of ``function``, which is tried again with the directories above ``path`` made."""
        parent = path.rpartition("/")[0]
        try:
            return function()
        except Exception:
            if not parent.strip("/") or self._there(fs, parent) is not None:
                raise
        fs.makedirs(parent, exist_ok=True)
        return function()

    def _remove(self, fs: Any, path: str) -> None:
        try:
            fs.rm_file(path)
        except Exception:
            if self._there(fs, path) is not None:
                raise

    def _delete_tree(self, fs: Any, directory: str, levels: int) -> None:
        there = self._there(fs, directory)
        if there is None or there.get("type") != "directory":
            return
        for name, size in self._entries(fs, directory):
            path = f"{directory}/{name}"
            if size is None and levels:
                self._delete_tree(fs, path, levels - 1)
            else:
                self._remove(fs, path)
        try:
            fs.rmdir(directory)
        except Exception:
            there = self._there(fs, directory)  # a bucket's directory is gone with its last file
            if there is not None and not isinstance(fs, AsyncFileSystem):
                raise

    # --- how

    def _do(self, path: str, work: Callable[[Any], T], *, reading: bool = True, left: Sized = ()) -> T:
        """Let the filesystem do it, and a new one again after a connection broke: ``work`` may be done twice.

        Where it takes what is done off what is ``left``, the attempts to do the rest are counted anew.
        """
        before = len(left)
        attempts, pause = ATTEMPTS, _FIRST_PAUSE
        while True:
            used = None
            try:
                with self._used(path) as used:
                    return work(used)
            except Exception as error:
                failure = self._translated(error, path, reading=reading)
                if len(left) < before:
                    before = len(left)
                    attempts, pause = ATTEMPTS, _FIRST_PAUSE
                attempts -= 1
                if failure.kind not in _TRANSIENT or not attempts:
                    raise failure from (None if failure is error else error)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._renew(used)

    @contextmanager
    def _used(self, path: str) -> Iterator[Any]:
        """The filesystem, for this thread alone unless it is made for many."""
        if self._pid != os.getpid():
            self._fs = renewed(self._given)
            self._pid = os.getpid()
        fs = self._fs
        with turn_on(fs, self.describe(path), path):
            yield fs

    def _renew(self, broken: Any) -> None:
        """Have another filesystem, unless another thread has seen to that."""
        with suppress(Exception):  # then the next attempt says what is wrong
            another = renewed(self._given)
            if self._fs is broken:
                self._fs = another

    def _translated(self, error: Exception, path: str, *, reading: bool) -> OcdbtError:
        if isinstance(error, OcdbtError):
            return error
        found = failure_of(error, self.describe(path), path, self._server)
        if isinstance(error, NotADirectoryError) and not reading:
            return StorageError(
                f"{self.describe(path)} cannot be made, for one of its parents is a file",
                kind="not-a-directory",
                path=path,
            )
        return found


class _NewFile:
    """A :class:`~ocdbt_py.storage.protocol.Writer`: what is small is held back, as a copy, and sent at once."""

    def __init__(self, storage: GenericStorage, path: str) -> None:
        storage._demand_absent(path)
        self._storage = storage
        self._path = path
        self._name = storage._name_for(path)
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
                if parent.strip("/") and self._storage._there(fs, parent) is None:
                    fs.makedirs(parent, exist_ok=True)
                self._file = fs.open(self._name, "wb")
            for piece in Body([bytes(self._held), *body.views]).pieces(PIECE_BYTES):
                self._file.write(piece)
            self._held.clear()

    def close(self) -> None:
        self._demand_open()
        storage = self._storage
        if self._file is None:
            self._open = False
            storage.put(self._path, [self._held])
            return
        try:
            with self._in_use() as fs:
                self._file.close()
                if self._name != self._path and storage._there(fs, self._path) is not None:
                    raise taken(storage.describe(self._path), self._path)
                storage._finish(fs, self._name, self._path)
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
                self._storage._do(self._path, lambda fs: self._storage._remove(fs, self._name))

    @contextmanager
    def _in_use(self) -> Iterator[Any]:
        """The filesystem on which the file was begun; what was sent through another is lost with it."""
        storage, path = self._storage, self._path
        try:
            with storage._used(path) as fs:
                if self._fs is None:
                    self._fs = fs
                if self._fs is not fs:
                    raise StorageError(
                        f"{storage.describe(path)}: the connection broke while the file was written; write it again",
                        kind="interrupted",
                        path=path,
                    )
                yield fs
        except Exception as error:
            failure = storage._translated(error, path, reading=False)
            raise failure from (None if failure is error else error)

    def _demand_open(self) -> None:
        if not self._open:
            raise InvalidArgumentError("This file is closed")
