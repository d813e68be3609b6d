"""A pytree as it lies on disk, opened for reading: its leaves' names and kinds, and their values when asked for.

One :class:`StoredTree` reads one version of one database, and its JSON files once. Many leaves are read together: their
array documents in one request, then their chunks in large batches (:mod:`ocdbt_py.array.read`), or as private memory
maps of the data files where the caller wants that and the bytes allow it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.dtypes import dtype_name, low_bits
from ocdbt_py.array.lazy import LazyArray
from ocdbt_py.array.read import ArrayRead, Missing, read_arrays
from ocdbt_py.array.spec import ArraySpec, array_key
from ocdbt_py.array.zarr2 import decode_zarray
from ocdbt_py.checkpoint.flatten import Key, KeyKind, Path
from ocdbt_py.checkpoint.layout import PROCESS_PREFIX, Kind, Layout, read_file
from ocdbt_py.checkpoint.metadata import (
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
from ocdbt_py.checkpoint.names import leaf_names
from ocdbt_py.database import Database, open_place
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.errors import CorruptDataError, NotFoundError, PathNotFoundError, UncommittedError, UnsupportedError
from ocdbt_py.format.datafile import DataFileId
from ocdbt_py.format.manifest import MANIFEST_NAME
from ocdbt_py.storage.location import Place

__all__ = ["NO_ARRAY", "ArrayInfo", "StoredTree", "python_number"]


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


NO_ARRAY = ArrayInfo((), np.dtype(object), 0, ())


@dataclass
class StoredTree:
    """The leaves of one pytree directory, or of a database of arrays. Safe for threads; picklable."""

    place: Place
    metadata: TreeMetadata
    names: Sequence[str]
    database: Database | None
    """None where no leaf is an array."""

    @classmethod
    def open(cls, layout: Layout) -> StoredTree:
        """Read the metadata of a place that :func:`identify` found to be a pytree or a database."""
        place = layout.place
        if layout.kind is Kind.DATABASE:
            return cls._of_database(place)
        if layout.kind is Kind.OLD_PYTREE:
            raise UnsupportedError(
                f"{place.url} was written by Orbax 0.3 or older, which this release cannot read; restore it and save "
                "it again with a newer one",
                url=place.url,
            )
        if layout.kind is not Kind.PYTREE:
            raise UnsupportedError(
                f"{place.url} is an item of a kind that cannot be read here; it holds "
                + ", ".join(sorted(layout.names)),
                url=place.url,
            )
        data = read_file(place, METADATA)
        if data is None:
            raise PathNotFoundError(f"{METADATA} of {place.url} is gone", url=place.url)
        try:
            metadata = decode_tree_metadata(data)
        except CorruptDataError as error:
            raise error.located(url=place.url) from None
        database = None
        if any(record.value_type in ValueType.ARRAYS for record in metadata.leaves):
            database = _open_database(layout, metadata)
        return cls(place, metadata, leaf_names(record.path for record in metadata.leaves), database)

    @classmethod
    def _of_database(cls, place: Place) -> StoredTree:
        """A database without ``_METADATA``: every array in it is a leaf, by its whole name."""
        database = _snapshot(place)
        names = []
        for key in database.keys():  # noqa: SIM118  (one ordered pass over one version)
            text = key.decode("utf-8", "surrogateescape")
            name, slash, file = text.rpartition("/")
            if file == ".zarray" and (slash or text == ".zarray"):
                names.append(name)
        if not names:
            raise NotFoundError(
                f"{place.url} is a database without arrays and without {METADATA}, so there is no tree in it; "
                "ocdbt_py.open() reads its keys",
                kind="no-arrays",
                url=place.url,
            )
        records = [LeafRecord(_flat_path(name), ValueType.NUMPY_ARRAY) for name in names]
        return cls(place, TreeMetadata(records, True, False, True, None), names, database)

    @property
    def leaves(self) -> Sequence[LeafRecord]:
        return self.metadata.leaves

    @property
    def _values(self) -> Database:
        assert self.database is not None, "there are no arrays"
        return self.database

    @property
    def missing(self) -> Missing:
        """What a chunk that is not there means."""
        return "fill" if self.metadata.missing_chunks_are_fill_values else "error"

    def specs(self, indices: Iterable[int]) -> dict[int, ArraySpec]:
        """How those of these leaves are stored that are arrays; one request for all of them."""
        wanted = [i for i in indices if self.leaves[i].value_type in ValueType.ARRAYS]
        if not wanted:
            return {}
        keys = [array_key(self.names[i], ".zarray") for i in wanted]
        decoded: dict[bytes, ArraySpec] = {}
        specs = {}
        for i, key, data in zip(wanted, keys, self._values.read_many(keys, None), strict=True):
            if data is None:
                raise CorruptDataError(
                    f"The array {self.names[i]!r} is in {METADATA} but not in the database; the save was not complete, "
                    "or another program removed it",
                    key=key,
                    url=self.place.url,
                )
            spec = decoded.get(data)
            if spec is None:
                spec = decoded[data] = decode_zarray(data, path=key.decode("utf-8", "replace"))
            specs[i] = spec
        return specs

    def infos(self, indices: Iterable[int]) -> dict[int, ArrayInfo]:
        """What is known of those of these leaves that are arrays."""
        return {i: ArrayInfo.of(spec) for i, spec in self.specs(indices).items()}

    def values(self, indices: Sequence[int], *, mmap: bool = False, progress: Any = None) -> dict[int, Any]:
        """The values of these leaves: arrays whole and writable, of rank 0 for numbers."""
        specs = self.specs(indices)
        arrays = self._arrays(specs, mmap, progress) if specs else {}
        return {i: arrays[i] if i in specs else self.plain(i) for i in indices}

    def lazy(self, i: int, spec: ArraySpec) -> LazyArray:
        """The array leaf ``i``, read when it is indexed."""
        return LazyArray(self._values, self.names[i], spec, missing=self.missing)

    def plain(self, i: int) -> Any:
        """What a leaf that is no array is: a string, None, or an empty container."""
        kind, name = self.leaves[i].value_type, self.names[i]
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

    def _arrays(self, specs: Mapping[int, ArraySpec], mmap: bool, progress: Any) -> dict[int, NDArray[Any]]:
        """These arrays, as memory maps where ``mmap`` and the way they are stored allow."""
        arrays = self._map(specs) if mmap and self.place.storage.capabilities.map else {}
        reads = {i: ArrayRead(self.names[i], spec) for i, spec in specs.items() if i not in arrays}
        if progress is not None:
            progress.set_size(sum(spec.nbytes for spec in specs.values()))
            progress.relative_update(sum(array.nbytes for array in arrays.values()))
        try:
            for i, array in zip(reads, read_arrays(self._values, reads.values(), missing=self.missing), strict=True):
                arrays[i] = array
                if progress is not None:
                    progress.relative_update(array.nbytes)
        except CorruptDataError as error:
            raise error.located(url=self.place.url) from None
        return arrays

    def _map(self, specs: Mapping[int, ArraySpec]) -> dict[int, NDArray[Any]]:
        """Those of the arrays that lie in a file as they lie in memory."""
        chunks = {
            array_key(self.names[i], spec.chunk_key((0,) * spec.ndim)): (i, spec)
            for i, spec in specs.items()
            if _is_mappable(spec)
        }
        files: dict[str, memoryview] = {}
        arrays: dict[int, NDArray[Any]] = {}
        for entry in self._values.scan() if chunks else ():
            location = entry.location
            if location is None or entry.key not in chunks:
                continue
            i, spec = chunks[entry.key]
            mapped = files.get(location.file)
            if mapped is None:
                mapped = files[location.file] = self._map_file(location.file)
            if location.length != spec.nbytes or location.offset + location.length > len(mapped):
                raise CorruptDataError(
                    f"The chunk of array {self.names[i]!r}, of {spec.nbytes} bytes by its metadata, cannot be the "
                    f"{location.length} bytes at {location.offset} in a file of {len(mapped)}",
                    path=location.file,
                    key=entry.key,
                    url=self.place.url,
                )
            arrays[i] = np.frombuffer(mapped, spec.dtype, spec.size, location.offset).reshape(spec.shape)
        return arrays

    def _map_file(self, name: str) -> memoryview:
        path = file_path(self.place.path, DataFileId(b"", name.encode("utf-8", "surrogateescape")))
        try:
            return self.place.storage.map(path)
        except NotFoundError as error:
            raise CorruptDataError(
                "Arrays lie in a data file that is not there; the directory was copied without it, or it was deleted",
                path=name,
                url=self.place.url,
            ) from error

    @cached_property
    def _strings(self) -> Mapping[str, Any]:
        data = read_file(self.place, STRINGS)
        if data is None:
            raise CorruptDataError(
                f"The tree has strings, but {STRINGS} is not there; the directory was copied without it",
                path=STRINGS,
                url=self.place.url,
            )
        return decode_strings(data)

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


def _open_database(layout: Layout, metadata: TreeMetadata) -> Database:
    """The database of a pytree whose metadata lists arrays."""
    place = layout.place
    if metadata.use_zarr3:
        raise UnsupportedError(
            f"{place.url} holds zarr v3 arrays, which this release cannot read; Orbax can", url=place.url
        )
    if metadata.use_ocdbt is False or (metadata.use_ocdbt is None and MANIFEST_NAME not in layout.names):
        raise UnsupportedError(
            f"{place.url} has a directory for each array instead of a database (use_ocdbt=False), which this release "
            "cannot read; Orbax can",
            url=place.url,
        )
    if MANIFEST_NAME not in layout.names:
        if any(name.startswith(PROCESS_PREFIX) for name in layout.names):
            raise UncommittedError(
                f"{place.url} holds what single processes wrote, never merged into one database: its writers did not "
                "finish",
                kind="unmerged",
                url=place.url,
            )
        raise CorruptDataError(
            f"{METADATA} lists arrays, but there is no database beside it ({MANIFEST_NAME}); the directory was copied "
            "without it",
            path=MANIFEST_NAME,
            url=place.url,
        )
    return _snapshot(place)


def _snapshot(place: Place) -> Database:
    """What the database holds now: its manifest, read once."""
    return open_place(place, max_staleness=math.inf).snapshot()


def _is_mappable(spec: ArraySpec) -> bool:
    return (
        spec.compressor is None
        and spec.chunks == spec.shape
        and (spec.order == "C" or spec.ndim < 2)
        and spec.byte_order == "<"
        and spec.dtype.kind != "b"  # a stored byte may be anything, and NumPy trusts it to be 0 or 1
        and low_bits(spec.dtype) is None
    )
