"""Arrays that lie in a file as they lie in memory: no chunk of them has to be decoded, or looked at by itself.

Either as private memory maps of the file (:func:`map_arrays`), or, if they are small, many at a time: neighbours in a
file are read in one piece into memory of their own, and each is a view of its part (:func:`gather_arrays`). What lies
otherwise is left to :mod:`ocdbt_py.array.read`, and so is everything that is wrong with a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ocdbt_py.array.rows import ArrayColumns, arrays_in
from ocdbt_py.array.sharding import only_chunk
from ocdbt_py.array.spec import ArraySpec, SpecColumns, array_key, array_keys
from ocdbt_py.database_reading import Readable
from ocdbt_py.engine.found import FoundColumns
from ocdbt_py.engine.nodes import file_path
from ocdbt_py.errors import CorruptDataError, NotFoundError
from ocdbt_py.format.datafile import DataFileId, Location
from ocdbt_py.storage.location import Place
from ocdbt_py.storage.protocol import Buffer

__all__ = ["gather_arrays", "map_arrays"]

Seen = Callable[[bytes, Buffer], object]
"""Called with each key and its stored bytes, before these are used."""

_SMALL = 64 << 10
"""Bytes; a larger array has memory of its own, which goes when it goes."""

_PIECE = 1 << 20
"""Bytes read into one piece of memory, which lives as long as any of its arrays."""

_GAP = 64
"""Bytes between two arrays that are read with them."""


class _Chunks(NamedTuple):
    """The one chunk of each of some arrays, in columns."""

    indices: NDArray[np.int64]
    """Which array."""
    all_indices: Sequence[int]
    """The same, but also of those that are stored otherwise."""
    keys: Sequence[bytes]
    found: FoundColumns
    """What stands there."""
    specs: Sequence[ArraySpec]
    kinds: NDArray[np.int64]
    """Which of the specs, of which arrays alike share one."""

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of an array's only chunk, that of one which is no shard; -1 of others."""
        sizes = [-1 if spec.sharding is not None else spec.chunk_nbytes for spec in self.specs]
        return np.array(sizes, np.int64)[self.kinds]


def map_arrays(
    place: Place, source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec], seen: Seen | None = None
) -> Mapping[int, NDArray[Any]]:
    """Those of the arrays ``names[i]`` that can be mapped; ``source`` says where below ``place`` they are."""
    chunks = _found(source, names, specs)
    indices, found = chunks.indices, chunks.found
    files: dict[int, memoryview] = {}  # by their numbers among the sources
    ends = np.full(len(found.sources), -1, np.int64)
    for number in np.bincount(found.numbers).nonzero()[0].tolist():
        file = found.sources[number]
        if isinstance(file, DataFileId):
            files[number] = _map_file(place, file, chunks.keys[int((found.numbers == number).argmax())])
            ends[number] = len(files[number])
    sizes = chunks.sizes()
    is_usual = (found.lengths == sizes) & (found.offsets <= ends[found.numbers] - sizes)
    usual = is_usual.nonzero()[0]
    if seen is not None:
        for row in usual.tolist():
            start = int(found.offsets[row])
            seen(chunks.keys[row], files[int(found.numbers[row])][start : start + int(sizes[row])])
    contents = {number: np.frombuffer(mapped, np.uint8) for number, mapped in files.items()}
    numbers, kinds, offsets = found.numbers[usual], chunks.kinds[usual], found.offsets[usual]
    made = arrays_in(contents, chunks.specs, numbers, kinds, offsets)
    if len(made) == len(chunks.all_indices):
        return ArrayColumns(chunks.all_indices, made)
    arrays = dict(zip(indices[usual].tolist(), made, strict=True))
    for row in (~is_usual).nonzero()[0].tolist():
        number, i = int(found.numbers[row]), int(indices[row])
        file = found.sources[number]
        if isinstance(file, DataFileId):
            at = Location(file, int(found.offsets[row]), int(found.lengths[row]))
            array = _mapped(place, files[number], names[i], chunks.specs[chunks.kinds[row]], chunks.keys[row], at, seen)
            if array is not None:
                arrays[i] = array
    return arrays


def gather_arrays(
    source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec], budget: int, seen: Seen | None = None
) -> Iterator[dict[int, NDArray[Any]]]:
    """Those of the arrays ``names[i]`` that are small and stored as they are, as many at a time as ``budget`` bytes
    hold.
    """
    chunks = _found(source, names, specs)
    indices, keys, found, kinds = chunks.indices, chunks.keys, chunks.found, chunks.kinds
    if not len(indices):
        return
    is_file = np.array([isinstance(each, DataFileId) for each in found.sources], np.bool_)[found.numbers]
    is_usual = found.lengths == chunks.sizes()
    inline: dict[int, NDArray[Any]] = {}
    for row in (is_usual & ~is_file).nonzero()[0].tolist():
        data, offset, spec = found.sources[found.numbers[row]], int(found.offsets[row]), chunks.specs[kinds[row]]
        if isinstance(data, bytes):
            if seen is not None:
                seen(keys[row], data[offset : offset + spec.chunk_nbytes])
            inline[int(indices[row])] = np.ndarray(spec.shape, spec.dtype, data, offset).copy()
    if inline:
        yield inline
    rows = (is_usual & is_file & (found.lengths <= _SMALL)).nonzero()[0]
    rows = rows[np.lexsort((found.offsets[rows], found.numbers[rows]))]
    batch: list[NDArray[np.intp]] = []
    held = 0
    for start, stop in _pieces(chunks, rows):
        piece = rows[start:stop]
        size = int(found.offsets[piece[-1]] + found.lengths[piece[-1]] - found.offsets[piece[0]])
        if batch and held + size > budget:
            yield _read(source, batch, chunks, seen)
            batch, held = [], 0
        batch.append(piece)
        held += size
    if batch:
        yield _read(source, batch, chunks, seen)


def _found(source: Readable, names: Sequence[str], specs: Mapping[int, ArraySpec]) -> _Chunks:
    """The chunks of those arrays that are stored as they are."""
    columns = SpecColumns.of(specs)
    files = [spec.chunk_key((0,) * spec.ndim) if spec.is_plain else "" for spec in columns.distinct]
    kinds = np.asarray(columns.kinds, np.int64)
    indices = np.asarray(columns.indices, np.int64)
    beside = None
    if columns.documents is not None and columns.documents.rows:
        endings = [file.encode() for file in files]
        beside = columns.documents.beside(columns.distinct[0].metadata_key.encode(), endings, kinds)
    is_all = "" not in files and columns.indices == range(len(names))
    if "" in files:
        rows = np.array(files, np.bool_)[kinds].nonzero()[0]
        kinds, indices = kinds[rows], indices[rows]
        beside = None if beside is None else beside.take(rows)
    if beside is not None:
        made = _ChunkKeys(names, indices, files, kinds)
        return _Chunks(indices, columns.indices, made, _with_others(source, made, beside), columns.distinct, kinds)
    keys = _chunk_keys(names if is_all else list(map(names.__getitem__, indices.tolist())), files, kinds)
    found = source.find(keys) if keys else []
    answers = found if isinstance(found, FoundColumns) else FoundColumns.of_each(found)
    return _Chunks(indices, columns.indices, keys, answers, columns.distinct, kinds)


class _ChunkKeys(Sequence[bytes]):
    """The keys of chunks, each made when it is asked for: mostly it is for an error."""

    def __init__(
        self, names: Sequence[str], indices: NDArray[np.int64], files: Sequence[str], kinds: NDArray[np.int64]
    ) -> None:
        self._names = names
        self._indices = indices
        self._files = files
        self._kinds = kinds

    def __len__(self) -> int:
        return len(self._kinds)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return array_key(self._names[int(self._indices[index])], self._files[self._kinds[index]])


def _with_others(source: Readable, keys: Sequence[bytes], found: FoundColumns) -> FoundColumns:
    """``found``, with what stands at those keys that do not follow their document's looked up by themselves."""
    is_nothing = np.array([each is None for each in found.sources], np.bool_)[found.numbers]
    rows = is_nothing.nonzero()[0]
    if not len(rows):
        return found
    others = source.find([keys[row] for row in rows.tolist()])
    found.put(rows, others if isinstance(others, FoundColumns) else FoundColumns.of_each(others))
    return found


def _chunk_keys(names: Sequence[str], files: Sequence[str], kinds: NDArray[np.int64]) -> list[bytes]:
    """In the order of the names, which is that of the database, as a rule."""
    used = sorted(set(files) - {""})
    if len(used) == 1:
        return array_keys(names, used[0])
    wanted = [files[kind] for kind in kinds.tolist()]
    keys = {
        file: iter(array_keys([name for name, each in zip(names, wanted, strict=True) if each == file], file))
        for file in used
    }
    return [next(keys[file]) for file in wanted]


def _pieces(chunks: _Chunks, rows: NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Which of the rows are read together: neighbours in one file, at most a small gap between them, and none in
    another's bytes.
    """
    offsets, numbers = chunks.found.offsets[rows], chunks.found.numbers[rows]
    ends = offsets + chunks.found.lengths[rows]
    alignments = np.array([spec.dtype.alignment for spec in chunks.specs], np.int64)[chunks.kinds[rows]]
    gaps = offsets[1:] - ends[:-1]
    bounds = ((gaps < 0) | (gaps > _GAP) | (numbers[1:] != numbers[:-1])).nonzero()[0] + 1
    start = 0
    for end in [*bounds.tolist(), len(rows)]:
        while start < end:
            stop = end
            if start + 1 < end:
                first = offsets[start]
                stop = start + max(1, int(np.searchsorted(ends[start:end], first + _PIECE, "right")))
                astray = ((offsets[start:stop] - first) % alignments[start:stop]).nonzero()[0]
                stop = start + int(astray[0]) if len(astray) else stop
            yield start, stop
            start = stop


def _read(
    source: Readable, pieces: Sequence[NDArray[np.intp]], chunks: _Chunks, seen: Seen | None
) -> dict[int, NDArray[Any]]:
    found = chunks.found
    memories = []
    fillings = []
    for piece in pieces:
        first, last = piece[0], piece[-1]
        file, start = found.sources[found.numbers[first]], int(found.offsets[first])
        assert isinstance(file, DataFileId)
        memory = np.empty(int(found.offsets[last] + found.lengths[last]) - start, np.uint8)
        memories.append(memory)
        fillings.append((chunks.keys[last], Location(file, start, len(memory)), memory.data))
    source.fill(fillings)
    together = np.concatenate(pieces)
    numbers = np.repeat(np.arange(len(pieces)), list(map(len, pieces)))
    starts = np.fromiter((where.offset for _, where, _ in fillings), np.int64, len(fillings))
    kinds, offsets = chunks.kinds[together], found.offsets[together] - starts[numbers]
    if seen is not None:
        for row, number, offset in zip(together.tolist(), numbers.tolist(), offsets.tolist(), strict=True):
            seen(chunks.keys[row], memories[number].data[offset : offset + int(found.lengths[row])])
    arrays = arrays_in(memories, chunks.specs, numbers, kinds, offsets)
    return dict(zip(chunks.indices[together].tolist(), arrays, strict=True))


def _mapped(
    place: Place,
    mapped: memoryview,
    name: str,
    spec: ArraySpec,
    key: bytes,
    at: Location,
    seen: Seen | None,
) -> NDArray[Any] | None:
    """The array of a chunk that is more than its bytes, or not of their length; None if its shard leaves it out."""
    stored: memoryview | None = mapped[at.offset : at.offset + at.length]
    reason = f"of {spec.nbytes} bytes by its metadata"
    if seen is not None and stored is not None and len(stored) == at.length:
        seen(key, stored)
    try:
        if stored is not None and spec.sharding is not None and len(stored) == at.length:
            stored = only_chunk(stored, spec.sharding, spec.index_nbytes)
    except ValueError as error:
        stored, reason = mapped[:0], str(error)
    if stored is None:
        return None
    if len(stored) != spec.nbytes:
        raise CorruptDataError(
            f"The chunk of array {name!r}, {reason}, cannot be in the {at.length} bytes at {at.offset} in a file of "
            f"{len(mapped)}",
            path=at.file.path.decode("utf-8", "surrogateescape"),
            key=key,
            url=place.url,
        )
    return np.frombuffer(stored, spec.dtype, spec.size).reshape(spec.shape)


def _map_file(place: Place, file: DataFileId, key: bytes) -> memoryview:
    try:
        return place.storage.map(file_path(place.path, file))
    except NotFoundError as error:
        raise CorruptDataError(
            "Arrays lie in a data file that is not there; the directory was copied without it, or it was deleted",
            path=file.path.decode("utf-8", "surrogateescape"),
            key=key,
            url=place.url,
        ) from error
