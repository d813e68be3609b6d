"""fsspec's caches on the local disk (``simplecache::s3://bucket/key``, ``fs=SimpleCacheFileSystem(...)``), kept honest.

What never changes comes from the cache: the data files, which are what ``read_many`` and ``read_many_into`` are for.
Everything else (manifests, metadata, markers, listings and every write) is asked of the storage below, which the rest
of the chain names and whose capabilities these are. So no cache, however old, gives a wrong version of a database.

Directories, expiry and ``check_files`` are as told to fsspec, but the files in them are ours
(:mod:`~ocdbt_py_backends.block_cache`): fsspec writes its own in place, under a hash of the path alone, so that half a
download passes for the whole, and two servers' files of one path for the same. ``simplecache`` and ``filecache`` fetch
all of a file at its first use, ``blockcache`` (``cached``) the blocks that are needed. Where the cache fails in any way
the storage below answers.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal

from fsspec.implementations.cached import SimpleCacheFileSystem, WholeFileCacheFileSystem

from ocdbt_py.errors import InvalidArgumentError
from ocdbt_py.storage.location import Settings, resolve, safe_url
from ocdbt_py.storage.protocol import (
    ANY,
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
    Storage,
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py_backends.block_cache import BLOCK, BlockCache, turn
from ocdbt_py_backends.generic import GenericStorage
from ocdbt_py_backends.memory import MemoryStorage
from ocdbt_py_backends.object_store import ObjectStore

_BLOCKS_AT_ONCE = 4
"""So many blocks of a file are fetched, and held in memory, before they are put into the cache."""

_FILES_AT_ONCE = 3
"""So many files are fetched from at a time."""

_LONGEST = 1 << 32
"""Memory for longer ranges is only set aside by a storage that has seen the file to be so long."""

_PROCESS = secrets.token_hex(16)

_stores: dict[int, Any] = {}
"""Those of files in memory that were cached: kept, so that no other one gets the number."""

_OWN_PROTOCOL = re.compile(r"\A(?:simplecache|filecache|blockcache|cached)://")


class CachingStorage:
    """``below``, whose data files are kept in ``cache``. Safe for threads, and for processes that share directories."""

    def __init__(self, below: Storage, cache: BlockCache) -> None:
        self._below = below
        self._cache = cache
        self._sizes: dict[str, int] = {}

    @classmethod
    def from_url(cls, url: str, storage_options: Mapping[str, Any], settings: Settings) -> tuple[CachingStorage, str]:
        """``simplecache::URL``, ``filecache::URL``, ``blockcache::URL`` or ``cached::URL``.

        ``storage_options`` as fsspec has them for a chain: those of each link under its protocol, those of the first,
        which is the cache, also without. ``PROTOCOL://path`` takes the options ``target_protocol``, ``target_options``.
        """
        first, _, rest = url.partition("::")
        protocol, _, path = first.partition("://")
        own, below = _shared_out(protocol, rest, storage_options)
        if path and not rest and "target_protocol" in own:
            rest, below = f"{own['target_protocol']}://{path}", own.get("target_options") or {}
        elif path or not rest:
            raise InvalidArgumentError(f"{safe_url(url)} does not say what is to be cached: write {protocol}::URL")
        place = resolve(rest, storage_options=below, settings=settings)
        return cls(place.storage, BlockCache.of_options(protocol, own)), place.path

    @classmethod
    def from_fs(cls, fs: Any, path: str, settings: Settings) -> tuple[CachingStorage, str]:
        """``fs`` is one of fsspec's caching filesystems, of which the settings are taken, and the one below."""
        protocol = "blockcache"
        if isinstance(fs, WholeFileCacheFileSystem):
            protocol = "simplecache" if isinstance(fs, SimpleCacheFileSystem) else "filecache"
        given = dict(zip(("target_protocol", "cache_storage"), fs.storage_args, strict=False)) | fs.storage_options
        options = {
            # a directory of its own would go when it does
            "cache_storage": "TMP" if given.get("cache_storage", "TMP") == "TMP" else fs.storage,
            "cache_storage_mode": given.get("cache_storage_mode"),
            "expiry_time": fs.expiry,
            "check_files": fs.check_files,
            "compression": fs.compression,
        }
        place = resolve(_OWN_PROTOCOL.sub("", path), fs=fs.fs, settings=settings)
        return cls(place.storage, BlockCache.of_options(protocol, options)), place.path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CachingStorage) and self._below == other._below

    def __hash__(self) -> int:
        return hash((CachingStorage, self._below))

    def __repr__(self) -> str:
        return f"CachingStorage({self._below!r})"

    @property
    def capabilities(self) -> Capabilities:
        return self._below.capabilities

    def describe(self, path: str) -> str:
        return self._below.describe(path)

    # --- through the cache

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        if any(stop - start >= _LONGEST for _, start, stop in ranges):
            return self._below.read_many(ranges)
        found: list[Any] = [bytearray(stop - start) for _, start, stop in ranges]
        self.read_many_into(
            [(path, start, memoryview(buffer)) for (path, start, _), buffer in zip(ranges, found, strict=True)]
        )
        for i, buffer in enumerate(found):  # one by one, so that no more than one is held twice
            found[i] = bytes(buffer)
        return found

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        needed: dict[str, set[int]] = {}
        for path, start, buffer in fillings:
            if len(buffer):
                needed.setdefault(path, set()).update(range(start // BLOCK, (start + len(buffer) - 1) // BLOCK + 1))
        folders = self._fetched(needed)
        left = [filling for filling in fillings if len(filling[2]) and not self._fill(folders[filling[0]], filling)]
        if left:
            self._below.read_many_into(left)

    def _fetched(self, needed: Mapping[str, Collection[int]]) -> dict[str, str]:
        """See to it that these blocks of each file are in the cache, as far as they can be; the folder of each file."""
        folders = {path: self._folder(path) for path in needed}
        missing = [path for path in needed if self._missing(folders[path], needed[path])]

        def fetch(path: str) -> None:
            with turn(folders[path]):  # and not the same blocks twice
                self._fetch(path, folders[path], self._missing(folders[path], needed[path]))

        if len(missing) == 1:
            fetch(missing[0])
        elif missing:
            with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
                list(pool.map(fetch, missing))
        return folders

    def _missing(self, folder: str, numbers: Iterable[int]) -> list[int]:
        return sorted(number for number in numbers if self._cache.find(folder, number) is None)

    def _fetch(self, path: str, folder: str, missing: Sequence[int]) -> None:
        """Fetch these blocks, or those of the whole file, until one cannot be kept."""
        if not missing:
            return
        size = self._sizes.get(path)
        if size is None:
            first = 0 if self._cache.whole else missing[0]
            found = self._below.read(path, first * BLOCK, (first + 1) * BLOCK)
            assert isinstance(found, Read)
            size = self._sizes[path] = found.size
            if found.data and not self._cache.keep(folder, first, found.data):
                return
        wanted: Iterable[int] = range(-(-size // BLOCK)) if self._cache.whole else missing
        numbers = self._missing(folder, (number for number in wanted if number * BLOCK < size))
        for at in range(0, len(numbers), _BLOCKS_AT_ONCE):
            some = numbers[at : at + _BLOCKS_AT_ONCE]
            blocks = self._below.read_many([(path, n * BLOCK, min(size, (n + 1) * BLOCK)) for n in some])
            for number, data in zip(some, blocks, strict=True):
                if not self._cache.keep(folder, number, data):
                    return

    def _fill(self, folder: str, filling: Filling) -> bool:
        """Fill a buffer from the cache; whether all of it was there."""
        _, at, left = filling
        while len(left):
            number, begin = divmod(at, BLOCK)
            some, left = left[: BLOCK - begin], left[BLOCK - begin :]
            if not self._cache.fill(folder, number, begin, some):
                return False
            at += len(some)
        return True

    def _folder(self, path: str) -> str:
        source: tuple[Any, ...] = (_origin(self._below), path)
        if self._cache.checked:
            found = self._below.read(path, 0, 0)
            assert isinstance(found, Read)
            self._sizes[path] = found.size
            source = (*source, found.token)
        return hashlib.sha256(repr(source).encode("utf-8")).hexdigest()

    def _forget(self, path: str) -> None:
        """A name is used again."""
        self._sizes.pop(path, None)
        if not self._cache.checked:
            self._cache.drop(self._folder(path))

    # --- below the cache

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        return self._below.read(path, start, stop, unless=unless)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        return self._below.list(prefix, deep=deep)

    def map(self, path: str) -> memoryview:
        return self._below.map(path)

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        token = self._below.write(path, buffers, if_version)
        self._forget(path)
        return token

    def create(self, path: str) -> Writer:
        self._forget(path)
        return self._below.create(path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        self._forget(path)
        self._below.put(path, buffers)

    def delete(self, path: str) -> None:
        self._below.delete(path)
        if not path.endswith("/"):
            self._forget(path)

    def rename(self, source: str, target: str) -> None:
        self._below.rename(source, target)
        for item in self._below.list(target.rstrip("/") + "/", deep=True):
            self._forget(item.path)

    def sync(self, paths: Iterable[str]) -> None:
        self._below.sync(paths)

    def grow(self, path: str) -> Growing:
        self._forget(path)
        return self._below.grow(path)

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        return self._below.hold(path, timeout, note)


def _shared_out(protocol: str, rest: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """The options of the cache, and those of ``rest``, the chain below it, as :func:`resolve` takes them for that."""
    links = [link.partition("://")[0].lower() if "://" in link else "" for link in rest.split("::")]
    names = {name for link, text in zip(links, rest.split("::"), strict=True) for name in ((link or "file"), text)}
    keyed = {name: value for name, value in options.items() if name in names and isinstance(value, Mapping)}
    own = {name: value for name, value in options.items() if name not in keyed and name != protocol}
    below = keyed if len(links) > 1 else keyed.get(links[0] or "file", {})
    return {**options.get(protocol, {}), **own}, below


def _origin(storage: Storage) -> tuple[Any, ...]:
    """Equal for storages, also of different processes, in which the same path is the same file."""
    if isinstance(storage, CachingStorage):
        return _origin(storage._below)
    if isinstance(storage, ObjectStore | GenericStorage):
        return storage._identity()
    if isinstance(storage, MemoryStorage):
        store = storage._fs.store
        return (_PROCESS, os.getpid(), id(_stores.setdefault(id(store), store)))
    return (type(storage).__name__, storage.describe(""))
