"""The two libraries made to look alike: one database, written and read through ours or through TensorStore.

Only what both can do, in the words of neither: an operation gives a key a value, takes it away, or empties a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tensorstore as ts

import ocdbt_py
from conformance.oracle import base_of, contents_of, fast_context, in_one_commit, json_config, open_store

__all__ = [
    "ABSENT",
    "Contents",
    "DeleteRange",
    "Engine",
    "Operation",
    "Ours",
    "Part",
    "Place",
    "Put",
    "Theirs",
    "without_superseded",
]

Contents = dict[bytes, bytes]


class Put(NamedTuple):
    """Give a key a value; None deletes it."""

    key: bytes
    value: bytes | None


class DeleteRange(NamedTuple):
    """Remove ``start <= key < stop``; ``stop`` None is the end."""

    start: bytes
    stop: bytes | None

    def holds(self, key: bytes) -> bool:
        return self.start <= key and (self.stop is None or key < self.stop)


Operation = Put | DeleteRange


class Part(NamedTuple):
    """A database below the other one, of which what starts with ``prefix`` is merged, with ``to`` in its place."""

    name: str
    prefix: str
    to: str


def without_superseded(operations: Sequence[Operation]) -> list[Operation]:
    """Less the operations on one key that a later range takes back: TensorStore 0.1.86 may crash on such a pair."""
    ranges = [(i, each) for i, each in enumerate(operations) if isinstance(each, DeleteRange)]
    return [
        each
        for i, each in enumerate(operations)
        if isinstance(each, DeleteRange) or not any(i < j and later.holds(each.key) for j, later in ranges)
    ]


@dataclass(frozen=True)
class Place:
    """A directory, as ours is told where it is, and as TensorStore is."""

    url: str
    base: Mapping[str, Any]
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def local(cls, directory: Path) -> Place:
        return cls(str(directory), base_of(directory))

    def below(self, name: str) -> Place:
        return Place(f"{self.url}/{name}", {**self.base, "path": f"{self.base['path']}{name}/"}, self.storage_options)

    def open(self, mode: Any = "r", **how: Any) -> ocdbt_py.Database:
        """With ours."""
        return ocdbt_py.open(self.url, mode, storage_options=dict(self.storage_options), durable=False, **how)


ABSENT = b""
"""For ``only_if``: the key must not be there."""


class Engine(Protocol):
    """One database, read and written through one of the two libraries."""

    def begin(self, first: Contents) -> None:
        """The first commit: put these, or if there are none, empty what is empty."""

    def token(self, key: bytes) -> bytes:
        """What the engine calls the value that a key has now."""

    def write(self, key: bytes, value: bytes | None, only_if: bytes | None = None) -> bool:
        """Put or delete in a commit of its own, if the key still has the value of this token; whether it was done."""

    def delete_range(self, operation: DeleteRange) -> None: ...

    def commit(self, operations: Sequence[Operation], after: Contents) -> None:
        """All of them in one transaction, in which the contents are ``after`` in the end."""

    def merge(self, parts: Sequence[Part]) -> None:
        """Parts of databases below, in one commit."""

    def rename(self, prefix: str, to: str) -> None:
        """Copy what starts with one prefix under another, in one commit."""

    def contents(self, version: int | str | None = None) -> Contents:
        """Of a version by number, or by time, or of now."""

    def keys(self, inside: DeleteRange) -> list[bytes]: ...

    def close(self) -> None: ...


class Ours:
    """Through ocdbt_py."""

    def __init__(self, place: Place, config: ocdbt_py.Config, *, assumed: bool = False) -> None:
        self._place = place
        options = ocdbt_py.WriteOptions(assume_config=assumed, probe=False)
        self.db = place.open("a", config=config, write_options=options)

    def begin(self, first: Contents) -> None:
        if first:
            self.db.update(first)
        else:
            self.db.clear()

    def token(self, key: bytes) -> bytes:
        return self.db.stat(key).generation

    def write(self, key: bytes, value: bytes | None, only_if: bytes | None = None) -> bool:
        condition = ocdbt_py.MISSING if only_if == ABSENT else only_if
        try:
            if value is None:
                self.db.delete(key, if_equal=condition)
            else:
                assert self.db.write(key, value, if_equal=condition) == self.token(key)
        except ocdbt_py.ConflictError:
            return False
        return True

    def delete_range(self, operation: DeleteRange) -> None:
        self.db.delete_range(*operation)

    def commit(self, operations: Sequence[Operation], after: Contents) -> None:
        with self.db.transaction() as transaction:
            for operation in operations:
                if isinstance(operation, DeleteRange):
                    transaction.delete_range(*operation)
                elif operation.value is None:
                    del transaction[operation.key]
                else:
                    transaction[operation.key] = operation.value
            assert len(transaction) == len(after)
            assert dict(transaction.items()) == after

    def merge(self, parts: Sequence[Part]) -> None:
        with self.db.transaction() as transaction:
            for part in parts:
                with self._place.below(part.name).open() as source:
                    transaction.copy_from(source, part.prefix, part.to)

    def rename(self, prefix: str, to: str) -> None:
        self.db.copy_from(self.db, prefix, to)

    def contents(self, version: int | str | None = None) -> Contents:
        return dict((self.db.snapshot() if version is None else self.db.at(version)).items())

    def keys(self, inside: DeleteRange) -> list[bytes]:
        return [entry.key for entry in self.db.scan(*inside)]

    def close(self) -> None:
        self.db.close()


class Theirs:
    """Through TensorStore."""

    def __init__(self, place: Place, config: ocdbt_py.Config, *, assumed: bool = False) -> None:
        self._place = place
        self._context = fast_context()
        self._store = open_store(dict(place.base), self._context, config=json_config(config), assume_config=assumed)

    def begin(self, first: Contents) -> None:
        in_one_commit(self._store, first)

    def token(self, key: bytes) -> bytes:
        token: bytes = self._store.read(key).result().stamp.generation
        return token

    def write(self, key: bytes, value: bytes | None, only_if: bytes | None = None) -> bool:
        condition = b"\x02" if only_if == ABSENT else only_if
        unmet = b""
        return bool(self._store.write(key, value, if_equal=condition).result().generation != unmet)

    def delete_range(self, operation: DeleteRange) -> None:
        self._store.delete_range(_key_range(operation)).result()

    def commit(self, operations: Sequence[Operation], after: Contents) -> None:
        transaction = ts.Transaction(atomic=True)
        store = self._store.with_transaction(transaction)
        for operation in without_superseded(operations):
            if isinstance(operation, DeleteRange):
                store.delete_range(_key_range(operation)).result()
            else:
                store.write(operation.key, operation.value).result()
        transaction.commit_sync()

    def merge(self, parts: Sequence[Part]) -> None:
        below = [open_store(dict(self._place.below(part.name).base), self._context) for part in parts]
        self._copy([(store, part.prefix, part.to) for store, part in zip(below, parts, strict=True)])

    def rename(self, prefix: str, to: str) -> None:
        self._copy([(self._store, prefix, to)])

    def _copy(self, sources: Sequence[tuple[Any, str, str]]) -> None:
        transaction = ts.Transaction(atomic=True)
        target = self._store.with_transaction(transaction)
        for source, prefix, to in sources:
            (source + prefix).experimental_copy_range_to(target + to).result()
        transaction.commit_sync()

    def contents(self, version: int | str | None = None) -> Contents:
        pinned = {} if version is None else {"version": version}
        return contents_of(open_store(dict(self._place.base), self._context, **pinned) if pinned else self._store)

    def keys(self, inside: DeleteRange) -> list[bytes]:
        return sorted(self._store.list(_key_range(inside)).result())

    def close(self) -> None:
        """Nothing to do: the next one has a context, and so a cache, of its own."""


def _key_range(operation: DeleteRange) -> Any:
    return ts.KvStore.KeyRange(operation.start, operation.stop or b"")
