"""A storage that fails on purpose, and counts what is asked of it.

Every change below counts as one step: to put a file, to begin one, to write to it, to close or abort it, to write a
small file, to delete, rename or sync. The step numbered ``at`` (the first is 1) goes wrong in one of several ways::

    storage = FaultyStorage(MemoryStorage(), at=3)
    with pytest.raises(Crash):
        commit(storage)
    storage.lose_unsynced()             # a power failure too, not only the end of the process
    assert reopen(storage.inner) in (before, after)

Run once without ``at`` and look at ``steps`` to learn how many there are.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Literal, TypeAlias

from ocdbt_py.errors import ConflictError, PathNotFoundError, StorageError
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
    TakenNote,
    Token,
    Unchanged,
    Writer,
)

Fault: TypeAlias = Literal["crash", "fail", "ambiguous", "conflict"]
"""``crash``: the step does not happen, and from then on every call raises :class:`Crash`, as in a process that is gone.
``fail``: the step does not happen and raises ``StorageError``; later ones work again.
``ambiguous``: the step happens, and raises ``StorageError`` of that kind all the same.
``conflict``: a conditional write happens, and raises ``ConflictError`` all the same, as where a client repeats a
request whose answer was lost, and is told that its condition does not hold any more. Other steps: as ``ambiguous``."""


class Crash(BaseException):
    """The process has ended. Not an ``Exception``, because nothing can clean up after that."""


class FaultyStorage:
    """``inner``, of which the change numbered ``at`` goes wrong (None: none does). Safe for threads.

    ``capabilities`` replace those of ``inner``, to make it one that can do less, or wants it in another way.
    ``steps`` counts the changes so far, ``operations`` the calls by method name (``writer.close`` and the like for
    files under way), ``bytes_read`` the bytes returned by path.
    """

    def __init__(
        self,
        inner: Storage,
        *,
        at: int | None = None,
        fault: Fault = "crash",
        capabilities: Capabilities | None = None,
    ) -> None:
        self.inner = inner
        self._capabilities = capabilities
        self.at = at
        self.fault: Fault = fault
        self.steps = 0
        self.crashed = False
        self.operations: Counter[str] = Counter()
        self.bytes_read: Counter[str] = Counter()
        self.unsynced: set[str] = set()
        self.synced_sizes: dict[str, int] = {}
        self._lock = threading.Lock()

    def lose_unsynced(self) -> None:
        """Remove from ``inner`` every file that was closed and not synced since, as a power failure may, and of those
        that grow what was."""
        for path in self.unsynced:
            self.inner.delete(path)
        for path, size in self.synced_sizes.items():
            with suppress(PathNotFoundError):
                found = self.inner.read(path, 0, size)
                assert isinstance(found, Read)
                self.inner.delete(path)
                self.inner.put(path, [found.data])
        self.unsynced.clear()
        self.synced_sizes.clear()

    def __eq__(self, other: object) -> bool:
        return self.inner == (other.inner if isinstance(other, FaultyStorage) else other)

    def __hash__(self) -> int:
        return hash(self.inner)

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities if self._capabilities is None else self._capabilities

    def describe(self, path: str) -> str:
        return self.inner.describe(path)

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        self._count("read")
        found = self.inner.read(path, start, stop, unless=unless)
        if isinstance(found, Read):
            self._count_bytes(path, len(found.data))
        return found

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        self._count("read_many")
        found = self.inner.read_many(ranges)
        for path, start, stop in ranges:
            self._count_bytes(path, stop - start)
        return found

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._count("read_many_into")
        self.inner.read_many_into(fillings)
        for path, _, buffer in fillings:
            self._count_bytes(path, len(buffer))

    def map(self, path: str) -> memoryview:
        self._count("map")
        return self.inner.map(path)

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        self._count("list")
        return self.inner.list(prefix, deep=deep)

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        with self._step("write", is_conditional=if_version is not ANY):
            return self.inner.write(path, buffers, if_version)

    def create(self, path: str) -> Writer:
        with self._step("create"):
            return _FaultyWriter(self, path, self.inner.create(path))

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        with self._step("put"):
            self.inner.put(path, buffers)
            self.unsynced.add(path)

    def grow(self, path: str) -> Growing:
        with self._step("grow"):
            return _FaultyGrowing(self, path, self.inner.grow(path))

    @contextmanager
    def hold(self, path: str, timeout: float, note: Note | None = None) -> Iterator[Hold]:
        self._count("hold")
        with self.inner.hold(path, timeout, note) as held:
            yield _FaultyHold(self, held)

    def delete(self, path: str) -> None:
        with self._step("delete"):
            self.inner.delete(path)

    def rename(self, source: str, target: str) -> None:
        with self._step("rename"):
            self.inner.rename(source, target)
            below = source.rstrip("/") + "/"
            moved = {path for path in self.unsynced if path.startswith(below)}
            self.unsynced -= moved
            self.unsynced |= {f"{target.rstrip('/')}/{path.removeprefix(below)}" for path in moved}

    def sync(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        with self._step("sync"):
            self.inner.sync(paths)
            self.unsynced.difference_update(paths)

    def _count(self, name: str, steps: int = 0) -> bool:
        """Count one call, of so many steps; whether it is to go wrong."""
        with self._lock:
            if self.crashed:
                raise Crash(f"{name} after the crash")
            self.operations[name] += 1
            self.steps += steps
            goes_wrong = steps > 0 and self.steps == self.at
            self.crashed = goes_wrong and self.fault == "crash"
            return goes_wrong

    def _count_bytes(self, path: str, count: int) -> None:
        with self._lock:
            self.bytes_read[path] += count

    @contextmanager
    def _step(self, name: str, *, is_conditional: bool = False) -> Iterator[None]:
        """Around one change of the storage."""
        goes_wrong = self._count(name, steps=1)
        if goes_wrong and self.fault == "crash":
            raise Crash(f"{name}, step {self.at}")
        if goes_wrong and self.fault == "fail":
            raise StorageError(f"{name} failed, as a test wants it (step {self.at})")
        yield
        if goes_wrong and self.fault == "conflict" and is_conditional:
            raise ConflictError(f"{name} is said not to have happened, as a test wants it (step {self.at})")
        if goes_wrong:
            raise StorageError(f"The answer to {name} was lost, as a test wants it (step {self.at})", kind="ambiguous")


class _FaultyWriter:
    def __init__(self, storage: FaultyStorage, path: str, inner: Writer) -> None:
        self._storage = storage
        self._path = path
        self._inner = inner

    def write(self, buffers: Sequence[Buffer]) -> None:
        with self._storage._step("writer.write"):
            self._inner.write(buffers)

    def close(self) -> None:
        with self._storage._step("writer.close"):
            self._inner.close()
            self._storage.unsynced.add(self._path)

    def abort(self) -> None:
        with self._storage._step("writer.abort"):
            self._inner.abort()


class _FaultyGrowing:
    def __init__(self, storage: FaultyStorage, path: str, inner: Growing) -> None:
        self._storage = storage
        self._path = path
        self._inner = inner
        self.size = 0
        storage.unsynced.add(path)

    def append(self, buffers: Sequence[Buffer]) -> None:
        with self._storage._step("growing.append"):
            self._inner.append(buffers)
            self.size = self._inner.size

    def sync(self) -> None:
        with self._storage._step("growing.sync"):
            self._inner.sync()
            self._storage.unsynced.discard(self._path)
            self._storage.synced_sizes[self._path] = self.size

    def is_there(self) -> bool:
        self._storage._count("growing.is_there")
        return self._inner.is_there()

    def close(self) -> None:
        self._inner.close()


class _FaultyHold:
    def __init__(self, storage: FaultyStorage, inner: Hold) -> None:
        self._storage = storage
        self._inner = inner

    def write(self, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        return self.begin(buffers)(if_version)

    def take_notes(self, expected: int = 0, patience: float = 0.0) -> Sequence[TakenNote]:
        return self._inner.take_notes(expected, patience)

    def begin(self, buffers: Sequence[Buffer]) -> Callable[[Token | Condition], Token]:
        self._storage._count("hold.begin")
        put_in_place = self._inner.begin(buffers)

        def write(if_version: Token | Condition) -> Token:
            with self._storage._step("hold.write", is_conditional=if_version is not ANY):
                return put_in_place(if_version)

        return write
