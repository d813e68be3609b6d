"""The views of a database: ordered, like a dict's, and each iteration sees one version."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .database import Database


class Keys(KeysView[bytes]):
    """The keys that start with ``prefix``, in byte order."""

    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._database = database
        self._prefix = prefix

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._database.batches(self._prefix, values=False):
            for key, _ in batch:
                yield key

    def __len__(self) -> int:
        return _count(self._database, self._prefix)

    def __contains__(self, key: object) -> bool:
        return _starts(key, self._prefix) and key in self._database


class Values(ValuesView[bytes]):
    """The values of the keys that start with ``prefix``, in the order of the keys."""

    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._database = database
        self._prefix = prefix

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._database.batches(self._prefix, values=True):
            for _, value in batch:
                yield value

    def __len__(self) -> int:
        return _count(self._database, self._prefix)

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)


class Items(ItemsView[bytes, bytes]):
    """Keys that start with ``prefix``, and their values, in byte order of the keys."""

    def __init__(self, database: Database, prefix: bytes) -> None:
        super().__init__(database)
        self._database = database
        self._prefix = prefix

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for batch in self._database.batches(self._prefix, values=True):
            yield from batch

    def __len__(self) -> int:
        return _count(self._database, self._prefix)

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2 and _starts(item[0], self._prefix)):
            return False
        absent: Any = object()
        return bool(self._database.get(item[0], absent) == item[1])


def _count(database: Database, prefix: bytes) -> int:
    if not prefix:
        return len(database)
    return sum(len(batch) for batch in database.batches(prefix, values=False))


def _starts(key: object, prefix: bytes) -> bool:
    if isinstance(key, str):
        key = key.encode("utf-8")
    return isinstance(key, bytes) and key.startswith(prefix)
