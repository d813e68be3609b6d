"""A database as users hold it: a mapping of bytes to bytes, in key order, with a history.

:func:`open` finds the storage a URL names and gives a :class:`Database`. Reads see the newest version, re-validating
the manifest each time (one ``stat`` on a local disk) unless ``max_staleness`` allows more; an iteration sees one
version from its first step to its last. Every write is one commit.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from typing import Any, Literal, TypeVar, overload

from ocdbt_py.database_views import Items, Keys, Values
from ocdbt_py.engine.commit import Condition, Sources
from ocdbt_py.engine.engine import Engine
from ocdbt_py.engine.entries import Entry, Version, generation_of, parse_version
from ocdbt_py.engine.mutations import KeyRange, Mutations, Staged
from ocdbt_py.engine.options import UNSET, Config, WriteOptions
from ocdbt_py.engine.tree import Found, Tree
from ocdbt_py.errors import (
    AlreadyExistsError,
    ConflictError,
    InvalidArgumentError,
    InvalidTypeError,
    KeyNotFoundError,
    PathNotFoundError,
    UnsupportedError,
)
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place, Settings, resolve
from ocdbt_py.storage.protocol import Buffer

__all__ = ["MISSING", "Config", "Database", "Entry", "Version", "WriteOptions", "open"]

Key = bytes | str


class Missing(enum.Enum):
    """The generation of a key that is not there."""

    MISSING = "missing"


MISSING: Literal[Missing.MISSING] = Missing.MISSING
Mode = Literal["r", "r+", "a", "x"]
Request = Key | tuple[Key, int, int | None]
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
    options = write_options or WriteOptions()
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
    options = write_options or WriteOptions()
    engine = Engine(
        place.storage,
        place.path,
        constraints=config or Config(),
        options=options,
        max_staleness=max_staleness,
        cache_bytes=cache_bytes,
        sources=sources or Sources(),
    )
    _enter(engine, place, mode, options)
    fixed = None if pinned is None else engine.at(pinned)
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


def _enter(engine: Engine, place: Place, mode: Mode, options: WriteOptions) -> None:
    """Hold the place to what the mode says of it."""
    exists = engine.current().manifest is not None
    if mode == "x" and exists:
        raise AlreadyExistsError(f'{place.url} is a database already; mode "a" or "r+" opens it')
    if exists or (mode in ("a", "x") and options.assume_config):
        return
    if mode in ("r", "r+"):
        raise _nothing_at(place)
    try:
        engine.create()
    except ConflictError:
        if mode == "x":
            raise AlreadyExistsError(f"{place.url} has just been created by another writer") from None


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


class Database(MutableMapping[bytes, bytes]):
    """A database, or one version of it. Made by :func:`open`; a context manager; safe for threads; picklable.

    ``str`` keys are taken as UTF-8; keys come out as ``bytes``, in byte order. Equality goes by identity.
    """

    def __init__(
        self, place: Place, engine: Engine, *, writable: bool, tree: Tree | None, options: dict[str, Any]
    ) -> None:
        self._place = place
        self._options = options
        self._engine = engine
        self._writable = writable
        self._fixed = tree
        self._prefix = place.prefix
        self._closed = False

    # --- one key

    def __getitem__(self, key: Key) -> bytes:
        return self.read(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, bytes | str) and self._tree().lookup(self._full(key)) is not None

    def read(self, key: Key, start: int = 0, stop: int | None = None) -> bytes:
        """Bytes ``[start, stop)`` of a value; a negative ``start`` asks for that many at the end. Only they are read.

        Absent: :class:`KeyNotFoundError`. Out of range: :class:`InvalidArgumentError`, nothing is clipped.
        """
        found = self._lookup(self._tree(), key)
        low, high = _value_range(key, found, start, stop)
        if isinstance(found, Location):
            return self._engine.nodes.values([(found, low, high)])[0] if low < high else b""
        return found[low:high]

    def stat(self, key: Key) -> Entry:
        """Size, generation and, for an out-of-line value, location; :class:`KeyNotFoundError` if absent."""
        found = self._lookup(self._tree(), key)
        return Entry(_encoded(key), found)

    def lookup(self, key: Key) -> tuple[bytes, Entry]:
        """The value and its entry, of one version."""
        found = self._lookup(self._tree(), key)
        return _value_of(self._engine, found), Entry(_encoded(key), found)

    # --- many keys

    @overload
    def read_many(self, requests: Iterable[Request]) -> list[bytes]: ...
    @overload
    def read_many(self, requests: Iterable[Request], default: T) -> list[bytes | T]: ...
    def read_many(self, requests: Iterable[Request], default: Any = UNSET) -> list[Any]:
        """The values, or with ``(key, start, stop)`` parts of them, all of one version, fetched together.

        Absent keys: one :class:`KeyNotFoundError` that lists them, or ``default`` in their places.
        """
        wanted = [request if isinstance(request, tuple) else (request, 0, None) for request in requests]
        found = self._tree().lookup_many([self._full(key) for key, _, _ in wanted])
        if default is UNSET:
            missing = [_encoded(key) for (key, _, _), value in zip(wanted, found, strict=True) if value is None]
            if missing:
                shown = ", ".join(map(repr, missing[:10])) + (" …" if len(missing) > 10 else "")
                raise KeyNotFoundError(
                    f"{len(missing)} of {len(wanted)} keys are not in the database: {shown}", url=self._place.url
                )
        answers: list[Any] = [default] * len(wanted)
        remote: list[tuple[Location, int, int]] = []
        places: list[int] = []
        for i, ((key, start, stop), value) in enumerate(zip(wanted, found, strict=True)):
            if value is None:
                continue
            low, high = _value_range(key, value, start, stop)
            if not isinstance(value, Location):
                answers[i] = value[low:high]
            elif low == high:
                answers[i] = b""
            else:
                remote.append((value, low, high))
                places.append(i)
        for i, data in zip(places, self._engine.nodes.values(remote), strict=True):
            answers[i] = data
        return answers

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.keys())

    def __len__(self) -> int:
        """From the root's statistics; below a prefix, by counting."""
        if self._prefix:
            return sum(len(batch) for batch in self.batches(b"", values=False))
        return self._tree().version.num_keys

    def keys(self, prefix: Key = b"") -> Keys:  # type: ignore[override]
        """The keys in byte order, as a dict's; with ``prefix``, those that start with it."""
        return Keys(self, _encoded(prefix))

    def values(self, prefix: Key = b"") -> Values:  # type: ignore[override]
        """The values in key order; fetched in batches while iterating."""
        return Values(self, _encoded(prefix))

    def items(self, prefix: Key = b"") -> Items:  # type: ignore[override]
        """Keys and values in key order; values are fetched in batches while iterating."""
        return Items(self, _encoded(prefix))

    def scan(self, start: Key | None = None, stop: Key | None = None, prefix: Key | None = None) -> Iterator[Entry]:
        """The entries with ``start <= key < stop`` that start with ``prefix``, in order, of the version of the first
        step. Only subtrees in the range are read, and one node per level is held."""
        low = b"" if start is None else _encoded(start)
        inside: KeyRange | None = KeyRange(low, None if stop is None else _encoded(stop))
        if prefix is not None:
            inside = inside.intersect(*KeyRange.of_prefix(_encoded(prefix))) if inside is not None else None
        return self._scan(inside) if inside is not None else iter(())

    # --- writing

    def __setitem__(self, key: Key, value: Buffer) -> None:
        self.write(key, value)

    def __delitem__(self, key: Key) -> None:
        full = self._full(key)

        def there(tree: Tree) -> None:
            self._lookup(tree, key)

        mutations = Mutations()
        mutations.delete(full)
        self._commit(mutations, there)

    def write(self, key: Key, value: Buffer, *, if_equal: bytes | Missing | None = None) -> bytes:
        """Put one value, in a commit of its own; its generation.

        With ``if_equal``, only if the value there now has that generation, or with :data:`MISSING` if there is none;
        else :class:`ConflictError`, and nothing changes.
        """
        mutations = Mutations()
        mutations.put(self._full(key), _as_value(value))
        staged = self._commit(mutations, self._expects(key, if_equal))
        return generation_of(staged.puts.value(0))

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
            if self._unless_changed(lambda generation=entry.generation: self.delete(key, if_equal=generation)):
                return value

    def popitem(self) -> tuple[bytes, bytes]:
        """Remove the first key and return it with its value, in one commit; :class:`KeyNotFoundError` if empty."""
        while True:
            first = next(self.scan(), None)
            if first is None:
                raise KeyNotFoundError(f"{self._place.url} is empty", url=self._place.url)
            with suppress(KeyNotFoundError):
                return first.key, self.pop(first.key)

    def setdefault(self, key: Key, default: Buffer = b"") -> bytes:  # type: ignore[override]
        """The value of a key; if there is none, ``default`` is put, in one commit, and returned."""
        while True:
            with suppress(KeyNotFoundError):
                return self.read(key)
            if self._unless_changed(lambda: self.write(key, default, if_equal=MISSING)):
                return bytes(default)

    def update(self, values: Any = (), /, **named: Buffer) -> None:
        """Put all of a mapping, or of pairs, in one commit."""
        pairs: Iterable[tuple[Key, Buffer]]
        if isinstance(values, Mapping):
            pairs = values.items()
        elif hasattr(values, "keys"):
            pairs = ((key, values[key]) for key in values.keys())  # noqa: SIM118
        else:
            pairs = values
        mutations = Mutations()
        for key, value in pairs:
            mutations.put(self._full(key), _as_value(value))
        for name, value in named.items():
            mutations.put(self._full(name), _as_value(value))
        if mutations:
            self._commit(mutations)

    def delete_range(self, start: Key | None = None, stop: Key | None = None, *, prefix: Key | None = None) -> None:
        """Remove ``start <= key < stop``, or the keys that start with ``prefix``, in one commit.

        Subtrees that lie whole in the range are dropped unread. A range that holds nothing adds no version.
        """
        if (prefix is None) == (start is None and stop is None):
            raise InvalidArgumentError("delete_range takes a start and stop, or a prefix; clear() removes everything")
        if prefix is not None:
            inside = KeyRange.of_prefix(self._full(prefix))
        else:
            whole = KeyRange.of_prefix(self._prefix)
            low = self._full(b"" if start is None else start)
            inside = KeyRange(low, whole.stop if stop is None else self._full(stop))
        mutations = Mutations()
        mutations.delete_range(*inside)
        self._commit(mutations)

    def clear(self) -> None:
        """Remove every key, in one commit."""
        mutations = Mutations()
        mutations.delete_range(*KeyRange.of_prefix(self._prefix))
        self._commit(mutations)

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
        return f"<ocdbt_py.Database {self._place.url}{pinned}{mode}{', closed' if self._closed else ''}>"

    # --- for the views

    def batches(self, prefix: bytes, *, values: bool) -> Iterator[list[tuple[bytes, bytes]]]:
        """Keys and, if asked for, values below ``prefix``, in order, some at a time, of one version."""
        inside = KeyRange.of_prefix(self._prefix + prefix)
        cut = len(self._prefix)
        for leaf, low, high in self._tree().scan(*inside):
            if not values:
                yield [(key[cut:], b"") for key in leaf.keys[low:high]]
                continue
            while low < high:
                size, stop = 0, low
                while stop < high and (stop == low or size + int(leaf.lengths[stop]) <= _BATCH_BYTES):
                    size += int(leaf.lengths[stop])
                    stop += 1
                found: list[Found] = [leaf.value(i) for i in range(low, stop)]
                yield [
                    (key[cut:], value)
                    for key, value in zip(leaf.keys[low:stop], _values_of(self._engine, found), strict=True)
                ]
                low = stop

    # --- within

    def _scan(self, inside: KeyRange) -> Iterator[Entry]:
        cut = len(self._prefix)
        whole = KeyRange.of_prefix(self._prefix)
        stop = whole.stop if inside.stop is None else self._prefix + inside.stop
        for leaf, low, high in self._tree().scan(self._prefix + inside.start, stop):
            for i in range(low, high):
                yield Entry(leaf.keys[i][cut:], leaf.value(i))

    def _tree(self) -> Tree:
        self._check_open()
        return self._fixed if self._fixed is not None else self._engine.latest()

    def _view(self, tree: Tree) -> Database:
        return Database(self._place, self._engine, writable=False, tree=tree, options=self._options)

    def _full(self, key: Key) -> bytes:
        return self._prefix + _encoded(key)

    def _lookup(self, tree: Tree, key: Key) -> bytes | Location:
        found = tree.lookup(self._full(key))
        if found is None:
            raise KeyNotFoundError(
                f"Key {_encoded(key)!r} is not in {self._place.url}", key=_encoded(key), url=self._place.url
            )
        return found

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
                    f"Key {_encoded(key)!r} {state} by now; read it again and decide anew",
                    kind="condition",
                    key=_encoded(key),
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
        self._check_open()
        if not self._writable:
            raise InvalidArgumentError(f'{self!r} is read only; open it with mode "r+" or "a" to write')
        return self._engine.commit(mutations, condition)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgumentError(f"{self!r} has been closed; open it again")


_BATCH_BYTES = 16 << 20


def _encoded(key: object) -> bytes:
    if isinstance(key, bytes):
        return key
    if isinstance(key, str):
        return key.encode("utf-8")
    if isinstance(key, bytearray | memoryview):
        return bytes(key)
    raise InvalidTypeError(f"A key is bytes or str, not {type(key).__name__}")


def _as_value(value: object) -> Buffer:
    """Any contiguous buffer, as bytes in C order, not copied."""
    if isinstance(value, bytes | bytearray):
        return value
    if isinstance(value, str):
        raise InvalidTypeError("A value is bytes or another buffer, not str; encode it first")
    try:
        view = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidTypeError(f"A value is bytes or another buffer, not {type(value).__name__}") from None
    return view.cast("B") if view.c_contiguous and view.nbytes else view.tobytes()


def _value_range(key: Key, found: bytes | Location, start: int, stop: int | None) -> tuple[int, int]:
    size = found.length if isinstance(found, Location) else len(found)
    low = size + start if start < 0 else start
    high = size if stop is None else stop
    if not 0 <= low <= high <= size or (start < 0 and stop is not None):
        raise InvalidArgumentError(
            f"Bytes [{start}, {'end' if stop is None else stop}) are out of range: the value of {_encoded(key)!r} "
            f"has {size}",
            key=_encoded(key),
        )
    return low, high


def _value_of(engine: Engine, found: bytes | Location) -> bytes:
    return _values_of(engine, [found])[0]


def _values_of(engine: Engine, found: Sequence[Found]) -> list[bytes]:
    remote = [(value, 0, value.length) for value in found if isinstance(value, Location) and value.length]
    fetched = iter(engine.nodes.values(remote))
    return [
        (next(fetched) if value.length else b"") if isinstance(value, Location) else value
        for value in found
        if value is not None
    ]
