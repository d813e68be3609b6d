"""How a database and a transaction are read: one mapping over two sources of keys.

A source answers two questions, of one version: what stands at these keys, and what keys are in a range, a run at a
time. Everything a reader can ask is made of these two. Out-of-line values are fetched together, in bounded batches.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, overload

from ocdbt_py.engine.entries import Entry
from ocdbt_py.engine.mutations import KeyRange
from ocdbt_py.engine.options import UNSET
from ocdbt_py.engine.tree import Found
from ocdbt_py.errors import CorruptDataError, InvalidArgumentError, KeyNotFoundError
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.joined_texts import JoinedKeys
from ocdbt_py.keys_and_values import Key, Request, encoded_key, size_of, value_range
from ocdbt_py.storage.protocol import Buffer

T = TypeVar("T")

_BATCH_BYTES = 16 << 20
"""Of values, fetched and held at a time while iterating."""

_UNPROVEN_BYTES = 64 << 20
"""Memory of this size is set aside for a value because a tree says that it is so long; for more, its end is read."""

_SHOWN_KEYS = 10


class Run(NamedTuple):
    """Some neighbouring keys, in order; ``value(i)`` is what stands at the i-th."""

    keys: Sequence[bytes]
    value: Callable[[int], bytes | Location]


@contextmanager
def _naming(reads: Iterable[tuple[Key, Found, int]]) -> Iterator[None]:
    """Have an error about a data file name a key whose value it holds: of those that are read, each up to byte ``stop``
    of its value, the last one in the file, which no cut leaves whole.
    """
    try:
        yield
    except CorruptDataError as error:
        path = error.path
        if path is not None and error.key is None:
            ends = [
                (value.offset + stop, encoded_key(key))
                for key, value, stop in reads
                if isinstance(value, Location) and path.endswith(value.file.path.decode("utf-8", "surrogateescape"))
            ]
            error.located(key=max(ends)[1] if ends else None)
        raise


class Readable(Mapping[bytes, bytes]):
    """The reading half. Keys are below ``prefix``, which callers never see; ``url`` is for messages."""

    def __init__(self, prefix: bytes, url: str) -> None:
        self._prefix = prefix
        self._url = url

    @abstractmethod
    def _find(self, keys: list[bytes]) -> Sequence[Found]:
        """What stands at each full key, all of one version."""

    @abstractmethod
    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        """The full keys in a range, in order, of the version of the first step."""

    @abstractmethod
    def _fetch(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        """Bytes ``[start, stop)`` of each out-of-line value."""

    @abstractmethod
    def _fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        """As :meth:`_fetch`, from ``start`` on into each buffer."""

    # --- one key

    def __getitem__(self, key: Key) -> bytes:
        return self.read(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes | str) and self._find([self._full(key)])[0] is not None

    @overload
    def get(self, key: Key) -> bytes | None: ...
    @overload
    def get(self, key: Key, default: T) -> bytes | T: ...
    def get(self, key: Key, default: Any = None) -> Any:
        """The value of a key, or ``default`` if there is none."""
        return self.read_many([key], default)[0]

    def read(self, key: Key, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``[start, stop)`` of a value; a negative ``start`` asks for that many at the end. Only they are read.

        Absent: :class:`KeyNotFoundError`. Out of range: :class:`InvalidArgumentError`, nothing is clipped.
        """
        found = self._found(key)
        low, high = value_range(key, found, start, stop)
        if not isinstance(found, Location):
            return found[low:high]
        with _naming([(key, found, high)]):
            return self._fetch([(found, low, high)])[0] if low < high else b""

    def stat(self, key: Key) -> Entry:
        """Size, generation and, for an out-of-line value, location; :class:`KeyNotFoundError` if absent."""
        return Entry(encoded_key(key), self._found(key))

    def lookup(self, key: Key) -> tuple[bytes, Entry]:
        """The value and its entry, of one version."""
        found = self._found(key)
        return self._values([found])[0], Entry(encoded_key(key), found)

    # --- many keys

    def find(self, keys: Sequence[Key]) -> Sequence[Found]:
        """What stands at each key, all of one version: an inline value, or where an out-of-line one lies, or None."""
        is_full = not self._prefix and set(map(type, keys)) <= {bytes}
        return self._find(list(keys) if is_full else [self._full(key) for key in keys])  # type: ignore[arg-type]

    def find_joined(self, keys: JoinedKeys) -> Sequence[Found]:
        """As :meth:`find`, of many keys that are joined."""
        return self.find(list(keys))

    def fill(self, fillings: Sequence[tuple[Key, Location, memoryview]]) -> None:
        """Read what lies at each location into the buffer of that length; the key is for errors."""
        with _naming((key, location, location.length) for key, location, _ in fillings):
            self._fill([(location, 0, buffer) for _, location, buffer in fillings])

    @overload
    def read_many(self, requests: Iterable[Request]) -> list[bytes]: ...
    @overload
    def read_many(self, requests: Iterable[Request], default: T) -> list[bytes | T]: ...
    def read_many(self, requests: Iterable[Request], default: Any = UNSET) -> list[Any]:
        """The values, or with ``(key, start, stop)`` parts of them, all of one version, fetched together.

        Absent keys: one :class:`KeyNotFoundError` that lists them, or ``default`` in their places.
        """
        wanted = [request if isinstance(request, tuple) else (request, 0, None) for request in requests]
        found = self._find([self._full(key) for key, _, _ in wanted])
        if default is UNSET:
            missing = [encoded_key(key) for (key, _, _), value in zip(wanted, found, strict=True) if value is None]
            if missing:
                raise KeyNotFoundError(
                    f"{len(missing)} of {len(wanted)} keys are not in the database: {shown_keys(missing)}",
                    url=self._url,
                )
        answers: list[Any] = [default] * len(wanted)
        remote: list[tuple[Location, int, int]] = []
        places: list[int] = []
        for i, ((key, start, stop), value) in enumerate(zip(wanted, found, strict=True)):
            if value is None:
                continue
            low, high = value_range(key, value, start, stop)
            if not isinstance(value, Location):
                answers[i] = value[low:high]
            elif low == high:
                answers[i] = b""
            else:
                remote.append((value, low, high))
                places.append(i)
        with _naming((wanted[i][0], location, high) for i, (location, _, high) in zip(places, remote, strict=True)):
            fetched = self._fetch(remote)
        for i, data in zip(places, fetched, strict=True):
            answers[i] = data
        return answers

    def read_many_into(
        self, requests: Sequence[Request], place: Callable[[Sequence[int | None]], Sequence[memoryview | None]]
    ) -> list[Buffer | None]:
        """As :meth:`read_many`, into the caller's memory.

        Once all keys have been found, ``place`` is called with the size of each answer in bytes, None for absent keys.
        It returns for each a writable buffer of that size and format ``B``, or None for an answer that is to be
        returned in its place (the others return as None). After an error the buffers hold anything.
        """
        wanted = [request if isinstance(request, tuple) else (request, 0, None) for request in requests]
        found = self._find([self._full(key) for key, _, _ in wanted])
        bounds = [
            (0, 0) if value is None else value_range(key, value, start, stop)
            for (key, start, stop), value in zip(wanted, found, strict=True)
        ]
        ends = ((key, value, high) for (key, *_), value, (_, high) in zip(wanted, found, bounds, strict=True))
        with _naming(ends):
            return self._read_into(found, bounds, place)

    def _read_into(
        self,
        found: Sequence[Found],
        bounds: Sequence[tuple[int, int]],
        place: Callable[[Sequence[int | None]], Sequence[memoryview | None]],
    ) -> list[Buffer | None]:
        self._prove(found, bounds)
        sizes = [None if value is None else high - low for value, (low, high) in zip(found, bounds, strict=True)]
        answers: list[Buffer | None] = [None] * len(found)
        fillings: list[tuple[Location, int, memoryview]] = []
        for i, (value, (low, high), buffer) in enumerate(zip(found, bounds, place(sizes), strict=True)):
            if isinstance(value, Location):
                if buffer is None:
                    answers[i] = data = bytearray(high - low)
                    buffer = memoryview(data)
                if low < high:
                    fillings.append((value, low, buffer))
            elif value is not None and buffer is None:
                answers[i] = value[low:high]
            elif value is not None and buffer is not None:
                buffer[:] = value[low:high]
        self._fill(fillings)
        return answers

    def _prove(self, found: Sequence[Found], bounds: Sequence[tuple[int, int]]) -> None:
        """Before memory is set aside for long values: are they there? A damaged tree may claim any length."""
        ends = [
            (value, high - 1, high)
            for value, (low, high) in zip(found, bounds, strict=True)
            if high - low > _UNPROVEN_BYTES and isinstance(value, Location)
        ]
        if ends:
            self._fetch(ends)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def keys(self, prefix: Key = b"") -> Keys:
        """The keys in byte order, as a dict's; with ``prefix``, those that start with it."""
        return Keys(self, encoded_key(prefix))

    def values(self, prefix: Key = b"") -> Values:
        """The values in key order; fetched in batches while iterating."""
        return Values(self, encoded_key(prefix))

    def items(self, prefix: Key = b"") -> Items:
        """Keys and values in key order; values are fetched in batches while iterating."""
        return Items(self, encoded_key(prefix))

    def scan(self, start: Key | None = None, stop: Key | None = None, prefix: Key | None = None) -> Iterator[Entry]:
        """The entries with ``start <= key < stop`` that start with ``prefix``, in order, of the version of the first
        step. Only subtrees in the range are read, and one node per level is held."""
        inside: KeyRange | None = self._range(start, stop)
        if prefix is not None and inside is not None:
            inside = inside.intersect(*KeyRange.of_prefix(self._full(prefix)))
        return iter(()) if inside is None else self._scan(inside)

    def _scan(self, inside: KeyRange) -> Iterator[Entry]:
        cut = len(self._prefix)
        for run in self._runs(inside):
            for i, key in enumerate(run.keys):
                yield Entry(key[cut:], run.value(i))

    def _batches(self, prefix: bytes) -> Iterator[list[bytes]]:
        """The keys that start with ``prefix``, some at a time."""
        cut = len(self._prefix)
        for run in self._runs(KeyRange.of_prefix(self._prefix + prefix)):
            yield [key[cut:] for key in run.keys] if cut else list(run.keys)

    def _batches_with_values(self, prefix: bytes) -> Iterator[Iterator[tuple[bytes, bytes]]]:
        """Keys and values, some at a time."""
        cut = len(self._prefix)
        for run in self._runs(KeyRange.of_prefix(self._prefix + prefix)):
            start = 0
            while start < len(run.keys):
                found, size, stop = [], 0, start
                while stop < len(run.keys) and size < _BATCH_BYTES:
                    found.append(run.value(stop))
                    size += size_of(found[-1])
                    stop += 1
                yield zip([key[cut:] for key in run.keys[start:stop]], self._values(found), strict=True)
                start = stop

    # --- within

    def _full(self, key: Key) -> bytes:
        return self._prefix + encoded_key(key)

    def _range(self, start: Key | None, stop: Key | None) -> KeyRange:
        """The full keys from ``start`` to ``stop``, within the prefix."""
        return KeyRange(
            self._full(b"" if start is None else start),
            KeyRange.of_prefix(self._prefix).stop if stop is None else self._full(stop),
        )

    def _range_to_delete(self, start: Key | None, stop: Key | None, prefix: Key | None) -> KeyRange:
        if (prefix is None) == (start is None and stop is None):
            raise InvalidArgumentError("delete_range takes a start and stop, or a prefix; clear() removes everything")
        return self._range(start, stop) if prefix is None else KeyRange.of_prefix(self._full(prefix))

    def _found(self, key: Key) -> bytes | Location:
        found = self._find([self._full(key)])[0]
        if found is None:
            raise KeyNotFoundError(
                f"Key {encoded_key(key)!r} is not in {self._url}", key=encoded_key(key), url=self._url
            )
        return found

    def _values(self, found: Sequence[bytes | Location]) -> list[bytes]:
        remote = [(value, 0, value.length) for value in found if isinstance(value, Location) and value.length]
        fetched = iter(self._fetch(remote))
        return [value if not isinstance(value, Location) else next(fetched) if value.length else b"" for value in found]


def shown_keys(keys: Sequence[bytes]) -> str:
    """Some keys for a message."""
    return ", ".join(map(repr, keys[:_SHOWN_KEYS])) + (f" and {len(keys) - _SHOWN_KEYS} more" * (len(keys) > 10))


class _View:
    """What the three views share: the keys below a prefix of one readable."""

    _mapping: Readable

    def __init__(self, readable: Readable, prefix: bytes) -> None:
        super().__init__(readable)  # type: ignore[call-arg]
        self._prefix = prefix

    def __len__(self) -> int:
        if not self._prefix:
            return len(self._mapping)
        return sum(map(len, self._mapping._batches(self._prefix)))


class Keys(_View, KeysView[bytes]):
    """The keys that start with a prefix, in byte order. Each iteration sees one version, that of its first step."""

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._mapping._batches(self._prefix):
            yield from batch

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes | str) and encoded_key(key).startswith(self._prefix) and key in self._mapping


class Values(_View, ValuesView[bytes]):
    """The values of the keys that start with a prefix, in the order of the keys."""

    def __iter__(self) -> Iterator[bytes]:
        for batch in self._mapping._batches_with_values(self._prefix):
            for _, value in batch:
                yield value

    def __contains__(self, value: object) -> bool:
        return any(value == found for found in self)


class Items(_View, ItemsView[bytes, bytes]):
    """The keys that start with a prefix, with their values, in byte order of the keys."""

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        for batch in self._mapping._batches_with_values(self._prefix):
            yield from batch

    def __contains__(self, item: object) -> bool:
        if not (isinstance(item, tuple) and len(item) == 2 and item[0] in Keys(self._mapping, self._prefix)):
            return False
        return bool(self._mapping.get(item[0]) == item[1])
