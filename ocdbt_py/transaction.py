"""A transaction: a snapshot that can be written, and one commit at its end.

It reads its own writes over what the snapshot holds, and notes every key, range and length that it took from the
snapshot. The commit holds only if none of that has changed since; then the outcome is as if the transaction had run
alone, at the moment of its commit. What was written without being read is not compared: there the last writer wins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ocdbt_py.database_reading import Readable, Run, shown_keys
from ocdbt_py.engine.diff import differences
from ocdbt_py.engine.mutations import UNTOUCHED, Deferred, KeyRange, Mutations, Value
from ocdbt_py.engine.tree import Found, Tree
from ocdbt_py.errors import ConflictError, InvalidArgumentError, UnsupportedError
from ocdbt_py.format.datafile import Location
from ocdbt_py.keys_and_values import Key, pairs_of, value_buffer
from ocdbt_py.storage.protocol import Buffer

if TYPE_CHECKING:
    from ocdbt_py.database import Database

Commit = Callable[[Mutations, Callable[[Tree], None]], object]
Copy = Callable[[Mutations, "Database", Key, Key], None]


class Transaction(Readable, MutableMapping[bytes, bytes]):
    """Made by :meth:`Database.transaction`. For one thread; neither picklable nor usable after its end."""

    def __init__(self, tree: Tree, prefix: bytes, url: str, commit: Commit, copy: Copy) -> None:
        super().__init__(prefix, url)
        self._tree = tree
        self._commit = commit
        self._copy = copy
        self._mutations = Mutations()
        self._read_keys: set[bytes] = set()
        self._read_ranges: list[KeyRange] = []
        self._read_length = False
        self._ended = ""

    # --- reading

    def __len__(self) -> int:
        self._check_running()
        if self._prefix:
            return sum(map(len, self._batches(b"")))
        self._read_length = True
        hidden = sum(high - low for each in self._mutations.ranges for _, low, high in self._tree.scan(*each))
        named = self._mutations.touched(b"", None)
        before = self._tree.lookup_many([key for key, _ in named])
        change = 0
        for (key, value), was in zip(named, before, strict=True):
            change += (value is not None) - (was is not None and not self._mutations.in_ranges(key))
        return self._tree.version.num_keys - hidden + change

    def _find(self, keys: list[bytes]) -> list[Found]:
        self._check_running()
        overlays = [self._mutations.overlay(key) for key in keys]
        asked = [key for key, mine in zip(keys, overlays, strict=True) if mine is UNTOUCHED]
        self._read_keys.update(asked)
        stored = iter(self._tree.lookup_many(asked))
        return [next(stored) if mine is UNTOUCHED else _found(mine) for mine in overlays]

    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        """What the snapshot holds, under what had been written here by the first step.

        Runs grow from one entry on, so that whoever stops early has read, and can conflict over, little.
        """
        self._check_running()
        mine = self._mutations.touched(*inside)
        hidden = Mutations()
        for each in self._mutations.ranges:
            hidden.delete_range(*each)
        reached, length = inside.start, 1
        for leaf, low, high in self._tree.scan(*inside):
            while low < high:
                stop = min(low + length, high)
                keys = leaf.keys[low:stop]
                end = keys[-1] + b"\0"
                entries = {key: leaf.value(i) for i, key in enumerate(keys, low) if not hidden.in_ranges(key)}
                upto = next((i for i, (key, _) in enumerate(mine) if key >= end), len(mine))
                yield from self._noted(entries, mine[:upto], reached, end)
                mine, reached, low, length = mine[upto:], end, stop, 2 * length
        yield from self._noted({}, mine, reached, inside.stop)

    def _noted(
        self,
        entries: dict[bytes, bytes | Location],
        mine: list[tuple[bytes, Value | None]],
        start: bytes,
        stop: bytes | None,
    ) -> Iterator[Run]:
        """The stored entries under my own, as a run; the snapshot was read for it from ``start`` to ``stop``."""
        self._read_ranges.append(KeyRange(start, stop))
        for key, value in mine:
            found = _found(value)
            if found is None:
                entries.pop(key, None)
            else:
                entries[key] = found
        if entries:
            keys = sorted(entries)
            yield Run(keys, lambda i: entries[keys[i]])

    def _fetch(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        self._check_running()
        return self._tree.nodes.values(ranges)

    def _fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        self._check_running()
        self._tree.nodes.fill(fillings)

    # --- writing

    def __setitem__(self, key: Key, value: Buffer) -> None:
        self._check_running()
        self._mutations.put(
            self._full(key), bytes(value_buffer(value))
        )  # the caller may change a buffer before the end

    def __delitem__(self, key: Key) -> None:
        self._found(key)
        self._mutations.delete(self._full(key))

    def update(self, values: Any = (), /, **named: Buffer) -> None:
        for key, value in pairs_of(values, named):
            self[key] = value

    def delete_range(self, start: Key | None = None, stop: Key | None = None, *, prefix: Key | None = None) -> None:
        """As :meth:`Database.delete_range`; what is in the range is not read."""
        self._check_running()
        self._mutations.delete_range(*self._range_to_delete(start, stop, prefix))

    def clear(self) -> None:
        self._check_running()
        self._mutations.delete_range(*KeyRange.of_prefix(self._prefix))

    def copy_from(self, other: Database, prefix: Key = b"", to: Key = b"") -> None:
        """As :meth:`Database.copy_from`; several of them become one version."""
        self._check_running()
        self._copy(self._mutations, other, prefix, to)

    # --- the end

    def __enter__(self) -> Transaction:
        self._check_running()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()

    def commit(self) -> None:
        """Make all of it one version. :class:`ConflictError` names what others changed of what was read here."""
        self._check_running()
        self._ended = "has ended"
        if self._mutations:
            self._commit(self._mutations, self._validate)

    def abort(self) -> None:
        """Forget what was written."""
        self._ended = "was aborted"

    def __reduce__(self) -> tuple[Any, ...]:
        raise UnsupportedError("A transaction cannot be pickled: it belongs to its process; pickle the database")

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        state = self._ended or "running"
        return f"<ocdbt_py.Transaction on {self._url} at v{self._tree.version.generation}, {state}>"

    def _validate(self, now: Tree) -> None:
        before = self._tree
        if before.version.root == now.version.root:
            return
        keys = sorted(self._read_keys)
        pairs = zip(keys, before.lookup_many(keys), now.lookup_many(keys), strict=True)
        changed = {key for key, was, found in pairs if was != found}
        for start, stop in self._read_ranges:
            changed.update(difference.key for difference in differences(before, now, start, stop))
        if changed:
            cut = len(self._prefix)
            names = sorted(key[cut:] for key in changed)
            raise ConflictError(
                f"Others changed what this transaction had read: {shown_keys(names)}. Nothing was committed; "
                "run it again",
                key=names[0],
                url=self._url,
            )
        if self._read_length and before.version.num_keys != now.version.num_keys:
            raise ConflictError(
                f"Others changed the number of keys, which this transaction had read, from {before.version.num_keys} "
                f"to {now.version.num_keys}. Nothing was committed; run it again",
                url=self._url,
            )

    def _check_running(self) -> None:
        if self._ended:
            raise InvalidArgumentError(f"This transaction {self._ended}; begin another one")


def _found(value: Value | None) -> Found:
    if isinstance(value, Deferred):
        value = value.load()
    return value if value is None or isinstance(value, bytes | Location) else bytes(value)
