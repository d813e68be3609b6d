"""A database as users hold it: a mapping of bytes to bytes, in key order, with a history.

:func:`open` finds the storage a URL names and gives a :class:`Database`. Reads see the newest version, re-validating
the manifest each time (one ``stat`` on a local disk) unless ``max_staleness`` allows more; an iteration sees one
version from its first step to its last. Every write is one commit; those that have to wait for one another may come
out as one version.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from ocdbt_py.database_reading import Readable, Run
from ocdbt_py.engine.engine import Engine
from ocdbt_py.engine.entries import Entry, Version, generation_of, parse_version
from ocdbt_py.engine.mutations import KeyRange, Mutations, Staged
from ocdbt_py.engine.options import ANY_CONFIG, UNSET, USUAL_OPTIONS, Config, WriteOptions
from ocdbt_py.engine.tree import Found, Tree
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    KeyNotFoundError,
    PathNotFoundError,
    UnsupportedError,
)
from ocdbt_py.format.btree import LeafNode
from ocdbt_py.format.config import ManifestKind
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.joined_texts import JoinedKeys
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.keys_and_values import Key, encoded_key, full_pairs, value_buffer
from ocdbt_py.storage.location import Place, Settings, resolve
from ocdbt_py.storage.protocol import Buffer

if TYPE_CHECKING:
    from ocdbt_py.engine.commit import Condition, Sources
    from ocdbt_py.transaction import Transaction

__all__ = ["MISSING", "Config", "Database", "Entry", "Version", "WriteOptions", "open"]


_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.1
"""Seconds between two attempts of a transaction."""


class Missing(enum.Enum):
    """The generation of a key that is not there."""

    MISSING = "missing"


MISSING: Literal[Missing.MISSING] = Missing.MISSING
Mode = Literal["r", "r+", "a", "x"]
T = TypeVar("T")


def open(
    url: Any,
    mode: Mode = "r",
    *,
    version: int | str | datetime | Version | None = None,
    config: Config | None = None,
    write_options: WriteOptions | None = None,
    durable: bool = True,
    single_writer: bool = False,
    max_staleness: float = 0.0,
    cache_bytes: int = 64 << 20,
    storage_options: dict[str, Any] | None = None,
    fs: Any = None,
) -> Database:
    """Open the database at ``url``: any fsspec URL, a path, or ``BASE|ocdbt:@v3/prefix`` as TensorStore spells it.

    ``mode``: ``"r"`` must exist, read only; ``"r+"`` must exist; ``"a"`` is created if absent; ``"x"`` must not exist.
    ``version`` (a generation number, a :class:`Version`, an aware ``datetime``, an RFC 3339 string, or ``"v3"``) gives
    that version, read only. ``config`` demands a configuration, ``write_options`` say how to write, ``durable=False``
    leaves out fsync. ``single_writer`` is your word that nobody else writes, for storages that cannot arbitrate.
    ``max_staleness``: seconds for which a read may trust the manifest last seen. ``cache_bytes`` bounds decoded nodes.
    ``storage_options`` go to fsspec; or ``fs`` is a filesystem and ``url`` a path in it.

    Raises :class:`NotFoundError`, :class:`AlreadyExistsError` (mode ``"x"``), :class:`ConfigMismatchError`,
    :class:`UnsupportedError` where the storage cannot be written safely, :class:`CorruptDataError`.
    """
    options = write_options or USUAL_OPTIONS
    settings = Settings(durable=durable, locking=options.locking)
    place = resolve(url, storage_options=storage_options, fs=fs, settings=settings)
    return open_place(
        place,
        mode,
        version=version,
        config=config,
        write_options=options,
        single_writer=single_writer,
        max_staleness=max_staleness,
        cache_bytes=cache_bytes,
    )


def open_place(
    place: Place,
    mode: Mode = "r",
    *,
    version: int | str | datetime | Version | None = None,
    config: Config | None = None,
    write_options: WriteOptions | None = None,
    single_writer: bool = False,
    max_staleness: float = 0.0,
    cache_bytes: int = 64 << 20,
    sources: Sources | None = None,
) -> Database:
    """:func:`open` for a place that is resolved already; ``sources`` bring another clock and other file names."""
    if mode not in ("r", "r+", "a", "x"):
        raise InvalidArgumentError(f'mode is "r", "r+", "a" or "x", not {mode!r}')
    if not max_staleness >= 0:
        raise InvalidArgumentError(f"max_staleness is a number of seconds, not {max_staleness!r}")
    if version is not None and place.version is not None:
        raise InvalidArgumentError(f"The URL asks for @{place.version} and the call for version={version!r}; give one")
    wanted = place.version if version is None else version
    pinned = None if wanted is None else parse_version(wanted)
    if pinned is not None and mode != "r":
        raise InvalidArgumentError(f'A version is read only: open it with mode "r", not {mode!r}')
    capabilities = place.storage.capabilities
    if mode != "r":
        if not capabilities.writable:
            raise UnsupportedError(f"{place.url} is on a storage that cannot be written; copy the database elsewhere")
        if not (capabilities.cas or (capabilities.create and capabilities.list) or single_writer):
            raise UnsupportedError(
                f"The storage of {place.url} cannot arbitrate between writers, so one could lose the other's commit; "
                "if nobody else writes this database, say single_writer=True"
            )
    options = write_options or USUAL_OPTIONS
    engine = Engine(
        place.storage,
        place.path,
        constraints=config or ANY_CONFIG,
        options=options,
        max_staleness=max_staleness,
        cache_bytes=cache_bytes,
        sources=sources,
    )
    if mode != "r":
        engine.prepare()
    _enter(engine, place, mode, options, probe=options.probe and capabilities.conditions_unproven and not single_writer)
    if mode != "r" and not (capabilities.cas or single_writer):
        _check_numbered(engine, place)
    fixed = None if pinned is None else engine.at(pinned, float("inf"))  # its manifest was read just now
    again = {
        "config": config,
        "write_options": options,
        "single_writer": single_writer,
        "max_staleness": max_staleness,
        "cache_bytes": cache_bytes,
    }
    return Database(place, engine, writable=mode != "r", tree=fixed, options=again)


def _reopen(place: Place, mode: Mode, version: int | None, options: dict[str, Any]) -> Database:
    return open_place(replace(place, version=None), mode, version=version, **options)


def _enter(engine: Engine, place: Place, mode: Mode, options: WriteOptions, *, probe: bool) -> None:
    """Hold the place to what the mode says of it, and, before anything is written, the storage to its promises."""
    exists = engine.current().manifest is not None
    if mode == "x" and exists:
        raise AlreadyExistsError(f'{place.url} is a database already; mode "a" or "r+" opens it')
    if not exists and mode in ("r", "r+"):
        raise _nothing_at(place)
    if probe and mode != "r":
        from ocdbt_py.storage.probing import prove_conditions

        prove_conditions(place.storage, place.path)
    if exists or options.assume_config:
        return
    try:
        engine.create()
    except ConflictError:
        if mode == "x":
            raise AlreadyExistsError(f"{place.url} has just been created by another writer") from None


def _check_numbered(engine: Engine, place: Place) -> None:
    """A manifest that is replaced needs a storage that compares before it swaps; one that is added to does not."""
    manifest = engine.current(float("inf")).manifest
    if manifest is not None and manifest.config.manifest_kind is ManifestKind.SINGLE:
        raise UnsupportedError(
            f"{place.url} has a single manifest, and its storage cannot replace that safely among several writers; if "
            "nobody else writes this database, say single_writer=True"
        )


def _nothing_at(place: Place) -> PathNotFoundError:
    """Say what is there instead of a database."""
    storage = place.storage
    names: list[str] = []
    if storage.capabilities.list:
        names = sorted(item.path[len(place.path) + 1 :] for item in storage.list(place.path + "/"))
    if any(name.startswith("ocdbt.process_") for name in names):
        return PathNotFoundError(
            f"{place.url} holds only the parts that processes wrote ({', '.join(names[:3])}), not yet merged into one "
            "database: its writer did not finish. Each part can be opened by itself",
            kind="unmerged",
            url=place.url,
        )
    found = f"it holds {', '.join(names[:5])}{' …' if len(names) > 5 else ''}" if names else "nothing is there"
    return PathNotFoundError(
        f"There is no OCDBT database at {place.url} (no {MANIFEST_NAME}; {found}). "
        'Check the path; mode "a" or "x" creates one',
        kind="database-not-found",
        url=place.url,
    )


class Database(Readable, MutableMapping[bytes, bytes]):
    """A database, or one version of it. Made by :func:`open`; a context manager; safe for threads; picklable.

    ``str`` keys are taken as UTF-8; keys come out as ``bytes``, in byte order. Equality goes by identity.
    """

    def __init__(
        self, place: Place, engine: Engine, *, writable: bool, tree: Tree | None, options: dict[str, Any]
    ) -> None:
        super().__init__(place.prefix, place.url)
        self._place = place
        self._options = options
        self._engine = engine
        self._writable = writable
        self._fixed = tree
        self._closed = False

    # --- reading

    def __len__(self) -> int:
        """From the root's statistics; below a prefix, by counting."""
        if self._prefix:
            return sum(map(len, self._batches(b"")))
        return self._tree().version.num_keys

    def _find(self, keys: list[bytes]) -> Sequence[Found]:
        return self._tree().lookup_many(keys)

    def find_joined(self, keys: JoinedKeys) -> Sequence[Found]:
        found = None if self._prefix else self._tree().lookup_joined(keys)
        return super().find_joined(keys) if found is None else found

    def _runs(self, inside: KeyRange) -> Iterator[Run]:
        for leaf, low, high in self._tree().scan(*inside):
            yield Run(leaf.keys[low:high], partial(_value_at, leaf, low))

    def _fetch(self, ranges: Sequence[tuple[Location, int, int]]) -> list[bytes]:
        self._check_open()
        return self._engine.nodes.values(ranges)

    def _fill(self, fillings: Sequence[tuple[Location, int, memoryview]]) -> None:
        self._check_open()
        self._engine.nodes.fill(fillings)

    # --- writing

    def __setitem__(self, key: Key, value: Buffer) -> None:
        self.write(key, value)

    def __delitem__(self, key: Key) -> None:
        full = self._full(key)

        def there(tree: Tree) -> None:
            if tree.lookup(full) is None:
                raise KeyNotFoundError(f"Key {key!r} is not in {self._url}", key=encoded_key(key), url=self._url)

        mutations = Mutations()
        mutations.delete(full)
        self._commit(mutations, there)

    def write(self, key: Key, value: Buffer, *, if_equal: bytes | Missing | None = None) -> bytes:
        """Put one value, in a commit of its own; its generation.

        With ``if_equal``, only if the value there now has that generation, or with :data:`MISSING` if there is none;
        else :class:`ConflictError`, and nothing changes.
        """
        full, buffer = self._full(key), value_buffer(value)
        mutations = Mutations()
        mutations.put(full, buffer)
        found = self._commit(mutations, self._expects(key, if_equal)).find(full, buffer)
        # None: another thread's write went into the same version after this one, which nobody will ever see
        return generation_of(bytes(buffer) if found is None else found)

    def delete(self, key: Key, *, if_equal: bytes | Missing | None = None) -> None:
        """Make sure that a key is absent, in a commit of its own; ``if_equal`` as for :meth:`write`."""
        mutations = Mutations()
        mutations.delete(self._full(key))
        self._commit(mutations, self._expects(key, if_equal))

    @overload
    def pop(self, key: Key) -> bytes: ...
    @overload
    def pop(self, key: Key, default: T) -> bytes | T: ...
    def pop(self, key: Key, default: Any = UNSET) -> Any:
        """Remove a key and return its value, in one commit; absent: ``default``, or :class:`KeyNotFoundError`."""
        while True:
            try:
                value, entry = self.lookup(key)
            except KeyNotFoundError:
                if default is UNSET:
                    raise
                return default
            if self._unless_changed(partial(self.delete, key, if_equal=entry.generation)):
                return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove the first key and return it with its value, in one commit; :class:`KeyNotFoundError` if empty."""
        while True:
            first = next(self.scan(), None)
            if first is None:
                raise KeyNotFoundError(f"{self._url} is empty", url=self._url)
            with suppress(KeyNotFoundError):
                return first.key, self.pop(first.key)

    def setdefault(self, key: Key, default: Buffer = b"") -> bytes:
        """The value of a key; if there is none, ``default`` is put, in one commit, and returned."""
        while True:
            with suppress(KeyNotFoundError):
                return self.read(key)
            if self._unless_changed(partial(self.write, key, default, if_equal=MISSING)):
                return bytes(default)

    def update(self, values: Any = (), /, **named: Buffer) -> None:
        """Put all of a mapping, or of pairs, in one commit."""
        mutations = Mutations()
        mutations.update(full_pairs(self._prefix, values, named))
        if mutations:
            self._commit(mutations)

    def delete_range(self, start: Key | None = None, stop: Key | None = None, *, prefix: Key | None = None) -> None:
        """Remove ``start <= key < stop``, or the keys that start with ``prefix``, in one commit.

        Subtrees that lie whole in the range are dropped unread. A range that holds nothing adds no version.
        """
        mutations = Mutations()
        mutations.delete_range(*self._range_to_delete(start, stop, prefix))
        self._commit(mutations)

    def clear(self) -> None:
        """Remove every key, in one commit."""
        mutations = Mutations()
        mutations.delete_range(*KeyRange.of_prefix(self._prefix))
        self._commit(mutations)

    def transaction(self) -> Transaction:
        """A snapshot to read and write, committed whole at the end of a ``with`` block, or not at all.

        :class:`ConflictError` at the commit names what others changed of what it had read; :meth:`run` starts over.
        """
        from ocdbt_py.transaction import Transaction

        self._check_writable()
        return Transaction(self._tree(), self._prefix, self._url, self._commit, self._copy)

    def run(self, work: Callable[[Transaction], T], timeout: float = 60) -> T:
        """Call ``work`` with a transaction and commit it; start over on conflict, for ``timeout`` seconds."""
        from ocdbt_py.engine.commit import sleep_about

        deadline = time.monotonic() + timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                transaction = self.transaction()
                with transaction:
                    return work(transaction)
            except ConflictError:
                if time.monotonic() + pause > deadline:
                    raise
            sleep_about(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def copy_from(self, other: Database, prefix: Key = b"", to: Key = b"") -> None:
        """Put everything of ``other`` that starts with ``prefix``, with ``to`` in its place, in one commit.

        Where ``other`` lies in or below this database's directory, out-of-line values are not moved: the new entries
        refer to the files they are in, which must stay. Elsewhere the values are copied. To merge several databases in
        one version, call :meth:`Transaction.copy_from` for each.
        """
        mutations = Mutations()
        self._copy(mutations, other, prefix, to)
        if mutations:
            self._commit(mutations)

    def _copy(self, mutations: Mutations, other: Database, prefix: Key, to: Key) -> None:
        """Stage what :meth:`copy_from` puts."""
        from ocdbt_py.copying import copied, relative_base

        reach = relative_base(self._place, other._place)
        cut, target = len(other._full(prefix)), self._full(to)
        for run in other._runs(KeyRange.of_prefix(other._full(prefix))):
            for i, key in enumerate(run.keys):
                mutations.put(target + key[cut:], copied(run.value(i), reach, other._engine.nodes.values))

    # --- versions

    @property
    def config(self) -> Config:
        """The stored configuration, every field given."""
        self._check_open()
        manifest = self._engine.current(float("inf")).manifest
        return Config() if manifest is None else Config.describe(manifest.config)

    @property
    def version(self) -> Version:
        """The version that reads see now."""
        return Version.of(self._tree().version)

    def versions(self) -> Iterator[Version]:
        """Every version, newest first."""
        self._check_open()
        return map(Version.of, self._engine.versions())

    def at(self, version: int | str | datetime | Version) -> Database:
        """A read-only view of an old version; :class:`NotFoundError` if there is none such."""
        self._check_open()
        return self._view(self._engine.at(parse_version(version)))

    def snapshot(self) -> Database:
        """A read-only view of the version that is current now."""
        return self._view(self._tree())

    def refresh(self) -> Version:
        """Look for a newer manifest now, whatever ``max_staleness`` says."""
        self._check_open()
        self._engine.current(0.0)
        return self.version

    # --- the handle

    def close(self) -> None:
        """Every later call is :class:`InvalidArgumentError`."""
        self._closed = True
        if self._writable:
            self._engine.rest()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[Any, ...]:
        self._check_open()
        generation = None if self._fixed is None else self._fixed.version.generation
        return _reopen, (self._place, "r+" if self._writable else "r", generation, self._options)

    def __repr__(self) -> str:
        pinned = f" at v{self._fixed.version.generation}" if self._fixed is not None else ""
        mode = "" if self._writable else ", read only"
        return f"<ocdbt_py.Database {self._url}{pinned}{mode}{', closed' if self._closed else ''}>"

    # --- within

    def _tree(self) -> Tree:
        self._check_open()
        return self._fixed if self._fixed is not None else self._engine.latest()

    def _view(self, tree: Tree) -> Database:
        return Database(self._place, self._engine, writable=False, tree=tree, options=self._options)

    def _expects(self, key: Key, if_equal: bytes | Missing | None) -> Condition | None:
        """The condition that a key still has this generation."""
        if if_equal is None:
            return None
        full = self._full(key)

        def unchanged(tree: Tree) -> None:
            found = tree.lookup(full)
            if (MISSING if found is None else generation_of(found)) != if_equal:
                state = "exists" if if_equal is MISSING else "is gone" if found is None else "has another value"
                raise ConflictError(
                    f"Key {encoded_key(key)!r} {state} by now; read it again and decide anew",
                    kind="condition",
                    key=encoded_key(key),
                )

        return unchanged

    def _unless_changed(self, write: Callable[[], object]) -> bool:
        """Try a conditional write; False when somebody else changed the key first."""
        try:
            write()
        except ConflictError as conflict:
            if conflict.kind != "condition":
                raise
            return False
        return True

    def _commit(self, mutations: Mutations, condition: Condition | None = None) -> Staged:
        self._check_writable()
        return self._engine.commit(mutations, condition)

    def _check_writable(self) -> None:
        self._check_open()
        if not self._writable:
            raise InvalidArgumentError(f'{self!r} is read only; open it with mode "r+" or "a" to write')

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgumentError(f"{self!r} has been closed; open it again")


def _value_at(leaf: LeafNode, first: int, i: int) -> bytes | Location:
    return leaf.value(first + i)
