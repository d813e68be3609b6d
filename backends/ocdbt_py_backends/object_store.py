"""A bucket as a storage, whatever store it is in: each store adds only how it spells its requests.

How those are made, and made again, is in :mod:`ocdbt_py_backends.object_requests`; how a new object comes to be, of one
request or of many, in :mod:`ocdbt_py_backends.object_writing`.

A bucket has no directories: paths are ``bucket/key``, ``delete("a/")`` removes what starts so, and nothing is renamed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from typing import Any, Literal, cast

from ocdbt_py.errors import InvalidArgumentError, UnsupportedError
from ocdbt_py.storage.coalesce import fill, ranges_of, scatter
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
    Token,
    Unchanged,
    Writer,
)
from ocdbt_py_backends.body import Body
from ocdbt_py_backends.object_requests import Requests
from ocdbt_py_backends.object_writing import NewObject, put_new

__all__ = ["ObjectStore", "bucket_capabilities"]

_DELETED_AT_ONCE = 1000


def bucket_capabilities(
    *, endpoint: str, conditions_unproven: bool, writable: bool = True, file_bytes: int = 32 << 20, parallel: int = 4
) -> Capabilities:
    """What every bucket can do, and what the stores differ in."""
    return Capabilities(
        cas=True,
        create=True,
        atomic_write=True,
        ranges=True,
        list=True,
        writable=writable,
        conditions_unproven=conditions_unproven,
        endpoint=endpoint,
        file_bytes=file_bytes,
        parallel=parallel,
    )


class ObjectStore(Requests):
    """A subclass writes the requests of :class:`~ocdbt_py_backends.object_requests.Requests`, and what it is."""

    @abstractmethod
    def _identity(self) -> tuple[Any, ...]:
        """Equal for storages in which the same path is the same object: the kind, the endpoint, the account."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    # --- identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    # --- reading

    def read(
        self, path: str, start: int = 0, stop: int | None = None, *, unless: Token | None = None
    ) -> Read | Literal[Unchanged.UNCHANGED]:
        _check_is_object(path)
        return self._run(self._read(path, start, stop, unless))

    def read_many(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        results: list[bytes | bytearray] = [b""] * len(ranges)
        self._fetch(ranges, lambda fetch, data: scatter(fetch, data, ranges, results))
        for i, result in enumerate(results):  # one by one, so that no more than one is held twice
            if not isinstance(result, bytes):
                results[i] = bytes(result)
        return cast(list[bytes], results)

    def read_many_into(self, fillings: Sequence[Filling]) -> None:
        self._fetch(ranges_of(fillings), lambda fetch, data: fill(fetch, data, fillings))

    def map(self, path: str) -> memoryview:
        raise UnsupportedError("Objects in a bucket are not mapped; read them")

    def list(self, prefix: str, *, deep: bool = False) -> Iterator[Listed]:
        # programs that know directories make objects that end in a slash, and those are none of ours
        return (item for item in self._everything(prefix, deep) if item.size is None or not item.path.endswith("/"))

    # --- writing

    def write(self, path: str, buffers: Sequence[Buffer], if_version: Token | Condition = ANY) -> Token:
        _check_is_object(path)
        body = Body(buffers)
        return self._run(self._attempts(lambda: self._put(path, body, if_version), path, if_version, len(body)))

    def create(self, path: str) -> Writer:
        _check_is_object(path)
        return NewObject(self, path)

    def put(self, path: str, buffers: Sequence[Buffer]) -> None:
        _check_is_object(path)
        body = Body(buffers)
        self._run(put_new(self, path, body))

    def delete(self, path: str) -> None:
        if not path.strip("/").partition("/")[2]:
            raise InvalidArgumentError(f"{self.describe(path)} is a whole bucket, which is not deleted")
        names: Iterator[str] = iter([path])
        if path.endswith("/"):
            names = (item.path for item in self._everything(path, True))
        while some := list(islice(names, _DELETED_AT_ONCE)):
            self._run(self._attempts(partial(self._delete, some), path))

    def rename(self, source: str, target: str) -> None:
        raise UnsupportedError(f"Nothing is renamed in a bucket ({self.describe(source)}); copy it")

    def sync(self, paths: Iterable[str]) -> None:
        """What a bucket has acknowledged is durable already."""

    def grow(self, path: str) -> Growing:
        raise UnsupportedError("Objects in a bucket do not grow; put another one")

    def hold(self, path: str, timeout: float, note: Note | None = None) -> AbstractContextManager[Hold]:
        raise UnsupportedError("Writers of an object do not wait for each other; a conditional write decides")


def _check_is_object(path: str) -> None:
    bucket, _, key = path.partition("/")
    if not bucket or not key:
        raise InvalidArgumentError(f"{path!r} is no object in a bucket: it takes a bucket and a key")
