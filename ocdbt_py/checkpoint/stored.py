"""A pytree as it lies on disk, opened for reading: its leaves' names and kinds, and their values when asked for.

One :class:`StoredTree` reads one version of one database, or what stands in for it (:mod:`ocdbt_py.checkpoint.views`),
and its JSON files once. Many leaves are read together: their array documents in one request, then their chunks in large
batches (:mod:`ocdbt_py.array.read`), or as private memory maps of the files where the caller wants that and the bytes
allow it.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.chunks import Index, select
from ocdbt_py.array.dtypes import dtype_name
from ocdbt_py.array.metadata import METADATA_FILES, decode_metadata
from ocdbt_py.array.read import ArrayRead, Missing, read_arrays
from ocdbt_py.array.rows import ArrayColumns
from ocdbt_py.array.spec import ArraySpec, SpecColumns, array_key, array_keys
from ocdbt_py.array.values import Values
from ocdbt_py.checkpoint.array_source import ArraySource, open_arrays
from ocdbt_py.checkpoint.checksums import Verified
from ocdbt_py.checkpoint.collecting import collector_paused
from ocdbt_py.checkpoint.flatten import ABSENT, Key, KeyKind, Path, unflatten_paths
from ocdbt_py.checkpoint.layout import Kind, Layout, read_file
from ocdbt_py.checkpoint.leaf_records import LeafColumns, Names, value_types
from ocdbt_py.checkpoint.memory import MAX_MEMORY
from ocdbt_py.checkpoint.metadata import (
    AGGREGATE,
    METADATA,
    SHARDING,
    STRINGS,
    LeafRecord,
    TreeMetadata,
    ValueType,
    decode_shardings,
    decode_strings,
    decode_tree_metadata,
    look_up_string,
)
from ocdbt_py.checkpoint.placing import gather_arrays, map_arrays
from ocdbt_py.checkpoint.random_keys import key_tree
from ocdbt_py.database_reading import Readable
from ocdbt_py.engine.found import Found, FoundColumns, Numbers
from ocdbt_py.errors import CorruptDataError, NotFoundError, OcdbtError, PathNotFoundError, UnsupportedError
from ocdbt_py.format.datafile import Location
from ocdbt_py.format.joined_texts import JoinedKeys
from ocdbt_py.storage.location import Place

if TYPE_CHECKING:
    from ocdbt_py.array.lazy import LazyArray

__all__ = [
    "NO_ARRAY",
    "READING",
    "ArrayInfo",
    "Reading",
    "StoredTree",
    "check_distinct",
    "python_number",
    "read_present",
]


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """What is known of a leaf without reading it. A leaf that is no array (a string, None, an empty container) has
    dtype ``object``, shape ``()`` and no bytes.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nbytes: int
    chunks: tuple[int, ...]

    @classmethod
    def of(cls, spec: ArraySpec) -> ArrayInfo:
        return cls(spec.shape, spec.dtype, spec.nbytes, spec.chunks)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


_MANY = 512
"""Leaves; fewer are looked for one by one sooner than together."""

_LARGEST_DOCUMENT = 1 << 20
"""Bytes of an array's metadata that are looked into at all."""

NO_ARRAY = ArrayInfo((), np.dtype(object), 0, ())


class Reading(NamedTuple):
    """How values are to be read. ``progress``: an fsspec ``Callback``, told of bytes."""

    mmap: bool = False
    verify: bool = False
    max_memory: int = MAX_MEMORY
    progress: Any = None

    @property
    def budget(self) -> int:
        """Bytes to be fetched at a time: they are held, and again on their way, and by what decodes them."""
        return self.max_memory * 3 // 8


READING = Reading()


@dataclass(repr=False, eq=False)
class StoredTree:
    """The leaves of one pytree directory, or of a database of arrays. Safe for threads; picklable."""

    place: Place
    metadata: TreeMetadata
    names: Sequence[str]
    source: Readable | None
    """None where no leaf is an array."""
    documents: Mapping[int, str] = field(default_factory=dict)
    """What the document of a leaf's array is called, where the metadata does not tell."""
    strings: Mapping[str, str] = field(default_factory=dict)
    """The strings that stand elsewhere than in ``_strings.json``, by leaf name."""

    @classmethod
    def open(cls, layout: Layout, data: bytes | None = None) -> StoredTree:
        """Read the metadata of what :func:`identify` found to be a pytree, arrays or a random key; ``data`` is what
        ``_METADATA`` holds, where it was read already.
        """
        match layout.kind:
            case Kind.PYTREE | Kind.OLD_PYTREE:
                try:
                    with collector_paused():
                        return cls._of_tree(layout, data)
                except CorruptDataError as error:
                    raise error.located(url=layout.place.url) from None
            case Kind.DATABASE | Kind.ARRAYS | Kind.PARTS:
                with collector_paused():
                    return cls._of_arrays(layout)
            case Kind.RANDOM_KEY:
                return cls.open(key_tree(layout))
        raise UnsupportedError(
            f"{layout.place.url} is an item of a kind that cannot be read here; it holds "
            f"{', '.join(sorted(layout.names))}. Name another item with item=",
            url=layout.place.url,
        )

    @classmethod
    def _of_tree(cls, layout: Layout, data: bytes | None) -> StoredTree:
        place = layout.place
        aggregate = None
        if AGGREGATE in layout.names:
            from ocdbt_py.checkpoint.aggregate import decode_aggregate

            aggregate = decode_aggregate(read_present(place, AGGREGATE))
        if layout.kind is Kind.PYTREE:
            metadata = decode_tree_metadata(read_present(place, METADATA) if data is None else data)
            metadata = metadata if aggregate is None else aggregate.over(metadata)
        else:
            assert aggregate is not None
            metadata = aggregate.metadata
        check_distinct(metadata.names, METADATA if layout.kind is Kind.PYTREE else AGGREGATE)
        if aggregate is None:
            return cls.with_arrays(layout, metadata)
        documents = {i: ".zarray" for i, name in enumerate(metadata.names) if name in aggregate.inline}
        stored = cls.with_arrays(layout, metadata, elsewhere=aggregate.inline)
        source = stored.source
        if aggregate.values:
            from ocdbt_py.checkpoint.views import Overlay

            source = Overlay(place, aggregate.values, source)
        return replace(stored, source=source, documents=documents, strings=aggregate.strings)

    @classmethod
    def with_arrays(
        cls,
        layout: Layout,
        metadata: TreeMetadata,
        arrays: ArraySource | None = None,
        *,
        elsewhere: Container[str] = (),
    ) -> StoredTree:
        """With ``arrays``, or what is found, as the source of those leaves that are arrays and not ``elsewhere``."""
        kinds = value_types(metadata.leaves)
        names = metadata.names if elsewhere else repeat("", len(kinds))
        if not any(kind in ValueType.ARRAYS and name not in elsewhere for kind, name in zip(kinds, names, strict=True)):
            return cls(layout.place, metadata, metadata.names, None)
        if arrays is None or metadata.use_ocdbt is False:
            arrays = open_arrays(layout, metadata.use_ocdbt)
        if not arrays.is_whole:
            metadata = metadata._replace(missing_chunks_are_fill_values=False)
        return cls(layout.place, metadata, metadata.names, arrays.values)

    @classmethod
    def _of_arrays(cls, layout: Layout) -> StoredTree:
        """Arrays without ``_METADATA``: every one is a leaf, by its whole name."""
        place = layout.place
        source, is_whole = open_arrays(layout, None)
        files: dict[str, str] = {}
        for key in source.keys():  # noqa: SIM118  (one ordered pass over one version)
            text = key.decode("utf-8", "surrogateescape")
            name, slash, file = text.rpartition("/")
            if file in METADATA_FILES and (slash or text == file):
                files.setdefault(name, file)
        of_either = [name for name, file in files.items() if file == "zarr.json"]  # documents of groups, too
        keys = [array_key(name, "zarr.json") for name in of_either]
        if of_either:
            from ocdbt_py.array.zarr3 import is_group
        for name, data in zip(of_either, source.read_many(keys), strict=True):
            if is_group(data):
                del files[name]
        names = list(files)
        if not names:
            raise NotFoundError(
                f"{place.url} is {layout.kind.value} without arrays and without {METADATA}, so there is no tree in it; "
                "ocdbt_py.open() reads the keys of a database",
                kind="no-arrays",
                url=place.url,
            )
        records = [LeafRecord(_flat_path(name), ValueType.NUMPY_ARRAY) for name in names]
        documents = dict(enumerate(files.values()))
        return cls(place, TreeMetadata(records, names, None, False, is_whole, None), names, source, documents)

    @property
    def leaves(self) -> Sequence[LeafRecord]:
        return self.metadata.leaves

    @cached_property
    def value_types(self) -> Sequence[str]:
        """Of all leaves."""
        return value_types(self.leaves)

    def tree(self, values: Sequence[Any]) -> Any:
        """Dicts and lists around what stands for each leaf, as :func:`unflatten_paths` makes them."""
        leaves = self.leaves
        if isinstance(leaves, LeafColumns):
            return leaves.tree(values)
        return unflatten_paths([record.path for record in leaves], values)

    @property
    def _values(self) -> Readable:
        assert self.source is not None, "there are no arrays"
        return self.source

    @property
    def missing(self) -> Missing:
        """What a chunk that is not there means."""
        return "fill" if self.metadata.missing_chunks_are_fill_values else "error"

    def _read_with(self, reading: Reading) -> Values:
        """The values, as they are wanted."""
        if not reading.verify:
            return self._values
        try:
            return Verified(self._values, partial(read_file, self.place))
        except OcdbtError as error:
            raise error.located(url=self.place.url) from None

    def specs(self, indices: Iterable[int]) -> Mapping[int, ArraySpec]:
        """How those of these leaves are stored that are arrays; one request for all of them."""
        kinds, names, called = self.value_types, self.names, self.documents
        wanted: Sequence[int] = range(len(kinds))
        if indices != wanted or not ValueType.ARRAYS.issuperset(kinds):
            wanted = [i for i in indices if kinds[i] in ValueType.ARRAYS]
            names = list(map(names.__getitem__, wanted))
        if not wanted:
            return {}
        usual = "zarr.json" if self.metadata.use_zarr3 else ".zarray"
        keys: Sequence[bytes]
        if called:
            keys = [array_key(name, called.get(i, usual)) for i, name in zip(wanted, names, strict=True)]
            columns = self._values.find(keys)
        elif len(names) >= _MANY and isinstance(self.names, Names):
            joined = names if isinstance(names, Names) else Names.of(names)
            keys = JoinedKeys(joined.joined, f"/{usual}".encode())
            columns = self._values.find_joined(keys)
        else:
            keys = array_keys(names, usual)
            columns = self._values.find(keys)
        # arrays alike have one document; of those the first is named in an error
        documents, numbers = self._documents(keys, columns)
        firsts = np.empty(len(documents), np.int64)
        firsts[numbers[::-1]] = np.arange(len(numbers))[::-1]
        specs: list[Any] = [None] * len(documents)
        for number in firsts.argsort().tolist():
            path = keys[int(firsts[number])].decode("utf-8", "replace")
            specs[number] = decode_metadata(documents[number], path=path)
        return SpecColumns(wanted, specs, numbers, columns if isinstance(columns, FoundColumns) else None)

    def _documents(self, keys: Sequence[bytes], columns: Sequence[Found]) -> tuple[list[bytes], NDArray[np.int64]]:
        """The different values of these keys, and which of them each has; all must be there, and not too large for what
        they are."""
        alike = columns.alike() if isinstance(columns, FoundColumns) else None
        if alike is not None:
            return alike
        found: list[Any] = list(columns)
        outside = [i for i, value in enumerate(found) if isinstance(value, Location)]
        for i in outside:
            if found[i].length > _LARGEST_DOCUMENT:
                raise CorruptDataError(
                    f"The array metadata {keys[i]!r} has {found[i].length} bytes, more than any array's",
                    key=keys[i],
                    url=self.place.url,
                )
        for i, data in zip(outside, self._values.read_many([keys[i] for i in outside], None), strict=True):
            found[i] = data
        for key, value in zip(keys, found, strict=True):
            if value is None:
                name = key.rpartition(b"/")[0].decode("utf-8", "surrogateescape")
                raise CorruptDataError(
                    f"The array {name!r} is in the tree, but nothing is stored of it; its save was not complete, or "
                    "another program removed it",
                    key=key,
                    url=self.place.url,
                )
        known = Numbers()
        numbers = np.fromiter(map(known.__getitem__, map(bytes, found)), np.int64, len(found))
        return list(known), numbers

    def infos(self, indices: Iterable[int]) -> dict[int, ArrayInfo]:
        """What is known of those of these leaves that are arrays."""
        specs = self.specs(indices)
        infos = {id(spec): ArrayInfo.of(spec) for spec in {id(spec): spec for spec in specs.values()}.values()}
        return {i: infos[id(spec)] for i, spec in specs.items()}

    def values(
        self,
        indices: Sequence[int],
        reading: Reading = READING,
        *,
        parts: Mapping[int, Sequence[Index]] | None = None,
    ) -> dict[int, Any]:
        """The values of these leaves: arrays whole and writable, of rank 0 for numbers.

        Of those array leaves that are in ``parts`` only these are read, and the value is a list of them.
        """
        return dict(self._read(indices, reading, parts).items())

    def in_order(self, indices: Sequence[int], reading: Reading = READING) -> list[Any]:
        """The values of these leaves, and :data:`ABSENT` in the places of all others."""
        values, count = self._read(indices, reading), len(self.leaves)
        if isinstance(values, ArrayColumns) and values.indices == range(count):
            return list(values.arrays)
        return list(map(dict(values.items()).get, range(count), repeat(ABSENT)))

    def _read(
        self, indices: Sequence[int], reading: Reading, parts: Mapping[int, Sequence[Index]] | None = None
    ) -> Mapping[int, Any]:
        try:
            kinds = self.value_types
            if not any(kinds[i] in ValueType.ARRAYS for i in indices):
                return {i: self.plain(i) for i in indices}
            values = self._read_with(reading)
            specs = self.specs(indices)
            arrays = self._arrays(specs, parts or {}, values, reading)
            return arrays if len(specs) == len(indices) else {**arrays, **self._plain(indices, specs)}
        except (CorruptDataError, UnsupportedError) as error:
            raise error.located(url=self.place.url) from error.__cause__

    def _plain(self, indices: Sequence[int], specs: Container[int]) -> dict[int, Any]:
        return {i: self.plain(i) for i in indices if i not in specs}

    def lazy(self, i: int, spec: ArraySpec) -> LazyArray:
        """The array leaf ``i``, read when it is indexed."""
        from ocdbt_py.array.lazy import LazyArray

        return LazyArray(self._values, self.names[i], spec, missing=self.missing)

    def plain(self, i: int) -> Any:
        """What a leaf that is no array is: a string, None, or an empty container."""
        kind, name = self.value_types[i], self.names[i]
        if kind == ValueType.STRING and name in self.strings:
            return self.strings[name]
        if kind == ValueType.STRING:
            return look_up_string(self._strings, name)
        if kind in _EMPTY:
            return _EMPTY[kind]()
        raise UnsupportedError(
            f"The leaf {name!r} is of the kind {kind[:80]!r}, which its writer's own handler made and nobody else "
            "knows; leave it out with select="
        )

    def sharding(self, name: str) -> Mapping[str, Any] | None:
        """How a JAX array was sharded when it was saved, in Orbax's words; None for others."""
        return self._shardings.get(name)

    def _arrays(
        self,
        specs: Mapping[int, ArraySpec],
        parts: Mapping[int, Sequence[Index]],
        values: Values,
        reading: Reading,
    ) -> Mapping[int, Any]:
        """These arrays, or parts of them; whole ones as memory maps where that is wanted and they are stored so."""
        progress = reading.progress
        whole = {i: spec for i, spec in specs.items() if i not in parts} if parts else specs
        seen = values.take if type(values) is Verified else None
        mapped: Mapping[int, NDArray[Any]] = {}
        if reading.mmap and self.place.storage.capabilities.map:
            mapped = map_arrays(self.place, self._values, self.names, whole, seen)
        if progress is not None:
            size = sum(spec.nbytes for spec in whole.values())
            for i in parts.keys() & specs.keys():
                shapes = [select(part, specs[i].shape).shape for part in parts[i]]
                size += sum(map(math.prod, shapes)) * specs[i].dtype.itemsize
            progress.set_size(size)
            progress.relative_update(sum(array.nbytes for array in mapped.values()))
        if len(mapped) == len(specs):
            return mapped
        arrays: dict[int, Any] = dict(mapped.items())
        left = {i: spec for i, spec in whole.items() if i not in arrays} if arrays else whole
        for found in gather_arrays(self._values, self.names, left, reading.budget, seen):
            arrays |= found
            if progress is not None:
                progress.relative_update(sum(array.nbytes for array in found.values()))
        reads: dict[tuple[int, int | None], ArrayRead] = {
            (i, None): ArrayRead(self.names[i], spec) for i, spec in whole.items() if i not in arrays
        }
        for i in parts.keys() & specs.keys():
            arrays[i] = [None] * len(parts[i])
            reads |= {(i, number): ArrayRead(self.names[i], specs[i], part) for number, part in enumerate(parts[i])}
        rest = read_arrays(values, reads.values(), missing=self.missing, budget=reading.budget)
        for (i, at), array in zip(reads, rest, strict=True):
            if at is None:
                arrays[i] = array
            else:
                arrays[i][at] = array
            if progress is not None:
                progress.relative_update(array.nbytes)
        return arrays

    @cached_property
    def _strings(self) -> Mapping[str, Any]:
        data = read_file(self.place, STRINGS)
        if data is None:
            raise CorruptDataError(
                f"The tree has strings, but {STRINGS} is not there; the directory was copied without it",
                path=STRINGS,
                url=self.place.url,
            )
        try:
            return decode_strings(data)
        except CorruptDataError as error:
            raise error.located(url=self.place.url) from None

    @cached_property
    def _shardings(self) -> Mapping[str, Mapping[str, Any]]:
        data = read_file(self.place, SHARDING)
        return {} if data is None else decode_shardings(data)


def python_number(array: NDArray[Any]) -> bool | int | float | complex:
    """The Python number of its kind that an array of rank 0 holds."""
    number = array.item()
    if isinstance(number, bool | int | float | complex):
        return number
    # ml_dtypes' own numbers know themselves only as that
    return int(number) if dtype_name(array.dtype).startswith("int") else float(number)


_EMPTY: dict[str, Any] = {
    ValueType.NONE: lambda: None,
    ValueType.DICT: dict,
    ValueType.LIST: list,
    ValueType.TUPLE: tuple,
    ValueType.NAMED_TUPLE: lambda: None,  # as Orbax gives it without rich types
}


def _flat_path(name: str) -> Path:
    return (Key(name, KeyKind.DICT),) if name else ()


def read_present(place: Place, name: str) -> bytes:
    """A file that was listed."""
    data = read_file(place, name)
    if data is None:
        raise gone(place, name)
    return data


def gone(place: Place, name: str) -> PathNotFoundError:
    """Of a file that was listed."""
    return PathNotFoundError(f"{name} of {place.url} is gone", url=place.url)


def check_distinct(names: Sequence[str], path: str) -> None:
    """Two leaves of one name would be one array; their writer merged or lost one of them."""
    if len(names) >= _MANY and isinstance(names, Names) and names.joined.are_increasing().all():
        return
    if len(set(names)) < len(names):
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise CorruptDataError(
            f"Two leaves in {path} have the name {twice!r}, so that nobody can tell whose array it is", path=path
        )
